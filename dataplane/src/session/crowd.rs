//! When connections become scarce: who is not let in, and who leaves.
//!
//! While there is room an address may have all it wants: many clients sit behind one. From three quarters of the connections on,
//! an address that has its share of all (as many as there are, divided by the addresses that have any) gets no further session; and
//! when there is none left, those of its sessions that came last and carry nothing make room for others. An address is that of
//! PROXY's header where one is believed.

use hashbrown::HashMap;

use super::{CloseReason, Session};
use crate::counters::Counter;
use crate::driver::{Driver, Nanos};
use crate::limits;
use crate::prefix::Prefix;
use crate::slab::Key;
use crate::warn;
use crate::worker::Worker;

/// How many sessions each address has.
#[derive(Debug, Default)]
pub(crate) struct Crowd(HashMap<Prefix, u32>);

impl Crowd {
    /// A session begins.
    pub(crate) fn enter(&mut self, prefix: Prefix) {
        *self.0.entry(prefix).or_default() += 1;
    }

    /// A session that was counted has ended.
    pub(crate) fn leave(&mut self, prefix: Prefix) {
        if let Some(sessions) = self.0.get_mut(&prefix) {
            *sessions -= 1;
            if *sessions == 0 {
                self.0.remove(&prefix);
            }
        }
    }

    /// Sessions that an address may have while they are scarce, of so many in all, if `prefix` is to have some.
    fn share(&self, connections_max: usize, prefix: Prefix) -> usize {
        let addresses = self.0.len() + usize::from(!self.0.contains_key(&prefix));
        (connections_max / addresses).max(1)
    }

    /// Sessions of an address.
    fn of(&self, prefix: Prefix) -> usize {
        self.0.get(&prefix).map_or(0, |&sessions| sessions as usize)
    }

    /// The address that has most of them, and how many.
    fn largest(&self) -> Option<(Prefix, usize)> {
        let (&prefix, &sessions) = self.0.iter().max_by_key(|&(&prefix, &sessions)| (sessions, prefix))?;
        Some((prefix, sessions as usize))
    }
}

impl<D: Driver> Worker<D> {
    /// Whether an address may have another session: there is plenty, or it has less than its share.
    pub(super) fn admit_to_crowd(&mut self, key: Key) -> bool {
        let most = self.settings.connections_max;
        if self.connections <= most / 100 * limits::PLENTY_PERCENT + most % 100 * limits::PLENTY_PERCENT / 100
        {
            return true;
        }
        let Some(session) = self.sessions.find(key) else { return true };
        let prefix = Prefix::from(session.peer_address.ip());
        if self.crowd.of(prefix) < self.crowd.share(most, prefix) {
            return true;
        }
        self.counters.count(Counter::RefusedShare);
        if let Some(suppressed) = self.warnings.admit(warn::Kind::AddressShare, self.driver.now()) {
            tracing::warn!(
                address = %prefix,
                suppressed,
                "connections are scarce and an address has its share of them: closed (raise the limit of open files, `ulimit -n`)"
            );
        }
        false
    }

    /// Closes some sessions of the address that has most, if that is more than its share: those that came last of those that carry
    /// nothing. `prefix` is whose connection needs room. False: there are none.
    pub(super) fn evict_idle(&mut self, prefix: Prefix) -> bool {
        let most = self.settings.connections_max;
        let Some((largest, count)) = self.crowd.largest() else { return false };
        let share = self.crowd.share(most, prefix);
        if largest == prefix || count <= share {
            return false;
        }
        let now = self.driver.now();
        let mut idle: Vec<(Nanos, Key)> = self
            .sessions
            .iter()
            .filter(|(_, session)| Prefix::from(session.peer_address.ip()) == largest)
            .filter_map(|(key, session)| Some((session.open()?.opened_at, key)))
            .filter(|&(_, key)| self.is_idle(key, now))
            .collect();
        idle.sort_unstable_by(|a, b| b.cmp(a));
        // Several, for finding them is a walk.
        idle.truncate(limits::EVICTED_AT_A_TIME.min(count - share));
        for &(_, key) in &idle {
            self.counters.count(Counter::SessionsEvicted);
            self.close_session(key, CloseReason::AddressShare);
        }
        !idle.is_empty()
    }

    /// Whether a session carries nothing: no stream of it moved a byte for a while.
    fn is_idle(&self, key: Key, now: Nanos) -> bool {
        let Some(open) = self.sessions.find(key).and_then(Session::open) else { return false };
        if now.saturating_sub(open.opened_at) < limits::IDLE_AFTER_NS && open.mux.stream_count() > 0 {
            return false;
        }
        open.mux.tags().into_iter().filter_map(|half| self.halves.find(half)).all(|half| {
            let last = half.active_at.max(half.sent_at);
            half.queue.is_empty() && now.saturating_sub(last) >= limits::IDLE_AFTER_NS
        })
    }
}
