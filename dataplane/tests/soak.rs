//! A long verified transfer with opens, resets and killed sessions beside it: no byte lost, everything that opened closed,
//! memory back. `RINGWIRE_SOAK_MIB` sets its length (default 192).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use ringwire_dataplane::Server;
use ringwire_dataplane::counters::Counter;
use support::drivers::on_each_driver;
use support::{LIMIT, Peer, bridge, pattern, start_server_with};

/// A small generator, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

on_each_driver!(a_long_transfer_survives_what_happens_beside_it);

fn a_long_transfer_survives_what_happens_beside_it() {
    let mib: usize =
        std::env::var("RINGWIRE_SOAK_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(192);
    let server = Arc::new(start_server_with(|config| config.buffer_memory_len = 1 << 30));
    let over = Arc::new(AtomicBool::new(false));
    let events = Arc::new(AtomicU64::new(0));
    let others: Vec<_> = (1..=3)
        .map(|seed| {
            let (server, over, events) = (Arc::clone(&server), Arc::clone(&over), Arc::clone(&events));
            std::thread::spawn(move || churn(&server, &over, &events, seed))
        })
        .collect();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let (on_a, on_b) = bridge(&mut a, &mut b);
    let started = Instant::now();
    let sender = std::thread::spawn(move || {
        let bytes = pattern(11, 0, 1 << 20);
        for _ in 0..mib {
            a.write(on_a, &bytes);
        }
        a.wait_end(on_a);
    });
    let expected = pattern(11, 0, 1 << 20);
    for at in 0..mib {
        assert!(b.read_exact(on_b, 1 << 20) == expected, "MiB {at}");
    }
    let rate = mib as f64 / started.elapsed().as_secs_f64();
    b.mux.reset(on_b);
    b.pump();
    sender.join().unwrap();
    over.store(true, Ordering::Relaxed);
    for other in others {
        other.join().unwrap();
    }
    drop(b);
    let driver = server.driver_name();
    println!(
        "{driver}: {mib} MiB at {rate:.0} MiB/s beside {} opens, resets and kills",
        events.load(Ordering::Relaxed)
    );
    assert!(events.load(Ordering::Relaxed) > 10);
    settle(&server);
}

/// Opens bridges between two clients of its own, leaves them in all kinds of ways, and now and then kills a session.
fn churn(server: &Server, over: &AtomicBool, events: &AtomicU64, seed: u64) {
    let mut random = Random(seed);
    while !over.load(Ordering::Relaxed) {
        let (mut a, mut b) = (Peer::connect(server), Peer::connect(server));
        for _ in 0..random.below(12) + 1 {
            let (on_a, on_b) = bridge(&mut a, &mut b);
            let len = random.below(40_000) as usize;
            a.write(on_a, &pattern(seed, 0, len));
            match random.below(4) {
                0 => a.mux.reset(on_a),
                1 => b.mux.reset(on_b),
                2 => {
                    let now = a.now();
                    a.mux.close(now, on_a);
                    assert!(b.read_exact(on_b, len) == pattern(seed, 0, len));
                }
                _ => {}
            }
            a.pump();
            b.pump();
            events.fetch_add(1, Ordering::Relaxed);
        }
        // Both sessions end here, some streams in the middle of their bytes.
    }
}

/// Waits until the worker is as it was at its start.
fn settle(server: &Server) {
    let deadline = Instant::now() + LIMIT;
    let pairs = [
        (Counter::ConnectionsAccepted, Counter::ConnectionsClosed),
        (Counter::SessionsOpened, Counter::SessionsClosed),
        (Counter::StreamsOpened, Counter::StreamsClosed),
        (Counter::ForwardsOpened, Counter::ForwardsClosed),
        (Counter::BridgesOpened, Counter::BridgesClosed),
    ];
    loop {
        let (counters, report) = (server.counters(), server.report().unwrap());
        let uneven: Vec<_> = pairs
            .iter()
            .filter(|(opened, closed)| counters.value(*opened) != counters.value(*closed))
            .map(|(opened, closed)| (opened.name(), counters.value(*opened), counters.value(*closed)))
            .collect();
        if uneven.is_empty() && report.held_len == 0 && report.extra_len == 0 && report.half_open == 0 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{uneven:?}, held {}, extra {}",
            report.held_len,
            report.extra_len
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
