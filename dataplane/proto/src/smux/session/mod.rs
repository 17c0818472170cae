//! The state machine of one smux session, at the level of headers (dmsg-wire 6).
//!
//! It never sees payload. Its methods come in four kinds:
//!
//! * questions: `stream`, `streams`, `may_receive`, `next_timeout`;
//! * inputs: `handle_header` and `handle_update` in the order of arrival, `handle_timeout`;
//! * requests: `open`, `accept`, `reserve`, `finish`, `reset`, `forget`, `consumed`;
//! * output: `poll_control`. Drain it after each input or batch of requests.
//!
//! FIN headers are returned, because they belong in order with a stream's data; SYN headers come with the control frames, before
//! which no data of their stream is granted, or are returned by `open_with_header`. Before each frame the caller asks
//! `may_receive`; while it says no, the rest of the connection is left unread: the only flow control of version 1.

mod incoming;
mod stream;

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use hashbrown::HashMap;

pub use incoming::{Incoming, Payload};
pub use stream::Stream;

use super::{Config, DeadReason, Header, OpenError, Role, Update, Version};

/// A table larger than this gives memory back when most of its streams are gone.
const SHRINK_ABOVE: usize = 64;

/// One smux session. `T` is the owner's tag on each stream.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Session<T: Copy> {
    config: Config,
    streams: HashMap<u32, Stream<T>>,
    /// The id of the next own stream; none when they are used up.
    next_id: Option<u32>,
    /// Streams of the peer that exist.
    inbound_open: u32,
    /// Of these, streams that were not accepted yet.
    waiting: u32,
    /// Delivered and not consumed bytes of all streams.
    buffered: u64,
    /// Own streams whose SYN has to be sent.
    syns: VecDeque<u32>,
    /// Ids of streams that were reset and whose FIN has to be sent.
    finishes: VecDeque<u32>,
    /// Streams whose update has to be sent; each at most once.
    updates: VecDeque<u32>,
    nop_pending: bool,
    nop_due: Option<u64>,
    last_byte_at: u64,
    dead: bool,
}

