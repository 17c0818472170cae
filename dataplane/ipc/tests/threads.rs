//! Two threads, each with its own mapping of one region, as two processes have.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use ringwire_ipc::doorbell::Bell;
use ringwire_ipc::message::{Command, Order};
use ringwire_ipc::region::Region;
use ringwire_ipc::ring::{Consumer, Producer, PushError};
use ringwire_ipc::{CommandRing, EventRing};

/// Longer than any honest wait on a busy machine: reaching it means that a wake-up was lost.
const LOST: Duration = Duration::from_secs(60);

#[test]
fn a_million_records_arrive_whole_and_in_order() {
    const RECORDS: u64 = 1_000_000;
    let made = Region::<EventRing>::create(1).unwrap();
    let opened = Region::<EventRing>::open(made.as_fd().try_clone_to_owned().unwrap(), 1).unwrap();
    let mut consumer = Consumer::new(opened);
    let consuming = thread::spawn(move || {
        for expected in 0..RECORDS {
            let record = loop {
                match consumer.pop().unwrap() {
                    Some(record) => break record,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(record, [expected; 16]);
        }
        assert_eq!(consumer.pop(), Ok(None));
    });
    let mut producer = Producer::new(made);
    for number in 0..RECORDS {
        while let Err(error) = producer.push(&[number; 16]) {
            assert_eq!(error, PushError::Full);
            thread::yield_now();
        }
    }
    consuming.join().unwrap();
}

/// The consumer really sleeps: now and then the producer waits until it announced that, and wakes it for nothing.
#[test]
fn no_wake_up_is_lost() {
    const COMMANDS: u64 = 100_000;
    const PAUSE_EVERY: u64 = 100;
    let made = Region::<CommandRing>::create(1).unwrap();
    let opened = Region::<CommandRing>::open(made.as_fd().try_clone_to_owned().unwrap(), 1).unwrap();
    let bell = Bell::new().unwrap();
    let far_bell = Bell::from_descriptor(bell.as_fd().try_clone_to_owned().unwrap());
    let mut consumer = Consumer::new(opened);
    let consuming = thread::spawn(move || {
        let mut expected = 0;
        let mut sleeps = 0_u64;
        while expected < COMMANDS {
            while let Some(record) = consumer.pop().unwrap() {
                let command = Command::decode(&record).unwrap();
                assert_eq!(command, Command { request: expected, order: Order::ListSessions });
                expected += 1;
            }
            if expected < COMMANDS {
                let start = Instant::now();
                consumer.sleep(|| far_bell.wait(LOST)).unwrap();
                assert!(start.elapsed() < LOST, "lost at {expected}");
                sleeps += 1;
            }
        }
        sleeps
    });
    let mut producer = Producer::new(made);
    for request in 0..COMMANDS {
        if request % PAUSE_EVERY == 0 {
            while !producer.must_ring() {
                thread::yield_now();
            }
            bell.ring().unwrap();
        }
        let record = Command { request, order: Order::ListSessions }.encode();
        while let Err(error) = producer.push(&record) {
            assert_eq!(error, PushError::Full);
            thread::yield_now();
        }
        if producer.must_ring() {
            bell.ring().unwrap();
        }
    }
    assert!(consuming.join().unwrap() >= COMMANDS / PAUSE_EVERY);
}
