//! The ring and the doorbell over schedules too long for loom: thousands of random ones, and some that shuttle aims at rare
//! orders (PCT). Shuttle runs atomics in one order for all threads; weak memory is loom's part.
//! `cargo test -p ringwire-ipc --features shuttle --test shuttle`
#![cfg(all(feature = "shuttle", not(feature = "loom")))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use ringwire_ipc::ring::{Consumer, Producer, PushError, Ring};
use shuttle::sync::{Condvar, Mutex};
use shuttle::{check_pct, check_random, thread};

const SCHEDULES: usize = 2000;
/// Orders that need so many switches at the right places are found with known probability.
const DEPTH: usize = 4;

/// An eventfd as shuttle can schedule it: a count, and a wait that takes it.
#[derive(Default)]
struct ModelBell {
    count: Mutex<u64>,
    rung: Condvar,
}

impl ModelBell {
    fn ring(&self) {
        *self.count.lock().unwrap() += 1;
        self.rung.notify_one();
    }

    fn wait(&self) -> Result<(), ()> {
        let mut count = self.count.lock().unwrap();
        while *count == 0 {
            count = self.rung.wait(count).unwrap();
        }
        *count = 0;
        Ok(())
    }
}

type Small = Ring<4, 2>;

/// Sends the numbers from 1 to `last`, ringing only where it must.
fn produce(mut producer: Producer<Arc<Small>, 4, 2>, bell: &ModelBell, last: u64) {
    for number in 1..=last {
        while let Err(error) = producer.push(&[number, !number]) {
            assert_eq!(error, PushError::Full);
            // What is in the ring wakes the consumer, if that had to be.
            if producer.must_ring() {
                bell.ring();
            }
            thread::yield_now();
        }
        // A worker rings once for several records.
        if number % 3 == 0 && producer.must_ring() {
            bell.ring();
        }
    }
    if producer.must_ring() {
        bell.ring();
    }
}

/// Takes them, asleep whenever there is nothing.
fn consume(mut consumer: Consumer<Arc<Small>, 4, 2>, bell: &ModelBell, last: u64) {
    let mut expected = 1;
    while expected <= last {
        match consumer.pop().unwrap() {
            Some(record) => {
                assert_eq!(record, [expected, !expected]);
                expected += 1;
            }
            None => consumer.sleep(|| bell.wait()).unwrap(),
        }
    }
    assert_eq!(consumer.pop(), Ok(None));
}

/// One direction: every record once, in order, whole, and the consumer never sleeps for ever.
fn one_way() {
    let (ring, bell) = (Arc::new(Small::new()), Arc::new(ModelBell::default()));
    let (producer, far_bell) = (Producer::new(Arc::clone(&ring)), Arc::clone(&bell));
    let producing = thread::spawn(move || produce(producer, &far_bell, 30));
    consume(Consumer::new(ring), &bell, 30);
    producing.join().unwrap();
}

/// Both directions of a channel at once: commands one way, events the other, each side asleep for its own.
fn both_ways() {
    let rings: [Arc<Small>; 2] = std::array::from_fn(|_| Arc::new(Small::new()));
    let bells: [Arc<ModelBell>; 2] = Default::default();
    let threads: Vec<_> = rings
        .iter()
        .zip(&bells)
        .flat_map(|(ring, bell)| {
            let (producer, consumer) = (Producer::new(Arc::clone(ring)), Consumer::new(Arc::clone(ring)));
            let (near, far) = (Arc::clone(bell), Arc::clone(bell));
            [
                thread::spawn(move || produce(producer, &far, 12)),
                thread::spawn(move || consume(consumer, &near, 12)),
            ]
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn long_streams_arrive_whole_and_in_order() {
    check_random(one_way, SCHEDULES);
    check_pct(one_way, SCHEDULES, DEPTH);
}

#[test]
fn two_directions_do_not_disturb_each_other() {
    check_random(both_ways, SCHEDULES);
    check_pct(both_ways, SCHEDULES, DEPTH);
}

/// The model can see a lost wake-up: a consumer that looks before it announces, and not after, is found asleep for ever.
#[test]
#[should_panic(expected = "deadlock")]
fn looking_too_early_loses_a_wake_up() {
    check_random(
        || {
            let (ring, bell) = (Arc::new(Small::new()), Arc::new(ModelBell::default()));
            let (producer, far_bell) = (Producer::new(Arc::clone(&ring)), Arc::clone(&bell));
            let producing = thread::spawn(move || produce(producer, &far_bell, 2));
            let mut consumer = Consumer::new(ring);
            let mut taken = 0;
            while taken < 2 {
                if consumer.pop().unwrap().is_some() {
                    taken += 1;
                    continue;
                }
                let looked_early = consumer.is_ready();
                consumer.announce_sleep();
                if !looked_early {
                    bell.wait().unwrap();
                }
                consumer.withdraw_sleep();
            }
            producing.join().unwrap();
        },
        SCHEDULES,
    );
}
