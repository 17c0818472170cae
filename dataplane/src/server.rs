//! A running data plane inside this process: listeners, worker threads, and how they stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::choice::{self, DriverChoice, DriverKind, Selection};
use crate::counters::{CounterBlock, Counters};
use crate::driver::{Driver, DriverError};
use crate::entropy::OsEntropy;
use crate::limits;
use crate::mail::{Order, Report, mailbox};
use crate::poll::PollDriver;
use crate::ring::{self, Features, UringDriver};
use crate::waker::Waker;
use crate::worker::{Identity, Settings, Worker};

/// What a data plane needs to start.
#[derive(Debug)]
pub struct ServerConfig {
    /// The server's key.
    pub secret_key: SecretKey,
    /// Addresses to accept sessions on; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
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
}

impl ServerConfig {
    /// The defaults, with this key, on these addresses.
    pub fn new(secret_key: SecretKey, listen: Vec<SocketAddr>) -> Self {
        Self {
            secret_key,
            listen,
            hybrid: Hybrid::Offer,
            buffer_memory_len: default_buffer_memory_len(),
            company_us_max: Settings::default().company_us_max,
            core: None,
            driver: DriverChoice::Auto,
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
    waker: Waker,
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
        if config.listen.is_empty() {
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
        let mut listeners = Vec::with_capacity(config.listen.len());
        let mut addresses = Vec::with_capacity(config.listen.len());
        for &address in &config.listen {
            let (listener, bound) = listen(address)?;
            listeners.push(listener);
            addresses.push(bound);
        }
        let public_key = config.secret_key.public_key();
        let counters = Arc::new(CounterBlock::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, started) = mpsc::sync_channel(1);
        let (orders, mail) = mailbox();
        let thread = {
            let (counters, stop) = (Arc::clone(&counters), Arc::clone(&stop));
            let launch = Launch {
                listeners: listeners.len(),
                identity: Arc::new(Identity { secret_key: config.secret_key, public_key }),
                settings: Settings {
                    hybrid: config.hybrid,
                    company_us_max: config.company_us_max,
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
                        launch.run(UringDriver::new(listeners, memory_len), UringDriver::waker)
                    }
                    DriverKind::Poll => launch.run(PollDriver::new(listeners, memory_len), PollDriver::waker),
                }
            };
            std::thread::Builder::new().name("worker-0".into()).spawn(body).map_err(StartError::Thread)?
        };
        let waker = match started.recv() {
            Ok(Ok(waker)) => waker,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(StartError::Thread(io::Error::other("it ended before it was ready"))),
        };
        Ok(Self { addresses, public_key, driver: kind, counters, stop, orders, waker, thread: Some(thread) })
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

    fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> Option<T> {
        let (answer, answered) = crossbeam::channel::bounded(1);
        self.orders.send_timeout(order(answer), ANSWER_TIMEOUT).ok()?;
        self.waker.wake();
        answered.recv_timeout(ANSWER_TIMEOUT).ok()
    }

    /// Closes every session and ends the worker.
    pub fn stop(mut self) -> Result<(), DriverError> {
        self.halt()
    }

    /// Whether the worker has ended by itself: its driver failed.
    pub fn has_failed(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    fn halt(&mut self) -> Result<(), DriverError> {
        // Release: pairs with the worker's load after it is woken.
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
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
    identity: Arc<Identity>,
    settings: Settings,
    counters: Arc<CounterBlock>,
    stop: Arc<AtomicBool>,
    mail: Receiver<Order>,
    ready: mpsc::SyncSender<Result<Waker, DriverError>>,
}

impl Launch {
    /// Says that the worker is ready, or why not, and runs it to its end.
    fn run<D: Driver + std::fmt::Debug>(
        self,
        driver: Result<D, DriverError>,
        waker: impl FnOnce(&D) -> Waker,
    ) -> Result<(), DriverError> {
        let Self { listeners, identity, settings, counters, stop, mail, ready } = self;
        let driver = match driver {
            Ok(driver) => driver,
            Err(error) => {
                let _ = ready.send(Err(error));
                return Ok(());
            }
        };
        tracing::debug!(?driver, "worker starts");
        let waker = waker(&driver);
        let entropy = Box::new(OsEntropy);
        let mut worker = Worker::new(driver, listeners, identity, settings, entropy, counters, stop);
        worker.set_mail(mail);
        let _ = ready.send(Ok(waker));
        worker.run()
    }
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
