//! The other workers of the data plane: what this one says to them, and what it hears.
//!
//! In go [`Letter`]s for another worker; out come theirs, once a turn. A letter that finds its mailbox full waits here, behind
//! those that wait already, and goes out when there is room, without a timer. A data plane of one worker has no team, and a
//! turn without a team does none of this. See `docs/design/0003-several-workers.md`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringwire_exchange::WorkerIndex;
use ringwire_exchange::directory::{Directory, Place};
use ringwire_exchange::mailbox::{self, Mailbox};
use ringwire_proto::identity::PublicKey;

use crate::addresses::AddressCounts;
use crate::counters::Counter;
use crate::driver::{Driver, Wait};
use crate::session::{CloseReason, Session};
use crate::slab::Key;
use crate::waker::Waker;
use crate::worker::Worker;

/// Letters that one worker may have waiting at another: 256 of 32 bytes.
const SLOTS: usize = 256;
const WORDS: usize = 4;

/// Letters read in one turn at most.
const LETTERS_PER_TURN_MAX: usize = 1024;

/// What one worker says to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Letter {
    /// A newer session has taken the place of yours, if it still has this generation.
    Close { session: Key, generation: u64 },
}

impl Letter {
    fn encode(self) -> [u64; WORDS] {
        match self {
            Self::Close { session, generation } => [1, session.number(), generation, 0],
        }
    }

    /// Only what [`encode`](Self::encode) made arrives: both ends are this process.
    fn decode(words: [u64; WORDS]) -> Self {
        match words {
            [1, session, generation, _] => Self::Close { session: Key::from_number(session), generation },
            [kind, ..] => unreachable!("no letter of kind {kind} is ever written"),
        }
    }
}

/// One worker's place among the workers. See the module's head.
#[derive(Debug)]
pub struct Team {
    directory: Arc<Directory<PublicKey>>,
    by_address: Arc<AddressCounts>,
    /// Workers that have sessions still, or are not draining.
    undrained: Arc<AtomicUsize>,
    /// This one is not counted among them any more.
    is_drained: bool,
    mailbox: Mailbox<SLOTS, WORDS>,
    /// Of all workers, by number; set before the first turn.
    wakers: Vec<Waker>,
    /// What found no room, in the order of writing. At most one for each session that this worker ever opened and
    /// another one has yet to close.
    waiting: VecDeque<(WorkerIndex, Letter)>,
}

impl Team {
    /// A place for each of so many workers, in order of their number.
    pub fn of(workers: WorkerIndex) -> Vec<Self> {
        let directory = Arc::new(Directory::default());
        let by_address = Arc::new(AddressCounts::default());
        let undrained = Arc::new(AtomicUsize::new(usize::from(workers)));
        let place = |mailbox| Self {
            directory: Arc::clone(&directory),
            by_address: Arc::clone(&by_address),
            undrained: Arc::clone(&undrained),
            is_drained: false,
            mailbox,
            wakers: Vec::new(),
            waiting: VecDeque::new(),
        };
        mailbox::mailboxes(workers).into_iter().map(place).collect()
    }

    /// How to wake the workers, in order of their number.
    pub fn set_wakers(&mut self, wakers: Vec<Waker>) {
        self.wakers = wakers;
    }

    /// Where sessions are.
    pub fn directory(&self) -> &Arc<Directory<PublicKey>> {
        &self.directory
    }

    /// Workers.
    pub(crate) fn worker_count(&self) -> usize {
        self.wakers.len().max(1)
    }

    /// This worker has drained; whether all have. It goes on answering until then, and the pages it lent stay.
    pub(crate) fn drained(&mut self) -> bool {
        if !std::mem::replace(&mut self.is_drained, true) {
            self.undrained.fetch_sub(1, Ordering::Relaxed);
        }
        self.undrained.load(Ordering::Relaxed) == 0
    }

    fn write(&mut self, to: WorkerIndex, letter: Letter) -> bool {
        if self.waiting.is_empty() && self.mailbox.send(to, &letter.encode()).is_ok() {
            return true;
        }
        self.waiting.push_back((to, letter));
        false
    }

