//! Peers that take nothing: what was sent to them is not acknowledged, for their link is dead or they do not read.
//!
//! The kernel has a clock for that (`TCP_USER_TIMEOUT`), which is of no use here: once a window has closed it counts from the first
//! probe, however often the window opens a little in between, and so ends whoever reads slowly but steadily. Ours counts from the last
//! byte that was acknowledged. Bytes of the peer itself excuse nothing: who sends and takes nothing will never read what waits for him.
//!
//! In: that something is sent; the clock; what the kernel says was acknowledged. Out: the session's end. It costs two system calls in
//! five seconds at most, and none while nothing is sent.

use super::mux::DeadReason;
use super::{CloseReason, Phase, Session};
use crate::counters::Counter;
use crate::driver::{Driver, Nanos, Taken};
use crate::limits;
use crate::slab::Key;
use crate::warn;
use crate::worker::Worker;

/// What is known of how a session's peer takes what is sent to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stall {
    /// When to look next; none while nothing is under way.
    due: Option<Nanos>,
    /// Bytes that had been acknowledged at the last look, and when there were first as many.
    taken_len: u64,
    moved_at: Nanos,
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// All has arrived.
    Done,
    /// It goes on.
    Moves,
    /// Nothing moved for too long.
    Stuck,
}

impl Stall {
    /// When the session is to be looked at.
    pub(super) fn due(self) -> Option<Nanos> {
        self.due
    }

    /// Something is sent; `taken_len` had been acknowledged.
    fn begin(&mut self, now: Nanos, taken_len: u64) {
        *self = Self { due: Some(now + limits::STALL_LOOK_NS), taken_len, moved_at: now };
    }

    /// Looks; `is_sending`: more is to be given to the kernel, which does not take it.
    fn look(&mut self, now: Nanos, taken: Taken, is_sending: bool) -> Found {
        if taken.is_all && !is_sending {
            self.due = None;
            return Found::Done;
        }
        self.due = Some(now + limits::STALL_LOOK_NS);
        if taken.len != self.taken_len {
            (self.taken_len, self.moved_at) = (taken.len, now);
        }
        if now >= self.moved_at + limits::STALL_TIMEOUT_NS { Found::Stuck } else { Found::Moves }
    }
}

impl<D: Driver> Worker<D> {
    /// Something is about to be sent: from now on it is looked whether it arrives.
    pub(crate) fn watch_for_stall(&mut self, key: Key) {
        let now = self.driver.now();
        let Some(Session { socket, phase: Phase::Established(open), .. }) = self.sessions.find_mut(key)
        else {
            return;
        };
        if open.stall.due().is_none()
            && let Some(taken) = self.driver.taken(*socket)
        {
            open.stall.begin(now, taken.len);
        }
    }

    /// Looks at a session when it is time to; one that takes nothing ends.
    pub(super) fn look_at_stall(&mut self, key: Key, now: Nanos) {
        let Some(Session { socket, sending, phase: Phase::Established(open), .. }) =
            self.sessions.find_mut(key)
        else {
            return;
        };
        if open.stall.due().is_none_or(|due| due > now) {
            return;
        }
        // Where the kernel does not tell, the multiplexer's clocks have to do.
        let found = self.driver.taken(*socket).map(|taken| open.stall.look(now, taken, *sending));
        if found != Some(Found::Stuck) {
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

    const LOOK: Nanos = limits::STALL_LOOK_NS;

    fn taken(len: u64) -> Taken {
        Taken { len, is_all: false }
    }

    #[test]
    fn whoever_takes_a_byte_now_and_then_lives() {
        let mut stall = Stall::default();
        stall.begin(100 * LOOK, 7);
        let mut len = 7;
        for number in 1..1000 {
            let now = stall.due().unwrap();
            // The rarest that is enough.
            len += u64::from(number % 5 == 0);
            assert_eq!(stall.look(now, taken(len), true), Found::Moves, "look {number}");
        }
    }

    #[test]
    fn whoever_takes_nothing_is_stuck_and_whoever_has_all_is_left_alone() {
        let mut stall = Stall::default();
        assert_eq!(stall.due(), None);
        let begun = 100 * LOOK;
        stall.begin(begun, 7);
        let now = loop {
            let now = stall.due().unwrap();
            if stall.look(now, taken(7), false) == Found::Stuck {
                break now;
            }
        };
        assert!(now - begun >= limits::STALL_TIMEOUT_NS && now - begun < limits::STALL_TIMEOUT_NS + LOOK);
        let all = Taken { len: 7, is_all: true };
        stall.begin(begun, 7);
        assert_eq!(stall.look(begun + LOOK, all, true), Found::Moves, "more is with the ring");
        assert_eq!(stall.look(begun + 2 * LOOK, all, false), Found::Done);
        assert_eq!(stall.due(), None, "nothing is looked at while nothing is sent");
    }
}
