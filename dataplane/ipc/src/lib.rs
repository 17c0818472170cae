//! The memory that joins Ringwire's two processes: what the data plane and the control plane say to each other without
//! a system call.
//!
//! Per worker there are three regions and two doorbells. The data plane makes them at each attach, with a new epoch, and
//! passes the descriptors; the old set is dropped unread.
//!
//! ```text
//!   control plane                                                     worker of the data plane
//!   Command ──► message ──► ring::Producer ──► CommandRing ──► ring::Consumer ──► message ──► Order
//!                              └── doorbell (only when the worker announced sleep) ──►┘
//!   Event   ◄── message ◄── ring::Consumer ◄── EventRing   ◄── ring::Producer ◄── message ◄── Event
//!   totals  ◄── counters::CounterReader   ◄── CounterPage ◄── counters::CounterWriter (read only for everybody else)
//! ```
//!
//! Each side treats the other as hostile. Shared words are atomics, so nothing the other process writes is a data race;
//! positions are compared with private copies; a record is copied out first and validated after. What the other
//! side did wrong is a [`Fault`], upon which the handle stops reading for good.
//!
//! A region belongs to one pair of processes of the same build: its header carries [`LAYOUT_VERSION`], a hash of the
//! layout and the epoch. How two processes come to share one is said over a Unix socket, module `socket`, whose protocol
//! every build speaks. Nothing of the data plane waits for the control plane.
//!
//! With the feature `loom` the atomics are loom's, with `shuttle` shuttle's. Then a ring no longer has the layout of shared memory, so
//! `region`, `counters` and `channel` are absent and what remains is what the models in `tests/loom.rs` (every short schedule)
//! and `tests/shuttle.rs` (many long ones) exercise.
#![deny(unsafe_code)]

#[cfg(not(any(feature = "loom", feature = "shuttle")))]
pub mod channel;
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
pub mod counters;
pub mod doorbell;
pub mod message;
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
pub mod region;
pub mod ring;
pub mod socket;
mod sync;

use message::RecordError;

/// Version of everything in shared memory. Raised with any change of a layout, a record or the meaning of a word.
pub const LAYOUT_VERSION: u32 = 4;

/// Orders to a worker: 256 records of 64 bytes. Operators send few; a full ring is an answer they see.
pub type CommandRing = ring::Ring<256, { message::COMMAND_WORDS }>;

/// Events of a worker: 4,096 records of 128 bytes, half a mebibyte. A burst of as many sessions between two looks of
/// the control plane fits; beyond that events are dropped and counted, and a resync marker follows.
pub type EventRing = ring::Ring<4096, { message::EVENT_WORDS }>;

/// What the other process did that an honest one of the same build never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its position ran ahead by more than the capacity, or went backwards.
    #[error("the other side's position is {found}, expected {least} to {most}")]
    Position {
        /// What it published.
        found: u64,
        /// The least an honest side could have published.
        least: u64,
        /// The most an honest side could have published.
        most: u64,
    },
    /// A record that nobody encodes.
    #[error("bad record: {0}")]
    Record(#[from] RecordError),
}

/// What both processes must agree on before they share memory: every layout and the records in it.
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
pub const LAYOUT_HASH: u64 = layout_hash(&[
    LAYOUT_VERSION as usize,
    (CommandRing::LAYOUT_HASH >> 32) as usize,
    (CommandRing::LAYOUT_HASH & 0xffff_ffff) as usize,
    (EventRing::LAYOUT_HASH >> 32) as usize,
    (EventRing::LAYOUT_HASH & 0xffff_ffff) as usize,
    (counters::CounterPage::LAYOUT_HASH >> 32) as usize,
    (counters::CounterPage::LAYOUT_HASH & 0xffff_ffff) as usize,
]);

/// FNV-1a over the numbers that make up a layout: differs when any of them does.
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
const fn layout_hash(numbers: &[usize]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut number = 0;
    while number < numbers.len() {
        let bytes = (numbers[number] as u64).to_le_bytes();
        let mut byte = 0;
        while byte < bytes.len() {
            hash = (hash ^ bytes[byte] as u64).wrapping_mul(0x0100_0000_01b3);
            byte += 1;
        }
        number += 1;
    }
    hash
}
