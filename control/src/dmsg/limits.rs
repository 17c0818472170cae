//! Every bound of the dmsg client: value, unit, reason, and what happens when it is hit.

use std::time::Duration;

use super::client::{Backoff, PostTimes};

/// Bytes one read of the socket may bring. Large, because a wake-up costs more than copying this much.
pub(super) const READ_BYTES: usize = 256 * 1024;

/// Bytes gathered for one write to the socket.
pub(super) const WRITE_BYTES: usize = 256 * 1024;

/// Bytes one stream may send before the next one gets its turn: a write of 64 KiB with its seals leaves as one frame.
pub(super) const STREAM_TURN_BYTES: usize = 72 * 1024;

/// Bytes moved between buffers under one hold of the connection's lock; then others get a chance.
pub(super) const LOCKED_BYTES: usize = STREAM_TURN_BYTES + 1024;

/// Sealed bytes that wait in one stream. Full: the writer waits until half of it is gone.
pub(super) const STREAM_QUEUE_BYTES: usize = 256 * 1024;

/// Plaintext sealed in one go by one write call. A longer write is taken in parts.
pub(super) const WRITE_PLAINTEXT_BYTES: usize = 64 * 1024;

/// Ciphertext opened in one go by one read call.
pub(super) const READ_CIPHERTEXT_BYTES: usize = 64 * 1024;

/// Spare buffers that one stream keeps for its next writes.
pub(super) const STREAM_SPARES: usize = 2;

/// Capacity above which an emptied buffer is given back instead of kept.
pub(super) const BUFFER_KEEP_BYTES: usize = 512 * 1024;

/// Streams opened by the server whose request is being handled. More: the next one is reset.
pub(super) const INBOUND_HANDSHAKES: usize = 256;

/// Dials in progress on one connection, below the 256 unanswered streams that a server of 2024 takes
/// (dmsg-wire 5.1). More: the next dial waits within its own time.
pub(super) const DIALS: usize = 192;

/// Turns of the connection's task before it lets others run.
pub(super) const TURNS_BEFORE_YIELD: u32 = 32;

/// Streams that wait in one listener by default (dmsg-wire 10.3: 256 since 2026). Full: the next one is refused.
pub(super) const LISTENER_QUEUE: usize = 256;

/// TCP connect (dmsg-wire 4.1).
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Session handshake (dmsg-wire 3).
pub(super) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// A whole dial (dmsg-wire 10.2: 20 s in 2024, so that even the slowest peer has its time).
pub(super) const DIAL_LIMIT: Duration = Duration::from_secs(20);

/// The answer to a ping (dmsg-wire 10.5).
pub(super) const PING_LIMIT: Duration = Duration::from_secs(18);

/// What a closing connection may take to deliver what is queued.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Pause between the last handshake message and the first multiplexer frame: older servers drop a session whose
/// first frame arrives in one read with that message (dmsg-wire 4.4).
pub(super) const FIRST_FRAME_PAUSE: Duration = Duration::from_millis(40);

/// That pause at most, after a server closed several sessions in a row before it sent a byte: each doubles it.
pub(super) const FIRST_FRAME_PAUSE_MAX: Duration = Duration::from_millis(1280);

/// How long a new session waits for its server's first byte where one is wanted before it is used. Multiplexers answer pings at once.
pub(super) const SETTLE_LIMIT: Duration = Duration::from_secs(3);

/// How often such a session is made anew when the server closes it before that byte.
pub(super) const SETTLE_TRIES: u32 = 6;

/// Time between pings of the session multiplexer (dmsg-wire 5.1).
pub(super) const KEEPALIVE: Duration = Duration::from_secs(30);

/// Silence after such a ping that ends the session (dmsg-wire 5.6).
pub(super) const KEEPALIVE_LIMIT: Duration = Duration::from_secs(10);

/// One attempt of a client's dial over one session (control-plane 6).
pub(super) const ATTEMPT_LIMIT: Duration = Duration::from_secs(5);

/// Sessions of one client, far above what a discovery's dozen servers need.
pub(super) const CLIENT_SESSIONS_MAX: usize = 64;

/// Pauses before a server that failed is tried again (dmsg-wire 15: within about 15 s).
pub(super) const REDIAL: Backoff =
    Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(15) };

/// A session that lasted this long was no failure (dmsg-wire 11.6 has the same for links of servers).
pub(super) const LASTING_SESSION: Duration = Duration::from_secs(30);

/// Time between pings of a session (control-plane 4.3: 20 s instead of 60 s bounds the detection).
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Time between looks for idle sessions (dmsg-wire 15).
pub(super) const IDLE_INTERVAL: Duration = Duration::from_secs(60);

/// Time between lists of servers while nothing is missing.
pub(super) const LIST_INTERVAL: Duration = Duration::from_secs(300);

/// When a client posts its entry (dmsg-wire 12.5).
pub(super) const POST_TIMES: PostTimes = PostTimes {
    refresh: Duration::from_secs(300),
    settle: Duration::from_secs(1),
    request_limit: Duration::from_secs(5),
    retry: Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) },
};

/// What closing a client may take: its requests of the discovery, then the sessions.
pub(super) const CLIENT_CLOSE_LIMIT: Duration = Duration::from_secs(15);
