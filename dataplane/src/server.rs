//! A running data plane inside this process: listeners, worker threads, and how they stop.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};
use ipnet::IpNet;
use ringwire_ipc::channel::{RingDescriptors, WorkerEnd};
use ringwire_ipc::doorbell::SocketBell;
use ringwire_ipc::region::RegionError;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::choice::{self, DriverChoice, DriverKind, Selection};
use crate::clock::monotonic;
use crate::counters::{CounterBlock, Counters};
use crate::descriptors;
use crate::driver::{Driver, DriverError};
use crate::lane::{self, LaneThreads, StartLaneError};
use crate::limits;
use crate::mail::{Order, Report, mailbox};
use crate::poll::PollDriver;
use crate::ring::{self, Features, UringDriver};
use crate::waker::Waker;
use crate::worker::{Identity, Settings, Worker, default_proxy_from};

/// What a data plane needs to start.
#[derive(Debug)]
pub struct ServerConfig {
    /// The server's key.
    pub secret_key: SecretKey,
    /// Addresses to accept sessions on; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Listening sockets to take over instead of making them: those of a data plane that has ended.
    pub listeners: Vec<Socket>,
    /// Post-quantum part of session handshakes.
    pub hybrid: Hybrid,
    /// Buffer memory in bytes (address space; resident where used).
    pub buffer_memory_len: usize,
    /// Longest wait for company in microseconds, see [`crate::wait`].
    pub company_us_max: u32,
    /// Pin the worker to this core.
    pub core: Option<usize>,
    /// What moves the bytes.
    pub driver: DriverChoice,
    /// Threads of the handshake lane, at least one; they run at a slightly lower priority than the worker.
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
            hybrid: Hybrid::Offer,
            buffer_memory_len: default_buffer_memory_len(),
            company_us_max: Settings::default().company_us_max,
            core: None,
            driver: DriverChoice::Auto,
            handshake_threads: lane::default_threads(),
            half_open_max: limits::HALF_OPEN_MAX,
            connections_max: None,
            sessions_per_address: None,
            proxy_from: default_proxy_from().to_vec(),
        }
    }
}

/// Why a data plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no address to listen on.
    #[error("no address to listen on: name at least one, like 127.0.0.1:8081")]
    NoAddress,
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
    #[error("buffer memory of {given} bytes is too small: at least {least} are needed")]
    BufferMemory {
        /// Configured, in bytes.
        given: usize,
        /// Needed, in bytes.
        least: usize,
    },
    /// The driver cannot start.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// A thread cannot be made, or ended while starting.
    #[error("the worker thread did not start: {0}")]
    Thread(io::Error),
    /// The handshake lane cannot start.
    #[error(transparent)]
    Lane(#[from] StartLaneError),
    /// There is no memory or no descriptor left for what the control plane reads.
    #[error("cannot make the counters' shared memory: {0}. Raise the limit of open files (`ulimit -n`)")]
    Counters(#[from] RegionError),
    /// A listener cannot be duplicated.
    #[error("cannot duplicate a listener: {0}. Raise the limit of open files (`ulimit -n`)")]
    Duplicate(io::Error),
    /// A socket that was passed is no listener.
    #[error("a socket that was passed is no TCP listener: {0}. Start without it")]
    Adopted(io::Error),
}

/// Why a channel to the control plane could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel gave no memory or descriptor.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The kernel gave no bell or no duplicate of a descriptor.
    #[error("cannot make the channel's bell: {0}")]
    Bell(io::Error),
    /// The worker does not answer.
    #[error("worker {0} does not answer")]
    Stuck(usize),
}

/// What a worker is reached by from other threads, and what the control plane gets of it.
#[derive(Debug, Clone)]
struct Wakers {
    /// For this process.
    waker: Waker,
    /// For the control plane.
    bell: Waker,
}

/// How long a worker may take to answer: thousands of its turns.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A running data plane. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    public_key: PublicKey,
    driver: DriverKind,
    counters: Arc<CounterBlock>,
    stop: Arc<AtomicBool>,
    orders: Sender<Order>,
    wakers: Wakers,
    /// Duplicates, to hand on and to shut down.
    listeners: Vec<Socket>,
    connections_max: usize,
    thread: Option<JoinHandle<Result<(), DriverError>>>,
}

impl Server {
    /// Binds the listeners and starts the worker; returns when it accepts.
    pub fn start(config: ServerConfig) -> Result<Self, StartError> {
        Self::start_probed(config, ring::probe)
    }

