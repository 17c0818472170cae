//! Measurements: against peers in the same run (`cargo xtask bench relay`), of sessions and streams by themselves
//! (`bench sessions`, module [`sessions`]), in instructions (`bench micro`, module [`micro`]), and under attack
//! (`cargo xtask flood`, module [`flood`]).
//!
//! Modules of `bench relay` in the order in which a run goes:
//!
//! ```text
//!  command ──► workload, measure ──► relay::child ──► (process) relay::{ringwire, references}           core 0
//!                   │                                     ▲                │
//!                   ├──► link ──► raw_session             │ frames         │ frames
//!                   │      │                              │                ▼
//!                   ├──► generator: senders ──────────────┘         generator: sinks                    core 1
//!                   ├──► (process) ping ◄───────────────────────────────────────────►                   core 1
//!                   ▼
//!                report ◄── statistics
//! ```
//!
//! Every comparison is paired: the same frames over the same number of connections, interleaved in one run on one
//! machine. Stored times are never a gate; stored instruction counts are. A row in which a byte was lost or a relay printed a warning is invalid,
//! and so is a saturating row whose relay had time left.

pub mod command;
pub mod cpu;
pub mod flood;
pub mod frames;
pub mod generator;
pub mod link;
pub mod measure;
pub mod micro;
pub mod ping;
pub mod raw_session;
pub mod relay;
pub mod report;
pub mod sessions;
pub mod statistics;
pub mod workload;
