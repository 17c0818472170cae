//! The handshake lane: what costs a curve operation runs beside the workers, never inside a turn.
//!
//! In: [`Job`]s, each with its owner's slot and generation and the bytes to judge. Out: one [`Done`] for each, given to the
//! worker that asked. A worker sees only the trait [`Lane`]; behind it are a few threads shared by all workers ([`LaneThreads`])
//! or, for the simulator and for tests, the same queue in the worker's own turns ([`InlineLane`]).
//!
//! ```text
//!  worker ── submit ──► JobQueue: established sessions, by session in turns ──┐
//!    ▲                            strangers, by address prefix in turns     ──┴─► Verifier (ECDH, ML-KEM, signatures)
//!    └────── take ◄────────────────────────────────────────────────────────────────┘
//! ```
//!
//! * Requests and responses of established sessions come before strangers; but one job in
//!   [`ESTABLISHED_IN_A_ROW_MAX`](crate::limits::ESTABLISHED_IN_A_ROW_MAX) + 1 is a stranger's when one waits, because anybody
//!   can make a key and then ask for signatures to be checked without end.
//! * Strangers take turns by prefix only while several wait: one address alone may use the whole lane.
//! * The lane verifies; counters of packets and sealing stay in the worker. A job whose owner is gone is taken back
//!   ([`Lane::cancel`]); when it is too late for that, the worker drops what comes and counts it.

mod inline;
mod queue;
mod threads;
mod verifier;

use std::net::IpAddr;
use std::sync::Arc;

use ringwire_proto::identity::PublicKey;
use ringwire_proto::noise::{Handshake, HandshakeError, Hybrid, Outcome};
use ringwire_proto::object::ObjectError;

pub use inline::{Cost, InlineLane};
pub use queue::{JobQueue, Port};
pub use threads::{LaneThreads, StartLaneError, default_threads};
pub use verifier::Verifier;

use crate::driver::Nanos;
use crate::prefix::Prefix;
use crate::slab::Key;

/// What a worker sees of the lane.
pub trait Lane: Send {
    /// Hands over a job; exactly one [`Done`] will come for it, unless it is refused and comes back at once: far too many jobs of
    /// its class are under way. Before it comes to that, whoever has most of those that wait is refused
    /// ([`Finding::Refused`]).
    ///
    /// # Errors
    /// The job itself.
    fn submit(&mut self, now: Nanos, job: Job) -> Result<(), Job>;

    /// The owner is gone. A job of it that nobody has begun comes back as [`Finding::Cancelled`].
    fn cancel(&mut self, owner: Owner);

    /// The next result, if there is one by now.
    fn take(&mut self, now: Nanos) -> Option<Done>;

    /// When to ask again; `None`: the worker's driver will be woken.
    fn due(&self) -> Option<Nanos>;
}

/// Whose job it is: place and generation in a table of the worker. One job at a time for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A connection in its handshake.
    Session(Key),
    /// A stream with a request or a response.
    Half(Key),
}

/// In which of the two queues a job waits, and behind whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Of this session.
    Established(Key),
    /// Of somebody who comes from here.
    Stranger(Prefix),
}

/// Something to verify.
#[derive(Debug)]
pub struct Job {
    /// Who gets the result.
    pub owner: Owner,
    /// Where it waits.
    pub class: Class,
    /// What there is to do.
    pub work: Work,
}

/// What there is to do.
pub enum Work {
    /// Message 1 of a session handshake: to be read and answered (dmsg-wire 2.3). Its frame, length included.
    Greet {
        /// Two bytes of length and the message.
        frame: Vec<u8>,
        /// What to do about the post-quantum offer: the worker's setting as it is now.
        hybrid: Hybrid,
    },
    /// Message 3: the peer proves its key.
    Prove {
        /// As it was after message 2.
        handshake: Box<Handshake>,
        /// Two bytes of length and the message.
        frame: Vec<u8>,
    },
    /// A signed request (dmsg-wire 9.1); a question for the own address is answered and the answer signed (10.6).
    Request {
        /// The signed object.
        signed: Arc<[u8]>,
        /// Whose session it came on.
        peer: PublicKey,
        /// Where that session comes from.
        address: IpAddr,
    },
    /// A signed response (dmsg-wire 9.2).
    Response {
        /// The signed object.
        signed: Arc<[u8]>,
        /// The request it must answer.
        request_hash: [u8; 32],
        /// Who must have signed it.
        destination: PublicKey,
    },
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Greet { .. } => "Greet",
            Self::Prove { .. } => "Prove",
            Self::Request { .. } => "Request",
            Self::Response { .. } => "Response",
        })
    }
}

/// A finished job.
#[derive(Debug)]
pub struct Done {
    /// As in the job.
    pub owner: Owner,
    /// What came out.
    pub finding: Finding,
}

/// What came out.
#[derive(Debug)]
pub enum Finding {
    /// Message 1 is good: the handshake goes on, and message 2 in its frame is to be sent; or it failed.
    Greeted(Result<Greeted, HandshakeError>),
    /// Message 3 is good: the peer's key and the keys of the session; or it failed.
    Proven(Result<Box<Outcome>, HandshakeError>),
    /// The request is valid, or why not.
    Request(Result<CheckedRequest, ObjectError>),
    /// The response is valid and an acceptance, or why not.
    Response(Result<(), ObjectError>),
    /// Nothing was done: the owner had gone.
    Cancelled,
    /// Nothing was done: there were too many jobs, and most of them from where this one came from.
    Refused,
}

/// A handshake after message 2.
pub struct Greeted {
    /// It waits for message 3.
    pub handshake: Box<Handshake>,
    /// Message 2 in its frame.
    pub answer: Vec<u8>,
}

impl std::fmt::Debug for Greeted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Greeted").field("answer_len", &self.answer.len()).finish_non_exhaustive()
    }
}

/// What a worker needs to know of a valid request.
#[derive(Debug)]
pub struct CheckedRequest {
    /// Who asks, as the request says and its signature proves.
    pub source: Option<PublicKey>,
    /// Who is asked.
    pub destination: Option<PublicKey>,
    /// The session's own peer asks us for its address: the signed answer.
    pub answer: Option<Vec<u8>>,
}
