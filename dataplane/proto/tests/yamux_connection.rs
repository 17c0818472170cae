//! `yamux::Connection`: a client and a server that talk over a wire cut anywhere, and single connections against
//! hand-made bytes.
#![allow(clippy::expect_used, reason = "tests")]

use ringwire_proto::yamux::{
    CloseReason, Config, Connection, ConnectionEvent, DeadReason, Flags, Header, HeaderError, INITIAL_WINDOW,
    OpenError, SEND_QUEUE_MAX, StreamError, Violation,
};

const SECOND: u64 = 1_000_000_000;

fn pair() -> (Connection, Connection) {
    (Connection::new(Config::client(), 0), Connection::new(Config::server(), 0))
}

fn events(connection: &mut Connection) -> Vec<ConnectionEvent> {
    std::iter::from_fn(|| connection.poll_event()).collect()
}

fn transmit(connection: &mut Connection, max: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while connection.poll_transmit(&mut out, max) > 0 {}
    out
}

/// Carries bytes both ways in chunks of this size until both sides are quiet.
fn settle(one: &mut Connection, other: &mut Connection, chunk: usize) {
    loop {
        let (forth, back) = (transmit(one, 64), transmit(other, 1 << 20));
        if forth.is_empty() && back.is_empty() {
            return;
        }
        forth.chunks(chunk).for_each(|bytes| other.push(0, bytes));
        back.chunks(chunk).for_each(|bytes| one.push(0, bytes));
    }
}

fn read_all(connection: &mut Connection, id: u32) -> (Vec<u8>, Result<usize, StreamError>) {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 1000]);
    loop {
        match connection.read(id, &mut buffer) {
            Ok(length) if length > 0 => bytes.extend_from_slice(&buffer[..length]),
            end => return (bytes, end),
        }
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| ((index * 31) >> 3) as u8).collect()
}

#[test]
fn a_request_and_its_answer_pass_in_any_chunking() {
    for chunk in [1, 2, 3, 7, 12, 13, 1000] {
        let (mut client, mut server) = pair();
        let id = client.open(0).expect("open");
        assert_eq!(client.write(id, b"request"), Ok(7));
        client.finish(0, id);
        settle(&mut client, &mut server, chunk);
        use ConnectionEvent::{Acked, Finished, Opened, Readable};
        assert_eq!(events(&mut server), [Opened(1), Readable(1), Finished(1)]);
        assert_eq!(server.accept(), Some(1));
        assert_eq!(server.accept(), None);
        assert_eq!(read_all(&mut server, 1), (b"request".to_vec(), Ok(0)));
        assert_eq!(server.write(1, b"answer"), Ok(6));
        server.finish(0, 1);
        settle(&mut client, &mut server, chunk);
        assert_eq!(events(&mut client), [Acked(1), Readable(1), Finished(1)]);
        assert_eq!(read_all(&mut client, 1), (b"answer".to_vec(), Ok(0)));
        for side in [&mut client, &mut server] {
            assert_eq!(side.session().stream_count(), 0);
            assert_eq!(side.read(1, &mut [0]), Err(StreamError::Gone));
            assert_eq!(side.write(1, b"x"), Err(StreamError::Gone));
        }
    }
}

#[test]
fn a_large_transfer_is_bounded_by_credit_and_complete() {
    let (mut client, mut server) = pair();
    let id = client.open(0).expect("open");
    settle(&mut client, &mut server, 4096);
    server.accept().expect("opened");
    let sent = pattern(1_500_000);
    let (mut written, mut received) = (0, Vec::new());
    while received.len() < sent.len() {
        match client.write(id, &sent[written..]) {
            Ok(length) => written += length,
            Err(error) => assert_eq!(error, StreamError::Blocked),
        }
        settle(&mut client, &mut server, 5000);
        assert!(written - received.len() <= INITIAL_WINDOW as usize + SEND_QUEUE_MAX);
        let (bytes, end) = read_all(&mut server, id);
        assert_eq!(end, Err(StreamError::Blocked));
        assert!(bytes.len() <= INITIAL_WINDOW as usize);
        received.extend(bytes);
    }
    assert!(received == sent);
    assert!(events(&mut client).contains(&ConnectionEvent::Writable(id)));
}

