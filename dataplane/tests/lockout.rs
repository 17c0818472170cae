//! What one client, or a crowd from one address, may take from the others: streams, memory, dials, connections. Each test has
//! somebody honest in it, who gets what he wants beside it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ringwire_dataplane::Server;
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::limits;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use ringwire_proto::yamux::{Flags, Header, StreamError};
use support::drivers::on_each_driver;
use support::{LIMIT, Peer, bridge, pattern, start_server, start_server_with};

on_each_driver!(
    idle_streams_take_nothing_from_others,
    idle_streams_to_one_client_do_not_use_it_up,
    what_was_sent_before_a_fin_counts_until_it_has_left,
    when_memory_is_short_the_largest_address_lets_go,
    unfinished_requests_are_bounded_and_forgotten,
    dials_that_one_client_leaves_unanswered_are_dealt_out,
    one_client_has_so_many_dials_unanswered_and_no_more,
    connections_that_one_address_took_make_room_for_another,
);

const GREEDY: u8 = 7;
const HONEST: u8 = 9;

/// A client whose connection comes from the address 203.0.113.`last`, by the word of a proxy.
fn come_from(server: &Server, last: u8) -> Result<Peer, String> {
    let mut socket = TcpStream::connect(server.addresses()[0]).map_err(|error| error.to_string())?;
    let header = format!("PROXY TCP4 203.0.113.{last} 192.0.2.1 40000 8081\r\n");
    socket.write_all(header.as_bytes()).map_err(|error| error.to_string())?;
    let secret = SecretKey::generate(&mut OsEntropy);
    Peer::handshake_over(socket, secret, server.public_key(), Hybrid::Offer, &[])
}

fn count(server: &Server, counter: Counter) -> u64 {
    server.counters().value(counter)
}

fn held_len(server: &Server) -> usize {
    server.report().unwrap().held_len
}

/// What is bridged to it, verified; and it can be dialled.
fn is_served(server: &Server, last: u8) {
    let (mut a, mut b) = (come_from(server, last).unwrap(), come_from(server, last).unwrap());
    b.settle();
    let (on_a, on_b) = bridge(&mut a, &mut b);
    a.write(on_a, &pattern(1, 0, 50_000));
    assert!(b.read_exact(on_b, 50_000) == pattern(1, 0, 50_000));
}

fn idle_streams_take_nothing_from_others() {
    // 1,000 idle bridges: their windows would be eight times the memory.
    let server = start_server();
    let (mut a, mut b) = (come_from(&server, GREEDY).unwrap(), come_from(&server, GREEDY).unwrap());
    b.settle();
    for _ in 0..1000 {
        bridge(&mut a, &mut b);
    }
    is_served(&server, HONEST);
    assert_eq!(count(&server, Counter::RefusedBudget), 0);
    assert_eq!(count(&server, Counter::BridgesOpened), 1001);
    // They count for what they take in the tables.
    let report = server.report().unwrap();
    assert!(report.streams_len >= 2000 * limits::STREAM_LEN && report.streams_len < report.budget_len / 10);
}

fn idle_streams_to_one_client_do_not_use_it_up() {
    let server = start_server();
    let mut victim = come_from(&server, HONEST).unwrap();
    victim.settle();
    for _ in 0..2 {
        let mut greedy = come_from(&server, GREEDY).unwrap();
        for _ in 0..300 {
            bridge(&mut greedy, &mut victim);
        }
        // It stays: its socket is not to be closed.
        std::mem::forget(greedy);
    }
    let mut honest = come_from(&server, HONEST).unwrap();
    bridge(&mut honest, &mut victim);
    assert_eq!(count(&server, Counter::RefusedBudget) + count(&server, Counter::RefusedUnanswered), 0);
}

/// Fills the windows of `streams` bridges from `from` to `to`, which reads its connection and gives no credit, until the server has
/// reset one for it or `most` bytes are held. Returns the most that was held.
fn fill(
    server: &Server,
    (from, to): (&mut Peer, &mut Peer),
    streams: usize,
    finish: bool,
    most: usize,
    mut meanwhile: impl FnMut(),
) -> usize {
    let window = vec![5; 262_144];
    let resets =
        |server: &Server| count(server, Counter::ResetsHolder) + count(server, Counter::ResetsMemory);
    let before = resets(server);
    let bridges: Vec<u32> = (0..streams).map(|_| bridge(from, to).0).collect();
    let mut highest = held_len(server);
    for stream in bridges {
        // The window of the destination and that of the server.
        for _ in 0..2 {
            let mut rest = &window[..];
            let until = Instant::now() + Duration::from_millis(100);
            while !rest.is_empty() && Instant::now() < until {
                match from.mux.write(stream, rest) {
                    Ok(taken) => rest = &rest[taken..],
                    Err(StreamError::Blocked) => {}
                    Err(_) => break,
                }
                from.pump();
                to.pump();
            }
        }
        if finish {
            from.finish(stream);
        }
        meanwhile();
        highest = highest.max(held_len(server));
        if resets(server) > before || highest >= most {
            break;
        }
    }
    highest
}

