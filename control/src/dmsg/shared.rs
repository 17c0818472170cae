//! What the tasks of one connection share: its streams, its session keys, its ports.
//!
//! Each part has its own lock, held briefly and never across an await. [`Handle`] is what users hold: when the last
//! one is gone, the driver delivers what is queued and closes.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use ringwire_dataplane::aead::AwsLcAead;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::{Hybrid, Outcome};
use ringwire_proto::object::OBJECT_PACKET_MAX;
use ringwire_proto::packet::{Opener, PacketError, Sealer, WindowReplay};
use ringwire_proto::yamux;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::error::Disconnected;
use super::limits::{DIALS, INBOUND_HANDSHAKES};
use super::mux::Mux;
use super::stream::Stream;

/// The common state of one connection.
pub(super) struct Shared {
    pub(super) secret_key: SecretKey,
    pub(super) local: PublicKey,
    pub(super) server: PublicKey,
    pub(super) hybrid: Hybrid,
    pub(super) session_hybrid: bool,
    pub(super) dial_limit: Duration,
    pub(super) dials: Semaphore,
    pub(super) inbound: Arc<Semaphore>,
    mux: Mutex<Mux>,
    sealer: Mutex<Sealer<AwsLcAead>>,
    opener: Mutex<Opener<AwsLcAead, WindowReplay>>,
    ports: Mutex<Ports>,
    ended: watch::Sender<bool>,
    alive: OnceLock<Weak<CloseOnDrop>>,
    started: Instant,
}

/// Ports of this client (dmsg-wire 10.1).
struct Ports {
    /// The last ephemeral port that was handed out.
    last: u16,
    dialled: HashSet<u16>,
    listeners: HashMap<u16, mpsc::Sender<Stream>>,
}

/// The first ephemeral port is the one after this.
const EPHEMERAL_BASE: u16 = 49152;

impl Shared {
    pub(super) fn new(
        secret_key: SecretKey,
        outcome: &Outcome,
        hybrid: Hybrid,
        dial_limit: Duration,
        go_frames: bool,
    ) -> Self {
        Self {
            local: secret_key.public_key(),
            secret_key,
            server: outcome.remote,
            hybrid,
            session_hybrid: outcome.hybrid,
            dial_limit,
            dials: Semaphore::new(DIALS),
            inbound: Arc::new(Semaphore::new(INBOUND_HANDSHAKES)),
            mux: Mutex::new(Mux::new(yamux::Config::client(), go_frames)),
            sealer: Mutex::new(Sealer::new(&outcome.send)),
            opener: Mutex::new(Opener::new(&outcome.receive)),
            ports: Mutex::new(Ports {
                last: EPHEMERAL_BASE,
                dialled: HashSet::new(),
                listeners: HashMap::new(),
            }),
            ended: watch::Sender::new(false),
            alive: OnceLock::new(),
            started: Instant::now(),
        }
    }

    /// Nanoseconds since the connection began: the clock of its multiplexer.
    pub(super) fn now_ns(&self) -> u64 {
        // 2^64 nanoseconds are 584 years.
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn instant(&self, at_ns: u64) -> Instant {
        self.started + Duration::from_nanos(at_ns)
    }

    /// The streams, for the driver, which wakes itself.
    pub(super) fn lock(&self) -> MutexGuard<'_, Mux> {
        lock(&self.mux)
    }

