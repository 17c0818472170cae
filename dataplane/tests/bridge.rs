//! The server as its clients see it: real sockets, real handshakes, a real worker on each driver.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::SecretKey;
use ringwire_proto::noise::Hybrid;
use ringwire_proto::object::{Generation, StreamResponse, object_hash, open_response, sign_object};
use ringwire_proto::yamux::{Flags, Header};
use support::drivers::on_each_driver;
use support::living::{Living, dial};
use support::{LIMIT, Peer, bridge, pattern, start_server, start_server_with};

on_each_driver!(
    bytes_cross_a_bridge_both_ways_in_order,
    sessions_are_hybrid_when_both_sides_want_it,
    bytes_right_behind_message_3_are_the_multiplexers,
    a_dial_to_nobody_is_closed_at_once,
    a_request_in_somebody_elses_name_is_refused,
    a_bad_object_costs_only_its_stream,
    a_response_by_another_key_is_not_passed_on,
    the_liveness_ping_and_the_ip_request_are_answered,
    what_was_sent_before_the_end_is_delivered_then_both_sides_end,
    a_reset_reaches_the_other_side,
    what_a_client_finished_is_delivered_although_it_left,
    a_dial_that_is_taken_back_costs_the_destination_no_reset,
    what_a_client_sent_before_it_closed_its_connection_arrives_and_then_the_end,
    a_connection_that_ends_in_the_middle_of_a_frame_or_by_a_reset_resets_its_streams,
    the_newest_session_of_a_key_wins,
    breaking_the_multiplexers_rules_ends_that_session_alone,
    a_reader_that_stops_holds_up_only_its_stream,
    stopping_closes_every_session_and_frees_the_port,
);

fn bytes_cross_a_bridge_both_ways_in_order() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let (on_a, on_b) = bridge(&mut a, &mut b);
    let len = 3_000_000;
    let (forth, back) = (pattern(1, 0, len), pattern(2, 0, len));
    let (mut sent, mut returned) = (0, 0);
    let (mut at_b, mut at_a) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + LIMIT;
    while at_b.len() < len || at_a.len() < len {
        assert!(Instant::now() < deadline, "stuck at {} and {}", at_b.len(), at_a.len());
        for (peer, stream, source, done, sink) in
            [(&mut a, on_a, &forth, &mut sent, &mut at_a), (&mut b, on_b, &back, &mut returned, &mut at_b)]
        {
            // Sizes that match neither frames nor pages.
            let piece = (*done + 7001).min(len);
            if *done < len
                && let Ok(taken) = peer.mux.write(stream, &source[*done..piece])
            {
                *done += taken;
            }
            let mut buffer = [0; 50_000];
            if let Ok(read) = peer.mux.read(stream, &mut buffer) {
                sink.extend_from_slice(&buffer[..read]);
            }
            peer.pump();
        }
    }
    assert!(at_b == forth, "what arrived at b is what a sent");
    assert!(at_a == back, "what arrived at a is what b sent");
    let counters = server.counters();
    assert_eq!(counters.value(Counter::BridgesOpened), 1);
    assert_eq!(counters.value(Counter::BytesBridged), 2 * len as u64);
    assert_eq!(counters.value(Counter::BytesDropped), 0);
    server.stop().unwrap();
}

fn sessions_are_hybrid_when_both_sides_want_it() {
    for (theirs, ours, expected) in [
        (Hybrid::Offer, Hybrid::Offer, Some(true)),
        (Hybrid::Off, Hybrid::Offer, Some(false)),
        (Hybrid::Offer, Hybrid::Off, Some(false)),
        (Hybrid::Off, Hybrid::Require, None),
        (Hybrid::Offer, Hybrid::Require, Some(true)),
    ] {
        let server = start_server_with(|config| config.hybrid = ours);
        let secret = SecretKey::generate(&mut OsEntropy);
        let peer = Peer::handshake(secret, server.public_key(), server.addresses()[0], theirs, &[]);
        match (expected, peer) {
            (Some(hybrid), Ok(mut peer)) => {
                assert_eq!(peer.hybrid, hybrid, "{theirs:?} with {ours:?}");
                // Both ends agree on the keys: an object crosses.
                let mut other = Peer::connect(&server);
                bridge(&mut peer, &mut other);
            }
            (None, Ok(mut peer)) => {
                // The refusal comes behind message 3 at the latest.
                peer.wait_closed();
                assert_eq!(server.counters().value(Counter::HandshakesFailed), 1);
            }
            (None, Err(_)) => assert_eq!(server.counters().value(Counter::HandshakesFailed), 1),
            (Some(_), Err(error)) => panic!("{theirs:?} with {ours:?}: {error}"),
        }
    }
}

