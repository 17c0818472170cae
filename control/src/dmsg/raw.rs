//! A stream of the session multiplexer before it has keys: the objects at its head, then bytes.
//!
//! Used by the dialler, the destination and the ping; [`super::stream::Stream`] puts the end-to-end encryption on
//! top. Dropping it resets the stream, unless [`RawStream::finish_on_drop`] says to end it in order.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ringwire_proto::yamux::OpenError;

use super::error::{Disconnected, StreamError};
use super::mux::Slot;
use super::shared::Shared;

pub(super) struct RawStream {
    shared: Arc<Shared>,
    slot: Slot,
    /// What arrived and is not used yet: the bytes from `inbox_at` on.
    inbox: Vec<u8>,
    inbox_at: usize,
    reset_on_drop: bool,
}

impl RawStream {
    /// Opens a stream to the server; `first` leaves right behind the SYN.
    pub(super) fn open(shared: &Arc<Shared>, first: Vec<u8>) -> Result<Self, OpenFailure> {
        let now_ns = shared.now_ns();
        let opened = shared.with(|mux| match mux.ended() {
            Some(reason) => Err(OpenFailure::Disconnected(reason)),
            None if mux.is_closing() => Err(OpenFailure::Disconnected(Disconnected::Here)),
            None => mux.open(now_ns, first).map_err(OpenFailure::Open),
        });
        opened.map(|slot| Self::new(Arc::clone(shared), slot))
    }

    /// Takes over a stream that the server opened.
    pub(super) fn new(shared: Arc<Shared>, slot: Slot) -> Self {
        Self { shared, slot, inbox: Vec::new(), inbox_at: 0, reset_on_drop: true }
    }

    /// From now on dropping delivers what is queued and then ends the stream.
    pub(super) fn finish_on_drop(&mut self) {
        self.reset_on_drop = false;
    }

    /// What arrived and is not used yet.
    pub(super) fn unread(&mut self) -> &mut [u8] {
        self.inbox.get_mut(self.inbox_at..).unwrap_or_default()
    }

    /// The first `length` unread bytes are used.
    pub(super) fn consume(&mut self, length: usize) {
        self.inbox_at = (self.inbox_at + length).min(self.inbox.len());
        if self.inbox_at == self.inbox.len() {
            self.inbox.clear();
            self.inbox_at = 0;
        }
    }

    /// Waits for more, once everything is used. `Ok(false)` is the end of the stream.
    pub(super) fn poll_fill(&mut self, context: &Context<'_>) -> Poll<Result<bool, StreamError>> {
        debug_assert_eq!(self.inbox_at, self.inbox.len(), "unread bytes would be lost");
        self.inbox.clear();
        self.inbox_at = 0;
        let (slot, inbox) = (self.slot, &mut self.inbox);
        self.shared.with(|mux| mux.poll_take(slot, context, inbox))
    }

    /// Waits until more may be queued.
    pub(super) fn poll_room(&mut self, context: &Context<'_>) -> Poll<Result<(), StreamError>> {
        self.shared.with(|mux| mux.poll_room(self.slot, context))
    }

    /// Queues whole frames; `bytes` comes back empty.
    pub(super) fn push(&mut self, bytes: &mut Vec<u8>) {
        self.shared.with(|mux| mux.push(self.slot, bytes));
    }

    /// Announces the end of what is sent.
    pub(super) fn finish(&mut self) {
        self.shared.with(|mux| mux.finish(self.slot));
    }

    /// Waits until everything queued, the end included, is handed to the connection.
    pub(super) fn poll_drained(&mut self, context: &Context<'_>) -> Poll<Result<(), StreamError>> {
        self.shared.with(|mux| mux.poll_drained(self.slot, context))
    }

    /// Reads exactly `out.len()` bytes. `Ok(false)`: the stream ended first.
    pub(super) async fn read_exact(&mut self, out: &mut [u8]) -> Result<bool, StreamError> {
        let mut filled = 0;
        poll_fn(|context| {
            while filled < out.len() {
                if self.inbox_at == self.inbox.len() && !ready!(self.poll_fill(context))? {
                    return Poll::Ready(Ok(false));
                }
                let unread = self.inbox.get(self.inbox_at..).unwrap_or_default();
                let part = unread.len().min(out.len() - filled);
                out[filled..filled + part].copy_from_slice(&unread[..part]);
                filled += part;
                self.consume(part);
            }
            Poll::Ready(Ok(true))
        })
        .await
    }

    /// Reads one object, still sealed: `length || packet` (dmsg-wire 7). `None`: the stream ended first. Bytes behind
    /// the object stay unread.
    pub(super) async fn read_object(&mut self) -> Result<Option<Vec<u8>>, StreamError> {
        let mut prefix = [0; 2];
        if !self.read_exact(&mut prefix).await? {
            return Ok(None);
        }
        // 16 bits: at most 65535 bytes.
        let mut packet = vec![0; usize::from(u16::from_be_bytes(prefix))];
        Ok(self.read_exact(&mut packet).await?.then_some(packet))
    }
}

impl Drop for RawStream {
    fn drop(&mut self) {
        self.shared.with(|mux| mux.release(self.slot, self.reset_on_drop));
    }
}

/// Why no stream was opened.
pub(super) enum OpenFailure {
    Disconnected(Disconnected),
    Open(OpenError),
}
