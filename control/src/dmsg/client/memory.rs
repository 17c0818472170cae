//! What a client remembers of its dials: entries it read, routes that worked, and those that failed lately.
//!
//! In: outcomes and the time. Out: what to try and what to leave. No clock, no I/O; every table is bounded and forgets
//! the oldest. Used by [`super::dialing`].

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use ringwire_proto::entry::Entry;
use ringwire_proto::identity::{Address, PublicKey};
use tokio::time::Instant;

/// Entries kept at a time.
const ENTRIES_MAX: usize = 1024;

/// Routes that failed, and destinations that are backed off, kept at a time.
const FAILURES_MAX: usize = 8192;

/// How long a read entry is used (dmsg-wire 15).
const ENTRY_LIFE: Duration = Duration::from_secs(300);

/// How long a route that failed is left alone (dmsg-wire 15).
const ROUTE_REST: Duration = Duration::from_secs(30);

/// Pause of a destination that nobody could reach: the first, and the longest after doubling (dmsg-wire 15).
const DESTINATION_REST: Duration = Duration::from_secs(2);
const DESTINATION_REST_MAX: Duration = Duration::from_secs(60);

/// A destination over one server. Kept by port as well: nobody listening on one port is no reason to leave another,
/// and a refusal does not say which it was.
type Route = (Address, PublicKey);

/// What a client remembers.
#[derive(Default)]
pub(super) struct Memory {
    entries: Bounded<PublicKey, (Entry, Instant)>,
    /// The server that worked last for a destination.
    worked: Bounded<PublicKey, PublicKey>,
    failed: Bounded<Route, Failure>,
    absent: Bounded<Address, Absence>,
}

struct Failure {
    until: Instant,
    cause: String,
}

struct Absence {
    rest: Duration,
    until: Instant,
}

impl Memory {
    /// An entry read lately.
    pub(super) fn entry(&self, key: &PublicKey, now: Instant) -> Option<&Entry> {
        self.entries.get(key).filter(|(_, read)| now < *read + ENTRY_LIFE).map(|(entry, _)| entry)
    }

    pub(super) fn keep_entry(&mut self, key: PublicKey, entry: Entry, now: Instant) {
        self.entries.insert(key, (entry, now), ENTRIES_MAX);
    }

    pub(super) fn forget_entry(&mut self, key: &PublicKey) {
        self.entries.map.remove(key);
    }

    /// The server that worked last.
    pub(super) fn worked(&self, destination: &PublicKey) -> Option<PublicKey> {
        self.worked.get(destination).copied()
    }

    /// Why a route is left alone, if it is.
    pub(super) fn resting(&self, destination: Address, server: PublicKey, now: Instant) -> Option<&str> {
        let failure = self.failed.get(&(destination, server)).filter(|failure| now < failure.until)?;
        Some(&failure.cause)
    }

    /// How long a destination is still left alone.
    pub(super) fn backed_off(&self, destination: Address, now: Instant) -> Option<Duration> {
        let absence = self.absent.get(&destination)?;
        Some(absence.until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    pub(super) fn route_worked(&mut self, destination: Address, server: PublicKey) {
        self.worked.insert(destination.key, server, ENTRIES_MAX);
        self.failed.map.remove(&(destination, server));
        self.absent.map.remove(&destination);
    }

    pub(super) fn route_failed(
        &mut self,
        destination: Address,
        server: PublicKey,
        cause: String,
        now: Instant,
    ) {
        if self.worked(&destination.key) == Some(server) {
            self.worked.map.remove(&destination.key);
        }
        let failure = Failure { until: now + ROUTE_REST, cause };
        self.failed.insert((destination, server), failure, FAILURES_MAX);
    }

    /// Every route failed.
    pub(super) fn destination_failed(&mut self, destination: Address, now: Instant) {
        // What failed long ago does not count any more.
        let before = self.absent.get(&destination).filter(|before| now < before.until + DESTINATION_REST_MAX);
        let rest = before.map_or(DESTINATION_REST, |before| (before.rest * 2).min(DESTINATION_REST_MAX));
        self.absent.insert(destination, Absence { rest, until: now + rest }, FAILURES_MAX);
    }

    /// A session to `server` is new: what failed over the one before says nothing about it.
    pub(super) fn session_is_new(&mut self, server: &PublicKey) {
        self.failed.map.retain(|(_, over), _| over != server);
        self.absent.map.clear();
    }
}

/// A table that forgets its oldest value when it is full.
struct Bounded<K, V> {
    map: HashMap<K, (u64, V)>,
    next: u64,
}

impl<K, V> Default for Bounded<K, V> {
    fn default() -> Self {
        Self { map: HashMap::new(), next: 0 }
    }
}

impl<K: Eq + Hash + Copy, V> Bounded<K, V> {
    fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key).map(|(_, value)| value)
    }