    /// The streams, for their owners: wakes the driver afterwards if it has work now.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut Mux) -> R) -> R {
        let mut mux = self.lock();
        let result = work(&mut mux);
        let waker = mux.driver_wake();
        drop(mux);
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }

    /// The connection is over: everybody learns why.
    pub(super) fn end(&self, reason: Disconnected) {
        let mut wakes = Vec::new();
        {
            let mut mux = self.lock();
            mux.end(reason);
            mux.take_wakes(&mut wakes);
        }
        lock(&self.ports).listeners.clear();
        for waker in wakes {
            waker.wake();
        }
        self.dials.close();
        self.ended.send_replace(true);
    }

    /// Why the connection is over; [`Disconnected::Here`] while it still closes.
    pub(super) fn disconnected(&self) -> Disconnected {
        self.lock().ended().unwrap_or(Disconnected::Here)
    }

    /// Fails when the connection is over or closing.
    pub(super) fn check(&self) -> Result<(), Disconnected> {
        let mux = self.lock();
        match mux.ended() {
            Some(reason) => Err(reason),
            None if mux.is_closing() => Err(Disconnected::Here),
            None => Ok(()),
        }
    }

    pub(super) async fn wait_until_ended(&self) -> Disconnected {
        // The sender lives in `self`, so waiting cannot fail.
        self.ended.subscribe().wait_for(|ended| *ended).await.ok();
        self.disconnected()
    }

    /// Seals a signed object for the server: `length || packet` (dmsg-wire 7). Numbers are given in the order of the
    /// calls.
    pub(super) fn seal_object(&self, signed: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 + signed.len() + ringwire_proto::packet::PACKET_OVERHEAD);
        out.extend_from_slice(&[0, 0]);
        lock(&self.sealer).seal(signed, &mut out);
        let length = out.len() - 2;
        debug_assert!(length <= OBJECT_PACKET_MAX, "objects of this client are a few kilobytes");
        out[..2].copy_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        out
    }

    /// Opens an object of the server.
    pub(super) fn open_object(&self, packet: &mut [u8]) -> Result<Vec<u8>, PacketError> {
        lock(&self.opener).open(packet).map(|signed| signed.to_vec())
    }

    /// Takes a free ephemeral port.
    pub(super) fn reserve_port(self: &Arc<Self>) -> Option<PortGuard> {
        let mut ports = lock(&self.ports);
        for _ in EPHEMERAL_BASE..=u16::MAX {
            ports.last = ports.last.checked_add(1).unwrap_or(EPHEMERAL_BASE);
            let port = ports.last;
            if !ports.listeners.contains_key(&port) && ports.dialled.insert(port) {
                return Some(PortGuard { shared: Arc::clone(self), port });
            }
        }
        None
    }

    /// Files a listener, unless the port is taken.
    pub(super) fn insert_listener(&self, port: u16, queue: mpsc::Sender<Stream>) -> bool {
        let mut ports = lock(&self.ports);
        if ports.dialled.contains(&port) || ports.listeners.contains_key(&port) {
            return false;
        }
        ports.listeners.insert(port, queue);
        true
    }

    pub(super) fn remove_listener(&self, port: u16) {
        lock(&self.ports).listeners.remove(&port);
    }

    pub(super) fn listener(&self, port: u16) -> Option<mpsc::Sender<Stream>> {
        lock(&self.ports).listeners.get(&port).cloned()
    }
}

/// Holds an ephemeral port until dropped.
pub(super) struct PortGuard {
    shared: Arc<Shared>,
    port: u16,
}

impl PortGuard {
    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PortGuard {
    fn drop(&mut self) {
        lock(&self.shared.ports).dialled.remove(&self.port);
    }
}

/// What clients, listeners and streams hold. The connection closes when the last one is dropped.
#[derive(Clone)]
pub(super) struct Handle {
    shared: Arc<Shared>,
    _alive: Arc<CloseOnDrop>,
}

struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.with(Mux::close);
    }
}

impl Handle {
    /// The first handle of a connection.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let alive = Arc::new(CloseOnDrop(Arc::clone(&shared)));
        shared.alive.get_or_init(|| Arc::downgrade(&alive));
        Self { shared, _alive: alive }
    }

    /// One more handle, while there is one.
    pub(super) fn join(shared: &Arc<Shared>) -> Option<Self> {
        let alive = shared.alive.get()?.upgrade()?;
        Some(Self { shared: Arc::clone(shared), _alive: alive })
    }
}

impl Deref for Handle {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// A lock whose holder panicked still holds whole values: nothing in here unwinds halfway through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
