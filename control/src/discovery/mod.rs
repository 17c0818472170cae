//! The dmsg discovery, both roles: whoever asks one, and the one that `ringwire run` can host (services 2).
//!
//! ```text
//!   registration ─┐
//!   dmsg client  ─┼─► client ──HTTP──► service ──► store ──► journal (STATE/discovery.json)
//!   doctor       ─┘                    (ours, or another discovery)
//! ```

mod class;
mod client;
mod counters;
mod crowd;
mod error;
mod host;
pub mod journal;
mod listing;
mod registered;
mod service;
mod source;
mod store;
mod withdrawal;

pub use client::DiscoveryClient;
pub use counters::DiscoveryCounters;
pub use crowd::KindLimits;
pub use error::{DiscoveryError, Refusal};
pub use host::{DiscoveryHost, HostError};
pub use service::{DiscoveryService, DiscoverySettings, UnixClock, deployment_of, unix_now_ns};
pub use source::{Sender, Source};
pub use store::{
    Changes, Claim, ENTRY_BYTES_MAX, MemoryStore, Put, PutError, Record, Store, StoreLimits, Stored,
    Withdrawn,
};
pub use withdrawal::withdrawal;
