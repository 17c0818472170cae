//! yamux, the multiplexer of a session: many streams over one byte stream (dmsg-wire 5).
//!
//! Two layers, used by different callers:
//!
//! * [`Session`] decides on headers and credit. Payload bytes never pass through it: the data plane cuts what it
//!   receives with a [`Cutter`], asks the session what each header means, and forwards the payload where it lies.
//! * [`Connection`] adds buffers for clients and tests: bytes in, bytes out, `read` and `write` per stream.
//!
//! ```text
//!   bytes ──► Cutter ──► Header ──► Session::handle_header ──► Incoming (deliver, discard, finished, reset ...)
//!                    └─► Payload (a range of the input)
//!   Session::poll_control ──► Header ──► bytes      Session::poll_event ──► Event
//! ```
//!
//! Time comes in as nanoseconds of any clock that only goes forward.

mod config;
mod connection;
mod cutter;
mod error;
mod header;
mod session;
mod stream;

pub use config::{Config, Role};
pub use connection::{
    CloseReason, Connection, ConnectionEvent, FRAME_PAYLOAD_MAX, SEND_QUEUE_MAX, StreamError,
};
pub use cutter::{Cutter, Piece};
pub use error::{DeadReason, HeaderError, OpenError, Violation};
pub use header::{Flags, Header, Kind};
pub use session::{Event, Incoming, Payload, Session, Timeout};
pub use stream::Stream;

/// Bytes of every header (dmsg-wire 5.2).
pub const HEADER_LEN: usize = 12;

/// Credit of each direction of a new stream in bytes, and the whole window of a Go peer (dmsg-wire 5.4).
pub const INITIAL_WINDOW: u32 = 262_144;

/// Consumed bytes that are worth a window update of their own: half the window (dmsg-wire 5.4).
pub const UPDATE_THRESHOLD: u32 = INITIAL_WINDOW / 2;

/// Go-away code: the sender takes no new streams, existing ones go on (dmsg-wire 5.2, 5.6).
pub const GO_AWAY_NORMAL: u32 = 0;
/// Go-away code: the receiver broke the protocol, the connection closes (dmsg-wire 5.2).
pub const GO_AWAY_PROTOCOL_ERROR: u32 = 1;
/// Go-away code: the sender failed, the connection closes (dmsg-wire 5.2).
pub const GO_AWAY_INTERNAL_ERROR: u32 = 2;
