//! The other workers of the data plane: what this one says to them, and what it hears.
//!
//! In go letters for another worker; out come theirs, once a turn. What is to be told of a bridge waits at its stand-in
//! (`stand_in`); a letter of another kind that finds its mailbox full waits here, behind those that wait already. Both go out
//! when there is room, without a timer. A data plane of one worker has no team, and a turn without a team does none of this.
//! See `docs/design/0003-several-workers.md`.

mod dial;
mod letter;
mod receive;
mod stand_in;

pub(crate) use letter::Dial;
pub(crate) use stand_in::{Dialling, Owes, StandIn};

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use ringwire_exchange::WorkerIndex;
use ringwire_exchange::directory::{Directory, Place};
use ringwire_exchange::mailbox::{self, Mailbox};
use ringwire_exchange::proofs::Proofs;
use ringwire_proto::identity::PublicKey;

use crate::addresses::AddressCounts;
use crate::counters::Counter;
use crate::driver::{Batch, Driver, DriverError, Nanos, Wait};
use crate::limits;
use crate::ring::Lender;
use crate::slab::Key;
use crate::waker::Waker;
use crate::worker::Worker;
use letter::{Letter, Parcel, WORDS};

/// Letters that one worker may have waiting at another: 256 of 32 bytes.
const SLOTS: usize = 256;

/// Letters read in one turn at most.
const LETTERS_PER_TURN_MAX: usize = 1024;

/// How long loans whose bridge was reset may take on their way home, in nanoseconds, before others are reset for their sake.
const RECALL_NS: Nanos = 100_000_000;

/// What became of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Sent,
    Full,
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
    /// What found no room, in the order of writing. At most one for each session that this worker ever opened and another one has
    /// yet to close, and one for each dial it was asked for.
    waiting: VecDeque<(WorkerIndex, Letter)>,
    /// By worker; none for itself. As bounded as the mailboxes: each parcel has a letter there.
    parcels_to: Vec<Option<Sender<Parcel>>>,
    parcels_from: Vec<Option<Receiver<Parcel>>>,
    /// The buffer memory of those that have joined, and of which of them this worker can borrow already.
    lenders: Arc<Mutex<Vec<Option<Lender>>>>,
    known: Vec<bool>,
    /// Stand-ins that have something to tell.
    listed: Vec<Key>,
    /// Bytes of loans whose bridges were reset and that are not home yet, about, and when the last was reset.
    recalled_len: usize,
    recalled_at: Nanos,
    proofs: Arc<Proofs>,
    /// By worker: proofs that came out here of which it is yet to be told.
    decided: Vec<u64>,
    /// This worker's sessions are closed.
    leaving: bool,
    /// By worker: it has ended.
    left: Arc<[AtomicBool]>,
}

impl Team {
    /// A place for each of so many workers, in order of their number.
    pub fn of(workers: WorkerIndex) -> Vec<Self> {
        let count = usize::from(workers);
        let directory = Arc::new(Directory::default());
        let by_address = Arc::new(AddressCounts::default());
        let undrained = Arc::new(AtomicUsize::new(count));
        let lenders = Arc::new(Mutex::new(vec![None; count]));
        let proofs = Arc::new(Proofs::of(workers));
        let left: Arc<[AtomicBool]> = (0..count).map(|_| AtomicBool::new(false)).collect();
        let place = |mailbox| Self {
            directory: Arc::clone(&directory),
            by_address: Arc::clone(&by_address),
            undrained: Arc::clone(&undrained),
            is_drained: false,
            mailbox,
            wakers: Vec::new(),
            waiting: VecDeque::new(),
            parcels_to: (0..count).map(|_| None).collect(),
            parcels_from: (0..count).map(|_| None).collect(),
            lenders: Arc::clone(&lenders),
            known: vec![false; count],
            listed: Vec::new(),
            recalled_len: 0,
            recalled_at: 0,
            proofs: Arc::clone(&proofs),
            decided: vec![0; count],
            leaving: false,
            left: Arc::clone(&left),
        };
        let mut places: Vec<Self> = mailbox::mailboxes(workers).into_iter().map(place).collect();
        for from in 0..count {
            for to in (0..count).filter(|&to| to != from) {
                let (sender, receiver) = channel();
                places[from].parcels_to[to] = Some(sender);
                places[to].parcels_from[from] = Some(receiver);
            }
        }
        places
    }

