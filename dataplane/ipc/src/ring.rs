//! A ring of fixed-size records between one producer and one consumer in two processes.
//!
//! In goes a record of `WORDS` words, out comes its copy, in order. Both positions only grow; a slot is its position
//! modulo `SLOTS`. Each side owns one position and keeps a private copy of it, so that nothing the other process
//! writes can move it:
//!
//! ```text
//!   produced   written by the producer (Release), read by the consumer (Acquire): hands filled slots over
//!   consumed   written by the consumer (Release), read by the producer (Acquire): hands emptied slots back
//!   sleep      written by the consumer, read by the producer: whether the consumer sleeps, see `doorbell`
//!   slots      words, stored and loaded Relaxed; the two positions order them
//! ```
//!
//! Called by the worker and by the control plane, through whatever points at a [`Ring`]: a `Region` between
//! processes, an `Arc` in models and tests. Handles start at position zero, so a ring serves one pair of handles.

use std::ops::Deref;

use crate::Fault;
use crate::doorbell::{Ringer, SleepWord, Sleeper};
use crate::sync::{AtomicU64, Ordering, Witness};

/// Shared memory of a ring: `SLOTS` records (a power of two) of `WORDS` words of eight bytes. See the module's head.
#[derive(Debug)]
#[repr(C)]
pub struct Ring<const SLOTS: usize, const WORDS: usize> {
    produced: Line<AtomicU64>,
    consumed: Line<AtomicU64>,
    sleep: Line<SleepWord>,
    slots: [Slot<WORDS>; SLOTS],
}

/// Keeps what different sides write apart: two cache lines, because processors fetch lines in pairs.
#[derive(Debug)]
#[repr(C, align(128))]
struct Line<T>(T);

#[derive(Debug)]
#[repr(C)]
struct Slot<const WORDS: usize> {
    words: [AtomicU64; WORDS],
    witness: Witness,
}

impl<const WORDS: usize> Slot<WORDS> {
    fn new() -> Self {
        Self { words: std::array::from_fn(|_| AtomicU64::new(0)), witness: Witness::new() }
    }
}

impl<const SLOTS: usize, const WORDS: usize> Ring<SLOTS, WORDS> {
    const MASK: usize = {
        assert!(SLOTS.is_power_of_two(), "a slot is found by masking its position");
        SLOTS - 1
    };

    /// An empty ring in ordinary memory. One in a region needs no construction: zeroed memory is an empty ring.
    pub fn new() -> Self {
        Self {
            produced: Line(AtomicU64::new(0)),
            consumed: Line(AtomicU64::new(0)),
            sleep: Line(SleepWord::new()),
            slots: std::array::from_fn(|_| Slot::new()),
        }
    }

    fn slot(&self, position: u64) -> &Slot<WORDS> {
        // Truncation drops bits above the mask only.
        &self.slots[position as usize & Self::MASK]
    }
}

