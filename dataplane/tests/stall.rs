//! Slow readers live, and those who take nothing do not.
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
use support::drivers::on_each_driver;
use support::{LIMIT, Peer, bridge, pattern, start_server};

on_each_driver!(a_reader_of_8000_bytes_a_second_outlives_one_that_takes_nothing);

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
