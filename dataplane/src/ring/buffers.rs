//! The ring of pages lent to the kernel for receiving (a "provided buffer ring").
//!
//! The kernel takes pages from the front in order; a bundle takes several neighbours. An entry's id is its place in the
//! ring, not the page in it, so that memory may have more pages than there are 16-bit ids.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use super::op::BUFFER_GROUP;
use super::pool::{Pool, Span};
use super::region::Region;
use crate::limits::{PAGE_LEN, RECEIVE_RING_PAGES};

/// See the module's head.
#[derive(Debug)]
pub(super) struct ReceiveRing {
    entries: Region,
    /// Page at each place of the ring, while it is lent.
    pages: Vec<u32>,
    /// Places filled so far, modulo 2^16: the kernel's tail.
    tail: u16,
    /// Pages in the ring.
    lent: usize,
}

const MASK: u16 = (RECEIVE_RING_PAGES - 1) as u16;

impl ReceiveRing {
    /// Registers an empty ring with `ring`.
    pub(super) fn register(ring: &IoUring) -> io::Result<Self> {
        let len =
            (RECEIVE_RING_PAGES * size_of::<BufRingEntry>()).next_multiple_of(rustix::param::page_size());
        let entries = Region::new(len)?;
        // SAFETY: needed to tell the kernel where the ring lies. It is page-aligned, long enough, zeroed, and outlives the
        // registration: the driver drops the io_uring before this value.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                entries.address(0) as u64,
                RECEIVE_RING_PAGES as u16,
                BUFFER_GROUP,
                0,
            )
        }?;
        Ok(Self { entries, pages: vec![u32::MAX; RECEIVE_RING_PAGES], tail: 0, lent: 0 })
    }

    /// Fills the ring up from free pages and publishes them.
    pub(super) fn refill(&mut self, pool: &mut Pool) {
        let before = self.tail;
        // A place is filled again only when its page came back: the order of completions is not relied on.
        while self.lent < RECEIVE_RING_PAGES && self.pages[usize::from(self.tail & MASK)] == u32::MAX {
            let Some(page) = pool.lend() else { break };
            let place = self.tail & MASK;
            let entry =
                self.entries.address(usize::from(place) * size_of::<BufRingEntry>()).cast::<BufRingEntry>();
            // SAFETY: needed because the ring is shared memory. The place is inside the ring and not published, so the kernel
            // does not look at it; entries are plain integers. (The tail lives in a reserved field of the first entry, which
            // these setters do not touch.)
            let entry = unsafe { &mut *entry };
            entry.set_addr(pool.address(page) as u64);
            entry.set_len(PAGE_LEN as u32);
            entry.set_bid(place);
            self.pages[usize::from(place)] = page;
            self.tail = self.tail.wrapping_add(1);
            self.lent += 1;
        }
        if self.tail != before {
            // SAFETY: needed to find the tail; the address is that of the first entry of a live ring.
            let tail = unsafe { BufRingEntry::tail(self.entries.address(0).cast()) };
            // SAFETY: needed to publish; the kernel reads the tail with acquire semantics, and only this thread writes it.
            let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
            // Release: pairs with the kernel's load of the tail; the entries above must be visible before it.
            tail.store(self.tail, Ordering::Release);
        }
    }

    /// The kernel filled `len` bytes beginning with the page at place `first`; appends their spans.
    pub(super) fn take(&mut self, pool: &mut Pool, first: u16, mut len: usize, spans: &mut Vec<Span>) {
        let mut place = first & MASK;
        while len > 0 {
            let page = std::mem::replace(&mut self.pages[usize::from(place)], u32::MAX);
            assert_ne!(page, u32::MAX, "the kernel fills only lent pages");
            let part = len.min(PAGE_LEN);
            spans.push(pool.received(page, part));
            self.lent -= 1;
            len -= part;
            place = (place + 1) & MASK;
        }
    }

    /// A place was taken for a receive that brought nothing.
    pub(super) fn discard(&mut self, pool: &mut Pool, first: u16) {
        let page = std::mem::replace(&mut self.pages[usize::from(first & MASK)], u32::MAX);
        assert_ne!(page, u32::MAX, "the kernel names only lent pages");
        self.lent -= 1;
        pool.unlend(page);
    }
}
