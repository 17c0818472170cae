//! Two workers of one server, on real connections, on both drivers: a key that reconnects to the other worker displaces its
//! former session there.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::SecretKey;
use support::drivers::{current, on_each_driver};
use support::living::Living;
use support::stage::{Stage, wait_until};

on_each_driver!(
    a_key_that_comes_to_the_other_worker_displaces_its_session,
    a_key_that_comes_to_both_at_once_keeps_one_holder
);

fn a_key_that_comes_to_the_other_worker_displaces_its_session() {
    let stage = Stage::start(current());
    // A client is done before the server is, and sessions of one key stand in the order in which they were filed.
    let filed = |count| wait_until(|| stage.sum(Counter::SessionsOpened) == count);
    for round in 0..4 {
        let secret = SecretKey::generate(&mut OsEntropy);
        let mut former = stage.connect(&secret, round % 2);
        filed(2 * round as u64 + 1);
        // It answers nothing.
        let mut next = stage.connect(&secret, (round + 1) % 2);
        filed(2 * round as u64 + 2);
        wait_until(|| stage.sum(Counter::SessionsDisplaced) == round as u64 + 1);
        former.wait_closed();
        assert_eq!(
            stage.directory.find(&secret.public_key()).map(|place| usize::from(place.worker)),
            Some((round + 1) % 2)
        );
        wait_until(|| (stage.open_sessions(), stage.directory.len()) == (1, 1));
        next.settle();
        // It leaves by itself: its worker takes it out.
        drop(next);
        wait_until(|| stage.directory.is_empty());
    }
    assert_eq!((stage.sum(Counter::StandbysTookOver), stage.sum(Counter::LettersStale)), (4, 0));
    stage.stop();
}

fn a_key_that_comes_to_both_at_once_keeps_one_holder() {
    let stage = Stage::start(current());
    for round in 1..=5 {
        let secret = SecretKey::generate(&mut OsEntropy);
        let peers = std::thread::scope(|scope| {
            let connect = |worker| {
                let (stage, secret) = (&stage, &secret);
                scope.spawn(move || stage.connect(secret, worker))
            };
            [connect(0), connect(1)].map(|thread| thread.join().unwrap())
        });
        // A client is done before the server is: both must have been filed first.
        wait_until(|| stage.sum(Counter::SessionsOpened) == 2 * round && stage.open_sessions() == 2);
        assert_eq!(stage.directory.len(), 1);
        let place = stage.directory.find(&secret.public_key()).unwrap();
        let [first, second] = peers.map(|mut peer| {
            peer.settle();
            Living::start(peer)
        });
        let (holder, standby) = if place.worker == 0 { (first, second) } else { (second, first) };
        // Nobody is closed, and when the holder leaves the other one is there.
        wait_until(|| stage.sum(Counter::KeysContested) == round);
        drop(holder.stop());
        wait_until(|| stage.sum(Counter::StandbysTookOver) == round);
        let place = stage.directory.find(&secret.public_key());
        let mut stays = standby.stop();
        stays.settle();
        assert!(!stays.closed && place.is_some(), "the session that the directory names lives");
        drop(stays);
        wait_until(|| stage.directory.is_empty());
    }
    assert_eq!(stage.sum(Counter::SessionsDisplaced), 0);
    stage.stop();
}
