//! A table whose keys are index *and* generation, so that a reused slot is noticed.
//!
//! It grows by chunks and moves nothing when it does: no turn copies a table of megabytes, and no former copy of one stays behind
//! in the allocator.

use crate::planted::{self, Bug};

/// Names an entry of a [`Slab`]: index and generation. Plain data; eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Key {
    /// Place in the table.
    pub index: u32,
    /// How often the place had been filled before.
    pub generation: u32,
}

impl Key {
    /// As one number, for other processes.
    pub fn number(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The key behind a [`number`](Self::number).
    pub fn from_number(number: u64) -> Self {
        // Truncations: each takes the half that `number` put there.
        Self { index: number as u32, generation: (number >> 32) as u32 }
    }

    /// Refers to nothing, ever.
    pub const NONE: Self = Self { index: u32::MAX, generation: u32::MAX };
}

/// See the module's head.
#[derive(Debug)]
pub struct Slab<T> {
    chunks: Vec<Box<[Entry<T>; CHUNK]>>,
    /// Places that were ever used; those behind them are empty.
    places: usize,
    free: Vec<u32>,
    /// Above the generation of every place that was given back to the allocator.
    generation_floor: u32,
}

/// Places of a chunk.
const CHUNK: usize = 64;

/// Places below which a table is never made smaller; whole chunks.
const PLACES_KEPT: usize = 4 * CHUNK;

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), places: 0, free: Vec::new(), generation_floor: 0 }
    }
}

impl<T> Slab<T> {
    fn entry(&self, place: usize) -> Option<&Entry<T>> {
        Some(&self.chunks.get(place / CHUNK)?[place % CHUNK])
    }

    fn entry_mut(&mut self, place: usize) -> Option<&mut Entry<T>> {
        Some(&mut self.chunks.get_mut(place / CHUNK)?[place % CHUNK])
    }

