//! The rules of dmsg-wire 6, one test each, on a single smux `Session` that plays against hand-made frames.
#![allow(clippy::expect_used, reason = "tests")]

use ringwire_proto::smux::{
    Config, Control, DeadReason, Header, INITIAL_WINDOW, Incoming, OpenError, Payload, Session, Stream,
    StreamFault, Update, Version, Violation,
};

const SECOND: u64 = 1_000_000_000;
const V2: Version = Version::V2;

fn server() -> Session<u32> {
    Session::new(Config::server(V2), 0)
}

fn feed(session: &mut Session<u32>, header: Header) -> Incoming<u32> {
    session.handle_header(0, &header).expect("a legal header")
}

fn update(session: &mut Session<u32>, stream: u32, consumed: u32, window: u32) -> Incoming<u32> {
    session.handle_update(0, stream, Update { consumed, window })
}

fn drain(session: &mut Session<u32>) -> Vec<Control> {
    std::iter::from_fn(|| session.poll_control()).collect()
}

/// A session with stream 3 of the peer accepted under tag 7.
fn accepted() -> Session<u32> {
    let mut session = server();
    assert!(feed(&mut session, Header::syn(V2, 3)).opened);
    session.accept(3, 7);
    session
}

#[test]
fn ids_count_from_three_and_from_two() {
    for (config, ids) in [(Config::client(V2), [3, 5, 7]), (Config::server(V2), [2, 4, 6])] {
        let mut session = Session::new(config, 0);
        for id in ids {
            assert_eq!(session.open_with_header(0_u32), Ok((id, Header::syn(V2, id))));
        }
    }
}

#[test]
fn own_ids_skip_what_the_peer_took() {
    let mut session = server();
    feed(&mut session, Header::syn(V2, 2));
    assert_eq!(session.open(0), Ok(4));
}

#[test]
fn a_syn_for_a_known_id_is_ignored() {
    let mut session = accepted();
    let incoming = feed(&mut session, Header::syn(V2, 3));
    assert!(!incoming.opened);
    assert_eq!(session.stream_count(), 1);
}

#[test]
fn the_first_window_is_262144_and_frames_are_bounded() {
    let mut session = accepted();
    let mut sent = 0;
    loop {
        let granted = session.reserve(3, u16::MAX);
        if granted == 0 {
            break;
        }
        assert!(granted <= 32_768);
        sent += u32::from(granted);
    }
    assert_eq!(sent, INITIAL_WINDOW);
    let incoming = update(&mut session, 3, 100_000, 65_536);
    assert_eq!((incoming.credit, session.reserve(3, 1)), (0, 0), "162144 in flight, 65536 allowed");
    let incoming = update(&mut session, 3, 262_100, 65_536);
    assert_eq!((incoming.credit, incoming.tag), (65_492, Some(7)));
    assert_eq!(session.reserve(3, 5), 5);
}

#[test]
fn counts_wrap_at_32_bits() {
    let mut session = accepted();
    update(&mut session, 3, 0, u32::MAX >> 1);
    let mut sent = 0_u64;
    while sent < 1 << 33 {
        sent += u64::from(session.reserve(3, 32_768));
        assert_eq!(update(&mut session, 3, sent as u32, u32::MAX >> 1).fault, None);
    }
    let credit = session.stream(3).map(|stream| stream.send_credit(V2));
    assert_eq!(credit, Some(u32::MAX >> 1));
}

#[test]
fn a_peer_that_read_more_than_was_sent_breaks_its_stream_only() {
    let mut session = accepted();
    assert_eq!(session.reserve(3, 10), 10);
    let fault = StreamFault::ConsumedUnsent { stream: 3, beyond: 1 };
    assert_eq!(update(&mut session, 3, 11, 65_536).fault, Some(fault));
    assert_eq!(update(&mut session, 3, 12, 65_536).fault, None, "told once");
    assert_eq!(session.reserve(3, 10), 0);
    assert!(session.stream(3).is_some_and(Stream::is_broken));
    assert!(feed(&mut session, Header::syn(V2, 5)).opened, "the session goes on");
}

#[test]
fn more_than_the_window_breaks_its_stream_only() {
    let mut session = accepted();
    for _ in 0..4 {
        assert_eq!(feed(&mut session, Header::push(V2, 3, 65_535)).payload, Payload::Deliver(65_535));
    }
    // 262,140 of 262,144.
    let fault = StreamFault::WindowExceeded { stream: 3, length: 5, credit: 4 };
    let incoming = feed(&mut session, Header::push(V2, 3, 5));
    assert_eq!((incoming.fault, incoming.payload), (Some(fault), Payload::Discard(5)));
    let incoming = feed(&mut session, Header::push(V2, 3, 1));
    assert_eq!((incoming.fault, incoming.payload), (None, Payload::Discard(1)), "told once");
    assert!(feed(&mut session, Header::syn(V2, 5)).opened, "the session goes on");
}

