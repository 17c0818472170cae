//! The protocol on the data plane's Unix socket: how a control plane finds it, starts it, attaches, drains and stops it.
//!
//! Every later build must be able to speak it, so it has nothing to do with the layout of shared memory: frames with a
//! length, and in them messages of tagged fields (the encoding of Protocol Buffers), where an unknown field is skipped and a
//! missing one has its default. Descriptors travel beside a frame.
//!
//! ```text
//!   frame:  0 length of the message (u32, little-endian)   4 descriptors beside it (u32)   8 message
//! ```
//!
//! A conversation is one request, one reply, and again; [`Request::Attach`] is answered with one more frame per worker, and
//! [`Request::Report`] with a frame per session and bridge. The first request is HELLO. The connection that attached is the
//! lifeline: when it ends, the data plane takes the control plane for dead.
//!
//! [`Connection`] is the wire for both sides; [`Client`] is the control plane's side with a method per request. All calls
//! block, with a deadline each.

mod client;
mod connection;
mod message;

pub use client::{Attachment, ChannelDescriptors, Client, ClientError, Dump};
pub use connection::{Connection, ConnectionError, DESCRIPTORS_MAX, FRAME_LEN_MAX};
pub use message::{
    Address, Attach, Attached, Bridge, Channel, Drain, Empty, Hello, Listeners, Memory, Refusal, Refused,
    Reply, Request, Session, Start, Started, Status, Stop,
};

/// Version of this protocol. Raised only when an old peer could misunderstand a new one; new fields do not raise it.
pub const PROTOCOL: u32 = 1;
