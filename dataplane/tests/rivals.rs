//! Several sessions of one key: a reconnect takes over from what is dead, two live clients both stay, and dials find the one that lives.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::{Duration, Instant};

use ringwire_dataplane::Server;
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_exchange::directory::STANDBYS_MAX;
use ringwire_proto::identity::SecretKey;
use ringwire_proto::noise::Hybrid;
use ringwire_proto::smux::Version;
use support::drivers::{current, on_each_driver};
use support::living::{Living, dial};
use support::stage::{Stage, wait_until};
use support::{Peer, start_server};

on_each_driver!(
    two_live_clients_of_one_key_stay_connected_and_one_is_dialled,
    a_silent_holder_is_replaced_and_no_dial_meets_it,
    a_client_that_cannot_be_asked_is_known_by_what_it_sends,
    too_many_standbys_cost_the_oldest_its_session,
    a_dial_of_another_worker_waits_for_the_sign_of_life,
);

fn count(server: &Server, counter: Counter) -> u64 {
    server.counters().value(counter)
}

fn come(server: &Server, secret: &SecretKey) -> Peer {
    let mut peer = Peer::connect_as(secret.clone(), server, Hybrid::Offer);
    peer.settle();
    peer
}

fn two_live_clients_of_one_key_stay_connected_and_one_is_dialled() {
    // A machine that lets a client wait for half a second makes it one that is dead.
    assert!((0..5).any(|_| both_stay()), "the holder is closed");
}

/// False: the holder could not answer in time.
fn both_stay() -> bool {
    let server = start_server();
    let secret = SecretKey::generate(&mut OsEntropy);
    let first = Living::start(come(&server, &secret));
    let second = Living::start(come(&server, &secret));
    let mut dialler = Peer::connect(&server);
    for _ in 0..24 {
        let is_answered = dial(&mut dialler, secret.public_key());
        if count(&server, Counter::SessionsDisplaced) > 0 {
            return false;
        }
        assert!(is_answered, "each dial is answered");
    }
    wait_until(|| count(&server, Counter::KeysContested) + count(&server, Counter::SessionsDisplaced) == 1);
    if count(&server, Counter::SessionsDisplaced) > 0 {
        return false;
    }
    assert_eq!((first.answered(), second.answered()), (24, 0));
    assert_eq!(count(&server, Counter::SessionsStandby), 1);
    let standing_by = |server: &Server| {
        let report = server.report().unwrap();
        let of_key = report.sessions.iter().filter(|session| session.peer == secret.public_key());
        of_key.map(|session| session.stands_by).collect::<Vec<_>>()
    };
    let mut marks = standing_by(&server);
    marks.sort_unstable();
    assert_eq!(marks, [false, true]);
    // A standby may dial like anybody else.
    let mut second = second.stop();
    let listener = Living::start(Peer::connect(&server));
    assert!(dial(&mut second, listener.key));
    let second = Living::start(second);
    // The holder goes: the other one is dialled.
    drop(first.stop());
    wait_until(|| count(&server, Counter::StandbysTookOver) == 1);
    assert_eq!(standing_by(&server), [false]);
    for number in 1..=5 {
        assert!(dial(&mut dialler, secret.public_key()));
        assert_eq!(second.answered(), number);
    }
    true
}

fn a_silent_holder_is_replaced_and_no_dial_meets_it() {
    let server = start_server();
    let secret = SecretKey::generate(&mut OsEntropy);
    let mut dialler = Peer::connect(&server);
    let mut frozen = come(&server, &secret);
    let again = Living::start(come(&server, &secret));
    // At once: it is not known yet that the first one is gone.
    assert!(dial(&mut dialler, secret.public_key()));
    assert_eq!((again.answered(), count(&server, Counter::SessionsDisplaced)), (1, 1));
    assert_eq!(count(&server, Counter::ForwardsOpened), 1, "nothing was sent to the dead session");
    frozen.wait_closed();
}

fn a_client_that_cannot_be_asked_is_known_by_what_it_sends() {
    let server = start_server();
    for version in [Version::V1, Version::V2] {
        let secret = SecretKey::generate(&mut OsEntropy);
        let displaced = count(&server, Counter::SessionsDisplaced);
        let mut speaks = Peer::connect_as(secret.clone(), &server, Hybrid::Offer);
        speaks.speak_smux(version);
        speaks.settle();
        let speaks = Living::start_chatty(speaks);
        let second = Living::start(come(&server, &secret));
        let mut dialler = Peer::connect(&server);
        assert!(dial(&mut dialler, secret.public_key()));
        assert_eq!((speaks.answered(), second.answered()), (1, 0));
        assert_eq!(count(&server, Counter::SessionsDisplaced), displaced);

        let secret = SecretKey::generate(&mut OsEntropy);
        let mut silent = Peer::connect_as(secret.clone(), &server, Hybrid::Offer);
        silent.speak_smux(version);
        silent.settle();
        std::thread::sleep(Duration::from_millis(1100));
        let second = Living::start(come(&server, &secret));
        wait_until(|| count(&server, Counter::SessionsDisplaced) == displaced + 1);
        assert!(dial(&mut dialler, secret.public_key()));
        assert_eq!(second.answered(), 1);
    }
}

fn too_many_standbys_cost_the_oldest_its_session() {
    let server = start_server();
    let secret = SecretKey::generate(&mut OsEntropy);
    let holder = Living::start(come(&server, &secret));
    let mut standbys: Vec<Peer> = (0..STANDBYS_MAX).map(|_| come(&server, &secret)).collect();
    assert_eq!(count(&server, Counter::SessionsDisplaced), 0);
    let _newest = come(&server, &secret);
    standbys[0].wait_closed();
    assert_eq!(count(&server, Counter::SessionsDisplaced), 1);
    assert_eq!(server.report().unwrap().sessions.len(), 1 + STANDBYS_MAX);
    let mut dialler = Peer::connect(&server);
    assert!(dial(&mut dialler, secret.public_key()));
    assert_eq!(holder.answered(), 1);
}

fn a_dial_of_another_worker_waits_for_the_sign_of_life() {
    let stage = Stage::start(current());
    for (home, elsewhere) in [(0, 1), (1, 0)] {
        let secret = SecretKey::generate(&mut OsEntropy);
        let before = stage.sum(Counter::SessionsDisplaced);
        let dialler_secret = SecretKey::generate(&mut OsEntropy);
        let mut dialler = stage.connect(&dialler_secret, elsewhere);
        dialler.settle();
        let mut frozen = stage.connect(&secret, home);
        frozen.settle();
        let mut again = stage.connect(&secret, elsewhere);
        again.settle();
        let again = Living::start(again);
        let started = Instant::now();
        assert!(dial(&mut dialler, secret.public_key()), "after {:?}", started.elapsed());
        assert_eq!((again.answered(), stage.sum(Counter::SessionsDisplaced)), (1, before + 1));
        frozen.wait_closed();
    }
    stage.stop();
}
