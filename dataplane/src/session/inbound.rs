//! Bytes of a session: cut into frames, headers to the multiplexer, payload to the halves.

use ringwire_proto::smux;
use ringwire_proto::yamux::{self, Incoming, Kind, Payload};

use super::mux::Violation;
use super::share::Share;
use super::{CloseReason, Mux, Phase, Session, Target};
use crate::bridge::{Half, State};
use crate::counters::Counter;
use crate::driver::{Driver, ReceiveEnd, SocketKey};
use crate::limits;
use crate::planted::{self, Bug};
use crate::ring::Span;
use crate::slab::Key;
use crate::warn;
use crate::worker::Worker;

impl<D: Driver> Worker<D> {
    /// Received spans of one connection, in order; `more`: it has more already. Receiving goes on once all of it is handled: a session is
    /// never left unread because one of its streams is slow.
    pub(crate) fn receive(&mut self, socket: SocketKey, spans: &[Span], more: bool) {
        let Some(key) = self.session_of(socket) else {
            self.counters.count(Counter::CompletionsStale);
            return;
        };
        self.counters.count(Counter::Receives);
        if let Some(session) = self.sessions.find_mut(key) {
            session.receiving = false;
        }
        let len: usize = spans.iter().map(|span| span.len()).sum();
        self.counters.add(Counter::BytesReceived, len as u64);
        self.receive_within_share(key, spans, more);
    }

    /// Asks for the next bytes of a session.
    pub(crate) fn arm_receive(&mut self, key: Key) {
        let Some(session) = self.sessions.find_mut(key).filter(|session| !session.receiving) else { return };
        if session.open().is_some_and(|open| !open.rest.is_empty()) {
            return;
        }
        session.unread = session.open().is_some_and(|open| !open.mux.may_receive());
        if session.unread {
            return;
        }
        // A stranger is asked for what fits into its stash, and for nothing when that is full: the rest waits in the kernel.
        let len_max = match &session.phase {
            Phase::Handshake(half_open) => half_open.room(),
            Phase::Established(open) => open.rest.receive_len_max(),
        };
        if !self.freezing && len_max > 0 {
            session.receiving = true;
            self.driver.receive(session.socket, len_max);
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
            ReceiveEnd::EndOfStream => {
                self.finish_streams(key);
                self.close_session(key, CloseReason::PeerClosed);
            }
            ReceiveEnd::Cancelled => self.close_session(key, CloseReason::PeerClosed),
            ReceiveEnd::Failed(errno) => self.close_session(key, CloseReason::ConnectionFailed(errno)),
        }
    }

    /// The peer has ended its connection in order. Go clients close sessions so, without a word on their streams: it is the end of each of
    /// them, and what they carried is delivered, FIN behind it (dmsg-wire 5.6). Not where a frame was cut: that, like a reset or a
    /// time-out, is told to the other side by a reset, its only sign that something is missing.
    fn finish_streams(&mut self, key: Key) {
        let open = self.sessions.find(key).and_then(Session::open);
        let Some(open) = open.filter(|open| open.mux.is_between_frames() && open.rest.is_empty()) else {
            return;
        };
        for half in open.mux.tags() {
            let is_bridged =
                |half: &Half| matches!(half.state, State::Bridged | State::Ending) && !half.finished;
            if self.halves.find(half).is_some_and(is_bridged) {
                self.half_finished(half);
            }
        }
    }

    /// Handles a span as far as the share goes; returns how many bytes that was.
    pub(super) fn receive_span(&mut self, key: Key, span: Span, share: &mut Share) -> usize {
        match self.sessions.find_mut(key) {
            Some(Session { closing: None, phase: Phase::Established(_), .. }) => {
                self.receive_open(key, span, share)
            }
            Some(Session { closing: None, phase: Phase::Handshake(_), .. }) => {
                // What a stranger may send before it is judged is less than any share.
                self.receive_stranger(key, span);
                span.len()
            }
            Some(Session { closing: Some(_), .. }) | None => span.len(),
        }
    }

    /// Bytes of an open session that are not in a page.
    pub(super) fn receive_copied(&mut self, key: Key, bytes: &[u8]) {
        // A stash is less than a share.
        let mut share = Share::ALL;
        for piece in bytes.chunks(limits::PAGE_LEN) {
            let Some(mut span) = self.driver.pool().allocate(piece.len()) else {
                return self.close_session(key, CloseReason::HandshakeFailed);
            };
            self.driver.pool().append(&mut span, piece);
            self.receive_open(key, span, &mut share);
            self.driver.pool().release(span);
        }
    }

