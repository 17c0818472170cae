//! Which worker has the session of a key, and who stands by to take its place.
//!
//! In go keys with the worker and the session they came to; out come places, each with a generation of its own. Used by workers when
//! a session or a stream begins or ends, never for a frame.
//!
//! Of several sessions of a key one is the *holder*, whom everybody is sent to; the others are its *standbys*. Three rules make
//! reconnects safe, whoever comes first:
//! 1. An insert never ends anybody: it answers with the holder, if there is one, and whoever inserted has that one prove that it lives.
//! 2. A removal names the generation it means, and leaves every other entry alone. The holder's is the replacement: the newest standby
//!    takes over in the same critical section, so a key that has a session is never without a holder.
//! 3. A generation is never used again, so a removal that an old session still owes takes nobody else's entry.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::SocketAddr;

use crate::WorkerIndex;
use crate::sync::{Mutex, MutexGuard};

/// Where a key's session is. Plain data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Who has it.
    pub worker: WorkerIndex,
    /// Its number at that worker: index and generation of the worker's table.
    pub session: u64,
    /// Its own, and higher than that of every session that was inserted before; at least 1.
    pub generation: u64,
    /// Where its client connects from, for messages.
    pub address: SocketAddr,
    /// It took over from one that was silent: until this time nobody takes over from it for silence again. Of the workers' clock.
    pub settled_at: u64,
}

/// What an insert found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// The new entry's, for [`Directory::remove`].
    pub generation: u64,
    /// Who holds the key already: the new one stands by.
    pub holder: Option<Place>,
    /// The oldest of too many standbys, which is gone from the directory: its worker is to close it.
    pub crowded_out: Option<Place>,
}

/// What a removal did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// Nothing: there is no such entry.
    Nothing,
    /// The entry is gone, and with it the key's last session, or a standby.
    Entry,
    /// The holder's entry is gone, and this standby is the holder now.
    TookOver(Place),
}

/// A key's session by key. See the module's head. Shared by all workers.
#[derive(Debug)]
pub struct Directory<K> {
    shards: Box<[Shard<K>]>,
    /// Seeded at random, so that nobody can choose keys that meet in one shard.
    hasher: RandomState,
}

/// Apart from its neighbours: two cache lines, because processors fetch lines in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Shard<K>(Mutex<Entries<K>>);

#[derive(Debug)]
struct Entries<K> {
    holders: HashMap<K, Place>,
    /// Of the few keys that have several sessions; the newest last. None is empty.
    standbys: HashMap<K, Vec<Place>>,
    /// The last generation given out. One for all keys of the shard, so that it outlives every entry.
    generation: u64,
}

/// Enough that workers seldom meet; each has some hundred entries at 10,000 sessions.
const SHARDS: usize = 64;

/// Standbys of one key: some clones of a machine. One more, and the oldest has to go.
pub const STANDBYS_MAX: usize = 16;

impl<K: Hash + Eq + Copy> Default for Directory<K> {
    fn default() -> Self {
        Self::with_shards(SHARDS)
    }
}

impl<K: Hash + Eq + Copy> Directory<K> {
    /// An empty directory of so many shards, at least one.
    pub fn with_shards(shards: usize) -> Self {
        let entries = || Entries { holders: HashMap::new(), standbys: HashMap::new(), generation: 0 };
        Self {
            shards: (0..shards.max(1)).map(|_| Shard(Mutex::new(entries()))).collect(),
            hasher: RandomState::new(),
        }
    }

    /// A session of `key` has begun, from `address`: its holder, or a standby where there is one.
    #[must_use = "the holder is to prove that it lives, and the generation is needed for the removal"]
    pub fn insert(&self, key: K, worker: WorkerIndex, session: u64, address: SocketAddr) -> Inserted {
        let mut entries = self.lock(&key);
        entries.generation += 1;
        let generation = entries.generation;
        let place = Place { worker, session, generation, address, settled_at: 0 };
        let holder = entries.holders.get(&key).copied();
        let mut crowded_out = None;
        if holder.is_some() {
            let standbys = entries.standbys.entry(key).or_default();
            crowded_out = (standbys.len() >= STANDBYS_MAX).then(|| standbys.remove(0));
            standbys.push(place);
        } else {
            entries.holders.insert(key, place);
        }
        Inserted { generation, holder, crowded_out }
    }

