//! The handle on the supervised data plane that the rest of the control plane holds: questions, orders, and how it goes.
//!
//! In: questions of the admin interface, metrics, discovery. Out: answers of the task in [`super`]. Clones share the task;
//! a question waits in a bounded queue and has an answer or an error within the limits of the mirror.

use std::net::SocketAddr;
use std::time::Duration;

use ringwire_ipc::message::Order;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use super::mirror::{AskError, ClosedSession, MirroredSession, Outcome};
use super::obtain::Attached;

/// Questions that may wait for the task; the next one waits at its sender.
pub(super) const ASKS_MAX: usize = 64;

/// A question to the task.
#[derive(Debug)]
pub(super) enum Ask {
    Table(oneshot::Sender<Table>),
    Closed(oneshot::Sender<Vec<ClosedSession>>),
    Counters(oneshot::Sender<Vec<Vec<u64>>>),
    Order(Order, oneshot::Sender<Result<Outcome, AskError>>),
    Drain(Duration, oneshot::Sender<Result<(), EndError>>),
    End(End, oneshot::Sender<Result<Option<u32>, EndError>>),
}

/// How the supervision ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The data plane is stopped.
    Stop,
    /// The data plane goes on alone.
    Leave,
    /// The data plane ended by itself because it was told to: drained, or stopped past this control plane.
    Ended,
}

/// Why an end did not come about.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EndError {
    /// The supervision has ended already.
    #[error("the control plane is ending already")]
    Over,
    /// The data plane was told and did not do it.
    #[error("the data plane did not do it: {0}")]
    DataPlane(String),
}

/// The picture of the sessions at one moment.
#[derive(Debug, Default)]
pub struct Table {
    /// Sessions, in no particular order.
    pub sessions: Vec<MirroredSession>,
    /// Whether it is true up to the last event.
    pub current: bool,
    /// Events the data plane dropped since the attach because this side did not read them.
    pub events_dropped: u64,
    /// Sessions left out because there are too many to remember.
    pub untracked: u64,
}

/// How the data plane is doing, as far as its supervision sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PlaneStatus {
    /// Whether it is attached at this moment.
    pub attached: bool,
    /// Its process, or the one that died last.
    pub pid: u32,
    /// Whether this control plane started it.
    pub child: bool,
    /// What it listens on.
    pub addresses: Vec<SocketAddr>,
    /// What moves its bytes.
    pub driver: String,
    /// Threads that forward.
    pub workers: usize,
    /// Connections it takes at most, by its limit of open files.
    pub connections_max: u64,
    /// Number of the attach.
    pub epoch: u64,
    /// How often it went away since this control plane started.
    pub losses: u64,
    /// Why it went away, or cannot be brought back.
    pub last_loss: Option<String>,
    /// A worker that takes no turns although it is woken.
    pub silent_worker: Option<usize>,
    /// It drains: it was told to, or it listens no more.
    pub draining: bool,
}

impl PlaneStatus {
    /// Why nobody should be sent to this server now; none: it takes clients.
    pub fn unready(&self) -> Option<String> {
        if self.draining {
            return Some(crate::presence::DRAINING.to_owned());
        }
        if !self.attached {
            let reason = self.last_loss.as_deref().unwrap_or("not attached yet");
            return Some(format!("no data plane: {reason}; bringing it back"));
        }
        self.silent_worker.map(|worker| format!("worker {worker} of the data plane takes no turns"))
    }

    /// An attach is in force.
    pub(super) fn attached_to(&mut self, attached: &Attached) {
        let Attached { channels, epoch, pid, addresses, driver, connections_max, child, .. } = attached;
        self.attached = true;
        (self.pid, self.epoch, self.workers) = (*pid, *epoch, channels.len());
        (self.child, self.addresses) = (child.is_some(), addresses.clone());
        self.driver.clone_from(driver);
        self.connections_max = *connections_max;
        self.silent_worker = None;
        self.draining = false;
    }
}

/// See the module's head.
#[derive(Debug, Clone)]
pub struct Plane {
    pub(super) asks: mpsc::Sender<Ask>,
    pub(super) status: watch::Receiver<PlaneStatus>,
}

impl Plane {
    /// How the data plane is doing.
    pub fn status(&self) -> PlaneStatus {
        self.status.borrow().clone()
    }

    /// Changes of [`status`](Self::status), for who must know at once.
    pub fn watch(&self) -> watch::Receiver<PlaneStatus> {
        self.status.clone()
    }

    /// All sessions; `None` while the control plane ends.
    pub async fn table(&self) -> Option<Table> {
        self.ask(Ask::Table).await
    }

    /// The last sessions that ended, the latest first; `None` while the control plane ends.
    pub async fn closed(&self) -> Option<Vec<ClosedSession>> {
        self.ask(Ask::Closed).await
    }

    /// Totals per worker in the order of [`Counter::ALL`](ringwire_dataplane::counters::Counter::ALL); those of the last
    /// attach while the data plane is away. `None` while the control plane ends.
    pub async fn counters(&self) -> Option<Vec<Vec<u64>>> {
        self.ask(Ask::Counters).await
    }

    /// Puts an order to every worker and waits for all answers.
    ///
    /// # Errors
    /// [`AskError`]: it was not put.
    pub async fn order(&self, order: Order) -> Result<Outcome, AskError> {
        self.ask(|answer| Ask::Order(order, answer)).await.unwrap_or(Err(AskError::Detached))
    }

    /// Lets the data plane accept nothing new and end when its sessions have ended, at the latest after `within`. The
    /// control plane ends with it.
    ///
    /// # Errors
    /// [`EndError`]: nothing has changed.
    pub async fn drain(&self, within: Duration) -> Result<(), EndError> {
        self.ask(|answer| Ask::Drain(within, answer)).await.unwrap_or(Err(EndError::Over))
    }

    /// Ends the supervision; returns when the data plane has ended, or is left alone: the process that was ended, if there was
    /// one.
    ///
    /// # Errors
    /// [`EndError`]: the supervision has ended, but the data plane may go on.
    pub async fn end(&self, end: End) -> Result<Option<u32>, EndError> {
        self.ask(|answer| Ask::End(end, answer)).await.unwrap_or(Err(EndError::Over))
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(ask(answer)).await.ok()?;
        answered.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_ready_says_why() {
        let ready = PlaneStatus { attached: true, ..PlaneStatus::default() };
        assert_eq!(ready.unready(), None);
        let reason = |status: PlaneStatus| status.unready().unwrap();
        assert!(reason(PlaneStatus::default()).contains("no data plane: not attached yet"));
        let lost = Some("it hung up".to_owned());
        assert!(reason(PlaneStatus { last_loss: lost, ..PlaneStatus::default() }).contains("it hung up"));
        assert!(reason(PlaneStatus { silent_worker: Some(3), ..ready.clone() }).contains("worker 3"));
        assert!(reason(PlaneStatus { draining: true, ..ready }).contains("draining"));
    }
}
