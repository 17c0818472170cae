//! Slow readers: they live, those who take nothing do not, and what is small does not wait behind what they have not taken.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use ringwire_dataplane::Server;
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::limits;
use ringwire_proto::identity::SecretKey;
use ringwire_proto::noise::Hybrid;
use socket2::{Domain, Socket, Type};
use support::drivers::{current, on_each_driver};
use support::mux::MuxEvent;
use support::{LIMIT, Peer, bridge, pattern, start_server};

on_each_driver!(
    a_reader_of_8000_bytes_a_second_outlives_one_that_takes_nothing,
    what_is_small_overtakes_bulk_on_a_slow_connection,
);

/// A client whose connection holds little.
fn narrow(server: &Server) -> Peer {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    socket.connect(&server.addresses()[0].into()).unwrap();
    let secret = SecretKey::generate(&mut OsEntropy);
    let mut peer =
        Peer::handshake_over(socket.into(), secret, server.public_key(), Hybrid::Offer, &[]).unwrap();
    peer.settle();
    peer
}

/// The kernel's own clock ended the slow one after 25 s, counted from the first probe of its closed window.
fn a_reader_of_8000_bytes_a_second_outlives_one_that_takes_nothing() {
    let server = start_server();
    let (mut slow, mut stuck) = (narrow(&server), narrow(&server));
    let mut source = Peer::connect(&server);
    // More than all buffers on the way hold, and than the slow one reads.
    let (to_slow, at_slow) = bridge(&mut source, &mut slow);
    let (to_stuck, _) = bridge(&mut source, &mut stuck);
    for stream in [to_slow, to_stuck] {
        source.write(stream, &pattern(1, 0, 250_000));
    }
    let dead = || server.counters().value(Counter::SessionsDead);
    let (begun, mut read, mut died_after) = (Instant::now(), 0, None);
    let timeout = Duration::from_nanos(limits::STALL_TIMEOUT_NS);
    while died_after.is_none() || begun.elapsed() < timeout + Duration::from_secs(8) {
        assert!(begun.elapsed() < LIMIT, "who takes nothing is still there");
        std::thread::sleep(Duration::from_millis(100));
        // What is due at that rate, however long the machine let this thread wait.
        let due = (begun.elapsed().as_millis() * 8) as usize;
        while read < due {
            let mut buffer = vec![0; due - read];
            match slow.socket.read(&mut buffer) {
                Ok(0) => panic!("closed after {:?} and {read} bytes", begun.elapsed()),
                Ok(len) => {
                    read += len;
                    let now = slow.now();
                    slow.mux.push(now, &buffer[..len]);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) => panic!("{error} after {:?} and {read} bytes", begun.elapsed()),
            }
        }
        source.pump();
        if dead() == 1 {
            died_after.get_or_insert(begun.elapsed());
        }
    }
    assert_eq!(dead(), 1);
    assert!(died_after.unwrap() >= timeout, "{died_after:?}");
    // Nobody reads from its socket, so it learns of it last.
    stuck.wait_closed();
    // And all of it arrives.
    assert!(slow.read_exact(at_slow, 250_000) == pattern(1, 0, 250_000));
}

/// Reads so many bytes at most into the multiplexer. Never more to make up for a pause of the machine: what is in front of an answer is
/// counted, and a burst would be in front of everything.
fn read_some(peer: &mut Peer, len: usize, read: &mut usize) {
    let mut buffer = vec![0; len];
    match peer.socket.read(&mut buffer) {
        Ok(0) => panic!("closed after {read} bytes"),
        Ok(len) => {
            *read += len;
            let now = peer.now();
            peer.mux.push(now, &buffer[..len]);
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
        Err(error) => panic!("{error} after {read} bytes"),
    }
}

/// 128 KiB waited in the kernel whatever the rate: 6 s on a connection of 20 kB/s.
fn what_is_small_overtakes_bulk_on_a_slow_connection() {
    let server = start_server();
    let (mut slow, mut source, mut dialler) =
        (narrow(&server), Peer::connect(&server), Peer::connect(&server));
    let bulk = pattern(1, 0, 250_000);
    for _ in 0..4 {
        let (stream, _) = bridge(&mut source, &mut slow);
        source.write(stream, &bulk);
    }
    // Until the connection's rate is known.
    let (begun, mut read) = (Instant::now(), 0);
    while read < 400_000 {
        std::thread::sleep(Duration::from_millis(20));
        // At most 100 kB/s.
        read_some(&mut slow, 2000, &mut read);
        source.pump();
    }
    // A ping, and a dial of somebody else: how much of the bulk comes before each?
    let dialled = dialler.open();
    let request = dialler.request(slow.key);
    let signed = dialler.sign(&request);
    dialler.write_object(dialled, &signed);
    let now = slow.now();
    slow.mux.ping(now);
    slow.transmit();
    let (asked_at, mut pong_after, mut dial_after) = (read, None, None);
    while pong_after.is_none() || dial_after.is_none() {
        assert!(begun.elapsed() < LIMIT, "pong after {pong_after:?} bytes, dial after {dial_after:?}");
        std::thread::sleep(Duration::from_millis(5));
        read_some(&mut slow, 500, &mut read);
        source.pump();
        dialler.pump();
        if slow.events().iter().any(|event| matches!(event, MuxEvent::PingAnswered { .. })) {
            pong_after.get_or_insert(read - asked_at);
        }
        if slow.mux.accept().is_some() {
            dial_after.get_or_insert(read - asked_at);
        }
    }
    println!("{:?}: pong after {pong_after:?} bytes, dial after {dial_after:?}", current());
    // What its kernel holds already, and a little of ours.
    assert!(pong_after.unwrap() < 40_000 && dial_after.unwrap() < 40_000, "{pong_after:?}, {dial_after:?}");
}