fn what_was_sent_before_a_fin_counts_until_it_has_left() {
    let server = start_server();
    let (mut a, mut b) = (come_from(&server, GREEDY).unwrap(), come_from(&server, GREEDY).unwrap());
    b.settle();
    let budget = server.report().unwrap().budget_len;
    let share = budget / 100 * limits::HOLDER_PERCENT;
    // More than it takes, for some of them bring less than a window in their time.
    let streams = share / 262_144 + 80;
    let highest = fill(&server, (&mut a, &mut b), streams, true, usize::MAX, || {});
    assert!(count(&server, Counter::ResetsHolder) > 0, "{highest} bytes were held");
    // What one turn brings may come on top, and pages are larger than what is in them.
    assert!(highest < share + share / 4 + (4 << 20), "{highest} bytes of {share}");
    assert_eq!(count(&server, Counter::ResetsMemory), 0, "there is room for everybody else");
    is_served(&server, HONEST);
}

fn when_memory_is_short_the_largest_address_lets_go() {
    let server = start_server();
    let budget = server.report().unwrap().budget_len;
    // Somebody whose peer is slow: what waits for it is not to be touched.
    let (mut slow_a, mut slow_b) = (come_from(&server, HONEST).unwrap(), come_from(&server, HONEST).unwrap());
    slow_b.settle();
    let (on_a, on_b) = bridge(&mut slow_a, &mut slow_b);
    let bytes = pattern(3, 0, 500_000);
    let mut sent = 0;
    let deadline = Instant::now() + LIMIT;
    while sent < bytes.len() {
        assert!(Instant::now() < deadline, "{sent} bytes were taken");
        sent += slow_a.mux.write(on_a, &bytes[sent..]).unwrap_or(0);
        slow_a.pump();
        slow_b.pump();
    }
    // Keys are free: each has less than its share, and together they have it all.
    let mut crowd = Vec::new();
    let each = budget / 100 * (limits::HOLDER_PERCENT - 8);
    while count(&server, Counter::ResetsMemory) == 0 {
        assert!(crowd.len() < 20, "{} bytes are held, and nobody lets go", held_len(&server));
        let (mut a, mut b) = (come_from(&server, GREEDY).unwrap(), come_from(&server, GREEDY).unwrap());
        b.settle();
        let most = held_len(&server) + each;
        fill(&server, (&mut a, &mut b), each / 262_144 + 1, false, most, || {
            slow_a.pump();
            slow_b.pump();
        });
        crowd.push((a, b));
    }
    assert_eq!(count(&server, Counter::ResetsHolder), 0);
    is_served(&server, HONEST);
    let mut read = Vec::new();
    let deadline = Instant::now() + LIMIT;
    while read.len() < bytes.len() {
        assert!(Instant::now() < deadline, "{} bytes have come", read.len());
        let mut buffer = [0; 65_536];
        match slow_b.mux.read(on_b, &mut buffer) {
            Ok(len) => read.extend_from_slice(&buffer[..len]),
            Err(StreamError::Blocked) => {}
            Err(error) => panic!("after {} bytes: {error}", read.len()),
        }
        slow_a.pump();
        slow_b.pump();
    }
    assert!(read == bytes, "what waited for the slow one is there");
    drop((crowd, slow_a, slow_b));
    let deadline = Instant::now() + LIMIT;
    while held_len(&server) > 0 {
        assert!(Instant::now() < deadline, "memory does not come back");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn unfinished_requests_are_bounded_and_forgotten() {
    let server = start_server();
    let mut peer = come_from(&server, GREEDY).unwrap();
    peer.settle();
    let most = limits::UNFINISHED_PER_SESSION_MAX;
    for index in 0..most + 100 {
        let header = Header::window_update(1001 + 2 * index, 0).with_flags(Flags::SYN);
        peer.socket.write_all(&header.encode()).unwrap();
    }
    let deadline = Instant::now() + LIMIT;
    while count(&server, Counter::RefusedUnfinished) < 100 {
        assert!(Instant::now() < deadline, "{} refused", count(&server, Counter::RefusedUnfinished));
        std::thread::sleep(Duration::from_millis(2));
    }
    let report = server.report().unwrap();
    assert!(report.streams_len <= (most as usize + 2) * limits::STREAM_LEN, "{}", report.streams_len);
    is_served(&server, GREEDY);
    // What is not completed in time goes, and then there is room again.
    drop(peer);
    let deadline = Instant::now() + LIMIT;
    while server.report().unwrap().streams_len > 0 {
        assert!(Instant::now() < deadline, "streams are left");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn dials_that_one_client_leaves_unanswered_are_dealt_out() {
    let server = start_server();
    let mut victim = come_from(&server, HONEST).unwrap();
    victim.settle();
    let mut greedy = come_from(&server, GREEDY).unwrap();
    let mut streams = Vec::new();
    for _ in 0..300 {
        streams.push(dial(&mut greedy, victim.key));
    }
    let deadline = Instant::now() + LIMIT;
    while count(&server, Counter::RefusedUnanswered) + count(&server, Counter::RefusedOpen) == 0 {
        assert!(Instant::now() < deadline, "everything was passed on");
        greedy.pump();
    }
    assert_eq!(count(&server, Counter::RefusedOpen), 0, "its multiplexer has room still");
    // Somebody else's dial reaches the victim, which answers nobody but him.
    let mut honest = come_from(&server, HONEST).unwrap();
    let stream = honest.open();
    let request = honest.request(victim.key);
    let signed = honest.sign(&request);
    honest.write_object(stream, &signed);
    honest.pump();
    victim.wait("the honest dial", |victim| {
        let dialled = victim.mux.accept()?;
        let bytes = victim.read_object(dialled);
        (bytes == signed).then_some(())
    });
    assert!(streams.len() as u64 > count(&server, Counter::RefusedUnanswered));
}

/// Sends a dial; returns its stream.
fn dial(peer: &mut Peer, destination: PublicKey) -> u32 {
    let stream = peer.open();
    let request = peer.request(destination);
    let signed = peer.sign(&request);
    peer.write_object(stream, &signed);
    peer.pump();
    stream
}

fn one_client_has_so_many_dials_unanswered_and_no_more() {
    let server = start_server();
    // Five that never answer: each would take more of this one client's dials.
    let mut silent: Vec<Peer> = (0..5).map(|_| come_from(&server, HONEST).unwrap()).collect();
    silent.iter_mut().for_each(Peer::settle);
    let mut greedy = come_from(&server, GREEDY).unwrap();
    let mut streams = Vec::new();
    for at in 0..limits::UNANSWERED_MAX + 44 {
        streams.push(dial(&mut greedy, silent[at % silent.len()].key));
    }
    let deadline = Instant::now() + LIMIT;
    while count(&server, Counter::RefusedUnanswered) < 44 {
        assert!(Instant::now() < deadline, "{} refused", count(&server, Counter::RefusedUnanswered));
        greedy.pump();
    }
    assert_eq!(count(&server, Counter::ForwardsOpened), limits::UNANSWERED_MAX as u64);
    // Those are refused at once: their streams end.
    greedy.wait_end(streams[streams.len() - 1]);
    // Whoever has none under way is served, by the same ones; and when those answer no more, by others.
    let mut honest = come_from(&server, GREEDY).unwrap();
    let mut answers = come_from(&server, HONEST).unwrap();
    answers.settle();
    bridge(&mut honest, &mut answers);
    // A client that finishes has given up, as those of 2026 do after 5 s: its dials do not wait for the most patient.
    for &stream in &streams[..limits::UNANSWERED_MAX] {
        greedy.finish(stream);
    }
    let gone = Instant::now() + LIMIT;
    while count(&server, Counter::StreamsTimedOut) < limits::UNANSWERED_MAX as u64 {
        assert!(Instant::now() < gone, "{} given up", count(&server, Counter::StreamsTimedOut));
        greedy.pump();
    }
    bridge(&mut greedy, &mut answers);
}

fn connections_that_one_address_took_make_room_for_another() {
    const MOST: usize = 40;
    let server = start_server_with(|config| config.connections_max = Some(MOST));
    // Alone an address may have them all.
    let mut crowd: Vec<Peer> = (0..MOST)
        .map(|_| {
            let mut peer = come_from(&server, GREEDY).unwrap();
            peer.settle();
            peer
        })
        .collect();
    assert_eq!(count(&server, Counter::SessionsEvicted) + count(&server, Counter::RefusedShare), 0);
    // Somebody else comes: sessions that came last and carry nothing leave.
    let mut honest = come_from(&server, HONEST).unwrap();
    honest.settle();
    assert!(count(&server, Counter::SessionsEvicted) > 0);
    assert!(crowd[0].try_settle(), "the oldest stays");
    // They come back at once, and get no further than their share.
    let deadline = Instant::now() + LIMIT;
    while count(&server, Counter::RefusedShare) == 0 {
        assert!(Instant::now() < deadline, "the crowd has everything again");
        if let Ok(peer) = come_from(&server, GREEDY) {
            crowd.push(peer);
        }
    }
    let mut another = come_from(&server, HONEST).unwrap();
    another.settle();
    bridge(&mut another, &mut honest);
}
