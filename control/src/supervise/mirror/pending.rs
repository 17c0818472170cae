//! A question to all workers: who has answered, and what it comes to.

use ringwire_ipc::message::Answer;

use super::Nanos;

/// Names a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every worker has done it, for so many sessions, bridges or settings in all.
    Done(u64),
    /// No worker knows what was asked for.
    NotFound,
    /// A worker does not do that now.
    Refused,
    /// A worker did not answer in time.
    TimedOut,
    /// The data plane went away.
    Lost,
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
}

impl Pending {
    pub(super) fn new(workers: usize, deadline: Nanos) -> Self {
        Self { deadline, waiting: vec![true; workers], done: None, refused: false }
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
        Some(match (self.refused, self.done) {
            (true, _) => Outcome::Refused,
            (false, Some(count)) => Outcome::Done(count),
            (false, None) => Outcome::NotFound,
        })
    }
}