    fn insert(&mut self, key: K, value: V, max: usize) {
        if self.map.len() >= max && !self.map.contains_key(&key) {
            // Half at once, so that a full table costs one look at all of it in many insertions.
            let mut ages: Vec<u64> = self.map.values().map(|(age, _)| *age).collect();
            let (_, median, _) = ages.select_nth_unstable(max / 2);
            let median = *median;
            self.map.retain(|_, (age, _)| *age > median);
        }
        self.next += 1;
        self.map.insert(key, (self.next, value));
    }
}

#[cfg(test)]
mod tests {
    use ringwire_dataplane::entropy::OsEntropy;
    use ringwire_proto::identity::SecretKey;

    use super::*;

    fn key() -> PublicKey {
        SecretKey::generate(&mut OsEntropy).public_key()
    }

    #[test]
    fn a_failed_route_rests_for_half_a_minute_and_only_that_route() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let (destination, server, other) = (Address { key: key(), port: 80 }, key(), key());
        memory.route_failed(destination, server, "gone".to_owned(), now);
        let almost = now + Duration::from_millis(29_999);
        assert_eq!(memory.resting(destination, server, almost), Some("gone"));
        assert_eq!(memory.resting(destination, other, now), None);
        assert_eq!(memory.resting(Address { port: 81, ..destination }, server, now), None);
        assert_eq!(memory.resting(destination, server, now + Duration::from_secs(30)), None);
        memory.route_worked(destination, server);
        assert_eq!(memory.resting(destination, server, now), None);
        assert_eq!(memory.worked(&destination.key), Some(server));
        memory.route_failed(destination, server, "gone".to_owned(), now);
        assert_eq!(memory.worked(&destination.key), None);
        memory.session_is_new(&other);
        assert!(memory.resting(destination, server, now).is_some());
        memory.session_is_new(&server);
        assert_eq!(memory.resting(destination, server, now), None);
    }

    #[test]
    fn an_absent_destination_is_backed_off_from_two_seconds_to_a_minute() {
        let (mut memory, mut now) = (Memory::default(), Instant::now());
        let destination = Address { key: key(), port: 80 };
        for rest in [2, 4, 8, 16, 32, 60, 60] {
            memory.destination_failed(destination, now);
            assert_eq!(memory.backed_off(destination, now), Some(Duration::from_secs(rest)));
            now += Duration::from_secs(rest);
            assert_eq!(memory.backed_off(destination, now), None);
        }
        let long_after = now + Duration::from_secs(60);
        memory.destination_failed(destination, long_after);
        assert_eq!(memory.backed_off(destination, long_after), Some(Duration::from_secs(2)));
        memory.route_worked(destination, key());
        assert_eq!(memory.backed_off(destination, long_after), None);
    }

    #[test]
    fn an_entry_is_used_for_five_minutes() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let key = key();
        memory.keep_entry(key, Entry { sequence: 7, ..Entry::default() }, now);
        assert_eq!(memory.entry(&key, now + Duration::from_secs(299)).map(|entry| entry.sequence), Some(7));
        assert!(memory.entry(&key, now + Duration::from_secs(300)).is_none());
        memory.forget_entry(&key);
        assert!(memory.entry(&key, now).is_none());
    }

    #[test]
    fn a_full_table_forgets_the_oldest_half() {
        let mut table = Bounded::default();
        for number in 0..100_u32 {
            table.insert(number, (), 8);
            assert!(table.map.len() <= 8);
            assert!(table.get(&number).is_some());
        }
        assert!(table.get(&98).is_some() && table.get(&80).is_none());
    }
}
