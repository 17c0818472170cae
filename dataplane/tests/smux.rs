//! Sessions that speak smux, beside and bridged with sessions that speak yamux: real sockets, on each driver (dmsg-wire 4.5, 6).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use ringwire_dataplane::Server;
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::SecretKey;
use ringwire_proto::noise::Hybrid;
use ringwire_proto::smux::{self, Version};
use ringwire_proto::yamux;
use support::drivers::on_each_driver;
use support::{LIMIT, Peer, bridge, pattern, start_server, start_server_with};

on_each_driver!(
    the_first_byte_tells_the_multiplexer_and_nothing_is_said_before_it,
    a_first_byte_right_behind_message_3_is_seen,
    a_silent_destination_is_taken_for_yamux,
    bulk_crosses_every_pair_of_multiplexers_both_ways,
    sixty_four_streams_cross_at_a_time,
    what_was_sent_before_a_fin_is_delivered_and_both_sides_end,
    an_end_at_once_ends_the_other_side,
    a_reader_that_stops_holds_up_only_its_stream,
    an_unread_version_1_stream_stops_its_session_and_lets_go,
    pings_and_refusals_are_those_of_yamux,
);

const KINDS: [Option<Version>; 3] = [None, Some(Version::V1), Some(Version::V2)];

fn connect(server: &Server, kind: Option<Version>) -> Peer {
    match kind {
        None => Peer::connect(server),
        Some(version) => Peer::connect_smux(server, version),
    }
}

fn multiplexers(server: &Server) -> Vec<&'static str> {
    let mut names: Vec<_> =
        server.report().unwrap().sessions.iter().map(|session| session.multiplexer).collect();
    names.sort_unstable();
    names
}

fn the_first_byte_tells_the_multiplexer_and_nothing_is_said_before_it() {
    let server = start_server();
    let mut peers: Vec<Peer> = KINDS.iter().map(|&kind| connect(&server, kind)).collect();
    wait_for(|| server.counters().value(Counter::SessionsOpened) == 3);
    assert_eq!(multiplexers(&server), ["unknown"; 3]);
    for peer in &mut peers {
        peer.socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let said = peer.socket.read(&mut [0; 16]).unwrap_err();
        assert!(matches!(said.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{said}");
        // The liveness ping brings the first byte.
        peer.settle();
    }
    assert_eq!(multiplexers(&server), ["smux 1", "smux 2", "yamux"]);
    assert_eq!(server.counters().value(Counter::SessionsSmux), 2);
    assert_eq!(server.counters().value(Counter::StreamPings), 3);
}

fn a_first_byte_right_behind_message_3_is_seen() {
    let server = start_server();
    // Whole frames and a lone first byte, in the segment of message 3.
    let nop = smux::Header::nop(Version::V2).encode();
    let ping = yamux::Header::ping(7).encode();
    for (behind, name) in
        [(&nop[..], "smux 2"), (&nop[..1], "smux 2"), (&[1], "smux 1"), (&ping[..], "yamux"), (&[0], "yamux")]
    {
        let secret = SecretKey::generate(&mut OsEntropy);
        let (key, address) = (server.public_key(), server.addresses()[0]);
        let peer = Peer::handshake(secret, key, address, Hybrid::Offer, behind).unwrap();
        wait_for(|| multiplexers(&server).contains(&name));
        drop(peer);
        wait_for(|| multiplexers(&server).is_empty());
    }
}

fn a_silent_destination_is_taken_for_yamux() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect_smux(&server, Version::V2), Peer::connect(&server));
    wait_for(|| server.counters().value(Counter::SessionsOpened) == 2);
    // b listens and has not sent a byte.
    let (on_a, on_b) = bridge(&mut a, &mut b);
    a.write(on_a, b"hello");
    assert_eq!(b.read_exact(on_b, 5), b"hello");
    assert_eq!(multiplexers(&server), ["smux 2", "yamux"]);
}

