//! Credit of a bridge: given back as bytes leave, raised where the way is long, and never beyond the budget.

use super::{Half, State};
use crate::counters::Counter;
use crate::driver::{Driver, Nanos};
use crate::limits;
use crate::session::Session;
use crate::slab::Key;
use crate::worker::{Timer, Worker};

impl<D: Driver> Worker<D> {
    /// Credit beyond a half's base window does not count any more.
    pub(crate) fn release_extra(&mut self, half_key: Key) {
        if let Some(half) = self.halves.find_mut(half_key) {
            self.budget.release(std::mem::take(&mut half.extra));
        }
    }

    /// `len` bytes of a half went out: the peer they came from gets its credit back.
    pub(crate) fn return_credit(&mut self, half_key: Key, len: u32) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        // What we queued ourselves (objects) lies in front and was never the source's.
        let own = half.own_len.min(len as usize);
        half.own_len -= own;
        let len = len - own as u32;
        let (source_key, backlog) = (half.partner, half.queue.len());
        let Some(source) = self.halves.find_mut(source_key) else { return };
        if let Some(stand_in) = &mut source.stand_in {
            stand_in.delivered += len as usize;
            return self.list_stand_in(source_key);
        }
        self.credit_source(source_key, len, backlog);
    }

    /// `len` bytes of `source_key`'s peer are delivered, and `backlog` bytes still wait.
    pub(crate) fn credit_source(&mut self, source_key: Key, len: u32, backlog: usize) {
        let Some(source) = self.halves.find_mut(source_key) else { return };
        source.window_len += len as usize;
        let (session, stream) = (source.session, source.stream);
        let Some(open) = self.sessions.find_mut(session).and_then(Session::open_mut) else { return };
        // Only what it sent and did not get back counts.
        let owed = open.mux.unconsumed(stream).min(len as usize);
        let kept = withhold(source, owed, backlog);
        self.budget.release(kept.extra);
        open.mux.consumed(stream, owed - kept.extra - kept.debt);
        self.mark(session);
        self.consider_window(source_key, backlog);
    }

    /// A whole window of a source was delivered: was the window what limited it? Then it is doubled, if the destination keeps
    /// up and the budget allows. A lone stream over a long way must not be limited on our half.
    fn consider_window(&mut self, source_key: Key, backlog: usize) {
        let now = self.driver.now();
        let Some(source) = self.halves.find_mut(source_key) else { return };
        let window = source.window();
        if source.window_len < window || source.state != State::Bridged {
            return;
        }
        let (delivered, elapsed) = (source.window_len, now.saturating_sub(source.window_since));
        (source.window_len, source.window_since) = (0, now);
        let (session, stream) = (source.session, source.stream);
        let extra = window.min((limits::STREAM_WINDOW_MAX as usize).saturating_sub(window));
        if extra == 0 || source.debt > 0 || backlog > window / 4 {
            return;
        }
        let Some(round_trip) = self.round_trip(session) else { return self.mark(session) };
        // What the source can have under way is a window per round trip: limited by it when it comes near that.
        let possible = window as u128 * u128::from(elapsed) / u128::from(round_trip.max(1));
        if delivered as u128 * 2 < possible {
            return;
        }
        let held = self.driver.pool().held_len();
        if !self.budget.allows_extra(held, extra) {
            self.counters.count(Counter::ExtraCreditRefused);
            return;
        }
        self.budget.grant(extra);
        self.counters.add(Counter::ExtraCredit, extra as u64);
        let is_listed = self.halves.find_mut(source_key).is_none_or(|source| {
            source.extra += extra;
            std::mem::replace(&mut source.is_extended, true)
        });
        if !is_listed {
            if self.extended.is_empty() {
                self.wheel.schedule(now + limits::EXTRA_SWEEP_NS, Timer::Extra);
            }
            self.extended.push(source_key);
        }
        if let Some(open) = self.sessions.find_mut(session).and_then(Session::open_mut) {
            open.mux.grant_extra(stream, extra);
        }
        self.mark(session);
    }

    /// Streams that are idle lose their extra credit: it counts no more, and what their peers have of it is taken back from what they
    /// are owed later.
    pub(crate) fn sweep_extra(&mut self, now: Nanos) {
        let mut extended = std::mem::take(&mut self.extended);
        extended.retain(|&key| {
            let Some(half) = self.halves.find_mut(key) else { return false };
            if half.extra > 0 && now.saturating_sub(half.active_at) < limits::EXTRA_IDLE_NS {
                return true;
            }
            half.is_extended = false;
            let extra = std::mem::take(&mut half.extra);
            half.debt += extra;
            self.budget.release(extra);
            self.counters.add(Counter::ExtraCreditIdle, extra as u64);
            false
        });
        if !extended.is_empty() {
            self.wheel.schedule(now + limits::EXTRA_SWEEP_NS, Timer::Extra);
        }
        self.extended = extended;
    }
}

/// What is kept of what a source is owed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Kept {
    extra: usize,
    debt: usize,
}

/// Takes extra credit back: what it has from before it was idle, and, while the destination does not keep up, what it has beyond the
/// base window.
fn withhold(source: &mut Half, owed: usize, backlog: usize) -> Kept {
    let debt = owed.min(source.debt);
    let lags = backlog > source.window() / 2;
    source.debt -= debt;
    let extra = if lags { (owed - debt).min(source.extra) } else { 0 };
    source.extra -= extra;
    Kept { extra, debt }
}

#[cfg(test)]
mod tests {
    use ringwire_proto::yamux::INITIAL_WINDOW;

    use super::*;

    fn source(extra: usize) -> Half {
        Half { extra, ..Half::new(Key::NONE, 1, State::Bridged, false, Key::NONE) }
    }

    #[test]
    fn extra_credit_is_kept_back_only_while_the_destination_lags() {
        let mut source = source(100_000);
        let mut kept = |owed, backlog| withhold(&mut source, owed, backlog).extra;
        assert_eq!([kept(60_000, 10_000), kept(60_000, 250_000)], [0, 60_000]);
        assert_eq!([kept(60_000, 250_000), kept(60_000, 250_000)], [40_000, 0]);
        assert_eq!(source.window(), INITIAL_WINDOW as usize);
    }

    #[test]
    fn what_was_idle_is_taken_back_first() {
        let mut source = Half { debt: 50_000, ..source(100_000) };
        assert_eq!(withhold(&mut source, 30_000, 0), Kept { extra: 0, debt: 30_000 });
        assert_eq!(withhold(&mut source, 30_000, 0), Kept { extra: 0, debt: 20_000 });
        assert_eq!(withhold(&mut source, 30_000, 0), Kept::default());
        assert_eq!(source.window(), INITIAL_WINDOW as usize + 100_000);
    }
}
