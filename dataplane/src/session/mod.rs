//! A dmsg connection, before and after its handshake (dmsg-wire 4).
//!
//! State only, plain and owned by the worker's table; what happens to it is in [`handshake`] and [`inbound`] (bytes in)
//! and in [`outbound`] (bytes out). A session belongs to one worker, so there is no lock anywhere.

mod crowd;
mod drain;
mod handshake;
mod inbound;
mod life;
mod mux;
mod outbound;
mod rival;
mod rounds;
mod share;
mod stall;

use std::net::SocketAddr;

use ringwire_proto::identity::PublicKey;
use ringwire_proto::noise::sealed::{Opener, Sealer, WindowReplay};
use ringwire_proto::noise::{DirectionKey, Handshake};

use crate::aead::AwsLcAead;
use crate::bridge::Unanswered;
use crate::coalesce::Pace;
use crate::driver::{Nanos, SocketKey};
use crate::limits;
use crate::slab::Key;

pub(crate) use crowd::Crowd;
pub(crate) use drain::{Drain, HELD_BACK_START};
pub use life::CloseReason;
pub(crate) use mux::{Frame, Mux};
pub(crate) use rival::{ContestedDial, Rival};
pub(crate) use rounds::Places;
use rounds::{Line, Rounds};
pub use share::Share;
pub(crate) use share::{Purse, Rest};
pub(crate) use stall::Stall;

/// One connection of a worker.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) socket: SocketKey,
    pub(crate) peer_address: SocketAddr,
    pub(crate) phase: Phase,
    /// A receive is with the driver.
    pub(crate) receiving: bool,
    /// Not asked for more until its multiplexer may receive again.
    pub(crate) unread: bool,
    /// A gathered send is with the driver.
    pub(crate) sending: bool,
    /// Since when.
    pub(crate) sending_since: Nanos,
    /// How fast it drains, and so how much is sent at a time.
    pub(crate) drain: Drain,
    /// It is in the worker's list of sessions that have something to send.
    pub(crate) marked: bool,
    /// Bytes outside the multiplexer, to be sent first: handshake messages, a last go-away.
    pub(crate) outbox: Vec<u8>,
    /// Once everything in the outbox is sent the connection is closed with this reason.
    pub(crate) closing: Option<CloseReason>,
    pub(crate) accepted_at: Nanos,
    /// When the session's entry in the wheel fires.
    pub(crate) timer_at: Nanos,
    /// That entry.
    pub(crate) timer: Key,
}

/// Where a connection stands.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Message 1, 2 or 3 of the session handshake is due.
    Handshake(Box<HalfOpen>),
    /// Filed under its peer's key; streams run.
    Established(Box<Established>),
}

/// A connection whose peer is a stranger still. Grows only with bytes that have arrived, and never beyond
/// [`limits::STRANGER_LEN_MAX`], all in, or [`limits::LONG_STRANGER_LEN_MAX`] with a long message 1.
pub(crate) struct HalfOpen {
    /// Its place among the half-open connections.
    pub(crate) place: Key,
    /// Bytes that were not judged yet, at most [`stash_len_max`](Self::stash_len_max).
    pub(crate) stash: Vec<u8>,
    /// Its place among those with a long message 1.
    pub(crate) long: Key,
    /// Length of that message in its frame, in bytes; 0: it is none.
    pub(crate) long_len: usize,
    pub(crate) step: Step,
}

/// How far a handshake is.
pub(crate) enum Step {
    /// The first bytes: a PROXY header, or message 1 already.
    Opening,
    /// Message 1 is due.
    First,
    /// Message 1 is with the handshake lane.
    Greeting,
    /// Message 1 was answered, message 3 is due.
    Third(Box<Handshake>),
    /// Message 3 is with the handshake lane; what follows it is the multiplexer's.
    Proving,
    /// It came out: the connection becomes a session, or ends.
    Proven,
}

impl HalfOpen {
    pub(crate) fn new() -> Self {
        Self { place: Key::NONE, stash: Vec::new(), long: Key::NONE, long_len: 0, step: Step::Opening }
    }