    /// As [`start`](Self::start); `probe` says whether io_uring can be used.
    fn start_probed(
        config: ServerConfig,
        probe: impl FnOnce() -> Result<Features, DriverError>,
    ) -> Result<Self, StartError> {
        if config.listen.is_empty() && config.listeners.is_empty() {
            return Err(StartError::NoAddress);
        }
        if config.buffer_memory_len < limits::BUFFER_MEMORY_LEN_MIN {
            let least = limits::BUFFER_MEMORY_LEN_MIN;
            return Err(StartError::BufferMemory { given: config.buffer_memory_len, least });
        }
        let Selection { kind, refusal } = choice::select(config.driver, probe)?;
        if let Some(refusal) = refusal {
            tracing::warn!(%refusal, "running on the poll driver, which needs more CPU");
        }
        let (listeners, addresses) = open_listeners(config.listeners, &config.listen)?;
        let duplicates: Vec<Socket> = listeners
            .iter()
            .map(Socket::try_clone)
            .collect::<io::Result<_>>()
            .map_err(StartError::Duplicate)?;
        let public_key = config.secret_key.public_key();
        let identity = Arc::new(Identity { secret_key: config.secret_key, public_key });
        let lane = LaneThreads::start(&identity, config.handshake_threads)?;
        let permitted = descriptors::connections_max();
        let connections_max = config.connections_max.map_or(permitted, |wanted| wanted.clamp(1, permitted));
        let counters = Arc::new(CounterBlock::shared()?);
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, started) = mpsc::sync_channel(1);
        let (orders, mail) = mailbox();
        let thread = {
            let (counters, stop) = (Arc::clone(&counters), Arc::clone(&stop));
            let launch = Launch {
                listeners: listeners.len(),
                lane,
                settings: Settings {
                    hybrid: config.hybrid,
                    company_us_max: config.company_us_max,
                    connections_max,
                    half_open_max: config.half_open_max,
                    sessions_per_address: config.sessions_per_address,
                    proxy_from: config.proxy_from.into(),
                    ..Settings::default()
                },
                counters,
                stop,
                mail,
                ready,
            };
            let (memory_len, core) = (config.buffer_memory_len, config.core);
            let body = move || {
                if let Some(core) = core {
                    pin(core);
                }
                // The ring has a single issuer: it is made on the thread that uses it.
                match kind {
                    DriverKind::Uring => {
                        let wakers =
                            |driver: &UringDriver| Wakers { waker: driver.waker(), bell: driver.bell() };
                        launch.run(UringDriver::new(listeners, memory_len), wakers)
                    }
                    DriverKind::Poll => {
                        let wakers =
                            |driver: &PollDriver| Wakers { waker: driver.waker(), bell: driver.bell() };
                        launch.run(PollDriver::new(listeners, memory_len), wakers)
                    }
                }
            };
            std::thread::Builder::new().name("worker-0".into()).spawn(body).map_err(StartError::Thread)?
        };
        let wakers = match started.recv() {
            Ok(Ok(wakers)) => wakers,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(StartError::Thread(io::Error::other("it ended before it was ready"))),
        };
        Ok(Self {
            addresses,
            public_key,
            driver: kind,
            counters,
            stop,
            orders,
            wakers,
            listeners: duplicates,
            connections_max,
            thread: Some(thread),
        })
    }

    /// The addresses it listens on, ports resolved.
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
    /// To be shown at start.
    pub fn connections_max(&self) -> usize {
        self.connections_max
    }

    /// A copy of its counters.
    pub fn counters(&self) -> Counters {
        Counters::of(&self.counters)
    }

    /// Sessions, bridges and memory at this moment. `None` when the worker does not answer: it has ended, or is stuck.
    pub fn report(&self) -> Option<Report> {
        self.ask(Order::Report)
    }

    /// Closes the session of a key; whether there was one. `None` as for [`report`](Self::report).
    pub fn close_session(&self, peer: PublicKey) -> Option<bool> {
        self.ask(|answer| Order::Close(peer, answer))
    }

    /// Limits the buffer memory of the worker to `len` bytes, and returns what is in force. `None` as for
    /// [`report`](Self::report).
    pub fn set_budget(&self, len: usize) -> Option<usize> {
        self.ask(|answer| Order::Budget(len, answer))
    }

    /// Duplicates of the listeners, in the order of [`addresses`](Self::addresses).
    pub fn listeners(&self) -> &[Socket] {
        &self.listeners
    }

    /// Workers.
    pub fn worker_count(&self) -> usize {
        1
    }

    /// Makes fresh channels for attach number `epoch`, and lets the workers use them: the bell's end and, per worker, the
    /// descriptors that the control plane gets.
    ///
    /// # Errors
    /// The kernel gives no more memory or descriptors, or a worker does not take its mail.
    pub fn attach(&self, epoch: u64) -> Result<(SocketBell, Vec<WorkerDescriptors>), AttachError> {
        let (ours, theirs) = SocketBell::pair().map_err(AttachError::Bell)?;
        let (end, rings) = WorkerEnd::create(epoch, ours)?;
        let duplicate =
            |descriptor: BorrowedFd<'_>| descriptor.try_clone_to_owned().map_err(AttachError::Bell);
        let Some(region) = self.counters.region() else { return Err(AttachError::Stuck(0)) };
        let descriptors = WorkerDescriptors {
            rings,
            counters: duplicate(region.as_fd())?,
            bell: duplicate(self.wakers.bell.as_fd())?,
        };
        self.send(Order::Attach(Box::new(end))).ok_or(AttachError::Stuck(0))?;
        Ok((theirs, vec![descriptors]))
    }

    /// Lets the workers forget their channels: the control plane is gone.
    pub fn detach(&self) {
        // A worker that does not take its mail has its channel until the next attach; nobody reads it.
        let _ = self.send(Order::Detach);
    }

    /// Accepts nothing new, closes sessions as they become idle, and ends with the last of them, at the latest `within`
    /// this time; then [`has_ended`](Self::has_ended). False if the worker does not take its mail.
    pub fn drain(&self, within: Duration) -> bool {
        let within = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
        let sent = self.send(Order::Drain(monotonic().saturating_add(within))).is_some();
        for listener in &self.listeners {
            // For every process that has it: connections are refused at once instead of waiting in vain.
            let _ = listener.shutdown(std::net::Shutdown::Both);
        }
        sent
    }

    fn send(&self, order: Order) -> Option<()> {
        self.orders.send_timeout(order, ANSWER_TIMEOUT).ok()?;
        self.wakers.waker.wake();
        Some(())
    }

    fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> Option<T> {
        let (answer, answered) = crossbeam::channel::bounded(1);
        self.send(order(answer))?;
        answered.recv_timeout(ANSWER_TIMEOUT).ok()
    }

    /// Closes every session and ends the worker.
    pub fn stop(mut self) -> Result<(), DriverError> {
        self.halt()
    }

    /// Whether the worker has ended by itself: a drain is over, or its driver failed.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    fn halt(&mut self) -> Result<(), DriverError> {
        // Release: pairs with the worker's load after it is woken.
        self.stop.store(true, Ordering::Release);
        self.wakers.waker.wake();
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(outcome)) => outcome,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.thread.is_some()
            && let Err(error) = self.halt()
        {
            tracing::error!(%error, "the worker had failed");
        }
    }
}

