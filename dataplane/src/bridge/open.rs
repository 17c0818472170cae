//! How a bridge opens: request, forward, response (dmsg-wire 7, 9, 10.4-10.6, 11.4).
//!
//! Objects are cut off the head of a stream, opened with the session's key, verified, and sealed again for the other
//! session: the signed bytes are the same. A refusal is a closed stream, never a response of our own.

use ringwire_proto::object::{
    self, Generation, ObjectError, PING_MARKER, StreamRequest, StreamResponse, open_request, open_response,
    sign_object,
};

use super::{Expected, Half, State};
use crate::counters::Counter;
use crate::driver::Driver;
use crate::limits;
use crate::session::Session;
use crate::slab::Key;
use crate::worker::Worker;

/// What stands at the head of a stream.
enum Head {
    /// Not all of it has arrived.
    Incomplete,
    /// The liveness ping (dmsg-wire 10.5).
    Ping,
    /// A signed object, opened with the session's key.
    Object(Vec<u8>),
    /// Something that could not be opened.
    Unreadable,
}

impl<D: Driver> Worker<D> {
    /// A client opened a stream: acknowledged at once, even when it will be refused (dmsg-wire 5.3).
    pub(crate) fn accept_stream(&mut self, session_key: Key, stream: u32) {
        let now = self.driver.now();
        let half = self.halves.insert(Half::new(session_key, stream, State::Request, false));
        self.counters.count(Counter::StreamsOpened);
        let Some(open) = self.sessions.find_mut(session_key).and_then(Session::open_mut) else { return };
        open.mux.accept(stream, half);
        if open.mux.inbound_count() > limits::STREAMS_PER_SESSION_MAX {
            self.counters.count(Counter::RefusedStreamLimit);
            self.end_half(half);
            return;
        }
        if !self.promise_window(half) {
            self.end_half(half);
            return;
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
        if self.verifications_left == 0 {
            // Its turn comes in the next turn; the bytes wait where they are.
            if !half.deferred {
                half.deferred = true;
                self.deferred.push(half_key);
            }
            return;
        }
        match (self.take_head(half_key), is_request) {
            (Head::Incomplete, _) => {}
            (Head::Ping, true) => {
                self.counters.count(Counter::StreamPings);
                self.queue_bytes(half_key, &PING_MARKER);
                self.end_half(half_key);
            }
            (Head::Object(signed), true) => self.handle_request(half_key, &signed),
            (Head::Object(signed), false) => self.handle_response(half_key, &signed),
            (Head::Unreadable, true) => {
                self.counters.count(Counter::RefusedObject);
                self.end_half(half_key);
            }
            (Head::Ping | Head::Unreadable, false) => self.refuse_response(half_key),
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
        let (session, stream) = (half.session, half.stream);
        let Some(open) = self.sessions.find_mut(session).and_then(Session::open_mut) else {
            return Head::Incomplete;
        };
        open.mux.consumed(stream, packet.len());
        if len == 0 {
            return Head::Ping;
        }
        self.verifications_left -= 1;
        match open.opener.open(&mut packet[prefix.len()..]) {
            Ok(signed) => Head::Object(signed.to_vec()),
            Err(fault) => {
                tracing::debug!(peer = %open.peer, %fault, "object not opened");
                Head::Unreadable
            }
        }
    }

    fn handle_request(&mut self, half_key: Key, signed: &[u8]) {
        let Some(half) = self.halves.find(half_key) else { return };
        let Some(peer) = self.sessions.find(half.session).and_then(Session::open).map(|open| open.peer)
        else {
            return;
        };
        let request = match open_request(signed) {
            Ok(request) => request,
            Err(fault) => {
                tracing::debug!(%peer, %fault, "request refused");
                return self.refuse_request(half_key, Counter::RefusedObject);
            }
        };
        if request.source.key != Some(peer) {
            return self.refuse_request(half_key, Counter::RefusedSource);
        }
        if self.is_draining() {
            return self.refuse_request(half_key, Counter::RefusedDraining);
        }
        if request.is_ip_request_to(&self.identity.public_key) {
            return self.answer_ip_request(half_key, signed);
        }
        self.forward_request(half_key, &request, signed);
    }

    /// Answers with the address this session comes from, signed by us, who are the destination (dmsg-wire 10.6).
    fn answer_ip_request(&mut self, half_key: Key, signed: &[u8]) {
        let Some(half) = self.halves.find(half_key) else { return };
        let Some(session) = self.sessions.find(half.session) else { return };
        let ip = match session.peer_address.ip().to_canonical() {
            std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
            std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let response = StreamResponse {
            request_hash: object::object_hash(signed),
            accepted: true,
            ip,
            ..StreamResponse::default()
        };
        let signed = sign_object(&self.identity.secret_key, &response.encode(Generation::Go2026));
        self.counters.count(Counter::IpRequests);
        self.queue_object(half_key, &signed);
        self.end_half(half_key);
    }

    fn forward_request(&mut self, half_key: Key, request: &StreamRequest, signed: &[u8]) {
        let now = self.driver.now();
        let destination = request.destination.key;
        let session = destination.and_then(|key| self.directory.get(&key)).copied();
        let (Some(destination), Some(session)) = (destination, session) else {
            return self.refuse_request(half_key, Counter::RefusedDestination);
        };
        let forward_key = self.halves.insert(Half::new(session, 0, State::Response, true));
        if !self.promise_window(forward_key) {
            self.halves.remove(forward_key);
            return self.end_half(half_key);
        }
        let Some(stream) = self.open_stream(session, forward_key) else {
            self.release_promise(forward_key);
            self.halves.remove(forward_key);
            return self.refuse_request(half_key, Counter::RefusedOpen);
        };
        self.counters.count(Counter::ForwardsOpened);
        let source_session = self.halves.find(half_key).map_or(Key::NONE, |half| half.session);
        if let Some(forward) = self.halves.find_mut(forward_key) {
            forward.stream = stream;
            forward.partner = half_key;
            forward.source = source_session;
            forward.expected =
                Some(Box::new(Expected { request_hash: object::object_hash(signed), destination }));
        }
        if let Some(half) = self.halves.find_mut(half_key) {
            half.partner = forward_key;
            half.source = session;
            half.state = State::Waiting;
            half.deadline = u64::MAX;
        }
        self.queue_object(forward_key, signed);
        self.set_deadline(forward_key, now + limits::FORWARD_TIMEOUT_NS);
        self.arm_session_timer(session);
    }

    fn handle_response(&mut self, forward_key: Key, signed: &[u8]) {
        let Some(forward) = self.halves.find_mut(forward_key) else { return };
        let source_key = forward.partner;
        let Some(expected) = forward.expected.take() else { return };
        // All three checks: a refusal is a failed forward and is not passed on (dmsg-wire 10.4).
        let outcome: Result<_, ObjectError> =
            open_response(signed, &expected.request_hash, &expected.destination);
        if let Err(fault) = outcome {
            tracing::debug!(destination = %expected.destination, %fault, "response refused");
            return self.refuse_response(forward_key);
        }
        if self.halves.find(source_key).is_none() {
            return self.end_half(forward_key);
        }
        self.queue_object(source_key, signed);
        if self.halves.find(source_key).is_none() {
            return self.end_half(forward_key);
        }
        self.counters.count(Counter::BridgesOpened);
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
        self.set_deadline(source_key, deadline);
        // What came behind the objects is the next layer's already (dmsg-wire 7).
        self.pass_early(source_key);
        self.pass_early(forward_key);
    }

    /// Closes the source's stream; nothing was opened at a destination yet.
    fn refuse_request(&mut self, half_key: Key, counter: Counter) {
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
