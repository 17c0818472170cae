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

mod bridge;
pub mod budget;
mod server;
mod session;

pub mod aead;
pub mod counters;
pub mod driver;
pub mod entropy;
pub mod freeze;
pub mod limits;
pub mod mail;
pub mod queue;
pub mod ring;
pub mod slab;
pub mod wait;
pub mod wheel;
pub mod worker;

pub use server::{Server, ServerConfig, StartError};
pub use session::CloseReason;
