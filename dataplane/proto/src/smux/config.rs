//! Bounds and timers of an smux session, with the values of dmsg (dmsg-wire 6).

use super::Version;

/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;

/// Which end of the connection this is: it decides the ids we open (dmsg-wire 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Role {
    /// Connected to the other side; opens 3, 5, 7 and on.
    Client,
    /// Was connected to; opens 2, 4, 6 and on.
    Server,
}

/// Bounds and timers of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Config {
    /// The version byte of every frame, both ways.
    pub version: Version,
    /// Which ids we open.
    pub role: Role,
    /// Payload bytes of one frame that we send, at most.
    pub frame_max: u16,
    /// Unread bytes of all streams together above which the connection is not read.
    pub receive_buffer_max: u32,
    /// Window that a version 2 receiver announces for each stream; an update is due after half of it.
    pub stream_buffer: u32,
    /// Streams of the peer that may wait for [`accept`](super::Session::accept). When full: the connection is not read.
    pub accept_backlog: u32,
    /// Streams that may exist at a time. When full: the peer's next SYN ends the session, for smux cannot refuse.
    pub streams_max: u32,
    /// Time between our NOP frames; none: no NOP, and silence is not watched.
    pub keepalive_ns: Option<u64>,
    /// Time without any byte that ends the session.
    pub silence_timeout_ns: u64,
    /// FINs of streams that [`reset`](super::Session::reset) ended that may wait to be sent. When full: the session ends.
    pub pending_finishes_max: u32,
}

impl Config {
    /// A server's session with the values of dmsg.
    #[must_use]
    pub const fn server(version: Version) -> Self {
        Self {
            version,
            role: Role::Server,
            frame_max: 32_768,
            receive_buffer_max: 1_048_576,
            stream_buffer: 65_536,
            accept_backlog: 1024,
            // Twice what dmsg serves of one session (dmsg-wire 11.2): streams beyond that are finished, and some linger.
            streams_max: 4096,
            keepalive_ns: Some(10 * SECOND_NS),
            silence_timeout_ns: 30 * SECOND_NS,
            pending_finishes_max: 1024,
        }
    }

    /// A client's session with the values of dmsg.
    #[must_use]
    pub const fn client(version: Version) -> Self {
        let mut config = Self::server(version);
        config.role = Role::Client;
        config
    }
}
