//! One connection of the poll driver: what is asked for, what is possible, and the two calls.
//!
//! In: the worker's wishes (`want_*`) and epoll's news ([`Socket::note`]). Out: completions of [`Socket::receive`] and
//! [`Socket::send`], which do nothing unless something is both asked for and possible. Called by the driver beside it.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use crate::driver::{Gather, Part, ReceiveEnd};
use crate::limits::PAGE_LEN;
use crate::ring::{PAGES_PER_FILL_MAX, Pool, Span};

/// See the module's head.
#[derive(Debug)]
pub(super) struct Socket {
    descriptor: OwnedFd,
    /// A receive is asked for.
    receiving: bool,
    /// Bytes it may bring.
    len_max: usize,
    /// The send asked for.
    sending: Option<Sending>,
    /// A receive may find something.
    readable: bool,
    /// A send may find room.
    writable: bool,
    /// A receive that does not fill its pages may still leave something: the peer's end, an error, or bytes behind an urgent
    /// mark. It is received until the kernel says that there is nothing.
    has_more_behind: bool,
    /// It is in the driver's list of sockets to serve.
    queued: bool,
    /// Pages offered to the next receive: follows what the last ones brought.
    pages: usize,
}

#[derive(Debug)]
struct Sending {
    gather: Box<Gather>,
    /// Bytes the kernel took of what remained when the send was asked for.
    taken: usize,
}

#[cfg(test)]
impl Socket {
    /// Bytes the kernel took of the send asked for.
    pub(super) fn taken(&self) -> usize {
        self.sending.as_ref().map_or(0, |sending| sending.taken)
    }
}

/// A finished send: the gather, and the bytes taken or an errno.
pub(super) type Sent = (Box<Gather>, Result<usize, i32>);

impl Socket {
    /// A connected socket that does not block. A new connection has room to send; epoll will say what there is to receive.
    pub(super) fn new(descriptor: OwnedFd) -> Self {
        Self {
            descriptor,
            receiving: false,
            len_max: 0,
            sending: None,
            readable: false,
            writable: true,
            has_more_behind: false,
            queued: false,
            pages: 1,
        }
    }