    fn entries(&self) -> impl Iterator<Item = &Entry<T>> + '_ {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).take(self.places)
    }

    fn push(&mut self, entry: Entry<T>) {
        if self.places.is_multiple_of(CHUNK) {
            let empty = |_| Entry { generation: 0, value: None };
            self.chunks.push(Box::new(std::array::from_fn(empty)));
        }
        self.chunks[self.places / CHUNK][self.places % CHUNK] = entry;
        self.places += 1;
    }

    /// Puts a value into a free place.
    pub fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop() {
            // It is one of the places.
            let entry = &mut self.chunks[index as usize / CHUNK][index as usize % CHUNK];
            entry.value = Some(value);
            return Key { index, generation: entry.generation };
        }
        let index = self.places() as u32;
        let generation = self.generation_floor;
        self.push(Entry { generation, value: Some(value) });
        Key { index, generation }
    }

    /// The value behind a key, unless the place was emptied since.
    pub fn find(&self, key: Key) -> Option<&T> {
        self.entry(key.index as usize)
            .filter(|entry| entry.generation == key.generation || planted::is(Bug::StaleGeneration))?
            .value
            .as_ref()
    }

    /// As [`find`](Self::find), to change it.
    pub fn find_mut(&mut self, key: Key) -> Option<&mut T> {
        self.entry_mut(key.index as usize)
            .filter(|entry| entry.generation == key.generation || planted::is(Bug::StaleGeneration))?
            .value
            .as_mut()
    }

    /// Whoever has the place of a key now.
    #[doc(hidden)]
    pub fn tenant(&self, key: Key) -> Option<Key> {
        let entry = self.entry(key.index as usize).filter(|entry| entry.value.is_some())?;
        Some(Key { index: key.index, generation: entry.generation })
    }

    /// Empties the place; later uses of the key find nothing.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entry_mut(key.index as usize).filter(|entry| entry.generation == key.generation)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(key.index);
        // Looked at now and then, for looking is a walk.
        let is_due = self.is_empty() || self.free.len().is_multiple_of(PLACES_KEPT);
        if is_due && self.places() > PLACES_KEPT && 4 * self.len() < self.places() {
            self.shrink();
        }
        Some(value)
    }

    /// Gives empty places at the end back, once the table is mostly empty: after a crowd it is as small as before. New
    /// tenants of such a place begin above every generation it had, so that former keys go on finding nothing.
    fn shrink(&mut self) {
        let is_used = |&place: &usize| self.entry(place).is_some_and(|entry| entry.value.is_some());
        let used = (0..self.places()).rev().find(is_used).map_or(0, |last| last + 1);
        let kept = used.max(PLACES_KEPT).next_multiple_of(CHUNK);
        // Only when it is worth the walk; a tenant far behind keeps the table as it is.
        if 2 * kept > self.places() {
            return;
        }
        for entry in self.chunks.drain(kept / CHUNK..).flat_map(|chunk| *chunk) {
            self.generation_floor = self.generation_floor.max(entry.generation);
        }
        self.places = kept;
        self.chunks.shrink_to(2 * kept / CHUNK);
        self.free.retain(|&index| (index as usize) < kept);
        self.free.shrink_to(2 * kept);
    }

    /// Places in the table, empty ones included.
    pub fn places(&self) -> usize {
        self.places
    }

    /// The value at a place, with its key.
    pub fn at(&self, place: usize) -> Option<(Key, &T)> {
        let entry = self.entry(place)?;
        Some((Key { index: place as u32, generation: entry.generation }, entry.value.as_ref()?))
    }

    /// Values in the table.
    pub fn len(&self) -> usize {
        self.places() - self.free.len()
    }

    /// Whether the table holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The generation of every place, empty ones included: what [`from_entries`](Self::from_entries) needs besides the values,
    /// so that keys of former tenants go on finding nothing.
    pub fn generations(&self) -> Vec<u32> {
        self.entries().map(|entry| entry.generation).collect()
    }

    /// A table in which each key finds its value, and no key that found nothing before finds one.
    pub fn from_entries(generations: &[u32], values: impl IntoIterator<Item = (Key, T)>) -> Self {
        let mut slab = Self::default();
        for &generation in generations {
            slab.push(Entry { generation, value: None });
        }
        for (key, value) in values {
            let place = key.index as usize;
            while slab.places() <= place {
                slab.push(Entry { generation: 0, value: None });
            }
            slab.chunks[place / CHUNK][place % CHUNK] =
                Entry { generation: key.generation, value: Some(value) };
        }
        let empty = slab.entries().enumerate().filter(|(_, entry)| entry.value.is_none());
        slab.free = empty.map(|(index, _)| index as u32).collect();
        slab
    }

    /// Takes the table apart, in order of place.
    pub fn into_entries(self) -> impl Iterator<Item = (Key, T)> {
        self.chunks.into_iter().flat_map(|chunk| *chunk).enumerate().filter_map(|(index, entry)| {
            let key = Key { index: index as u32, generation: entry.generation };
            entry.value.map(|value| (key, value))
        })
    }

    /// Keys and values, in order of place.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> + '_ {
        self.entries().enumerate().filter_map(|(index, entry)| {
            let key = Key { index: index as u32, generation: entry.generation };
            entry.value.as_ref().map(|value| (key, value))
        })
    }

    /// The keys in use, in order of place.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.iter().map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_former_tenant_finds_nothing() {
        let mut slab = Slab::default();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(first.index, second.index);
        assert_eq!(slab.find(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.find(second), Some(&"second"));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn a_crowd_leaves_no_places_behind_and_its_keys_find_nothing() {
        let mut slab = Slab::default();
        let mut former = Vec::new();
        for round in 0..3 {
            let keys: Vec<Key> = (0..10_000).map(|value| slab.insert(value)).collect();
            assert!(former.iter().all(|&key| slab.find(key).is_none()), "round {round}");
            for &key in &keys {
                assert!(slab.remove(key).is_some());
            }
            assert!(
                slab.chunks.capacity() <= 4 * PLACES_KEPT / CHUNK
                    && slab.chunks.len() <= PLACES_KEPT / CHUNK
                    && slab.free.capacity() <= 4 * PLACES_KEPT
            );
            former.extend(keys);
        }
        assert!(slab.is_empty());
    }
}
