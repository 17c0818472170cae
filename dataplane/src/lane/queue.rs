//! Which job is next: two queues, established sessions before strangers, each fair among those who wait in it.
//!
//! No clock, no threads: [`LaneThreads`](super::LaneThreads) guards one of these with a lock that no worker ever takes, and
//! [`InlineLane`](super::InlineLane) has one to itself.

use std::collections::BTreeMap;

use super::{Class, Job, Owner};
use crate::fair::Fair;
use crate::limits;
use crate::prefix::Prefix;
use crate::slab::Key;

/// Names a worker to the lane.
pub type Port = usize;

/// See the module's head.
#[derive(Debug)]
pub struct JobQueue {
    established: Fair<(Port, Key), (Port, Job)>,
    strangers: Fair<Prefix, (Port, Job)>,
    places: BTreeMap<(Port, Owner), Place>,
    /// Jobs of established sessions taken in a row while a stranger waited.
    in_a_row: u32,
    /// Jobs that may wait.
    established_max: usize,
    strangers_max: usize,
}

impl Default for JobQueue {
    fn default() -> Self {
        Self::with_room_for(limits::ESTABLISHED_JOBS_MAX, limits::STRANGER_JOBS_MAX)
    }
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Established(Key),
    Stranger(Key),
}

impl JobQueue {
    /// An empty queue with room for so many jobs of established sessions and of strangers.
    pub fn with_room_for(established_max: usize, strangers_max: usize) -> Self {
        Self {
            established: Fair::default(),
            strangers: Fair::default(),
            places: BTreeMap::new(),
            in_a_row: 0,
            established_max,
            strangers_max,
        }
    }

    /// Puts a job into its queue. When that has more than its bound, the newest job of whoever has most in it comes back: a full
    /// queue is full of somebody's jobs, and the next to come is seldom theirs.
    pub fn push(&mut self, port: Port, job: Job) -> Option<(Port, Job)> {
        let owner = job.owner;
        let place = match job.class {
            Class::Established(session) => {
                Place::Established(self.established.push((port, session), (port, job)))
            }
            Class::Stranger(prefix) => Place::Stranger(self.strangers.push(prefix, (port, job))),
        };
        let former = self.places.insert((port, owner), place);
        debug_assert!(former.is_none(), "one job at a time for each owner");
        let refused = match place {
            Place::Established(_) if self.established.len() > self.established_max => {
                let newest = self.established.newest_of_largest().map(|(key, _)| key);
                newest.and_then(|key| self.established.remove(key))
            }
            Place::Stranger(_) if self.strangers.len() > self.strangers_max => {
                let newest = self.strangers.newest_of_largest().map(|(key, _)| key);
                newest.and_then(|key| self.strangers.remove(key))
            }
            Place::Established(_) | Place::Stranger(_) => None,
        };
        if let Some((port, job)) = &refused {
            self.places.remove(&(*port, job.owner));
        }
        refused
    }

    /// Takes back the job of an owner, if it still waits.
    pub fn cancel(&mut self, port: Port, owner: Owner) -> Option<Job> {
        let job = match self.places.remove(&(port, owner))? {
            Place::Established(key) => self.established.remove(key),
            Place::Stranger(key) => self.strangers.remove(key),
        };
        job.map(|(_, job)| job)
    }

    /// The next job and who asked for it.
    pub fn pop(&mut self) -> Option<(Port, Job)> {
        let is_strangers_turn =
            !self.strangers.is_empty() && self.in_a_row >= limits::ESTABLISHED_IN_A_ROW_MAX;
        let next = match if is_strangers_turn { None } else { self.established.pop() } {
            Some(next) => {
                self.in_a_row = if self.strangers.is_empty() { 0 } else { self.in_a_row + 1 };
                Some(next)
            }
            None => {
                self.in_a_row = 0;
                self.strangers.pop()
            }
        };
        if let Some((port, job)) = &next {
            self.places.remove(&(*port, job.owner));
        }
        next
    }

    /// Jobs of established sessions that wait.
    pub fn established_len(&self) -> usize {
        self.established.len()
    }