#[test]
fn a_window_that_was_announced_is_never_taken_back() {
    // 65,536 is announced with the first read, less than the 262,144 every stream starts with.
    let mut session = accepted();
    feed(&mut session, Header::push(V2, 3, 60_000));
    session.consumed(3, 1);
    assert_eq!(drain(&mut session).len(), 1);
    for length in [65_535, 65_535, 65_535, 5539] {
        assert_eq!(feed(&mut session, Header::push(V2, 3, length)).payload, Payload::Deliver(length));
    }
    session.consumed(3, 262_143);
    assert_eq!(
        feed(&mut session, Header::push(V2, 3, 1)).fault.map(|_| ()),
        Some(()),
        "the update is not sent yet"
    );

    let mut session = accepted();
    feed(&mut session, Header::push(V2, 3, 60_000));
    session.consumed(3, 60_000);
    drain(&mut session);
    let credit = session.stream(3).map(|stream| stream.receive_credit(V2));
    assert_eq!(credit, Some(202_144));
}

#[test]
fn an_opened_stream_sends_nothing_before_its_syn() {
    let mut session = server();
    assert_eq!(session.open(1), Ok(2));
    assert_eq!(session.reserve(2, 5), 0);
    assert_eq!(drain(&mut session), [Control::Header(Header::syn(V2, 2))]);
    assert_eq!(session.reserve(2, 5), 5);
    // Ended before its SYN was sent: the peer never hears of it.
    for by_reset in [false, true] {
        let id = session.open(2).expect("room");
        if by_reset {
            session.reset(id);
        } else {
            assert_eq!(session.finish(id), None);
        }
        assert!(session.stream(id).is_none());
        assert_eq!(drain(&mut session), []);
    }
}

#[test]
fn a_reset_is_a_fin_and_the_end() {
    let mut session = accepted();
    feed(&mut session, Header::push(V2, 3, 10));
    assert_eq!(session.inbound_count(), 1);
    assert_eq!(session.reset(3), Some(7));
    assert_eq!((session.stream_count(), session.inbound_count()), (0, 0));
    assert_eq!(drain(&mut session), [Control::Header(Header::fin(V2, 3))]);
    assert_eq!(feed(&mut session, Header::push(V2, 3, 5)).payload, Payload::Discard(5));
    // With our FIN out already there is nothing to say.
    let mut session = accepted();
    session.finish(3);
    session.reset(3);
    assert_eq!(drain(&mut session), []);
}

#[test]
fn a_peer_that_does_not_read_its_fins_is_closed() {
    let mut session: Session<u32> = Session::new(Config { pending_finishes_max: 2, ..Config::server(V2) }, 0);
    for id in [3, 5] {
        feed(&mut session, Header::syn(V2, id));
        session.accept(id, 0);
        session.reset(id);
    }
    let more = session.handle_header(0, &Header::syn(V2, 7));
    assert_eq!(more, Err(Violation::FinishesUnread { pending: 2 }));
}

#[test]
fn updates_come_on_the_first_read_and_then_every_half_window() {
    let mut session = accepted();
    feed(&mut session, Header::push(V2, 3, 40_000));
    session.consumed(3, 1);
    let told = |consumed| Control::Update { stream: 3, update: Update { consumed, window: 65_536 } };
    assert_eq!(drain(&mut session), [told(1)]);
    session.consumed(3, 32_767);
    assert_eq!(drain(&mut session), []);
    session.consumed(3, 1);
    session.consumed(3, 1);
    assert_eq!(drain(&mut session), [told(32_770)], "one update however often");
}

#[test]
fn version_1_sends_no_updates_and_has_no_credit() {
    let mut session: Session<u32> = Session::new(Config::server(Version::V1), 0);
    feed(&mut session, Header::syn(Version::V1, 3));
    session.accept(3, 0);
    feed(&mut session, Header::push(Version::V1, 3, 60_000));
    session.consumed(3, 60_000);
    assert_eq!(drain(&mut session), []);
    for _ in 0..100 {
        assert_eq!(session.reserve(3, u16::MAX), 32_768);
    }
}

#[test]
fn reading_stops_at_a_full_buffer_and_at_a_full_backlog() {
    let mut session: Session<u32> = Session::new(Config::server(Version::V1), 0);
    feed(&mut session, Header::syn(Version::V1, 3));
    session.accept(3, 0);
    for _ in 0..16 {
        assert!(session.may_receive());
        feed(&mut session, Header::push(Version::V1, 3, 65_535));
    }
    assert!(session.may_receive(), "1048560 bytes");
    feed(&mut session, Header::push(Version::V1, 3, 16));
    assert!(!session.may_receive());
    session.consumed(3, 1);
    assert!(session.may_receive());

    let mut session: Session<u32> = Session::new(Config { accept_backlog: 2, ..Config::server(V2) }, 0);
    feed(&mut session, Header::syn(V2, 3));
    feed(&mut session, Header::syn(V2, 5));
    assert!(!session.may_receive());
    let reading_on = session.handle_header(0, &Header::syn(V2, 7));
    assert_eq!(reading_on, Err(Violation::BacklogFull { waiting: 2 }));
    session.accept(5, 0);
    assert!(session.may_receive());
}

