//! The wish that a search for a data plane be given up, told to a task and to the thread that blocks for it.
//!
//! In: one call, from wherever. Out: a question that costs nothing for who looks every few milliseconds, and a wait for who
//! sleeps. Used by the task in [`super`], by `obtain`, and by whoever starts a supervision.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// See the module's head. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_cancelled: AtomicBool,
    changed: Notify,
}

impl Cancel {
    /// Gives it up.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::Release);
        // Kept for the one who waits a moment later.
        self.0.changed.notify_one();
    }

    /// Whether it is to be given up.
    pub(super) fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::Acquire)
    }

    /// Waits until it is to be given up. For one task.
    pub(super) async fn cancelled(&self) {
        while !self.is_cancelled() {
            self.0.changed.notified().await;
        }
    }
}
