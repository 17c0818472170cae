//! The state machine of one yamux session, at the level of headers (dmsg-wire 5).
//!
//! It never sees payload. Its methods come in four kinds:
//!
//! * questions: `stream`, `streams`, `may_open`, `next_timeout`;
//! * inputs: `handle_header` for every header in the order of arrival, `handle_bytes_received`, `handle_timeout`;
//! * requests: `open`, `accept`, `reserve`, `finish`, `reset`, `consumed`, `grant_extra`, `ping`, `go_away`;
//! * outputs: `poll_control` (headers to send) and `poll_event`. Drain both after each input or batch of requests.
//!
//! Two kinds of headers are *returned* instead of queued, because they belong in order with a stream's data: FIN from
//! `finish`, and SYN from `open_with_header`. The data headers are the caller's: `reserve`, then
//! [`Header::data`](super::Header::data). A stream's SYN goes first, so `reserve` grants nothing while one is queued.
//!
//! Cost: one lookup per frame without flags. Memory: nothing beyond the struct until the first stream.
//! Order of outputs follows the order of inputs only, never the order of a hash table.

mod control;
mod incoming;
mod links;
mod requests;
mod timers;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem;

pub use control::Event;
pub use incoming::{Incoming, Payload};
use links::{Chain, List, Streams};
pub(super) use links::{Links, Output, Timer};
pub use timers::Timeout;

use super::{Config, OpenError, Role, Stream};

/// Own ids stay below this one.
const IDS_END: u32 = u32::MAX - 1;

/// A table that shrank below an eighth of its capacity gives memory back, if it is above this many streams.
const SHRINK_ABOVE: usize = 64;

/// One yamux session. `T` is the owner's tag on each stream: the lookup of a frame answers with it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Session<T: Copy> {
    config: Config,
    streams: Streams<T>,
    /// The next id to try for an own stream.
    next_id: u32,
    /// Streams of the peer.
    inbound_open: u32,
    /// Streams of the peer that were not accepted yet.
    inbound_waiting: u32,
    /// Own streams without ACK.
    outbound_waiting: u32,
    waiting_for_ack: List,
    waiting_for_fin: List,
    handshakes: List,
    updates: List,
    /// Values of the peer's pings that wait for their answer.
    pongs: VecDeque<u32>,
    /// Ids of the peer's streams that wait for their RST.
    resets: VecDeque<u32>,
    /// Ids of own streams likewise: as many as SYNs were sent, which is not the peer's doing.
    own_resets: VecDeque<u32>,
    /// Own pings without answer, oldest first; the last `pings_unsent` have not been sent either.
    pings: VecDeque<Ping>,
    pings_unsent: usize,
    next_ping: u32,
    keepalive_due: Option<u64>,
    last_byte_at: u64,
    go_away_pending: Option<u32>,
    local_going_away: bool,
    peer_going_away: bool,
    dead: bool,
    events: VecDeque<Event>,
}

/// An own ping without answer.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Ping {
    value: u32,
    asked_at: u64,
}

impl<T: Copy> Session<T> {
    /// A fresh session; `now` starts the keepalive clock.
    #[must_use]
    pub fn new(config: Config, now: u64) -> Self {
        Self {
            config,
            streams: Streams::new(),
            next_id: match config.role {
                Role::Client => 1,
                Role::Server => 2,
            },
            inbound_open: 0,
            inbound_waiting: 0,
            outbound_waiting: 0,
            waiting_for_ack: List::default(),
            waiting_for_fin: List::default(),
            handshakes: List::default(),
            updates: List::default(),
            pongs: VecDeque::new(),
            resets: VecDeque::new(),
            own_resets: VecDeque::new(),
            pings: VecDeque::new(),
            pings_unsent: 0,
            next_ping: 0,
            keepalive_due: config.keepalive_ns.map(|interval| now.saturating_add(interval)),
            last_byte_at: now,
            go_away_pending: None,
            local_going_away: false,
            peer_going_away: false,
            dead: false,
            events: VecDeque::new(),
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
        self.streams.get(&id).map(Box::as_ref)
    }

    /// The tag of a stream, to change it. None for an unknown stream and one that was not accepted.
    pub fn tag_mut(&mut self, id: u32) -> Option<&mut T> {
        self.streams.get_mut(&id)?.tag.as_mut()
    }

    /// How many streams exist, both sides' together.
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
            self.streams.iter().map(|(id, stream)| (*id, stream.as_ref())).collect();
        streams.sort_unstable_by_key(|(id, _)| *id);
        streams.into_iter()
    }

    /// Whether [`open`](Self::open) would succeed.
    ///
    /// # Errors
    /// Why not.
    pub fn may_open(&self) -> Result<(), OpenError> {
        if self.peer_going_away {
            return Err(OpenError::PeerGoingAway);
        }
        if self.outbound_waiting >= self.config.open_backlog {
            return Err(OpenError::BacklogFull { waiting: self.outbound_waiting });
        }
        self.free_id().map(|_| ())
    }