#[test]
fn streams_are_bounded_on_both_sides() {
    let mut session: Session<u32> = Session::new(Config { streams_max: 2, ..Config::server(V2) }, 0);
    feed(&mut session, Header::syn(V2, 3));
    session.open(0).expect("room");
    assert_eq!(session.open(0), Err(OpenError::TooManyStreams { open: 2 }));
    let more = session.handle_header(0, &Header::syn(V2, 5));
    assert_eq!(more, Err(Violation::TooManyStreams { open: 2 }));
}

#[test]
fn data_for_nobody_is_dropped() {
    let mut session = accepted();
    assert_eq!(feed(&mut session, Header::push(V2, 9, 10)).payload, Payload::Discard(10));
    assert_eq!(feed(&mut session, Header::push(V2, 3, 0)).payload, Payload::None);
    feed(&mut session, Header::fin(V2, 3));
    assert_eq!(feed(&mut session, Header::push(V2, 3, 10)).payload, Payload::Discard(10));
    assert_eq!(update(&mut session, 9, 1, 1).tag, None);
    assert!(!feed(&mut session, Header::fin(V2, 9)).finished);
}

#[test]
fn a_stream_ends_when_both_sides_finished() {
    for peer_first in [true, false] {
        let mut session = accepted();
        feed(&mut session, Header::push(V2, 3, 10));
        if peer_first {
            let incoming = feed(&mut session, Header::fin(V2, 3));
            assert!(incoming.finished && !incoming.closed);
            assert!(!feed(&mut session, Header::fin(V2, 3)).finished, "a second FIN is ignored");
            assert_eq!(session.finish(3), Some(Header::fin(V2, 3)));
        } else {
            assert_eq!(session.finish(3), Some(Header::fin(V2, 3)));
            assert_eq!((session.finish(3), session.reserve(3, 5)), (None, 0));
            let incoming = feed(&mut session, Header::fin(V2, 3));
            assert!(incoming.finished && incoming.closed);
            assert_eq!(incoming.tag, Some(7));
        }
        assert_eq!(session.stream_count(), 0);
    }
}

#[test]
fn no_update_is_due_behind_the_peers_fin() {
    let mut session = accepted();
    feed(&mut session, Header::push(V2, 3, 60_000));
    feed(&mut session, Header::fin(V2, 3));
    session.consumed(3, 60_000);
    assert_eq!(drain(&mut session), []);
}

#[test]
fn forgetting_a_stream_gives_its_buffer_back() {
    let mut session: Session<u32> = Session::new(Config { receive_buffer_max: 50, ..Config::server(V2) }, 0);
    feed(&mut session, Header::syn(V2, 3));
    session.accept(3, 4);
    feed(&mut session, Header::push(V2, 3, 60));
    session.consumed(3, 1);
    assert!(!session.may_receive());
    assert_eq!(session.forget(3), Some(4));
    assert!(session.may_receive());
    assert_eq!(drain(&mut session), [], "its update went with it");
    assert_eq!(feed(&mut session, Header::push(V2, 3, 5)).payload, Payload::Discard(5));
}

#[test]
fn updates_of_other_streams_outlive_a_forgotten_one() {
    let mut session = accepted();
    feed(&mut session, Header::syn(V2, 5));
    session.accept(5, 0);
    for id in [3, 5] {
        feed(&mut session, Header::push(V2, id, 9));
        session.consumed(id, 9);
    }
    session.forget(3);
    let told = Control::Update { stream: 5, update: Update { consumed: 9, window: 65_536 } };
    assert_eq!(drain(&mut session), [told]);
}

#[test]
fn nop_every_interval_and_death_by_silence() {
    let mut session = server();
    for round in 1..=2 {
        assert_eq!(session.next_timeout(), Some(round * 10 * SECOND));
        assert_eq!(session.handle_timeout(round * 10 * SECOND), None);
        assert_eq!(drain(&mut session), [Control::Nop(V2)]);
    }
    session.handle_header(25 * SECOND, &Header::nop(V2)).expect("a sign of life");
    assert_eq!(session.handle_timeout(54 * SECOND), None);
    let dead = DeadReason { silent_ns: 30 * SECOND };
    assert_eq!(session.handle_timeout(55 * SECOND), Some(dead));
    assert_eq!((session.handle_timeout(99 * SECOND), session.next_timeout()), (None, None));
}

#[test]
fn a_frame_in_pieces_is_no_silence() {
    let mut session = server();
    session.handle_bytes_received(20 * SECOND);
    assert_eq!(session.handle_timeout(49 * SECOND), None);
    assert_eq!(session.handle_timeout(50 * SECOND), Some(DeadReason { silent_ns: 30 * SECOND }));
}

#[test]
fn what_is_not_read_is_no_silence() {
    let mut session: Session<u32> = Session::new(Config { accept_backlog: 1, ..Config::server(V2) }, 0);
    feed(&mut session, Header::syn(V2, 3));
    assert_eq!(session.handle_timeout(500 * SECOND), None);
    session.accept(3, 0);
    assert_eq!(session.handle_timeout(529 * SECOND), None);
    assert_eq!(session.handle_timeout(530 * SECOND), Some(DeadReason { silent_ns: 30 * SECOND }));
}
