//! A table whose keys are index *and* generation, so that a reused slot is noticed.
//!
//! It grows by chunks and moves nothing when it does: no turn copies a table of megabytes, and no former copy of one stays behind
//! in the allocator. Chunks that are empty go back to the allocator, whoever lives behind them, and the first empty place is filled
//! first, so that a table is about as large as what is in it.

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
    /// None: every place of it is empty and was given back to the allocator.
    chunks: Vec<Option<Box<Chunk<T>>>>,
    /// One bit for each chunk that is there and has an empty place.
    open: Vec<u64>,
    /// No word of `open` before this one has a bit.
    open_from: usize,
    /// Chunks that were empty when last looked at.
    empty: Vec<u32>,
    chunk_count: usize,
    empty_count: usize,
    len: usize,
    /// Above the generation of every place that was given back to the allocator.
    generation_floor: u32,
}

/// Places of a chunk: as many as a word has bits.
const CHUNK: usize = 64;

/// Empty chunks that are kept whatever the size of the table; of a larger one, as many as an eighth of all.
const EMPTY_KEPT: usize = 4;

#[derive(Debug)]
struct Chunk<T> {
    entries: [Entry<T>; CHUNK],
    /// One bit for each empty place.
    free: u64,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Chunk<T> {
    fn new(generation: u32) -> Box<Self> {
        let entries = std::array::from_fn(|_| Entry { generation, value: None });
        Box::new(Self { entries, free: u64::MAX })
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            open: Vec::new(),
            open_from: 0,
            empty: Vec::new(),
            chunk_count: 0,
            empty_count: 0,
            len: 0,
            generation_floor: 0,
        }
    }
}

impl<T> Slab<T> {
    fn entry(&self, place: usize) -> Option<&Entry<T>> {
        Some(&self.chunks.get(place / CHUNK)?.as_ref()?.entries[place % CHUNK])
    }

    fn entry_mut(&mut self, place: usize) -> Option<&mut Entry<T>> {
        Some(&mut self.chunks.get_mut(place / CHUNK)?.as_mut()?.entries[place % CHUNK])
    }

    /// Puts a value into the first empty place.
    pub fn insert(&mut self, value: T) -> Key {
        let at = self.open_chunk();
        let floor = self.generation_floor;
        let chunk = self.chunks[at].get_or_insert_with(|| {
            self.chunk_count += 1;
            self.empty_count += 1;
            Chunk::new(floor)
        });
        self.empty_count -= usize::from(chunk.free == u64::MAX);
        let place = chunk.free.trailing_zeros() as usize;
        chunk.free &= chunk.free - 1;
        if chunk.free == 0 {
            self.open[at / 64] &= !(1 << (at % 64));
        }
        let entry = &mut chunk.entries[place];
        entry.value = Some(value);
        self.len += 1;
        Key { index: (at * CHUNK + place) as u32, generation: entry.generation }
    }

    /// A chunk with an empty place, perhaps one that is yet to be made.
    fn open_chunk(&mut self) -> usize {
        while let Some(&word) = self.open.get(self.open_from) {
            if word != 0 {
                return self.open_from * 64 + word.trailing_zeros() as usize;
            }
            self.open_from += 1;
        }
        // All that are there are full: the first that was given back, or one more.
        let missing = if self.chunk_count < self.chunks.len() {
            self.chunks.iter().position(Option::is_none)
        } else {
            None
        };
        let at = missing.unwrap_or(self.chunks.len());
        if at == self.chunks.len() {
            self.chunks.push(None);
        }
        self.note_open(at);
        at
    }

    fn note_open(&mut self, at: usize) {
        if self.open.len() <= at / 64 {
            self.open.resize(at / 64 + 1, 0);
        }
        self.open[at / 64] |= 1 << (at % 64);
        self.open_from = self.open_from.min(at / 64);
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
        let at = key.index as usize / CHUNK;
        let chunk = self.chunks.get_mut(at)?.as_mut()?;
        let entry = &mut chunk.entries[key.index as usize % CHUNK];
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        chunk.free |= 1 << (key.index as usize % CHUNK);
        self.len -= 1;
        let is_empty = chunk.free == u64::MAX;
        self.note_open(at);
        if is_empty {
            self.empty_count += 1;
            self.empty.push(at as u32);
            self.shrink();
        }
        Some(value)
    }

    /// Gives empty chunks back, wherever they are, when there are more than a few: after a crowd the table is about as small as
    /// before. New tenants of such a place begin above every generation it had, so that former keys go on finding nothing.
    fn shrink(&mut self) {
        while self.empty_count > EMPTY_KEPT + self.chunk_count / 8 {
            let Some(at) = self.empty.pop() else { break };
            let Some(place) = self.chunks.get_mut(at as usize) else { continue };
            let Some(chunk) = place.take_if(|chunk| chunk.free == u64::MAX) else { continue };
            let highest = chunk.entries.iter().map(|entry| entry.generation).max();
            self.generation_floor = self.generation_floor.max(highest.unwrap_or(0));
            self.chunk_count -= 1;
            self.empty_count -= 1;
            self.open[at as usize / 64] &= !(1 << (at % 64));
        }
        // A chunk is listed each time that it becomes empty: those that were filled again, or are listed twice, go.
        if self.empty.len() > 2 * (EMPTY_KEPT + self.empty_count) {
            let chunks = &self.chunks;
            self.empty.sort_unstable();
            self.empty.dedup();
            self.empty.retain(|&at| {
                let chunk = chunks.get(at as usize).and_then(Option::as_ref);
                chunk.is_some_and(|chunk| chunk.free == u64::MAX)
            });
        }
        while let Some(None) = self.chunks.last() {
            self.chunks.pop();
        }
    }

