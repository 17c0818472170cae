//! The lane without threads: the same queue, in the worker's own turns, at times that its owner decides.

use std::sync::Arc;

use ringwire_proto::entropy::Entropy;

use super::{Done, Finding, Job, JobQueue, Lane, Owner, Verifier};
use crate::driver::Nanos;
use crate::limits;
use crate::worker::Identity;

/// What a job costs, in nanoseconds of the worker's clock; asked once for each.
pub type Cost = Box<dyn FnMut() -> Nanos + Send>;

/// A lane that works while its worker asks for results, for the simulator and for tests.
pub struct InlineLane {
    queue: JobQueue,
    verifier: Verifier,
    cost: Cost,
    /// Jobs at a time.
    hands: usize,
    /// Begun: when each is done, and its result.
    busy: Vec<(Nanos, Done)>,
    /// Results of jobs that nobody did.
    undone: Vec<Done>,
}

impl std::fmt::Debug for InlineLane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InlineLane").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// There is one worker.
const PORT: usize = 0;

impl InlineLane {
    /// A lane that is done with each job at once.
    pub fn new(identity: Arc<Identity>, entropy: Box<dyn Entropy + Send>) -> Self {
        Self::with_cost(identity, entropy, 1, Box::new(|| 0))
    }

    /// A lane that does `hands` jobs at a time, each of which takes what `cost` says.
    pub fn with_cost(
        identity: Arc<Identity>,
        entropy: Box<dyn Entropy + Send>,
        hands: usize,
        cost: Cost,
    ) -> Self {
        Self {
            queue: JobQueue::default(),
            verifier: Verifier::new(identity, entropy),
            cost,
            hands,
            busy: Vec::new(),
            undone: Vec::new(),
        }
    }

    /// The same with room for so many waiting jobs in each queue.
    pub fn with_room_for(mut self, jobs_max: usize) -> Self {
        self.queue = JobQueue::with_room_for(
            jobs_max.min(limits::ESTABLISHED_JOBS_MAX),
            jobs_max.min(limits::STRANGER_JOBS_MAX),
        );
        self
    }

    /// Gives idle hands something to do.
    fn begin(&mut self, now: Nanos) {
        while self.busy.len() < self.hands {
            let Some((_, job)) = self.queue.pop() else { return };
            let at = now + (self.cost)();
            self.busy.push((at, Done { owner: job.owner, finding: self.verifier.run(job.work) }));
        }
    }
}

impl Lane for InlineLane {
    fn submit(&mut self, now: Nanos, job: Job) -> Result<(), Job> {
        if let Some((_, job)) = self.queue.push(PORT, job) {
            self.undone.push(Done { owner: job.owner, finding: Finding::Refused });
        }
        self.begin(now);
        Ok(())
    }

    fn cancel(&mut self, owner: Owner) {
        if self.queue.cancel(PORT, owner).is_some() {
            self.undone.push(Done { owner, finding: Finding::Cancelled });
        }
    }

    fn take(&mut self, now: Nanos) -> Option<Done> {
        if let Some(done) = self.undone.pop() {
            return Some(done);
        }
        let (index, &(at, _)) = self.busy.iter().enumerate().min_by_key(|(_, (at, _))| *at)?;
        if at > now {
            return None;
        }
        let (at, done) = self.busy.remove(index);
        self.begin(at);
        Some(done)
    }

    fn due(&self) -> Option<Nanos> {
        if !self.undone.is_empty() {
            return Some(0);
        }
        self.busy.iter().map(|(at, _)| *at).min()
    }
}