    /// What epoll is to tell, for as long as the socket lives.
    pub(super) fn interest() -> EventFlags {
        EventFlags::IN | EventFlags::OUT | EventFlags::PRI | EventFlags::RDHUP | EventFlags::ET
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Something has changed.
    pub(super) fn note(&mut self, flags: EventFlags) {
        let broken = EventFlags::ERR | EventFlags::HUP;
        let behind = broken | EventFlags::RDHUP | EventFlags::PRI;
        self.has_more_behind |= flags.intersects(behind);
        self.readable |= flags.intersects(behind | EventFlags::IN);
        self.writable |= flags.intersects(broken | EventFlags::OUT);
    }

    /// Whether it is to be put into the driver's list now; at most once until [`dequeue`](Self::dequeue).
    pub(super) fn enqueue(&mut self) -> bool {
        let can = (self.receiving && self.readable) || (self.sending.is_some() && self.writable);
        let due = can && !self.queued;
        self.queued |= due;
        due
    }

    pub(super) fn dequeue(&mut self) {
        self.queued = false;
    }

    pub(super) fn want_receive(&mut self, len_max: usize) {
        if !self.receiving {
            self.len_max = len_max;
        }
        self.receiving = true;
    }

    pub(super) fn want_send(&mut self, gather: Box<Gather>) {
        assert!(self.sending.is_none(), "one send per socket at a time");
        self.sending = Some(Sending { gather, taken: 0 });
    }

    /// After a receive: there may be more, as far as is known.
    pub(super) fn may_have_more(&self) -> bool {
        self.readable
    }

    /// Receives into pages of the pool if a receive is asked for and possible. Appends spans and returns their number, or
    /// why there are none; `None`: the receive stays asked for.
    pub(super) fn receive(
        &mut self,
        pool: &mut Pool,
        spans: &mut Vec<Span>,
    ) -> Option<Result<usize, ReceiveEnd>> {
        if !self.receiving || !self.readable {
            return None;
        }
        let before = spans.len();
        let (descriptor, len_max) = (self.descriptor.as_fd(), self.len_max);
        let is_whole = len_max >= PAGE_LEN;
        let pages = if is_whole { self.pages.min(len_max / PAGE_LEN) } else { 1 };
        let Some(filled) = pool.fill(pages, spans, |pages| read(descriptor, len_max, pages)) else {
            self.receiving = false;
            return Some(Err(ReceiveEnd::NoBuffers));
        };
        match filled {
            Err(Errno::AGAIN) => {
                self.readable = false;
                self.has_more_behind = false;
                None
            }
            Err(error) => {
                self.receiving = false;
                Some(Err(ReceiveEnd::Failed(error.raw_os_error())))
            }
            Ok(filled) => {
                self.receiving = false;
                let count = spans.len() - before;
                if filled.len == 0 {
                    return Some(Err(ReceiveEnd::EndOfStream));
                }
                if filled.len == filled.room.min(len_max) {
                    if is_whole {
                        self.pages = (2 * self.pages).min(PAGES_PER_FILL_MAX);
                    }
                } else {
                    self.readable = self.has_more_behind;
                    // Slowly down: bursts of bulk differ in length, and pages offered in vain cost little.
                    self.pages = count.max(self.pages / 2);
                }
                Some(Ok(count))
            }
        }
    }

    /// Sends what is left of the gather asked for, as far as there is room. Returns it when the kernel has taken all of it
    /// or failed; `None`: nothing is asked for, or the rest waits for room.
    pub(super) fn send(&mut self, pool: &Pool, scratch: &mut Vec<IoSlice<'static>>) -> Option<Sent> {
        if !self.writable {
            return None;
        }
        let Sending { gather, taken } = self.sending.as_mut()?;
        let left = gather.len() - gather.sent() - *taken;
        let mut slices = recycle(std::mem::take(scratch));
        slices.extend(gather.remaining_after(*taken).map(|(part, skip)| {
            let bytes = match part {
                Part::Header { from, len } => gather.header_bytes(from, len),
                Part::Payload(span) => pool.bytes(span),
            };
            IoSlice::new(&bytes[skip..])
        }));
        let outcome = write(self.descriptor.as_fd(), &slices);
        *scratch = recycle(slices);
        let outcome = match outcome {
            Ok(len) => {
                *taken += len;
                if len < left {
                    // Less than all: the socket is full, and epoll will tell when it no longer is.
                    self.writable = false;
                    return None;
                }
                Ok(*taken)
            }
            Err(Errno::AGAIN) => {
                self.writable = false;
                return None;
            }
            Err(error) => Err(error.raw_os_error()),
        };
        let Sending { gather, .. } = self.sending.take()?;
        Some((gather, outcome))
    }

    /// Nothing is asked for any more. Returns whether a receive was, and the send that was: with the bytes the kernel took of
    /// it, or as failed with `ECANCELED` when it took nothing.
    pub(super) fn recall(&mut self) -> (bool, Option<Sent>) {
        let sent = self.sending.take().map(|Sending { gather, taken }| {
            let outcome = if taken > 0 { Ok(taken) } else { Err(libc::ECANCELED) };
            (gather, outcome)
        });
        (std::mem::take(&mut self.receiving), sent)
    }
}

/// Reads into pages, or `len_max` bytes into the one page there is when that is less.
fn read(descriptor: BorrowedFd<'_>, len_max: usize, pages: &mut [IoSliceMut<'_>]) -> Result<usize, Errno> {
    debug_assert!(pages.iter().all(|page| page.len() == PAGE_LEN), "whole pages");
    loop {
        let outcome = match pages {
            // The shorter way through the kernel for what is most frequent.
            [page] => {
                let len = page.len().min(len_max);
                rustix::net::recv(descriptor, &mut page[..len], RecvFlags::empty()).map(|(len, _)| len)
            }
            _ => rustix::io::readv(descriptor, &mut *pages),
        };
        if outcome != Err(Errno::INTR) {
            return outcome;
        }
    }
}

fn write(descriptor: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> Result<usize, Errno> {
    loop {
        let mut nothing = SendAncillaryBuffer::default();
        let outcome = rustix::net::sendmsg(descriptor, slices, &mut nothing, SendFlags::NOSIGNAL);
        if outcome != Err(Errno::INTR) {
            return outcome;
        }
    }
}

/// The same memory for slices of another lifetime: an empty vector's iterator collects in place, so that no send allocates.
fn recycle<'to>(mut slices: Vec<IoSlice<'_>>) -> Vec<IoSlice<'to>> {
    slices.clear();
    slices.into_iter().map(|_| IoSlice::new(&[])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recycled_slices_keep_their_memory() {
        let bytes = [1, 2, 3];
        let mut slices = Vec::with_capacity(512);
        slices.push(IoSlice::new(&bytes));
        let at = slices.as_ptr() as usize;
        let recycled: Vec<IoSlice<'static>> = recycle(slices);
        assert_eq!((recycled.len(), recycled.capacity()), (0, 512));
        assert_eq!(recycled.as_ptr() as usize, at);
    }
}
