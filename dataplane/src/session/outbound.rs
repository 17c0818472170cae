//! Bytes to a session: at most one gathered send in flight, built in order of urgency.
//!
//! 1. What the multiplexer itself has to say: ping replies, resets, acknowledgements, credit.
//! 2. Halves with little to send: requests, responses, keystrokes.
//! 3. Bulk, by turns: up to a quantum of each half a round (`rounds.rs`).

use super::{CloseReason, Session};
use crate::bridge::Listed;
use crate::counters::Counter;
use crate::driver::{Driver, FrameShare, Gather, Part, SocketKey};
use crate::limits;
use crate::planted::{self, Bug};
use crate::slab::Key;
use crate::worker::Worker;

impl<D: Driver> Worker<D> {
    /// Notes that a session may have something to send; it is looked at in the forward step of this turn.
    pub(crate) fn mark(&mut self, key: Key) {
        if let Some(session) = self.sessions.find_mut(key)
            && !session.marked
        {
            session.marked = true;
            self.marked.push(key);
        }
    }

    /// The forward step: every marked session gets its gathered send, if none is in flight.
    pub(crate) fn forward(&mut self) {
        let mut marked = std::mem::take(&mut self.marked);
        for &key in &marked {
            if let Some(session) = self.sessions.find_mut(key) {
                session.marked = false;
                let unread = session.unread;
                self.send_gathered(key);
                if unread {
                    // What left may have made room.
                    self.arm_receive(key);
                }
            }
        }
        marked.clear();
        // Building a gather may end streams and so mark other sessions: they are served in the same step.
        std::mem::swap(&mut self.marked, &mut marked);
        if !marked.is_empty() {
            self.marked = marked;
            self.forward();
        }
    }

    fn send_gathered(&mut self, key: Key) {
        let Some(session) = self.sessions.find_mut(key) else { return };
        if session.sending || self.freezing {
            return;
        }
        let len_max = session.drain.gather_len_max();
        let mut gather = self.spare_gathers.pop().unwrap_or_default();
        if !session.outbox.is_empty() {
            gather.push_header(&session.outbox);
            session.outbox.clear();
            session.outbox.shrink_to(0);
        }
        if session.closing.is_none() {
            self.gather_control(key, &mut gather);
            self.gather_halves(key, Listed::Urgent, len_max / 2, &mut gather);
            self.gather_halves(key, Listed::Bulk, len_max, &mut gather);
        }
        let now = self.driver.now();
        let Some(session) = self.sessions.find_mut(key) else {
            self.recycle(gather);
            return;
        };
        if gather.is_empty() {
            let closing = session.closing;
            self.recycle(gather);
            if let Some(reason) = closing {
                self.close_session(key, reason);
            }
            return;
        }
        session.sending = true;
        session.sending_since = now;
        session.drain.begin(now);
        let socket = session.socket;
        self.counters.count(Counter::Sends);
        self.watch_for_stall(key);
        self.driver.send(socket, gather);
        // Answers that are due may have deadlines of their own now: acknowledgements, FINs.
        self.arm_session_timer(key);
    }

