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
mod error;
mod host;
pub mod journal;
mod registered;
mod service;
mod store;

pub use client::DiscoveryClient;
pub use counters::DiscoveryCounters;
pub use error::{DiscoveryError, Refusal};
pub use host::{DiscoveryHost, HostError};
pub use service::{DiscoveryService, DiscoverySettings, UnixClock, deployment_of, unix_now_ns};
pub use store::{Changes, ENTRY_BYTES_MAX, MemoryStore, Put, PutError, Record, Store, StoreLimits};