fn bytes_right_behind_message_3_are_the_multiplexers() {
    let server = start_server();
    let secret = SecretKey::generate(&mut OsEntropy);
    let ping = Header::ping(0x0102_0304).encode();
    let address = server.addresses()[0];
    let mut peer = Peer::handshake(secret, server.public_key(), address, Hybrid::Offer, &ping).unwrap();
    let mut answer = [0; 12];
    peer.socket.set_read_timeout(Some(LIMIT)).unwrap();
    peer.socket.read_exact(&mut answer).unwrap();
    assert_eq!(Header::decode(&answer).unwrap(), Header::pong(0x0102_0304));
}

fn a_dial_to_nobody_is_closed_at_once() {
    let server = start_server();
    let mut peer = Peer::connect(&server);
    let absent = SecretKey::generate(&mut OsEntropy).public_key();
    let mut refused = 0;
    let at_once = (0..5).any(|_| {
        let started = Instant::now();
        let stream = peer.open();
        let signed = peer.sign(&peer.request(absent));
        peer.write_object(stream, &signed);
        assert!(peer.wait_end(stream), "closed, not reset");
        refused += 1;
        started.elapsed() < Duration::from_secs(2)
    });
    assert!(at_once, "one of five, on a machine with pauses");
    assert_eq!(server.counters().value(Counter::RefusedDestination), refused);
    // The session goes on.
    let mut other = Peer::connect(&server);
    bridge(&mut peer, &mut other);
}

fn a_request_in_somebody_elses_name_is_refused() {
    let server = start_server();
    let (mut a, b) = (Peer::connect(&server), Peer::connect(&server));
    let stream = a.open();
    let signed = b.sign(&b.request(a.key));
    a.write_object(stream, &signed);
    assert!(a.wait_end(stream));
    assert_eq!(server.counters().value(Counter::RefusedSource), 1);
}

fn a_bad_object_costs_only_its_stream() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    for bytes in [&[0, 5, 1, 2, 3, 4, 5][..], &[0, 40], &[0xff; 40]] {
        let stream = a.open();
        a.write(stream, bytes);
        if bytes.len() > 4 && bytes[0] == 0 {
            assert!(a.wait_end(stream));
        }
    }
    let stream = a.open();
    let mut signed = a.sign(&a.request(b.key));
    let last = signed.len() - 1;
    signed[last] ^= 1;
    a.write_object(stream, &signed);
    assert!(a.wait_end(stream));
    assert_eq!(server.counters().value(Counter::RefusedObject), 2);
    bridge(&mut a, &mut b);
}

fn a_response_by_another_key_is_not_passed_on() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let stream = a.open();
    let signed = a.sign(&a.request(b.key));
    a.write_object(stream, &signed);
    let other = b.accept();
    let request = b.read_object(other);
    assert_eq!(request, signed, "the very bytes that were signed");
    let response =
        StreamResponse { request_hash: object_hash(&request), accepted: true, ..Default::default() };
    let forged = sign_object(&SecretKey::generate(&mut OsEntropy), &response.encode(Generation::Go2024));
    b.write_object(other, &forged);
    b.pump();
    assert!(a.wait_end(stream));
    assert!(b.wait_end(other));
    assert_eq!(server.counters().value(Counter::RefusedResponse), 1);
}

