//! Which worker has the session of a key.
//!
//! In go keys with the worker and the session they came to; out come places, each with a generation that rises with every
//! session of its key. Used by workers when a session or a stream begins or ends, never for a frame.
//!
//! Three rules make reconnects safe, whoever comes first:
//! 1. An insert is the replacement: its answer names the session it displaced, and whoever inserted has that one closed.
//! 2. A removal names the generation it means, and leaves a newer entry alone.
//! 3. A generation is drawn in the same critical section as the replacement, so of two sessions of a key the one with the
//!    higher generation is the one that stays.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};

use crate::WorkerIndex;
use crate::sync::{Mutex, MutexGuard};

/// Where a key's session is. Plain data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Who has it.
    pub worker: WorkerIndex,
    /// Its number at that worker: index and generation of the worker's table.
    pub session: u64,
    /// Higher than that of every earlier session of the key; at least 1.
    pub generation: u64,
}

/// What an insert did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// The new entry's, for [`Directory::remove`].
    pub generation: u64,
    /// The entry it replaced: that session is to be closed, by its worker.
    pub displaced: Option<Place>,
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
    places: HashMap<K, Place>,
    /// The last generation given out. One for all keys of the shard, so that it outlives every entry.
    generation: u64,
}

/// Enough that workers seldom meet; each has some hundred entries at 10,000 sessions.
const SHARDS: usize = 64;

impl<K: Hash + Eq + Copy> Default for Directory<K> {
    fn default() -> Self {
        Self::with_shards(SHARDS)
    }
}

impl<K: Hash + Eq + Copy> Directory<K> {
    /// An empty directory of so many shards, at least one.
    pub fn with_shards(shards: usize) -> Self {
        let shard = |_| Shard(Mutex::new(Entries { places: HashMap::new(), generation: 0 }));
        Self { shards: (0..shards.max(1)).map(shard).collect(), hasher: RandomState::new() }
    }

    /// A session of `key` has begun. Whom it displaced is gone from the directory already; have it closed.
    #[must_use = "the displaced session is to be closed, and the generation is needed for the removal"]
    pub fn insert(&self, key: K, worker: WorkerIndex, session: u64) -> Inserted {
        let mut entries = self.lock(&key);
        entries.generation += 1;
        let generation = entries.generation;
        let displaced = entries.places.insert(key, Place { worker, session, generation });
        Inserted { generation, displaced }
    }

    /// Where the session of a key is now. It may be gone by the time its worker is asked.
    pub fn find(&self, key: &K) -> Option<Place> {
        self.lock(key).places.get(key).copied()
    }

    /// The session that was inserted with `generation` has ended. False: the entry is a newer session's, or gone, and
    /// stays as it is.
    pub fn remove(&self, key: &K, generation: u64) -> bool {
        let mut entries = self.lock(key);
        if entries.places.get(key).is_none_or(|place| place.generation != generation) {
            return false;
        }
        entries.places.remove(key);
        // After a crowd it is as small as before; looked at rarely, for shrinking is a walk.
        let (len, capacity) = (entries.places.len(), entries.places.capacity());
        if capacity > CAPACITY_KEPT && 8 * len < capacity {
            entries.places.shrink_to((2 * len).max(CAPACITY_KEPT));
        }
        true
    }

    /// Entries at about this moment, for reports.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).places.len()).sum()
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

/// Entries a shard has room for below which it is never made smaller.
const CAPACITY_KEPT: usize = 64;

fn lock<K>(shard: &Shard<K>) -> MutexGuard<'_, Entries<K>> {
    // A holder that panicked (out of memory, in the insert) left a table that is whole.
    shard.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_removal_leaves_a_newer_entry_alone() {
        let directory = Directory::default();
        let first = directory.insert("key", 0, 10);
        assert_eq!(first.displaced, None);
        let second = directory.insert("key", 1, 20);
        let displaced = Place { worker: 0, session: 10, generation: first.generation };
        assert_eq!(second.displaced, Some(displaced));
        assert!(second.generation > first.generation);
        assert!(!directory.remove(&"key", first.generation));
        assert_eq!(directory.find(&"key").map(|place| place.session), Some(20));
        assert!(directory.remove(&"key", second.generation));
        assert!(!directory.remove(&"key", second.generation));
        assert!(directory.is_empty() && directory.find(&"key").is_none());
    }

    #[test]
    fn a_generation_outlives_its_entry() {
        let directory = Directory::with_shards(1);
        let first = directory.insert(1, 0, 1).generation;
        assert!(directory.remove(&1, first));
        // Else the removal that an old session still owes would take the new one's entry.
        let second = directory.insert(1, 0, 1).generation;
        assert!(second > first && !directory.remove(&1, first));
        assert_eq!(directory.len(), 1);
    }

    #[test]
    fn a_crowd_leaves_no_room_behind() {
        let directory = Directory::with_shards(1);
        let generations: Vec<u64> = (0..10_000).map(|key| directory.insert(key, 0, 0).generation).collect();
        assert_eq!(directory.len(), 10_000);
        for (key, &generation) in generations.iter().enumerate() {
            assert!(directory.remove(&key, generation));
        }
        let capacity = lock(&directory.shards[0]).places.capacity();
        assert!(capacity <= 4 * CAPACITY_KEPT, "room for {capacity} entries is kept");
    }

    proptest! {
        /// The same as a table that one thread owns, whatever the number of shards.
        #[test]
        fn same_as_one_table(shards in 0_usize..5, steps in prop::collection::vec((any::<bool>(), 0_u8..6, 0_u64..30), 0..200)) {
            let directory = Directory::with_shards(shards);
            let mut model: HashMap<u8, Place> = HashMap::new();
            for (number, (inserts, key, meant)) in steps.into_iter().enumerate() {
                if inserts {
                    let inserted = directory.insert(key, 3, number as u64);
                    let place = Place { worker: 3, session: number as u64, generation: inserted.generation };
                    prop_assert_eq!(inserted.displaced, model.insert(key, place));
                } else {
                    let is_meant = model.get(&key).is_some_and(|place| place.generation == meant);
                    prop_assert_eq!(directory.remove(&key, meant), is_meant);
                    if is_meant {
                        model.remove(&key);
                    }
                }
                prop_assert_eq!(directory.find(&key), model.get(&key).copied());
                prop_assert_eq!(directory.len(), model.len());
            }
        }
    }
}
