//! Who sends next on one session: halves in line, first come first served, and rounds of bulk streams, first between the
//! sessions their bytes come from and then between the streams of each.
//!
//! Frames can be cut anywhere, so a turn is simply up to a quantum of bytes and no deficit has to be carried over. A source
//! with sixty-four streams gets the share of a source with one.
//!
//! Lines go through the halves themselves ([`Places`]): a half that is removed leaves its line at once, without a search, so
//! a line never holds more than the session's streams, however long a send of its peer takes.

use hashbrown::HashMap;

use crate::bridge::Half;
use crate::planted::{self, Bug};
use crate::slab::{Key, Slab};

/// A half's place in a line: its neighbours, and in rounds whose line it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    previous: Key,
    next: Key,
    /// Place of its source in the rounds.
    source: u32,
}

impl Places {
    pub(crate) const NONE: Self = Self { previous: Key::NONE, next: Key::NONE, source: NOBODY };
}

/// Halves in the order of their turns.
#[derive(Debug)]
pub(crate) struct Line {
    first: Key,
    last: Key,
}

impl Default for Line {
    fn default() -> Self {
        Self { first: Key::NONE, last: Key::NONE }
    }
}

impl Line {
    /// Puts a half that is in no line behind the others.
    pub(crate) fn push(&mut self, halves: &mut Slab<Half>, key: Key) {
        self.push_of(halves, key, NOBODY);
    }

    fn push_of(&mut self, halves: &mut Slab<Half>, key: Key, source: u32) {
        let previous = self.last;
        let Some(half) = halves.find_mut(key) else { return };
        half.places = Places { previous, next: Key::NONE, source };
        self.last = key;
        match halves.find_mut(previous) {
            Some(last) => last.places.next = key,
            None => self.first = key,
        }
    }

    /// Takes the half out whose turn it is.
    pub(crate) fn pop(&mut self, halves: &mut Slab<Half>) -> Option<Key> {
        let key = self.first;
        let places = std::mem::replace(&mut halves.find_mut(key)?.places, Places::NONE);
        self.unlink(halves, places);
        Some(key)
    }

    /// Closes the gap of a half that had these places; the half itself may be gone already.
    pub(crate) fn unlink(&mut self, halves: &mut Slab<Half>, places: Places) {
        match halves.find_mut(places.previous) {
            Some(previous) => previous.places.next = places.next,
            None => self.first = places.next,
        }
        match halves.find_mut(places.next) {
            Some(next) => next.places.previous = places.previous,
            None => self.last = places.previous,
        }
    }

    fn is_empty(&self) -> bool {
        self.first == Key::NONE
    }
}

/// Halves that have bulk to send, by source. Empty tables allocate nothing.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// Where each source is that has something to send.
    by_key: HashMap<Key, u32>,
    sources: Vec<Source>,
    /// Places of former sources.
    free: Vec<u32>,
    /// Sources in the order of their turns.
    first: u32,
    last: u32,
}

#[derive(Debug)]
struct Source {
    key: Key,
    halves: Line,
    previous: u32,
    next: u32,
}

/// The place of no source.
const NOBODY: u32 = u32::MAX;

/// Rounds that emptied keep room for so many sources.
const SOURCES_KEPT: usize = 16;

impl Default for Rounds {
    fn default() -> Self {
        Self { by_key: HashMap::new(), sources: Vec::new(), free: Vec::new(), first: NOBODY, last: NOBODY }
    }
}

impl Rounds {
    /// Puts a half behind the others of its source, and a new source behind the other sources.
    pub(crate) fn push(&mut self, halves: &mut Slab<Half>, source: Key, half: Key) {
        let place = match self.by_key.get(&source) {
            Some(&place) => place,
            None => {
                let place = self.add(source);
                self.by_key.insert(source, place);
                self.append(place);
                place
            }
        };
        self.sources[place as usize].halves.push_of(halves, half, place);
    }

    /// Takes the half out whose turn it is.
    pub(crate) fn pop(&mut self, halves: &mut Slab<Half>) -> Option<Key> {
        let newest = planted::is(Bug::StarvationOfOneStream);
        let place = if newest { self.last } else { self.first };
        let line = &self.sources.get(place as usize)?.halves;
        let half = if newest { line.last } else { line.first };
        let places = std::mem::replace(&mut halves.find_mut(half)?.places, Places::NONE);
        self.unlink(halves, places);
        if !self.sources.get(place as usize).is_none_or(|source| source.halves.is_empty()) {
            self.detach(place);
            self.append(place);
        }
        Some(half)
    }

    /// Closes the gap of a half that had these places; the half itself may be gone already. A source without halves goes too.
    pub(crate) fn unlink(&mut self, halves: &mut Slab<Half>, places: Places) {
        let Some(source) = self.sources.get_mut(places.source as usize) else { return };
        source.halves.unlink(halves, places);
        if source.halves.is_empty() {
            let key = source.key;
            self.by_key.remove(&key);
            self.detach(places.source);
            self.free.push(places.source);
            if self.by_key.is_empty() && self.sources.len() > SOURCES_KEPT {
                *self = Self::default();
            }
        }
    }

