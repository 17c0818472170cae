//! A network emulator in virtual time, as a library of its own.
//!
//! In: bytes or datagrams, the time, and a configuration with a seed. Out: what arrived, and when something happens
//! next. No wall clock, no threads, no I/O, no randomness but the seed's: the same calls give the same answers, bit for
//! bit. Called by the simulator of the data plane (`ringwire-sim`) and by tests of transports.
//!
//! ```text
//!   Duplex ── two Streams ──┐
//!                           ├── Line (rate, delay, jitter) · Loss · Random
//!   Datagrams ──────────────┘
//! ```
//!
//! [`Stream`] is one direction of a TCP-like connection: ordered, nothing lost, loss shows as delay, a full buffer
//! blocks the writer. [`Duplex`] joins two of them to a connection with its ends (close, reset). [`Datagrams`] carries
//! packets that may be lost, doubled and reordered.
//!
//! All of them work alike: after each input call [`Stream::advance`] (or `poll`) at [`Stream::next_event`], never later.
#![forbid(unsafe_code)]

mod datagram;
mod duplex;
mod line;
mod loss;
mod random;
mod stream;

pub use datagram::{DatagramConfig, Datagrams, Full, QueuePolicy};
pub use duplex::{ConnectionLost, Duplex, ReadOutcome, Side};
pub use line::{Jitter, Line, LineConfig, Rate};
pub use loss::{Loss, LossConfig};
pub use random::Random;
pub use stream::{Stream, StreamConfig};

/// Virtual time in nanoseconds.
pub type Nanos = u64;

/// A second of virtual time.
pub const SECOND_NS: Nanos = 1_000_000_000;