    /// Where the session of a key is now. It may be gone by the time its worker is asked.
    pub fn find(&self, key: &K) -> Option<Place> {
        self.lock(key).holders.get(key).copied()
    }

    /// Who would take over from the holder of a key now.
    pub fn next_of(&self, key: &K) -> Option<Place> {
        self.lock(key).standbys.get(key)?.last().copied()
    }

    /// The session that was inserted with `generation` has ended. If it was the holder, the newest standby takes over and is left in
    /// peace until `settled_at`.
    pub fn remove(&self, key: &K, generation: u64, settled_at: u64) -> Removed {
        let mut entries = self.lock(key);
        let entries = &mut *entries;
        if entries.holders.get(key).is_none_or(|place| place.generation != generation) {
            let Some(standbys) = entries.standbys.get_mut(key) else { return Removed::Nothing };
            let len = standbys.len();
            standbys.retain(|place| place.generation != generation);
            let removed = if standbys.len() < len { Removed::Entry } else { Removed::Nothing };
            entries.forget_empty(key);
            return removed;
        }
        if let Some(standby) = entries.standbys.get_mut(key).and_then(Vec::pop) {
            let place = Place { settled_at, ..standby };
            entries.holders.insert(*key, place);
            entries.forget_empty(key);
            return Removed::TookOver(place);
        }
        entries.holders.remove(key);
        // After a crowd it is as small as before; looked at rarely, for shrinking is a walk.
        let (len, capacity) = (entries.holders.len(), entries.holders.capacity());
        if capacity > CAPACITY_KEPT && 8 * len < capacity {
            entries.holders.shrink_to((2 * len).max(CAPACITY_KEPT));
        }
        Removed::Entry
    }

    /// Keys that have a session, at about this moment, for reports.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).holders.len()).sum()
    }

    /// Whether there is no entry, at about this moment.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self, key: &K) -> MutexGuard<'_, Entries<K>> {
        // Truncation keeps the low bits, which are as good as any.
        lock(&self.shards[self.hasher.hash_one(key) as usize % self.shards.len()])
    }
}

impl<K: Hash + Eq> Entries<K> {
    fn forget_empty(&mut self, key: &K) {
        if self.standbys.get(key).is_some_and(Vec::is_empty) {
            self.standbys.remove(key);
            if self.standbys.is_empty() {
                self.standbys = HashMap::new();
            }
        }
    }
}

/// Entries a shard has room for below which it is never made smaller.
const CAPACITY_KEPT: usize = 64;

