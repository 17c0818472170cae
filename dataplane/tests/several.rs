//! A server of several workers as its clients and its operator see it: one server, wherever the kernel puts a connection.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringwire_dataplane::counters::{Counter, Counters};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::{Server, ServerConfig};
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use socket2::Socket;
use support::drivers::{current, on_each_driver};
use support::{LIMIT, Peer, bridge, pattern, start_server_with};

on_each_driver!(
    clients_of_two_workers_reach_each_other_wherever_they_are,
    clients_of_three_workers_reach_each_other_wherever_they_are,
    keys_that_reconnect_have_one_session_each,
    a_session_is_closed_by_its_key_whichever_worker_has_it,
    a_drain_ends_with_the_last_stream_of_any_worker,
    stopping_ends_every_session_and_frees_the_port,
    connections_are_limited_in_all,
    sessions_of_an_address_are_limited_in_all,
    listeners_pass_to_more_and_to_fewer_workers,
);

fn start(workers: usize) -> Server {
    start_server_with(|config| config.workers = workers)
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sessions of each worker.
fn spread(server: &Server) -> Vec<usize> {
    server.workers().reports().unwrap().iter().map(|report| report.sessions.len()).collect()
}

fn worker_of(server: &Server, key: PublicKey) -> Option<usize> {
    let reports = server.workers().reports().unwrap();
    reports.iter().position(|report| report.sessions.iter().any(|session| session.peer == key))
}

/// A client on that worker: the kernel decides, so it is tried until it is.
fn connect_on(server: &Server, worker: usize) -> Peer {
    // By chance in vain once in 2^200 at two workers.
    for _ in 0..200 {
        let mut peer = Peer::connect(server);
        peer.settle();
        if worker_of(server, peer.key) == Some(worker) {
            return peer;
        }
    }
    panic!("200 connections and none came to worker {worker}");
}

/// Bytes both ways over a new bridge, in pieces that match neither frames nor pages.
fn exchange(a: &mut Peer, b: &mut Peer, seed: u64) {
    let (on_a, on_b) = bridge(a, b);
    for at in (0..60_000).step_by(7001) {
        let piece = pattern(seed, at, 7001);
        a.write(on_a, &piece);
        assert!(b.read_exact(on_b, piece.len()) == piece);
        b.write(on_b, &piece);
        assert!(a.read_exact(on_a, piece.len()) == piece);
    }
    a.finish(on_a);
    assert!(b.wait_end(on_b), "finished, not reset");
    b.finish(on_b);
    assert!(a.wait_end(on_a), "finished, not reset");
}

fn reach_each_other(workers: usize) {
    let server = start(workers);
    // Two on each, so that each pair of workers has a pair of clients, and each worker one of its own.
    let mut all: Vec<Peer> = (0..2 * workers).map(|at| connect_on(&server, at % workers)).collect();
    let mut seed = 0;
    for from in 0..all.len() {
        for to in from + 1..all.len() {
            let [a, b] = all.get_disjoint_mut([from, to]).unwrap();
            // Whose the dial is decides on which worker the stand-in of the destination is.
            let (a, b) = if seed % 2 == 0 { (a, b) } else { (b, a) };
            exchange(a, b, seed);
            seed += 1;
        }
    }
    wait_for("the end of the bridges", || {
        let counters = server.counters();
        counters.value(Counter::BridgesClosed) == counters.value(Counter::BridgesOpened)
    });
    let (sum, each): (_, Vec<Counters>) = (server.counters(), server.workers().counters().collect());
    assert!(sum.value(Counter::BridgesOpened) >= seed);
    for counter in [Counter::SessionsOpened, Counter::BytesBridged, Counter::BridgesOpened] {
        assert_eq!(sum.value(counter), each.iter().map(|counters| counters.value(counter)).sum::<u64>());
        assert!(each.iter().all(|counters| counters.value(counter) > 0), "every worker had its share");
    }
    let reports = server.workers().reports().unwrap();
    let sum = server.report().unwrap();
    assert_eq!(sum.budget_len, reports.iter().map(|report| report.budget_len).sum::<usize>());
    assert_eq!((sum.sessions.len(), sum.bridges.len()), (spread(&server).iter().sum(), 0));
    assert!(spread(&server).iter().all(|&sessions| sessions >= 2));
    assert_eq!(server.set_budget(1_000_001), Ok(1_000_001), "divided, and nothing is lost by it");
    server.stop().unwrap();
}

fn clients_of_two_workers_reach_each_other_wherever_they_are() {
    reach_each_other(2);
}

fn clients_of_three_workers_reach_each_other_wherever_they_are() {
    reach_each_other(3);
}

/// Reconnects made by the test of them, of as many keys as its root; `RINGWIRE_RECONNECTS` asks for more.
const RECONNECTS: usize = 400;

fn keys_that_reconnect_have_one_session_each() {
    let reconnects =
        std::env::var("RINGWIRE_RECONNECTS").map_or(RECONNECTS, |number| number.parse().unwrap());
    let keys = reconnects.isqrt();
    let server = start(2);
    let secrets: Vec<_> = (0..keys).map(|_| SecretKey::generate(&mut OsEntropy)).collect();
    // Four clients at a time, each with keys of its own: of two sessions of one key it is the later that stays.
    let peers: Vec<Peer> = std::thread::scope(|scope| {
        let client = |secrets: Vec<SecretKey>| {
            let server = &server;
            scope.spawn(move || {
                let mut peers: Vec<Peer> = Vec::new();
                for round in 0..reconnects / keys {
                    for (at, secret) in secrets.iter().enumerate() {
                        let mut peer = Peer::connect_as(secret.clone(), server, Hybrid::Offer);
                        peer.settle();
                        if round == 0 {
                            peers.push(peer);
                        } else {
                            peers[at] = peer;
                        }
                    }
                }
                peers
            })
        };
        let threads: Vec<_> = secrets.chunks(keys.div_ceil(4)).map(|own| client(own.to_vec())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let counters = server.counters();
    assert_eq!(counters.value(Counter::SessionsOpened), reconnects as u64);
    wait_for("the end of what was displaced", || spread(&server).iter().sum::<usize>() == keys);
    let mut listed: Vec<_> =
        server.report().unwrap().sessions.iter().map(|session| session.peer.to_string()).collect();
    listed.sort();
    listed.dedup();
    assert_eq!(listed.len(), keys, "one of each");
    for mut peer in peers {
        peer.settle();
        assert!(!peer.closed, "the last session of a key lives");
    }
    server.stop().unwrap();
}

fn a_session_is_closed_by_its_key_whichever_worker_has_it() {
    let server = start(3);
    let mut all: Vec<Peer> = (0..3).map(|worker| connect_on(&server, worker)).collect();
    let others = server.report().unwrap().sessions.len() - all.len();
    for peer in &mut all {
        assert_eq!(server.close_session(peer.key), Ok(true));
        peer.wait_closed();
        assert_eq!(server.close_session(peer.key), Ok(false), "it is gone");
    }
    // Clients that landed elsewhere have left by themselves.
    wait_for("the others to leave", || server.report().unwrap().sessions.is_empty() || others == 0);
}

fn a_drain_ends_with_the_last_stream_of_any_worker() {
    let server = start(2);
    let mut idle: Vec<Peer> = (0..2).map(|worker| connect_on(&server, worker)).collect();
    // A pair on worker 1 and one across: worker 0 has nothing of its own left when the second has ended.
    let (mut a, mut b) = (connect_on(&server, 1), connect_on(&server, 1));
    let (mut c, mut d) = (connect_on(&server, 0), connect_on(&server, 1));
    let (on_a, on_b) = bridge(&mut a, &mut b);
    let (on_c, on_d) = bridge(&mut c, &mut d);
    assert!(server.drain(2 * LIMIT));
    for peer in &mut idle {
        peer.wait_closed();
    }
    assert!(TcpStream::connect(server.addresses()[0]).is_err(), "nobody new");
    let piece = pattern(7, 0, 100_000);
    for (from, on_from, to, on_to) in [(&mut c, on_c, &mut d, on_d), (&mut a, on_a, &mut b, on_b)] {
        assert!(!server.has_ended());
        assert_eq!(server.workers().reports().unwrap().len(), 2, "both answer to the end");
        from.write(on_from, &piece);
        from.finish(on_from);
        assert!(to.read_exact(on_to, piece.len()) == piece, "what is there goes on");
        to.finish(on_to);
        assert!(from.wait_end(on_from));
        from.wait_closed();
        to.wait_closed();
    }
    wait_for("the end", || server.has_ended());
    let counters = server.counters();
    assert_eq!(counters.value(Counter::SessionsOpened), counters.value(Counter::SessionsClosed));
    server.stop().unwrap();
}

fn stopping_ends_every_session_and_frees_the_port() {
    let server = start(3);
    let mut all: Vec<Peer> = (0..3).map(|worker| connect_on(&server, worker)).collect();
    let (one, rest) = all.split_first_mut().unwrap();
    // In the middle of something across.
    let (on_a, _) = bridge(one, &mut rest[0]);
    one.write(on_a, &pattern(1, 0, 100_000));
    let address = server.addresses()[0];
    assert!(TcpListener::bind(address).is_err());
    server.stop().unwrap();
    for peer in &mut all {
        peer.wait_closed();
    }
    TcpListener::bind(address).unwrap();
}

fn connections_are_limited_in_all() {
    let server = start_server_with(|config| {
        (config.workers, config.connections_max, config.half_open_max) = (2, Some(9), 4);
    });
    assert_eq!((server.connections_max(), server.half_open_max()), (9, 4));
    let mut peers = Vec::new();
    // By chance one worker is full long before the other.
    for _ in 0..400 {
        let connected = Peer::handshake(
            SecretKey::generate(&mut OsEntropy),
            server.public_key(),
            server.addresses()[0],
            Hybrid::Off,
            &[],
        );
        if let Ok(mut peer) = connected {
            peer.settle();
            peers.push(peer);
        }
        if peers.len() == 9 {
            break;
        }
    }
    assert_eq!(spread(&server), [5, 4], "each its share, in all what was asked for");
    let refused = |server: &Server| server.counters().value(Counter::RefusedDescriptors);
    let before = refused(&server);
    let strangers: Vec<_> = (0..20).map(|_| TcpStream::connect(server.addresses()[0]).unwrap()).collect();
    wait_for("refusals", || refused(&server) == before + 20);
    assert_eq!(spread(&server), [5, 4]);
    drop((strangers, peers));
    server.stop().unwrap();

    let server = start_server_with(|config| (config.workers, config.half_open_max) = (2, 5));
    let strangers: Vec<_> = (0..60).map(|_| TcpStream::connect(server.addresses()[0]).unwrap()).collect();
    let accepted = || server.counters().value(Counter::ConnectionsAccepted);
    wait_for("the strangers", || accepted() == 60);
    let half_open: Vec<usize> =
        server.workers().reports().unwrap().iter().map(|report| report.half_open).collect();
    assert_eq!(half_open, [3, 2]);
    drop(strangers);
}

fn sessions_of_an_address_are_limited_in_all() {
    let server = start_server_with(|config| (config.workers, config.sessions_per_address) = (2, Some(6)));
    let mut peers: Vec<Peer> = (0..6).map(|_| Peer::connect(&server)).collect();
    peers.iter_mut().for_each(Peer::settle);
    for refused in 1..=10 {
        Peer::connect(&server).wait_closed();
        assert_eq!(server.counters().value(Counter::RefusedAddressLimit), refused);
    }
    // Whoever is here reconnects, also to the other worker.
    for peer in &mut peers {
        for _ in 0..4 {
            *peer = Peer::connect_as(peer.secret.clone(), &server, Hybrid::Off);
            peer.settle();
        }
    }
    assert_eq!(server.counters().value(Counter::RefusedAddressLimit), 10);
    wait_for("the displaced to go", || spread(&server).iter().sum::<usize>() == 6);
    // And who leaves makes room, wherever the next one lands.
    for _ in 0..10 {
        peers.pop();
        wait_for("room", || spread(&server).iter().sum::<usize>() == 5);
        let mut peer = Peer::connect(&server);
        peer.settle();
        peers.push(peer);
    }
    server.stop().unwrap();
}

fn listeners_pass_to_more_and_to_fewer_workers() {
    let secret = SecretKey::generate(&mut OsEntropy);
    let config = |workers: usize, listeners: Vec<Socket>| ServerConfig {
        workers,
        listeners,
        driver: current(),
        buffer_memory_len: 64 << 20,
        ..ServerConfig::new(secret.clone(), vec!["127.0.0.1:0".parse().unwrap()])
    };
    let mut server = Server::start(config(1, Vec::new())).unwrap();
    let address = server.addresses()[0];
    let (done, connected) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        // Whoever comes during a change of hands waits in a listener: no connection is refused.
        let connect = || {
            while !done.load(Ordering::Relaxed) {
                let socket = TcpStream::connect(address).unwrap();
                connected.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
                drop(socket);
            }
        };
        let thread = scope.spawn(connect);
        let end = End(&done);
        for (workers, listeners) in [(2, 2), (1, 2), (3, 3), (2, 3)] {
            let before = connected.load(Ordering::Relaxed);
            wait_for("connections", || {
                thread.is_finished() || connected.load(Ordering::Relaxed) > before + 10
            });
            let passed: Vec<Socket> =
                server.listeners().iter().map(|(_, socket)| socket.try_clone().unwrap()).collect();
            server.stop().unwrap();
            server = Server::start(config(workers, passed)).unwrap();
            assert_eq!((server.addresses(), server.listeners().len()), ([address].as_slice(), listeners));
            // Every listener has somebody who accepts.
            for worker in 0..workers {
                connect_on(&server, worker);
            }
        }
        drop(end);
        thread.join().unwrap();
        server.stop().unwrap();
    });
}

/// Ends who looks at it, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