#[test]
fn streams_take_turns() {
    let (mut client, mut server) = pair();
    let ids = [client.open(0).expect("open"), client.open(0).expect("open"), client.open(0).expect("open")];
    for id in ids {
        client.write(id, &pattern(100_000)).expect("room");
    }
    let mut out = Vec::new();
    client.poll_transmit(&mut out, 3 * 12 + 3 * (16_384 + 12));
    server.push(0, &out);
    for id in ids {
        assert_eq!(read_all(&mut server, id).0.len(), 16_384);
    }
}

#[test]
fn readable_comes_again_after_the_buffer_was_emptied() {
    let (mut client, mut server) = pair();
    let id = client.open(0).expect("open");
    for _ in 0..2 {
        client.write(id, b"ab").expect("room");
        settle(&mut client, &mut server, 100);
    }
    assert_eq!(events(&mut server), [ConnectionEvent::Opened(1), ConnectionEvent::Readable(1)]);
    server.accept();
    assert_eq!(read_all(&mut server, 1).0, b"abab");
    client.write(id, b"c").expect("room");
    settle(&mut client, &mut server, 100);
    assert_eq!(events(&mut server), [ConnectionEvent::Readable(1)]);
}

#[test]
fn nothing_is_written_behind_a_finish() {
    let (mut client, _) = pair();
    let id = client.open(0).expect("open");
    client.finish(0, id);
    assert_eq!(client.write(id, b"x"), Err(StreamError::Finished));
    assert_eq!(client.write(3, b"x"), Err(StreamError::Gone));
    let out = transmit(&mut client, 100);
    let syn = Header::window_update(1, 0).with_flags(Flags::SYN).encode();
    let fin = Header::window_update(1, 0).with_flags(Flags::FIN).encode();
    assert_eq!(out, [syn, fin].concat(), "SYN first, then FIN");
}

#[test]
fn a_closed_stream_drops_what_arrives_and_is_forgotten_with_the_peers_fin() {
    let (mut client, mut server) = pair();
    let id = client.open(0).expect("open");
    settle(&mut client, &mut server, 100);
    server.accept().expect("opened");
    events(&mut client);
    client.write(id, b"last words").expect("room");
    client.close(0, id);
    let mut sent = 0;
    // More than a window: only credit for the dropped bytes lets it through.
    while sent < 600_000 {
        sent += server.write(id, &pattern(600_000 - sent)).unwrap_or(0);
        settle(&mut client, &mut server, 1000);
    }
    assert_eq!(read_all(&mut server, id), (b"last words".to_vec(), Ok(0)));
    server.finish(0, id);
    settle(&mut client, &mut server, 1000);
    assert_eq!(client.session().stream_count() + server.session().stream_count(), 0);
    assert!(!events(&mut client).contains(&ConnectionEvent::Readable(id)));
    assert_eq!(client.read(id, &mut [0]), Err(StreamError::Gone));
}

#[test]
fn closing_a_stream_gives_credit_for_what_was_not_read() {
    let (mut client, mut server) = pair();
    let id = client.open(0).expect("open");
    client.write(id, &pattern(INITIAL_WINDOW as usize)).expect("room");
    settle(&mut client, &mut server, 4096);
    server.accept().expect("opened");
    settle(&mut client, &mut server, 4096);
    server.close(0, id);
    assert_eq!(server.read(id, &mut [0; 9]), Err(StreamError::Blocked), "dropped");
    settle(&mut client, &mut server, 4096);
    assert_eq!(client.session().stream(id).map(|stream| stream.send_credit()), Some(INITIAL_WINDOW));
}

#[test]
fn a_reset_tells_the_other_side_and_drops_everything() {
    let (mut client, mut server) = pair();
    let id = client.open(0).expect("open");
    client.write(id, b"never read").expect("room");
    settle(&mut client, &mut server, 100);
    events(&mut server);
    client.write(id, b"never sent").expect("room");
    client.reset(id);
    settle(&mut client, &mut server, 100);
    assert_eq!(events(&mut server), [ConnectionEvent::Reset(1)]);
    assert_eq!(server.accept(), None, "it left the backlog");
    assert_eq!(server.read(1, &mut [0; 20]), Err(StreamError::Gone));
}

