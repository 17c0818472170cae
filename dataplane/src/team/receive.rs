//! Letters of other workers, read once a turn: each does to a half what its partner does, as if both were of one worker.
//!
//! What comes for a half that is gone, or that has another partner by now, finds nobody: it is counted, and a loan in it goes
//! home.

use std::sync::Arc;

use ringwire_exchange::WorkerIndex;

use super::letter::{Dial, Letter, Parcel};
use super::{LETTERS_PER_TURN_MAX, PoisonError};
use crate::bridge::State;
use crate::counters::Counter;
use crate::driver::{Driver, Nanos};
use crate::limits;
use crate::planted::{self, Bug};
use crate::ring::Span;
use crate::session::{CloseReason, Session};
use crate::slab::Key;
use crate::worker::Worker;

impl<D: Driver> Worker<D> {
    pub(crate) fn read_letters(&mut self) {
        for _ in 0..LETTERS_PER_TURN_MAX {
            let Some((from, words)) = self.team.as_mut().and_then(|team| team.mailbox.receive()) else {
                return;
            };
            self.read_letter(from, Letter::decode(words));
        }
    }

    fn read_letter(&mut self, from: WorkerIndex, letter: Letter) {
        match letter {
            Letter::Close { session, generation } => self.close_displaced(session, generation),
            Letter::Rival { session, generation } => self.meet_rival(session, generation),
            Letter::TookOver { session, generation } => self.took_over(session, generation),
            Letter::Payload { half, span, window } => self.take_loan(from, half, span, window),
            Letter::Home { spans } => self.take_home(&spans),
            Letter::Delivered { half, len, backlog, blocked_ns } => {
                self.take_credit(from, half, len, backlog, blocked_ns);
            }
            Letter::Dial => {
                if let Some(Parcel::Dial(dial)) = self.take_parcel(from) {
                    self.take_dial(from, dial);
                }
            }
            Letter::Answer { half } => {
                if let Some(Parcel::Answer(signed)) = self.take_parcel(from) {
                    self.take_answer(from, half, &signed);
                }
            }
            Letter::Opened { stand_in, half } => self.take_opened(stand_in, half),
            Letter::Refused { stand_in, gone } => self.take_refusal(stand_in, gone),
            Letter::Finish { half } => self.partner_finished(from, half),
            Letter::FinishSent { half } => {
                if self.stand_in_of(from, half).is_some() {
                    self.finish_behind(half);
                }
            }
            Letter::End { half } => {
                if self.stand_in_of(from, half).is_some() {
                    self.end_half(half);
                }
            }
            Letter::Reset { half, unless_finished } => {
                if self.stand_in_of(from, half).is_some() {
                    self.drop_stand_in(half);
                    if !unless_finished || !self.has_sent_finish(half) {
                        self.reset_half(half);
                    }
                }
            }
            Letter::Gone { half } => {
                if self.stand_in_of(from, half).is_some() {
                    self.drop_stand_in(half);
                }
            }
            Letter::Decided { proofs } => {
                for _ in 0..proofs.min(limits::PROOFS_WAITED_FOR_MAX as u64) {
                    self.decide_dials();
                }
            }
        }
    }

    pub(crate) fn close_displaced(&mut self, session: Key, generation: u64) {
        let open = self.sessions.find(session).and_then(Session::open);
        if open.is_some_and(|open| open.generation == generation) {
            self.counters.count(Counter::SessionsDisplaced);
            self.close_session(session, CloseReason::Displaced);
        } else {
            self.counters.count(Counter::LettersStale);
        }
    }

    /// The stand-in that is the partner of a half, if it stands for one of worker `from`. Counts a letter that finds none.
    fn stand_in_of(&mut self, from: WorkerIndex, half: Key) -> Option<Key> {
        let partner = self.halves.find(half).map(|half| half.partner);
        let is_of = |&partner: &Key| {
            let stand_in = self.halves.find(partner).and_then(|half| half.stand_in.as_ref());
            stand_in.is_some_and(|stand_in| stand_in.worker == from)
        };
        let found = partner.filter(is_of);
        if found.is_none() {
            self.counters.count(Counter::LettersStale);
        }
        found
    }

    /// The parcel that a letter announced.
    fn take_parcel(&mut self, from: WorkerIndex) -> Option<Parcel> {
        self.team.as_mut()?.parcels_from[usize::from(from)].as_ref()?.try_recv().ok()
    }

