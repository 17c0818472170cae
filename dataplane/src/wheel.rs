//! Timers of a worker, coalesced into ticks of 64 ms: many idle sessions wake it a few times a second, not each by itself.
//!
//! The wheel never cancels. Each owner knows its own deadline; when an entry fires the owner looks and, if the deadline
//! has moved, schedules again. Entries of owners that are gone find nothing.

use crate::driver::Nanos;

/// Length of a tick in nanoseconds. Deadlines here are seconds; firing up to a tick late is harmless.
const TICK_NS: u64 = 64_000_000;
/// Ticks in one revolution: 65 s. A later deadline is looked at once a revolution.
const TICKS: u64 = 1024;

/// Words of one bit per bucket.
const WORDS: usize = (TICKS / 64) as usize;

/// Entries a bucket keeps room for when it is empty.
const BUCKET_ROOM_MAX: usize = 256;

/// Deadlines of `T`s. See the module's head.
#[derive(Debug)]
pub struct Wheel<T> {
    buckets: Vec<Vec<T>>,
    /// One bit per bucket that holds something.
    filled: [u64; WORDS],
    /// The next tick to fire.
    tick: u64,
    len: usize,
}

impl<T> Wheel<T> {
    /// An empty wheel that begins at `now`.
    pub fn new(now: Nanos) -> Self {
        Self {
            buckets: (0..TICKS).map(|_| Vec::new()).collect(),
            filled: [0; WORDS],
            tick: now / TICK_NS,
            len: 0,
        }
    }

    /// Fires `entry` at `at`, or a revolution from now if that is sooner. Returns when.
    pub fn schedule(&mut self, at: Nanos, entry: T) -> Nanos {
        // Rounded up: never early.
        let tick = at.div_ceil(TICK_NS).clamp(self.tick, self.tick + TICKS - 1);
        let bucket = (tick % TICKS) as usize;
        self.buckets[bucket].push(entry);
        self.filled[bucket / 64] |= 1 << (bucket % 64);
        self.len += 1;
        tick * TICK_NS
    }

    /// When something fires next.
    pub fn next(&self) -> Option<Nanos> {
        if self.len == 0 {
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
        if self.len == 0 {
            self.tick = self.tick.max(last);
            return;
        }
        // After a long sleep every bucket is due once.
        let first = self.tick.max((last + 1).saturating_sub(TICKS));
        for tick in first..=last {
            let bucket = (tick % TICKS) as usize;
            if self.filled[bucket / 64] >> (bucket % 64) & 1 == 1 {
                self.len -= self.buckets[bucket].len();
                due.append(&mut self.buckets[bucket]);
                // A flood of short-lived owners must not leave its room behind in every bucket.
                if self.buckets[bucket].capacity() > BUCKET_ROOM_MAX {
                    self.buckets[bucket] = Vec::new();
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
                let at = wheel.schedule((start + distance) * TICK_NS, ());
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
        let at = wheel.schedule(1, 7);
        assert!(at >= 5_000_000_000_000);
        wheel.expire(at, &mut due);
        assert_eq!(due.len(), 101);
    }
}
