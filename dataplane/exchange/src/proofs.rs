//! Proofs of identity that are under way, and which workers wait for some to come out.
//!
//! In go beginnings and ends of proofs, and that a worker has a dial whose destination may be among them; out comes how many it
//! waits for, and whom to tell when one has come out. Touched when a session begins, never by a frame.
//!
//! ```text
//!   worker with a dial to nobody            worker with a proof
//!   1. "I wait"                             1. the session is filed in the directory, or fails
//!   2. fence                                2. one proof less under way
//!   3. count proofs; look into the          3. fence
//!      directory once more                  4. tell those who wait
//! ```
//!
//! Of two sequentially consistent fences one comes first: either the count is without the proof, and then its session is in
//! the directory, or whoever has the proof sees that somebody waits. `tests/loom.rs` checks this with this code.

use crate::WorkerIndex;
use crate::sync::{AtomicBool, AtomicUsize, Ordering, fence};

/// See the module's head. Shared by all workers.
#[derive(Debug)]
pub struct Proofs(Box<[Seat]>);

/// Of one worker, which alone writes it. Apart from its neighbours, as processors fetch lines in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Seat {
    under_way: AtomicUsize,
    waits: AtomicBool,
}

impl Proofs {
    /// None under way, for so many workers.
    pub fn of(workers: WorkerIndex) -> Self {
        let seat = |_| Seat { under_way: AtomicUsize::new(0), waits: AtomicBool::new(false) };
        Self((0..workers).map(seat).collect())
    }

    /// A proof of this worker is under way.
    pub fn begin(&self, worker: WorkerIndex) {
        let count = &self.0[usize::from(worker)].under_way;
        // Relaxed: whoever counts too early refuses a dial that came before the proof.
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// One has come out; its session, if any, is in the directory. Calls `tell` for each other worker that waits.
    pub fn decide(&self, worker: WorkerIndex, mut tell: impl FnMut(WorkerIndex)) {
        let count = &self.0[usize::from(worker)].under_way;
        // Release: partner is the Acquire in `wait`. Whoever counts without this proof finds its session.
        count.store(count.load(Ordering::Relaxed).saturating_sub(1), Ordering::Release);
        // SeqCst: partner is the fence in `wait`.
        fence(Ordering::SeqCst);
        for (number, seat) in (0..).zip(&self.0) {
            if number != worker && seat.waits.load(Ordering::Relaxed) {
                tell(number);
            }
        }
    }

    /// This worker wants to know of proofs that come out from here on. How many others have under way; look into the directory
    /// once more behind this.
    pub fn wait(&self, worker: WorkerIndex) -> usize {
        self.0[usize::from(worker)].waits.store(true, Ordering::Relaxed);
        // SeqCst: partner is the fence in `decide`.
        fence(Ordering::SeqCst);
        let others = (0..).zip(&self.0).filter(|&(number, _)| number != worker);
        others.map(|(_, seat)| seat.under_way.load(Ordering::Acquire)).sum()
    }

    /// It does no more.
    pub fn stop_waiting(&self, worker: WorkerIndex) {
        // Relaxed: whoever still sees that it waits tells it something it has no use for.
        self.0[usize::from(worker)].waits.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    fn told(proofs: &Proofs, worker: WorkerIndex) -> Vec<WorkerIndex> {
        let mut told = Vec::new();
        proofs.decide(worker, |other| told.push(other));
        told
    }

    #[test]
    fn those_who_wait_are_told_and_count_the_proofs_of_others() {
        let proofs = Proofs::of(3);
        proofs.begin(0);
        proofs.begin(1);
        proofs.begin(1);
        assert_eq!(told(&proofs, 1), []);
        assert_eq!(proofs.wait(0), 1, "not its own");
        assert_eq!(proofs.wait(2), 2);
        assert_eq!(told(&proofs, 1), [0, 2]);
        proofs.stop_waiting(2);
        assert_eq!(told(&proofs, 0), [], "it knows itself");
        assert_eq!(proofs.wait(2), 0);
    }
}
