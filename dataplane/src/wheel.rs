//! Timers of a worker, coalesced into ticks of 64 ms: many idle sessions wake it a few times a second, not each by itself.
//!
//! Each owner has one entry at most, and keeps its [`Key`]: with the owner its entry goes, so that the wheel never holds more than
//! there are owners, and a flood of short-lived ones leaves nothing behind. Each owner knows its own deadline too; when an entry
//! fires the owner looks and, if the deadline has moved away, schedules again: moving it away costs nothing.

use crate::driver::Nanos;
use crate::slab::{Key, Slab};

/// Length of a tick in nanoseconds. Deadlines here are seconds; firing up to a tick late is harmless.
const TICK_NS: u64 = 64_000_000;
/// Ticks in one revolution: 65 s. A later deadline is looked at once a revolution.
const TICKS: u64 = 1024;

/// Words of one bit per bucket.
const WORDS: usize = (TICKS / 64) as usize;

/// Deadlines of `T`s. See the module's head.
#[derive(Debug)]
pub struct Wheel<T> {
    entries: Slab<Entry<T>>,
    /// First and last entry of each bucket; `Key::NONE`: it is empty.
    buckets: Vec<(Key, Key)>,
    /// One bit per bucket that holds something.
    filled: [u64; WORDS],
    /// The next tick to fire.
    tick: u64,
}

#[derive(Debug)]
struct Entry<T> {
    what: T,
    bucket: u16,
    previous: Key,
    next: Key,
}

const EMPTY: (Key, Key) = (Key::NONE, Key::NONE);

impl<T> Wheel<T> {
    /// An empty wheel that begins at `now`.
    pub fn new(now: Nanos) -> Self {
        Self {
            entries: Slab::default(),
            buckets: vec![EMPTY; TICKS as usize],
            filled: [0; WORDS],
            tick: now / TICK_NS,
        }
    }

    /// Fires `what` at `at`, or a revolution from now if that is sooner. Returns when, and what [`cancel`](Self::cancel) needs.
    pub fn schedule(&mut self, at: Nanos, what: T) -> (Nanos, Key) {
        // Rounded up: never early.
        let tick = at.div_ceil(TICK_NS).clamp(self.tick, self.tick + TICKS - 1);
        let bucket = (tick % TICKS) as usize;
        let (_, previous) = self.buckets[bucket];
        let key = self.entries.insert(Entry { what, bucket: bucket as u16, previous, next: Key::NONE });
        match self.entries.find_mut(previous) {
            Some(last) => last.next = key,
            None => {
                self.buckets[bucket].0 = key;
                self.filled[bucket / 64] |= 1 << (bucket % 64);
            }
        }
        self.buckets[bucket].1 = key;
        (tick * TICK_NS, key)
    }

    /// Takes out an entry that need not fire any more; one that has fired finds nothing.
    pub fn cancel(&mut self, key: Key) {
        let Some(Entry { bucket, previous, next, .. }) = self.entries.remove(key) else { return };
        let bucket = usize::from(bucket);
        match self.entries.find_mut(previous) {
            Some(entry) => entry.next = next,
            None => self.buckets[bucket].0 = next,
        }
        match self.entries.find_mut(next) {
            Some(entry) => entry.previous = previous,
            None => self.buckets[bucket].1 = previous,
        }
        if self.buckets[bucket] == EMPTY {
            self.filled[bucket / 64] &= !(1 << (bucket % 64));
        }
    }

    /// Entries that have not fired.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing will fire.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When something fires next.
    pub fn next(&self) -> Option<Nanos> {
        if self.is_empty() {
            return None;
        }
        let start = (self.tick % TICKS) as usize;
        // A word at a time, for this is asked every turn: the word of this tick twice, first its later bits, last the earlier.
        let later = u64::MAX << (start % 64);
        let bucket = (0..=WORDS).find_map(|step| {
            let word = (start / 64 + step) % WORDS;
            let bits = match step {
                0 => self.filled[word] & later,
                WORDS => self.filled[word] & !later,
                _ => self.filled[word],
            };
            (bits != 0).then(|| 64 * word + bits.trailing_zeros() as usize)
        })?;
        let ahead = (bucket + TICKS as usize - start) % TICKS as usize;
        Some((self.tick + ahead as u64) * TICK_NS)
    }