    /// Whether the peer said that it takes no new streams (dmsg-wire 5.6).
    #[must_use]
    pub const fn is_peer_going_away(&self) -> bool {
        self.peer_going_away
    }

    /// The next own id that is free. A peer may use ids of our parity (dmsg-wire 5.2), so some can be taken.
    fn free_id(&self) -> Result<u32, OpenError> {
        // The Go peers stop at the last two ids; so does this, and adding 2 stays in range.
        let mut id = self.next_id;
        while id < IDS_END && self.streams.contains_key(&id) {
            id += 2;
        }
        if id < IDS_END { Ok(id) } else { Err(OpenError::IdsExhausted) }
    }

    /// Forgets a stream: takes it out of the table, the lists and the counts.
    fn remove(&mut self, id: u32) -> Option<Stream<T>> {
        let stream = self.streams.remove(&id)?;
        self.unlink_timer(stream.timer, stream.links[Chain::Timer as usize]);
        self.unlink_output(stream.output, stream.links[Chain::Output as usize]);
        match (stream.local, stream.established) {
            (true, false) => self.outbound_waiting -= 1,
            (true, true) => {}
            (false, established) => {
                self.inbound_open -= 1;
                self.inbound_waiting -= u32::from(!established);
            }
        }
        if self.streams.capacity() > SHRINK_ABOVE && self.streams.len() < self.streams.capacity() / 8 {
            self.streams.shrink_to(self.streams.len() * 2);
        }
        Some(*stream)
    }

    /// Closes the gap that a stream leaves in the timer list it was in.
    fn unlink_timer(&mut self, timer: Timer, links: Links) {
        let list = match timer {
            Timer::None => return,
            Timer::Open => &mut self.waiting_for_ack,
            Timer::Close => &mut self.waiting_for_fin,
        };
        list.unlink(&mut self.streams, Chain::Timer, links);
    }

    /// Closes the gap that a stream leaves in the output list it was in.
    fn unlink_output(&mut self, output: Output, links: Links) {
        let list = match output {
            Output::None => return,
            Output::Handshake => &mut self.handshakes,
            Output::Update => &mut self.updates,
        };
        list.unlink(&mut self.streams, Chain::Output, links);
    }

    /// Moves a stream to the end of another timer list.
    fn set_timer(&mut self, id: u32, timer: Timer) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let before = mem::replace(&mut stream.timer, timer);
        let links = stream.links[Chain::Timer as usize];
        self.unlink_timer(before, links);
        let list = match timer {
            Timer::None => return,
            Timer::Open => &mut self.waiting_for_ack,
            Timer::Close => &mut self.waiting_for_fin,
        };
        list.push_back(&mut self.streams, Chain::Timer, id);
    }

    /// Moves a stream to the end of another output list.
    fn set_output(&mut self, id: u32, output: Output) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let before = mem::replace(&mut stream.output, output);
        let links = stream.links[Chain::Output as usize];
        self.unlink_output(before, links);
        let list = match output {
            Output::None => return,
            Output::Handshake => &mut self.handshakes,
            Output::Update => &mut self.updates,
        };
        list.push_back(&mut self.streams, Chain::Output, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yamux::{Flags, Header};

    #[test]
    fn ids_end_with_a_typed_error() {
        for (config, last) in [(Config::client(), u32::MAX - 2), (Config::server(), u32::MAX - 3)] {
            let mut session = Session::new(config, 0);
            session.next_id = last;
            // The peer holds the ids behind the last one, which must not be searched.
            for id in [u32::MAX, u32::MAX - 1] {
                let syn = Header::window_update(id, 0).with_flags(Flags::SYN);
                assert!(session.handle_header(0, &syn).is_ok_and(|incoming| incoming.opened));
            }
            assert_eq!(session.open(0, ()), Ok(last));
            assert_eq!(session.open(0, ()), Err(OpenError::IdsExhausted));
            assert_eq!(session.may_open(), Err(OpenError::IdsExhausted));
        }
    }

    #[test]
    fn a_table_that_emptied_gives_its_memory_back() {
        let mut session = Session::new(Config { open_backlog: 3000, ..Config::server() }, 0);
        assert_eq!(session.streams.capacity(), 0, "an idle session has no table");
        let ids: Vec<u32> = (0..2000).filter_map(|tag| session.open(0, tag).ok()).collect();
        for id in &ids {
            session.reset(*id);
        }
        assert_eq!(ids.len(), 2000);
        assert!(session.streams.capacity() <= SHRINK_ABOVE, "{}", session.streams.capacity());
        assert_eq!((session.outbound_waiting, session.inbound_open), (0, 0));
    }
}
