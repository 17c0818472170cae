//! The state machine of one smux session, at the level of headers (dmsg-wire 6).
//!
//! It never sees payload. Its methods come in four kinds:
//!
//! * questions: `stream`, `streams`, `may_receive`, `next_timeout`;
//! * inputs: `handle_header` and `handle_update` in the order of arrival, `handle_timeout`;
//! * requests: `open`, `accept`, `reserve`, `finish`, `forget`, `consumed`;
//! * output: `poll_control`. Drain it after each input or batch of requests.
//!
//! SYN and FIN headers are returned, because they belong in order with a stream's data. Before each frame the caller
//! asks `may_receive`; while it says no, the rest of the connection is left unread: the only flow control of version 1.

mod incoming;
mod stream;

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use hashbrown::HashMap;

pub use incoming::{Incoming, Payload};
pub use stream::Stream;

use super::{Config, DeadReason, Header, OpenError, Role, Update, Version};

/// One smux session. `T` is the owner's tag on each stream.
#[derive(Clone, Debug)]
pub struct Session<T: Copy> {
    config: Config,
    streams: HashMap<u32, Stream<T>>,
    /// The id of the next own stream; none when they are used up.
    next_id: Option<u32>,
    /// Streams of the peer that were not accepted yet.
    waiting: u32,
    /// Delivered and not consumed bytes of all streams.
    buffered: u64,
    /// Streams whose update has to be sent; each at most once.
    updates: VecDeque<u32>,
    nop_pending: bool,
    nop_due: Option<u64>,
    last_frame_at: u64,
    dead: bool,
}

/// A frame to send that belongs to no place in a stream's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Sign of life.
    Nop(Version),
    /// What our reader took; version 2.
    Update {
        /// The stream.
        stream: u32,
        /// The payload.
        update: Update,
    },
}

impl Control {
    /// Appends the frame as it travels.
    pub fn encode_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Nop(version) => out.extend_from_slice(&Header::nop(*version).encode()),
            Self::Update { stream, update } => {
                out.extend_from_slice(&Header::update(*stream).encode());
                out.extend_from_slice(&update.encode());
            }
        }
    }
}

impl<T: Copy> Session<T> {
    /// A fresh session; `now` starts the keepalive clock.
    #[must_use]
    pub fn new(config: Config, now: u64) -> Self {
        Self {
            config,
            streams: HashMap::new(),
            next_id: Some(match config.role {
                Role::Client => 3,
                Role::Server => 2,
            }),
            waiting: 0,
            buffered: 0,
            updates: VecDeque::new(),
            nop_pending: false,
            nop_due: config.keepalive_ns.map(|interval| now.saturating_add(interval)),
            last_frame_at: now,
            dead: false,
        }
    }

    /// The bounds it was made with.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// One stream, if it exists.
    #[must_use]
    pub fn stream(&self, id: u32) -> Option<&Stream<T>> {
        self.streams.get(&id)
    }

    /// How many streams exist.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// All streams in the order of their ids. Sorts them: for the end of a session and for reports.
    pub fn streams(&self) -> impl Iterator<Item = (u32, &Stream<T>)> {
        let mut streams: Vec<(u32, &Stream<T>)> =
            self.streams.iter().map(|(id, stream)| (*id, stream)).collect();
        streams.sort_unstable_by_key(|(id, _)| *id);
        streams.into_iter()
    }

    /// Whether the next frame of the connection may be read: not while too many unread bytes are buffered or too many
    /// streams wait to be accepted (dmsg-wire 6). `consumed`, `accept` and `forget` change the answer.
    #[must_use]
    pub const fn may_receive(&self) -> bool {
        self.buffered < self.config.receive_buffer_max as u64 && self.waiting < self.config.accept_backlog
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        if self.dead { None } else { self.nop_due.map(|due| due.min(self.silence_deadline())) }
    }

    /// Queues the NOP that is due, or finds the peer dead, which it tells once. Then drain `poll_control`.
    pub fn handle_timeout(&mut self, now: u64) -> Option<DeadReason> {
        let interval = self.config.keepalive_ns.filter(|_| !self.dead)?;
        if !self.may_receive() {
            // What we do not read is not silence of the peer.
            self.last_frame_at = now;
        }
        if self.silence_deadline() <= now {
            self.dead = true;
            return Some(DeadReason { silent_ns: now.saturating_sub(self.last_frame_at) });
        }
        if self.nop_due.is_some_and(|due| due <= now) {
            self.nop_due = Some(now.saturating_add(interval));
            self.nop_pending = true;
        }
        None
    }

