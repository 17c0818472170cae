//! The relays and the generator together, on real sockets and with real processes, small and unpinned.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests: a failure is the test's")]

use ringwire_benches::frames::Shape;
use ringwire_benches::generator::{Generator, Load};
use ringwire_benches::link::{Link, Route};
use ringwire_benches::measure::{Settings, measure, verify};
use ringwire_benches::relay::{Relay, haproxy, loopback_listener};
use ringwire_benches::workload::{ALL, Bulk};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn settings() -> Settings {
    Settings {
        program: env!("CARGO_BIN_EXE_ringwire-benches").into(),
        relay_core: None,
        generator_core: None,
        warmup: Duration::from_millis(20),
        window: Duration::from_millis(100),
    }
}

fn moves_verified_data(relay: Relay) {
    for (shape, pairs, streams) in [(Shape::Bulk64k, 1, 8), (Shape::Bulk64k, 4, 1), (Shape::GoClient, 3, 2)] {
        let bulk = Bulk { shape, pairs, streams, bytes_per_second: None };
        let outcome = verify(&settings(), &bulk, relay, 4 * MIB).unwrap();
        assert!(outcome.bytes >= 4 * MIB);
        assert_eq!((outcome.lost_bytes, outcome.faults), (0, vec![]), "{} {bulk:?}", relay.name());
    }
}

fn measures_every_load(relay: Relay) {
    for workload in &ALL {
        let mut windows = [100, 1_000, 10_000].into_iter().map(Duration::from_millis);
        // On a machine that is busy elsewhere a window may pass without a turn of all the processes: then a longer one.
        let (found, name) = loop {
            let window = windows.next().expect("something happens in ten seconds");
            let found = measure(&Settings { window, ..settings() }, workload, relay).unwrap();
            let name = format!("{} {}: {found:?}", workload.name, relay.name());
            assert_eq!((found.lost_bytes, &found.faults, &found.warnings), (0, &vec![], &vec![]), "{name}");
            let bulk = workload.bulk.is_none() || found.received_bytes > 0;
            let ping = found.ping.is_none_or(|ping| ping.count > 0);
            if bulk && ping && found.relay_busy > 0.0 {
                break (found, name);
            }
        };
        assert_eq!(found.relay_cpu_s_per_gib.is_some(), workload.bulk.is_some(), "{name}");
        assert_eq!(found.ping.is_some(), workload.name.starts_with("ping"), "{name}");
        assert_eq!(found.company_share.is_some(), relay.is_ours(), "{name}");
        assert!(found.ping.is_none_or(|ping| ping.p50_us > 0.0), "{name}");
    }
}

#[test]
fn tokio_relay_moves_verified_data() {
    moves_verified_data(Relay::Tokio64k);
}

#[test]
fn splice_relay_moves_verified_data() {
    moves_verified_data(Relay::Splice);
}

#[test]
fn tokio_uring_relay_moves_verified_data() {
    moves_verified_data(Relay::TokioUring);
}

#[test]
fn epoll_relay_moves_verified_data() {
    moves_verified_data(Relay::Epoll);
}

/// HAProxy is not ours to install: where it is absent, the relay has to say so and how to get it.
#[test]
fn haproxy_moves_verified_data_where_it_is_installed() {
    if haproxy::version().is_some() {
        return moves_verified_data(Relay::Haproxy);
    }
    let bulk = Bulk { shape: Shape::Bulk64k, pairs: 1, streams: 1, bytes_per_second: None };
    let error = format!("{:#}", verify(&settings(), &bulk, Relay::Haproxy, MIB).unwrap_err());
    assert!(error.contains("apt install haproxy"), "{error}");
}

#[test]
fn our_server_moves_verified_data() {
    moves_verified_data(Relay::Ringwire);
}

#[test]
fn our_server_moves_verified_data_on_its_poll_driver() {
    moves_verified_data(Relay::RingwirePoll);
}

#[test]
fn two_workers_move_verified_data_where_they_are_asked_to() {
    for (relay, crosses) in [(Relay::TwoTogether, false), (Relay::TwoApart, true)] {
        moves_verified_data(relay);
        let measured = measure(&settings(), &ALL[0], relay).unwrap();
        let lent = measured.counters["lent_bytes_total"];
        assert_eq!(lent > 0, crosses, "{relay:?}: {lent} bytes were lent to the other worker");
    }
}

#[test]
fn every_load_runs_through_a_reference_relay() {
    measures_every_load(Relay::Tokio256k);
}

#[test]
fn every_load_runs_through_our_server() {
    measures_every_load(Relay::Ringwire);
}

/// Sends a little through a relay of this test that treats the bytes of the first connection with `spoil`.
fn delivery_through(
    verified: bool,
    patience: Duration,
    spoil: impl FnMut(&mut Vec<u8>) + Send + 'static,
) -> ringwire_benches::generator::Delivery {
    let (relay, sink) = (loopback_listener().unwrap(), loopback_listener().unwrap());
    let (relay_address, sink_address) = (relay.local_addr().unwrap(), sink.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut spoil = spoil;
        let mut input = relay.accept().unwrap().0;
        let mut output = TcpStream::connect(sink_address).unwrap();
        let mut buffer = vec![0; 1 << 16];
        while let Ok(len @ 1..) = input.read(&mut buffer) {
            let mut bytes = buffer[..len].to_vec();
            spoil(&mut bytes);
            if output.write_all(&bytes).is_err() {
                return;
            }
        }
    });
    // The connection to the sink is accepted within, so the relay's thread must be running already.
    let link = Link::open(&Route::Plain { relay: relay_address, sink: &sink }, 2, false).unwrap();
    let load = Load { shape: Shape::GoClient, bytes_per_second: None, verified };
    let mut generator = Generator::new(vec![link], load).unwrap();
    generator.run_bytes(MIB, Duration::from_secs(60)).unwrap();
    generator.finish(patience).unwrap()
}

#[test]
fn an_honest_relay_loses_nothing() {
    for verified in [false, true] {
        let delivery = delivery_through(verified, Duration::from_secs(60), |_| {});
        assert!(delivery.payload_sent >= MIB);
        assert_eq!((delivery.lost, delivery.faults), (0, vec![]));
    }
}

#[test]
fn a_lost_byte_is_noticed_without_looking_at_content() {
    let mut left = 1;
    // All of it passes: what is lost never comes.
    let delivery = delivery_through(false, Duration::from_secs(5), move |bytes| {
        if left > 0 {
            left -= 1;
            bytes.pop();
        }
    });
    assert_eq!((delivery.lost, delivery.faults.len()), (1, 1));
}

#[test]
fn a_changed_byte_is_noticed_in_a_verified_round() {
    let mut passed = 0;
    let delivery = delivery_through(true, Duration::from_secs(60), move |bytes| {
        // Somewhere in a payload: frames of 4108 bytes with 12 of header.
        let at = 10 * 4108 + 2000;
        if (passed..passed + bytes.len()).contains(&at) {
            bytes[at - passed] ^= 1;
        }
        passed += bytes.len();
    });
    assert_eq!(delivery.lost, 0);
    assert!(delivery.faults[0].contains("wrong content"), "{:?}", delivery.faults);
}
