//! A client of many servers: it stays connected, announces where it is, and reaches others by their key alone.
//!
//! ```text
//!   Client ── dial ──► dialing ──► memory (entries, routes that failed)
//!     │                   │ obtains
//!   keeper ── connects ─► table of Sessions ──► Listener, through the ports they share
//!     │  └──► candidates (servers, jittered pauses)
//!     └─────► registration ──► Directory (a discovery, or servers known beforehand)
//! ```
//!
//! One client per key in a process ([`StartError::KeyInUse`]); the newest session with a server wins.

mod backoff;
mod dialing;
mod directory;
mod error;
mod inner;
mod keeper;
mod memory;
mod one_per_key;
mod over_http;
mod registration;
mod table;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ringwire_proto::identity::{Address, PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use ringwire_proto::object::Generation;
use tokio::time::{Instant, timeout};

pub use backoff::Backoff;
pub use directory::{Answer, Directory, DirectoryError, KnownServers};
pub use error::{Cause, NotReady, ReachError, SessionError, StartError};
pub use inner::{Awaited, Obstacle};
pub use registration::PostTimes;

use self::inner::{Inner, Status, Stop};
use self::keeper::Keeper;
use self::one_per_key::KeyLease;
use self::table::Pulse;
use super::address::ServerAddress;
use super::error::{Disconnected, ListenError};
use super::limits::{
    ATTEMPT_LIMIT, CLIENT_CLOSE_LIMIT, CLIENT_SESSIONS_MAX, DIAL_LIMIT, FIRST_FRAME_PAUSE, IDLE_INTERVAL,
    KEEPALIVE, KEEPALIVE_LIMIT, LASTING_SESSION, LIST_INTERVAL, LISTENER_QUEUE, PING_INTERVAL, POST_TIMES,
    REDIAL,
};
use super::listener::{Listener, Owner};
use super::session::{Session, SessionConfig};
use super::stream::Stream;

/// How a client works. [`ClientConfig::new`] has the values that suit every network.
#[derive(Clone)]
pub struct ClientConfig {
    /// Who this client is.
    pub secret_key: SecretKey,
    /// Where entries come from and go to.
    pub directory: Arc<dyn Directory>,
    /// Sessions to keep (dmsg-wire 15: 1). More of them survive the end of a server without a gap.
    pub sessions_min: usize,
    /// Sessions at most, those included that are made for a dial. Full: a dial makes no more.
    pub sessions_max: usize,
    /// The post-quantum part, of sessions and of streams (dmsg-wire 2.8).
    pub hybrid: Hybrid,
    /// Which form of request is written; both are understood by all (dmsg-wire 8.4).
    pub generation: Generation,
    /// Time of a whole dial, all attempts together.
    pub dial_limit: Duration,
    /// Time of one attempt over one session.
    pub attempt_limit: Duration,
    /// Streams that may wait in one listener.
    pub listener_queue: usize,
    /// See [`SessionConfig::first_frame_pause`].
    pub first_frame_pause: Duration,
    /// See [`SessionConfig::keepalive`].
    pub keepalive: Duration,
    /// See [`SessionConfig::keepalive_limit`].
    pub keepalive_limit: Duration,
    /// Pauses before a server that failed is tried again.
    pub redial: Backoff,
    /// A session that lasted this long was no failure when it ends.
    pub lasting: Duration,
    /// Time between pings of a session that answers them.
    pub ping_interval: Duration,
    /// Time between looks for sessions that are not needed.
    pub idle_interval: Duration,
    /// Time between lists of servers while nothing is missing.
    pub list_interval: Duration,
    /// When the entry is posted.
    pub post: PostTimes,
}

impl ClientConfig {
    /// A client of `directory` with this key, everything else as usual.
    pub fn new(secret_key: SecretKey, directory: Arc<dyn Directory>) -> Self {
        Self {
            secret_key,
            directory,
            sessions_min: 1,
            sessions_max: CLIENT_SESSIONS_MAX,
            hybrid: Hybrid::Offer,
            generation: Generation::Go2024,
            dial_limit: DIAL_LIMIT,
            attempt_limit: ATTEMPT_LIMIT,
            listener_queue: LISTENER_QUEUE,
            first_frame_pause: FIRST_FRAME_PAUSE,
            keepalive: KEEPALIVE,
            keepalive_limit: KEEPALIVE_LIMIT,
            redial: REDIAL,
            lasting: LASTING_SESSION,
            ping_interval: PING_INTERVAL,
            idle_interval: IDLE_INTERVAL,
            list_interval: LIST_INTERVAL,
            post: POST_TIMES,
        }
    }

    /// What the sessions have in common; the server is filled in for each.
    fn session_with(&self, server: ServerAddress) -> SessionConfig {
        SessionConfig {
            hybrid: self.hybrid,
            generation: self.generation,
            dial_limit: self.attempt_limit,
            listener_queue: self.listener_queue,
            first_frame_pause: self.first_frame_pause,
            keepalive: self.keepalive,
            keepalive_limit: self.keepalive_limit,
            ..SessionConfig::new(self.secret_key.clone(), server)
        }
    }
}

/// A dmsg client. Clones share it. [`Client::close`] ends it in order; when the last clone and listener is dropped
/// without that, its sessions close but its entry stays at the discovery until it expires.
#[derive(Clone)]
pub struct Client {
    handle: ClientHandle,
}

/// A session of a client, as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// The server.
    pub server: ServerAddress,
    /// The last answer to a ping took so long; `None` before the first, and at servers of 2024.
    pub latency: Option<Duration>,
    /// How long the session has lasted.
    pub age: Duration,
    /// Streams open on it.
    pub streams: usize,
    /// Whether it is post-quantum (dmsg-wire 2.8).
    pub hybrid: bool,
}

