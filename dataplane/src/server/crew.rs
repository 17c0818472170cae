//! The worker threads: made together, and acquainted with each other before their first turn.
//!
//! In: what each of them needs. Out: workers that take their turns, or the first error and no thread. Used when a server
//! starts.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use ringwire_exchange::WorkerIndex;
use socket2::Socket;

use super::workers::{Contact, Wakers};
use super::{StartError, share};
use crate::choice::DriverKind;
use crate::counters::CounterBlock;
use crate::driver::{Driver, DriverError};
use crate::lane::{Lane, LaneThreads};
use crate::limits::PAGE_LEN;
use crate::mail::{Order, mailbox};
use crate::poll::PollDriver;
use crate::ring::UringDriver;
use crate::team::Team;
use crate::worker::{Settings, Worker};

/// A worker's thread.
pub(super) type Thread = JoinHandle<Result<(), DriverError>>;

/// What the workers are made of; amounts are those of the whole server.
pub(super) struct Plan {
    pub(super) kind: DriverKind,
    pub(super) memory_len: usize,
    pub(super) settings: Settings,
    pub(super) core: Option<usize>,
}

/// Workers that take their turns.
pub(super) struct Crew {
    /// Ends them, once they are woken.
    pub(super) stop: Arc<AtomicBool>,
    /// One ended otherwise than in order.
    pub(super) failed: Arc<AtomicBool>,
    pub(super) contacts: Vec<Contact>,
    pub(super) threads: Vec<Thread>,
    /// Closed when the last thread has ended.
    pub(super) ended: Receiver<Infallible>,
}

impl Plan {
    /// Starts a worker for each set of listeners.
    pub(super) fn start(self, listeners: Vec<Vec<Socket>>, lane: &LaneThreads) -> Result<Crew, StartError> {
        let count = listeners.len();
        let (stop, failed) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (running, ended) = bounded(0);
        let (mut contacts, mut threads, mut seats) = (Vec::new(), Vec::new(), Vec::new());
        let mut outcome = Ok(());
        for (index, listeners) in listeners.into_iter().enumerate() {
            let (orders, mail) = mailbox();
            let counters = Arc::new(CounterBlock::shared()?);
            let (ready, started) = mpsc::sync_channel(1);
            let (seat, seated) = mpsc::channel();
            let launch = Launch {
                listeners: listeners.len(),
                settings: self.share(count, index),
                counters: Arc::clone(&counters),
                stop: Arc::clone(&stop),
                mail,
                ready,
                seated,
                watch: Watch { failed: Arc::clone(&failed), _running: running.clone() },
            };
            let core = self.core.map(|first| first + index);
            let memory_len = self.memory_len / count / PAGE_LEN * PAGE_LEN;
            match launch.spawn(index, self.kind, listeners, memory_len, core) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    outcome = Err(StartError::Thread(error));
                    break;
                }
            }
            outcome = match started.recv() {
                Ok(Ok(wakers)) => {
                    contacts.push(Contact { orders, wakers, counters });
                    seats.push(seat);
                    continue;
                }
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(StartError::Thread(io::Error::other("it ended before it was ready"))),
            };
            break;
        }
        if let Err(error) = outcome {
            // Whoever waits for its seat ends.
            drop(seats);
            for thread in threads {
                let _ = thread.join();
            }
            return Err(error);
        }
        seat_all(&contacts, seats, lane);
        Ok(Crew { stop, failed, contacts, threads, ended })
    }

    /// What of the settings is one worker's.
    fn share(&self, workers: usize, worker: usize) -> Settings {
        Settings {
            connections_max: share(self.settings.connections_max, workers, worker),
            half_open_max: share(self.settings.half_open_max, workers, worker).max(1),
            long_stashes_len_max: share(self.settings.long_stashes_len_max, workers, worker),
            ..self.settings.clone()
        }
    }
}

/// Tells each worker who the others are, and where its handshakes are verified. They begin.
fn seat_all(contacts: &[Contact], seats: Vec<mpsc::Sender<Seat>>, lane: &LaneThreads) {
    let wakers: Vec<_> = contacts.iter().map(|contact| contact.wakers.waker.clone()).collect();
    // One alone needs none.
    let mut teams = match WorkerIndex::try_from(contacts.len()) {
        Ok(count) if count > 1 => Team::of(count).into_iter(),
        _ => Vec::new().into_iter(),
    };
    for (seat, waker) in seats.into_iter().zip(&wakers) {
        let mut team = teams.next();
        if let Some(team) = &mut team {
            team.set_wakers(wakers.clone());
        }
        // One that has ended meanwhile has panicked, which is noticed as any later end.
        let _ = seat.send(Seat { team, lane: lane.port(waker.clone()) });
    }
}

/// What a worker gets once all are there.
struct Seat {
    team: Option<Team>,
    lane: Box<dyn Lane>,
}

/// Dropped as the last of its thread.
struct Watch {
    failed: Arc<AtomicBool>,
    _running: Sender<Infallible>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failed.store(true, Ordering::Release);
        }
    }
}

/// What a worker's thread takes along, whatever its driver.
struct Launch {
    listeners: usize,
    settings: Settings,
    counters: Arc<CounterBlock>,
    stop: Arc<AtomicBool>,
    mail: Receiver<Order>,
    ready: mpsc::SyncSender<Result<Wakers, DriverError>>,
    seated: mpsc::Receiver<Seat>,
    watch: Watch,
}

impl Launch {
    fn spawn(
        self,
        index: usize,
        kind: DriverKind,
        listeners: Vec<Socket>,
        memory_len: usize,
        core: Option<usize>,
    ) -> io::Result<Thread> {
        let body = move || {
            if let Some(core) = core {
                pin(core);
            }
            // The ring has a single issuer: it is made on the thread that uses it.
            match kind {
                DriverKind::Uring => {
                    let wakers = |driver: &UringDriver| Wakers { waker: driver.waker(), bell: driver.bell() };
                    self.run(UringDriver::new(listeners, memory_len), wakers)
                }
                DriverKind::Poll => {
                    let wakers = |driver: &PollDriver| Wakers { waker: driver.waker(), bell: driver.bell() };
                    self.run(PollDriver::new(listeners, memory_len), wakers)
                }
            }
        };
        std::thread::Builder::new().name(format!("worker-{index}")).spawn(body)
    }

    fn run<D: Driver + std::fmt::Debug>(
        self,
        driver: Result<D, DriverError>,
        wakers: impl FnOnce(&D) -> Wakers,
    ) -> Result<(), DriverError> {
        let Self { listeners, settings, counters, stop, mail, ready, seated, watch } = self;
        let driver = match driver {
            Ok(driver) => driver,
            Err(error) => {
                let _ = ready.send(Err(error));
                return Ok(());
            }
        };
        tracing::debug!(?driver, "worker starts");
        let _ = ready.send(Ok(wakers(&driver)));
        // Nobody to seat it: another worker did not start.
        let Ok(Seat { team, lane }) = seated.recv() else { return Ok(()) };
        let mut worker = Worker::new(driver, listeners, settings, lane, counters, stop);
        worker.set_mail(mail);
        if let Some(team) = team {
            worker.join(team);
        }
        let outcome = worker.run();
        if outcome.is_err() {
            watch.failed.store(true, Ordering::Release);
        }
        outcome
    }
}

/// Keeps this thread on one core; a core that does not exist is reported and ignored.
fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    if core < rustix::thread::CpuSet::MAX_CPU {
        set.set(core);
    }
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(core, %error, "cannot pin a worker to this core; it runs unpinned");
    }
}
