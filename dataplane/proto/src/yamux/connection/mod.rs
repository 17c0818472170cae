//! A buffered yamux connection for clients and tests: bytes of the wire in and out, `read` and `write` per stream.
//!
//! It adds to a [`Session`] one receive buffer and one send queue per stream; the rules of the wire are the session's.
//! Still no I/O and no clock. Its methods come in the same four kinds:
//!
//! * inputs: `push` for received bytes, `handle_timeout`;
//! * requests: `open`, `accept`, `write`, `read`, `finish`, `close`, `reset`, `ping`, `go_away`;
//! * outputs: `poll_transmit` (bytes to send) and `poll_event`. Drain both after each input or batch of requests;
//! * questions: `next_timeout`, `closed`, `session`.
//!
//! Bounds: a stream buffers at most its credit (262144 bytes) of received and [`SEND_QUEUE_MAX`] of unsent bytes.

mod receive;
mod transmit;

use alloc::collections::VecDeque;

use hashbrown::HashMap;

use super::{Config, Cutter, DeadReason, Header, OpenError, Session, Timeout, Violation};

/// Bytes of one stream that may wait to be sent; when full, `write` takes no more.
pub const SEND_QUEUE_MAX: usize = 262_144;

/// Payload bytes of one frame at most, so that streams take turns.
pub const FRAME_PAYLOAD_MAX: usize = 16_384;

/// A yamux session with buffers.
#[derive(Debug)]
pub struct Connection {
    session: Session<()>,
    cutter: Cutter,
    channels: HashMap<u32, Channel>,
    /// Stream that gets the payload of the frame under way; none: it is dropped.
    receiving: Option<u32>,
    /// Streams with something to send, in the order of their turns; each at most once.
    ready: VecDeque<u32>,
    /// Streams of the peer that nobody accepted yet.
    backlog: VecDeque<u32>,
    events: VecDeque<ConnectionEvent>,
    /// The last header before the end.
    goodbye: Option<Header>,
    closed: Option<CloseReason>,
    /// The latest time any input came with.
    now: u64,
}

/// News of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// The peer opened this stream: [`Connection::accept`] returns it.
    Opened(u32),
    /// The peer acknowledged this stream of ours.
    Acked(u32),
    /// Bytes arrived. Comes again only after `read` emptied the buffer.
    Readable(u32),
    /// There is room again after `write` took less than it was given.
    Writable(u32),
    /// The peer's direction ended: `read` returns 0 behind the buffered bytes.
    Finished(u32),
    /// The stream ended at once, by the peer or because the peer never finished it; it is forgotten.
    Reset(u32),
    /// The peer answered a ping.
    PingAnswered {
        /// The value that [`Connection::ping`] returned.
        value: u32,
        /// From the request to the answer.
        rtt_ns: u64,
    },
    /// The peer takes no new streams.
    GoAway,
    /// The session is over: send what `poll_transmit` still gives, then close the connection.
    Closed(CloseReason),
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The peer broke the protocol or went away.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The peer is silent.
    #[error(transparent)]
    Dead(#[from] DeadReason),
}

/// Why `read` or `write` did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Nothing to read, or no room to write: an event tells when to try again.
    #[error("nothing can be done now")]
    Blocked,
    /// `finish` was called before: no more writing.
    #[error("this direction was finished")]
    Finished,
    /// The stream was reset, closed, or never existed.
    #[error("no such stream")]
    Gone,
    /// The connection is over.
    #[error("the connection is over")]
    Closed,
}

/// The buffers of one stream.
#[derive(Debug, Default)]
struct Channel {
    received: VecDeque<u8>,
    unsent: VecDeque<u8>,
    /// In `ready`.
    queued: bool,
    /// A Readable event was given and the buffer not emptied since.
    readable_told: bool,
    /// `write` took less than it was given.
    write_refused: bool,
    finish_wanted: bool,
    finish_sent: bool,
    peer_finished: bool,
    /// `read` returned 0, or nobody will read any more.
    read_ended: bool,
    /// Nobody will read any more: arriving bytes are dropped and credited.
    discards: bool,
}

impl Channel {
    const fn is_over(&self) -> bool {
        self.finish_sent && self.peer_finished && self.read_ended
    }

    fn has_output(&self) -> bool {
        !self.unsent.is_empty() || (self.finish_wanted && !self.finish_sent)
    }
}

impl Connection {
    /// A fresh connection; `now` starts the keepalive clock.
    #[must_use]
    pub fn new(config: Config, now: u64) -> Self {
        Self {
            session: Session::new(config, now),
            cutter: Cutter::new(),
            channels: HashMap::new(),
            receiving: None,
            ready: VecDeque::new(),
            backlog: VecDeque::new(),
            events: VecDeque::new(),
            goodbye: None,
            closed: None,
            now,
        }
    }

    /// The session below, to ask.
    #[must_use]
    pub const fn session(&self) -> &Session<()> {
        &self.session
    }

    /// Why it is over, if it is.
    #[must_use]
    pub const fn closed(&self) -> Option<CloseReason> {
        self.closed
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        if self.closed.is_some() { None } else { self.session.next_timeout() }
    }

    /// Runs what is due.
    pub fn handle_timeout(&mut self, now: u64) {
        self.now = self.now.max(now);
        while let Some(timeout) = self.session.handle_timeout(now) {
            match timeout {
                Timeout::StreamTimedOut { stream, .. } => self.lose(stream),
                Timeout::SessionDead(reason) => self.end(reason.into()),
            }
        }
    }

