//! What others' misbehaviour may cost: memory held for tiny frames, and waiting behind bulk on a slow connection.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringwire_dataplane::Server;
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::mail::BridgeReport;
use ringwire_proto::yamux::{Header, StreamError};
use support::drivers::on_each_driver;
use support::mux::MuxEvent;
use support::{LIMIT, Peer, bridge, start_server, start_server_with};

on_each_driver!(
    tiny_frames_into_stalled_streams_hold_little_more_than_their_payload,
    a_slow_connection_with_bulk_still_gets_pings_and_echoes,
    a_budget_that_is_used_up_costs_the_largest_stalled_stream_alone,
);

const STREAMS: usize = 1000;

/// Bytes queued in all bridges, and memory held for them.
fn queued_and_held(server: &Server) -> (usize, usize) {
    let report = server.report().unwrap();
    (report.bridges.iter().map(|bridge| bridge.forth.queued).sum(), report.held_len)
}

/// MB/s of a verified transfer between two peers of its own.
fn honest_rate(server: &Server) -> f64 {
    let (mut a, mut b) = (Peer::connect(server), Peer::connect(server));
    let (on_a, on_b) = bridge(&mut a, &mut b);
    let len = 16 << 20;
    let started = Instant::now();
    let sender = std::thread::spawn(move || {
        a.write(on_a, &support::pattern(5, 0, len));
        a.wait_end(on_a);
    });
    assert!(b.read_exact(on_b, len) == support::pattern(5, 0, len));
    let rate = len as f64 / started.elapsed().as_secs_f64() / 1e6;
    b.mux.reset(on_b);
    b.pump();
    sender.join().unwrap();
    rate
}

fn tiny_frames_into_stalled_streams_hold_little_more_than_their_payload() {
    // Room to promise both base windows of every stream.
    let server = start_server_with(|config| config.buffer_memory_len = 2 << 30);
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let streams: Vec<u32> = (0..STREAMS).map(|_| bridge(&mut a, &mut b).0).collect();
    let before = honest_rate(&server);
    let starved_before = server.counters().value(Counter::ReceivesStarved);
    // From here on b reads nothing, not even its connection. What the kernels take first is filled with one large stream.
    let filler = vec![0; 64 * 1024];
    let deadline = Instant::now() + LIMIT;
    'fill: for &stream in streams.iter().cycle() {
        assert!(Instant::now() < deadline, "b's connection never fills");
        let mut frame = Header::data(stream, filler.len() as u32).encode().to_vec();
        frame.extend_from_slice(&filler);
        a.socket.write_all(&frame).unwrap();
        // For good, not just until the next send of a machine that is busy elsewhere.
        let is_full = || queued_and_held(&server).0 > filler.len();
        if is_full() {
            std::thread::sleep(Duration::from_millis(200));
            if is_full() {
                break 'fill;
            }
        }
    }
    let (queued_full, _) = queued_and_held(&server);
    // One byte per frame, in turns over all streams.
    let rounds = 100;
    for round in 0..rounds {
        let mut bytes = Vec::new();
        for &stream in &streams {
            bytes.extend_from_slice(&Header::data(stream, 1).encode());
            bytes.push(round as u8);
        }
        a.socket.write_all(&bytes).unwrap();
    }
    let expected = queued_full + rounds * STREAMS;
    let deadline = Instant::now() + LIMIT;
    let (queued, held) = loop {
        let (queued, held) = queued_and_held(&server);
        if queued >= expected {
            break (queued, held);
        }
        assert!(Instant::now() < deadline, "{queued} of {expected} bytes queued");
    };
    let during = honest_rate(&server);
    println!(
        "queued {queued}, held {held}; honest transfer {before:.0} MB/s before, {during:.0} MB/s beside it"
    );
    assert!(held <= 2 * queued + (1 << 20), "held {held} for {queued}");
    assert_eq!(server.counters().value(Counter::ReceivesStarved), starved_before);
    drop((a, b));
    let deadline = Instant::now() + LIMIT;
    while queued_and_held(&server).1 > 0 {
        assert!(Instant::now() < deadline, "memory does not come back");
    }
    assert_eq!(server.report().unwrap().extra_len, 0);
}

