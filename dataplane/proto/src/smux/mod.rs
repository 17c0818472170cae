//! smux, the multiplexer of clients configured so (dmsg-wire 4.5, 6): versions 1 and 2, frames and state machine.
//!
//! Built as [`yamux`](crate::yamux): a [`Cutter`] cuts the received bytes, a [`Session`] decides on headers and credit,
//! and payload never passes through it; a [`Connection`] adds buffers for clients and tests. The differences of the wire are its own: no acknowledgement, no reset, no
//! ping answer, and in version 1 no flow control but to stop reading.

mod config;
mod connection;
mod cutter;
mod error;
mod header;
mod session;

pub use config::{Config, Role};
pub use connection::{CloseReason, Connection, ConnectionEvent};
pub use cutter::{Cutter, Piece};
pub use error::{DeadReason, HeaderError, OpenError, StreamFault, Violation};
pub use header::{Command, Header, Update, Version};
pub use session::{Control, Incoming, Payload, Session, Stream};

/// Bytes of every header (dmsg-wire 6).
pub const HEADER_LEN: usize = 8;

/// Payload bytes of an update frame (dmsg-wire 6).
pub const UPDATE_LEN: usize = 8;

/// Bytes a version 2 sender may have in flight on a stream before the first update (dmsg-wire 6).
pub const INITIAL_WINDOW: u32 = 262_144;
