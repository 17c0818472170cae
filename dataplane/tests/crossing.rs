//! Bridges between sessions of two workers, on real connections, on both drivers: every byte verified, and nothing left behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::Instant;

use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::inspect::Inspection;
use ringwire_proto::identity::SecretKey;
use support::drivers::{current, on_each_driver};
use support::stage::{Stage, wait_until};
use support::{LIMIT, Peer, bridge, pattern};

on_each_driver!(bytes_cross_both_ways_in_order_whatever_their_frames,);

fn pair(stage: &Stage) -> (Peer, Peer) {
    let connect = |worker| {
        let mut peer = stage.connect(&SecretKey::generate(&mut OsEntropy), worker);
        peer.settle();
        peer
    };
    (connect(0), connect(1))
}

/// Ends the workers: nothing is left of what crossed.
fn stop(stage: Stage) {
    let counters = [
        (Counter::StreamsOpened, Counter::StreamsClosed),
        (Counter::ForwardsOpened, Counter::ForwardsClosed),
        (Counter::BridgesOpened, Counter::BridgesClosed),
        (Counter::SessionsOpened, Counter::SessionsClosed),
    ];
    let blocks: Vec<_> = stage.workers.iter().map(|worker| worker.counters.clone()).collect();
    let directory = stage.directory.clone();
    let left = stage.stop();
    for Inspection { sessions, halves, streams, spans_queued, pool_held_len, promised_len, loans, .. } in left
    {
        assert_eq!((sessions, halves, streams, spans_queued), (0, 0, 0, 0));
        assert_eq!((pool_held_len, promised_len, loans), (0, 0, (0, 0)));
    }
    for (opened, closed) in counters {
        let sum = |counter| blocks.iter().map(|block| block.value(counter)).sum::<u64>();
        assert_eq!(sum(opened), sum(closed), "{}", opened.name());
    }
    assert!(directory.is_empty());
}

/// Sends and verifies `len` bytes both ways, in writes of so many bytes.
fn transfer(a: &mut Peer, b: &mut Peer, streams: (u32, u32), len: usize, write_len: usize) {
    let (forth, back) = (pattern(1, 0, len), pattern(2, 0, len));
    let (mut sent, mut returned) = (0, 0);
    let (mut at_b, mut at_a) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + LIMIT;
    while at_b.len() < len || at_a.len() < len {
        assert!(Instant::now() < deadline, "stuck at {} and {}", at_b.len(), at_a.len());
        for (peer, stream, source, done, sink) in [
            (&mut *a, streams.0, &forth, &mut sent, &mut at_a),
            (&mut *b, streams.1, &back, &mut returned, &mut at_b),
        ] {
            for _ in 0..64 {
                let piece = (*done + write_len).min(len);
                if *done == len {
                    break;
                }
                let Ok(taken) = peer.mux.write(stream, &source[*done..piece]) else { break };
                *done += taken;
            }
            let mut buffer = [0; 50_000];
            while let Ok(read @ 1..) = peer.mux.read(stream, &mut buffer) {
                sink.extend_from_slice(&buffer[..read]);
            }
            peer.pump();
        }
    }
    assert!(at_b == forth, "what arrived at b is what a sent");
    assert!(at_a == back, "what arrived at a is what b sent");
}

fn bytes_cross_both_ways_in_order_whatever_their_frames() {
    let stage = Stage::start(current());
    let (mut a, mut b) = pair(&stage);
    let mut total = 0;
    // Frames of which several fit a page, that fill several, and that are copied.
    for (len, write_len) in [(3_000_000, 7001), (4_000_000, 65_536), (150_000, 100)] {
        let streams = bridge(&mut a, &mut b);
        transfer(&mut a, &mut b, streams, len, write_len);
        total += 2 * len as u64;
        a.finish(streams.0);
        assert!(b.wait_end(streams.1), "finished, not reset");
        b.finish(streams.1);
        assert!(a.wait_end(streams.0));
    }
    assert_eq!(stage.sum(Counter::BridgesOpened), 3);
    assert_eq!(stage.sum(Counter::BridgesCrossing), 3);
    assert_eq!(stage.sum(Counter::BytesBridged), total);
    assert_eq!(stage.sum(Counter::BytesLent), total);
    assert_eq!(stage.sum(Counter::BytesDropped), 0);
    wait_until(|| stage.sum(Counter::BridgesClosed) == 3);
    stop(stage);
}