    /// Jobs of strangers that wait.
    pub fn strangers_len(&self) -> usize {
        self.strangers.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.established.is_empty() && self.strangers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::Work;
    use super::*;

    fn job(owner: Owner, class: Class) -> Job {
        Job {
            owner,
            class,
            work: Work::Greet { frame: Vec::new(), hybrid: ringwire_proto::noise::Hybrid::Off },
        }
    }

    fn key(index: u32) -> Key {
        Key { index, generation: 0 }
    }

    fn stranger(index: u32, last: u8) -> Job {
        let prefix = Prefix::from(IpAddr::from([192, 0, 2, last]));
        job(Owner::Session(key(index)), Class::Stranger(prefix))
    }

    fn established(index: u32, session: u32) -> Job {
        job(Owner::Half(key(index)), Class::Established(key(session)))
    }

    fn drain(queue: &mut JobQueue) -> Vec<(Port, Owner)> {
        std::iter::from_fn(|| queue.pop().map(|(port, job)| (port, job.owner))).collect()
    }

    #[test]
    fn an_honest_stranger_waits_behind_one_job_of_each_other_prefix_and_no_more() {
        let mut queue = JobQueue::default();
        for index in 0..8000 {
            queue.push(0, stranger(index, 1));
        }
        queue.push(1, stranger(9000, 2));
        queue.push(1, stranger(9001, 2));
        let order = drain(&mut queue);
        assert_eq!(order.len(), 8002);
        assert_eq!(order[1], (1, Owner::Session(key(9000))), "second of all");
        assert_eq!(order[3], (1, Owner::Session(key(9001))));
        assert!(queue.places.is_empty());
    }

    #[test]
    fn established_sessions_come_first_but_cannot_starve_strangers() {
        let mut queue = JobQueue::default();
        queue.push(0, stranger(1, 1));
        queue.push(0, stranger(2, 1));
        for index in 0..40 {
            queue.push(0, established(100 + index, 7));
        }
        let order = drain(&mut queue);
        let at = |index| order.iter().position(|&(_, owner)| owner == Owner::Session(key(index))).unwrap();
        let row = limits::ESTABLISHED_IN_A_ROW_MAX as usize;
        assert_eq!((at(1), at(2)), (row, 2 * row + 1));
        // Without strangers nothing is held back.
        for index in 0..3 {
            queue.push(0, established(index, 7));
        }
        assert_eq!(drain(&mut queue).len(), 3);
    }

    #[test]
    fn a_full_queue_refuses_whoever_has_most_and_not_whoever_comes_next() {
        let mut queue = JobQueue::with_room_for(100, 100);
        for index in 0..100 {
            assert!(queue.push(0, established(index, 7)).is_none());
            assert!(queue.push(0, stranger(1000 + index, 1)).is_none());
        }
        for index in 0..10 {
            let refused = queue.push(1, established(index, 8)).map(|(port, job)| (port, job.owner));
            assert_eq!(refused, Some((0, Owner::Half(key(99 - index)))), "the newest of the largest");
            let refused = queue.push(1, stranger(2000 + index, 2)).map(|(port, job)| (port, job.owner));
            assert_eq!(refused, Some((0, Owner::Session(key(1099 - index)))));
        }
        // The largest itself gains nothing by pushing on.
        let own = queue.push(0, established(500, 7)).map(|(_, job)| job.owner);
        assert_eq!(own, Some(Owner::Half(key(500))));
        assert_eq!((queue.established_len(), queue.strangers_len()), (100, 100));
        assert_eq!(drain(&mut queue).len(), 200);
        assert!(queue.places.is_empty());
    }

    #[test]
    fn sessions_of_all_workers_take_turns() {
        let mut queue = JobQueue::default();
        for index in 0..100 {
            queue.push(0, established(index, 7));
        }
        // Another worker's session in the same place is another session.
        queue.push(1, established(0, 7));
        queue.push(0, established(200, 8));
        let order = drain(&mut queue);
        assert_eq!(order[1], (1, Owner::Half(key(0))));
        assert_eq!(order[2], (0, Owner::Half(key(200))));
    }

    #[test]
    fn a_cancelled_job_is_gone_and_a_later_one_of_the_same_owner_is_not() {
        let mut queue = JobQueue::default();
        queue.push(0, stranger(1, 1));
        queue.push(0, established(1, 7));
        queue.push(1, stranger(1, 1));
        assert!(queue.cancel(0, Owner::Session(key(1))).is_some());
        assert!(queue.cancel(0, Owner::Session(key(1))).is_none());
        assert!(queue.cancel(0, Owner::Half(key(1))).is_some());
        assert_eq!((queue.established_len(), queue.strangers_len()), (0, 1));
        queue.push(0, stranger(1, 1));
        let session = Owner::Session(key(1));
        assert_eq!(drain(&mut queue), [(1, session), (0, session)]);
    }
}
