//! A dmsg stream: end-to-end encrypted bytes between two clients, through a server that cannot read them.
//!
//! In and out: plaintext, through tokio's [`AsyncRead`], [`AsyncBufRead`] and [`AsyncWrite`]. Below: Noise frames under
//! the KK keys (dmsg-wire 3) on a stream of the session multiplexer.
//!
//! * A read returns 0 bytes once the other side has finished in order. Every other end is an error.
//! * [`AsyncWriteExt::shutdown`](tokio::io::AsyncWriteExt::shutdown) announces the end of what is written. **A server
//!   ends both directions as soon as one has ended** (dmsg-wire 10.4): agree inside the stream on when to stop, or
//!   lose what is still under way in the other direction.
//! * Dropping a stream delivers what was written and then ends it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ringwire_dataplane::aead::AwsLcAead;
use ringwire_proto::frame::{StreamReader, StreamWriter};
use ringwire_proto::identity::Address;
use ringwire_proto::noise::Outcome;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

use super::error::StreamError;
use super::limits::{BUFFER_KEEP_BYTES, READ_CIPHERTEXT_BYTES, WRITE_PLAINTEXT_BYTES};
use super::ports::PortGuard;
use super::raw::RawStream;
use super::shared::Handle;

/// One end of a stream. Moves bytes as long as the connection it was made on lives, and keeps that alive.
pub struct Stream {
    // Fields drop in this order: the stream is ended before its port can be given to another, and before the
    // connection may close.
    raw: RawStream,
    _port: Option<PortGuard>,
    _handle: Handle,
    local: Address,
    peer: Address,
    hybrid: bool,
    reader: StreamReader<AwsLcAead>,
    writer: StreamWriter<AwsLcAead>,
    plaintext: Vec<u8>,
    plaintext_at: usize,
    /// Frames on their way to the queue; empty between calls.
    sealed: Vec<u8>,
    /// Why reading is over, once it is.
    read_end: Option<Result<(), StreamError>>,
    finished: bool,
}

impl Stream {
    pub(super) fn new(
        mut raw: RawStream,
        handle: Handle,
        port: Option<PortGuard>,
        local: Address,
        peer: Address,
        outcome: &Outcome,
    ) -> Self {
        raw.finish_on_drop();
        Self {
            raw,
            _port: port,
            _handle: handle,
            local,
            peer,
            hybrid: outcome.hybrid,
            reader: StreamReader::new(&outcome.receive),
            writer: StreamWriter::new(&outcome.send),
            plaintext: Vec::new(),
            plaintext_at: 0,
            sealed: Vec::new(),
            read_end: None,
            finished: false,
        }
    }

    /// The other end: its key is proven by the handshake.
    pub fn peer_address(&self) -> Address {
        self.peer
    }

    /// This end.
    pub fn local_address(&self) -> Address {
        self.local
    }

    /// Whether the keys of this stream are post-quantum (dmsg-wire 2.8).
    pub fn is_hybrid(&self) -> bool {
        self.hybrid
    }

    /// Fills `plaintext`, unless reading is over.
    fn poll_plaintext(&mut self, context: &Context<'_>) -> Poll<Result<(), StreamError>> {
        while self.plaintext_at == self.plaintext.len() {
            if let Some(end) = &self.read_end {
                return Poll::Ready(end.clone());
            }
            self.plaintext.clear();
            self.plaintext_at = 0;
            if self.plaintext.capacity() > BUFFER_KEEP_BYTES {
                self.plaintext = Vec::new();
            }
            let unread = self.raw.unread();
            if unread.is_empty() {
                match ready!(self.raw.poll_fill(context)) {
                    Ok(true) => {}
                    Ok(false) if self.reader.is_between_frames() => self.read_end = Some(Ok(())),
                    Ok(false) => self.read_end = Some(Err(StreamError::Truncated)),
                    Err(error) => self.read_end = Some(Err(error)),
                }
                continue;
            }
            let length = unread.len().min(READ_CIPHERTEXT_BYTES);
            if let Err(error) = self.reader.push(&unread[..length], &mut self.plaintext) {
                // What came before the bad frame is genuine and is still delivered.
                self.read_end = Some(Err(StreamError::Frame(error.to_string())));
            }
            self.raw.consume(length);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncBufRead for Stream {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        ready!(this.poll_plaintext(context))?;
        Poll::Ready(Ok(this.plaintext.get(this.plaintext_at..).unwrap_or_default()))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        this.plaintext_at = (this.plaintext_at + amount).min(this.plaintext.len());
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let plaintext = ready!(self.as_mut().poll_fill_buf(context))?;
        let length = plaintext.len().min(out.remaining());
        out.put_slice(&plaintext[..length]);
        self.consume(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    /// Takes at most 64 KiB at a time. What was taken is sent without a flush.
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.finished {
            return Poll::Ready(Err(StreamError::WriteAfterShutdown.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(this.raw.poll_room(context))?;
        let taken = &bytes[..bytes.len().min(WRITE_PLAINTEXT_BYTES)];
        this.writer.write(taken, &mut this.sealed);
        this.raw.push(&mut this.sealed);
        Poll::Ready(Ok(taken.len()))
    }

    /// Waits until what was written is handed to the connection's socket buffer.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(ready!(self.get_mut().raw.poll_drained(context))?))
    }

    /// Announces the end of what is written, and waits until that is handed over.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.finished {
            this.finished = true;
            this.raw.finish();
        }
        Poll::Ready(Ok(ready!(this.raw.poll_drained(context))?))
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Stream")
            .field("local", &self.local)
            .field("peer", &self.peer)
            .field("hybrid", &self.hybrid)
            .finish_non_exhaustive()
    }
}