/// Carries `len` bytes each way on each of the bridges at a time and verifies them.
fn exchange(a: &mut Peer, b: &mut Peer, bridges: &[(u32, u32)], len: usize) {
    let sources: Vec<Vec<u8>> = (0..2 * bridges.len()).map(|seed| pattern(seed as u64, 0, len)).collect();
    let mut sent = vec![0; sources.len()];
    let mut got: Vec<Vec<u8>> = vec![Vec::new(); sources.len()];
    let deadline = Instant::now() + 3 * LIMIT;
    while got.iter().any(|got| got.len() < len) {
        assert!(Instant::now() < deadline, "stuck at {:?}", got.iter().map(Vec::len).collect::<Vec<_>>());
        for side in 0..2 {
            let peer: &mut Peer = if side == 0 { a } else { b };
            for (index, &(on_a, on_b)) in bridges.iter().enumerate() {
                let stream = if side == 0 { on_a } else { on_b };
                let (out, back) = (2 * index + side, 2 * index + 1 - side);
                // Sizes that match neither frames nor pages.
                let piece = (sent[out] + 7001).min(len);
                if sent[out] < len
                    && let Ok(taken) = peer.mux.write(stream, &sources[out][sent[out]..piece])
                {
                    sent[out] += taken;
                }
                let mut buffer = [0; 50_000];
                if let Ok(read) = peer.mux.read(stream, &mut buffer) {
                    assert!(read > 0, "stream {index} ended after {} bytes", got[back].len());
                    got[back].extend_from_slice(&buffer[..read]);
                }
            }
            peer.pump_without_waiting();
        }
    }
    assert!(got == sources, "what arrived is what was sent");
}

fn bulk_crosses_every_pair_of_multiplexers_both_ways() {
    let server = start_server();
    for from in KINDS {
        for to in KINDS {
            let (mut a, mut b) = (connect(&server, from), connect(&server, to));
            b.settle();
            let pair = bridge(&mut a, &mut b);
            // Several times the window of either side: 262,144 bytes of ours, 65,536 of an smux client.
            exchange(&mut a, &mut b, &[pair], 1_500_000);
        }
    }
    let counters = server.counters();
    assert_eq!(counters.value(Counter::BridgesOpened), 9);
    assert_eq!(counters.value(Counter::BytesBridged), 9 * 2 * 1_500_000);
    assert_eq!(counters.value(Counter::BytesDropped), 0);
    assert_eq!(counters.value(Counter::StreamViolations) + counters.value(Counter::SessionViolations), 0);
}

fn sixty_four_streams_cross_at_a_time() {
    // A session may be promised a quarter of it.
    let server = start_server_with(|config| config.buffer_memory_len = 256 << 20);
    for version in [Version::V2, Version::V1] {
        let (mut a, mut b) = (Peer::connect_smux(&server, version), Peer::connect(&server));
        b.settle();
        let mut bridges: Vec<(u32, u32)> = (0..32).map(|_| bridge(&mut a, &mut b)).collect();
        // Half of them are dialled from the other side.
        bridges.extend((0..32).map(|_| {
            let (on_b, on_a) = bridge(&mut b, &mut a);
            (on_a, on_b)
        }));
        exchange(&mut a, &mut b, &bridges, 100_000);
    }
    assert_eq!(server.counters().value(Counter::BytesDropped), 0);
}

fn what_was_sent_before_a_fin_is_delivered_and_both_sides_end() {
    let server = start_server();
    let mut ended = 0;
    for version in [Version::V1, Version::V2] {
        for smux_ends in [true, false] {
            let (mut a, mut b) = (Peer::connect_smux(&server, version), Peer::connect(&server));
            b.settle();
            let (mut on_a, mut on_b) = bridge(&mut a, &mut b);
            if !smux_ends {
                std::mem::swap(&mut a, &mut b);
                std::mem::swap(&mut on_a, &mut on_b);
            }
            // More than a window of an smux client.
            let bytes = pattern(3, 0, 200_000);
            a.write(on_a, &bytes);
            let now = a.now();
            a.mux.finish(now, on_a);
            a.pump();
            assert!(b.read_exact(on_b, bytes.len()) == bytes);
            assert!(b.wait_end(on_b), "b is told");
            assert!(a.wait_end(on_a), "and so is a");
            let now = b.now();
            b.mux.finish(now, on_b);
            b.pump();
            ended += 1;
            // With the one that `settle` used.
            wait_for(|| server.counters().value(Counter::StreamsClosed) == 2 * ended);
            wait_for(|| server.counters().value(Counter::ForwardsClosed) == ended);
        }
    }
}

