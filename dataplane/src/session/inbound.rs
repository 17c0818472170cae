//! Bytes of a session: cut into frames, headers to the multiplexer, payload to the halves.

use ringwire_proto::yamux::{Event, Header, Incoming, Kind, Payload, Piece, Violation};

use super::{CloseReason, Phase, Target};
use crate::counters::Counter;
use crate::driver::{Driver, ReceiveEnd, SocketKey};
use crate::limits;
use crate::planted::{self, Bug};
use crate::ring::Span;
use crate::slab::Key;
use crate::worker::Worker;

impl<D: Driver> Worker<D> {
    /// Received spans of one connection, in order. Receiving goes on at once: a session is never left unread because one
    /// of its streams is slow.
    pub(crate) fn receive(&mut self, socket: SocketKey, spans: &[Span]) {
        let Some(key) = self.session_of(socket) else {
            self.counters.count(Counter::CompletionsStale);
            return;
        };
        self.counters.count(Counter::Receives);
        if let Some(session) = self.sessions.find_mut(key) {
            session.receiving = false;
        }
        for &span in spans {
            self.counters.add(Counter::BytesReceived, span.len() as u64);
            self.receive_span(key, span);
        }
        self.arm_receive(key);
    }

    /// Asks for the next bytes of a session.
    pub(crate) fn arm_receive(&mut self, key: Key) {
        let Some(session) = self.sessions.find_mut(key).filter(|session| !session.receiving) else { return };
        // A stranger whose bytes wait for their turn is not asked for more.
        let waits = matches!(&session.phase, Phase::Handshake(half_open) if half_open.deferred);
        if !self.freezing && !waits {
            session.receiving = true;
            self.driver.receive(session.socket);
        }
    }

    /// A receive ended without bytes.
    pub(crate) fn receive_ended(&mut self, socket: SocketKey, reason: ReceiveEnd) {
        let Some(key) = self.session_of(socket) else { return };
        if let Some(session) = self.sessions.find_mut(key) {
            session.receiving = false;
        }
        match reason {
            ReceiveEnd::NoBuffers => {
                self.counters.count(Counter::ReceivesStarved);
                if planted::is(Bug::QueueFullForgotten) {
                    return;
                }
                self.starved.push(key);
            }
            ReceiveEnd::Cancelled if self.freezing => {}
            ReceiveEnd::EndOfStream | ReceiveEnd::Cancelled => {
                self.close_session(key, CloseReason::PeerClosed);
            }
            ReceiveEnd::Failed(errno) => self.close_session(key, CloseReason::ConnectionFailed(errno)),
        }
    }

    fn receive_span(&mut self, key: Key, span: Span) {
        let Some(session) = self.sessions.find_mut(key) else { return };
        if session.closing.is_some() {
            return;
        }
        let Phase::Handshake(half_open) = &mut session.phase else { return self.receive_open(key, span) };
        // Strangers' bytes are few, and may have to wait for their turn: they are copied.
        if half_open.stash.len() + span.len() > limits::STRANGER_STASH_LEN_MAX {
            // Only what fits is looked at: if that does not finish the handshake, nothing honest is lost.
            let room = limits::STRANGER_STASH_LEN_MAX - half_open.stash.len();
            half_open.stash.extend_from_slice(self.driver.pool().bytes(span.part(0, room)));
            self.advance_stranger(key);
            let rest = span.part(room, span.len() - room);
            return match self.sessions.find(key).map(|session| session.open().is_some()) {
                Some(true) => self.receive_open(key, rest),
                Some(false) => self.close_session(key, CloseReason::HandshakeFailed),
                None => {}
            };
        }
        half_open.stash.extend_from_slice(self.driver.pool().bytes(span));
        if !half_open.deferred {
            self.advance_stranger(key);
        }
    }

    /// Takes a stranger's handshake as far as its bytes and this turn allow.
    pub(crate) fn advance_stranger(&mut self, key: Key) {
        let Some(session) = self.sessions.find_mut(key) else { return };
        let Phase::Handshake(half_open) = &mut session.phase else { return };
        if self.verifications_left == 0 {
            if !half_open.deferred {
                half_open.deferred = true;
                self.deferred_strangers.push_back(key);
            }
            return;
        }
        half_open.deferred = false;
        let stash = std::mem::take(&mut half_open.stash);
        let used = self.receive_handshake(key, &stash);
        match self.sessions.find_mut(key).map(|session| &mut session.phase) {
            // Bytes right behind message 3 are the multiplexer's (dmsg-wire 4.4).
            Some(Phase::Open(_)) => self.receive_copied(key, &stash[used..]),
            Some(Phase::Handshake(half_open)) if used < stash.len() => {
                half_open.stash.extend_from_slice(&stash[used..]);
                half_open.deferred = true;
                self.deferred_strangers.push_back(key);
            }
            _ => {}
        }
        self.arm_receive(key);
    }

    /// Bytes of an open session that are not in a page.
    fn receive_copied(&mut self, key: Key, bytes: &[u8]) {
        for piece in bytes.chunks(limits::PAGE_LEN) {
            let Some(mut span) = self.driver.pool().allocate(piece.len()) else {
                return self.close_session(key, CloseReason::HandshakeFailed);
            };
            self.driver.pool().append(&mut span, piece);
            self.receive_open(key, span);
            self.driver.pool().release(span);
        }
    }