    /// Opens a stream; bytes may be written at once.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&mut self, now: u64) -> Result<u32, OpenError> {
        self.now = self.now.max(now);
        let id = self.session.open(now, ())?;
        self.insert_channel(id);
        Ok(id)
    }

    /// Takes the next stream that the peer opened, and acknowledges it.
    pub fn accept(&mut self) -> Option<u32> {
        let id = self.backlog.pop_front()?;
        self.session.accept(id, ());
        self.make_ready(id);
        Some(id)
    }

    /// Queues bytes and returns how many, at least one.
    ///
    /// # Errors
    /// [`StreamError::Blocked`] when the queue is full or `bytes` is empty, or why nothing can be written any more.
    pub fn write(&mut self, id: u32, bytes: &[u8]) -> Result<usize, StreamError> {
        if self.closed.is_some() {
            return Err(StreamError::Closed);
        }
        let channel = self.channels.get_mut(&id).ok_or(StreamError::Gone)?;
        if channel.finish_wanted {
            return Err(StreamError::Finished);
        }
        let taken = bytes.len().min(SEND_QUEUE_MAX.saturating_sub(channel.unsent.len()));
        channel.write_refused |= taken < bytes.len();
        if taken == 0 {
            return Err(StreamError::Blocked);
        }
        channel.unsent.extend(&bytes[..taken]);
        self.make_ready(id);
        Ok(taken)
    }

    /// Bytes that were written to a stream and that `poll_transmit` has not given out yet.
    #[must_use]
    pub fn unsent_len(&self, id: u32) -> usize {
        self.channels.get(&id).map_or(0, |channel| channel.unsent.len())
    }

    /// Takes received bytes and returns how many; 0 is the end of the peer's direction (or an empty `out`).
    ///
    /// # Errors
    /// [`StreamError::Blocked`] when nothing is there yet, or why nothing will come.
    pub fn read(&mut self, id: u32, out: &mut [u8]) -> Result<usize, StreamError> {
        let channel = self.channels.get_mut(&id).ok_or(StreamError::Gone)?;
        let taken = out.len().min(channel.received.len());
        for (place, byte) in out.iter_mut().zip(channel.received.drain(..taken)) {
            *place = byte;
        }
        if channel.received.is_empty() {
            channel.readable_told = false;
        }
        if taken > 0 {
            // Below the credit of one stream.
            self.session.consumed(id, taken as u32);
            return Ok(taken);
        }
        if out.is_empty() {
            return Ok(0);
        }
        if channel.peer_finished {
            channel.read_ended = true;
            self.forget_if_over(id);
            return Ok(0);
        }
        Err(if self.closed.is_some() { StreamError::Closed } else { StreamError::Blocked })
    }

    /// Ends our direction behind the bytes that wait; the peer's stays open.
    pub fn finish(&mut self, now: u64, id: u32) {
        self.now = self.now.max(now);
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.finish_wanted = true;
            self.make_ready(id);
        }
    }

    /// Ends our direction behind the bytes that wait and reads no more: what still arrives is dropped. The stream is
    /// forgotten when the peer finishes too, or after the close timeout.
    pub fn close(&mut self, now: u64, id: u32) {
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.discards = true;
            channel.read_ended = true;
            let dropped = channel.received.len();
            channel.received = VecDeque::new();
            // Below the credit of one stream.
            self.session.consumed(id, dropped as u32);
            self.finish(now, id);
            self.forget_if_over(id);
        }
    }

    /// Ends a stream at once, both directions, and forgets it with all its bytes.
    pub fn reset(&mut self, id: u32) {
        self.session.reset(id);
        self.forget(id);
    }

    /// Asks for a sign of life; [`ConnectionEvent::PingAnswered`] brings the returned value.
    pub fn ping(&mut self, now: u64) -> u32 {
        self.now = self.now.max(now);
        self.session.ping(now)
    }

    /// Tells the peer to open no more streams.
    pub const fn go_away(&mut self, code: u32) {
        self.session.go_away(code);
    }

    /// The next event. Streams may be gone by the time their event is looked at.
    pub fn poll_event(&mut self) -> Option<ConnectionEvent> {
        self.events.pop_front()
    }

    /// Puts a stream that has something to send in line.
    fn make_ready(&mut self, id: u32) {
        if let Some(channel) = self.channels.get_mut(&id)
            && !channel.queued
            && channel.has_output()
        {
            channel.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Fresh buffers for a stream. A peer may use an id again while the bytes of its former stream were not read yet;
    /// those are lost, as after a reset.
    fn insert_channel(&mut self, id: u32) {
        self.lose(id);
        self.channels.insert(id, Channel::default());
    }

    fn forget_if_over(&mut self, id: u32) {
        if self.channels.get(&id).is_some_and(Channel::is_over) {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u32) {
        let Some(channel) = self.channels.remove(&id) else { return };
        if channel.queued {
            self.ready.retain(|ready| *ready != id);
        }
        if self.receiving == Some(id) {
            self.receiving = None;
        }
        self.backlog.retain(|waiting| *waiting != id);
    }

    /// A stream ended without our doing.
    fn lose(&mut self, id: u32) {
        // What nobody reads any more needs no event.
        if self.channels.get(&id).is_some_and(|channel| !channel.discards) {
            self.events.push_back(ConnectionEvent::Reset(id));
        }
        self.forget(id);
    }

    fn end(&mut self, reason: CloseReason) {
        if self.closed.is_none() {
            self.closed = Some(reason);
            if let CloseReason::Violation(violation) = reason {
                self.goodbye = violation.go_away();
            }
            self.events.push_back(ConnectionEvent::Closed(reason));
        }
    }
}
