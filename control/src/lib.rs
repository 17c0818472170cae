//! Ringwire's control plane as a library: the dmsg client, the state directory, the benchmark of a bridge.
//!
//! ```text
//!   main ──► cli ──► state (key, server.json)
//!             │
//!             ├────► ringwire_dataplane::Server        ringwire run
//!             └────► bench ──► dmsg ──► a server       ringwire bench bridge
//! ```
#![forbid(unsafe_code)]

pub mod admin;
pub mod bench;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod dmsg;
pub mod doctor;
pub mod http;
pub mod metrics;
pub mod registration;
pub mod state;
pub mod supervise;
pub mod throttle;
