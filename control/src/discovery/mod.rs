//! The dmsg discovery, both roles: whoever asks one, and the one that `ringwire run` can host (services 2).
//!
//! ```text
//!   registration ─┐
//!   dmsg client  ─┼─► client ──HTTP──► a discovery
//!   doctor       ─┘
//! ```

mod client;
mod error;

pub use client::DiscoveryClient;
pub use error::{DiscoveryError, Refusal};
