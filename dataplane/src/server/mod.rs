//! A running data plane inside this process: worker threads with what each of them needs, and how they stop.
//!
//! ```text
//!   start ──► listeners (dealt out) ──► a thread per worker: driver ──► its wakers ──► team, lane ──► turns
//!   others ──► Workers (questions, orders, counters) ──► each worker's mail
//! ```
//!
//! What an operator states for the server (connections, half-open connections, buffer memory) is divided by the number of
//! workers, so that the sum holds; the handshake lane and the directory of sessions are one for all.

mod crew;
mod listeners;
mod workers;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use ipnet::IpNet;
use ringwire_ipc::doorbell::SocketBell;
use ringwire_ipc::region::RegionError;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use socket2::Socket;

use crate::choice::{self, DriverChoice, DriverKind, Selection};
use crate::clock::monotonic;
use crate::counters::Counters;
use crate::descriptors;
use crate::driver::DriverError;
use crate::lane::{self, LaneThreads, StartLaneError};
use crate::limits;
use crate::mail::{Order, Report};
use crate::memory::{self, DefaultBuffers};
use crate::ring::{self, Features};
use crate::worker::{Identity, Settings, default_proxy_from};

use crew::{Crew, Plan, Thread};
use listeners::Listeners;
pub use listeners::{Held, hold};
pub use workers::{AttachError, Stuck, WorkerDescriptors, Workers};

/// What a data plane needs to start.
#[derive(Debug)]
pub struct ServerConfig {
    /// The server's key.
    pub secret_key: SecretKey,
    /// Addresses to accept sessions on; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Listening sockets to take over instead of making them: those of a data plane that has ended, which may have had another
    /// number of workers.
    pub listeners: Vec<Socket>,
    /// Threads that forward, each with sessions of its own; 1 to [`limits::WORKERS_MAX`].
    pub workers: usize,
    /// Post-quantum part of session handshakes.
    pub hybrid: Hybrid,
    /// Buffer memory of all workers in bytes (address space; resident where used); 0: as
    /// [`memory::default_buffers`] says.
    pub buffer_memory_len: usize,
    /// Longest wait for company in microseconds, see [`crate::wait`].
    pub company_us_max: u32,
    /// Longest time for which receiving from one busy session of many is put off, in microseconds; 0: never.
    pub pause_us_max: u32,
    /// Small frames a second on one worker from which on that is done.
    pub busy_frames_per_second: u64,
    /// Pin the first worker to this core, and the others to those behind it.
    pub core: Option<usize>,
    /// What moves the bytes.
    pub driver: DriverChoice,
    /// Threads of the handshake lane, which all workers share, at a slightly lower priority than theirs; 0: as many as
    /// [`lane::default_threads`] says.
    pub handshake_threads: usize,
    /// Connections that may be in their handshake; past it the oldest of the largest address prefix is closed.
    pub half_open_max: usize,
    /// Connections in all, where fewer than the limit of open files permits are wanted.
    pub connections_max: Option<usize>,
    /// Sessions one address (IPv6: one /64) may have; `None`: no limit.
    pub sessions_per_address: Option<u32>,
    /// Networks whose PROXY headers are believed. From anywhere else such a header ends the connection.
    pub proxy_from: Vec<IpNet>,
}

impl ServerConfig {
    /// The defaults, with this key, on these addresses.
    pub fn new(secret_key: SecretKey, listen: Vec<SocketAddr>) -> Self {
        Self {
            secret_key,
            listen,
            listeners: Vec::new(),
            workers: 1,
            hybrid: Hybrid::Offer,
            buffer_memory_len: 0,
            company_us_max: Settings::default().company_us_max,
            pause_us_max: limits::PAUSE_US_MAX,
            busy_frames_per_second: limits::BUSY_FRAMES_PER_SECOND,
            core: None,
            driver: DriverChoice::Auto,
            handshake_threads: 0,
            half_open_max: limits::HALF_OPEN_MAX,
            connections_max: None,
            sessions_per_address: None,
            proxy_from: default_proxy_from().to_vec(),
        }
    }

