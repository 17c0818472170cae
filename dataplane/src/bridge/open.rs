//! How a bridge opens: request, forward, response (dmsg-wire 7, 9, 10.4-10.6, 11.4).
//!
//! Objects are cut off the head of a stream, opened with the session's key, verified by the handshake lane, and sealed again
//! for the other session: the signed bytes are the same. A refusal is a closed stream, never a response of our own.

use std::sync::Arc;

use ringwire_proto::identity::PublicKey;
use ringwire_proto::noise::sealed::SealedError;
use ringwire_proto::object::{self, ObjectError, PING_MARKER};

use super::fault::ObjectFault;
use super::{Expected, Half, State};
use crate::counters::Counter;
use crate::driver::Driver;
use crate::lane::{CheckedRequest, Class, Job, Owner, Work};
use crate::limits;
use crate::session::Session;
use crate::slab::Key;
use crate::worker::Worker;

/// A dial that waits for proofs of identity, see [`Worker::wait_for_proofs`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Undecided {
    half: Key,
    destination: PublicKey,
    proofs_left: usize,
}

/// For whom a stream is opened towards a destination.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    /// The half of the request, or who stands there for it.
    pub(crate) half: Key,
    /// Its session, for turns.
    pub(crate) session: Key,
    /// Who dials: what the bridge holds is held for it.
    pub(crate) holder: Key,
}

/// What stands at the head of a stream.
enum Head {
    /// Not all of it has arrived.
    Incomplete,
    /// The liveness ping (dmsg-wire 10.5).
    Ping,
    /// A signed object, opened with the session's key.
    Object(Vec<u8>),
    /// Something that could not be opened.
    Unreadable(SealedError),
}

impl<D: Driver> Worker<D> {
    /// A client opened a stream: acknowledged at once, even when it will be refused (dmsg-wire 5.3).
    pub(crate) fn accept_stream(&mut self, session_key: Key, stream: u32) {
        let now = self.driver.now();
        let Some(holder) = self.sessions.find(session_key).and_then(Session::open).map(|open| open.holder)
        else {
            return;
        };
        let half = self.insert_half(Half::new(session_key, stream, State::Request, false, holder));
        self.counters.count(Counter::StreamsOpened);
        let Some(open) = self.sessions.find_mut(session_key).and_then(Session::open_mut) else { return };
        open.mux.accept(stream, half);
        if open.mux.inbound_count() > limits::STREAMS_PER_SESSION_MAX {
            self.counters.count(Counter::RefusedStreamLimit);
            self.end_half(half);
            return;
        }
        if !self.admit_stream(holder) {
            self.end_half(half);
            return;
        }
        if !self.holders.begin_request(holder) {
            // As a Go peer does beyond its backlog: nothing of it stays.
            self.counters.count(Counter::RefusedUnfinished);
            self.reset_half(half);
            return;
        }
        if let Some(half) = self.halves.find_mut(half) {
            half.is_unfinished = true;
        }
        self.set_deadline(half, now + limits::REQUEST_TIMEOUT_NS);
    }

