//! The one place where atomics come from: the standard library's, or loom's or shuttle's when the models run. Every other
//! file of the package imports them from here. Of the two models loom is the stronger one and wins when both are asked for.

#[cfg(feature = "loom")]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(all(feature = "shuttle", not(feature = "loom")))]
pub(crate) use shuttle::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Stands for exclusive use of a slot: lets loom see an access that the ring's positions do not order, even though the
/// words themselves are atomics. Without loom it takes no room and does nothing.
#[derive(Debug)]
pub(crate) struct Witness(#[cfg(feature = "loom")] loom::cell::UnsafeCell<()>);

// SAFETY: needed because loom's cell is not `Sync`, like the one it stands for. It holds nothing; finding concurrent use
// is its purpose, and loom runs one thread at a time.
#[cfg(feature = "loom")]
#[allow(unsafe_code, reason = "only in models")]
unsafe impl Sync for Witness {}

impl Witness {
    pub(crate) fn new() -> Self {
        Self(
            #[cfg(feature = "loom")]
            loom::cell::UnsafeCell::new(()),
        )
    }

    /// The slot is about to be filled.
    pub(crate) fn write(&self) {
        #[cfg(feature = "loom")]
        self.0.with_mut(|_| ());
    }

    /// The slot has been copied.
    pub(crate) fn read(&self) {
        #[cfg(feature = "loom")]
        self.0.with(|_| ());
    }
}
