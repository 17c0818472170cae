//! Credit of a bridge: given back as bytes leave, raised where the way is long, and never beyond the budget.

use ringwire_proto::yamux::INITIAL_WINDOW;

use super::{Half, State};
use crate::counters::Counter;
use crate::driver::{Driver, Nanos};
use crate::limits;
use crate::session::Session;
use crate::slab::Key;
use crate::warn;
use crate::worker::Worker;

impl<D: Driver> Worker<D> {
    /// Counts a new stream's base window as used. False: the budget, or the session's share of it, has no room for streams, and
    /// the stream is refused.
    pub(super) fn promise_window(&mut self, half_key: Key) -> bool {
        let held = self.driver.pool().held_len();
        let Some(half) = self.halves.find_mut(half_key) else { return false };
        let Some(open) = self.sessions.find_mut(half.session).and_then(Session::open_mut) else {
            return false;
        };
        if !self.budget.allows_stream(held) || open.promised >= self.budget.session_limit() {
            self.counters.count(Counter::RefusedBudget);
            return false;
        }
        half.promised = INITIAL_WINDOW as usize;
        open.promised += half.promised;
        self.budget.promise(half.promised);
        true
    }

    /// Takes back what was promised to a half's peer.
    pub(crate) fn release_promise(&mut self, half_key: Key) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        let (session, promised) = (half.session, std::mem::take(&mut half.promised));
        self.release_promised(session, promised);
    }

    pub(crate) fn release_promised(&mut self, session: Key, len: usize) {
        self.budget.release(len);
        if let Some(open) = self.sessions.find_mut(session).and_then(Session::open_mut) {
            open.promised -= len;
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
        self.budget.release(kept);
        open.promised -= kept;
        open.mux.consumed(stream, owed - kept);
        self.mark(session);
        self.consider_window(source_key, backlog);
    }

    /// A whole window of a source was delivered: was the window what limited it? Then it is doubled, if the destination keeps
    /// up and the budget allows. A lone stream over a long way must not be limited on our half.
    fn consider_window(&mut self, source_key: Key, backlog: usize) {
        let now = self.driver.now();
        let Some(source) = self.halves.find_mut(source_key) else { return };
        if source.window_len < source.promised || source.state != State::Bridged {
            return;
        }
        let (delivered, elapsed) = (source.window_len, now.saturating_sub(source.window_since));
        (source.window_len, source.window_since) = (0, now);
        let (window, session, stream) = (source.promised, source.session, source.stream);
        let extra = window.min((limits::STREAM_WINDOW_MAX as usize).saturating_sub(window));
        if extra == 0 || backlog > window / 4 {
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
        self.budget.promise(extra);
        self.counters.add(Counter::ExtraCredit, extra as u64);
        if let Some(source) = self.halves.find_mut(source_key) {
            source.promised += extra;
        }
        if let Some(open) = self.sessions.find_mut(session).and_then(Session::open_mut) {
            open.promised += extra;
            open.mux.grant_extra(stream, extra);
        }
        self.mark(session);
    }

    /// Bytes of pages that are held, less what others have of them and were just told to drop.
    fn held_len(&mut self) -> usize {
        let now = self.driver.now();
        let recalled = self.team.as_mut().map_or(0, |team| team.recalled_len(now));
        self.driver.pool().held_len().saturating_sub(recalled)
    }

    /// The budget is used up: the backlogs that have waited longest for their peers go, a few a turn, until it is not. Waiting
    /// is for credit of the peer, or for its connection to take a send.
    pub(crate) fn relieve_memory(&mut self) {
        let held = self.held_len();
        if !self.budget.is_exhausted(held) {
            return;
        }
        let mut waiting: Vec<(u64, Key, Key)> = self
            .halves
            .iter()
            .filter(|(_, half)| {
                !half.queue.is_empty() || !half.early.is_empty() || lent_since(half).is_some()
            })
            .map(|(key, half)| {
                let sending = self.sessions.find(half.session).filter(|session| session.sending);
                let since = half.blocked_since.or(sending.map(|session| session.sending_since));
                let since = since.or(lent_since(half));
                (since.unwrap_or(u64::MAX), key, half.partner)
            })
            .collect();
        waiting.sort_unstable_by_key(|&(since, key, _)| (since, key.index));
        let mut resets = 0;
        for (_, key, partner) in waiting.into_iter().take(limits::RESETS_PER_TURN_MAX) {
            let held = self.held_len();
            if !self.budget.is_exhausted(held) {
                break;
            }
            resets += 1;
            self.reset_half(key);
            self.reset_half(partner);
        }
        self.counters.add(Counter::ResetsMemory, resets);
        let Some(suppressed) = self.warnings.admit(warn::Kind::MemoryUsedUp, self.driver.now()) else {
            return;
        };
        tracing::warn!(
            resets,
            suppressed,
            "buffer memory is used up: the longest-stalled streams are reset (raise the budget, or allow fewer streams)"
        );
    }
}

/// Since when another worker has bytes for which a stand-in stands.
fn lent_since(half: &Half) -> Option<Nanos> {
    let stand_in = half.stand_in.as_ref().filter(|stand_in| stand_in.lent_len > 0)?;
    Some(stand_in.lent_since)
}

/// Takes extra credit back while the destination does not keep up: what its source is owed is kept, as far as it exceeds the
/// base window. Returns the bytes kept.
fn withhold(source: &mut Half, owed: usize, backlog: usize) -> usize {
    let extra = source.promised.saturating_sub(INITIAL_WINDOW as usize);
    if backlog <= source.promised / 2 {
        return 0;
    }
    let kept = owed.min(extra);
    source.promised -= kept;
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_credit_is_kept_back_only_while_the_destination_lags() {
        let mut source = Half::new(Key::NONE, 1, State::Bridged, false);
        source.promised = INITIAL_WINDOW as usize + 100_000;
        assert_eq!(withhold(&mut source, 60_000, 10_000), 0);
        assert_eq!(withhold(&mut source, 60_000, 250_000), 60_000);
        assert_eq!(withhold(&mut source, 60_000, 250_000), 40_000);
        assert_eq!(withhold(&mut source, 60_000, 250_000), 0);
        assert_eq!(source.promised, INITIAL_WINDOW as usize);
    }
}