/// A frame to send that belongs to no place in a stream's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Sign of life.
    Nop(Version),
    /// A stream of ours begins, or one that was reset ends.
    Header(Header),
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
            Self::Header(header) => out.extend_from_slice(&header.encode()),
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
            inbound_open: 0,
            waiting: 0,
            buffered: 0,
            syns: VecDeque::new(),
            finishes: VecDeque::new(),
            updates: VecDeque::new(),
            nop_pending: false,
            nop_due: config.keepalive_ns.map(|interval| now.saturating_add(interval)),
            last_byte_at: now,
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

    /// How many of them the peer opened.
    #[must_use]
    pub const fn inbound_count(&self) -> u32 {
        self.inbound_open
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
            self.last_byte_at = now;
        }
        if self.silence_deadline() <= now {
            self.dead = true;
            return Some(DeadReason { silent_ns: now.saturating_sub(self.last_byte_at) });
        }
        if self.nop_due.is_some_and(|due| due <= now) {
            self.nop_due = Some(now.saturating_add(interval));
            self.nop_pending = true;
        }
        None
    }

    fn silence_deadline(&self) -> u64 {
        self.last_byte_at.saturating_add(self.config.silence_timeout_ns)
    }

    /// Opens a stream and queues its SYN. Data may follow once `poll_control` gave the SYN out: there is no answer to wait for.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&mut self, tag: T) -> Result<u32, OpenError> {
        let (id, _) = self.open_with_header(tag)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.syn_queued = true;
            self.syns.push_back(id);
        }
        Ok(id)
    }

    /// As [`open`](Self::open), but the caller sends the SYN header itself, before the stream's data.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_with_header(&mut self, tag: T) -> Result<(u32, Header), OpenError> {
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
        self.streams.insert(id, Stream::new(true, Some(tag)));
        Ok((id, Header::syn(self.config.version, id)))
    }

    /// The number of streams as an error when no more may exist.
    fn check_room(&self) -> Result<(), u32> {
        let open = u32::try_from(self.streams.len()).unwrap_or(u32::MAX);
        if open < self.config.streams_max { Ok(()) } else { Err(open) }
    }

    /// Whether a stream of ours waits for its SYN to be sent: nothing is granted to it until then.
    #[must_use]
    pub fn is_syn_queued(&self, id: u32) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.syn_queued)
    }

    /// Takes a stream of the peer. Nothing is sent (dmsg-wire 6).
    pub fn accept(&mut self, id: u32, tag: T) {
        if let Some(stream) = self.streams.get_mut(&id) {
            self.waiting -= u32::from(stream.tag.is_none());
            stream.tag = Some(tag);
        }
    }

    /// Spends up to `want` bytes of what may be sent now and returns how many: send exactly these as one data frame.
    /// 0: no credit, an unknown, finished or broken stream, or one whose SYN is still queued.
    pub fn reserve(&mut self, id: u32, want: u16) -> u16 {
        let Some(stream) = self.streams.get_mut(&id) else { return 0 };
        let granted = want.min(self.config.frame_max);
        stream.reserve(self.config.version, granted)
    }

    /// Ends our direction: the FIN header, to be sent behind the stream's data. None for unknown streams and those
    /// finished before. With the peer's FIN here already, the stream is forgotten; so is one whose SYN was not sent yet, of
    /// which the peer never hears.
    pub fn finish(&mut self, id: u32) -> Option<Header> {
        let stream = self.streams.get_mut(&id).filter(|stream| !stream.sent_fin)?;
        if stream.syn_queued {
            self.release(id);
            return None;
        }
        stream.sent_fin = true;
        if stream.received_fin {
            self.release(id);
        }
        Some(Header::fin(self.config.version, id))
    }

    /// Ends a stream at once, both directions, and forgets it: queues a FIN unless one was sent, for smux has no reset, and the
    /// peer cannot tell this from an orderly end (quirk, dmsg-wire 6). Returns its tag.
    pub fn reset(&mut self, id: u32) -> Option<T> {
        if self.finish(id).is_some() {
            self.finishes.push_back(id);
        }
        self.forget(id)
    }

    /// Forgets a stream, whatever the peer still sends on it; that will be dropped. After [`finish`](Self::finish) this
    /// is how a stream ends whose peer never finishes. Returns its tag.
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

    /// The next control frame to send: NOP, FINs of streams that were reset, SYNs, updates. What waits here is bounded: one NOP,
    /// one update or SYN per stream, and FINs by [`Config::pending_finishes_max`] and the streams of our own.
    pub fn poll_control(&mut self) -> Option<Control> {
        let version = self.config.version;
        if core::mem::take(&mut self.nop_pending) {
            return Some(Control::Nop(version));
        }
        if let Some(id) = self.finishes.pop_front() {
            return Some(Control::Header(Header::fin(version, id)));
        }
        if let Some(id) = self.syns.pop_front() {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.syn_queued = false;
            }
            return Some(Control::Header(Header::syn(version, id)));
        }
        let id = self.updates.pop_front()?;
        let update = self.streams.get_mut(&id)?.announce(self.config.stream_buffer);
        Some(Control::Update { stream: id, update })
    }

    /// Takes a stream out of the table, the queue and the counts.
    fn release(&mut self, id: u32) -> Option<Stream<T>> {
        let stream = self.streams.remove(&id)?;
        self.buffered -= u64::from(stream.unconsumed);
        self.waiting -= u32::from(stream.tag.is_none());
        self.inbound_open -= u32::from(!stream.local);
        if stream.update_queued {
            self.updates.retain(|queued| *queued != id);
        }
        if stream.syn_queued {
            self.syns.retain(|queued| *queued != id);
        }
        if self.streams.capacity() > SHRINK_ABOVE && self.streams.len() < self.streams.capacity() / 8 {
            self.streams.shrink_to(self.streams.len() * 2);
        }
        Some(stream)
    }
}
