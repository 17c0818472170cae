//! A question to all workers: who has answered, and what it comes to.

use ringwire_ipc::message::{Answer, BridgeNote};

use super::Nanos;

/// Bridges kept of one answer; the rest is counted and left out.
const BRIDGES_MAX: usize = 1 << 16;

/// Names a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every worker has done it, for so many sessions, bridges or settings in all.
    Done(u64),
    /// Every worker has listed its bridges.
    Bridges(BridgeList),
    /// No worker knows what was asked for.
    NotFound,
    /// A worker does not do that now.
    Refused,
    /// A worker did not answer in time.
    TimedOut,
    /// The data plane went away.
    Lost,
}

/// Bridges, as the workers listed them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BridgeList {
    /// Number of the worker, and what it said.
    pub bridges: Vec<(usize, BridgeNote)>,
    /// Bridges there are besides: events were dropped, or there are too many to list.
    pub missing: u64,
}

/// Why a question was not put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No data plane is attached.
    #[error("no data plane is attached at the moment; try again in a second, or look at: ringwire status")]
    Detached,
    /// Too many questions wait.
    #[error("too many commands wait for the data plane; try again")]
    Busy,
}

/// A question that waits.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) deadline: Nanos,
    /// Workers that have not answered.
    waiting: Vec<bool>,
    done: Option<u64>,
    refused: bool,
    bridges: Option<BridgeList>,
}

impl Pending {
    /// A question to so many workers, which may ask for a list of bridges.
    pub(super) fn new(workers: usize, deadline: Nanos, bridges: bool) -> Self {
        let bridges = bridges.then(BridgeList::default);
        Self { deadline, waiting: vec![true; workers], done: None, refused: false, bridges }
    }

    /// A worker has listed a bridge.
    pub(super) fn listed(&mut self, worker: usize, bridge: BridgeNote) {
        let waits = self.waiting.get(worker).copied().unwrap_or(false);
        if let Some(list) = &mut self.bridges
            && waits
            && list.bridges.len() < BRIDGES_MAX
        {
            list.bridges.push((worker, bridge));
        }
    }

    /// A worker has answered; the outcome once all have. A second answer of the same worker counts for nothing.
    pub(super) fn answered(&mut self, worker: usize, answer: Answer) -> Option<Outcome> {
        let waits = self.waiting.get_mut(worker)?;
        if !std::mem::take(waits) {
            return None;
        }
        match answer {
            Answer::Done(count) => self.done = Some(self.done.unwrap_or(0).saturating_add(count)),
            Answer::NotFound => {}
            Answer::Refused => self.refused = true,
        }
        if self.waiting.contains(&true) {
            return None;
        }
        Some(match (self.refused, self.done, self.bridges.take()) {
            (true, ..) => Outcome::Refused,
            (false, None, _) => Outcome::NotFound,
            (false, Some(count), None) => Outcome::Done(count),
            (false, Some(count), Some(mut list)) => {
                list.missing = count.saturating_sub(list.bridges.len() as u64);
                Outcome::Bridges(list)
            }
        })
    }
}