    /// How to wake the workers, in order of their number.
    pub fn set_wakers(&mut self, wakers: Vec<Waker>) {
        self.wakers = wakers;
    }

    /// Where sessions are.
    pub fn directory(&self) -> &Arc<Directory<PublicKey>> {
        &self.directory
    }

    /// Stand-ins have something to tell no more, and dials do not wait: those of a successor begin anew.
    pub(crate) fn forget_listed(&mut self) {
        self.listed.clear();
        self.proofs.stop_waiting(self.mailbox.worker());
    }

    /// Tells those that wait of proofs that came out.
    fn send_decided(&mut self) {
        for worker in 0..self.decided.len() {
            let proofs = std::mem::take(&mut self.decided[worker]);
            // Truncation cannot be: workers are numbered so.
            if proofs > 0 && self.send(worker as WorkerIndex, Letter::Decided { proofs }) == Outcome::Full {
                self.decided[worker] = proofs;
            }
        }
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

    /// Bytes of loans whose bridges were reset a moment ago and that are not home yet.
    pub(crate) fn recalled_len(&mut self, now: Nanos) -> usize {
        if now.saturating_sub(self.recalled_at) > RECALL_NS {
            self.recalled_len = 0;
        }
        self.recalled_len
    }

    /// So many bytes that others have are on their way home.
    fn recall(&mut self, now: Nanos, len: usize) {
        self.recalled_len += len;
        self.recalled_at = now;
    }

    /// Sends a letter, or notes that there was no room: then the next sleep ends once there is.
    fn send(&mut self, to: WorkerIndex, letter: Letter) -> Outcome {
        // Nobody will ever read what is for a worker that has left.
        let is_done = self.mailbox.send(to, &letter.encode()).is_ok() || self.has_left(to);
        if is_done { Outcome::Sent } else { Outcome::Full }
    }

    /// Whether a letter would be sent. If not, it is noted as by [`send`](Self::send).
    fn has_room(&mut self, to: WorkerIndex) -> bool {
        let has_room = self.mailbox.room(to) > 0;
        if !has_room {
            self.mailbox.await_room(to);
        }
        has_room
    }

    /// Whether a worker has ended, in order.
    fn has_left(&self, worker: WorkerIndex) -> bool {
        self.left[usize::from(worker)].load(Ordering::Acquire)
    }

    /// Sends a letter that must not be lost, now or once there is room. Says whether it was now.
    fn write(&mut self, to: WorkerIndex, letter: Letter) -> bool {
        if self.waiting.is_empty() && self.send(to, letter) == Outcome::Sent {
            return true;
        }
        self.waiting.push_back((to, letter));
        false
    }

    /// Sends what waits, as far as there is room; one full mailbox does not hold up what is for others.
    fn send_waiting(&mut self) {
        let mut full = Vec::new();
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|&(to, letter)| {
            let stays = full.contains(&to) || self.send(to, letter) == Outcome::Full;
            if stays && !full.contains(&to) {
                full.push(to);
            }
            stays
        });
        self.waiting = waiting;
    }
}

impl<D: Driver> Worker<D> {
    /// Makes this worker one of several. Before its first turn.
    pub fn join(&mut self, team: Team) {
        self.index = team.mailbox.worker();
        self.directory = Arc::clone(&team.directory);
        self.by_address = Arc::clone(&team.by_address);
        let mut lenders = team.lenders.lock().unwrap_or_else(PoisonError::into_inner);
        lenders[usize::from(self.index)] = Some(self.driver.pool().lender());
        drop(lenders);
        self.team = Some(team);
    }

    /// A session of another worker has to go, for too many of its key stand by.
    pub(crate) fn close_elsewhere(&mut self, place: Place) {
        let letter = Letter::Close { session: Key::from_number(place.session), generation: place.generation };
        self.write_letter(place.worker, letter);
    }

