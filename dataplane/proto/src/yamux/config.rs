//! Bounds and timers of a yamux session, with the values of both generations of Go peers (dmsg-wire 5.1).

/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;

/// Which end of the connection this is: it decides the parity of the ids we open (dmsg-wire 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Role {
    /// Connected to the other side; opens odd ids from 1.
    Client,
    /// Was connected to; opens even ids from 2.
    Server,
}

/// Bounds and timers of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Config {
    /// Parity of own ids.
    pub role: Role,
    /// Streams opened by the peer that may exist at a time. When full: the next SYN is answered with RST.
    pub streams_max: u32,
    /// Streams opened by the peer that may wait for [`accept`](super::Session::accept). When full: RST.
    pub accept_backlog: u32,
    /// Own streams that may wait for the peer's ACK. When full: [`OpenError::BacklogFull`](super::OpenError).
    pub open_backlog: u32,
    /// Time between pings; none: no pings.
    pub keepalive_ns: Option<u64>,
    /// Silence after a ping that ends the session.
    pub reply_timeout_ns: u64,
    /// Time without ACK on an own stream that ends the session.
    pub open_timeout_ns: u64,
    /// Time after our FIN without the peer's that resets the stream.
    pub close_timeout_ns: u64,
    /// Ping answers, and likewise resets, that may wait to be sent. When full: the session ends.
    pub pending_replies_max: u32,
}

impl Config {
    /// A server's session: 2048 streams of a client at a time (dmsg-wire 11.2).
    #[must_use]
    pub const fn server() -> Self {
        Self {
            role: Role::Server,
            streams_max: 2048,
            // What a client of 2026 may have unacknowledged.
            accept_backlog: 512,
            // What a client of 2024 lets wait before it resets.
            open_backlog: 256,
            keepalive_ns: Some(30 * SECOND_NS),
            reply_timeout_ns: 10 * SECOND_NS,
            // The longer of the two generations: a late ACK of one stream would cost every other stream of the session.
            open_timeout_ns: 75 * SECOND_NS,
            // The shorter one: clients of 2024 never close their side of a refused dial (dmsg-wire 16).
            close_timeout_ns: 30 * SECOND_NS,
            // Twice the 512 SYNs a peer may have unanswered.
            pending_replies_max: 1024,
        }
    }

    /// A client's session: as [`Config::server`], with odd ids and fewer inbound streams.
    #[must_use]
    pub const fn client() -> Self {
        let mut config = Self::server();
        config.role = Role::Client;
        config.accept_backlog = 256;
        config
    }
}
