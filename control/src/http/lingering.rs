//! A connection that reads on for a moment after its last answer, when that is a refusal of what is still being sent.
//!
//! In: a connection, and whether to. Out: the same; its end waits until the peer has ended too, or for [`LINGER`] at most, and throws
//! away what comes meanwhile. Closed at once, a socket with unread bytes resets the connection, and on many systems that takes
//! the answer away from whoever has not read it yet.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::limits::{LINGER, LINGER_BYTES_MAX};

/// See the module's head.
pub(super) struct Lingering<Io> {
    io: Io,
    wanted: Arc<AtomicBool>,
    /// Nothing more is written.
    shut: bool,
    until: Option<Pin<Box<Sleep>>>,
    /// Bytes that may still be thrown away.
    left: usize,
}

impl<Io> Lingering<Io> {
    pub(super) fn new(io: Io, wanted: Arc<AtomicBool>) -> Self {
        Self { io, wanted, shut: false, until: None, left: LINGER_BYTES_MAX }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Lingering<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.shut {
            ready!(Pin::new(&mut this.io).poll_shutdown(context))?;
            this.shut = true;
        }
        if !this.wanted.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let until = this.until.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        while this.left > 0 && until.as_mut().poll(context).is_pending() {
            let mut room = [0; 4096];
            let mut piece = ReadBuf::new(&mut room);
            match ready!(Pin::new(&mut this.io).poll_read(context, &mut piece)) {
                Ok(()) if !piece.filled().is_empty() => {
                    this.left = this.left.saturating_sub(piece.filled().len());
                }
                // The peer has ended, one way or the other.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
