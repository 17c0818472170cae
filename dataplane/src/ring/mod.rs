//! The kernel side of the data plane, and the only module of the package with unsafe code.
//!
//! [`Pool`] is the buffer memory, `loans` what it borrows of other workers; [`UringDriver`] moves bytes with io_uring. `probe` tells at start whether io_uring can be
//! used here, and what to change when it cannot; `op` holds one constructor per ring operation; `buffers` is the ring of
//! pages lent to the kernel.
#![allow(unsafe_code, reason = "io_uring and the memory it writes to are reached through raw addresses")]

mod buffers;
mod loans;
mod op;
mod pool;
mod probe;
mod region;
mod taken;
mod uring;

pub use loans::Lender;
pub use pool::{Filled, PAGES_PER_FILL_MAX, Pool, Span};
#[cfg(test)]
pub(crate) use probe::refusal;
pub use probe::{Features, probe};
pub(crate) use taken::{hold_back, taken};
pub use uring::UringDriver;
