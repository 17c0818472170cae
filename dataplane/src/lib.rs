//! Ringwire's data plane: one worker per core joins dmsg sessions with bridges.
//!
//! Modules in the order in which data flows:
//!
//! ```text
//!  kernel ──► ring ──► session ──► proto::yamux ──► bridge
//!             (pages)  (handshake,  (headers and        │ queue · slab · wheel below all of them
//!                       cutting)     credit)            ▼
//!  kernel ◄── ring ◄──────────── gather ◄──────────── queues
//! ```
//!
//! Read second (after `docs/ARCHITECTURE.md`): [`worker`], one core's turn.
#![deny(unsafe_code)]

mod addresses;
mod bridge;
mod channel;
mod choice;
mod clock;
mod coalesce;
mod descriptors;
mod half_open;
mod holders;
mod long_stashes;
mod server;
mod session;
mod waker;
mod warn;

pub mod aead;
pub mod budget;
pub mod counters;
pub mod driver;
pub mod entropy;
pub mod fair;
pub mod families;
pub mod freeze;
pub mod inspect;
pub mod lane;
pub mod limits;
pub mod mail;
pub mod memory;
pub mod planted;
pub mod poll;
pub mod prefix;
pub mod process;
pub mod proxy;
pub mod queue;
pub mod ring;
pub mod slab;
pub mod team;
pub mod wait;
pub mod wheel;
pub mod worker;

pub use choice::{DriverChoice, UnknownDriver};
pub use server::{
    AttachError, Held, Server, ServerConfig, StartError, StopError, Stuck, WorkerDescriptors, Workers, hold,
};
pub use session::{CloseReason, Share};
pub use waker::{WakeEvent, Waker};