    fn gather_control(&mut self, key: Key, gather: &mut Gather) {
        let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) else { return };
        while gather.has_room(1) {
            let Some(frame) = open.mux.poll_control() else { break };
            gather.push_header(frame.bytes());
        }
    }

    /// Takes turns of the halves in one list until the gather holds `len_max` bytes.
    fn gather_halves(&mut self, key: Key, list: Listed, len_max: usize, gather: &mut Gather) {
        // Each half at most once around per pass of the list, until nothing moves or the gather is full.
        while gather.len() < len_max && gather.has_room(limits::GATHER_PARTS_MAX / 2) {
            let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) else { return };
            let next = match list {
                Listed::Urgent => open.urgent.pop(&mut self.halves),
                Listed::Bulk | Listed::No => open.bulk.pop(&mut self.halves),
            };
            let Some(half_key) = next else { return };
            self.gather_half(key, half_key, list, len_max - gather.len(), gather);
        }
    }

    /// One half's turn: a frame of at most a quantum, and its FIN when that was the last.
    fn gather_half(&mut self, key: Key, half_key: Key, list: Listed, room: usize, gather: &mut Gather) {
        let now = self.driver.now();
        let Some(half) = self.halves.find_mut(half_key).filter(|half| half.listed == list) else { return };
        half.listed = Listed::No;
        let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) else { return };
        if list == Listed::Urgent && half.queue.len() > limits::URGENT_QUEUE_LEN_MAX {
            half.listed = Listed::Bulk;
            let source = half.source;
            return open.bulk.push(&mut self.halves, source, half_key);
        }
        let wanted = half.queue.len().min(limits::STREAM_QUANTUM_LEN).min(open.mux.frame_len_max()).min(room);
        // Slices are bounded too: a queue of many tiny ones goes out in several sends.
        let wanted = wanted.min(half.queue.len_of(&self.nodes, gather.parts_left().saturating_sub(2)));
        let mut granted = if wanted == 0 { 0 } else { open.mux.reserve(half.stream, wanted) };
        if planted::is(Bug::CreditOffByOne) && granted > 0 && granted < wanted {
            granted += 1;
        }
        if granted > 0 {
            if let Some(since) = half.blocked_since.take() {
                half.blocked_ns += now.saturating_sub(since);
            }
            gather.push_header(open.mux.data(half.stream, granted).bytes());
            let (mut left, mut own_len) = (granted, granted);
            while left > 0 {
                let Some(span) = half.queue.pop(&mut self.nodes, self.driver.pool(), left) else { break };
                left -= span.len();
                own_len -= span.borrowed_len();
                if planted::is(Bug::HeaderOverNeighbour) {
                    let header = open.mux.data(half.stream, granted);
                    self.driver.pool().write_before(span, header.bytes());
                }
                gather.push_payload(span);
            }
            debug_assert_eq!(left, 0, "the queue holds what it says");
            half.sent_at = now;
            open.pace.note_sent(now);
            // What a frame carries is counted in 32 bits.
            gather.push_share(FrameShare {
                half: half_key,
                len: granted as u32,
                own_len: own_len as u32,
                holder: half.holder,
            });
            self.counters.count(Counter::FramesSent);
        }
        if half.queue.is_empty() || (half.finish && planted::is(Bug::FinishBeforeData)) {
            if half.finish {
                let frame = open.mux.finish(now, half.stream);
                let gone = !open.mux.has(half.stream);
                if let Some(frame) = frame {
                    gather.push_header(frame.bytes());
                }
                self.half_sent_finish(half_key, gone);
            }
        } else if granted == wanted {
            // More to send and credit left, as far as known: behind the others.
            half.listed = Listed::Bulk;
            let source = half.source;
            open.bulk.push(&mut self.halves, source, half_key);
        } else {
            // Blocked: a window update of the peer lists it again.
            half.blocked_since.get_or_insert(now);
        }
    }

    /// A send completed, whole or in part.
    pub(crate) fn sent(&mut self, socket: SocketKey, mut gather: Box<Gather>, outcome: Result<usize, i32>) {
        let key = self.session_of(socket);
        if self.freezing
            && let Some(key) = key
        {
            return self.sent_while_freezing(key, gather, outcome);
        }
        match (key, outcome) {
            (Some(key), Ok(taken)) if taken > 0 => {
                self.counters.add(Counter::BytesSent, taken as u64);
                if !gather.advance(taken) {
                    // A frame of which one byte was taken is always completed: the rest goes before anything else.
                    self.counters.count(Counter::SendsShort);
                    if planted::is(Bug::HalfFrameOnReset)
                        && gather.shares().iter().any(|share| self.halves.find(share.half).is_none())
                    {
                        if let Some(session) = self.sessions.find_mut(key) {
                            session.sending = false;
                        }
                        self.recycle(gather);
                        return self.mark(key);
                    }
                    self.driver.send(socket, gather);
                    return;
                }
                let now = self.driver.now();
                if let Some(session) = self.sessions.find_mut(key) {
                    session.sending = false;
                    if let Some(len) = session.drain.sent(now, gather.len()) {
                        self.driver.hold_back(socket, len);
                    }
                    if let Some(open) = session.open_mut() {
                        open.purse.earn_sent(gather.shares().len(), gather.len());
                    }
                }
                for share in gather.shares() {
                    self.return_credit(share.half, share.len);
                }
                self.recycle(gather);
                if !planted::is(Bug::LostWakeUp) {
                    self.mark(key);
                }
            }
            (Some(key), outcome) => {
                self.recycle(gather);
                let errno = outcome.err().unwrap_or(libc::EPIPE);
                self.close_session(key, CloseReason::ConnectionFailed(errno));
            }
            (None, _) => {
                self.counters.count(Counter::CompletionsStale);
                self.recycle(gather);
            }
        }
    }

    /// A recalled send: what the kernel did not take goes first in the outbox.
    fn sent_while_freezing(&mut self, key: Key, mut gather: Box<Gather>, outcome: Result<usize, i32>) {
        match outcome {
            Ok(taken) => {
                gather.advance(taken);
            }
            Err(libc::ECANCELED) => {}
            Err(errno) => {
                self.recycle(gather);
                return self.close_session(key, CloseReason::ConnectionFailed(errno));
            }
        }
        let mut rest = Vec::with_capacity(gather.len() - gather.sent());
        for (part, skip) in gather.remaining() {
            match part {
                Part::Header { from, len } => rest.extend_from_slice(&gather.header_bytes(from, len)[skip..]),
                Part::Payload(span) => rest.extend_from_slice(&self.driver.pool().bytes(span)[skip..]),
            }
        }
        if let Some(session) = self.sessions.find_mut(key) {
            session.sending = false;
            rest.extend_from_slice(&session.outbox);
            session.outbox = rest;
        }
        for share in gather.shares() {
            self.return_credit(share.half, share.len);
        }
        self.recycle(gather);
    }

    fn recycle(&mut self, mut gather: Box<Gather>) {
        for share in gather.shares() {
            self.holders.discharge(share.holder, share.own_len as usize);
        }
        gather.reset(self.driver.pool());
        if self.spare_gathers.len() < limits::SPARE_GATHERS_MAX {
            self.spare_gathers.push(gather);
        }
    }
}
