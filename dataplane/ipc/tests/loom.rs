//! Models of the ring and the doorbell, run by loom on every schedule, without a bound, in seconds.
//! `cargo test -p ringwire-ipc --features loom --test loom`
#![cfg(feature = "loom")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use loom::sync::{Condvar, Mutex};
use loom::thread;
use ringwire_ipc::ring::{Consumer, Producer, PushError, Ring};

/// An eventfd as loom can schedule it: a count, and a wait that takes it.
struct ModelBell {
    count: Mutex<u64>,
    rung: Condvar,
}

impl ModelBell {
    fn new() -> Self {
        Self { count: Mutex::new(0), rung: Condvar::new() }
    }

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

/// Three records of two words through two slots: every slot order, a full ring, and no record torn, lost or doubled.
#[test]
fn ring_hands_over_whole_records_in_order() {
    loom::model(|| {
        let ring = Arc::new(Ring::<2, 2>::new());
        let mut producer = Producer::new(Arc::clone(&ring));
        let mut consumer = Consumer::new(ring);
        let producing = thread::spawn(move || {
            for number in 1..=3 {
                while let Err(error) = producer.push(&[number, !number]) {
                    assert_eq!(error, PushError::Full);
                    thread::yield_now();
                }
            }
        });
        for number in 1..=3 {
            let record = loop {
                match consumer.pop().unwrap() {
                    Some(record) => break record,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(record, [number, !number]);
        }
        producing.join().unwrap();
        assert_eq!(consumer.pop(), Ok(None));
    });
}

/// A consumer that sleeps whenever the ring is empty receives everything. A lost wake-up is a deadlock to loom.
#[test]
fn doorbell_loses_no_wake_up() {
    loom::model(|| {
        let ring = Arc::new(Ring::<2, 1>::new());
        let bell = Arc::new(ModelBell::new());
        let mut producer = Producer::new(Arc::clone(&ring));
        let mut consumer = Consumer::new(ring);
        let far_bell = Arc::clone(&bell);
        let producing = thread::spawn(move || {
            for number in 1..=2 {
                producer.push(&[number]).unwrap();
                if producer.must_ring() {
                    far_bell.ring();
                }
            }
        });
        let mut expected = 1;
        while expected <= 2 {
            match consumer.pop().unwrap() {
                Some(record) => {
                    assert_eq!(record, [expected]);
                    expected += 1;
                }
                None => consumer.sleep(|| bell.wait()).unwrap(),
            }
        }
        producing.join().unwrap();
    });
}

/// The model can see a lost wake-up: looking before announcing, instead of after, is found.
#[test]
#[should_panic(expected = "deadlock")]
fn looking_too_early_loses_a_wake_up() {
    loom::model(|| {
        let ring = Arc::new(Ring::<2, 1>::new());
        let bell = Arc::new(ModelBell::new());
        let mut producer = Producer::new(Arc::clone(&ring));
        let mut consumer = Consumer::new(ring);
        let far_bell = Arc::clone(&bell);
        let producing = thread::spawn(move || {
            producer.push(&[1]).unwrap();
            if producer.must_ring() {
                far_bell.ring();
            }
        });
        while consumer.pop().unwrap().is_none() {
            let looked_early = consumer.is_ready();
            consumer.announce_sleep();
            if !looked_early {
                bell.wait().unwrap();
            }
            consumer.withdraw_sleep();
        }
        producing.join().unwrap();
    });
}