fn the_liveness_ping_and_the_ip_request_are_answered() {
    let server = start_server();
    let mut peer = Peer::connect(&server);
    let stream = peer.open();
    peer.write(stream, &[0, 0]);
    assert_eq!(peer.read_exact(stream, 2), [0, 0]);
    assert!(peer.wait_end(stream));

    let stream = peer.open();
    let mut request = peer.request(server.public_key());
    request.destination.port = 1;
    request.ip_info = true;
    request.noise_message.clear();
    let signed = sign_object(&peer.secret, &request.encode(Generation::Go2026));
    peer.write_object(stream, &signed);
    let answer = peer.read_object(stream);
    let response = open_response(&answer, &object_hash(&signed), &server.public_key()).unwrap();
    assert_eq!(response.ip, [127, 0, 0, 1]);
    let counters = server.counters();
    assert_eq!((counters.value(Counter::StreamPings), counters.value(Counter::IpRequests)), (1, 1));
}

fn what_was_sent_before_the_end_is_delivered_then_both_sides_end() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let (on_a, on_b) = bridge(&mut a, &mut b);
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
    wait_for(|| server.counters().value(Counter::StreamsClosed) == 1);
    wait_for(|| server.counters().value(Counter::ForwardsClosed) == 1);
    let counters = server.counters();
    assert_eq!(counters.value(Counter::BridgesOpened), counters.value(Counter::BridgesClosed));
}

fn a_reset_reaches_the_other_side() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let (on_a, on_b) = bridge(&mut a, &mut b);
    a.mux.reset(on_a);
    a.pump();
    assert!(!b.wait_end(on_b), "reset, not finished");
    wait_for(|| server.counters().value(Counter::BridgesClosed) == 1);
    // And so does that of a whole session.
    let (_, on_b) = bridge(&mut a, &mut b);
    a.abort();
    assert!(!b.wait_end(on_b));
    wait_for(|| server.counters().value(Counter::SessionsClosed) == 1);
}

fn what_a_client_finished_is_delivered_although_it_left() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let (on_a, on_b) = bridge(&mut a, &mut b);
    // More than b's window, so that a part waits at the server until b reads.
    let bytes = pattern(6, 0, 330_000);
    a.write(on_a, &bytes);
    let now = a.now();
    a.mux.finish(now, on_a);
    a.pump();
    // The server gives a credit for what b's connection takes: with small buffers in the kernel only while b reads that.
    while server.counters().value(Counter::BytesBridged) < bytes.len() as u64 {
        a.pump();
        b.pump();
    }
    // And it has the FIN too: an answer to what came behind it says so.
    a.settle();
    // b has read nothing of its stream so far; the process behind a is gone.
    drop(a);
    wait_for(|| server.counters().value(Counter::SessionsClosed) == 1);
    assert!(b.read_exact(on_b, bytes.len()) == bytes);
    assert!(b.wait_end(on_b), "finished, not reset");
}

fn a_dial_that_is_taken_back_costs_the_destination_no_reset() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    // By reset of the stream, and by loss of the session: a client of 2024 would end its whole session over a reset.
    let mut gone = Peer::connect(&server);
    for dialler in [&mut a, &mut gone] {
        let stream = dialler.open();
        let signed = dialler.sign(&dialler.request(b.key));
        dialler.write_object(stream, &signed);
        let other = b.accept();
        assert_eq!(b.read_object(other), signed);
        dialler.mux.reset(stream);
        dialler.pump();
        assert!(b.wait_end(other), "finished, not reset");
    }
    let stream = gone.open();
    let signed = gone.sign(&gone.request(b.key));
    gone.write_object(stream, &signed);
    let other = b.accept();
    drop(gone);
    assert_eq!(b.read_object(other), signed);
    assert!(b.wait_end(other));
    bridge(&mut a, &mut b);
}

fn what_a_client_sent_before_it_closed_its_connection_arrives_and_then_the_end() {
    let server = start_server();
    // More than the reader's credit, which it does not renew until the sender is gone.
    let bytes = pattern(5, 0, 393_216);
    for _ in 0..5 {
        let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
        b.settle();
        let (on_a, on_b) = bridge(&mut a, &mut b);
        a.write(on_a, &bytes);
        a.wait("everything to be sent", |a| {
            b.pump();
            (a.mux.unsent_len(on_a) == 0).then_some(())
        });
        // A Go client closes its session so: no frame says that the stream has ended. Its kernel would say a reset if something that the
        // server sent were unread, so it is not closed whole.
        a.socket.shutdown(std::net::Shutdown::Write).unwrap();
        a.wait_closed();
        assert!(b.read_exact(on_b, bytes.len()) == bytes);
        assert!(b.wait_end(on_b), "finished, not reset");
    }
}