fn a_budget_that_is_used_up_costs_the_largest_stalled_stream_alone() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let (stalled_a, _) = bridge(&mut a, &mut b);
    let (lively_a, lively_b) = bridge(&mut a, &mut b);
    // b grants nothing on the first stream: two windows fill up, its own and a's. What waits then, waits for that, and not for
    // b's connection.
    let bytes = vec![3; 600_000];
    let mut taken = 0;
    let stalls = |bridge: &BridgeReport| bridge.forth.blocked_ns > 0 && bridge.forth.queued >= 100_000;
    let deadline = Instant::now() + LIMIT;
    while !server.report().unwrap().bridges.iter().any(stalls) {
        assert!(Instant::now() < deadline, "the stream does not stall");
        if let Ok(more) = a.mux.write(stalled_a, &bytes[taken..]) {
            taken += more;
        }
        a.pump();
        b.pump();
    }
    assert_eq!(server.set_budget(64 * 1024), Ok(64 * 1024));
    // b reads its connection all the time: what is in a send to it is no backlog, and a reset does not give it back.
    a.wait("the reset of the stalled stream", |a| {
        b.pump();
        match a.mux.read(stalled_a, &mut [0; 64]) {
            Err(StreamError::Blocked) => None,
            Err(_) => Some(()),
            Ok(len) => panic!("finished, or {len} bytes, and no reset"),
        }
    });
    let counters = server.counters();
    assert_eq!(counters.value(Counter::ResetsMemory), 1);
    // Whoever has its share of so little has no further stream; those that are open go on.
    assert_eq!(server.set_budget(4096), Ok(4096));
    let stream = a.open();
    a.pump();
    assert!(a.wait_end(stream));
    assert_eq!(server.counters().value(Counter::RefusedBudget), 1);
    assert_eq!(server.set_budget(64 * 1024), Ok(64 * 1024));
    a.write(lively_a, b"goes on");
    assert_eq!(b.read_exact(lively_b, 7), b"goes on");
    // Raised again, never beyond what the memory can bear.
    let most = server.set_budget(usize::MAX).unwrap();
    assert!(most < 64 << 20);
    bridge(&mut a, &mut b);
}

fn a_slow_connection_with_bulk_still_gets_pings_and_echoes() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    socket2::SockRef::from(&b.socket).set_recv_buffer_size(32 * 1024).unwrap();
    let bulk: Vec<(u32, u32)> = (0..8).map(|_| bridge(&mut a, &mut b)).collect();
    let (echo_a, echo_b) = bridge(&mut a, &mut b);
    let a_socket = a.socket.try_clone().unwrap();
    // Waits are counted in what b reads meanwhile, which the machine's other work does not prolong.
    let read_by_b = Arc::new(AtomicUsize::new(0));
    let read_len = Arc::clone(&read_by_b);
    let sender = std::thread::spawn(move || {
        let bytes = vec![7; 64 * 1024];
        let mut echoes = Vec::new();
        let mut asked = None;
        while !a.closed {
            for &(stream, _) in &bulk {
                let _ = a.mux.write(stream, &bytes);
            }
            if asked.is_none() && a.mux.write(echo_a, &[1; 64]).is_ok() {
                asked = Some((read_len.load(Ordering::Relaxed), 0));
            }
            let mut buffer = [0; 64];
            if let (Some((since, got)), Ok(len)) = (&mut asked, a.mux.read(echo_a, &mut buffer)) {
                *got += len;
                if *got == 64 {
                    echoes.push(read_len.load(Ordering::Relaxed) - *since);
                    asked = None;
                }
            }
            a.pump();
        }
        echoes
    });
    // b reads 8 KB every 20 ms, and answers at once what it got.
    let mut pings = Vec::new();
    let mut asked = None;
    let (started, mut read_len) = (Instant::now(), 0_usize);
    let mut buffer = [0; 8192];
    while read_len < 6 * A_SECOND_LEN {
        assert!(started.elapsed() < 2 * LIMIT, "b got only {read_len} bytes");
        let due = started + Duration::from_secs_f64(read_len as f64 / A_SECOND_LEN as f64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let now = b.now();
        if asked.is_none() && read_len > A_SECOND_LEN {
            b.mux.ping(now);
            asked = Some(read_len);
        }
        if let Ok(len) = b.socket.read(&mut buffer) {
            read_len += len;
            read_by_b.store(read_len, Ordering::Relaxed);
            b.mux.push(now, &buffer[..len]);
        }
        for event in b.events() {
            match event {
                MuxEvent::PingAnswered { .. } => pings.extend(asked.take().map(|since| read_len - since)),
                MuxEvent::Readable(stream) => {
                    let mut bytes = [0; 65_536];
                    while let Ok(len @ 1..) = b.mux.read(stream, &mut bytes) {
                        if stream == echo_b {
                            b.mux.write(echo_b, &bytes[..len]).unwrap();
                        }
                    }
                }
                _ => {}
            }
        }
        let mut out = Vec::new();
        b.mux.poll_transmit(&mut out, 1 << 20);
        b.socket.write_all(&out).unwrap();
    }
    let _ = a_socket.shutdown(Shutdown::Both);
    let mut echoes = sender.join().unwrap();
    let rate = read_len as f64 / started.elapsed().as_secs_f64() / 1e3;
    pings.sort_unstable();
    echoes.sort_unstable();
    println!(
        "{rate:.0} KB/s; {} pings, longest wait {:?} bytes; {} echoes, longest wait {:?} bytes",
        pings.len(),
        pings.last(),
        echoes.len(),
        echoes.last()
    );
    // Medians: a busy test machine may hold up one of them.
    assert!(pings.len() >= 3 && pings[pings.len() / 2] < A_SECOND_LEN, "{pings:?}");
    assert!(echoes.len() >= 3 && echoes[echoes.len() / 2] < A_SECOND_LEN, "{echoes:?}");
}

/// What the slow connection takes in a second, in bytes.
const A_SECOND_LEN: usize = 400_000;
