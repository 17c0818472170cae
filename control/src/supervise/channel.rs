//! The attached state: events out of shared memory into the mirror, commands out of the mirror into shared memory, and a
//! wait for whatever comes next.
//!
//! In: the channels of an attach, questions of the handles. Out: why it is over. Used by the task in [`super`].

use std::collections::HashMap;
use std::io;
use std::mem::discriminant;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use ringwire_dataplane::counters::Counter;
use ringwire_ipc::Fault;
use ringwire_ipc::channel::ControlEnd;
use ringwire_ipc::counters::CellIndex;
use ringwire_ipc::message::{Order, Setting};
use ringwire_ipc::ring::PushError;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use super::mirror::{AskError, Mirror, Nanos, Outcome, Ticket};
use super::obtain::listens;
use super::plane::{Ask, PlaneStatus, Table};
use super::pulse::{BEAT, Pulse};
use super::session_log;

/// Events of one worker handled before other things get their turn: a whole ring.
const EVENTS_PER_TURN_MAX: usize = 4096;

/// Why an attach is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    /// The bell's other end is closed: the process has ended, or took on another control plane.
    #[error("it hung up")]
    HungUp,
    /// It wrote nonsense into shared memory.
    #[error("it broke the rules of shared memory: {0}")]
    Fault(#[from] Fault),
    /// The kernel's.
    #[error("its bell cannot be waited for: {0}")]
    Bell(#[from] io::Error),
}

/// What else than an end the task has to act on.
#[derive(Debug)]
pub(super) enum Event {
    /// The data plane is gone.
    Lost(Lost),
    /// A question that concerns the process and not its workers.
    Ask(Ask),
    /// Nobody holds a handle any more.
    Abandoned,
}

/// Who waits for the outcome of which question.
#[derive(Debug, Default)]
pub(super) struct Askers {
    waiting: HashMap<Ticket, Asker>,
    /// Settings that every worker has changed and that nobody has asked for yet, the last of each kind.
    changed: Vec<Setting>,
}

#[derive(Debug)]
struct Asker {
    answer: oneshot::Sender<Result<Outcome, AskError>>,
    /// What is another once this is done.
    changes: Option<Setting>,
}

impl Askers {
    /// Passes outcomes on. Who went away meanwhile is not missed.
    pub(super) fn tell(&mut self, mirror: &mut Mirror) {
        while let Some((ticket, outcome)) = mirror.poll_outcome() {
            if let Some(Asker { answer, changes }) = self.waiting.remove(&ticket) {
                if let Some(changed) = changes.filter(|_| matches!(outcome, Outcome::Done(_))) {
                    self.changed.retain(|before| discriminant(before) != discriminant(&changed));
                    self.changed.push(changed);
                }
                let _ = answer.send(Ok(outcome));
            }
        }
    }

    /// What has changed since the last call.
    pub(super) fn changed(&mut self) -> Vec<Setting> {
        std::mem::take(&mut self.changed)
    }
}

/// An attach in use.
#[derive(Debug)]
pub(super) struct Channels {
    ends: Vec<ControlEnd>,
    /// Our end of the pair of sockets every worker rings with.
    bell: UnixStream,
    pulse: Pulse,
    /// When to look at it and at the listeners next.
    beat_at: Nanos,
    /// Every session is to be in the log.
    log_sessions: bool,
}

impl Channels {
    /// Must be called inside a tokio runtime.
    pub(super) fn new(ends: Vec<ControlEnd>, bell: OwnedFd, log_sessions: bool) -> io::Result<Self> {
        let bell = std::os::unix::net::UnixStream::from(bell);
        bell.set_nonblocking(true)?;
        let bell = UnixStream::from_std(bell)?;
        Ok(Self { ends, bell, pulse: Pulse::default(), beat_at: 0, log_sessions })
    }

    /// Number of workers.
    pub(super) fn workers(&self) -> usize {
        self.ends.len()
    }

    /// Totals per worker, in the order of [`Counter::ALL`].
    pub(super) fn counters(&self) -> Vec<Vec<u64>> {
        let totals = |end: &ControlEnd| {
            let cells = (0..Counter::ALL.len()).filter_map(CellIndex::new);
            cells.map(|cell| end.counters().read(cell)).collect()
        };
        self.ends.iter().map(totals).collect()
    }

    /// Serves until something happens that the task must act on. `listeners` are duplicates of what the data plane listens on.
    pub(super) async fn serve(
        &mut self,
        listeners: &[(SocketAddr, OwnedFd)],
        mirror: &mut Mirror,
        askers: &mut Askers,
        asks: &mut mpsc::Receiver<Ask>,
        status: &watch::Sender<PlaneStatus>,
    ) -> Event {
        loop {
            self.beat(listeners, status);
            let busy = match self.exchange(mirror) {
                Ok(busy) => busy,
                Err(lost) => return Event::Lost(lost),
            };
            askers.tell(mirror);
            if busy {
                tokio::task::yield_now().await;
                continue;
            }
            // Each end announces, and looks again: what came in between is not waited for.
            let mut ready = false;
            for end in &mut self.ends {
                ready |= end.announce_sleep();
            }
            let woken = if ready { Ok(Woken::Bell) } else { self.sleep(mirror.next_time(), asks).await };
            self.ends.iter_mut().for_each(ControlEnd::withdraw_sleep);
            match woken {
                Ok(Woken::Bell) => {}
                Ok(Woken::Ask(ask)) => {
                    if let Some(ask) = answer(ask, mirror, askers, || self.counters()) {
                        return Event::Ask(ask);
                    }
                }
                Ok(Woken::Abandoned) => return Event::Abandoned,
                Err(lost) => return Event::Lost(lost),
            }
        }
    }

    /// Once a beat: whether the workers take their turns, and whether anybody new is accepted.
    fn beat(&mut self, listeners: &[(SocketAddr, OwnedFd)], status: &watch::Sender<PlaneStatus>) {
        if now() < self.beat_at {
            return;
        }
        self.beat_at = now().saturating_add(BEAT.as_nanos() as Nanos);
        // A data plane that drains shuts its listeners down, whoever told it to: here, or by a signal of which nobody tells us.
        let drains = listeners.iter().any(|(_, listener)| !listens(listener));
        status.send_if_modified(|status| {
            let begins = drains && !status.draining;
            if begins {
                tracing::warn!("the data plane drains: it takes nobody new, and ends with its last session");
            }
            status.draining |= begins;
            begins
        });
        let Some(cell) = CellIndex::new(Counter::Turns as usize) else { return };
        for worker in self.pulse.beat(self.ends.iter().map(|end| end.counters().read(cell))) {
            self.ends[worker].ring();
        }
        let silent = self.pulse.silent();
        status.send_if_modified(|status| {
            let changed = status.silent_worker != silent;
            match silent {
                Some(worker) if changed => tracing::error!(
                    worker,
                    "takes no turns: its process is stopped, or it is stuck; nobody is served by it. End it with `ringwire stop`"
                ),
                None if changed => tracing::info!("all workers take their turns again"),
                _ => {}
            }
            status.silent_worker = silent;
            changed
        });
    }

    /// Events first, so that the answer to a listing finds room; then time, then commands. True if there may be more.
    fn exchange(&mut self, mirror: &mut Mirror) -> Result<bool, Lost> {
        let mut busy = false;
        for (worker, end) in self.ends.iter_mut().enumerate() {
            let mut handled = 0;
            while handled < EVENTS_PER_TURN_MAX
                && let Some(event) = end.event()?
            {
                if self.log_sessions {
                    session_log::write(worker, &event, mirror);
                }
                mirror.handle_event(worker, &event, now());
                handled += 1;
            }
            busy |= handled == EVENTS_PER_TURN_MAX;
        }
        mirror.handle_time(now());
        for (worker, end) in self.ends.iter_mut().enumerate() {
            while let Some(command) = mirror.next_command(worker) {
                match end.command(&command) {
                    Ok(()) => mirror.command_sent(worker),
                    // The worker is stuck; the command waits, and runs out of time.
                    Err(PushError::Full) => break,
                    Err(PushError::Fault(fault)) => return Err(fault.into()),
                }
            }
        }
        Ok(busy)
    }

    async fn sleep(&mut self, until: Option<Nanos>, asks: &mut mpsc::Receiver<Ask>) -> Result<Woken, Lost> {
        let until = until.map_or(self.beat_at, |until| until.min(self.beat_at));
        let timer = tokio::time::sleep(Duration::from_nanos(until.saturating_sub(now())));
        tokio::select! {
            ready = self.bell.readable() => {
                ready?;
                self.silence()
            }
            ask = asks.recv() => Ok(ask.map_or(Woken::Abandoned, Woken::Ask)),
            () = timer => Ok(Woken::Bell),
        }
    }

    /// Before draining: a ring from here on is heard at the next wait.
    fn silence(&self) -> Result<Woken, Lost> {
        let mut rings = [0; 256];
        match self.bell.try_read(&mut rings) {
            Ok(0) => Err(Lost::HungUp),
            Ok(_) => Ok(Woken::Bell),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Woken::Bell),
            Err(error) => Err(error.into()),
        }
    }
}

