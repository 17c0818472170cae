//! The deterministic simulator: the data plane's own worker in virtual time, with model clients, faults and an oracle.
//!
//! ```text
//!   seed ──► scenario ──► plan ──► run ──► report (hash, failure, trace)
//!                                   │
//!              Worker<SimDriver> ───┤ the worker of `ringwire_dataplane`, unchanged
//!              SimDriver ───────────┤ the kernel's side: sockets, pages, completions
//!              World ───────────────┤ virtual clock, event heap, links of `ringwire_netem`
//!              Peer ────────────────┤ clients on `ringwire_proto`
//!              Ledger ──────────────┘ the oracle
//! ```
//!
//! Nothing here reads a clock, and no number comes from anywhere but the seed: the same seed gives the same events, and
//! the hash over all of them says so. Called by the binary `ringwire-sim` (`cargo xtask sim`) and by the tests.
#![forbid(unsafe_code)]

pub mod driver;
pub mod ledger;
pub mod log;
pub mod peer;
pub mod plan;
pub mod run;
pub mod scenario;
mod several;
pub mod steady;
pub mod world;

pub use run::{Report, run_plan, run_seed};
