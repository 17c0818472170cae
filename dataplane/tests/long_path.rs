//! One stream over a long path, through the project's delay line.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::{Duration, Instant};

use ringwire_dataplane::Server;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::mail::Limit;
use ringwire_proto::identity::SecretKey;
use ringwire_proto::noise::Hybrid;
use support::drivers::on_each_driver;
use support::{LIMIT, Peer, bridge, pattern, proxy, start_server};

on_each_driver!(
    a_lone_stream_is_not_limited_on_our_half_of_a_long_path,
    a_receiver_with_a_small_window_far_away_is_named_as_the_limit,
);

fn far(server: &Server, round_trip: Duration) -> Peer {
    let address = proxy::start(server.addresses()[0], round_trip / 2);
    let secret = SecretKey::generate(&mut OsEntropy);
    let mut peer = Peer::handshake(secret, server.public_key(), address, Hybrid::Offer, &[]).unwrap();
    peer.settle();
    peer
}

/// Moves `len` bytes from `a` to `b`, `a` on a thread of its own, and returns the rate of the second half in bytes/s.
fn transfer(mut a: Peer, on_a: u32, b: &mut Peer, on_b: u32, len: usize) -> f64 {
    let sender = std::thread::spawn(move || {
        let bytes = pattern(9, 0, 1 << 20);
        for _ in 0..len >> 20 {
            a.write(on_a, &bytes);
        }
        // The peer must go on answering until everything has arrived.
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline && !a.closed && a.mux.has(on_a) {
            a.pump();
        }
    });
    let expected = pattern(9, 0, 1 << 20);
    let mut half = Instant::now();
    for megabyte in 0..len >> 20 {
        if megabyte == len >> 21 {
            half = Instant::now();
        }
        assert!(b.read_exact(on_b, 1 << 20) == expected, "megabyte {megabyte}");
    }
    let rate = (len / 2) as f64 / half.elapsed().as_secs_f64();
    b.mux.reset(on_b);
    b.pump();
    sender.join().unwrap();
    rate
}

fn a_lone_stream_is_not_limited_on_our_half_of_a_long_path() {
    let server = start_server();
    let rate = |round_trip| {
        let mut a = far(&server, round_trip);
        let mut b = Peer::connect(&server);
        let (on_a, on_b) = bridge(&mut a, &mut b);
        transfer(a, on_a, &mut b, on_b, 96 << 20)
    };
    // A window of 256 KiB over 100 ms is 2.6 MB/s; the peers' own windows are of that size, but a is told of more. A machine
    // that moves little without any delay is not asked for as much with one.
    let reached = (0..5).any(|_| {
        let far = rate(Duration::from_millis(100));
        if far >= 20e6 {
            return true;
        }
        let near = rate(Duration::ZERO);
        println!("{:.1} MB/s far, {:.1} MB/s near", far / 1e6, near / 1e6);
        far >= 2.0 * 2.6e6 && far >= near / 4.0
    });
    assert!(reached, "the path limits the stream");
}

fn a_receiver_with_a_small_window_far_away_is_named_as_the_limit() {
    let server = start_server();
    let mut a = Peer::connect(&server);
    let mut b = far(&server, Duration::from_millis(100));
    let (on_a, on_b) = bridge(&mut a, &mut b);
    let (source, destination) = (a.key, b.key);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut seen = Vec::new();
            while let Some(report) =
                server.report().unwrap().bridges.iter().find(|report| report.source == source)
            {
                assert_eq!(report.destination, destination);
                seen.push((report.forth.limited_by, report.back.limited_by));
                std::thread::sleep(Duration::from_millis(10));
            }
            seen
        });
        transfer(a, on_a, &mut b, on_b, 4 << 20);
        let mut seen = asking.join().unwrap();
        // What it is most of the time, so that a sender who is kept from the processor for a while does not count.
        let often = |limit| seen.iter().filter(|seen| **seen == limit).count();
        let (limited, samples) = (often((Limit::ReceiverWindow, Limit::Sender)), seen.len());
        seen.dedup();
        assert!(limited > 10 && limited > samples / 4, "{limited} of {samples}: {seen:?}");
    });
}