    /// Whether a server of these settings could start here, as far as that can be known without starting one: all but whether
    /// its addresses can be listened on ([`hold`]).
    ///
    /// # Errors
    /// What [`Server::start`] would say.
    pub fn check(&self) -> Result<(), StartError> {
        self.buffers()?;
        if self.driver == DriverChoice::Uring {
            choice::select(self.driver, ring::probe)?;
        }
        Ok(())
    }

    /// Checks the numbers that do not go together, and says how much buffer memory there is to be.
    fn buffers(&self) -> Result<DefaultBuffers, StartError> {
        if self.listen.is_empty() && self.listeners.is_empty() {
            return Err(StartError::NoAddress);
        }
        let count = self.workers;
        if !(1..=limits::WORKERS_MAX).contains(&count) {
            return Err(StartError::Workers { given: count, most: limits::WORKERS_MAX });
        }
        if self.listeners.is_empty() && self.listen.len() * count > limits::LISTENERS_MAX {
            let given = self.listen.len() * count;
            return Err(StartError::Listeners { given, most: limits::LISTENERS_MAX });
        }
        let buffers = match self.buffer_memory_len {
            0 => memory::default_buffers(&memory::room(), count),
            len => DefaultBuffers { len, reason: "set by buffer_memory".into() },
        };
        let least = limits::BUFFER_MEMORY_LEN_MIN * count;
        if buffers.len < least {
            return Err(StartError::BufferMemory { given: buffers.len, workers: count, least });
        }
        Ok(buffers)
    }
}

/// Why a data plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no address to listen on.
    #[error("no address to listen on: name at least one, like 127.0.0.1:8081")]
    NoAddress,
    /// There cannot be so many workers.
    #[error("{given} workers cannot be: use 1 to {most}, at most one for each core (`nproc`)")]
    Workers {
        /// Configured.
        given: usize,
        /// Possible.
        most: usize,
    },
    /// There would be more listening sockets than can be handed on.
    #[error(
        "{given} listening sockets, one for each worker and address, are too many: at most {most}. Use fewer workers or addresses"
    )]
    Listeners {
        /// Needed.
        given: usize,
        /// Possible.
        most: usize,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}. {cure}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
        /// What to change.
        cure: &'static str,
    },
    /// The buffer memory is too small.
    #[error("buffer memory of {given} bytes is too small for {workers} workers: at least {least} are needed")]
    BufferMemory {
        /// Configured, in bytes.
        given: usize,
        /// Configured.
        workers: usize,
        /// Needed, in bytes.
        least: usize,
    },
    /// The driver cannot start.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// A thread cannot be made, or ended while starting.
    #[error("a worker's thread did not start: {0}. Raise the limit of threads (`ulimit -u`)")]
    Thread(io::Error),
    /// The handshake lane cannot start.
    #[error(transparent)]
    Lane(#[from] StartLaneError),
    /// There is no memory or no descriptor left for what the control plane reads.
    #[error("cannot make the counters' shared memory: {0}")]
    Counters(#[from] RegionError),
    /// A listener cannot be duplicated.
    #[error("cannot duplicate a listener: {0}. Raise the limit of open files (`ulimit -n`)")]
    Duplicate(io::Error),
    /// A socket that was passed is no listener.
    #[error("a socket that was passed is no TCP listener: {0}. Start without it")]
    Adopted(io::Error),
}

/// Why a server did not end well.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// A worker's driver had failed.
    #[error("worker {worker} failed: {error}")]
    Driver {
        /// Which.
        worker: usize,
        /// How.
        error: DriverError,
    },
    /// Workers went on past the limit. Their threads are left to the end of the process.
    #[error("worker {} did not end within {within:?} and is left behind", list(.workers))]
    Stuck {
        /// Which, at least one.
        workers: Vec<usize>,
        /// How long they had.
        within: Duration,
    },
}

