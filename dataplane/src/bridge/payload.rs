//! Payload of a bridge, its credit, and its end.

use super::fault::ObjectFault;
use super::{Half, Listed, State};
use crate::counters::Counter;
use crate::driver::{Driver, Nanos};
use crate::lane::Owner;
use crate::limits;
use crate::planted::{self, Bug};
use crate::ring::Span;
use crate::session::Session;
use crate::slab::Key;
use crate::worker::{Timer, Worker};

impl<D: Driver> Worker<D> {
    /// Payload of a half's peer. `span` lies in a page that is the batch's: what is kept is retained or copied.
    pub(crate) fn receive_payload(&mut self, half_key: Key, span: Span) {
        let now = self.driver.now();
        let Some(half) = self.halves.find_mut(half_key) else {
            self.counters.add(Counter::BytesDropped, span.len() as u64);
            return;
        };
        half.active_at = now;
        half.bridged += span.len() as u64;
        match half.state {
            State::Bridged => {
                let partner = half.partner;
                if self.halves.find(partner).is_some_and(|partner| !partner.finish) {
                    self.counters.add(Counter::BytesBridged, span.len() as u64);
                    self.queue_span(partner, span);
                } else {
                    self.drop_payload(half_key, span.len());
                }
            }
            State::Request | State::Waiting | State::Response => {
                self.keep_early(half_key, span);
                self.advance_opening(half_key);
            }
            State::Ending => self.drop_payload(half_key, span.len()),
        }
    }

    /// A data frame of `len` bytes begins on a half. A small one counts as interactive, unless it is the rest of something
    /// larger: Go clients cut a write into frames of 4 KiB and a remainder.
    pub(crate) fn note_frame(&mut self, half_key: Key, len: u32) {
        let now = self.driver.now();
        self.brought.frames += 1;
        let Some(half) = self.halves.find_mut(half_key) else { return };
        if len > limits::INTERACTIVE_LEN_MAX {
            half.large_at = now;
        } else if now.saturating_sub(half.large_at) > limits::INTERACTIVE_AFTER_NS {
            self.brought.interactive += 1;
        }
    }

    /// Nobody wants these bytes any more, but the sender's credit is returned: other streams are not its business.
    fn drop_payload(&mut self, half_key: Key, len: usize) {
        self.counters.add(Counter::BytesDropped, len as u64);
        let Some(half) = self.halves.find(half_key) else { return };
        let (session, stream) = (half.session, half.stream);
        if let Some(open) = self.sessions.find_mut(session).and_then(Session::open_mut) {
            open.mux.consumed(stream, len);
        }
        self.mark(session);
    }