impl Client {
    /// Starts a client; it connects by itself from now on. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: ClientConfig) -> Result<Self, StartError> {
        let key = config.secret_key.public_key();
        let lease = KeyLease::take(key).ok_or(StartError::KeyInUse(key))?;
        let inner = Arc::new(Inner::new(config, lease));
        tokio::spawn(Keeper::new(Arc::clone(&inner)).run());
        Ok(Self { handle: ClientHandle(Arc::new(StopOnDrop(inner))) })
    }

    fn inner(&self) -> &Arc<Inner> {
        self.handle.inner()
    }

    /// This client's key.
    pub fn public_key(&self) -> PublicKey {
        self.inner().key
    }

    /// Waits until there is a session that works and the entry is posted: others can reach this client then.
    ///
    /// # Errors
    /// See [`NotReady`]; what stands in the way is in its text.
    pub async fn ready(&self, limit: Duration) -> Result<(), NotReady> {
        let mut status = self.inner().status.subscribe();
        let settled = |status: &Status| status.stop.is_some() || status.is_ready();
        let waited = timeout(limit, status.wait_for(settled)).await;
        let is_ready = waited.map(|status| status.is_ok_and(|status| status.stop.is_none()));
        match is_ready {
            Ok(true) => Ok(()),
            Ok(false) => Err(NotReady::Closed),
            Err(_) => {
                let trouble = status.borrow().trouble.clone().map(|(_, text)| text);
                let trouble = trouble.unwrap_or_else(|| "no server and no discovery answered yet".to_owned());
                Err(NotReady::TimedOut { limit, trouble })
            }
        }
    }

    /// What keeps this client from being [`ready`](Self::ready), as far as it is known by now; `None` when nothing does.
    pub fn obstacle(&self) -> Option<Obstacle> {
        self.inner().status.borrow().obstacle()
    }

    /// Opens a stream to a port of another client, over whichever server reaches it (dmsg-wire 15). Dropping the
    /// future gives everything back.
    ///
    /// # Errors
    /// See [`ReachError`].
    pub async fn dial(&self, destination: Address) -> Result<Stream, ReachError> {
        dialing::dial(self.inner(), destination).await
    }

    /// Takes streams that others dial to `port`, over every session there is and will be.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn listen(&self, port: u16) -> Result<Listener, ListenError> {
        let inner = self.inner();
        let (port, streams) = inner.ports.listen(port, inner.config.listener_queue)?;
        // Made before the check, so that its drop gives the port back.
        let listener = Listener::new(streams, port, Owner::Client(self.handle.clone()));
        if inner.table().is_closed() {
            return Err(ListenError::Disconnected(Disconnected::Here));
        }
        Ok(listener)
    }

    /// The session with a server: the one there is, else a new one.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub async fn session(&self, server: PublicKey) -> Result<Session, SessionError> {
        self.inner().session_with(server).await
    }

    /// Whether a key is a server's, as the directory knows it.
    ///
    /// # Errors
    /// [`SessionError::NotFound`], or that the directory did not answer.
    pub async fn is_server(&self, key: PublicKey) -> Result<bool, SessionError> {
        match self.inner().locate(key).await {
            Ok(_) => Ok(true),
            Err(SessionError::NotServer { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The sessions at this moment, the fastest first.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        let now = Instant::now();
        let table = self.inner().table();
        let seats = table.by_latency();
        let info = |seat: &&table::Seat| SessionInfo {
            server: seat.server.clone(),
            latency: match seat.pulse {
                Pulse::Answers(latency) => Some(latency),
                Pulse::Unknown | Pulse::Mute => None,
            },
            age: now.duration_since(seat.since),
            streams: seat.session.open_streams(),
            hybrid: seat.session.is_hybrid(),
        };
        seats.iter().map(info).collect()
    }

    /// Takes the entry away, delivers what is queued, and closes all sessions: within seconds, whatever the discovery
    /// does. Listeners and streams end.
    pub async fn close(&self) {
        let mut status = self.inner().status.subscribe();
        self.inner().stop(Stop::InOrder);
        timeout(CLIENT_CLOSE_LIMIT, status.wait_for(|status| status.stopped)).await.ok();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").field("public_key", &self.public_key()).finish_non_exhaustive()
    }
}

/// What clients and listeners hold. The client stops when the last one is dropped.
#[derive(Clone)]
pub(super) struct ClientHandle(Arc<StopOnDrop>);

struct StopOnDrop(Arc<Inner>);

impl ClientHandle {
    pub(super) fn key(&self) -> PublicKey {
        self.inner().key
    }

    /// Why a listener of this client has ended: only [`Client::close`] ends one.
    pub(super) fn disconnected(&self) -> Disconnected {
        debug_assert!(self.inner().table().is_closed(), "listeners outlive sessions");
        Disconnected::Here
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.0.0
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop(Stop::AtOnce);
    }
}