    /// Bytes of an authenticated session: frames of the multiplexer that its first byte told.
    fn receive_open(&mut self, key: Key, span: Span, share: &mut Share) -> usize {
        if share.is_used_up() {
            return 0;
        }
        let now = self.driver.now();
        let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) else { return span.len() };
        open.heard_at = now;
        if let Mux::Unknown { .. } = open.mux {
            let Some(&first) = self.driver.pool().bytes(span).first() else { return span.len() };
            match Mux::of_first_byte(first, self.settings.yamux, now) {
                Ok(mux) => self.settle_mux(key, mux),
                Err(violation) => {
                    self.fail_session(key, violation);
                    return span.len();
                }
            }
        }
        let mut seen = Seen::default();
        let outcome = match self.sessions.find_mut(key).and_then(Session::open_mut).map(|open| &mut open.mux)
        {
            Some(Mux::Yamux(session, _)) => {
                session.handle_bytes_received(now);
                self.receive_yamux(key, span, share, &mut seen)
            }
            Some(Mux::Smux(session, _)) => {
                session.handle_bytes_received(now);
                self.receive_smux(key, span, share, &mut seen)
            }
            Some(Mux::Unknown { .. }) | None => Ok(span.len()),
        };
        let taken = outcome.and_then(|taken| self.settle_purse(key, seen).map(|()| taken));
        let taken = taken.unwrap_or_else(|violation| {
            self.fail_session(key, violation);
            span.len()
        });
        share.len = share.len.saturating_sub(taken);
        taken
    }

    /// What frames without use cost the session, and what those with payload are worth to it.
    fn settle_purse(&mut self, key: Key, seen: Seen) -> Result<(), Violation> {
        let now = self.driver.now();
        let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) else { return Ok(()) };
        if open.purse.settle(now, seen.with_payload, seen.useless) { Ok(()) } else { Err(Violation::Useless) }
    }

    /// The multiplexer of a session is known: its clocks start.
    fn settle_mux(&mut self, key: Key, mux: Mux) {
        let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) else { return };
        tracing::debug!(peer = %open.peer, multiplexer = mux.name(), "session multiplexer");
        self.counters.add(Counter::SessionsSmux, u64::from(matches!(mux, Mux::Smux(..))));
        open.mux = mux;
        self.arm_session_timer(key);
    }

    /// Opens a stream towards a session's peer. One that has not spoken yet is taken for yamux (dmsg-wire 4.5).
    pub(crate) fn open_stream(&mut self, key: Key, half: Key) -> Option<u32> {
        let now = self.driver.now();
        if let Mux::Unknown { .. } = self.sessions.find(key)?.open()?.mux {
            self.settle_mux(key, Mux::yamux(self.settings.yamux, now));
        }
        self.sessions.find_mut(key)?.open_mut()?.mux.open(now, half)
    }

    fn receive_yamux(
        &mut self,
        key: Key,
        span: Span,
        share: &mut Share,
        seen: &mut Seen,
    ) -> Result<usize, Violation> {
        let mut at = 0;
        let now = self.driver.now();
        // One piece at a time: what a header leads to may end this very session.
        while share.frames > 0 {
            let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) else {
                return Ok(span.len());
            };
            let Mux::Yamux(session, cutter) = &mut open.mux else { return Ok(span.len()) };
            let piece =
                cutter.next(self.driver.pool().bytes(span), &mut at).map_err(yamux::Violation::from)?;
            match piece {
                Some(yamux::Piece::Header { header, .. }) => {
                    let incoming = session.handle_header(now, &header).map_err(Violation::from)?;
                    share.frames -= 1;
                    seen.note(incoming.payload);
                    if header.kind == Kind::Ping {
                        self.note_round_trips(key);
                    }
                    self.handle_incoming(key, &incoming);
                }
                Some(yamux::Piece::Payload { range, last }) => {
                    let target = open.target;
                    self.take_payload(key, target, span.part(range.start, range.len()), last);
                }
                None => return Ok(span.len()),
            }
        }
        Ok(at)
    }

    /// As [`receive_yamux`](Self::receive_yamux). What the frames mean is the same, save that a peer can break a single
    /// stream.
    fn receive_smux(
        &mut self,
        key: Key,
        span: Span,
        share: &mut Share,
        seen: &mut Seen,
    ) -> Result<usize, Violation> {
        let mut at = 0;
        let now = self.driver.now();
        while share.frames > 0 {
            let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) else {
                return Ok(span.len());
            };
            let Mux::Smux(session, cutter) = &mut open.mux else { return Ok(span.len()) };
            let piece =
                cutter.next(self.driver.pool().bytes(span), &mut at).map_err(smux::Violation::from)?;
            let incoming = match piece {
                Some(smux::Piece::Header(header)) => {
                    session.handle_header(now, &header).map_err(Violation::from)?
                }
                Some(smux::Piece::Update { stream, update }) => session.handle_update(now, stream, update),
                Some(smux::Piece::Payload { range, last }) => {
                    let target = open.target;
                    self.take_payload(key, target, span.part(range.start, range.len()), last);
                    continue;
                }
                None => return Ok(span.len()),
            };
            let (fault, incoming) = (incoming.fault, as_yamux(&incoming));
            share.frames -= 1;
            seen.note(incoming.payload);
            if let Some(fault) = fault {
                self.break_stream(key, incoming.tag, fault);
            }
            self.handle_incoming(key, &incoming);
        }
        Ok(at)
    }

    /// The peer broke a rule of one stream: that bridge ends, the session goes on.
    fn break_stream(&mut self, key: Key, half: Option<Key>, fault: smux::StreamFault) {
        self.counters.count(Counter::StreamViolations);
        self.counters.count(match fault {
            smux::StreamFault::WindowExceeded { .. } => Counter::StreamsOverCredit,
            smux::StreamFault::ConsumedUnsent { .. } => Counter::StreamsOverCount,
        });
        let peer = self.sessions.find(key).and_then(Session::open).map(|open| open.peer);
        tracing::debug!(?peer, %fault, "stream violation");
        if let Some(half) = half {
            self.break_half(half);
        }
    }

    /// A part of a frame's payload, to the half that its header named.
    #[inline]
    fn take_payload(&mut self, key: Key, target: Target, part: Span, last: bool) {
        match target.half {
            Some(half) => self.receive_payload(half, part),
            None => self.counters.add(Counter::BytesDropped, part.len() as u64),
        }
        if last {
            self.end_payload(key, target);
        }
    }

    /// What a header means, before its payload.
    fn handle_incoming(&mut self, key: Key, incoming: &Incoming<Key>) {
        if incoming.opened {
            self.accept_stream(key, incoming.stream);
        }
        if incoming.reset {
            if let Some(half) = incoming.tag {
                self.half_was_reset(half);
            }
            return;
        }
        // A header may queue answers: a pong, an acknowledgement, a reset.
        self.mark(key);
        if incoming.credit > 0
            && let Some(half) = incoming.tag
        {
            self.list_half(half);
        }
        // An acknowledgement of `accept_stream` above is not in `incoming.tag` yet.
        let half = incoming.tag.or_else(|| self.sessions.find(key)?.open()?.mux.tag(incoming.stream));
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
                self.counters.add(Counter::FramesUnknown, u64::from(half.is_none()));
                // A FIN may ride on data that comes behind the peer's own FIN: a violation the multiplexer reports; here the
                // stream, if any, only loses the bytes.
                self.set_target(key, Target::NONE);
            }
        }
    }

    /// Pings that were answered say how long the way is.
    fn note_round_trips(&mut self, key: Key) {
        let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) else { return };
        while let Some(rtt_ns) = open.mux.poll_round_trip() {
            // A longer one is mostly queueing in front of the answer: it counts for an eighth.
            open.round_trip_ns = Some(match open.round_trip_ns {
                Some(known) if rtt_ns > known => known + (rtt_ns - known) / 8,
                _ => rtt_ns,
            });
        }
    }

    /// The round trip to a session's peer in nanoseconds, if known; asks for it at most once in `ROUND_TRIP_INTERVAL_NS`.
    pub(crate) fn round_trip(&mut self, key: Key) -> Option<u64> {
        let now = self.driver.now();
        let open = self.sessions.find_mut(key).and_then(Session::open_mut)?;
        if open.pinged_at == 0 || now.saturating_sub(open.pinged_at) >= limits::ROUND_TRIP_INTERVAL_NS {
            open.pinged_at = now;
            open.mux.ping(now);
        }
        open.round_trip_ns
    }

    fn set_target(&mut self, key: Key, target: Target) {
        if let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) {
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
        let kind = violation.counter();
        self.counters.count(kind);
        self.counters.add(Counter::SessionViolations, u64::from(kind != Counter::GoAwaysReceived));
        let Some(session) = self.sessions.find_mut(key) else { return };
        let peer = session.open().map(|open| open.peer);
        if let Some(suppressed) = self.warnings.admit(warn::Kind::Violation, self.driver.now()) {
            tracing::info!(?peer, %violation, suppressed, "session violation");
        }
        match violation.go_away() {
            Some(frame) => {
                session.outbox.extend_from_slice(frame.bytes());
                self.close_after_flush(key, CloseReason::Violation);
            }
            None => self.close_session(key, CloseReason::Violation),
        }
    }
}

/// Frames of one look at a session's bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    with_payload: usize,
    useless: usize,
}

impl Seen {
    #[inline]
    fn note(&mut self, payload: Payload) {
        match payload {
            Payload::Deliver(_) => self.with_payload += 1,
            Payload::None | Payload::Discard(_) => self.useless += 1,
        }
    }
}

/// The same facts in the words of the other multiplexer.
fn as_yamux(incoming: &smux::Incoming<Key>) -> Incoming<Key> {
    Incoming {
        stream: incoming.stream,
        tag: incoming.tag,
        opened: incoming.opened,
        acked: false,
        credit: incoming.credit,
        payload: match incoming.payload {
            smux::Payload::None => Payload::None,
            smux::Payload::Deliver(len) => Payload::Deliver(len.into()),
            smux::Payload::Discard(len) => Payload::Discard(len.into()),
        },
        finished: incoming.finished,
        reset: false,
        closed: incoming.closed,
    }
}
