//! Peers that send and do not read: a ping is not answered, and nothing of what is sent to them is taken.
//!
//! Any byte of a peer excuses a late answer, for that may wait behind others (dmsg-wire 5.6). But who takes nothing of ours all the
//! while cannot have read the ping, and never will. What is taken the kernel knows, by acknowledgements: a send may be under way
//! for long on a slow connection, and moves all the same.

use super::mux::DeadReason;
use super::{CloseReason, Open, Phase, Session};
use crate::counters::Counter;
use crate::driver::{Driver, Nanos, Taken};
use crate::limits;
use crate::slab::Key;
use crate::warn;
use crate::worker::Worker;

/// What the last look at a session with an unanswered ping found.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Look {
    at: Nanos,
    /// Bytes that had been taken.
    taken_len: u64,
}

impl Look {
    /// When to look next, at a session whose oldest ping waits since `asked_at`.
    fn due(self, asked_at: Nanos) -> Nanos {
        asked_at.max(self.at) + limits::UNANSWERED_LOOK_NS
    }

    /// What is there now; true: nothing was taken since the last look, which was behind that ping too.
    fn is_stuck(&mut self, now: Nanos, asked_at: Nanos, taken: Taken, is_sending: bool) -> bool {
        let former = std::mem::replace(self, Self { at: now, taken_len: taken.len });
        let has_all = taken.is_all && !is_sending;
        former.at >= asked_at && former.taken_len == taken.len && !has_all
    }
}

impl Open {
    /// When the session is to be looked at, if it owes an answer.
    pub(super) fn look_due(&self) -> Option<Nanos> {
        self.mux.unanswered_since().map(|asked_at| self.look.due(asked_at))
    }
}

impl<D: Driver> Worker<D> {
    /// Looks at a session that owes an answer, when it is time to; one that takes nothing ends.
    pub(super) fn look_at_unanswered(&mut self, key: Key, now: Nanos) {
        let Some(Session { socket, sending, phase: Phase::Open(open), .. }) = self.sessions.find_mut(key)
        else {
            return;
        };
        let Some(asked_at) = open.mux.unanswered_since().filter(|&asked_at| open.look.due(asked_at) <= now)
        else {
            return;
        };
        // Where it cannot be told, the kernel's own clock has to do.
        let Some(taken) = self.driver.taken(*socket) else {
            open.look.at = now;
            return;
        };
        if !open.look.is_stuck(now, asked_at, taken, *sending) {
            return;
        }
        self.counters.count(Counter::SessionsDead);
        if let Some(suppressed) = self.warnings.admit(warn::Kind::SessionDead, now) {
            tracing::info!(peer = %open.peer, reason = %DeadReason::TakesNothing, suppressed, "session dead");
        }
        self.close_session(key, CloseReason::Dead);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Nanos = limits::UNANSWERED_LOOK_NS;

    fn taken(len: u64) -> Taken {
        Taken { len, is_all: false }
    }

    #[test]
    fn whoever_takes_something_lives_however_late_his_answer() {
        let (asked_at, mut look) = (100 * LOOK, Look::default());
        assert_eq!(look.due(asked_at), asked_at + LOOK);
        for number in 1..20 {
            let at = look.due(asked_at);
            assert!(!look.is_stuck(at, asked_at, taken(1000 + number), true));
            assert_eq!(look.due(asked_at), at + LOOK);
        }
    }

    #[test]
    fn whoever_takes_nothing_from_one_look_to_the_next_is_stuck() {
        let (asked_at, mut look) = (100 * LOOK, Look { at: 99 * LOOK, taken_len: 7 });
        // What it had taken before that ping says nothing.
        assert!(!look.is_stuck(101 * LOOK, asked_at, taken(7), true));
        assert!(look.is_stuck(102 * LOOK, asked_at, taken(7), true));
        // All is taken: there is nothing that it could leave.
        let mut look = Look { at: 101 * LOOK, taken_len: 7 };
        let all = Taken { len: 7, is_all: true };
        assert!(!look.is_stuck(102 * LOOK, asked_at, all, false));
        assert!(look.is_stuck(103 * LOOK, asked_at, all, true), "more is with the ring, and does not go");
    }
}