impl<const SLOTS: usize, const WORDS: usize> Default for Ring<SLOTS, WORDS> {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether `found` is a position that the other side may publish, given the range an honest one stays in.
fn check_position(found: u64, least: u64, most: u64) -> Result<u64, Fault> {
    if (least..=most).contains(&found) { Ok(found) } else { Err(Fault::Position { found, least, most }) }
}

/// Why a record was not pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// Every slot waits for the consumer. Try again later, or drop the record and count it.
    #[error("the ring is full")]
    Full,
    /// The consumer misbehaved; this handle is finished.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// The producing end.
#[derive(Debug)]
pub struct Producer<R, const SLOTS: usize, const WORDS: usize> {
    ring: R,
    next: u64,
    consumed: u64,
    ringer: Ringer,
    fault: Option<Fault>,
}

impl<R, const SLOTS: usize, const WORDS: usize> Producer<R, SLOTS, WORDS>
where
    R: Deref<Target = Ring<SLOTS, WORDS>>,
{
    /// The one producer of a fresh ring.
    pub fn new(ring: R) -> Self {
        Self { ring, next: 0, consumed: 0, ringer: Ringer::default(), fault: None }
    }

    /// Copies `record` into the ring and publishes it. Never waits.
    ///
    /// # Errors
    /// [`PushError::Full`] leaves everything as it was. After a [`PushError::Fault`] every later push answers the same.
    pub fn push(&mut self, record: &[u64; WORDS]) -> Result<(), PushError> {
        if let Some(fault) = self.fault {
            return Err(fault.into());
        }
        if self.next - self.consumed == SLOTS as u64 {
            self.refresh()?;
            if self.next - self.consumed == SLOTS as u64 {
                return Err(PushError::Full);
            }
        }
        let slot = self.ring.slot(self.next);
        slot.witness.write();
        for (cell, &word) in slot.words.iter().zip(record) {
            // Ordered before the consumer's loads by `produced`, behind its earlier loads by `consumed`.
            cell.store(word, Ordering::Relaxed);
        }
        self.next += 1;
        // Release: partner is the Acquire load in `Consumer::refresh`; the words above are visible to who sees this.
        self.ring.produced.0.store(self.next, Ordering::Release);
        Ok(())
    }

    /// Slots that are free now.
    ///
    /// # Errors
    /// The consumer misbehaved; every later push answers the same.
    pub fn room(&mut self) -> Result<usize, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.refresh()?;
        // At most the capacity, as `refresh` checked.
        Ok(SLOTS - (self.next - self.consumed) as usize)
    }

    /// After a push, or once after several: whether the consumer's bell must be rung. True once per announcement.
    #[must_use = "the consumer sleeps on if its bell is not rung"]
    pub fn must_ring(&mut self) -> bool {
        self.ringer.must_ring(&self.ring.sleep.0)
    }

    fn refresh(&mut self) -> Result<(), Fault> {
        // Acquire: partner is the Release store in `Consumer::pop`; its loads of a slot are over before we refill it.
        let found = self.ring.consumed.0.load(Ordering::Acquire);
        self.consumed =
            check_position(found, self.consumed, self.next).inspect_err(|&fault| self.fault = Some(fault))?;
        Ok(())
    }
}

/// The consuming end.
#[derive(Debug)]
pub struct Consumer<R, const SLOTS: usize, const WORDS: usize> {
    ring: R,
    next: u64,
    produced: u64,
    sleeper: Sleeper,
    fault: Option<Fault>,
}

impl<R, const SLOTS: usize, const WORDS: usize> Consumer<R, SLOTS, WORDS>
where
    R: Deref<Target = Ring<SLOTS, WORDS>>,
{
    /// The one consumer of a fresh ring.
    pub fn new(ring: R) -> Self {
        Self { ring, next: 0, produced: 0, sleeper: Sleeper::default(), fault: None }
    }

    /// Copies the next record out, if there is one. The copy is the caller's alone and may hold anything: validate it.
    ///
    /// # Errors
    /// The producer published a position that no honest one reaches. Every later pop answers the same.
    pub fn pop(&mut self) -> Result<Option<[u64; WORDS]>, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.next == self.produced {
            self.refresh()?;
            if self.next == self.produced {
                return Ok(None);
            }
        }
        // Ordered behind the producer's stores by `produced`, before its next ones by `consumed`.
        let slot = self.ring.slot(self.next);
        let record = std::array::from_fn(|word| slot.words[word].load(Ordering::Relaxed));
        slot.witness.read();
        self.next += 1;
        // Release: partner is the Acquire load in `Producer::refresh`; the copy is complete before the slot is free.
        self.ring.consumed.0.store(self.next, Ordering::Release);
        Ok(Some(record))
    }

    /// Whether [`pop`](Self::pop) has something to say: a record or a fault. The "look again" before sleeping.
    pub fn is_ready(&self) -> bool {
        // Acquire: partner is the Release store in `Producer::push`. Any difference counts, a wrong one as well.
        self.fault.is_some()
            || self.next != self.produced
            || self.ring.produced.0.load(Ordering::Acquire) != self.next
    }

    /// "From now on, ring." Then ask [`is_ready`](Self::is_ready) again, and only if it says no, wait for the bell.
    pub fn announce_sleep(&mut self) {
        self.sleeper.announce(&self.ring.sleep.0);
    }

    /// Awake again, for whatever reason.
    pub fn withdraw_sleep(&mut self) {
        self.sleeper.withdraw(&self.ring.sleep.0);
    }

    /// One sleep: announces, looks again, calls `wait` only if nothing is there, and withdraws. Then drain and come again;
    /// it may return with nothing to drain.
    ///
    /// # Errors
    /// Those of `wait`, which is mostly [`Bell::wait`](crate::doorbell::Bell::wait).
    pub fn sleep<E>(&mut self, wait: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        self.announce_sleep();
        let waited = if self.is_ready() { Ok(()) } else { wait() };
        self.withdraw_sleep();
        waited
    }

    fn refresh(&mut self) -> Result<(), Fault> {
        // Acquire: partner is the Release store in `Producer::push`; the words of every slot below are visible.
        let found = self.ring.produced.0.load(Ordering::Acquire);
        // The positions are counts of records: at a thousand million a second they last five centuries.
        let most = self.next.saturating_add(SLOTS as u64);
        self.produced =
            check_position(found, self.next, most).inspect_err(|&fault| self.fault = Some(fault))?;
        Ok(())
    }
}

