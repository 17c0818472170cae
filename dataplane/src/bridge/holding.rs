//! What bridges hold, and for whom: every half in the table and every byte that waits is charged to a holder
//! ([`crate::holders`]) from its first moment to its last; and who lets go when memory is short.

use std::cmp::Reverse;

use super::{Half, State};
use crate::counters::Counter;
use crate::driver::{Driver, Nanos};
use crate::limits;
use crate::prefix::Prefix;
use crate::session::Session;
use crate::slab::Key;
use crate::warn;
use crate::worker::Worker;

impl<D: Driver> Worker<D> {
    /// Puts a half into the table; its holder has one more.
    pub(crate) fn insert_half(&mut self, half: Half) -> Key {
        self.holders.add_stream(half.holder);
        self.halves.insert(half)
    }

    /// Takes a half out of the table, and what it held off its holder. Its queues are the caller's to clear.
    pub(crate) fn take_half(&mut self, key: Key) -> Option<Half> {
        self.request_ended(key);
        self.end_dial(key);
        self.release_unbridged(key, usize::MAX);
        self.release_extra(key);
        let half = self.halves.remove(key)?;
        self.holders.discharge(half.holder, half.held_len());
        self.holders.remove_stream(half.holder);
        Some(half)
    }

    /// `len` bytes of a half begin to wait in this worker's memory.
    #[inline]
    pub(crate) fn charge(&mut self, holder: Key, len: usize) {
        self.holders.charge(holder, len, self.budget.holder_limit());
    }

    /// Counts early bytes of a half among its session's unbridged ones. False: these are more than they may be, and the stream has
    /// to go.
    pub(crate) fn count_unbridged(&mut self, half_key: Key, len: usize) -> bool {
        let Some(half) = self.halves.find_mut(half_key) else { return true };
        // What follows a whole response comes from somebody who was dialled and has answered: it waits for us.
        if half.state == State::Response && half.verifying.is_some() {
            return true;
        }
        let Some(open) = self.sessions.find_mut(half.session).and_then(Session::open_mut) else {
            return true;
        };
        half.unbridged_len += len;
        open.unbridged_len += len;
        open.unbridged_len <= limits::UNBRIDGED_LEN_MAX
    }

