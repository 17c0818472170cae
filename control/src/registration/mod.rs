//! Keeping an own entry in discoveries (dmsg-wire 12.4, 12.5, control-plane 5).
//!
//! In: what is to be advertised, as often as it changes. Out: requests to each discovery, one a minute while nothing
//! changes, and what came of them. Each discovery has a machine and a task of its own, so that one that is down delays no
//! other; nothing here is near a forwarded byte.
//!
//! ```text
//!   content (watch) ──► task ──► machine: what next? ──► task: DiscoveryClient ──HTTP──► a discovery
//!                         ▲                                        │
//!                         └────────────── machine: it went so ◄────┘
//! ```

mod address;
mod content;
mod counters;
mod machine;
mod task;

pub use address::{AddressError, advertised_address};
pub use content::{Content, available_sessions};
pub use counters::RegistrationCounters;
pub use machine::{Action, Failure, Machine, UPDATE_INTERVAL};
pub use task::{Registration, Standing, WITHDRAW_LIMIT};