fn a_connection_that_ends_in_the_middle_of_a_frame_or_by_a_reset_resets_its_streams() {
    let server = start_server();
    for is_cut in [true, false] {
        let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
        b.settle();
        let (on_a, on_b) = bridge(&mut a, &mut b);
        a.write(on_a, &[7; 1000]);
        a.transmit();
        assert_eq!(b.read_exact(on_b, 1000), [7; 1000]);
        if is_cut {
            a.socket.write_all(&Header::data(on_a, 1000).encode()).unwrap();
            a.socket.write_all(&[7; 500]).unwrap();
            drop(a);
        } else {
            a.abort();
        }
        assert!(!b.wait_end(on_b), "reset: the only sign that something is missing");
    }
}

fn the_newest_session_of_a_key_wins() {
    let server = start_server();
    let secret = SecretKey::generate(&mut OsEntropy);
    let mut first = Peer::connect_as(secret.clone(), &server, Hybrid::Offer);
    first.settle();
    let mut second = Peer::connect_as(secret, &server, Hybrid::Offer);
    second.settle();
    let second = Living::start(second);
    // The first one answers no ping.
    let mut dialler = Peer::connect(&server);
    assert!(dial(&mut dialler, second.key));
    assert_eq!((second.answered(), server.counters().value(Counter::SessionsDisplaced)), (1, 1));
    first.wait_closed();
}

fn breaking_the_multiplexers_rules_ends_that_session_alone() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let (on_a, on_b) = bridge(&mut a, &mut b);

    // More than the credit: go-away 1, then the end.
    let mut rude = Peer::connect(&server);
    let syn = Header::window_update(1, 0).with_flags(Flags::SYN).encode();
    rude.socket.write_all(&syn).unwrap();
    rude.socket.write_all(&Header::data(1, 262_145).encode()).unwrap();
    rude.socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut said = Vec::new();
    rude.socket.read_to_end(&mut said).unwrap();
    assert!(said.ends_with(&Header::go_away(1).encode()), "{said:02x?}");

    // An unknown version: the end.
    let mut rude = Peer::connect(&server);
    rude.socket.write_all(&[9; 12]).unwrap();
    rude.wait_closed();

    // Noise where a handshake was due: the end.
    let mut stranger = TcpStream::connect(server.addresses()[0]).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    stranger.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(stranger.read(&mut [0; 16]).unwrap(), 0);

    let counters = server.counters();
    assert_eq!(counters.value(Counter::SessionViolations), 2);
    assert_eq!(counters.value(Counter::HandshakesFailed), 1);
    a.write(on_a, b"still here");
    assert_eq!(b.read_exact(on_b, 10), b"still here");
}

fn a_reader_that_stops_holds_up_only_its_stream() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let (slow_a, slow_b) = bridge(&mut a, &mut b);
    let bytes = pattern(4, 0, 600_000);
    // Fill the way to b: b's application reads nothing of this stream. `write` takes what credit and queues allow.
    let mut taken = 0;
    for _ in 0..200 {
        if let Ok(more) = a.mux.write(slow_a, &bytes[taken..]) {
            taken += more;
        }
        a.pump();
        b.pump();
    }
    assert!(taken >= 262_144, "the way holds at least a window: {taken}");
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

fn stopping_closes_every_session_and_frees_the_port() {
    let server = start_server();
    let address = server.addresses()[0];
    let mut peers: Vec<Peer> = (0..20).map(|_| Peer::connect(&server)).collect();
    server.stop().unwrap();
    for peer in &mut peers {
        peer.wait_closed();
    }
    let again = start_server_with(|config| config.listen = vec![address]);
    Peer::connect(&again);
}

/// Counters move in the worker a moment after the bytes that caused it.
fn wait_for(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}
