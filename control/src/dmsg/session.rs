//! One session with one server, over which a client dials and listens.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ringwire_proto::identity::{Address, PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use ringwire_proto::object::Generation;
use tokio::time::timeout;

use super::address::ServerAddress;
use super::connect::{Connected, connect};
use super::dial;
use super::driver::Driver;
use super::error::{ConnectError, DialError, Disconnected, ListenError, PingError};
use super::limits::{
    CLOSE_LIMIT, DIAL_LIMIT, FIRST_FRAME_PAUSE, FIRST_FRAME_PAUSE_MAX, KEEPALIVE, KEEPALIVE_LIMIT,
    LISTENER_QUEUE, PING_LIMIT, SETTLE_LIMIT, SETTLE_TRIES,
};
use super::listener::{Listener, Owner};
use super::mux::Mux;
use super::ports::Ports;
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
    /// Pause before the first multiplexer frame, for servers that drop a session otherwise (dmsg-wire 4.4): at least this, and a round
    /// trip as the handshake saw it. Zero is none, and right for servers known to be newer.
    pub first_frame_pause: Duration,
    /// Time between pings of the multiplexer (dmsg-wire 5.6).
    pub keepalive: Duration,
    /// Silence after such a ping that ends the session.
    pub keepalive_limit: Duration,
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
            keepalive: KEEPALIVE,
            keepalive_limit: KEEPALIVE_LIMIT,
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
        Self::connect_with(config, None).await
    }

    /// As [`Self::connect`], and the server has sent its first byte, or was silent for so long that it may be taken at its word. One that
    /// closes the connection before is given more time, up to six times.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect_settled(mut config: SessionConfig) -> Result<Self, ConnectError> {
        let mut tries = 0;
        loop {
            let session = Self::connect(config.clone()).await?;
            let reason = match timeout(SETTLE_LIMIT, session.handle.wait_until_heard()).await {
                Ok(Ok(())) | Err(_) => return Ok(session),
                Ok(Err(reason)) => reason,
            };
            tries += 1;
            if tries > SETTLE_TRIES || !matches!(reason, Disconnected::Unheard) {
                return Err(ConnectError::Ended { server: config.server, reason });
            }
            config.first_frame_pause = longer_pause(config.first_frame_pause, 1);
            tokio::time::sleep(config.first_frame_pause).await;
        }
    }

    /// As [`Self::connect`], with the ports of a client that has several sessions.
    pub(super) async fn connect_with(
        config: SessionConfig,
        ports: Option<Arc<Ports>>,
    ) -> Result<Self, ConnectError> {
        let Connected { socket, outcome, round_trip } =
            connect(&config.secret_key, &config.server, config.hybrid).await?;
        let shared = Arc::new(Shared::new(&outcome, &config, ports));
        let handle = Handle::new(Arc::clone(&shared));
        let pause = config.first_frame_pause;
        // A server that took long to answer takes as long to read the end of the handshake.
        let pause = if pause.is_zero() { pause } else { pause.max(round_trip) };
        tokio::spawn(Driver::new(socket, shared, pause, config.go_writes).run());
        Ok(Self { handle, generation: config.generation, listener_queue: config.listener_queue })
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
        let (port, streams) = self.handle.ports.listen(port, self.listener_queue)?;
        // Made before the check, so that its drop gives the port back; checked after filing, so that an end of the
        // connection in between is not missed.
        let listener = Listener::new(streams, port, Owner::Session(self.handle.clone()));
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

    /// Asks the server for the address this session comes from, as it sees it (dmsg-wire 10.6).
    ///
    /// # Errors
    /// See [`PingError`]. Servers of 2024 never answer.
    pub async fn observed_ip(&self) -> Result<IpAddr, PingError> {
        let server = self.handle.server;
        timeout(PING_LIMIT, dial::observed_ip(&self.handle))
            .await
            .unwrap_or(Err(PingError::TimedOut { server, limit: PING_LIMIT }))
    }

    /// Waits until the connection is over and says why.
    pub async fn closed(&self) -> Disconnected {
        self.handle.wait_until_ended().await
    }

    /// Waits until the connection is over, without keeping it.
    pub(super) fn ended(&self) -> impl Future<Output = Disconnected> + Send + use<> {
        let shared = Arc::clone(&self.handle);
        async move { shared.wait_until_ended().await }
    }

    /// Streams that somebody holds, those included that are being opened.
    pub fn open_streams(&self) -> usize {
        self.handle.with(|mux| mux.owned_streams())
    }

    /// Changes whenever bytes of the server arrive.
    pub(super) fn heard_mark(&self) -> u64 {
        self.handle.heard_ns()
    }

    /// Starts to close, as [`Self::close`] does, and does not wait.
    pub(super) fn begin_close(&self) {
        self.handle.with(Mux::close);
    }

    /// Delivers what is queued, for at most 2 s, and closes. Streams and listeners of this connection end.
    pub async fn close(&self) {
        self.handle.with(Mux::close);
        // The driver keeps the same limit; a little more lets it win.
        timeout(CLOSE_LIMIT + Duration::from_millis(200), self.handle.wait_until_ended()).await.ok();
    }
}

/// The pause before the first frame to a server that closed so many sessions in a row before it sent anything.
pub(super) fn longer_pause(pause: Duration, unheard: u32) -> Duration {
    let pause = if unheard > 0 { pause.max(FIRST_FRAME_PAUSE) } else { pause };
    pause.max(pause.saturating_mul(1 << unheard.min(16)).min(FIRST_FRAME_PAUSE_MAX))
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