/// What a worker's thread takes along, whatever its driver.
struct Launch {
    listeners: usize,
    /// Its threads end with the worker.
    lane: LaneThreads,
    settings: Settings,
    counters: Arc<CounterBlock>,
    stop: Arc<AtomicBool>,
    mail: Receiver<Order>,
    ready: mpsc::SyncSender<Result<Wakers, DriverError>>,
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

impl Launch {
    /// Says that the worker is ready, or why not, and runs it to its end.
    fn run<D: Driver + std::fmt::Debug>(
        self,
        driver: Result<D, DriverError>,
        wakers: impl FnOnce(&D) -> Wakers,
    ) -> Result<(), DriverError> {
        let Self { listeners, lane, settings, counters, stop, mail, ready } = self;
        let driver = match driver {
            Ok(driver) => driver,
            Err(error) => {
                let _ = ready.send(Err(error));
                return Ok(());
            }
        };
        tracing::debug!(?driver, "worker starts");
        let wakers = wakers(&driver);
        let port = lane.port(wakers.waker.clone());
        let mut worker = Worker::new(driver, listeners, settings, port, counters, stop);
        worker.set_mail(mail);
        let _ = ready.send(Ok(wakers));
        worker.run()
    }
}

/// The sockets that were passed, or new ones for the addresses; with what they are bound to.
fn open_listeners(
    passed: Vec<Socket>,
    listen_on: &[SocketAddr],
) -> Result<(Vec<Socket>, Vec<SocketAddr>), StartError> {
    if passed.is_empty() {
        return Ok(listen_on
            .iter()
            .map(|&address| listen(address))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .unzip());
    }
    let bound = |socket: &Socket| {
        if !socket.is_listener()? {
            return Err(io::Error::other("it does not listen"));
        }
        socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("it is no internet socket"))
    };
    let addresses = passed.iter().map(bound).collect::<io::Result<_>>().map_err(StartError::Adopted)?;
    Ok((passed, addresses))
}

