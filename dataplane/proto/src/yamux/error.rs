//! What can go wrong in a yamux session, by name: faults of the peer, refused opens, and silence.

use super::{GO_AWAY_PROTOCOL_ERROR, Header};

/// A header that no yamux version 0 peer sends. The connection is closed without a go-away (dmsg-wire 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The version byte is not 0.
    #[error("yamux version {0} instead of 0")]
    Version(u8),
    /// The type byte is above 3.
    #[error("unknown yamux frame type {0}")]
    Kind(u8),
}

/// Why the peer's frames end the session. Send [`Violation::go_away`], if any, then close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A header that could not be read.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// SYN on stream 0, the id of the session itself.
    #[error("SYN on stream 0")]
    StreamZero,
    /// SYN for a stream that exists (dmsg-wire 5.3).
    #[error("SYN for stream {stream}, which is in use")]
    StreamInUse {
        /// The id.
        stream: u32,
    },
    /// A data frame longer than the credit its sender had (dmsg-wire 5.4).
    #[error("{length} bytes on stream {stream} with a credit of {credit}")]
    WindowExceeded {
        /// The stream.
        stream: u32,
        /// Declared payload bytes.
        length: u32,
        /// Credit left in bytes.
        credit: u32,
    },
    /// A second FIN of the peer on one stream (dmsg-wire 5.5).
    #[error("second FIN on stream {stream}")]
    UnexpectedFin {
        /// The stream.
        stream: u32,
    },
    /// The peer asks for answers (pings, streams that end in a reset) and does not take them: the bound of
    /// [`Config::pending_replies_max`](super::Config::pending_replies_max) was reached.
    #[error("{pending} answers wait for a peer that does not read them")]
    RepliesUnread {
        /// Answers that waited.
        pending: u32,
    },
    /// The peer sent a go-away with a code other than 0 (dmsg-wire 5.6).
    #[error("the peer went away with code {code}")]
    PeerWentAway {
        /// The code: 1 protocol error, 2 internal error, others unknown.
        code: u32,
    },
}

impl Violation {
    /// The header to send before closing: go-away 1 for a breach of stream rules (dmsg-wire 5.3-5.5), nothing for
    /// unreadable headers, a peer that does not read, and a peer that said goodbye itself.
    #[must_use]
    pub const fn go_away(&self) -> Option<Header> {
        match self {
            Self::StreamZero
            | Self::StreamInUse { .. }
            | Self::WindowExceeded { .. }
            | Self::UnexpectedFin { .. } => Some(Header::go_away(GO_AWAY_PROTOCOL_ERROR)),
            Self::Header(_) | Self::RepliesUnread { .. } | Self::PeerWentAway { .. } => None,
        }
    }
}

/// Why a stream cannot be opened now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The peer sent go-away 0: never again on this session (dmsg-wire 5.6).
    #[error("the peer takes no new streams")]
    PeerGoingAway,
    /// As many own streams as allowed wait for their ACK (dmsg-wire 5.3): later.
    #[error("{waiting} streams wait for their acknowledgement")]
    BacklogFull {
        /// Streams that wait.
        waiting: u32,
    },
    /// Every id was used once: never again on this session.
    #[error("stream ids are used up")]
    IdsExhausted,
}

/// Why a session is taken for dead: close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeadReason {
    /// A ping was not answered, and nothing else arrived either (dmsg-wire 5.6).
    #[error("ping {value} unanswered and {silent_ns} ns of silence")]
    PingUnanswered {
        /// The ping's value.
        value: u32,
        /// Time without any byte, or since the ping, whichever is shorter.
        silent_ns: u64,
    },
    /// A stream opened by us got no ACK in time (dmsg-wire 5.1, 5.3).
    #[error("stream {stream} was not acknowledged")]
    OpenUnanswered {
        /// The stream.
        stream: u32,
    },
}