enum Woken {
    Bell,
    Ask(Ask),
    Abandoned,
}

/// Answers what the mirror and the counters can answer, puts orders; returns what only the task can do.
pub(super) fn answer(
    ask: Ask,
    mirror: &mut Mirror,
    askers: &mut Askers,
    counters: impl FnOnce() -> Vec<Vec<u64>>,
) -> Option<Ask> {
    // Who asked and went away is not missed.
    match ask {
        Ask::Table(answer) => {
            let _ = answer.send(Table {
                sessions: mirror.sessions().collect(),
                current: mirror.is_current(),
                events_dropped: mirror.events_dropped(),
                untracked: mirror.untracked(),
            });
        }
        Ask::Closed(answer) => {
            let _ = answer.send(mirror.closed().copied().collect());
        }
        Ask::Counters(answer) => {
            let _ = answer.send(counters());
        }
        Ask::Order(order, answer) => match mirror.ask(order, now()) {
            Ok(ticket) => {
                let changes = if let Order::Change(setting) = order { Some(setting) } else { None };
                askers.waiting.insert(ticket, Asker { answer, changes });
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        },
        Ask::Drain(..) | Ask::End(..) => return Some(ask),
    }
    None
}

/// CLOCK_MONOTONIC in nanoseconds, which the data plane's times are of.
pub fn now() -> Nanos {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Since boot: neither is negative.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