/// A listening socket whose connections inherit what a session wants (Linux copies these options on accept, which saves
/// five calls per connection).
fn listen(address: SocketAddr) -> Result<(Socket, SocketAddr), StartError> {
    let bind = || -> io::Result<(Socket, SocketAddr)> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_notsent_lowat(limits::NOTSENT_LOWAT_LEN)?;
        socket.set_tcp_user_timeout(Some(Duration::from_millis(u64::from(limits::USER_TIMEOUT_MS))))?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(60)))?;
        socket.bind(&address.into())?;
        socket.listen(limits::LISTEN_BACKLOG)?;
        let bound = socket.local_addr()?.as_socket().unwrap_or(address);
        Ok((socket, bound))
    };
    bind().map_err(|error| {
        let cure = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "Another program has it: stop that one, or listen elsewhere with --listen."
            }
            io::ErrorKind::AddrNotAvailable => {
                "No interface of this machine has this address: choose one that `ip address` shows."
            }
            io::ErrorKind::PermissionDenied => {
                "Ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher port."
            }
            _ => "Choose another address with --listen.",
        };
        StartError::Listen { address, error, cure }
    })
}

/// Half of the machine's memory, at most [`limits::BUFFER_MEMORY_LEN`].
fn default_buffer_memory_len() -> usize {
    let kib = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<usize>().ok()
    });
    let half = kib.map_or(limits::BUFFER_MEMORY_LEN, |kib| kib * 1024 / 2);
    half.clamp(limits::BUFFER_MEMORY_LEN_MIN, limits::BUFFER_MEMORY_LEN)
}

/// Keeps this thread on one core; a core that does not exist is reported and ignored.
fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(core, %error, "cannot pin the worker to this core; it runs unpinned");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::entropy::OsEntropy;

    fn config(driver: DriverChoice) -> ServerConfig {
        let secret_key = SecretKey::generate(&mut OsEntropy);
        let mut config = ServerConfig::new(secret_key, vec!["127.0.0.1:0".parse().unwrap()]);
        config.driver = driver;
        config
    }

    /// The ways io_uring is forbidden: errno of ring creation, `kernel.io_uring_disabled`, words of reason and cure.
    const REFUSALS: [(i32, &str, &str, &str); 4] = [
        (libc::EPERM, "0", "seccomp profile", "Allow io_uring_setup, io_uring_enter and io_uring_register"),
        (libc::EPERM, "2", "kernel.io_uring_disabled is 2", "sysctl -w kernel.io_uring_disabled=0"),
        (libc::EPERM, "1", "kernel.io_uring_disabled is 1", "CAP_SYS_ADMIN"),
        (libc::ENOSYS, "", "built without it", "CONFIG_IO_URING"),
    ];

    #[test]
    fn a_demand_for_io_uring_that_is_forbidden_names_reason_and_cure() {
        for (errno, switch, reason, cure) in REFUSALS {
            let probe = || Err(ring::refusal(&io::Error::from_raw_os_error(errno), switch));
            let error = Server::start_probed(config(DriverChoice::Uring), probe).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, StartError::Driver(DriverError::Unavailable { .. })), "{text}");
            assert!(text.contains(reason) && text.contains(cure), "{text}");
            assert!(text.contains("--driver poll"), "{text}");
        }
    }

    #[test]
    fn without_a_demand_the_poll_driver_runs_where_io_uring_is_forbidden() {
        for (errno, switch, reason, cure) in REFUSALS {
            let probe = || Err(ring::refusal(&io::Error::from_raw_os_error(errno), switch));
            let warnings = Warnings::default();
            let server = tracing::subscriber::with_default(warnings.clone(), || {
                Server::start_probed(config(DriverChoice::Auto), probe).unwrap()
            });
            assert_eq!(server.driver_name(), "poll");
            server.stop().unwrap();
            let warnings = warnings.0.lock().unwrap();
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].contains(reason) && warnings[0].contains(cure), "{warnings:?}");
        }
    }

    /// Collects warnings of this thread as text.
    #[derive(Clone, Default)]
    struct Warnings(Arc<Mutex<Vec<String>>>);

    impl tracing::Subscriber for Warnings {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() <= tracing::Level::WARN
        }

        fn event(&self, event: &tracing::Event<'_>) {
            let mut text = String::new();
            event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                text.push_str(&format!("{field}={value:?} "));
            });
            self.0.lock().unwrap().push(text);
        }

        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }

        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
}
