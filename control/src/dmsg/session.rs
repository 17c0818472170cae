//! One session with one server, over which a client dials and listens.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ringwire_proto::identity::{Address, PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use ringwire_proto::object::Generation;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::address::ServerAddress;
use super::connect::connect;
use super::dial;
use super::driver::Driver;
use super::error::{ConnectError, DialError, Disconnected, ListenError, PingError};
use super::limits::{CLOSE_LIMIT, DIAL_LIMIT, FIRST_FRAME_PAUSE, LISTENER_QUEUE, PING_LIMIT};
use super::listener::Listener;
use super::mux::Mux;
use super::shared::{Handle, Shared};
use super::stream::Stream;

/// How to connect. [`SessionConfig::new`] has the values that work with every server.
#[derive(Clone)]
pub struct SessionConfig {
    /// Who this client is. A second client with the same key replaces this one at the server (dmsg-wire 11.1).
    pub secret_key: SecretKey,
    /// The server.
    pub server: ServerAddress,
    /// The post-quantum part, of the session and of every stream (dmsg-wire 2.8).
    pub hybrid: Hybrid,
    /// Which form of request is written; both are understood by all (dmsg-wire 8.4).
    pub generation: Generation,
    /// Time of a whole dial.
    pub dial_limit: Duration,
    /// Streams that may wait in one listener.
    pub listener_queue: usize,
    /// Pause before the first multiplexer frame, for servers that drop a session otherwise (dmsg-wire 4.4). Zero is
    /// right for servers known to be newer.
    pub first_frame_pause: Duration,
    /// Writes one multiplexer frame per Noise frame of at most 4096 bytes, as the Go client does, instead of frames
    /// of up to 64 KiB.
    pub go_frames: bool,
    /// Quirk, for measurements only: writes each multiplexer header and each payload with a system call of its own, as
    /// the Go client does. A server then sees many small segments, at several times the cost.
    pub go_writes: bool,
}

impl SessionConfig {
    /// Connects as `secret_key` to `server`, everything else as usual.
    pub fn new(secret_key: SecretKey, server: ServerAddress) -> Self {
        Self {
            secret_key,
            server,
            hybrid: Hybrid::Offer,
            generation: Generation::Go2024,
            dial_limit: DIAL_LIMIT,
            listener_queue: LISTENER_QUEUE,
            first_frame_pause: FIRST_FRAME_PAUSE,
            go_frames: false,
            go_writes: false,
        }
    }
}

/// A session with a server. Clones share it. It closes when the last clone, listener and stream is dropped, or with
/// [`Session::close`].
#[derive(Clone)]
pub struct Session {
    handle: Handle,
    generation: Generation,
    listener_queue: usize,
}

impl Session {
    /// Connects: TCP within 10 s, the handshake within 5 s (dmsg-wire 4.1). Must be called inside a tokio runtime, which
    /// then runs the connection's task.
    ///
    /// # Errors
    /// See [`ConnectError`]. A server that refuses a session closes it; that shows at the first use.
    pub async fn connect(config: SessionConfig) -> Result<Self, ConnectError> {
        let SessionConfig { secret_key, server, hybrid, generation, dial_limit, .. } = config;
        let (socket, outcome) = connect(&secret_key, &server, hybrid).await?;
        let shared = Arc::new(Shared::new(secret_key, &outcome, hybrid, dial_limit, config.go_frames));
        let handle = Handle::new(Arc::clone(&shared));
        tokio::spawn(Driver::new(socket, shared, config.first_frame_pause, config.go_writes).run());
        Ok(Self { handle, generation, listener_queue: config.listener_queue.max(1) })
    }

    /// This client's key.
    pub fn public_key(&self) -> PublicKey {
        self.handle.local
    }

    /// The server's key, proven by the handshake.
    pub fn server_key(&self) -> PublicKey {
        self.handle.server
    }

    /// Whether the session with the server is post-quantum (dmsg-wire 2.8). Streams have keys of their own.
    pub fn is_hybrid(&self) -> bool {
        self.handle.session_hybrid
    }

    /// Opens a stream to a port of another client (dmsg-wire 10.2), which must be connected to the same server.
    /// Dropping the future gives everything back.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self, destination: Address) -> Result<Stream, DialError> {
        let limit = self.handle.dial_limit;
        timeout(limit, dial::dial(&self.handle, destination, self.generation))
            .await
            .unwrap_or(Err(DialError::TimedOut { destination, limit }))
    }

    /// Takes streams that others dial to `port` (dmsg-wire 10.3).
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn listen(&self, port: u16) -> Result<Listener, ListenError> {
        if port == 0 {
            return Err(ListenError::PortZero);
        }
        let (sender, streams) = mpsc::channel(self.listener_queue);
        if !self.handle.insert_listener(port, sender) {
            return Err(ListenError::PortInUse { port });
        }
        // Made before the check, so that its drop gives the port back; checked after filing, so that an end of the
        // connection in between is not missed.
        let listener = Listener::new(streams, port, self.handle.clone());
        self.handle.check()?;
        Ok(listener)
    }

    /// Asks the server for a sign of life (dmsg-wire 10.5) and returns the time it took.
    ///
    /// # Errors
    /// See [`PingError`]. Servers of 2024 never answer.
    pub async fn ping(&self) -> Result<Duration, PingError> {
        let server = self.handle.server;
        timeout(PING_LIMIT, dial::ping(&self.handle))
            .await
            .unwrap_or(Err(PingError::TimedOut { server, limit: PING_LIMIT }))
    }

    /// Waits until the connection is over and says why.
    pub async fn closed(&self) -> Disconnected {
        self.handle.wait_until_ended().await
    }

    /// Delivers what is queued, for at most 2 s, and closes. Streams and listeners of this connection end.
    pub async fn close(&self) {
        self.handle.with(Mux::close);
        // The driver keeps the same limit; a little more lets it win.
        timeout(CLOSE_LIMIT + Duration::from_millis(200), self.handle.wait_until_ended()).await.ok();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Session")
            .field("public_key", &self.handle.local)
            .field("server", &self.handle.server)
            .finish_non_exhaustive()
    }
}
