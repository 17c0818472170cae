//! Several sessions of one key: who holds it, who stands by, and when that changes (dmsg-wire 11.1).
//!
//! A client that reconnects may leave a session behind that is dead and does not know it; a machine that was cloned has two that live,
//! and whichever is closed comes back at once, for Go clients redial without a pause. Both look alike when the second session comes. So
//! nobody is closed because another has come: the newcomer stands by, connected and free to dial, and the holder is asked for a sign of
//! life; dials to the key wait for that moment. If it gives one, it goes on holding the key, and is asked again now and then; if it does not, it is closed, and the newest
//! standby takes over, as it does when the holder ends for any other reason.
//!
//! In: newcomers, here and from other workers; the clock; whether anything of the holder arrived. Out: its end, or nothing.

use std::sync::Arc;

use ringwire_exchange::WorkerIndex;
use ringwire_exchange::directory::{Place, Removed};
use ringwire_proto::identity::PublicKey;

use super::mux::Mux;
use super::{CloseReason, Established, Session};
use crate::bridge::State;
use crate::counters::Counter;
use crate::driver::{Driver, Nanos};
use crate::limits;
use crate::slab::Key;
use crate::team::Dial;
use crate::warn;
use crate::worker::Worker;

/// What is known of a holder whose key has other sessions.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub(crate) struct Rival {
    /// When it was asked last.
    asked_at: Nanos,
    /// It has not answered yet.
    is_asked: bool,
    /// It was given more time than others: no dial waits for that.
    is_slow: bool,
    /// When it must have answered, or is asked again.
    pub(super) due: Nanos,
    /// That two live clients have this key was said.
    is_told: bool,
}

/// A dial to a key whose holder is to show that it lives.
#[derive(Debug)]
pub(crate) enum ContestedDial {
    /// Of this half.
    Here(Key),
    /// Of another worker.
    Elsewhere(WorkerIndex, Box<Dial>),
}

impl Established {
    /// Whether it is not known at the moment that this session lives.
    fn is_challenged(&self) -> bool {
        self.rival.is_some_and(|rival| rival.is_asked && !rival.is_slow)
    }

    /// How long this peer may take for a sign of life.
    fn patience_ns(&self) -> Nanos {
        limits::RIVAL_ANSWER_NS.max(2 * self.round_trip_ns.unwrap_or(0))
    }
}

impl<D: Driver> Worker<D> {
    /// Files an authenticated session under its peer's key: it holds the key, or stands by.
    pub(super) fn enter_directory(&mut self, key: Key) {
        let Some(session) = self.sessions.find_mut(key) else { return };
        let address = session.peer_address;
        let Some(open) = session.open_mut() else { return };
        let inserted = self.directory.insert(open.peer, self.index, key.number(), address);
        open.generation = inserted.generation;
        if let Some(oldest) = inserted.crowded_out {
            if oldest.worker == self.index {
                self.close_displaced(Key::from_number(oldest.session), oldest.generation);
            } else {
                self.close_elsewhere(oldest);
            }
        }
        if let Some(holder) = inserted.holder {
            self.counters.count(Counter::SessionsStandby);
            if holder.worker == self.index {
                self.meet_rival(Key::from_number(holder.session), holder.generation);
            } else {
                self.challenge_elsewhere(holder);
            }
        }
    }

    /// Another session of a session's key has come: if this one holds the key still, it is to show that it lives.
    pub(crate) fn meet_rival(&mut self, key: Key, generation: u64) {
        let now = self.driver.now();
        let Some(session) = self.sessions.find_mut(key).filter(|session| session.closing.is_none()) else {
            return self.counters.count(Counter::LettersStale);
        };
        let Some(open) = session.open_mut().filter(|open| open.generation == generation) else {
            return self.counters.count(Counter::LettersStale);
        };
        // A crowd of newcomers is answered by one sign of life.
        let is_fresh = |rival: Rival| rival.is_asked || now < rival.asked_at + limits::RIVAL_FRESH_NS;
        if !open.rival.is_some_and(is_fresh) {
            self.ask_for_life(key, limits::RIVAL_FRESH_NS);
        }
    }

