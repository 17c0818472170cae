//! What can go wrong in an smux session. Every fault ends with the connection closed; no frame tells the peer
//! (dmsg-wire 6).

use super::Command;

/// A header that no peer of this version sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The version byte is not the session's.
    #[error("smux version {0} is not the session's")]
    Version(u8),
    /// The command is unknown, or an update in version 1.
    #[error("smux command {0} is not known to this version")]
    Command(u8),
    /// The length does not fit the command: 0 for SYN, FIN and NOP, 8 for updates.
    #[error("{command:?} frame of {length} bytes")]
    Length {
        /// The command.
        command: Command,
        /// Its length in bytes.
        length: u16,
    },
}

/// Why the peer's frames end the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A header that could not be read.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// More streams than [`Config::streams_max`](super::Config::streams_max).
    #[error("{open} streams are open")]
    TooManyStreams {
        /// Streams that exist.
        open: u32,
    },
    /// The peer makes us end its streams and does not take the FINs: the bound of
    /// [`Config::pending_finishes_max`](super::Config::pending_finishes_max) was reached.
    #[error("{pending} FINs wait for a peer that does not read them")]
    FinishesUnread {
        /// FINs that waited.
        pending: u32,
    },
    /// A SYN although [`Session::may_receive`](super::Session::may_receive) was false: the caller read on.
    #[error("{waiting} streams wait to be accepted")]
    BacklogFull {
        /// Streams that wait.
        waiting: u32,
    },
}

/// Why one stream cannot go on; the session does. [`Session::reset`](super::Session::reset) it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamFault {
    /// An update tells of more bytes than were sent (dmsg-wire 6).
    #[error("the peer read {beyond} bytes on stream {stream} that were never sent")]
    ConsumedUnsent {
        /// The stream.
        stream: u32,
        /// How many bytes too many.
        beyond: u32,
    },
    /// A data frame longer than what the peer may have in flight (dmsg-wire 6; version 2).
    #[error("{length} bytes on stream {stream} with a credit of {credit}")]
    WindowExceeded {
        /// The stream.
        stream: u32,
        /// Payload bytes of the frame.
        length: u16,
        /// Credit left in bytes.
        credit: u32,
    },
}

/// Why a stream cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// As many streams as allowed exist: later.
    #[error("{open} streams are open")]
    TooManyStreams {
        /// Streams that exist.
        open: u32,
    },
    /// Every id was used once: never again on this session.
    #[error("stream ids are used up")]
    IdsExhausted,
}

/// Why a session is taken for dead: close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{silent_ns} ns of silence")]
pub struct DeadReason {
    /// Time since the last byte.
    pub silent_ns: u64,
}