    /// Places in the table, empty ones included.
    pub fn places(&self) -> usize {
        self.chunks.len() * CHUNK
    }

    /// The value at a place, with its key.
    pub fn at(&self, place: usize) -> Option<(Key, &T)> {
        let entry = self.entry(place)?;
        Some((Key { index: place as u32, generation: entry.generation }, entry.value.as_ref()?))
    }

    /// Values in the table.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the table holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The generation of every place, empty ones included: what [`from_entries`](Self::from_entries) needs besides the values,
    /// so that keys of former tenants go on finding nothing.
    pub fn generations(&self) -> Vec<u32> {
        (0..self.places())
            .map(|place| self.entry(place).map_or(self.generation_floor, |entry| entry.generation))
            .chain([self.generation_floor])
            .collect()
    }

    /// A table in which each key finds its value, and no key that found nothing before finds one.
    pub fn from_entries(generations: &[u32], values: impl IntoIterator<Item = (Key, T)>) -> Self {
        let (generations, generation_floor) = match generations.split_last() {
            Some((&floor, places)) => (places, floor),
            None => (generations, 0),
        };
        let mut slab = Self { generation_floor, ..Self::default() };
        for of_chunk in generations.chunks(CHUNK) {
            let mut chunk = Chunk::new(generation_floor);
            for (entry, &generation) in chunk.entries.iter_mut().zip(of_chunk) {
                entry.generation = generation;
            }
            slab.chunks.push(Some(chunk));
        }
        for (key, value) in values {
            let place = key.index as usize;
            while slab.places() <= place {
                slab.chunks.push(Some(Chunk::new(generation_floor)));
            }
            if let Some(chunk) = &mut slab.chunks[place / CHUNK] {
                chunk.entries[place % CHUNK] = Entry { generation: key.generation, value: Some(value) };
                chunk.free &= !(1 << (place % CHUNK));
                slab.len += 1;
            }
        }
        slab.chunk_count = slab.chunks.len();
        for at in 0..slab.chunks.len() {
            let free = slab.chunks[at].as_ref().map_or(0, |chunk| chunk.free);
            if free != 0 {
                slab.note_open(at);
            }
            if free == u64::MAX {
                slab.empty_count += 1;
                slab.empty.push(at as u32);
            }
        }
        slab
    }

    /// Takes the table apart, in order of place.
    pub fn into_entries(self) -> impl Iterator<Item = (Key, T)> {
        self.chunks.into_iter().enumerate().flat_map(|(at, chunk)| {
            let entries = chunk.map(|chunk| chunk.entries).into_iter().flatten();
            entries.enumerate().filter_map(move |(place, entry)| {
                let key = Key { index: (at * CHUNK + place) as u32, generation: entry.generation };
                entry.value.map(|value| (key, value))
            })
        })
    }

    /// Keys and values, in order of place.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> + '_ {
        self.chunks.iter().enumerate().flat_map(|(at, chunk)| {
            let entries = chunk.as_ref().map(|chunk| chunk.entries.iter()).into_iter().flatten();
            entries.enumerate().filter_map(move |(place, entry)| {
                let key = Key { index: (at * CHUNK + place) as u32, generation: entry.generation };
                entry.value.as_ref().map(|value| (key, value))
            })
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
            assert!(slab.chunk_count <= EMPTY_KEPT && slab.empty.capacity() <= 10_000 / CHUNK * 2);
            former.extend(keys);
        }
        assert!(slab.is_empty());
    }

    #[test]
    fn one_who_stays_behind_the_crowd_keeps_its_own_chunk_and_no_other() {
        let mut slab = Slab::default();
        let keys: Vec<Key> = (0..100_000).map(|value| slab.insert(value)).collect();
        let (&last, crowd) = keys.split_last().unwrap();
        for &key in crowd {
            slab.remove(key);
        }
        assert_eq!(slab.find(last), Some(&99_999));
        assert!(slab.chunk_count <= EMPTY_KEPT + 2, "{} chunks", slab.chunk_count);
        // The places of the crowd serve again, one chunk after the other, and not under their former keys.
        let again: Vec<Key> = (0..1000).map(|value| slab.insert(value)).collect();
        let mut chunks: Vec<usize> = again.iter().map(|key| key.index as usize / CHUNK).collect();
        chunks.dedup();
        assert!(chunks.len() <= 1000 / CHUNK + 2, "{chunks:?}");
        assert!(crowd.iter().all(|&key| slab.find(key).is_none()));
        assert_eq!((slab.len(), slab.iter().count()), (1001, 1001));
    }

    #[test]
    fn a_table_of_entries_is_the_one_they_came_from() {
        let mut slab = Slab::default();
        let keys: Vec<Key> = (0..2000).map(|value| slab.insert(value)).collect();
        let (gone, kept) = keys.split_at(1500);
        assert!(gone.iter().all(|&key| slab.remove(key).is_some()));
        let generations = slab.generations();
        let mut again = Slab::from_entries(&generations, slab.into_entries());
        assert_eq!(again.len(), 500);
        assert!(kept.iter().all(|&key| again.find(key) == Some(&(key.index as i32))));
        let fresh: Vec<Key> = (0..3000).map(|_| again.insert(7)).collect();
        assert!(gone.iter().all(|&key| again.find(key).is_none()));
        assert!(kept.iter().all(|key| !fresh.contains(key)));
        assert_eq!(again.len(), 3500);
    }
}