    /// Bytes it may have in its stash.
    pub(crate) fn stash_len_max(&self) -> usize {
        match self.step {
            Step::Opening | Step::First => limits::STRANGER_STASH_LEN_MAX.max(self.long_len),
            Step::Greeting | Step::Third(_) | Step::Proving | Step::Proven => limits::ANSWERED_STASH_LEN_MAX,
        }
    }

    /// Bytes that may still be received before some are judged.
    pub(crate) fn room(&self) -> usize {
        self.stash_len_max().saturating_sub(self.stash.len())
    }

    /// A job of it is with the handshake lane.
    pub(crate) fn is_in_lane(&self) -> bool {
        matches!(self.step, Step::Greeting | Step::Proving)
    }
}

impl std::fmt::Debug for HalfOpen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HalfOpen").field("stash_len", &self.stash.len()).finish_non_exhaustive()
    }
}

/// What an authenticated session consists of.
pub(crate) struct Established {
    pub(crate) peer: PublicKey,
    pub(crate) hybrid: bool,
    pub(crate) opened_at: Nanos,
    pub(crate) mux: Mux,
    /// Whose payload the bytes after the last header are.
    pub(crate) target: Target,
    /// One counter for all objects we send on this session, in the order of sealing (dmsg-wire 7).
    pub(crate) sealer: Sealer<AwsLcAead>,
    pub(crate) opener: Opener<AwsLcAead, WindowReplay>,
    /// The two keys, for a successor of this worker.
    pub(crate) send_key: DirectionKey,
    pub(crate) receive_key: DirectionKey,
    /// Round trip to the peer and back as pings saw it, in nanoseconds: near the smallest of late. Not the kernel's: a proxy
    /// in front of us would make every path look short.
    pub(crate) round_trip_ns: Option<Nanos>,
    pub(crate) pinged_at: Nanos,
    /// When bytes of it came last.
    pub(crate) heard_at: Nanos,
    /// What there is about other sessions of its key, if it holds it.
    pub(crate) rival: Option<Rival>,
    /// How it takes what is sent to it.
    pub(crate) stall: Stall,
    /// That of its entry in the directory.
    pub(crate) generation: u64,
    /// How its receives come.
    pub(crate) pace: Pace,
    /// Its place in the table of holders.
    pub(crate) holder: Key,
    /// Bytes that its streams sent and that wait for their bridges to open.
    pub(crate) unbridged_len: usize,
    /// Dials that its peer has not answered.
    pub(crate) unanswered: Unanswered,
    /// Received, and for later turns.
    pub(crate) rest: Rest,
    /// What it may spend on frames that bring nothing.
    pub(crate) purse: Purse,
    /// Halves with something small to send: requests, responses, keystrokes.
    pub(crate) urgent: Line,
    /// Halves with bulk to send.
    pub(crate) bulk: Rounds,
}

impl std::fmt::Debug for Established {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Established")
            .field("peer", &self.peer)
            .field("hybrid", &self.hybrid)
            .finish_non_exhaustive()
    }
}

/// Where the payload of the current frame goes, and what its header said that holds only behind the payload.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub(crate) struct Target {
    pub(crate) half: Option<Key>,
    pub(crate) finished: bool,
    pub(crate) closed: bool,
}

impl Target {
    pub(crate) const NONE: Self = Self { half: None, finished: false, closed: false };
}

impl Session {
    pub(crate) fn new(socket: SocketKey, peer_address: SocketAddr, phase: Phase, accepted_at: Nanos) -> Self {
        Self {
            socket,
            peer_address,
            phase,
            receiving: false,
            unread: false,
            sending: false,
            sending_since: 0,
            drain: Drain::default(),
            marked: false,
            outbox: Vec::new(),
            closing: None,
            accepted_at,
            timer_at: Nanos::MAX,
            timer: Key::NONE,
        }
    }

    pub(crate) fn open_mut(&mut self) -> Option<&mut Established> {
        match &mut self.phase {
            Phase::Established(open) => Some(open),
            Phase::Handshake(_) => None,
        }
    }

    pub(crate) fn open(&self) -> Option<&Established> {
        match &self.phase {
            Phase::Established(open) => Some(open),
            Phase::Handshake(_) => None,
        }
    }
}