fn list(workers: &[usize]) -> String {
    workers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// How long workers may take to end: each closes its sessions in one turn and waits a second for the kernel at most.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A running data plane. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    public_key: PublicKey,
    driver: DriverKind,
    stop: Arc<AtomicBool>,
    /// A worker ended otherwise than in order.
    failed: Arc<AtomicBool>,
    workers: Workers,
    /// Duplicates, to hand on and to shut down.
    listeners: Vec<(SocketAddr, Socket)>,
    connections_max: usize,
    half_open_max: usize,
    memory_origin: String,
    /// In order of their number; none once stopped.
    threads: Vec<Thread>,
    /// Closed when the last thread has ended.
    ended: Receiver<Infallible>,
    /// Ends behind the workers.
    lane: Option<LaneThreads>,
}

impl Server {
    /// Binds the listeners and starts the workers; returns when they accept.
    pub fn start(config: ServerConfig) -> Result<Self, StartError> {
        Self::start_probed(config, ring::probe)
    }

    /// As [`start`](Self::start); `probe` says whether io_uring can be used.
    fn start_probed(
        config: ServerConfig,
        probe: impl FnOnce() -> Result<Features, DriverError>,
    ) -> Result<Self, StartError> {
        let count = config.workers;
        let DefaultBuffers { len: memory_len, reason: memory_origin } = config.buffers()?;
        let Selection { kind, refusal } = choice::select(config.driver, probe)?;
        if let Some(refusal) = refusal {
            tracing::warn!(%refusal, "running on the poll driver, which needs more CPU");
        }
        let Listeners { addresses, dealt, duplicates } =
            Listeners::open(config.listeners, &config.listen, count)?;
        let public_key = config.secret_key.public_key();
        let identity = Arc::new(Identity { secret_key: config.secret_key, public_key });
        let lane_threads = match config.handshake_threads {
            0 => lane::default_threads(count),
            threads => threads,
        };
        let lane = LaneThreads::start(&identity, lane_threads)?;
        let permitted = descriptors::connections_max(count);
        let connections_max =
            config.connections_max.map_or(permitted, |wanted| wanted.min(permitted)).max(count);
        let settings = Settings {
            hybrid: config.hybrid,
            company_us_max: config.company_us_max,
            pause_us_max: config.pause_us_max,
            busy_frames_per_second: config.busy_frames_per_second,
            connections_max,
            half_open_max: config.half_open_max,
            sessions_per_address: config.sessions_per_address,
            proxy_from: config.proxy_from.into(),
            ..Settings::default()
        };
        let half_open_max = settings.half_open_max();
        let plan = Plan { kind, memory_len, settings, core: config.core };
        let Crew { stop, failed, contacts, threads, ended } = plan.start(dealt, &lane)?;
        Ok(Self {
            addresses,
            public_key,
            driver: kind,
            stop,
            failed,
            workers: Workers::new(contacts),
            listeners: duplicates,
            connections_max,
            half_open_max,
            memory_origin,
            threads,
            ended,
            lane: Some(lane),
        })
    }