    /// Queues received payload for a half's peer: in place when it is worth a page, else as a packed copy.
    pub(crate) fn queue_span(&mut self, half_key: Key, span: Span) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        let (pool, holder, held) = (self.driver.pool(), half.holder, half.queue.own_len());
        let mut rest = span;
        if span.len() < limits::COPY_BELOW {
            self.scratch.clear();
            self.scratch.extend_from_slice(pool.bytes(span));
            let copied = half.queue.push_copy(&mut self.nodes, pool, &self.scratch);
            self.counters.add(Counter::BytesCopied, copied as u64);
            rest = span.part(copied, span.len() - copied);
        }
        if !rest.is_empty() {
            // Also when the memory is used up: the page is held already, so nothing is lost by keeping it.
            if !planted::is(Bug::SlotReturnedTwice) {
                pool.retain(rest);
            }
            half.queue.push(&mut self.nodes, rest);
            if !half.touched {
                half.touched = true;
                self.touched.push(half_key);
            }
        }
        let added = half.queue.own_len() - held;
        self.charge(holder, added);
        self.list_half(half_key);
    }

    /// Queues bytes of our own for a half's peer.
    pub(super) fn queue_bytes(&mut self, half_key: Key, bytes: &[u8]) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        let queued = half.queue.push_copy(&mut self.nodes, self.driver.pool(), bytes);
        let (holder, partner) = (half.holder, half.partner);
        half.own_len += bytes.len();
        self.charge(holder, queued);
        if queued < bytes.len() {
            // Half an object is worse than none: neither stream can be used.
            self.reset_half(half_key);
            return self.end_half(partner);
        }
        self.list_half(half_key);
    }

    fn keep_early(&mut self, half_key: Key, span: Span) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        self.scratch.clear();
        self.scratch.extend_from_slice(self.driver.pool().bytes(span));
        let kept = half.early.push_copy(&mut self.nodes, self.driver.pool(), &self.scratch);
        let (holder, partner) = (half.holder, half.partner);
        self.charge(holder, kept);
        if kept < span.len() {
            self.reset_half(half_key);
            self.end_half(partner);
        } else if !self.count_unbridged(half_key, kept) {
            self.counters.count(Counter::ResetsUnbridged);
            self.break_half(half_key);
        }
    }

    /// Bytes that came behind a half's object go on to the partner.
    pub(super) fn pass_early(&mut self, half_key: Key) {
        self.release_unbridged(half_key, usize::MAX);
        let Some(half) = self.halves.find_mut(half_key) else { return };
        let mut early = std::mem::take(&mut half.early);
        let (partner_key, finished, holder) = (half.partner, half.finished, half.holder);
        self.counters.add(Counter::BytesBridged, early.len() as u64);
        let Some(partner) = self.halves.find_mut(partner_key) else {
            let dropped = early.clear(&mut self.nodes, self.driver.pool());
            return self.holders.discharge(holder, dropped);
        };
        debug_assert_eq!(partner.holder, holder, "a bridge is held for one");
        partner.queue.append(&mut self.nodes, &mut early);
        self.list_half(partner_key);
        if finished {
            self.half_finished(half_key);
        }
    }

    /// Puts a half with something to send into the list of its session that fits.
    pub(crate) fn list_half(&mut self, half_key: Key) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        if half.stand_in.is_some() {
            return self.list_stand_in(half_key);
        }
        let (session, source) = (half.session, half.source);
        if half.listed == Listed::No && (!half.queue.is_empty() || half.finish) {
            let Some(open) = self.sessions.find_mut(session).and_then(Session::open_mut) else { return };
            if half.queue.len() <= limits::URGENT_QUEUE_LEN_MAX {
                half.listed = Listed::Urgent;
                open.urgent.push(&mut self.halves, half_key);
            } else {
                half.listed = Listed::Bulk;
                open.bulk.push(&mut self.halves, source, half_key);
            }
        }
        self.mark(session);
    }

    /// A half that was removed leaves the list it was in.
    fn unlist(&mut self, half: &Half) {
        let Some(open) = self.sessions.find_mut(half.session).and_then(Session::open_mut) else { return };
        match half.listed {
            Listed::No => {}
            Listed::Urgent => open.urgent.unlink(&mut self.halves, half.places),
            Listed::Bulk => open.bulk.unlink(&mut self.halves, half.places),
        }
    }

    /// A half's peer sent FIN: what it sent is delivered, then both streams are closed (dmsg-wire 10.4).
    pub(crate) fn half_finished(&mut self, half_key: Key) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        half.finished = true;
        match half.state {
            State::Bridged => {
                let partner = half.partner;
                half.deadline = Nanos::MAX;
                self.leave_bridge(half_key);
                // Neither side's extra credit will be used for much any more: what is sent on it counts as held.
                self.release_extra(half_key);
                self.release_extra(partner);
                if self.halves.find(partner).is_some() {
                    self.finish_half(partner);
                } else {
                    self.end_half(half_key);
                }
            }
            // A client that finishes behind its request still waits for the response; and what follows a response is
            // delivered, end included, once that is verified.
            State::Request | State::Response if half.verifying.is_some() => {}
            // There is no whole request, and there will be none.
            state @ (State::Request | State::Response) => {
                if !half.early.is_empty() {
                    self.note_fault(half_key, &ObjectFault::Truncated);
                }
                if state == State::Request {
                    self.refuse_request(half_key, Counter::RefusedObject);
                } else {
                    self.refuse_response(half_key);
                }
            }
            State::Waiting => self.dialler_finished(half_key),
            State::Ending => {}
        }
    }

    /// A half that carries payload does so no more: the bridge has ended, as far as new payload goes.
    pub(crate) fn leave_bridge(&mut self, half_key: Key) {
        let Some(half) = self.halves.find_mut(half_key).filter(|half| half.state == State::Bridged) else {
            return;
        };
        half.state = State::Ending;
        let (partner, is_stand_in) = (half.partner, half.stand_in.is_some());
        let mut counts = half.counts_bridge();
        if let Some(partner) = self.halves.find_mut(partner) {
            partner.state = State::Ending;
            counts |= is_stand_in && partner.counts_bridge();
        }
        self.counters.add(Counter::BridgesClosed, u64::from(counts));
    }

    /// The partner's peer sent FIN: all of this half's queue is to be delivered, and then FIN.
    pub(crate) fn finish_half(&mut self, half_key: Key) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        half.finish = true;
        half.state = State::Ending;
        half.deadline = Nanos::MAX;
        half.delivers = true;
        if half.stand_in.is_some() {
            return self.owe(half_key, |stand_in| stand_in.owes.finish = true);
        }
        let deadline = self.driver.now() + limits::DELIVERY_STALL_TIMEOUT_NS;
        self.set_deadline(half_key, deadline);
        self.list_half(half_key);
    }

    /// Everything that this half's peer had finished is delivered: now its own direction ends too.
    pub(crate) fn finish_behind(&mut self, half_key: Key) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        if half.state != State::Ending || half.finish {
            return;
        }
        half.finish = true;
        if half.stand_in.is_some() {
            return self.owe(half_key, |stand_in| stand_in.owes.finish_sent = true);
        }
        let deadline = self.driver.now() + limits::DRAIN_TIMEOUT_NS;
        self.set_deadline(half_key, deadline);
        self.list_half(half_key);
    }

    /// A half's FIN was put into a send; `gone`: both directions have ended.
    pub(crate) fn half_sent_finish(&mut self, half_key: Key, gone: bool) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        let partner = half.partner;
        half.deadline = Nanos::MAX;
        let now = self.driver.now();
        self.finish_behind(partner);
        if gone {
            return self.remove_half(half_key);
        }
        let Some(half) = self.halves.find(half_key) else { return };
        let open = self.sessions.find(half.session).and_then(Session::open);
        if open.is_some_and(|open| !open.mux.has_close_timer()) {
            self.set_deadline(half_key, now + limits::CLOSE_GRACE_NS);
        }
    }

    /// Ends a half: what is queued goes out, then FIN; what arrives is dropped.
    pub(crate) fn end_half(&mut self, half_key: Key) {
        self.leave_bridge(half_key);
        let Some(half) = self.halves.find_mut(half_key) else { return };
        half.state = State::Ending;
        half.finish = true;
        if half.stand_in.is_some() {
            return self.owe(half_key, |stand_in| stand_in.owes.end = true);
        }
        let (mut early, holder) = (std::mem::take(&mut half.early), half.holder);
        let dropped = early.clear(&mut self.nodes, self.driver.pool());
        let deadline = self.driver.now() + limits::DRAIN_TIMEOUT_NS;
        self.holders.discharge(holder, dropped);
        self.request_ended(half_key);
        self.end_dial(half_key);
        self.release_unbridged(half_key, usize::MAX);
        self.dial_ended(half_key);
        self.release_extra(half_key);
        self.drop_payload(half_key, dropped);
        self.set_deadline(half_key, deadline);
        self.list_half(half_key);
    }

    /// A half's peer reset it: both halves of a bridge die together.
    pub(crate) fn half_was_reset(&mut self, half_key: Key) {
        let Some(half) = self.halves.find(half_key) else { return };
        let (partner, state) = (half.partner, half.state);
        self.remove_half(half_key);
        self.end_partner(partner, state);
    }

    /// A half's peer broke the rules of its stream: it ends as if the peer had reset it, and the peer is told.
    pub(crate) fn break_half(&mut self, half_key: Key) {
        let Some(half) = self.halves.find(half_key) else { return };
        let (partner, state) = (half.partner, half.state);
        self.reset_half(half_key);
        self.end_partner(partner, state);
    }

    /// A half went away with its session.
    pub(crate) fn lose_half(&mut self, half_key: Key) {
        let Some(half) = self.halves.find(half_key) else { return };
        let (partner, state, finished) = (half.partner, half.state, half.finished);
        self.remove_half(half_key);
        // A client that finished and left: what it sent is still delivered, and the partner's FIN is due behind it. Had the
        // partner finished before, its own would wait for bytes to arrive that cannot any more.
        if state == State::Ending && finished {
            if self.halves.find(partner).is_some_and(|partner| !partner.finish) {
                self.end_half(partner);
            }
            return;
        }
        self.end_partner(partner, state);
    }

    /// What becomes of the partner of a half that ended at once in `lost`.
    fn end_partner(&mut self, partner: Key, lost: State) {
        match self.halves.find(partner).map(|half| half.state) {
            // The request goes out whole, then FIN: a client of 2024 ends its whole session over a reset of a stream it has
            // not accepted yet (quirk, dmsg-wire 10.3).
            Some(State::Response) => self.end_half(partner),
            // A dial that failed is closed, not reset (dmsg-wire 11.4), and at once.
            Some(_) if lost == State::Response => {
                self.counters.count(Counter::RefusedResponse);
                self.end_half(partner);
            }
            _ => self.reset_half(partner),
        }
    }

    /// Resets a stream from our side.
    pub(crate) fn reset_half(&mut self, half_key: Key) {
        let Some(half) = self.halves.find(half_key) else { return };
        if half.stand_in.is_some() {
            return self.reset_stand_in(half_key, false);
        }
        let (session, stream) = (half.session, half.stream);
        if let Some(open) = self.sessions.find_mut(session).and_then(Session::open_mut) {
            open.mux.reset(stream);
        }
        self.mark(session);
        self.remove_half(half_key);
    }

    /// Forgets a half whose stream is gone. A partner that still expects bytes of it ends.
    pub(crate) fn remove_half(&mut self, half_key: Key) {
        self.leave_bridge(half_key);
        self.dial_ended(half_key);
        let Some(mut half) = self.take_half(half_key) else { return };
        self.unlist(&half);
        if !planted::is(Bug::TimerOnDeadSlot) {
            self.wheel.cancel(half.timer);
        }
        let pool = self.driver.pool();
        let dropped = half.queue.clear(&mut self.nodes, pool) + half.early.clear(&mut self.nodes, pool);
        if half.verifying.is_some() {
            self.lane.cancel(Owner::Half(half_key));
        }
        self.counters.add(Counter::BytesDropped, dropped as u64);
        self.counters.count(if half.is_dialled { Counter::ForwardsClosed } else { Counter::StreamsClosed });
        if half.crosses {
            let partner = half.partner;
            if let Some(stand_in) = self.halves.find_mut(partner).filter(|half| half.stand_in.is_some()) {
                stand_in.partner = Key::NONE;
            }
            self.owe(partner, |stand_in| stand_in.owes.gone = true);
        }
    }

    pub(crate) fn has_sent_finish(&self, half_key: Key) -> bool {
        let Some(half) = self.halves.find(half_key) else { return false };
        let open = self.sessions.find(half.session).and_then(Session::open);
        open.is_some_and(|open| open.mux.has_finished(half.stream))
    }

    /// Sets what the clock says about a half and makes the wheel fire in time.
    pub(crate) fn set_deadline(&mut self, half_key: Key, deadline: Nanos) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        half.deadline = deadline;
        if deadline < half.timer_at {
            self.wheel.cancel(half.timer);
            (half.timer_at, half.timer) = self.wheel.schedule(deadline, Timer::Half(half_key));
        }
    }

    /// A half's entry in the wheel fired.
    pub(crate) fn half_timer(&mut self, half_key: Key, now: Nanos) {
        let half_key = if planted::is(Bug::TimerOnDeadSlot) {
            self.halves.tenant(half_key).unwrap_or(half_key)
        } else {
            half_key
        };
        let Some(half) = self.halves.find_mut(half_key) else { return };
        if planted::is(Bug::TimerOnDeadSlot) {
            (half.timer_at, half.deadline) = (now, now);
        }
        half.timer_at = Nanos::MAX;
        if half.deadline > now {
            let deadline = half.deadline;
            if deadline != Nanos::MAX {
                self.set_deadline(half_key, deadline);
            }
            return;
        }
        half.deadline = Nanos::MAX;
        let has_sent_finish = self.has_sent_finish(half_key);
        let Some(half) = self.halves.find_mut(half_key) else { return };
        match half.state {
            State::Request => {
                self.counters.count(Counter::StreamsTimedOut);
                self.end_half(half_key);
            }
            State::Response => {
                self.counters.count(Counter::StreamsTimedOut);
                self.refuse_response(half_key);
            }
            State::Bridged => self.check_idle(half_key, now),
            // Everything is said; the peer does not finish, and its multiplexer has no clock for it.
            State::Ending if has_sent_finish => self.reset_half(half_key),
            // It moves: on with it.
            State::Ending if half.delivers && half.sent_at + limits::DELIVERY_STALL_TIMEOUT_NS > now => {
                let deadline = half.sent_at + limits::DELIVERY_STALL_TIMEOUT_NS;
                self.set_deadline(half_key, deadline);
            }
            // The queue did not go out in time.
            State::Ending => {
                let partner = half.partner;
                self.reset_half(half_key);
                // A partner whose FIN is out has everything, and a reset might cost it what it has not read.
                if self.halves.find(partner).is_some_and(|partner| partner.stand_in.is_some()) {
                    self.reset_stand_in(partner, true);
                } else if !self.has_sent_finish(partner) {
                    self.reset_half(partner);
                }
            }
            // Its client has given up, or the destination is with another worker, which does not even answer.
            State::Waiting => {
                let partner = half.partner;
                self.counters.count(Counter::StreamsTimedOut);
                self.end_half(half_key);
                self.end_half(partner);
            }
        }
    }

    /// A bridge on which nothing moved for the limit ends; activity on either side counts for both.
    fn check_idle(&mut self, half_key: Key, now: Nanos) {
        let Some(half) = self.halves.find(half_key) else { return };
        let partner = half.partner;
        let last = half.active_at.max(self.halves.find(partner).map_or(0, |partner| partner.active_at));
        if now.saturating_sub(last) < limits::BRIDGE_IDLE_TIMEOUT_NS {
            return self.set_deadline(half_key, last + limits::BRIDGE_IDLE_TIMEOUT_NS);
        }
        self.counters.count(Counter::BridgesIdle);
        self.end_half(half_key);
        self.end_half(partner);
    }
}