#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod layout {
    use std::mem::{align_of, offset_of, size_of};

    use super::Ring;
    use crate::{CommandRing, EventRing, layout_hash};

    impl<const SLOTS: usize, const WORDS: usize> Ring<SLOTS, WORDS> {
        /// Hash of sizes and offsets; two builds that share a ring must agree on it.
        pub const LAYOUT_HASH: u64 = layout_hash(&[
            size_of::<Self>(),
            align_of::<Self>(),
            offset_of!(Self, produced),
            offset_of!(Self, consumed),
            offset_of!(Self, sleep),
            offset_of!(Self, slots),
            SLOTS,
            WORDS,
        ]);
    }

    const _: () = {
        assert!(offset_of!(CommandRing, produced) == 0);
        assert!(offset_of!(CommandRing, consumed) == 128);
        assert!(offset_of!(CommandRing, sleep) == 256);
        assert!(offset_of!(CommandRing, slots) == 384);
        assert!(size_of::<CommandRing>() == 384 + 256 * 64);
        assert!(size_of::<EventRing>() == 384 + 4096 * 128);
        assert!(align_of::<CommandRing>() == 128);
        assert!(CommandRing::LAYOUT_HASH != EventRing::LAYOUT_HASH);
    };
}

#[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    type Small = Ring<4, 2>;

    fn ends(ring: &Small) -> (Producer<&Small, 4, 2>, Consumer<&Small, 4, 2>) {
        (Producer::new(ring), Consumer::new(ring))
    }

    #[test]
    fn full_is_an_answer_and_room_comes_back() {
        let ring = Small::new();
        let (mut producer, mut consumer) = ends(&ring);
        assert_eq!(consumer.pop(), Ok(None));
        for number in 0..4 {
            assert_eq!(producer.push(&[number, !number]), Ok(()));
        }
        assert_eq!(producer.push(&[9, 9]), Err(PushError::Full));
        assert_eq!(producer.push(&[9, 9]), Err(PushError::Full));
        assert_eq!(consumer.pop(), Ok(Some([0, !0])));
        assert_eq!(producer.push(&[4, !4]), Ok(()));
        for number in 1..5 {
            assert!(consumer.is_ready());
            assert_eq!(consumer.pop(), Ok(Some([number, !number])));
        }
        assert!(!consumer.is_ready());
        assert_eq!(consumer.pop(), Ok(None));
    }

    #[test]
    fn producer_that_runs_ahead_is_a_fault_for_good() {
        let ring = Small::new();
        let (mut producer, mut consumer) = ends(&ring);
        producer.push(&[1, 1]).unwrap();
        assert_eq!(consumer.pop(), Ok(Some([1, 1])));
        ring.produced.0.store(6, Ordering::Release);
        let fault = Fault::Position { found: 6, least: 1, most: 5 };
        assert!(consumer.is_ready(), "a fault is something to look at");
        assert_eq!(consumer.pop(), Err(fault));
        ring.produced.0.store(2, Ordering::Release);
        assert_eq!(consumer.pop(), Err(fault), "no reading after a fault, even if the position is mended");
        assert_eq!(ring.consumed.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn as_far_ahead_as_the_capacity_is_allowed() {
        let ring = Small::new();
        let (_, mut consumer) = ends(&ring);
        ring.produced.0.store(4, Ordering::Release);
        for _ in 0..4 {
            assert_eq!(consumer.pop(), Ok(Some([0, 0])));
        }
        assert_eq!(consumer.pop(), Ok(None));
    }

    #[test]
    fn producer_that_goes_backwards_is_a_fault() {
        for found in [0, 1, u64::MAX] {
            let ring = Small::new();
            let (mut producer, mut consumer) = ends(&ring);
            for number in 0..2 {
                producer.push(&[number, 0]).unwrap();
                consumer.pop().unwrap();
            }
            ring.produced.0.store(found, Ordering::Release);
            assert_eq!(consumer.pop(), Err(Fault::Position { found, least: 2, most: 6 }));
        }
    }

    #[test]
    fn consumer_that_lies_is_a_fault_for_the_producer() {
        for found in [5, u64::MAX] {
            let ring = Small::new();
            let (mut producer, _) = ends(&ring);
            for number in 0..4 {
                producer.push(&[number, 0]).unwrap();
            }
            ring.consumed.0.store(found, Ordering::Release);
            let fault = PushError::Fault(Fault::Position { found, least: 0, most: 4 });
            assert_eq!(producer.push(&[4, 0]), Err(fault));
            ring.consumed.0.store(4, Ordering::Release);
            assert_eq!(producer.push(&[4, 0]), Err(fault));
        }
    }

    #[test]
    fn a_record_at_the_second_look_prevents_the_wait() {
        let ring = Small::new();
        let (mut producer, mut consumer) = ends(&ring);
        let mut waits = 0;
        let mut wait = || {
            waits += 1;
            Ok::<_, ()>(())
        };
        consumer.sleep(&mut wait).unwrap();
        producer.push(&[1, 1]).unwrap();
        consumer.sleep(&mut wait).unwrap();
        assert_eq!(waits, 1);
        assert!(!producer.must_ring(), "awake after the sleep");
    }

    proptest! {
        /// Whatever the producer's position does, the consumer copies at most what the capacity allows and never panics.
        #[test]
        fn any_position_is_a_copy_or_a_fault(found in any::<u64>(), near in 0_u64..12) {
            for position in [found, near] {
                let ring = Small::new();
                let (_, mut consumer) = ends(&ring);
                ring.produced.0.store(position, Ordering::Release);
                let mut copied = 0;
                while let Ok(Some(_)) = consumer.pop() {
                    copied += 1;
                }
                prop_assert_eq!(copied, if position <= 4 { position } else { 0 });
                prop_assert_eq!(consumer.pop().is_err(), position > 4);
            }
        }

        /// The ring behaves as a bounded queue does.
        #[test]
        fn same_as_a_queue(steps in proptest::collection::vec(any::<Option<u64>>(), 0..200)) {
            let ring = Small::new();
            let (mut producer, mut consumer) = ends(&ring);
            let mut queue = VecDeque::new();
            for step in steps {
                if let Some(number) = step {
                    let pushed = producer.push(&[number, !number]);
                    prop_assert_eq!(pushed.is_ok(), queue.len() < 4);
                    if pushed.is_ok() {
                        queue.push_back(number);
                    }
                } else {
                    let expected = queue.pop_front().map(|number| [number, !number]);
                    prop_assert_eq!(consumer.pop(), Ok(expected));
                }
                prop_assert_eq!(consumer.is_ready(), !queue.is_empty());
            }
        }
    }
}
