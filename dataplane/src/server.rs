//! A running data plane inside this process: listeners, worker threads, and how they stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::Sender;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::counters::{CounterBlock, Counters};
use crate::driver::DriverError;
use crate::entropy::OsEntropy;
use crate::limits;
use crate::mail::{Order, Report, mailbox};
use crate::ring::{UringDriver, Waker};
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
    counters: Arc<CounterBlock>,
    stop: Arc<AtomicBool>,
    orders: Sender<Order>,
    waker: Waker,
    thread: Option<JoinHandle<Result<(), DriverError>>>,
}

impl Server {
    /// Binds the listeners and starts the worker; returns when it accepts.
    pub fn start(config: ServerConfig) -> Result<Self, StartError> {
        if config.listen.is_empty() {
            return Err(StartError::NoAddress);
        }
        if config.buffer_memory_len < limits::BUFFER_MEMORY_LEN_MIN {
            let least = limits::BUFFER_MEMORY_LEN_MIN;
            return Err(StartError::BufferMemory { given: config.buffer_memory_len, least });
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
            let identity = Arc::new(Identity { secret_key: config.secret_key, public_key });
            let settings = Settings {
                hybrid: config.hybrid,
                company_us_max: config.company_us_max,
                ..Settings::default()
            };
            let (memory_len, core) = (config.buffer_memory_len, config.core);
            let body = move || {
                if let Some(core) = core {
                    pin(core);
                }
                let count = listeners.len();
                // The ring has a single issuer: it is made on the thread that uses it.
                let driver = UringDriver::new(listeners, memory_len);
                let (driver, waker) = match driver {
                    Ok(driver) => {
                        let waker = driver.waker();
                        (driver, waker)
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return Ok(());
                    }
                };
                tracing::debug!(features = ?driver.features(), "worker starts");
                let entropy = Box::new(OsEntropy);
                let mut worker = Worker::new(driver, count, identity, settings, entropy, counters, stop);
                worker.set_mail(mail);
                let _ = ready.send(Ok(waker));
                worker.run()
            };
            std::thread::Builder::new().name("worker-0".into()).spawn(body).map_err(StartError::Thread)?
        };
        let waker = match started.recv() {
            Ok(Ok(waker)) => waker,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(StartError::Thread(io::Error::other("it ended before it was ready"))),
        };
        Ok(Self { addresses, public_key, counters, stop, orders, waker, thread: Some(thread) })
    }

    /// The addresses it listens on, ports resolved.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What clients know it by.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
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
