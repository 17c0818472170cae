//! What Skywire peers say on the wire: bytes and state machines only.
//!
//! No clock, no socket, no thread, no randomness of its own: time, bytes and entropy come in as arguments, decisions
//! and bytes go out. The crate is `no_std`, so none of that can creep in, and it forbids unsafe code.
//!
//! ```text
//!  bytes ──► frame ──► noise (handshake) ──► noise::sealed ──► object ──► gob
//!    │                                                             │
//!    └─────► yamux / smux (in the clear, spec dmsg-wire 4-6) ◄─────┘      identity · entropy · aead below all of them
//! ```
//!
//! The specification that doc comments cite as "dmsg-wire n" is the project's description of the dmsg wire protocol;
//! the vectors it is checked against are in `tests/vectors`.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod aead;
pub mod certificate;
pub mod entropy;
pub mod entry;
pub mod frame;
pub mod gob;
pub mod identity;
pub mod noise;
pub mod object;
pub mod smux;
pub mod yamux;
