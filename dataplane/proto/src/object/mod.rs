//! Session objects: what the two ends of a mux stream say first (dmsg-wire 7, 9, 10).
//!
//! An object is `signature (65) || gob`, sealed for the session around it by [`crate::noise::sealed`] and put on the
//! stream behind a two-byte length by [`crate::frame`]. In: signed bytes of a peer. Out: [`StreamRequest`],
//! [`StreamResponse`] or [`PeerAnnounce`] after the checks of dmsg-wire 9, in their order. The data plane
//! opens what arrives with [`open_request`], [`open_response`] and [`open_announce`]; clients build theirs
//! with `encode` and [`sign_object`].
//!
//! A server forwards the bytes it received and never an object it encoded again: signature and hash cover the
//! bytes.

mod announce;
mod error;
mod prefix;
mod request;
mod response;
mod signed;

pub use announce::{PeerAnnounce, open_announce};
pub use error::{ErrorCode, ObjectError};
pub use request::{RawAddress, StreamRequest, open_request};
pub use response::{StreamResponse, open_response};
pub use signed::{SignedObject, object_hash, sign_object};

/// Most bytes of a sealed object: what its two-byte length can say (dmsg-wire 7).
pub const OBJECT_PACKET_MAX: usize = 65_535;

/// Most bytes of a signed object: [`OBJECT_PACKET_MAX`] less 8 of counter and 16 of tag (dmsg-wire 7).
pub const SIGNED_OBJECT_MAX: usize = OBJECT_PACKET_MAX - 24;

/// What stands in place of an object's length on a stream that is a ping, and is echoed (dmsg-wire 10.5).
pub const PING_MARKER: [u8; 2] = [0, 0];

/// Which declaration of the objects the encoder writes (dmsg-wire 8.3). Decoding takes every declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The code of 2024: no IP requests, no location.
    Go2024,
    /// The code of 2026.
    Go2026,
}
