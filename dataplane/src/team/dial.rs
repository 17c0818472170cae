//! Dials whose destination is with another worker: asked for there, and opened for others here.

use std::sync::Arc;

use ringwire_exchange::WorkerIndex;
use ringwire_exchange::directory::Place;
use ringwire_proto::identity::PublicKey;

use super::letter::Dial;
use super::{Dialling, StandIn};
use crate::bridge::{Half, Source, State};
use crate::counters::Counter;
use crate::driver::Driver;
use crate::holders::Name;
use crate::limits;
use crate::session::Session;
use crate::slab::Key;
use crate::worker::Worker;

impl<D: Driver> Worker<D> {
    /// Passes a request on to the worker that has the destination's session. Its answer is one letter for sure: opened, or
    /// refused.
    pub(crate) fn dial_elsewhere(
        &mut self,
        half_key: Key,
        place: Place,
        destination: PublicKey,
        signed: &Arc<[u8]>,
    ) {
        let now = self.driver.now();
        let session = Key::from_number(place.session);
        let Some(half) = self.halves.find(half_key) else { return };
        let (source_session, holder) = (half.session, half.holder);
        let Some(Name { prefix, .. }) = self.holders.name(holder) else { return };
        let Some(source) = self.sessions.find(source_session).and_then(Session::open).map(|open| open.peer)
        else {
            return;
        };
        // Its place is its name on the other worker: the dial is made once that is known.
        let stand_in = StandIn::new(place.worker, Key::NONE, destination);
        let stand_in_key =
            self.insert_half(Half::stand_in(half_key, State::Response, true, holder, stand_in));
        let dial = Dial {
            half: half_key,
            stand_in: stand_in_key,
            source,
            prefix,
            source_session,
            destination,
            session,
            signed: Arc::clone(signed),
        };
        let dialling = Dialling {
            generation: place.generation,
            signed: Arc::clone(signed),
            unsent: Some(Box::new(dial)),
        };
        if let Some(half) = self.halves.find_mut(half_key) {
            half.partner = stand_in_key;
            half.crosses = true;
            half.source = foreign_source(place.worker, session);
            half.state = State::Waiting;
        }
        self.owe(stand_in_key, |stand_in| stand_in.dialling = Some(dialling));
        // The other worker has a clock for the response; this one is for the worker.
        self.set_deadline(half_key, now + 2 * limits::FORWARD_TIMEOUT_NS);
        if self.halves.find(half_key).is_some_and(|half| half.finished) {
            self.dialler_finished(half_key);
        }
    }

    /// Opens a stream for a request of another worker; none: refused, and counted.
    pub(super) fn open_for(&mut self, from: WorkerIndex, dial: &Dial) -> Option<Key> {
        if self.is_draining() {
            self.counters.count(Counter::RefusedDraining);
            return None;
        }
        let stand_in = StandIn::new(from, dial.half, dial.source);
        let holder = self.holders.find_or_insert(Name { prefix: dial.prefix, peer: dial.source });
        let half = self.insert_half(Half::stand_in(Key::NONE, State::Waiting, false, holder, stand_in));
        if !self.begin_dial(half) {
            self.take_half(half);
            self.counters.count(Counter::RefusedUnanswered);
            return None;
        }
        let source = Source { half, session: foreign_source(from, dial.source_session), holder };
        match self.dial(source, dial.session, dial.destination, &dial.signed) {
            Ok(forward_key) => {
                if let Some(stand_in) = self.halves.find_mut(half) {
                    stand_in.partner = forward_key;
                }
                if let Some(forward) = self.halves.find_mut(forward_key) {
                    forward.crosses = true;
                }
                Some(forward_key)
            }
            Err(counter) => {
                self.take_half(half);
                if let Some(counter) = counter {
                    self.counters.count(counter);
                }
                None
            }
        }
    }
}

/// A session of another worker as the source of bytes: only told apart from others, never looked up.
fn foreign_source(worker: WorkerIndex, session: Key) -> Key {
    let index = session.index ^ (1 << 31 | u32::from(worker) << 20);
    Key { index, generation: session.generation }
}