    /// The addresses it listens on, ports resolved, each once.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What clients know it by.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// What moves its bytes: `uring` or `poll`.
    pub fn driver_name(&self) -> &'static str {
        self.driver.name()
    }

    /// How many connections it takes, half-open ones included: what the limit of open files permits, or less if configured.
    /// Each worker takes its share of them. To be shown at start.
    pub fn connections_max(&self) -> usize {
        self.connections_max
    }

    /// How many of them may be half open.
    pub fn half_open_max(&self) -> usize {
        self.half_open_max
    }

    /// Why buffer memory is as large as it is, for people.
    pub fn memory_origin(&self) -> &str {
        &self.memory_origin
    }

    /// A copy of the counters, of all workers together.
    pub fn counters(&self) -> Counters {
        Counters::sum(self.workers.counters())
    }

    /// Sessions, bridges and memory of all workers at this moment.
    ///
    /// # Errors
    /// [`Stuck`]: a worker does not answer.
    pub fn report(&self) -> Result<Report, Stuck> {
        self.workers.reports().map(Report::sum)
    }

    /// Closes the session of a key; whether there was one.
    ///
    /// # Errors
    /// [`Stuck`]: a worker does not answer.
    pub fn close_session(&self, peer: PublicKey) -> Result<bool, Stuck> {
        self.workers.close_session(peer)
    }

    /// Limits the buffer memory of all workers together to `len` bytes, and returns what is in force.
    ///
    /// # Errors
    /// [`Stuck`]: a worker does not answer.
    pub fn set_budget(&self, len: usize) -> Result<usize, Stuck> {
        self.workers.set_budget(len)
    }

    /// Duplicates of the listeners with what each is bound to: one or more of each of the
    /// [`addresses`](Self::addresses).
    pub fn listeners(&self) -> &[(SocketAddr, Socket)] {
        &self.listeners
    }

    /// The workers, to ask while the server is elsewhere.
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Makes fresh channels for attach number `epoch`, and lets the workers use them: the bell's end and, per worker, the
    /// descriptors that the control plane gets.
    ///
    /// # Errors
    /// The kernel gives no more memory or descriptors, or a worker does not take its mail.
    pub fn attach(&self, epoch: u64) -> Result<(SocketBell, Vec<WorkerDescriptors>), AttachError> {
        self.workers.attach(epoch)
    }

    /// Lets the workers forget their channels: the control plane is gone.
    pub fn detach(&self) {
        // A worker that does not take its mail has its channel until the next attach; nobody reads it.
        let _ = self.workers.tell(|| Order::Detach);
    }

    /// Accepts nothing new, closes sessions as they become idle, and ends with the last of them, at the latest `within`
    /// this time; then [`has_ended`](Self::has_ended). False if a worker does not take its mail.
    pub fn drain(&self, within: Duration) -> bool {
        let within = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
        let until = monotonic().saturating_add(within);
        // First, so that nobody whose session is closed comes back.
        self.refuse();
        self.workers.tell(|| Order::Drain(until)).is_ok()
    }

    /// Refuses connections from now on, for every process that has the listeners: they are refused at once instead of waiting
    /// in vain.
    pub fn refuse(&self) {
        for (_, listener) in &self.listeners {
            let _ = listener.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Closes every session and ends the workers.
    ///
    /// # Errors
    /// [`StopError`]: a worker had failed, or does not end within some seconds.
    pub fn stop(mut self) -> Result<(), StopError> {
        self.halt(STOP_TIMEOUT)
    }

    /// Whether the workers have ended by themselves, because a drain is over, or one of them has failed.
    pub fn has_ended(&self) -> bool {
        self.failed.load(Ordering::Acquire)
            || (!self.threads.is_empty() && self.threads.iter().all(JoinHandle::is_finished))
    }

    fn halt(&mut self, within: Duration) -> Result<(), StopError> {
        // Release: pairs with the workers' load after they are woken.
        self.stop.store(true, Ordering::Release);
        self.workers.wake();
        let threads = std::mem::take(&mut self.threads);
        if self.ended.recv_timeout(within) == Err(RecvTimeoutError::Timeout) {
            let running = threads.iter().enumerate().filter(|(_, thread)| !thread.is_finished());
            let workers: Vec<usize> = running.map(|(worker, _)| worker).collect();
            if !workers.is_empty() {
                // Its jobs are theirs: it must not be waited for either.
                std::mem::forget(self.lane.take());
                return Err(StopError::Stuck { workers, within });
            }
        }
        let mut outcome = Ok(());
        for (worker, thread) in threads.into_iter().enumerate() {
            match thread.join() {
                Ok(Ok(())) => {}
                // The first failure is the cause of what came after it, as far as anybody can tell.
                Ok(Err(error)) => outcome = outcome.and(Err(StopError::Driver { worker, error })),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        self.lane = None;
        outcome
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.threads.is_empty()
            && let Err(error) = self.halt(STOP_TIMEOUT)
        {
            tracing::error!(%error, "the server did not end in order");
        }
    }
}

/// A worker's share of something that is divided by their number: the shares add up to the whole.
fn share(whole: usize, workers: usize, worker: usize) -> usize {
    whole / workers + usize::from(worker < whole % workers)
}

#[cfg(test)]
mod tests;