    /// Asks a holder for a sign of life. Where that cannot be done, one within the last `fresh_ns` has to do.
    fn ask_for_life(&mut self, key: Key, fresh_ns: Nanos) {
        let now = self.driver.now();
        let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) else { return };
        let is_told = open.rival.is_some_and(|rival| rival.is_told);
        if let Mux::Yamux(..) = open.mux {
            open.mux.ping(now);
            let due = now + open.patience_ns();
            open.rival = Some(Rival { asked_at: now, is_asked: true, is_slow: false, due, is_told });
            self.mark(key);
            return self.arm_session_timer(key);
        }
        // One that has not said a word may have frozen right behind its handshake; one of smux speaks now and then.
        let is_unknown = matches!(open.mux, Mux::Unknown { .. });
        let fresh_ns = if is_unknown { limits::RIVAL_FRESH_NS } else { fresh_ns };
        let lives = open.heard_at + fresh_ns > now;
        let mut settled_at = self.directory.find(&open.peer).map_or(0, |place| place.settled_at);
        if is_unknown && settled_at > 0 {
            // Two clients of 2024 that came together say their first words after 30 s: the second is given the time to.
            settled_at = open.opened_at + limits::FIRST_BYTE_TIMEOUT_NS;
        }
        let due = match (lives, is_unknown) {
            (true, true) => open.heard_at + fresh_ns,
            (true, false) => now + limits::RIVAL_INTERVAL_NS,
            (false, _) => settled_at,
        };
        open.rival = Some(Rival { asked_at: now, is_asked: false, is_slow: false, due, is_told });
        if !lives && settled_at <= now {
            return self.displace(key);
        }
        if lives && !is_unknown {
            self.both_live(key);
        }
        self.arm_session_timer(key);
    }

    /// Looks whether a holder that has standbys lives, when it is time to.
    pub(super) fn look_at_rival(&mut self, key: Key, now: Nanos) {
        let Some(session) = self.sessions.find_mut(key) else { return };
        let (socket, sending) = (session.socket, session.sending);
        let Some(open) = session.open_mut() else { return };
        let (peer, heard_at) = (open.peer, open.heard_at);
        let Some(rival) = open.rival.as_mut().filter(|rival| rival.due <= now) else { return };
        if self.directory.next_of(&peer).is_none() {
            open.rival = None;
        } else if !rival.is_asked {
            return self.ask_for_life(key, limits::RIVAL_INTERVAL_NS);
        } else if heard_at > rival.asked_at {
            rival.is_asked = false;
            rival.due = now + limits::RIVAL_INTERVAL_NS;
            self.both_live(key);
        } else {
            // A link that is dead acknowledges nothing. Where the other side's kernel has the question, two clients that are both too slow
            // to answer it in time must not take turns.
            let settled_at = self.directory.find(&peer).map_or(0, |place| place.settled_at);
            let has_it = !sending && self.driver.taken(socket).is_some_and(|taken| taken.is_all);
            if !has_it || settled_at <= now {
                return self.displace(key);
            }
            rival.is_slow = true;
            rival.due = settled_at;
        }
        self.decide_contested(&peer);
    }

    /// A dial to somebody of this worker of whom it is not known whether he lives waits until it is. False: it is known, or too many
    /// wait.
    pub(crate) fn wait_for_life(
        &mut self,
        half_key: Key,
        session: Key,
        destination: PublicKey,
        signed: &Arc<[u8]>,
    ) -> bool {
        if !self.is_contested(session) {
            return false;
        }
        let Some(half) = self.halves.find_mut(half_key) else { return false };
        half.verifying = Some(Arc::clone(signed));
        self.contested.push((destination, ContestedDial::Here(half_key)));
        true
    }

    /// As [`wait_for_life`](Self::wait_for_life), with a dial of another worker.
    pub(crate) fn keep_for_life(&mut self, from: WorkerIndex, dial: Box<Dial>) -> Result<(), Box<Dial>> {
        if !self.is_contested(dial.session()) {
            return Err(dial);
        }
        self.contested.push((dial.destination(), ContestedDial::Elsewhere(from, dial)));
        Ok(())
    }

    fn is_contested(&self, session: Key) -> bool {
        let open = self.sessions.find(session).and_then(Session::open);
        !self.freezing
            && open.is_some_and(Established::is_challenged)
            && self.contested.len() < limits::CONTESTED_DIALS_MAX
    }

    /// Dials to a key go on: whoever holds it lives, or is gone.
    pub(super) fn decide_contested(&mut self, peer: &PublicKey) {
        if self.contested.is_empty() {
            return;
        }
        let contested = std::mem::take(&mut self.contested);
        let (decided, waiting) = contested.into_iter().partition(|(destination, _)| destination == peer);
        self.contested = waiting;
        self.pass_on(decided);
    }

    /// All of them do, for this worker ends.
    pub(crate) fn decide_all_contested(&mut self) {
        let contested = std::mem::take(&mut self.contested);
        self.pass_on(contested);
    }

    fn pass_on(&mut self, dials: Vec<(PublicKey, ContestedDial)>) {
        for (destination, dial) in dials {
            match dial {
                ContestedDial::Here(half_key) => {
                    let half = self.halves.find_mut(half_key).filter(|half| half.state == State::Request);
                    if let Some(signed) = half.and_then(|half| half.verifying.take()) {
                        self.forward_to(half_key, destination, &signed);
                    }
                }
                ContestedDial::Elsewhere(from, dial) => self.take_dial(from, dial),
            }
        }
    }

    /// Two clients that live have one key: said once, for neither of them can know.
    fn both_live(&mut self, key: Key) {
        let now = self.driver.now();
        let Some(session) = self.sessions.find_mut(key) else { return };
        let address = session.peer_address;
        let Some(open) = session.open_mut() else { return };
        let Some(rival) = open.rival.as_mut().filter(|rival| !rival.is_told) else { return };
        let Some(standby) = self.directory.next_of(&open.peer) else { return };
        rival.is_told = true;
        self.counters.count(Counter::KeysContested);
        if let Some(suppressed) = self.warnings.admit(warn::Kind::KeyContested, now) {
            tracing::warn!(
                key = %open.peer,
                holder = %address,
                standby = %standby.address,
                suppressed,
                "two clients use one key: both stay connected, and only the holder is dialled (give each machine a key of its own)"
            );
        }
    }

    /// A holder that gives no sign of life makes room for the newest standby.
    fn displace(&mut self, key: Key) {
        self.counters.count(Counter::SessionsDisplaced);
        self.close_session(key, CloseReason::Displaced);
    }

    /// A session leaves the directory. If it held its key and another stands by, that one takes over.
    pub(super) fn leave_directory(&mut self, key: Key, reason: CloseReason) {
        let Some(open) = self.sessions.find(key).and_then(Session::open) else { return };
        let settles = if reason == CloseReason::Displaced { limits::RIVAL_SETTLES_NS } else { 0 };
        let settled_at = if settles > 0 { self.driver.now() + settles } else { 0 };
        if let Removed::TookOver(place) = self.directory.remove(&open.peer, open.generation, settled_at) {
            self.counters.count(Counter::StandbysTookOver);
            if place.worker == self.index {
                self.took_over(Key::from_number(place.session), place.generation);
            } else {
                self.took_over_elsewhere(place);
            }
        }
    }

    /// A session that stood by holds its key now.
    pub(crate) fn took_over(&mut self, key: Key, generation: u64) {
        let open = self.sessions.find(key).and_then(Session::open);
        if open.is_some_and(|open| open.generation == generation) {
            self.tell_opened(key);
        } else {
            self.counters.count(Counter::LettersStale);
        }
    }

    /// Whether a session stands by: another one holds its key.
    pub(crate) fn stands_by(&self, open: &Established) -> bool {
        let is_other = |place: Place| place.generation != open.generation;
        self.directory.find(&open.peer).is_some_and(is_other)
    }
}