#[test]
fn an_id_used_again_starts_afresh() {
    let mut server = Connection::new(Config::server(), 0);
    let syn_data_fin = |bytes: &[u8]| {
        let flags = Flags::SYN | Flags::FIN;
        [&Header::data(1, bytes.len() as u32).with_flags(flags).encode()[..], bytes].concat()
    };
    server.push(0, &syn_data_fin(b"old"));
    assert_eq!(server.accept(), Some(1));
    server.finish(0, 1);
    transmit(&mut server, 1000);
    events(&mut server);
    server.push(0, &syn_data_fin(b"new!"));
    use ConnectionEvent::{Finished, Opened, Readable, Reset};
    assert_eq!(events(&mut server), [Reset(1), Opened(1), Finished(1), Readable(1)]);
    assert_eq!(server.accept(), Some(1));
    assert_eq!(read_all(&mut server, 1), (b"new!".to_vec(), Ok(0)));
}

#[test]
fn pings_and_go_away_pass() {
    let (mut client, mut server) = pair();
    assert_eq!(client.ping(0), 0);
    server.go_away(0);
    settle(&mut client, &mut server, 5);
    let answered = ConnectionEvent::PingAnswered { value: 0, rtt_ns: 0 };
    assert_eq!(events(&mut client), [ConnectionEvent::GoAway, answered]);
    assert_eq!(client.open(0), Err(OpenError::PeerGoingAway));
}

#[test]
fn a_violation_ends_the_connection_with_a_go_away() {
    let mut server = Connection::new(Config::server(), 0);
    server.push(0, &Header::window_update(1, 0).with_flags(Flags::SYN).encode());
    server.push(0, &Header::data(1, INITIAL_WINDOW + 1).encode());
    let reason = CloseReason::Violation(Violation::WindowExceeded {
        stream: 1,
        length: INITIAL_WINDOW + 1,
        credit: INITIAL_WINDOW,
    });
    assert_eq!(server.closed(), Some(reason));
    assert_eq!(events(&mut server), [ConnectionEvent::Opened(1), ConnectionEvent::Closed(reason)]);
    assert_eq!(transmit(&mut server, 1000), Header::go_away(1).encode());
    assert_eq!(server.write(1, b"x"), Err(StreamError::Closed));
    assert_eq!(server.read(1, &mut [0]), Err(StreamError::Closed));
    server.push(0, &[9; 100]);
    assert_eq!(events(&mut server), []);
    assert_eq!(server.next_timeout(), None);
}

#[test]
fn an_unreadable_header_ends_the_connection_without_a_go_away() {
    let mut server = Connection::new(Config::server(), 0);
    for byte in [1; 12] {
        server.push(0, &[byte]);
    }
    let reason = CloseReason::Violation(Violation::Header(HeaderError::Version(1)));
    assert_eq!(server.closed(), Some(reason));
    assert!(transmit(&mut server, 1000).is_empty());
}

#[test]
fn a_silent_peer_ends_the_connection() {
    let (mut client, _) = pair();
    client.handle_timeout(30 * SECOND);
    assert_eq!(transmit(&mut client, 100), Header::ping(0).encode());
    client.handle_timeout(40 * SECOND);
    let dead = DeadReason::PingUnanswered { value: 0, silent_ns: 10 * SECOND };
    assert_eq!(events(&mut client), [ConnectionEvent::Closed(CloseReason::Dead(dead))]);
}

#[test]
fn a_peer_that_never_finishes_is_reset_after_the_close_timeout() {
    let (mut client, mut server) = pair();
    let id = client.open(0).expect("open");
    settle(&mut client, &mut server, 100);
    server.accept().expect("opened");
    server.finish(0, id);
    settle(&mut client, &mut server, 100);
    events(&mut server);
    // Keeps the keepalive of both sides content.
    server.handle_timeout(29 * SECOND);
    assert_eq!(server.session().stream_count(), 1);
    server.handle_timeout(30 * SECOND);
    assert_eq!(events(&mut server), [ConnectionEvent::Reset(id)]);
    let out = transmit(&mut server, 100);
    client.push(30 * SECOND, &out);
    assert!(events(&mut client).contains(&ConnectionEvent::Reset(id)));
}

#[test]
fn small_transmit_limits_are_kept() {
    for max in 0..40 {
        let (mut client, mut server) = pair();
        let id = client.open(0).expect("open");
        client.write(id, b"some bytes that take several frames").expect("room");
        client.finish(0, id);
        let mut out = Vec::new();
        loop {
            let before = out.len();
            let added = client.poll_transmit(&mut out, max);
            assert!(added <= max && out.len() == before + added);
            if added == 0 {
                break;
            }
        }
        server.push(0, &out);
        let expected = if max > 12 { &b"some bytes that take several frames"[..] } else { b"" };
        assert_eq!(read_all(&mut server, 1).0, expected, "max {max}");
    }
}
