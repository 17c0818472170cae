//! Two workers of one server, on real connections, on both drivers: a key that reconnects to the other worker displaces its
//! former session there.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::SecretKey;
use support::drivers::{current, on_each_driver};
use support::stage::{Stage, wait_until};

on_each_driver!(
    a_key_that_comes_to_the_other_worker_displaces_its_session,
    a_key_that_comes_to_both_at_once_keeps_one_session
);

fn a_key_that_comes_to_the_other_worker_displaces_its_session() {
    let stage = Stage::start(current());
    let secret = SecretKey::generate(&mut OsEntropy);
    // A client is done before the server is, and sessions of one key stand in the order in which they were filed.
    let filed = |count| wait_until(|| stage.sum(Counter::SessionsOpened) == count);
    let mut former = stage.connect(&secret, 0);
    filed(1);
    for round in 1..20 {
        let next = stage.connect(&secret, round % 2);
        filed(round as u64 + 1);
        wait_until(|| {
            former.pump();
            former.closed
        });
        assert_eq!(
            stage.directory.find(&secret.public_key()).map(|place| usize::from(place.worker)),
            Some(round % 2)
        );
        former = next;
    }
    assert_eq!(stage.sum(Counter::SessionsDisplaced), 19);
    assert_eq!((stage.open_sessions(), stage.directory.len()), (1, 1));
    former.settle();
    // It leaves by itself: its worker takes it out.
    drop(former);
    wait_until(|| stage.directory.is_empty());
    assert_eq!(stage.sum(Counter::LettersStale), 0);
    // Each of these letters found a worker asleep, or reading anyway.
    assert!(stage.sum(Counter::WorkersWoken) <= 19);
    stage.stop();
}

fn a_key_that_comes_to_both_at_once_keeps_one_session() {
    let stage = Stage::start(current());
    let secret = SecretKey::generate(&mut OsEntropy);
    for round in 1..=25 {
        let peers = std::thread::scope(|scope| {
            let connect = |worker| {
                let (stage, secret) = (&stage, &secret);
                scope.spawn(move || stage.connect(secret, worker))
            };
            [connect(0), connect(1)].map(|thread| thread.join().unwrap())
        });
        // A client is done before the server is: both must have been filed first.
        wait_until(|| stage.sum(Counter::SessionsOpened) == 2 * round && stage.open_sessions() == 1);
        assert_eq!(stage.directory.len(), 1);
        let place = stage.directory.find(&secret.public_key()).unwrap();
        let [first, second] = peers;
        let (mut stays, mut goes) = if place.worker == 0 { (first, second) } else { (second, first) };
        wait_until(|| {
            goes.pump();
            goes.closed
        });
        stays.settle();
        assert!(!stays.closed, "the session that the directory names lives");
    }
    stage.stop();
}