    fn add(&mut self, key: Key) -> u32 {
        let source = Source { key, halves: Line::default(), previous: NOBODY, next: NOBODY };
        if let Some(place) = self.free.pop() {
            self.sources[place as usize] = source;
            return place;
        }
        self.sources.push(source);
        (self.sources.len() - 1) as u32
    }

    fn append(&mut self, place: u32) {
        let previous = self.last;
        let source = &mut self.sources[place as usize];
        (source.previous, source.next) = (previous, NOBODY);
        self.last = place;
        match self.sources.get_mut(previous as usize) {
            Some(last) => last.next = place,
            None => self.first = place,
        }
    }

    fn detach(&mut self, place: u32) {
        let Source { previous, next, .. } = self.sources[place as usize];
        match self.sources.get_mut(previous as usize) {
            Some(source) => source.next = next,
            None => self.first = next,
        }
        match self.sources.get_mut(next as usize) {
            Some(source) => source.previous = previous,
            None => self.last = previous,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::State;

    fn key(index: u32) -> Key {
        Key { index, generation: 0 }
    }

    fn halves(count: usize) -> (Slab<Half>, Vec<Key>) {
        let mut halves = Slab::default();
        let keys = (0..count).map(|stream| {
            halves.insert(Half::new(Key::NONE, stream as u32, State::Bridged, false, Key::NONE))
        });
        let keys = keys.collect();
        (halves, keys)
    }

    fn remove_from(rounds: &mut Rounds, halves: &mut Slab<Half>, key: Key) {
        let places = halves.remove(key).unwrap().places;
        rounds.unlink(halves, places);
    }

    #[test]
    fn sources_take_turns_whatever_their_number_of_streams() {
        let (mut halves, keys) = halves(5);
        let mut rounds = Rounds::default();
        let (many, one) = (key(1), key(2));
        for &half in &keys[..4] {
            rounds.push(&mut halves, many, half);
        }
        rounds.push(&mut halves, one, keys[4]);
        let mut turns = Vec::new();
        for _ in 0..9 {
            let half = rounds.pop(&mut halves).unwrap();
            turns.push(half.index);
            // Whoever has more to send gets behind the others again.
            rounds.push(&mut halves, if half == keys[4] { one } else { many }, half);
        }
        assert_eq!(turns, [0, 4, 1, 4, 2, 4, 3, 4, 0]);
        assert_eq!(std::iter::from_fn(|| rounds.pop(&mut halves)).count(), 5);
        assert!(rounds.by_key.is_empty() && rounds.first == NOBODY && rounds.last == NOBODY);
    }

    #[test]
    fn a_half_that_is_removed_leaves_its_round_and_the_others_their_turns() {
        let (mut halves, keys) = halves(6);
        let mut rounds = Rounds::default();
        for (at, &half) in keys.iter().enumerate() {
            rounds.push(&mut halves, key(at as u32 / 3), half);
        }
        // The first, the last and one in the middle; then a whole source.
        for gone in [0, 5, 1] {
            remove_from(&mut rounds, &mut halves, keys[gone]);
        }
        assert_eq!(rounds.pop(&mut halves), Some(keys[2]));
        rounds.push(&mut halves, key(0), keys[2]);
        for gone in [3, 4] {
            remove_from(&mut rounds, &mut halves, keys[gone]);
        }
        assert_eq!((rounds.by_key.len(), rounds.free.len()), (1, 1));
        assert_eq!(rounds.pop(&mut halves), Some(keys[2]));
        assert_eq!(rounds.pop(&mut halves), None);
    }

    #[test]
    fn streams_that_come_and_go_leave_nothing_in_line() {
        let (mut halves, mut line, mut rounds) = (Slab::default(), Line::default(), Rounds::default());
        let held = halves.insert(Half::new(Key::NONE, 0, State::Bridged, false, Key::NONE));
        line.push(&mut halves, held);
        for stream in 0..10_000 {
            let urgent = halves.insert(Half::new(Key::NONE, stream, State::Bridged, false, Key::NONE));
            let bulk = halves.insert(Half::new(Key::NONE, stream, State::Bridged, false, Key::NONE));
            line.push(&mut halves, urgent);
            rounds.push(&mut halves, key(stream), bulk);
            let places = halves.remove(urgent).unwrap().places;
            line.unlink(&mut halves, places);
            remove_from(&mut rounds, &mut halves, bulk);
        }
        assert!(rounds.sources.len() <= 1 && rounds.by_key.capacity() < 64);
        assert_eq!((line.pop(&mut halves), line.pop(&mut halves)), (Some(held), None));
        assert!(line.is_empty());
    }

    #[test]
    fn a_crowd_of_sources_leaves_no_room_behind() {
        let (mut halves, keys) = halves(1000);
        let mut rounds = Rounds::default();
        for (source, &half) in keys.iter().enumerate() {
            rounds.push(&mut halves, key(source as u32), half);
        }
        while rounds.pop(&mut halves).is_some() {}
        assert!(rounds.sources.capacity() == 0 && rounds.by_key.capacity() == 0);
    }
}