    /// Bytes of an authenticated session: frames.
    fn receive_open(&mut self, key: Key, span: Span) {
        let mut at = 0;
        let now = self.driver.now();
        if let Some(open) = self.sessions.find_mut(key).and_then(super::Session::open_mut) {
            open.mux.handle_bytes_received(now);
        }
        // One piece at a time: what a header leads to may end this very session.
        while let Some(open) = self.sessions.find_mut(key).and_then(super::Session::open_mut) {
            match open.cutter.next(self.driver.pool().bytes(span), &mut at) {
                Ok(Some(Piece::Header { header, .. })) => match open.mux.handle_header(now, &header) {
                    Ok(incoming) => self.handle_incoming(key, &header, &incoming),
                    Err(violation) => return self.fail_session(key, violation),
                },
                Ok(Some(Piece::Payload { range, last })) => {
                    let target = open.target;
                    let part = span.part(range.start, range.len());
                    match target.half {
                        Some(half) => self.receive_payload(half, part),
                        None => self.counters.add(Counter::BytesDropped, part.len() as u64),
                    }
                    if last {
                        self.end_payload(key, target);
                    }
                }
                Ok(None) => break,
                Err(fault) => return self.fail_session(key, fault.into()),
            }
        }
    }

    /// What a header means, before its payload.
    fn handle_incoming(&mut self, key: Key, header: &Header, incoming: &Incoming<Key>) {
        if incoming.opened {
            self.accept_stream(key, incoming.stream);
        }
        if incoming.reset {
            if let Some(half) = incoming.tag {
                self.half_was_reset(half);
            }
            return;
        }
        if header.kind == Kind::Ping {
            self.note_round_trips(key);
        }
        // A header may queue answers: a pong, an acknowledgement, a reset.
        self.mark(key);
        if incoming.credit > 0
            && let Some(half) = incoming.tag
        {
            self.list_half(half);
        }
        // An acknowledgement of `accept_stream` above is not in `incoming.tag` yet.
        let half = incoming.tag.or_else(|| self.sessions.find(key)?.open()?.mux.stream(incoming.stream)?.tag);
        let behind = Target { half: None, finished: incoming.finished, closed: incoming.closed };
        match incoming.payload {
            Payload::None => self.end_payload(key, Target { half, ..behind }),
            Payload::Deliver(len) => {
                self.counters.count(Counter::FramesReceived);
                if let Some(half) = half {
                    self.note_frame(half, len);
                }
                self.set_target(key, Target { half, ..behind });
            }
            Payload::Discard(_) => {
                self.counters.count(Counter::FramesReceived);
                debug_assert!(header.payload_len() > 0, "only payload is discarded");
                // A FIN may ride on data that comes behind the peer's own FIN: a violation the multiplexer reports; here the
                // stream, if any, only loses the bytes.
                self.set_target(key, Target::NONE);
            }
        }
    }

    /// Pings that were answered say how long the way is.
    fn note_round_trips(&mut self, key: Key) {
        let Some(open) = self.sessions.find_mut(key).and_then(super::Session::open_mut) else { return };
        while let Some(event) = open.mux.poll_event() {
            if let Event::PingAnswered { rtt_ns, .. } = event {
                // A longer one is mostly queueing in front of the answer: it counts for an eighth.
                open.round_trip_ns = Some(match open.round_trip_ns {
                    Some(known) if rtt_ns > known => known + (rtt_ns - known) / 8,
                    _ => rtt_ns,
                });
            }
        }
    }

    /// The round trip to a session's peer in nanoseconds, if known; asks for it at most once in `ROUND_TRIP_INTERVAL_NS`.
    pub(crate) fn round_trip(&mut self, key: Key) -> Option<u64> {
        let now = self.driver.now();
        let open = self.sessions.find_mut(key).and_then(super::Session::open_mut)?;
        if open.pinged_at == 0 || now.saturating_sub(open.pinged_at) >= limits::ROUND_TRIP_INTERVAL_NS {
            open.pinged_at = now;
            open.mux.ping(now);
        }
        open.round_trip_ns
    }

    fn set_target(&mut self, key: Key, target: Target) {
        if let Some(open) = self.sessions.find_mut(key).and_then(super::Session::open_mut) {
            open.target = target;
        }
    }

    /// What a header said that holds behind its payload.
    fn end_payload(&mut self, key: Key, target: Target) {
        self.set_target(key, Target::NONE);
        let Some(half) = target.half else { return };
        if target.finished {
            self.half_finished(half);
        }
        if target.closed {
            self.remove_half(half);
        }
    }

    /// The peer broke the rules of the multiplexer: go-away where the protocol has one, then close (dmsg-wire 5).
    fn fail_session(&mut self, key: Key, violation: Violation) {
        self.counters.count(Counter::SessionViolations);
        let Some(session) = self.sessions.find_mut(key) else { return };
        let peer = session.open().map(|open| open.peer);
        tracing::info!(?peer, %violation, "session violation");
        match violation.go_away() {
            Some(header) => {
                session.outbox.extend_from_slice(&header.encode());
                self.close_after_flush(key, CloseReason::Violation);
            }
            None => self.close_session(key, CloseReason::Violation),
        }
    }
}