    /// Moves what is due at `now` into `due`.
    pub fn expire(&mut self, now: Nanos, due: &mut Vec<T>) {
        let last = now / TICK_NS;
        if self.is_empty() {
            self.tick = self.tick.max(last);
            return;
        }
        // After a long sleep every bucket is due once.
        let first = self.tick.max((last + 1).saturating_sub(TICKS));
        for tick in first..=last {
            let bucket = (tick % TICKS) as usize;
            if self.filled[bucket / 64] >> (bucket % 64) & 1 == 1 {
                let (mut at, _) = std::mem::replace(&mut self.buckets[bucket], EMPTY);
                while let Some(entry) = self.entries.remove(at) {
                    due.push(entry.what);
                    at = entry.next;
                }
                self.filled[bucket / 64] &= !(1 << (bucket % 64));
            }
        }
        self.tick = self.tick.max(last + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_to_fire_is_found_from_every_tick() {
        for start in [0, 1, 62, 63, 64, 65, 500, 1022, 1023, 1024, 5000] {
            for distance in [0, 1, 2, 63, 64, 65, 127, 900, 960, 1022, 1023] {
                let mut wheel = Wheel::new(start * TICK_NS);
                let (at, _) = wheel.schedule((start + distance) * TICK_NS, ());
                assert_eq!(wheel.next(), Some(at), "{distance} ticks from {start}");
                assert_eq!(at, (start + distance) * TICK_NS);
                wheel.schedule((start + 1023) * TICK_NS, ());
                assert_eq!(wheel.next(), Some(at), "the sooner one of two");
            }
        }
    }

    #[test]
    fn entries_fire_in_time_and_once() {
        let mut wheel = Wheel::new(0);
        assert_eq!(wheel.next(), None);
        let mut due = Vec::new();
        for seconds in [1, 5, 30, 64, 300] {
            wheel.schedule(seconds * 1_000_000_000, seconds);
        }
        let mut fired = Vec::new();
        for _ in 0..20 {
            let Some(next) = wheel.next() else { break };
            wheel.expire(next - 1, &mut due);
            assert!(due.is_empty());
            wheel.expire(next, &mut due);
            assert!(!due.is_empty());
            for seconds in due.drain(..) {
                // The longest is seen at the end of a revolution and scheduled again by its owner.
                if seconds * 1_000_000_000 > next {
                    wheel.schedule(seconds * 1_000_000_000, seconds);
                } else {
                    assert!(next - seconds * 1_000_000_000 <= TICK_NS);
                    fired.push(seconds);
                }
            }
        }
        assert_eq!(fired, [1, 5, 30, 64, 300]);
    }

    #[test]
    fn a_long_sleep_fires_everything() {
        let mut wheel = Wheel::new(1_000_000_000_000);
        let mut due = Vec::new();
        for at in 0..100 {
            wheel.schedule(1_000_000_000_000 + at * 700_000_000, at);
        }
        wheel.expire(5_000_000_000_000, &mut due);
        assert_eq!(due.len(), 100);
        assert_eq!(wheel.next(), None);
        let (at, _) = wheel.schedule(1, 7);
        assert!(at >= 5_000_000_000_000);
        wheel.expire(at, &mut due);
        assert_eq!(due.len(), 101);
    }

    #[test]
    fn what_is_cancelled_never_fires_and_leaves_no_room_behind() {
        let mut wheel = Wheel::new(0);
        let kept: Vec<Key> = (0..5).map(|number| wheel.schedule(5_000_000_000, number).1).collect();
        // The first, the last, and one in the middle of a bucket; once more changes nothing.
        for gone in [0, 4, 2, 2] {
            wheel.cancel(kept[gone]);
        }
        let (at, mut due) = (wheel.next().unwrap(), Vec::new());
        wheel.expire(at, &mut due);
        assert_eq!((due, wheel.next()), (vec![1, 3], None));
        // Entries of the owners that are gone are not there, however many there were.
        for round in 0..20 {
            let crowd: Vec<Key> =
                (0..10_000).map(|number| wheel.schedule(at + number * 1_000_000, number).1).collect();
            crowd.into_iter().for_each(|key| wheel.cancel(key));
            assert!(wheel.is_empty() && wheel.entries.places() <= 512, "round {round}");
        }
        assert!(wheel.filled.iter().all(|&bits| bits == 0));
    }
}
