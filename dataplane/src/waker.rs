//! How other threads interrupt a worker's wait: an event counter that its driver watches.
//!
//! A driver owns the [`WakeEvent`] and hands out [`Waker`]s; it clears the event when it sees it readable and reports
//! [`Woken`](crate::driver::Completion::Woken).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{IoSliceMut, ReadWriteFlags};

/// The driver's side. See the module's head.
#[derive(Debug)]
pub struct WakeEvent(Arc<OwnedFd>);

/// Interrupts a worker's wait from another thread.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl WakeEvent {
    /// A new event, not set. Errors are the kernel's: descriptors are used up.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// A handle that sets it.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.0))
    }

    /// Unsets it. Says whether it was set.
    pub fn clear(&self) -> bool {
        // "No wait" in the call: another process may hold the event too, and
        // could have made it blocking and cleared it.
        let mut count = [0; 8];
        let mut place = [IoSliceMut::new(&mut count)];
        rustix::io::preadv2(&*self.0, &mut place, u64::MAX, ReadWriteFlags::NOWAIT).is_ok()
    }
}

impl AsFd for WakeEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Waker {
    /// Ends the current or the next wait.
    pub fn wake(&self) {
        // An event counter that is full has its reader woken already.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}