    /// Payload of a half's partner, on loan.
    fn take_loan(&mut self, from: WorkerIndex, half_key: Key, lent: Span, window: u64) {
        let Some(stand_in_key) = self.stand_in_of(from, half_key) else {
            self.counters.add(Counter::BytesDropped, lent.len() as u64);
            return self.driver.pool().homeward().push((from, lent));
        };
        let now = self.driver.now();
        if let Some(partner) = self.halves.find_mut(stand_in_key) {
            partner.active_at = now;
            partner.bridged += lent.len() as u64;
            if let Some(stand_in) = &mut partner.stand_in {
                stand_in.window = window as usize;
            }
        }
        let Some(half) = self.halves.find_mut(half_key) else { return };
        if half.finish {
            self.counters.add(Counter::BytesDropped, lent.len() as u64);
            self.driver.pool().homeward().push((from, lent));
            return self.owe(stand_in_key, |stand_in| stand_in.delivered += lent.len());
        }
        let Self { team: Some(team), driver, .. } = self else { return };
        let pool = driver.pool();
        if !team.known[usize::from(from)] {
            let lenders = team.lenders.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(lender) = &lenders[usize::from(from)] {
                pool.know_lender(from, lender.clone());
                team.known[usize::from(from)] = true;
            }
        }
        let span = pool.borrow(from, lent);
        if planted::is(Bug::LoanReturnedEarly) {
            pool.homeward().push((from, lent));
        }
        self.queue_span(half_key, span);
        self.driver.pool().release(span);
    }

    /// What was lent is back.
    fn take_home(&mut self, spans: &[Span]) {
        let Self { team: Some(team), driver, .. } = self else { return };
        for &span in spans.iter().filter(|span| !span.is_empty()) {
            team.recalled_len = team.recalled_len.saturating_sub(span.len());
            driver.pool().came_home(span);
        }
    }

    /// Bytes of a half were delivered by its partner.
    fn take_credit(&mut self, from: WorkerIndex, half: Key, len: u32, backlog: u32, blocked_ns: Nanos) {
        let Some(stand_in_key) = self.stand_in_of(from, half) else { return };
        let now = self.driver.now();
        if let Some(entry) = self.halves.find_mut(stand_in_key)
            && let Some(stand_in) = &mut entry.stand_in
        {
            let home = stand_in.lent_len.min(len as usize);
            stand_in.lent_len -= home;
            stand_in.lent_since = now;
            stand_in.backlog = backlog as usize;
            stand_in.blocked_ns = blocked_ns;
            self.holders.discharge(entry.holder, home);
        }
        self.credit_source(half, len, backlog as usize);
    }

    /// The peer of a half's partner sent FIN.
    fn partner_finished(&mut self, from: WorkerIndex, half: Key) {
        let Some(stand_in) = self.stand_in_of(from, half) else { return };
        self.leave_bridge(half);
        if let Some(partner) = self.halves.find_mut(stand_in) {
            partner.state = State::Ending;
        }
        self.release_extra(half);
        self.finish_half(half);
    }

    /// The verified response to a half's request.
    fn take_answer(&mut self, from: WorkerIndex, half_key: Key, signed: &Arc<[u8]>) {
        let Some(stand_in) = self.stand_in_of(from, half_key) else { return };
        if self.halves.find(half_key).is_some_and(|half| half.state == State::Waiting) {
            self.join_halves(half_key, stand_in, signed);
        }
    }

    /// A stream that another worker was asked for is open.
    fn take_opened(&mut self, stand_in_key: Key, half: Key) {
        let stand_in = self.halves.find_mut(stand_in_key).and_then(|half| half.stand_in.as_mut());
        let Some(stand_in) = stand_in else { return self.counters.count(Counter::LettersStale) };
        stand_in.half = half;
        stand_in.dialling = None;
        self.list_stand_in(stand_in_key);
    }

    /// It is not.
    fn take_refusal(&mut self, stand_in_key: Key, gone: bool) {
        let Some(mut entry) = self.take_half(stand_in_key) else {
            return self.counters.count(Counter::LettersStale);
        };
        entry.queue.clear(&mut self.nodes, self.driver.pool());
        let (half_key, stand_in) = (entry.partner, entry.stand_in);
        let Some(half) = self.halves.find_mut(half_key).filter(|half| half.partner == stand_in_key) else {
            return;
        };
        half.partner = Key::NONE;
        if half.state != State::Waiting {
            return;
        }
        half.state = State::Request;
        let Some((destination, dialling)) = stand_in.and_then(|known| Some((known.peer, known.dialling?)))
        else {
            return self.end_half(half_key);
        };
        if !gone {
            // It was counted where it was refused.
            return self.end_half(half_key);
        }
        // A session that came meanwhile, on whatever worker, is as good.
        let place = self.directory.find(&destination);
        if place.is_none_or(|place| place.generation != dialling.generation) {
            self.pass_request(half_key, Some(destination), &dialling.signed);
        } else {
            self.refuse_request(half_key, Counter::RefusedDestination);
        }
    }

    /// Another worker has a request for a session of this one.
    pub(crate) fn take_dial(&mut self, from: WorkerIndex, dial: Box<Dial>) {
        let dial = match self.keep_for_life(from, dial) {
            Ok(()) => return,
            Err(dial) => dial,
        };
        let open = self.sessions.find(dial.session).filter(|session| session.closing.is_none());
        let is_here = open.and_then(Session::open).is_some_and(|open| open.peer == dial.destination);
        let opened = if is_here { self.open_for(from, &dial) } else { None };
        let stand_in = dial.stand_in;
        self.write_letter(
            from,
            match opened {
                Some(half) => Letter::Opened { stand_in, half },
                None => Letter::Refused { stand_in, gone: !is_here },
            },
        );
    }
}