    fn silence_deadline(&self) -> u64 {
        self.last_frame_at.saturating_add(self.config.silence_timeout_ns)
    }

    /// Opens a stream: its id and the SYN header, to be sent before its data. There is no answer to wait for.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&mut self, tag: T) -> Result<(u32, Header), OpenError> {
        self.check_room().map_err(|open| OpenError::TooManyStreams { open })?;
        let mut next = self.next_id;
        // A peer may use ids of our parity.
        while let Some(id) = next
            && self.streams.contains_key(&id)
        {
            next = id.checked_add(2);
        }
        let id = next.ok_or(OpenError::IdsExhausted)?;
        self.next_id = id.checked_add(2);
        self.streams.insert(id, Stream::new(Some(tag)));
        Ok((id, Header::syn(self.config.version, id)))
    }

    /// The number of streams as an error when no more may exist.
    fn check_room(&self) -> Result<(), u32> {
        let open = u32::try_from(self.streams.len()).unwrap_or(u32::MAX);
        if open < self.config.streams_max { Ok(()) } else { Err(open) }
    }

    /// Takes a stream of the peer. Nothing is sent (dmsg-wire 6).
    pub fn accept(&mut self, id: u32, tag: T) {
        if let Some(stream) = self.streams.get_mut(&id) {
            self.waiting -= u32::from(stream.tag.is_none());
            stream.tag = Some(tag);
        }
    }

    /// Spends up to `want` bytes of what may be sent now and returns how many: send exactly these as one data frame.
    /// 0: no credit, or an unknown, finished or broken stream.
    pub fn reserve(&mut self, id: u32, want: u16) -> u16 {
        let Some(stream) = self.streams.get_mut(&id) else { return 0 };
        let granted = want.min(self.config.frame_max);
        stream.reserve(self.config.version, granted)
    }

    /// Ends our direction: the FIN header, to be sent behind the stream's data. None for unknown streams and those
    /// finished before. With the peer's FIN here already, the stream is forgotten.
    pub fn finish(&mut self, id: u32) -> Option<Header> {
        let stream = self.streams.get_mut(&id).filter(|stream| !stream.sent_fin)?;
        stream.sent_fin = true;
        if stream.received_fin {
            self.release(id);
        }
        Some(Header::fin(self.config.version, id))
    }

    /// Forgets a stream, whatever the peer still sends on it; that will be dropped. After [`finish`](Self::finish) this
    /// is how a stream ends whose peer never finishes: smux has no reset. Returns its tag.
    pub fn forget(&mut self, id: u32) -> Option<T> {
        self.release(id)?.tag
    }

    /// The owner is done with `len` delivered bytes. Version 2 tells the peer on the first read of a stream, then
    /// whenever half a window more was read (dmsg-wire 6).
    pub fn consumed(&mut self, id: u32, len: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (len, update_due) = stream.consume(len, self.config.stream_buffer / 2);
        self.buffered -= u64::from(len);
        if update_due && self.config.version == Version::V2 && !stream.update_queued {
            stream.update_queued = true;
            self.updates.push_back(id);
        }
    }

    /// The next control frame to send. At most one update per stream and one NOP wait here.
    pub fn poll_control(&mut self) -> Option<Control> {
        if core::mem::take(&mut self.nop_pending) {
            return Some(Control::Nop(self.config.version));
        }
        let id = self.updates.pop_front()?;
        let stream = self.streams.get_mut(&id)?;
        stream.update_queued = false;
        let update = Update { consumed: stream.consumed_total, window: self.config.stream_buffer };
        Some(Control::Update { stream: id, update })
    }

    /// Takes a stream out of the table, the queue and the counts.
    fn release(&mut self, id: u32) -> Option<Stream<T>> {
        let stream = self.streams.remove(&id)?;
        self.buffered -= u64::from(stream.unconsumed);
        self.waiting -= u32::from(stream.tag.is_none());
        if stream.update_queued {
            self.updates.retain(|queued| *queued != id);
        }
        Some(stream)
    }
}