    /// Sends what waits, as far as there is room; one full mailbox does not hold up what is for others.
    fn send_waiting(&mut self) {
        let Self { mailbox, waiting, .. } = self;
        let mut full = Vec::new();
        waiting.retain(|(to, letter)| {
            let stays = full.contains(to) || mailbox.send(*to, &letter.encode()).is_err();
            if stays && !full.contains(to) {
                full.push(*to);
            }
            stays
        });
    }
}

impl<D: Driver> Worker<D> {
    /// Makes this worker one of several. Before its first turn.
    pub fn join(&mut self, team: Team) {
        self.index = team.mailbox.worker();
        self.directory = Arc::clone(&team.directory);
        self.by_address = Arc::clone(&team.by_address);
        self.team = Some(team);
    }

    /// A session of this worker has displaced one of another: that worker is to close it.
    pub(crate) fn close_elsewhere(&mut self, place: Place) {
        let letter = Letter::Close { session: Key::from_number(place.session), generation: place.generation };
        let Some(team) = &mut self.team else { return };
        if !team.write(place.worker, letter) {
            self.counters.count(Counter::LettersWaited);
        }
    }

    /// Says that the worker is about to wait, or that it must not.
    pub(crate) fn announce_sleep(&mut self, wait: &mut Wait) {
        if let Some(team) = &mut self.team
            && !wait.poll
            && team.mailbox.announce_sleep()
        {
            wait.poll = true;
        }
    }

    pub(crate) fn withdraw_sleep(&mut self) {
        if let Some(team) = &mut self.team {
            team.mailbox.withdraw_sleep();
        }
    }

    pub(crate) fn read_letters(&mut self) {
        for _ in 0..LETTERS_PER_TURN_MAX {
            let Some((_, words)) = self.team.as_mut().and_then(|team| team.mailbox.receive()) else { return };
            match Letter::decode(words) {
                Letter::Close { session, generation } => {
                    let open = self.sessions.find(session).and_then(Session::open);
                    if open.is_some_and(|open| open.generation == generation) {
                        self.counters.count(Counter::SessionsDisplaced);
                        self.close_session(session, CloseReason::Displaced);
                    } else {
                        self.counters.count(Counter::LettersStale);
                    }
                }
            }
        }
    }

    /// Once a turn, after everything else: wakes the workers that sleep and have something to read or to send.
    pub(crate) fn wake_team(&mut self) {
        let Some(team) = &mut self.team else { return };
        if !team.waiting.is_empty() {
            team.send_waiting();
        }
        let Team { mailbox, wakers, .. } = team;
        mailbox.wake_due(|worker| {
            wakers[usize::from(worker)].wake();
            self.counters.count(Counter::WorkersWoken);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_what_was_written() {
        let session = Key { index: 7, generation: 9 };
        let letter = Letter::Close { session, generation: u64::MAX };
        assert_eq!(Letter::decode(letter.encode()), letter);
    }

    #[test]
    fn letters_that_find_no_room_keep_their_order_and_hold_up_nobody_else() {
        let mut all = Team::of(3);
        let letter = |generation| Letter::Close { session: Key::NONE, generation };
        for generation in 0..SLOTS as u64 {
            assert!(all[0].write(1, letter(generation)));
        }
        for generation in SLOTS as u64..SLOTS as u64 + 10 {
            assert!(!all[0].write(1, letter(generation)));
        }
        assert!(!all[0].write(2, letter(0)), "behind what waits already");
        all[0].send_waiting();
        assert_eq!(all[0].waiting.len(), 10);
        assert!(all[2].mailbox.receive().is_some());
        for generation in 0..SLOTS as u64 + 10 {
            assert_eq!(
                all[1].mailbox.receive().map(|(_, words)| Letter::decode(words)),
                Some(letter(generation))
            );
            all[0].send_waiting();
        }
        assert!(all[0].waiting.is_empty());
    }
}