    /// Bytes arrived on a half whose object is not complete.
    pub(crate) fn advance_opening(&mut self, half_key: Key) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        let is_request = match half.state {
            State::Request => true,
            State::Response => false,
            State::Waiting | State::Bridged | State::Ending => return,
        };
        if half.verifying.is_some() {
            // What follows the object waits where it is.
            return;
        }
        let head = self.take_head(half_key);
        if !matches!(head, Head::Incomplete) {
            self.request_ended(half_key);
        }
        match (head, is_request) {
            (Head::Incomplete, _) => {}
            (Head::Ping, true) => {
                self.counters.count(Counter::StreamPings);
                self.queue_bytes(half_key, &PING_MARKER);
                self.end_half(half_key);
            }
            (Head::Object(signed), _) => self.verify_object(half_key, signed.into()),
            (Head::Unreadable(fault), true) => self.refuse_object(half_key, &fault.into()),
            (Head::Ping, false) => {
                self.note_fault(half_key, &ObjectFault::Ping);
                self.refuse_response(half_key);
            }
            (Head::Unreadable(fault), false) => {
                self.note_fault(half_key, &fault.into());
                self.refuse_response(half_key);
            }
        }
    }

    /// Cuts the object off the bytes that arrived and opens it.
    fn take_head(&mut self, half_key: Key) -> Head {
        let Some(half) = self.halves.find_mut(half_key) else { return Head::Incomplete };
        let mut prefix = [0; 2];
        if half.early.peek(&self.nodes, self.driver.pool(), &mut prefix) < prefix.len() {
            return Head::Incomplete;
        }
        let len = usize::from(u16::from_be_bytes(prefix));
        if half.early.len() < prefix.len() + len {
            return Head::Incomplete;
        }
        let mut packet = Vec::with_capacity(prefix.len() + len);
        while packet.len() < prefix.len() + len {
            let left = prefix.len() + len - packet.len();
            let Some(span) = half.early.pop(&mut self.nodes, self.driver.pool(), left) else { break };
            packet.extend_from_slice(self.driver.pool().bytes(span));
            self.driver.pool().release(span);
        }
        let (session, stream, holder) = (half.session, half.stream, half.holder);
        self.holders.discharge(holder, packet.len());
        // Behind a response nothing counts any more; behind a request everything does.
        let released = if half.state == State::Response { usize::MAX } else { packet.len() };
        self.release_unbridged(half_key, released);
        let Some(open) = self.sessions.find_mut(session).and_then(Session::open_mut) else {
            return Head::Incomplete;
        };
        open.mux.consumed(stream, packet.len());
        if len == 0 {
            return Head::Ping;
        }
        match open.opener.open(&mut packet[prefix.len()..]) {
            Ok(signed) => Head::Object(signed.to_vec()),
            Err(fault) => Head::Unreadable(fault),
        }
    }

    /// Gives an object to the handshake lane; what it finds comes to `request_checked` or `response_checked`.
    pub(crate) fn verify_object(&mut self, half_key: Key, signed: Arc<[u8]>) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        let session_key = half.session;
        let Some(session) = self.sessions.find(session_key) else { return };
        let Some(peer) = session.open().map(|open| open.peer) else { return };
        let work = match &half.expected {
            None => Work::Request { signed: Arc::clone(&signed), peer, address: session.peer_address.ip() },
            Some(expected) => Work::Response {
                signed: Arc::clone(&signed),
                request_hash: expected.request_hash,
                destination: expected.destination,
            },
        };
        half.verifying = Some(signed);
        let (owner, class) = (Owner::Half(half_key), Class::Established(session_key));
        if !self.submit(Job { owner, class, work }) {
            self.verification_refused(half_key);
        }
    }

    /// Nobody will judge a half's object.
    pub(crate) fn verification_refused(&mut self, half_key: Key) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        half.verifying = None;
        if half.state == State::Response { self.refuse_response(half_key) } else { self.end_half(half_key) }
    }

    /// The object of a half that the lane has judged; `None`: nobody waits for it any more.
    fn take_verified(&mut self, half_key: Key, state: State) -> Option<Arc<[u8]>> {
        let half = self.halves.find_mut(half_key);
        let signed = half.and_then(|half| half.verifying.take().filter(|_| half.state == state));
        if signed.is_none() {
            self.counters.count(Counter::LaneStale);
        }
        signed
    }

    /// The lane has judged a request.
    pub(crate) fn request_checked(&mut self, half_key: Key, result: Result<CheckedRequest, ObjectError>) {
        let Some(signed) = self.take_verified(half_key, State::Request) else { return };
        let Some(half) = self.halves.find(half_key) else { return };
        let Some(peer) = self.sessions.find(half.session).and_then(Session::open).map(|open| open.peer)
        else {
            return;
        };
        let request = match result {
            Ok(request) => request,
            Err(fault) => return self.refuse_object(half_key, &fault.into()),
        };
        if request.source != Some(peer) {
            tracing::debug!(%peer, source = ?request.source, "request in another's name refused");
            return self.refuse_request(half_key, Counter::RefusedSource);
        }
        if self.is_draining() {
            return self.refuse_request(half_key, Counter::RefusedDraining);
        }
        if let Some(answer) = request.answer {
            self.counters.count(Counter::IpRequests);
            self.queue_object(half_key, &answer);
            return self.end_half(half_key);
        }
        self.pass_request(half_key, request.destination, &signed);
    }

    /// A dial to somebody who is not here while proofs of identity are with the lane: that of the destination may be among
    /// them, sent before the dial was. The dial waits for a few of them. False: it waited already, or too many do.
    pub(crate) fn wait_for_proofs(
        &mut self,
        half_key: Key,
        destination: PublicKey,
        signed: Arc<[u8]>,
    ) -> bool {
        if self.undecided.len() >= limits::UNDECIDED_DIALS_MAX {
            return false;
        }
        let proving = self.await_proofs();
        // It may have come just before another worker knew that somebody waits.
        if proving == 0 || self.directory.find(&destination).is_some() {
            if self.undecided.is_empty() {
                self.stop_awaiting_proofs();
            }
            return false;
        }
        let Some(half) = self.halves.find_mut(half_key) else { return false };
        half.verifying = Some(signed);
        let proofs_left = proving.min(limits::PROOFS_WAITED_FOR_MAX);
        self.undecided.push(Undecided { half: half_key, destination, proofs_left });
        true
    }

    /// A proof of identity has come out one way or the other.
    pub(crate) fn decide_dials(&mut self) {
        let mut decided = Vec::new();
        let mut undecided = std::mem::take(&mut self.undecided);
        undecided.retain_mut(|dial| {
            dial.proofs_left -= 1;
            if dial.proofs_left > 0 && self.directory.find(&dial.destination).is_none() {
                return true;
            }
            decided.push((dial.half, dial.destination));
            false
        });
        self.undecided = undecided;
        if self.undecided.is_empty() && !decided.is_empty() {
            self.stop_awaiting_proofs();
        }
        // Those that wait on are back in their list: what follows may end a session, and with it another proof.
        for (half_key, destination) in decided {
            let half = self.halves.find_mut(half_key).filter(|half| half.state == State::Request);
            if let Some(signed) = half.and_then(|half| half.verifying.take()) {
                self.forward_to(half_key, destination, &signed);
            }
        }
    }

    pub(crate) fn pass_request(&mut self, half_key: Key, destination: Option<PublicKey>, signed: &Arc<[u8]>) {
        let Some(destination) = destination else {
            return self.refuse_request(half_key, Counter::RefusedDestination);
        };
        if self.directory.find(&destination).is_some()
            || !self.wait_for_proofs(half_key, destination, Arc::clone(signed))
        {
            self.forward_to(half_key, destination, signed);
        }
    }

    /// Passes a request on to its destination's session, on whichever worker that is.
    pub(crate) fn forward_to(&mut self, half_key: Key, destination: PublicKey, signed: &Arc<[u8]>) {
        let Some(place) = self.directory.find(&destination) else {
            return self.refuse_request(half_key, Counter::RefusedDestination);
        };
        let session = Key::from_number(place.session);
        if place.worker == self.index && self.wait_for_life(half_key, session, destination, signed) {
            return;
        }
        if !self.begin_dial(half_key) {
            return self.refuse_request(half_key, Counter::RefusedUnanswered);
        }
        if place.worker != self.index {
            return self.dial_elsewhere(half_key, place, destination, signed);
        }
        let Some(half) = self.halves.find(half_key) else { return };
        let source = Source { half: half_key, session: half.session, holder: half.holder };
        match self.dial(source, session, destination, signed) {
            Ok(forward_key) => {
                if let Some(half) = self.halves.find_mut(half_key) {
                    half.partner = forward_key;
                    half.source = session;
                    half.state = State::Waiting;
                    half.deadline = u64::MAX;
                    if half.finished {
                        self.dialler_finished(half_key);
                    }
                }
            }
            Err(Some(counter)) => self.refuse_request(half_key, counter),
            Err(None) => self.end_half(half_key),
        }
    }

    /// A client that waits for an answer has finished. A Go client that gives up does that, and so may one that has nothing to say:
    /// the answer has some time left.
    pub(crate) fn dialler_finished(&mut self, half_key: Key) {
        let Some(half) = self.halves.find(half_key) else { return };
        let deadline = (half.active_at + limits::FINISHED_DIAL_TIMEOUT_NS).max(self.driver.now());
        self.set_deadline(half_key, deadline);
    }

    /// Opens a stream towards a destination and passes the request on. An error is what counts it, unless it was counted.
    pub(crate) fn dial(
        &mut self,
        source: Source,
        session: Key,
        destination: PublicKey,
        signed: &[u8],
    ) -> Result<Key, Option<Counter>> {
        let now = self.driver.now();
        if !self.admit_stream(source.holder) {
            return Err(None);
        }
        let name = self.holders.name(source.holder);
        let open = self.sessions.find(session).and_then(Session::open);
        if !name.zip(open).is_some_and(|(name, open)| open.unanswered.admits(name)) {
            return Err(Some(Counter::RefusedUnanswered));
        }
        let forward_key = self.insert_half(Half::new(session, 0, State::Response, true, source.holder));
        let Some(stream) = self.open_stream(session, forward_key) else {
            self.take_half(forward_key);
            return Err(Some(Counter::RefusedOpen));
        };
        self.counters.count(Counter::ForwardsOpened);
        if let Some(name) = name
            && let Some(open) = self.sessions.find_mut(session).and_then(Session::open_mut)
        {
            open.unanswered.push(forward_key, name);
        }
        if let Some(forward) = self.halves.find_mut(forward_key) {
            forward.stream = stream;
            forward.partner = source.half;
            forward.source = source.session;
            forward.expected =
                Some(Box::new(Expected { request_hash: object::object_hash(signed), destination }));
        }
        self.queue_object(forward_key, signed);
        self.set_deadline(forward_key, now + limits::FORWARD_TIMEOUT_NS);
        self.arm_session_timer(session);
        Ok(forward_key)
    }

    /// The lane has judged a response.
    pub(crate) fn response_checked(&mut self, forward_key: Key, result: Result<(), ObjectError>) {
        let Some(signed) = self.take_verified(forward_key, State::Response) else { return };
        let Some(forward) = self.halves.find_mut(forward_key) else { return };
        let source_key = forward.partner;
        forward.expected = None;
        self.dial_ended(forward_key);
        if let Err(fault) = result {
            self.note_fault(forward_key, &fault.into());
            return self.refuse_response(forward_key);
        }
        self.join_halves(source_key, forward_key, &signed);
    }

    /// A dial is answered, or over.
    pub(crate) fn dial_ended(&mut self, forward_key: Key) {
        let Some(forward) = self.halves.find(forward_key).filter(|half| half.is_dialled) else { return };
        if let Some(open) = self.sessions.find_mut(forward.session).and_then(Session::open_mut) {
            open.unanswered.remove(forward_key);
        }
    }

    /// The response is good: it goes to the source, and the two halves are a bridge from here on. One of them may be a
    /// stand-in.
    pub(crate) fn join_halves(&mut self, source_key: Key, forward_key: Key, signed: &Arc<[u8]>) {
        let Some(source) = self.halves.find_mut(source_key) else { return self.end_half(forward_key) };
        if let Some(stand_in) = &mut source.stand_in {
            stand_in.answer = Some(Arc::clone(signed));
        } else {
            self.queue_object(source_key, signed);
            if self.halves.find(source_key).is_none() {
                return self.end_half(forward_key);
            }
            self.counters.count(Counter::BridgesOpened);
            let crosses = self.halves.find(forward_key).is_some_and(|half| half.stand_in.is_some());
            self.counters.add(Counter::BridgesCrossing, u64::from(crosses));
        }
        self.end_dial(source_key);
        let now = self.driver.now();
        let deadline = now + limits::BRIDGE_IDLE_TIMEOUT_NS;
        for key in [source_key, forward_key] {
            if let Some(half) = self.halves.find_mut(key) {
                half.state = State::Bridged;
                half.deadline = u64::MAX;
                half.window_since = now;
                half.bridged_since = now;
            }
        }
        if self.halves.find(source_key).is_some_and(|source| source.stand_in.is_none()) {
            self.set_deadline(source_key, deadline);
        }
        // What came behind the objects is the next layer's already (dmsg-wire 7).
        self.pass_early(source_key);
        self.pass_early(forward_key);
    }

    /// Closes the stream of a request that is none.
    fn refuse_object(&mut self, half_key: Key, fault: &ObjectFault) {
        self.note_fault(half_key, fault);
        self.refuse_request(half_key, Counter::RefusedObject);
    }

    /// Counts what is wrong with an object; the line is one of a stream, hence for debugging.
    pub(super) fn note_fault(&self, half_key: Key, fault: &ObjectFault) {
        self.counters.count(fault.counter());
        let session = self.halves.find(half_key).and_then(|half| self.sessions.find(half.session));
        let peer = session.and_then(Session::open).map(|open| open.peer);
        tracing::debug!(?peer, %fault, "object refused");
    }

    /// Closes the source's stream; nothing was opened at a destination yet.
    pub(crate) fn refuse_request(&mut self, half_key: Key, counter: Counter) {
        self.counters.count(counter);
        self.end_half(half_key);
    }

    /// The destination's answer is missing or no good: both streams are closed.
    pub(super) fn refuse_response(&mut self, forward_key: Key) {
        self.counters.count(Counter::RefusedResponse);
        let partner = self.halves.find(forward_key).map(|half| half.partner);
        self.end_half(forward_key);
        if let Some(partner) = partner {
            self.end_half(partner);
        }
    }

    /// Seals a signed object for a half's session and queues it with its length in front.
    fn queue_object(&mut self, half_key: Key, signed: &[u8]) {
        let Some(session) = self.halves.find(half_key).map(|half| half.session) else { return };
        let Some(open) = self.sessions.find_mut(session).and_then(Session::open_mut) else { return };
        let mut bytes = vec![0; 2];
        open.sealer.seal(signed, &mut bytes);
        // Fits: a packet of ours is never longer than the one it came in.
        let len = (bytes.len() - 2) as u16;
        bytes[..2].copy_from_slice(&len.to_be_bytes());
        self.queue_bytes(half_key, &bytes);
    }
}
