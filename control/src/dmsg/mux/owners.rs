//! What the owners of streams ask of their connection: open, take, push, finish, release.
//!
//! Each call is short: it swaps buffers, notes a waker or a wish, and leaves the sending to the driver.

use std::mem;
use std::task::{Context, Poll, Waker};

use ringwire_proto::yamux;

use super::{Mux, Slot};
use crate::dmsg::buffers::{Broken, Finish};
use crate::dmsg::error::StreamError;
use crate::dmsg::limits::{BUFFER_KEEP_BYTES, STREAM_QUEUE_BYTES};

impl Mux {
    /// Asks the driver to deliver what is queued and to close.
    pub(in crate::dmsg) fn close(&mut self) {
        self.closing = true;
        self.driver_needed = true;
    }

    /// Streams that have an owner.
    pub(in crate::dmsg) fn owned_streams(&self) -> usize {
        self.streams.iter().flatten().filter(|stream| stream.owned).count()
    }

    /// Opens a stream whose first bytes are `first`: they leave right behind the SYN.
    pub(in crate::dmsg) fn open(&mut self, now_ns: u64, first: Vec<u8>) -> Result<Slot, yamux::OpenError> {
        self.session.may_open()?;
        let slot = self.insert();
        match self.session.open(now_ns, slot) {
            Ok(id) => {
                let stream = self.stream_mut(slot);
                stream.id = id;
                stream.queued = first.len();
                stream.queue.push_back(first);
                self.schedule(slot);
                self.driver_needed = true;
                Ok(slot)
            }
            Err(error) => {
                self.remove(slot);
                Err(error)
            }
        }
    }

    /// Takes what arrived: swaps the received bytes into `inbox`, which must be empty. `Ok(false)` is the end.
    pub(in crate::dmsg) fn poll_take(
        &mut self,
        slot: Slot,
        context: &Context<'_>,
        inbox: &mut Vec<u8>,
    ) -> Poll<Result<bool, StreamError>> {
        debug_assert!(inbox.is_empty(), "bytes in the inbox would go back in front of the peer's");
        let stream = self.stream_mut(slot);
        if !stream.received.is_empty() {
            mem::swap(&mut stream.received, inbox);
            if stream.received.capacity() > BUFFER_KEEP_BYTES {
                stream.received = Vec::new();
            }
            let id = stream.id;
            if stream.alive {
                // At most one window: the session does not deliver more than it granted.
                self.session.consumed(id, u32::try_from(inbox.len()).unwrap_or(u32::MAX));
                self.look_for_control();
            }
            return Poll::Ready(Ok(true));
        }
        if stream.received_end {
            return Poll::Ready(Ok(false));
        }
        if let Some(error) = self.failure(slot) {
            return Poll::Ready(Err(error));
        }
        store(&mut self.stream_mut(slot).reader, context);
        Poll::Pending
    }

    /// Waits until the stream's queue takes more.
    pub(in crate::dmsg) fn poll_room(
        &mut self,
        slot: Slot,
        context: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        self.poll_queue(slot, context, STREAM_QUEUE_BYTES)
    }

    /// Waits until all that was pushed is handed to the connection.
    pub(in crate::dmsg) fn poll_drained(
        &mut self,
        slot: Slot,
        context: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        self.poll_queue(slot, context, 1)
    }

    /// Queues whole frames. `bytes` comes back empty, with the capacity of an earlier buffer where there is one.
    pub(in crate::dmsg) fn push(&mut self, slot: Slot, bytes: &mut Vec<u8>) {
        let stream = self.stream_mut(slot);
        if bytes.is_empty() || !stream.alive {
            bytes.clear();
            return;
        }
        stream.queued += bytes.len();
        match stream.queue.back_mut() {
            // Small writes gather in the last buffer: a copy is cheaper than a buffer for each.
            Some(last) if last.capacity() - last.len() >= bytes.len() => {
                last.extend_from_slice(bytes);
                bytes.clear();
            }
            Some(_) | None => {
                let spare = stream.spares.pop().unwrap_or_default();
                stream.queue.push_back(mem::replace(bytes, spare));
            }
        }
        self.schedule(slot);
    }

    /// Announces the end of what is sent, behind what is queued.
    pub(in crate::dmsg) fn finish(&mut self, slot: Slot) {
        let stream = self.stream_mut(slot);
        if stream.alive && stream.finish == Finish::No {
            stream.finish = Finish::Wanted;
            self.schedule(slot);
        }
    }

    /// Lets go of a stream: `reset` ends it at once, else what is queued is still delivered, then its end.
    pub(in crate::dmsg) fn release(&mut self, slot: Slot, reset: bool) {
        let stream = self.stream_mut(slot);
        stream.owned = false;
        stream.reader = None;
        stream.writer = None;
        let unread = mem::take(&mut stream.received).len();
        if !stream.alive {
            self.remove_unowned(slot);
            return;
        }
        let id = stream.id;
        if reset {
            self.session.reset(id);
            self.forget(slot, None);
        } else {
            self.session.consumed(id, u32::try_from(unread).unwrap_or(u32::MAX));
            self.finish(slot);
        }
        self.look_for_control();
    }

    fn poll_queue(
        &mut self,
        slot: Slot,
        context: &Context<'_>,
        below: usize,
    ) -> Poll<Result<(), StreamError>> {
        if let Some(error) = self.failure(slot) {
            return Poll::Ready(Err(error));
        }
        let stream = self.stream_mut(slot);
        let drained = below > 1 || stream.finish != Finish::Wanted;
        if stream.queued < below && drained {
            return Poll::Ready(Ok(()));
        }
        store(&mut stream.writer, context);
        Poll::Pending
    }

    fn failure(&mut self, slot: Slot) -> Option<StreamError> {
        let stream = self.stream_mut(slot);
        match stream.broken {
            Some(Broken::Reset) => Some(StreamError::Reset),
            Some(Broken::TimedOut) => Some(StreamError::TimedOut),
            None if stream.alive || (stream.received_end && stream.finish == Finish::Sent) => None,
            None => Some(self.ended.clone().map_or(StreamError::Reset, StreamError::Disconnected)),
        }
    }
}

fn store(place: &mut Option<Waker>, context: &Context<'_>) {
    match place {
        Some(known) => known.clone_from(context.waker()),
        None => *place = Some(context.waker().clone()),
    }
}
