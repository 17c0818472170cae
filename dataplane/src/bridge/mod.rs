//! Stream to stream: two halves joined, and how they open, carry bytes and end (dmsg-wire 10.4).
//!
//! A half is one stream of one session. The half a client opened brings a request; the half we open at the destination
//! brings the response; from then on payload of one goes into the queue of the other.

mod credit;
mod fault;
mod holding;
mod open;
mod payload;
mod unanswered;

pub(crate) use open::{Source, Undecided};
pub(crate) use unanswered::Unanswered;

use std::sync::Arc;

use ringwire_proto::identity::PublicKey;
use ringwire_proto::yamux::{self, INITIAL_WINDOW};

use crate::driver::Nanos;
use crate::queue::Queue;
use crate::session::Places;
use crate::slab::Key;
use crate::team::StandIn;

/// One stream of one session. Plain data.
#[derive(Debug)]
pub(crate) struct Half {
    /// The session it belongs to.
    pub(crate) session: Key,
    /// Its id there.
    pub(crate) stream: u32,
    /// The other half; `Key::NONE` while there is none. That of a stand-in is whose partner it is.
    pub(crate) partner: Key,
    /// It is no stream of this worker: it stands for one of another worker.
    pub(crate) stand_in: Option<Box<StandIn>>,
    /// Its partner is, or was, a stand-in.
    pub(crate) crosses: bool,
    pub(crate) state: State,
    /// Bytes for this half's peer.
    pub(crate) queue: Queue,
    /// How many at the front of the queue are our own (objects, pings): no sender gets credit for them.
    pub(crate) own_len: usize,
    /// Bytes of this half's peer that have nowhere to go yet: an object in the making, or what follows it.
    pub(crate) early: Queue,
    /// Its object, while the handshake lane verifies it.
    pub(crate) verifying: Option<Arc<[u8]>>,
    /// It is in the worker's list of halves whose queue may hold pages for little payload.
    pub(crate) touched: bool,
    /// In which list of its session it waits for its turn to send.
    pub(crate) listed: Listed,
    /// Where in that list.
    pub(crate) places: Places,
    /// When payload last went out to its peer.
    pub(crate) sent_at: Nanos,
    /// The partner's peer finished: all of the queue is to be delivered, however long it takes.
    pub(crate) delivers: bool,
    /// FIN once the queue is empty.
    pub(crate) finish: bool,
    /// Its peer sent FIN.
    pub(crate) finished: bool,
    /// We opened it, towards a destination.
    pub(crate) is_dialled: bool,
    /// What a response must answer; on the destination's half until it came.
    pub(crate) expected: Option<Box<Expected>>,
    /// When its peer last sent payload.
    pub(crate) active_at: Nanos,
    /// When its peer last began a frame too large to be interactive.
    pub(crate) large_at: Nanos,
    /// Session whose bytes it sends: the partner's, kept so that turns are fair between sources after the partner is gone.
    pub(crate) source: Key,
    /// For whom its bytes are held: whoever dialled.
    pub(crate) holder: Key,
    /// Of its early bytes: those that count among its session's unbridged ones.
    pub(crate) unbridged_len: usize,
    /// It counts among the requests of its holder that are not complete.
    pub(crate) is_unfinished: bool,
    /// It counts among the dials of its holder that nobody has answered.
    pub(crate) is_dialling: bool,
    /// Credit of its peer beyond the base window that counts against the budget, in bytes.
    pub(crate) extra: usize,
    /// It is in the worker's list of those that have such credit, or had some a moment ago: once, however often it comes and goes.
    pub(crate) is_extended: bool,
    /// Such credit that does not count any more, because the stream was idle: what it is owed goes towards this first.
    pub(crate) debt: usize,
    /// Bytes of its peer delivered since `window_since`: a whole window decides whether it should be larger.
    pub(crate) window_len: usize,
    pub(crate) window_since: Nanos,
    /// Bytes its peer sent through the bridge.
    pub(crate) bridged: u64,
    /// Since when it carries payload.
    pub(crate) bridged_since: Nanos,
    /// Since when its queue waits for credit of its peer.
    pub(crate) blocked_since: Option<Nanos>,
    /// How long it waited before, in nanoseconds.
    pub(crate) blocked_ns: u64,
    /// What the clock says about it; `Nanos::MAX`: nothing.
    pub(crate) deadline: Nanos,
    /// When its entry in the wheel fires.
    pub(crate) timer_at: Nanos,
    /// That entry.
    pub(crate) timer: Key,
}

/// How far a half is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum State {
    /// A client opened it; its request is not complete.
    Request,
    /// Its request is with the destination.
    Waiting,
    /// We opened it; the response is not complete.
    Response,
    /// Payload flows.
    Bridged,
    /// Over, as far as new payload goes: the queue still goes out, then FIN.
    Ending,
}

/// In which list of its session a half waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listed {
    No,
    Urgent,
    Bulk,
}

/// What a response is checked against (dmsg-wire 9.2).
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) request_hash: [u8; 32],
    pub(crate) destination: PublicKey,
}

impl Half {
    /// A stream that was just opened, by its peer or (`is_dialled`) by us.
    pub(crate) fn new(session: Key, stream: u32, state: State, is_dialled: bool, holder: Key) -> Self {
        Self {
            session,
            stream,
            partner: Key::NONE,
            stand_in: None,
            crosses: false,
            state,
            queue: Queue::default(),
            own_len: 0,
            early: Queue::default(),
            verifying: None,
            touched: false,
            listed: Listed::No,
            places: Places::NONE,
            sent_at: 0,
            delivers: false,
            finish: false,
            finished: false,
            is_dialled,
            expected: None,
            active_at: 0,
            large_at: 0,
            source: Key::NONE,
            holder,
            unbridged_len: 0,
            is_unfinished: false,
            is_dialling: false,
            extra: 0,
            is_extended: false,
            debt: 0,
            window_len: 0,
            window_since: 0,
            bridged: 0,
            bridged_since: 0,
            blocked_since: None,
            blocked_ns: 0,
            deadline: Nanos::MAX,
            timer_at: Nanos::MAX,
            timer: Key::NONE,
        }
    }

    /// What `owner` has for a partner when that is of another worker.
    pub(crate) fn stand_in(
        owner: Key,
        state: State,
        is_dialled: bool,
        holder: Key,
        stand_in: StandIn,
    ) -> Self {
        Self {
            partner: owner,
            stand_in: Some(Box::new(stand_in)),
            ..Self::new(Key::NONE, 0, state, is_dialled, holder)
        }
    }

    /// Credit of its peer in all, in bytes.
    pub(crate) fn window(&self) -> usize {
        INITIAL_WINDOW as usize + self.extra + self.debt
    }

    /// Bytes of this worker's memory that are held for it: queued, early, or with another worker.
    pub(crate) fn held_len(&self) -> usize {
        let lent_len = self.stand_in.as_ref().map_or(0, |stand_in| stand_in.lent_len);
        self.queue.own_len() + self.early.own_len() + lent_len
    }

    /// Whether the bridge it is part of is counted here: one that crosses, where its source is.
    pub(crate) fn counts_bridge(&self) -> bool {
        self.stand_in.is_none() && !(self.crosses && self.is_dialled)
    }
}

const _: () = assert!(
    size_of::<Half>() + size_of::<yamux::Stream<Key>>() <= crate::limits::STREAM_LEN,
    "what a stream counts for covers its places in the tables"
);