fn lock<K>(shard: &Shard<K>) -> MutexGuard<'_, Entries<K>> {
    // A holder that panicked (out of memory, in the insert) left a table that is whole.
    shard.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

    #[test]
    fn the_newest_standby_takes_over_and_nobody_elses_removal_matters() {
        let directory = Directory::default();
        let holds = || directory.find(&"key").map(|place| (place.session, place.settled_at));
        let first = directory.insert("key", 0, 10, ADDRESS);
        assert_eq!((first.holder, first.crowded_out), (None, None));
        let second = directory.insert("key", 1, 20, ADDRESS);
        let holder =
            Place { worker: 0, session: 10, generation: first.generation, address: ADDRESS, settled_at: 0 };
        assert_eq!(second.holder, Some(holder));
        let third = directory.insert("key", 1, 30, ADDRESS);
        assert_eq!((third.holder, holds()), (Some(holder), Some((10, 0))));
        assert_eq!(directory.next_of(&"key").map(|place| place.session), Some(30));
        let Removed::TookOver(place) = directory.remove(&"key", first.generation, 7) else { panic!() };
        assert_eq!((place.session, place.settled_at, holds()), (30, 7, Some((30, 7))));
        assert_eq!(directory.remove(&"key", first.generation, 0), Removed::Nothing);
        assert_eq!(directory.remove(&"key", second.generation, 0), Removed::Entry);
        assert_eq!((holds(), directory.next_of(&"key")), (Some((30, 7)), None));
        assert_eq!(directory.remove(&"key", third.generation, 0), Removed::Entry);
        assert!(directory.is_empty() && directory.find(&"key").is_none());
        assert!(directory.shards.iter().all(|shard| lock(shard).standbys.capacity() == 0));
    }

    #[test]
    fn the_oldest_of_too_many_standbys_goes() {
        let directory = Directory::default();
        let _ = directory.insert("key", 0, 0, ADDRESS);
        for session in 1..=STANDBYS_MAX as u64 {
            assert_eq!(directory.insert("key", 0, session, ADDRESS).crowded_out, None);
        }
        let crowded_out = directory.insert("key", 0, 99, ADDRESS).crowded_out.unwrap();
        assert_eq!(crowded_out.session, 1);
        assert_eq!(directory.remove(&"key", crowded_out.generation, 0), Removed::Nothing);
        assert_eq!(directory.find(&"key").map(|place| place.session), Some(0));
    }

    #[test]
    fn a_generation_outlives_its_entry() {
        let directory = Directory::with_shards(1);
        let first = directory.insert(1, 0, 1, ADDRESS).generation;
        assert_eq!(directory.remove(&1, first, 0), Removed::Entry);
        // Else the removal that an old session still owes would take the new one's entry.
        let second = directory.insert(1, 0, 1, ADDRESS).generation;
        assert!(second > first && directory.remove(&1, first, 0) == Removed::Nothing);
        assert_eq!(directory.len(), 1);
    }

    #[test]
    fn a_crowd_leaves_no_room_behind() {
        let directory = Directory::with_shards(1);
        let generations: Vec<u64> =
            (0..10_000).map(|key| directory.insert(key, 0, 0, ADDRESS).generation).collect();
        assert_eq!(directory.len(), 10_000);
        for (key, &generation) in generations.iter().enumerate() {
            assert_eq!(directory.remove(&key, generation, 0), Removed::Entry);
        }
        let capacity = lock(&directory.shards[0]).holders.capacity();
        assert!(capacity <= 4 * CAPACITY_KEPT, "room for {capacity} entries is kept");
    }

    proptest! {
        /// The same as a table that one thread owns, whatever the number of shards: a list for each key, whose first is the holder.
        #[test]
        fn same_as_one_table(shards in 0_usize..5, steps in prop::collection::vec((any::<bool>(), 0_u8..6, 0_u64..30), 0..200)) {
            let directory = Directory::with_shards(shards);
            let mut model: HashMap<u8, Vec<Place>> = HashMap::new();
            for (number, (inserts, key, meant)) in steps.into_iter().enumerate() {
                let number = number as u64;
                let places = model.entry(key).or_default();
                if inserts {
                    let inserted = directory.insert(key, 3, number, ADDRESS);
                    let generation = inserted.generation;
                    prop_assert_eq!(inserted.holder, places.first().copied());
                    let is_crowded = places.len() > STANDBYS_MAX;
                    prop_assert_eq!(inserted.crowded_out, is_crowded.then(|| places.remove(1)));
                    places.push(Place { worker: 3, session: number, generation, address: ADDRESS, settled_at: 0 });
                } else {
                    let at = places.iter().position(|place| place.generation == meant);
                    if let Some(at) = at {
                        places.remove(at);
                    }
                    let mut expected = if at.is_some() { Removed::Entry } else { Removed::Nothing };
                    if at == Some(0) && let Some(place) = places.pop() {
                        let place = Place { settled_at: number, ..place };
                        places.insert(0, place);
                        expected = Removed::TookOver(place);
                    }
                    prop_assert_eq!(directory.remove(&key, meant, number), expected);
                }
                prop_assert_eq!(directory.find(&key), model[&key].first().copied());
                let next = model[&key].get(1..).and_then(|standbys| standbys.last().copied());
                prop_assert_eq!(directory.next_of(&key), next);
                prop_assert_eq!(directory.len(), model.values().filter(|places| !places.is_empty()).count());
            }
        }
    }
}