    /// Up to `len` early bytes of a half wait for its bridge no more.
    pub(super) fn release_unbridged(&mut self, half_key: Key, len: usize) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        let len = len.min(half.unbridged_len);
        half.unbridged_len -= len;
        if let Some(open) = self.sessions.find_mut(half.session).and_then(Session::open_mut) {
            open.unbridged_len -= len;
        }
    }

    /// A half's request is complete, or will not be.
    pub(super) fn request_ended(&mut self, half_key: Key) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        if std::mem::take(&mut half.is_unfinished) {
            self.holders.end_request(half.holder);
        }
    }

    /// A half, or who stands here for it, begins to wait for an answer. False: there are too many that do, and it has to be refused.
    pub(crate) fn begin_dial(&mut self, half_key: Key) -> bool {
        let most = self.budget.dials_max();
        let Some(half) = self.halves.find_mut(half_key) else { return true };
        // It may dial once more, when its destination has moved to another worker.
        half.is_dialling = half.is_dialling || self.holders.begin_dial(half.holder, most);
        half.is_dialling
    }

    /// It waits no more.
    pub(super) fn end_dial(&mut self, half_key: Key) {
        let Some(half) = self.halves.find_mut(half_key) else { return };
        if std::mem::take(&mut half.is_dialling) {
            self.holders.end_dial(half.holder);
        }
    }

    /// Bytes that are held: pages at their true size, less what others have of them and were just told to drop, and streams in
    /// the tables.
    fn used_len(&mut self) -> usize {
        let now = self.driver.now();
        let recalled = self.team.as_mut().map_or(0, |team| team.recalled_len(now));
        self.driver.pool().held_len().saturating_sub(recalled) + self.halves.len() * limits::STREAM_LEN
    }

    /// Whether a holder may have another stream. Refused is who has its share of the budget, and while memory is short whoever
    /// comes from where most of it is held.
    pub(super) fn admit_stream(&mut self, holder: Key) -> bool {
        let has_share = self.holders.len_of(holder) < self.budget.holder_limit();
        let used = self.used_len();
        if has_share && (!self.budget.is_tight(used) || !self.is_of_largest(holder)) {
            return true;
        }
        self.counters.count(Counter::RefusedBudget);
        false
    }

    /// Whether a holder is of the prefix that holds most. Found out once a turn.
    fn is_of_largest(&mut self, holder: Key) -> bool {
        let now = self.driver.now();
        let largest: Option<Prefix> = match self.largest {
            Some((at, largest)) if at == now => largest,
            _ => {
                let largest = self.holders.largest_prefix();
                self.largest = Some((now, largest));
                largest
            }
        };
        self.holders.name(holder).is_some_and(|name| Some(name.prefix) == largest)
    }

    /// Lets go of what is too much: of holders that have more than their share, and, while memory is short, of the largest, until
    /// it is not.
    pub(crate) fn relieve_memory(&mut self) {
        while let Some(holder) = self.holders.take_above() {
            let (len, limit) = (self.holders.bytes_of(holder), self.budget.holder_limit());
            if len > limit {
                let surplus = len - limit / 100 * limits::HOLDER_RELIEVED_PERCENT;
                let resets = self.reset_largest(&[holder], surplus, |_| false);
                self.counters.add(Counter::ResetsHolder, resets as u64);
                self.warn_of_memory(resets, "one client's undelivered bytes were more than its share");
            }
        }
        let now = self.driver.now();
        let used = self.used_len();
        // What was let go of a moment ago may be with the kernel still.
        let is_soon = now.saturating_sub(self.relieved_at) < limits::RELIEF_INTERVAL_NS;
        if !self.budget.is_tight(used) || (is_soon && used < self.budget.limit()) {
            return;
        }
        self.relieved_at = now;
        let mut holders = self.holders.largest_first();
        holders.truncate(limits::RELIEF_HOLDERS_MAX);
        let surplus = self.budget.surplus(used);
        let resets = self.reset_largest(&holders, surplus, |worker| worker.surplus() == 0);
        self.counters.add(Counter::ResetsMemory, resets as u64);
        self.warn_of_memory(resets, "memory is short: the largest holders' streams were reset");
    }

    /// By how much more is held than the largest holders are to leave.
    fn surplus(&mut self) -> usize {
        let used = self.used_len();
        self.budget.surplus(used)
    }

    /// Resets streams of some holders, in their order; of each those first that hold most, and of equal ones those that have waited
    /// longest; until they hold `surplus` bytes less, or it is enough, or there are no more. Returns how many bridges that cost.
    fn reset_largest(
        &mut self,
        holders: &[Key],
        surplus: usize,
        is_enough: impl Fn(&mut Self) -> bool,
    ) -> usize {
        let rank_of = |holder: Key| holders.iter().position(|&other| other == holder);
        let mut candidates: Vec<(usize, Reverse<usize>, Nanos, Key, Key)> = self
            .halves
            .iter()
            .filter_map(|(key, half)| {
                let rank = rank_of(half.holder)?;
                Some((rank, Reverse(half.held_len()), self.waiting_since(half), key, half.partner))
            })
            .collect();
        candidates.sort_unstable();
        let held = |worker: &Self| holders.iter().map(|&holder| worker.holders.len_of(holder)).sum::<usize>();
        let before = held(self);
        let mut resets = 0;
        for (_, _, _, key, partner) in candidates {
            if resets >= limits::RESETS_PER_TURN_MAX
                || before.saturating_sub(held(self)) >= surplus
                || is_enough(self)
            {
                break;
            }
            if self.halves.find(key).is_some() {
                resets += 1;
                self.reset_half(key);
                self.reset_half(partner);
            }
        }
        resets
    }

    /// Since when a half's bytes wait: for credit of its peer, for its connection to take a send, or for another worker.
    fn waiting_since(&self, half: &Half) -> Nanos {
        let sending = self.sessions.find(half.session).filter(|session| session.sending);
        let lent = half.stand_in.as_ref().filter(|stand_in| stand_in.lent_len > 0);
        half.blocked_since
            .or(sending.map(|session| session.sending_since))
            .or(lent.map(|stand_in| stand_in.lent_since))
            .unwrap_or(Nanos::MAX)
    }

    fn warn_of_memory(&mut self, resets: usize, reason: &str) {
        if resets == 0 {
            return;
        }
        if let Some(suppressed) = self.warnings.admit(warn::Kind::MemoryUsedUp, self.driver.now()) {
            tracing::warn!(resets, suppressed, "{reason} (raise buffer_memory if the clients are honest)");
        }
    }
}
