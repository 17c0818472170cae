//! What the tasks of one connection share: its streams, its session keys.
//!
//! Each part has its own lock, held briefly and never across an await. [`Handle`] is what users hold: when the last
//! one is gone, the driver delivers what is queued and closes.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use ringwire_dataplane::aead::AwsLcAead;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::sealed::{Opener, SealedError, Sealer, WindowReplay};
use ringwire_proto::noise::{Hybrid, Outcome};
use ringwire_proto::object::OBJECT_PACKET_MAX;
use ringwire_proto::yamux;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::error::Disconnected;
use super::limits::{DIALS, INBOUND_HANDSHAKES};
use super::mux::Mux;
use super::ports::Ports;
use super::session::SessionConfig;

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
    pub(super) ports: Arc<Ports>,
    /// The ports are this session's alone and end with it.
    owns_ports: bool,
    /// When bytes of the server last arrived, on the clock of [`Self::now_ns`].
    heard_ns: AtomicU64,
    /// The first ones have.
    heard: watch::Sender<bool>,
    ended: watch::Sender<bool>,
    alive: OnceLock<Weak<CloseOnDrop>>,
    started: Instant,
}

impl Shared {
    pub(super) fn new(outcome: &Outcome, config: &SessionConfig, ports: Option<Arc<Ports>>) -> Self {
        let mut mux = yamux::Config::client();
        mux.keepalive_ns = Some(nanoseconds(config.keepalive));
        mux.reply_timeout_ns = nanoseconds(config.keepalive_limit);
        Self {
            local: config.secret_key.public_key(),
            secret_key: config.secret_key.clone(),
            server: outcome.remote,
            hybrid: config.hybrid,
            session_hybrid: outcome.hybrid,
            dial_limit: config.dial_limit,
            dials: Semaphore::new(DIALS),
            inbound: Arc::new(Semaphore::new(INBOUND_HANDSHAKES)),
            mux: Mutex::new(Mux::new(mux, config.go_frames)),
            sealer: Mutex::new(Sealer::new(&outcome.send)),
            opener: Mutex::new(Opener::new(&outcome.receive)),
            owns_ports: ports.is_none(),
            ports: ports.unwrap_or_else(|| Arc::new(Ports::new())),
            heard_ns: AtomicU64::new(0),
            heard: watch::Sender::new(false),
            ended: watch::Sender::new(false),
            alive: OnceLock::new(),
            started: Instant::now(),
        }
    }

    /// Nanoseconds since the connection began: the clock of its multiplexer.
    pub(super) fn now_ns(&self) -> u64 {
        nanoseconds(self.started.elapsed())
    }

    /// Bytes of the server arrived.
    pub(super) fn note_heard(&self, now_ns: u64) {
        self.heard_ns.store(now_ns, Ordering::Relaxed);
        if !self.was_heard() {
            self.heard.send_replace(true);
        }
    }

    /// Whether a byte of the server has arrived.
    pub(super) fn was_heard(&self) -> bool {
        *self.heard.borrow()
    }

    /// Waits for the server's first byte, which it is asked for; the connection may be over before.
    pub(super) async fn wait_until_heard(&self) -> Result<(), Disconnected> {
        let now_ns = self.now_ns();
        self.with(|mux| mux.ping(now_ns));
        let (mut heard, mut ended) = (self.heard.subscribe(), self.ended.subscribe());
        tokio::select! {
            // Their senders live in `self`, so waiting cannot fail.
            _ = heard.wait_for(|heard| *heard) => Ok(()),
            _ = ended.wait_for(|ended| *ended) => if self.was_heard() { Ok(()) } else { Err(self.disconnected()) },
        }
    }

    /// When bytes of the server last arrived; the beginning when none did.
    pub(super) fn heard_ns(&self) -> u64 {
        self.heard_ns.load(Ordering::Relaxed)
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
        if self.owns_ports {
            self.ports.close();
        }
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
        let mut out = Vec::with_capacity(2 + signed.len() + ringwire_proto::noise::sealed::SEALED_OVERHEAD);
        out.extend_from_slice(&[0, 0]);
        lock(&self.sealer).seal(signed, &mut out);
        let length = out.len() - 2;
        debug_assert!(length <= OBJECT_PACKET_MAX, "objects of this client are a few kilobytes");
        out[..2].copy_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        out
    }

    /// Opens an object of the server.
    pub(super) fn open_object(&self, packet: &mut [u8]) -> Result<Vec<u8>, SealedError> {
        lock(&self.opener).open(packet).map(|signed| signed.to_vec())
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

fn nanoseconds(duration: Duration) -> u64 {
    // 2^64 nanoseconds are 584 years.
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
