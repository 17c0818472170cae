//! Ringwire's control plane as a library: supervision of the data plane, the services beside it, the dmsg client, the
//! state directory, the benchmark of a bridge.
//!
//! ```text
//!   main ──► cli ──► config, state (key, server.json)
//!             │
//!             ├────► supervise ──► the data plane's process                      ringwire run
//!             │         ▲
//!             │         ├── admin     ◄── status, show, close, set, drain, stop
//!             ├────► services ──► discovery, registration, metrics ──► http      ringwire run
//!             └────► bench ──► dmsg ──► a server                                 ringwire bench bridge
//! ```
#![forbid(unsafe_code)]
// They panic when their output takes nothing, such as a full disk: `cli::output` says so instead.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod admin;
pub mod bench;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod dmsg;
pub mod doctor;
pub mod http;
pub mod metrics;
pub mod presence;
pub mod registration;
pub mod services;
pub mod state;
pub mod supervise;
pub mod throttle;
pub mod validation;
