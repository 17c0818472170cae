//! Two smux connections against each other, bytes cut anywhere (dmsg-wire 6).
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use ringwire_proto::smux::{
    CloseReason, Config, Connection, ConnectionEvent, DeadReason, Header, HeaderError, StreamFault, Update,
    Version, Violation,
};
use ringwire_proto::yamux::StreamError;

const SECOND: u64 = 1_000_000_000;

struct Pair {
    client: Connection,
    server: Connection,
}

impl Pair {
    fn new(version: Version) -> Self {
        Self {
            client: Connection::new(Config::client(version), 0),
            server: Connection::new(Config::server(version), 0),
        }
    }

    /// Carries bytes both ways until nothing moves, `step` at a time, while the receiver takes them.
    fn settle(&mut self, step: usize) {
        while carry(&mut self.client, &mut self.server, step)
            + carry(&mut self.server, &mut self.client, step)
            > 0
        {}
    }
}

/// Carries what `from` has for `to`; returns how much that was.
fn carry(from: &mut Connection, to: &mut Connection, step: usize) -> usize {
    let (mut out, mut moved) = (Vec::new(), 0);
    while to.may_receive() && from.poll_transmit(&mut out, 20_000) > 0 {
        moved += out.len();
        for piece in out.chunks(step) {
            to.push(0, piece);
        }
        out.clear();
    }
    moved
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn bulk_crosses_both_ways_in_either_version_and_any_cut() {
    for version in [Version::V1, Version::V2] {
        for step in [1, 7, 4096] {
            let mut pair = Pair::new(version);
            let on_client = pair.client.open().unwrap();
            pair.settle(step);
            let on_server = pair.server.accept().unwrap();
            let sent = bytes(400_000);
            let (mut forth, mut back) = (0, 0);
            let (mut at_server, mut at_client) = (Vec::new(), Vec::new());
            while at_server.len() < sent.len() || at_client.len() < sent.len() {
                forth += pair.client.write(on_client, &sent[forth..]).unwrap_or(0);
                back += pair.server.write(on_server, &sent[back..]).unwrap_or(0);
                pair.settle(step);
                let mut buffer = [0; 10_000];
                if let Ok(len) = pair.server.read(on_server, &mut buffer) {
                    at_server.extend_from_slice(&buffer[..len]);
                }
                if let Ok(len) = pair.client.read(on_client, &mut buffer) {
                    at_client.extend_from_slice(&buffer[..len]);
                }
            }
            assert!(at_server == sent && at_client == sent);
            pair.client.finish(on_client);
            pair.settle(step);
            assert_eq!(pair.server.read(on_server, &mut [0; 10]), Ok(0));
            pair.server.finish(on_server);
            pair.settle(step);
            assert_eq!(pair.client.read(on_client, &mut [0; 10]), Ok(0));
            assert_eq!((pair.client.session().stream_count(), pair.server.session().stream_count()), (0, 0));
            assert_eq!(pair.client.read(on_client, &mut [0; 10]), Err(StreamError::Gone));
        }
    }
}

#[test]
fn an_unread_stream_stops_at_its_window_and_in_version_1_the_connection() {
    for (version, at_most) in [(Version::V2, 262_144), (Version::V1, 1_048_576 + 20_000)] {
        let mut pair = Pair::new(version);
        let stream = pair.client.open().unwrap();
        pair.settle(4096);
        let other = pair.server.accept().unwrap();
        let mut written = 0;
        for _ in 0..20 {
            written += pair.client.write(stream, &vec![5; 200_000]).unwrap_or(0);
            pair.settle(4096);
        }
        let (mut got, mut buffer) = (0, vec![0; 2 << 20]);
        while let Ok(len) = pair.server.read(other, &mut buffer) {
            got += len;
        }
        assert!(got <= at_most && got + 262_144 >= at_most, "{version:?}: {got} of {written}");
        pair.settle(4096);
        assert!(pair.server.read(other, &mut buffer).is_ok(), "and then it goes on");
    }
}

#[test]
fn a_closed_stream_drops_what_still_comes_and_is_forgotten() {
    let mut pair = Pair::new(Version::V2);
    let stream = pair.client.open().unwrap();
    pair.client.write(stream, b"hello").unwrap();
    pair.settle(4096);
    let other = pair.server.accept().unwrap();
    pair.server.write(other, &bytes(100_000)).unwrap();
    pair.client.close(stream);
    pair.settle(4096);
    assert_eq!(pair.server.read(other, &mut [0; 5]), Ok(5));
    assert_eq!(pair.server.read(other, &mut [0; 5]), Ok(0));
    pair.server.finish(other);
    pair.settle(4096);
    assert_eq!((pair.client.session().stream_count(), pair.server.session().stream_count()), (0, 0));
}

#[test]
fn a_reset_looks_like_an_end_to_the_peer() {
    let mut pair = Pair::new(Version::V2);
    let stream = pair.client.open().unwrap();
    pair.settle(4096);
    let other = pair.server.accept().unwrap();
    pair.client.write(stream, b"never sent").unwrap();
    pair.client.reset(stream);
    pair.settle(4096);
    assert_eq!(pair.server.read(other, &mut [0; 5]), Ok(0));
    assert_eq!(pair.client.read(stream, &mut [0; 5]), Err(StreamError::Gone));
}

#[test]
fn a_broken_stream_is_told_and_gone_and_the_session_goes_on() {
    let mut pair = Pair::new(Version::V2);
    let stream = pair.client.open().unwrap();
    pair.settle(4096);
    let mut frame = Header::update(stream).encode().to_vec();
    frame.extend_from_slice(&Update { consumed: 9, window: 1 }.encode());
    pair.client.push(0, &frame);
    let fault = StreamFault::ConsumedUnsent { stream, beyond: 9 };
    assert_eq!(pair.client.poll_event(), Some(ConnectionEvent::Broken(stream, fault)));
    pair.settle(4096);
    let other = pair.server.accept().unwrap();
    assert_eq!(pair.server.read(other, &mut [0; 5]), Ok(0));
    assert!(pair.client.open().is_ok());
}

#[test]
fn another_version_and_silence_end_the_connection() {
    let mut client = Connection::new(Config::client(Version::V2), 0);
    client.push(0, &[1; 8]);
    let reason = CloseReason::Violation(Violation::Header(HeaderError::Version(1)));
    assert_eq!(client.poll_event(), Some(ConnectionEvent::Closed(reason)));
    assert_eq!((client.closed(), client.next_timeout()), (Some(reason), None));

    let mut client = Connection::new(Config::client(Version::V2), 0);
    client.handle_timeout(10 * SECOND);
    let mut out = Vec::new();
    client.poll_transmit(&mut out, 100);
    assert_eq!(out, Header::nop(Version::V2).encode());
    client.handle_timeout(30 * SECOND);
    assert_eq!(client.closed(), Some(CloseReason::Dead(DeadReason { silent_ns: 30 * SECOND })));
}