    /// A session has come here whose key is held by one of another worker: that one is to show that it lives.
    pub(crate) fn challenge_elsewhere(&mut self, place: Place) {
        let letter = Letter::Rival { session: Key::from_number(place.session), generation: place.generation };
        self.write_letter(place.worker, letter);
    }

    /// A session of another worker stood by for one of this, and holds the key now.
    pub(crate) fn took_over_elsewhere(&mut self, place: Place) {
        let letter =
            Letter::TookOver { session: Key::from_number(place.session), generation: place.generation };
        self.write_letter(place.worker, letter);
    }

    /// A proof of identity is with the lane.
    pub(crate) fn proof_begins(&mut self) {
        self.proving += 1;
        if let Some(team) = &self.team {
            team.proofs.begin(self.index);
        }
    }

    /// One has come out one way or the other, and its session, if any, is filed: dials may have waited for it, here and
    /// elsewhere.
    pub(crate) fn proof_ends(&mut self) {
        self.proving -= 1;
        if let Some(Team { proofs, decided, .. }) = &mut self.team {
            proofs.decide(self.index, |worker| decided[usize::from(worker)] += 1);
        }
        self.decide_dials();
    }

    /// Proofs of identity under way, on all workers; this one is told of what comes out until it has no dial that waits.
    pub(crate) fn await_proofs(&mut self) -> usize {
        self.proving + self.team.as_ref().map_or(0, |team| team.proofs.wait(self.index))
    }

    /// No dial waits for proofs any more.
    pub(crate) fn stop_awaiting_proofs(&mut self) {
        if let Some(team) = &self.team {
            team.proofs.stop_waiting(self.index);
        }
    }

    /// Sends a letter that must not be lost.
    fn write_letter(&mut self, to: WorkerIndex, letter: Letter) {
        let Some(team) = &mut self.team else { return };
        if !team.write(to, letter) {
            self.counters.count(Counter::LettersWaited);
        }
    }

    /// Says that the worker is about to wait, or that it must not.
    pub(crate) fn announce_sleep(&mut self, wait: &mut Wait) {
        let now = self.driver.now();
        let Some(team) = &mut self.team else { return };
        if team.leaving {
            let at = now + limits::LEAVE_POLL_NS;
            wait.until = Some(wait.until.map_or(at, |until| until.min(at)));
        }
        if !wait.poll && team.mailbox.announce_sleep() {
            // It stays up, and nobody shall ring for it.
            team.mailbox.withdraw_sleep();
            wait.poll = true;
        }
    }

    /// The end of a worker of several, its sessions closed: takes turns until what it borrowed is home and everybody was told
    /// what there was to tell, within a bound.
    pub(crate) fn leave_team(&mut self, batch: &mut Batch) -> Result<(), DriverError> {
        let until = self.driver.now() + limits::LEAVE_TIMEOUT_NS;
        while !self.may_leave() && self.driver.now() < until {
            if let Some(team) = &mut self.team {
                team.leaving = true;
            }
            self.turn(batch)?;
        }
        if let Some(team) = &mut self.team {
            // Release: what was told before is there for whoever sees this.
            team.left[usize::from(self.index)].store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Whether nothing of this worker is with others, and nothing of others with it. Always so for a worker alone.
    pub fn may_leave(&mut self) -> bool {
        let Some(team) = &self.team else { return true };
        let is_told = team.waiting.is_empty() && team.listed.is_empty() && self.halves.is_empty();
        let pool = self.driver.pool();
        is_told && self.connections == 0 && pool.borrowed() == 0 && pool.homeward().is_empty()
    }

    pub(crate) fn withdraw_sleep(&mut self) {
        if let Some(team) = &mut self.team {
            team.mailbox.withdraw_sleep();
        }
    }

    /// Once a turn, after everything else: wakes the workers that sleep and have something to read or to send.
    pub(crate) fn wake_team(&mut self) {
        let Some(Team { mailbox, wakers, .. }) = &mut self.team else { return };
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