fn an_end_at_once_ends_the_other_side() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect_smux(&server, Version::V2), Peer::connect(&server));
    b.settle();
    // A reset of yamux: smux has no word for it, the stream just ends.
    let (on_a, on_b) = bridge(&mut a, &mut b);
    b.mux.reset(on_b);
    b.pump();
    assert!(a.wait_end(on_a));
    // smux cannot reset: a client that gives up a stream finishes it.
    let (on_a, on_b) = bridge(&mut a, &mut b);
    a.mux.reset(on_a);
    a.pump();
    assert!(b.wait_end(on_b));
    let now = b.now();
    b.mux.finish(now, on_b);
    b.pump();
    // An smux session that was lost is a reset to its partner.
    let (_, on_b) = bridge(&mut a, &mut b);
    a.abort();
    assert!(!b.wait_end(on_b));
    wait_for(|| server.counters().value(Counter::BridgesClosed) == 3);
    wait_for(|| server.report().unwrap().sessions.iter().all(|session| session.streams == 0));
}

fn a_reader_that_stops_holds_up_only_its_stream() {
    let server = start_server();
    for (from, to) in [(None, Some(Version::V2)), (Some(Version::V2), None)] {
        let (mut a, mut b) = (connect(&server, from), connect(&server, to));
        b.settle();
        let (slow_a, slow_b) = bridge(&mut a, &mut b);
        let bytes = pattern(4, 0, 700_000);
        let mut taken = 0;
        for _ in 0..200 {
            if let Ok(more) = a.mux.write(slow_a, &bytes[taken..]) {
                taken += more;
            }
            a.pump();
            b.pump();
        }
        let (fast_a, fast_b) = bridge(&mut a, &mut b);
        a.write(fast_a, b"overtakes");
        assert_eq!(b.read_exact(fast_b, 9), b"overtakes");
        // And once b reads, everything comes.
        let mut got = Vec::new();
        let deadline = Instant::now() + LIMIT;
        while got.len() < bytes.len() {
            assert!(Instant::now() < deadline, "stuck at {}", got.len());
            if taken < bytes.len()
                && let Ok(more) = a.mux.write(slow_a, &bytes[taken..])
            {
                taken += more;
            }
            let mut buffer = [0; 65_536];
            if let Ok(read) = b.mux.read(slow_b, &mut buffer) {
                got.extend_from_slice(&buffer[..read]);
            }
            a.pump();
            b.pump();
        }
        assert!(got == bytes);
    }
}

fn an_unread_version_1_stream_stops_its_session_and_lets_go() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect_smux(&server, Version::V1), Peer::connect(&server));
    b.settle();
    let (on_a, on_b) = bridge(&mut a, &mut b);
    // b's application reads nothing: its window fills, then the one that all of a's streams share.
    a.socket.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let frame = {
        let mut frame = smux::Header::push(Version::V1, on_a, 32_768).encode().to_vec();
        frame.resize(frame.len() + 32_768, 9);
        frame
    };
    let (mut sent, most) = (0, 64 << 20);
    while sent < most {
        match a.socket.write(&frame[sent % frame.len()..]) {
            Ok(len) => sent += len,
            Err(_) => break,
        }
        b.pump();
    }
    assert!(sent < most, "the server read on");
    let held = server.report().unwrap().held_len;
    // Its own window, and a receive that was under way.
    assert!(held < 1 << 20, "{held} bytes are held");
    // b reads: it goes on.
    let reader = std::thread::spawn(move || {
        let whole = sent / 32_776 * 32_768;
        let bytes = b.read_exact(on_b, whole);
        assert!(bytes.iter().all(|&byte| byte == 9));
        b
    });
    let rest = frame.len() - sent % frame.len();
    a.socket.set_write_timeout(Some(LIMIT)).unwrap();
    a.socket.write_all(&frame[frame.len() - rest..]).unwrap();
    reader.join().unwrap();
}

fn pings_and_refusals_are_those_of_yamux() {
    let server = start_server();
    let mut a = Peer::connect_smux(&server, Version::V2);
    a.settle();
    // A bad object costs its stream alone.
    let stream = a.open();
    a.write(stream, &[0, 5, 1, 2, 3, 4, 5]);
    assert!(a.wait_end(stream));
    let mut b = Peer::connect(&server);
    b.settle();
    bridge(&mut a, &mut b);
}

/// Counters move in the worker a moment after the bytes that caused it.
fn wait_for(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}
