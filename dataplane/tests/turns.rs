//! What one client may take of a worker's turns, and what frames that bring nothing cost it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ringwire_dataplane::Server;
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::limits::{FRAMES_PER_TURN_MAX, RESTS_PER_TURN_MAX, USELESS_FRAMES_MAX};
use ringwire_proto::smux::{self, Version};
use ringwire_proto::yamux::{Flags, Header};
use support::drivers::on_each_driver;
use support::{LIMIT, Peer, bridge, pattern, start_server};

on_each_driver!(
    however_many_frames_a_client_sends_a_turn_takes_few_of_them,
    frames_that_bring_nothing_end_the_session_that_sends_them,
    what_go_clients_send_for_streams_that_are_gone_is_no_offence,
);

/// Frames of each hostile client: below what it may send for nothing.
const FRAMES: usize = USELESS_FRAMES_MAX as usize * 3 / 4;
const CLIENTS: usize = 4;

/// Counted in turns, which the machine's other work does not make fewer.
fn however_many_frames_a_client_sends_a_turn_takes_few_of_them() {
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let (on_a, on_b) = bridge(&mut a, &mut b);
    let mut clients: Vec<Peer> = (0..CLIENTS).map(|_| Peer::connect(&server)).collect();
    for client in &mut clients {
        client.settle();
    }
    // Updates of a stream that never was: the shortest way to nothing. At the end a liveness ping, whose answer comes behind them all.
    let mut frames = Header::window_update(1001, 1).encode().repeat(FRAMES);
    frames.extend_from_slice(&Header::data(1003, 2).with_flags(Flags::SYN).encode());
    frames.extend_from_slice(&[0, 0]);
    let turns_before = server.counters().value(Counter::Turns);
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| {
                client.socket.write_all(&frames).unwrap();
                client.expect_raw(&Header::window_update(1003, 0).with_flags(Flags::FIN).encode());
            });
        }
        // Beside them a bridge goes on.
        for round in 0..50 {
            a.write(on_a, &pattern(round, 0, 1000));
            assert!(b.read_exact(on_b, 1000) == pattern(round, 0, 1000));
        }
    });
    let counters = server.counters();
    let turns = counters.value(Counter::Turns) - turns_before;
    // What is left of receives, and what each client's first receive brings.
    let frames_of_a_turn = (RESTS_PER_TURN_MAX + CLIENTS) * FRAMES_PER_TURN_MAX;
    let turns_min = (CLIENTS * FRAMES / frames_of_a_turn) as u64;
    assert!(turns >= turns_min, "{CLIENTS} x {FRAMES} frames in {turns} turns");
    assert_eq!(counters.value(Counter::SessionViolations), 0);
    let deadline = Instant::now() + LIMIT;
    while server.report().unwrap().held_len > 0 {
        assert!(Instant::now() < deadline, "pages are left behind");
        a.pump();
        b.pump();
    }
}

/// Writes the frames again and again until the server closes the connection; whatever it answers is read. Returns how many
/// times that was.
fn write_until_closed(socket: &mut TcpStream, frames: &[u8], times_max: usize) -> usize {
    let mut reader = socket.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
        }
    });
    socket.set_write_timeout(Some(LIMIT)).unwrap();
    let times = (0..times_max).take_while(|_| socket.write_all(frames).is_ok()).count();
    reader.join().unwrap();
    times
}

fn of_stream(stream: u32, flags: Flags) -> [u8; 12] {
    Header::window_update(stream, 0).with_flags(flags).encode()
}

fn frames_that_bring_nothing_end_the_session_that_sends_them() {
    let server = start_server();
    let mut honest = Peer::connect(&server);
    honest.settle();
    let kinds: [(&str, Vec<u8>); 6] = [
        ("pings", Header::ping(7).encode().to_vec()),
        ("empty data", Header::data(1001, 0).encode().to_vec()),
        ("data of no stream", [&Header::data(1001, 1).encode()[..], &[0]].concat()),
        ("resets", of_stream(1001, Flags::RST).to_vec()),
        ("openings", [of_stream(1001, Flags::SYN), of_stream(1001, Flags::RST)].concat()),
        ("updates", Header::window_update(1001, 9).encode().to_vec()),
    ];
    for (count, (what, frame)) in kinds.iter().enumerate() {
        let mut peer = Peer::connect(&server);
        peer.settle();
        // A thousand at a time, and far more in all than time earns meanwhile.
        let times = write_until_closed(&mut peer.socket, &frame.repeat(1000), 1_000_000);
        assert!(times < 1_000_000, "{what}: never closed");
        assert_eq!(server.counters().value(Counter::SessionViolations), count as u64 + 1, "{what}");
    }
    let mut peer = Peer::connect_smux(&server, Version::V2);
    peer.settle();
    let nops = smux::Header::nop(Version::V2).encode().repeat(1000);
    assert!(write_until_closed(&mut peer.socket, &nops, 1_000_000) < 1_000_000);
    let counters = server.counters();
    assert_eq!(counters.value(Counter::SessionViolations), kinds.len() as u64 + 1);
    // Pings at such a rate are more than may wait for their answers besides.
    let excess = counters.value(Counter::ViolationsExcess);
    assert!(excess <= 1);
    assert_eq!(counters.value(Counter::ViolationsUseless) + excess, kinds.len() as u64 + 1);
    honest.settle();
    wait_gone(&server, 1);
}

fn wait_gone(server: &Server, left: usize) {
    let deadline = Instant::now() + LIMIT;
    while server.report().unwrap().sessions.len() != left {
        assert!(Instant::now() < deadline, "sessions are left");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A client that was in the middle of writing small pieces when its streams were reset, and resets them too: thousands of frames that
/// nobody wants, on each of many streams, beside dials and pings without need.
fn what_go_clients_send_for_streams_that_are_gone_is_no_offence() {
    let server = start_server();
    let mut peer = Peer::connect(&server);
    peer.settle();
    let mut frames = Vec::new();
    for stream in (1001..1101).step_by(2) {
        for _ in 0..256 {
            frames.extend_from_slice(&Header::data(stream, 16).encode());
            frames.extend_from_slice(&[9; 16]);
        }
        frames.extend_from_slice(&Header::window_update(stream, 131_072).encode());
        frames.extend_from_slice(&of_stream(stream, Flags::RST));
        frames.extend_from_slice(&Header::ping(stream).encode());
    }
    peer.socket.write_all(&frames).unwrap();
    // Then it opens as many as it may, a ping of life on each, and lets them go.
    for round in 0..4 {
        let mut frames = Vec::new();
        for number in 0..2000 {
            let stream = 10_001 + 2 * (2000 * round + number);
            frames.extend_from_slice(&Header::data(stream, 2).with_flags(Flags::SYN).encode());
            frames.extend_from_slice(&[0, 0]);
            frames.extend_from_slice(&of_stream(stream, Flags::FIN));
            frames.extend_from_slice(&of_stream(stream, Flags::RST));
        }
        let mut socket = peer.socket.try_clone().unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || socket.write_all(&frames).unwrap());
            while !writer.is_finished() {
                let _ = peer.socket.read(&mut [0; 65_536]);
            }
        });
    }
    peer.settle_on(100_001);
    assert_eq!(server.counters().value(Counter::SessionViolations), 0);
    assert_eq!(server.report().unwrap().sessions.len(), 1);
}
