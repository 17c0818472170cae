//! The workers of a server as other threads see them: their mail, their counters, how they are woken.
//!
//! In: questions and orders. Out: what all workers together have to say, within [`ANSWER_TIMEOUT`], or which of them does not
//! answer. A handle is cheap to clone and outlives the server, so that nobody holds a lock while a worker thinks.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use ringwire_ipc::channel::{RingDescriptors, WorkerEnd};
use ringwire_ipc::doorbell::SocketBell;
use ringwire_ipc::message::Setting;
use ringwire_ipc::region::RegionError;
use ringwire_proto::identity::PublicKey;

use super::share;
use crate::counters::{CounterBlock, Counters};
use crate::mail::{Order, Report};
use crate::waker::Waker;

/// How long the workers may take to answer: thousands of their turns.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A worker that does not take its mail, or takes it and says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("worker {0} does not answer: it has ended, or is stuck")]
pub struct Stuck(pub usize);

/// Why a channel to the control plane could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel gave no memory or descriptor.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The kernel gave no bell or no duplicate of a descriptor.
    #[error("cannot make the channel's bell: {0}")]
    Bell(std::io::Error),
    /// A worker does not answer.
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

/// What the control plane gets of one worker at an attach.
#[derive(Debug)]
pub struct WorkerDescriptors {
    /// The two rings.
    pub rings: RingDescriptors,
    /// The counter page.
    pub counters: OwnedFd,
    /// What wakes the worker.
    pub bell: OwnedFd,
}

/// How a worker is woken.
#[derive(Debug, Clone)]
pub(super) struct Wakers {
    /// By this process.
    pub(super) waker: Waker,
    /// By the control plane.
    pub(super) bell: Waker,
}

/// One worker.
#[derive(Debug)]
pub(super) struct Contact {
    pub(super) orders: Sender<Order>,
    pub(super) wakers: Wakers,
    pub(super) counters: Arc<CounterBlock>,
}

/// See the module's head.
#[derive(Debug, Clone)]
pub struct Workers(Arc<[Contact]>);

impl Workers {
    pub(super) fn new(contacts: Vec<Contact>) -> Self {
        Self(contacts.into())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// A copy of each worker's counters.
    pub fn counters(&self) -> impl Iterator<Item = Counters> + '_ {
        self.0.iter().map(|contact| Counters::of(&contact.counters))
    }

    /// Each worker at about this moment, in order of their number.
    ///
    /// # Errors
    /// [`Stuck`]: one of them does not answer.
    pub fn reports(&self) -> Result<Vec<Report>, Stuck> {
        self.ask(|_, answer| Order::Report(answer)).into_iter().collect()
    }

    /// Closes the session of a key, whoever has it; whether there was one.
    ///
    /// # Errors
    /// [`Stuck`]: one of them does not answer, and none of the others had it.
    pub fn close_session(&self, peer: PublicKey) -> Result<bool, Stuck> {
        let answers = self.ask(|_, answer| Order::Close(peer, answer));
        if answers.contains(&Ok(true)) {
            return Ok(true);
        }
        answers.into_iter().find(Result::is_err).unwrap_or(Ok(false))
    }

    /// Limits the buffer memory of all workers together to `len` bytes, and returns what is in force.
    ///
    /// # Errors
    /// [`Stuck`]: one of them does not answer.
    pub fn set_budget(&self, len: usize) -> Result<usize, Stuck> {
        let count = self.count();
        self.ask(|worker, answer| Order::Budget(share(len, count, worker), answer)).into_iter().sum()
    }

    /// Changes settings of all workers; they are in force at the return.
    ///
    /// # Errors
    /// [`Stuck`]: one of them does not answer; the others have them.
    pub fn change(&self, settings: &[Setting]) -> Result<(), Stuck> {
        self.ask(|_, answer| Order::Change(settings.to_vec(), answer)).into_iter().collect()
    }

    /// As [`Server::attach`](super::Server::attach).
    pub(super) fn attach(&self, epoch: u64) -> Result<(SocketBell, Vec<WorkerDescriptors>), AttachError> {
        let (ours, theirs) = SocketBell::pair().map_err(AttachError::Bell)?;
        let duplicate =
            |descriptor: BorrowedFd<'_>| descriptor.try_clone_to_owned().map_err(AttachError::Bell);
        let (mut ends, mut descriptors) = (Vec::new(), Vec::new());
        for (worker, contact) in self.0.iter().enumerate() {
            // Everything that can fail comes before the first worker is told: a failed attach leaves the former one in force.
            let (end, rings) = WorkerEnd::create(epoch, ours.try_clone().map_err(AttachError::Bell)?)?;
            let Some(region) = contact.counters.region() else { return Err(Stuck(worker).into()) };
            let (counters, bell) = (duplicate(region.as_fd())?, duplicate(contact.wakers.bell.as_fd())?);
            descriptors.push(WorkerDescriptors { rings, counters, bell });
            ends.push(Box::new(end));
        }
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        for (worker, end) in ends.into_iter().enumerate() {
            self.send(worker, Order::Attach(end), deadline)?;
        }
        Ok((theirs, descriptors))
    }

    /// An order to each that needs no answer.
    ///
    /// # Errors
    /// [`Stuck`]: one of them, the first of several, does not take it; the others have it.
    pub(super) fn tell(&self, order: impl Fn() -> Order) -> Result<(), Stuck> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let told: Vec<_> = (0..self.count()).map(|worker| self.send(worker, order(), deadline)).collect();
        told.into_iter().collect()
    }

    pub(super) fn wake(&self) {
        for contact in self.0.iter() {
            contact.wakers.waker.wake();
        }
    }

    /// Lets a worker do nothing until the other end of `released` is dropped.
    #[cfg(test)]
    pub(crate) fn hang(&self, worker: usize, released: Receiver<()>) {
        self.send(worker, Order::Hang(released), Instant::now() + ANSWER_TIMEOUT).unwrap();
    }

    /// A question to all at once.
    fn ask<T>(&self, order: impl Fn(usize, Sender<T>) -> Order) -> Vec<Result<T, Stuck>> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let put = |worker| -> Result<Receiver<T>, Stuck> {
            let (answer, answered) = bounded(1);
            self.send(worker, order(worker, answer), deadline)?;
            Ok(answered)
        };
        let asked: Vec<_> = (0..self.count()).map(put).collect();
        let answer = |(worker, answered): (usize, Result<Receiver<T>, Stuck>)| {
            answered?.recv_deadline(deadline).map_err(|_| Stuck(worker))
        };
        asked.into_iter().enumerate().map(answer).collect()
    }

    fn send(&self, worker: usize, order: Order, deadline: Instant) -> Result<(), Stuck> {
        let contact = &self.0[worker];
        contact.orders.send_deadline(order, deadline).map_err(|_| Stuck(worker))?;
        contact.wakers.waker.wake();
        Ok(())
    }
}
