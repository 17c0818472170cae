//! The rules of dmsg-wire 5, one test each, on a single `Session` that plays against hand-made headers.
#![allow(clippy::expect_used, reason = "tests")]

use ringwire_proto::yamux::{
    Config, DeadReason, Event, Flags, GO_AWAY_INTERNAL_ERROR, GO_AWAY_NORMAL, GO_AWAY_PROTOCOL_ERROR, Header,
    INITIAL_WINDOW, Incoming, OpenError, Payload, Role, Session, Stream, Timeout, UPDATE_THRESHOLD,
    Violation,
};

const SECOND: u64 = 1_000_000_000;

fn server() -> Session<u32> {
    Session::new(Config::server(), 0)
}

fn client() -> Session<u32> {
    Session::new(Config::client(), 0)
}

fn syn(id: u32) -> Header {
    Header::window_update(id, 0).with_flags(Flags::SYN)
}

fn ack(id: u32) -> Header {
    Header::window_update(id, 0).with_flags(Flags::ACK)
}

fn fin(id: u32) -> Header {
    Header::window_update(id, 0).with_flags(Flags::FIN)
}

fn rst(id: u32) -> Header {
    Header::window_update(id, 0).with_flags(Flags::RST)
}

fn feed(session: &mut Session<u32>, header: Header) -> Incoming<u32> {
    session.handle_header(0, &header).expect("a legal header")
}

fn drain(session: &mut Session<u32>) -> Vec<Header> {
    std::iter::from_fn(|| session.poll_control()).collect()
}

/// A session with stream 1 of the peer accepted under tag 7.
fn accepted() -> Session<u32> {
    let mut session = server();
    assert!(feed(&mut session, syn(1)).opened);
    session.accept(1, 7);
    assert_eq!(drain(&mut session), [ack(1)]);
    session
}

// Opening and accepting (5.3).

#[test]
fn ids_are_odd_for_clients_and_even_for_servers() {
    let (mut client, mut server) = (client(), server());
    assert_eq!((client.open(0, 0), client.open(0, 0)), (Ok(1), Ok(3)));
    assert_eq!((server.open(0, 0), server.open(0, 0)), (Ok(2), Ok(4)));
    assert_eq!(drain(&mut client), [syn(1), syn(3)]);
    assert_eq!(drain(&mut server), [syn(2), syn(4)]);
}

#[test]
fn the_opener_sends_before_the_ack_and_not_before_its_syn() {
    let mut session = client();
    let id = session.open(0, 0).expect("open");
    assert_eq!(session.reserve(id, 10), 0, "the SYN is still queued");
    assert_eq!(drain(&mut session), [syn(1)]);
    assert_eq!(session.reserve(id, 10), 10);
    let (id, header) = session.open_with_header(0, 0).expect("open");
    assert_eq!(header, syn(3));
    assert_eq!(session.reserve(id, u32::MAX), INITIAL_WINDOW);
    assert_eq!(drain(&mut session), []);
}

#[test]
fn nothing_is_sent_on_a_stream_that_was_not_accepted() {
    let mut session = server();
    feed(&mut session, syn(1));
    assert_eq!(session.reserve(1, 5), 0);
    session.accept(1, 0);
    assert_eq!(session.reserve(1, 5), 5);
}

#[test]
fn a_data_frame_may_open_a_stream_and_even_finish_it() {
    let mut session = server();
    let incoming = feed(&mut session, Header::data(5, 9).with_flags(Flags::SYN | Flags::FIN));
    assert!(incoming.opened && incoming.finished && !incoming.closed);
    assert_eq!((incoming.payload, incoming.tag), (Payload::Deliver(9), None));
}

#[test]
fn the_ack_may_ride_on_data() {
    let mut session = client();
    session.open(0, 4).expect("open");
    let incoming = feed(&mut session, Header::data(1, 3).with_flags(Flags::ACK));
    assert!(incoming.acked);
    assert_eq!((incoming.payload, incoming.tag), (Payload::Deliver(3), Some(4)));
    assert!(!feed(&mut session, ack(1)).acked, "told once");
}

#[test]
fn own_unacknowledged_streams_are_bounded() {
    let mut session: Session<u32> = Session::new(Config { open_backlog: 2, ..Config::client() }, 0);
    assert_eq!((session.open(0, 0), session.open(0, 0)), (Ok(1), Ok(3)));
    assert_eq!(session.open(0, 0), Err(OpenError::BacklogFull { waiting: 2 }));
    assert_eq!(session.may_open(), Err(OpenError::BacklogFull { waiting: 2 }));
    feed(&mut session, ack(3));
    assert_eq!(session.open(0, 0), Ok(5));
    assert_eq!(session.reset(1), Some(0));
    assert_eq!(session.open(0, 0), Ok(7), "a reset stream waits for nothing");
}

#[test]
fn own_ids_skip_what_the_peer_took() {
    let mut session = server();
    feed(&mut session, syn(2));
    feed(&mut session, syn(4));
    assert_eq!(session.open(0, 0), Ok(6));
}

#[test]
fn a_syn_for_an_id_in_use_is_a_protocol_error() {
    let mut session = accepted();
    let violation = session.handle_header(0, &syn(1)).expect_err("in use");
    assert_eq!(violation, Violation::StreamInUse { stream: 1 });
    assert_eq!(violation.go_away(), Some(Header::go_away(GO_AWAY_PROTOCOL_ERROR)));
    assert_eq!(session.handle_header(0, &syn(0)), Err(Violation::StreamZero));
}

#[test]
fn a_reset_syn_opens_nothing() {
    let mut session = server();
    let incoming = feed(&mut session, Header::data(1, 4).with_flags(Flags::SYN | Flags::RST));
    assert!(!incoming.opened && !incoming.reset);
    assert_eq!(incoming.payload, Payload::Discard(4));
    assert_eq!((session.stream_count(), drain(&mut session)), (0, vec![]));
}

#[test]
fn streams_beyond_the_limits_are_refused_and_their_data_dropped() {
    let mut session: Session<u32> = Session::new(Config { streams_max: 2, ..Config::server() }, 0);
    for id in [1, 3] {
        assert!(feed(&mut session, syn(id)).opened);
        session.accept(id, id);
    }
    drain(&mut session);
    assert!(!feed(&mut session, syn(5)).opened);
    assert_eq!(feed(&mut session, Header::data(5, 100)).payload, Payload::Discard(100));
    assert_eq!(feed(&mut session, fin(5)), feed(&mut session, fin(5)), "ignored however often");
    assert_eq!(drain(&mut session), [rst(5)]);
    assert_eq!(session.reset(1), Some(1));
    assert!(feed(&mut session, syn(7)).opened, "room again");
}

#[test]
fn after_our_go_away_streams_are_refused_and_we_may_still_open() {
    let mut session = server();
    session.go_away(GO_AWAY_NORMAL);
    assert_eq!(drain(&mut session), [Header::go_away(GO_AWAY_NORMAL)]);
    assert!(!feed(&mut session, syn(1)).opened);
    assert_eq!(drain(&mut session), [rst(1)]);
    assert_eq!(session.open(0, 0), Ok(2));
}

// Data and credit (5.4).

#[test]
fn credit_is_spent_to_the_last_byte_and_grows_by_updates() {
    let mut session = accepted();
    assert_eq!(session.reserve(1, 200_000), 200_000);
    assert_eq!(session.reserve(1, 200_000), 62_144);
    assert_eq!(session.reserve(1, 1), 0);
    let incoming = feed(&mut session, Header::window_update(1, 9));
    assert_eq!((incoming.credit, incoming.tag, incoming.payload), (9, Some(7), Payload::None));
    assert_eq!(session.reserve(1, 100), 9);
}

#[test]
fn send_credit_stops_at_the_largest_number() {
    let mut session = accepted();
    let incoming = feed(&mut session, Header::window_update(1, u32::MAX));
    assert_eq!(incoming.credit, u32::MAX - INITIAL_WINDOW);
    assert_eq!(session.stream(1).map(Stream::send_credit), Some(u32::MAX));
    assert_eq!(feed(&mut session, Header::window_update(1, 5)).credit, 0);
}

#[test]
fn credit_goes_back_at_half_a_window_and_is_usable_once_announced() {
    let mut session = accepted();
    feed(&mut session, Header::data(1, INITIAL_WINDOW));
    session.consumed(1, UPDATE_THRESHOLD - 1);
    assert_eq!(drain(&mut session), []);
    session.consumed(1, 1);
    session.consumed(1, 10);
    assert!(session.handle_header(0, &Header::data(1, 1)).is_err(), "not announced yet");
    assert_eq!(drain(&mut session), [Header::window_update(1, UPDATE_THRESHOLD + 10)]);
    assert_eq!(feed(&mut session, Header::data(1, UPDATE_THRESHOLD + 10)).payload, Payload::Deliver(131_082));
}

#[test]
fn more_than_the_credit_is_a_protocol_error() {
    let mut session = accepted();
    feed(&mut session, Header::data(1, 262_000));
    let violation = session.handle_header(0, &Header::data(1, 145)).expect_err("one byte too many");
    assert_eq!(violation, Violation::WindowExceeded { stream: 1, length: 145, credit: 144 });
    assert_eq!(violation.go_away(), Some(Header::go_away(GO_AWAY_PROTOCOL_ERROR)));
}

#[test]
fn extra_credit_is_announced_at_once_and_raises_the_bound() {
    let mut session = accepted();
    session.grant_extra(1, 1000);
    session.grant_extra(1, 24);
    assert_eq!(drain(&mut session), [Header::window_update(1, 1024)]);
    assert_eq!(feed(&mut session, Header::data(1, INITIAL_WINDOW + 1024)).payload, Payload::Deliver(263_168));
    assert_eq!(session.stream(1).map(Stream::unconsumed), Some(263_168));
}

#[test]
fn granted_credit_stops_at_the_largest_number() {
    let mut session = accepted();
    session.grant_extra(1, u32::MAX);
    session.grant_extra(1, u32::MAX);
    assert_eq!(drain(&mut session), [Header::window_update(1, u32::MAX - INITIAL_WINDOW)]);
    assert_eq!(session.stream(1).map(Stream::receive_credit), Some(u32::MAX));
    session.grant_extra(1, 1);
    assert_eq!(drain(&mut session), []);
}

#[test]
fn credit_granted_before_the_handshake_travels_with_it() {
    let mut session = server();
    feed(&mut session, syn(1));
    session.grant_extra(1, 50);
    session.accept(1, 0);
    let own = session.open(0, 0).expect("open");
    session.grant_extra(own, 60);
    assert_eq!(
        drain(&mut session),
        [
            Header::window_update(1, 50).with_flags(Flags::ACK),
            Header::window_update(2, 60).with_flags(Flags::SYN)
        ]
    );
}

#[test]
fn credit_due_before_the_ack_travels_with_it() {
    for accepted_first in [true, false] {
        let mut session = server();
        feed(&mut session, Header::data(1, INITIAL_WINDOW).with_flags(Flags::SYN));
        if accepted_first {
            session.accept(1, 0);
        }
        session.consumed(1, UPDATE_THRESHOLD);
        if !accepted_first {
            assert_eq!(drain(&mut session), []);
            session.accept(1, 0);
        }
        let expected = Header::window_update(1, UPDATE_THRESHOLD).with_flags(Flags::ACK);
        assert_eq!(drain(&mut session), [expected]);
    }
}

#[test]
fn credit_due_with_an_unsent_ack_travels_with_the_fin() {
    let mut session = server();
    feed(&mut session, syn(1));
    session.accept(1, 0);
    session.grant_extra(1, 50);
    let expected = Header::window_update(1, 50).with_flags(Flags::ACK | Flags::FIN);
    assert_eq!(session.finish(0, 1), Some(expected));
    assert_eq!(session.stream(1).map(Stream::receive_credit), Some(INITIAL_WINDOW + 50));
    assert_eq!(drain(&mut session), []);
}

#[test]
fn frames_of_unknown_streams_are_ignored_and_drained() {
    let mut session = server();
    assert_eq!(feed(&mut session, Header::data(99, 12)).payload, Payload::Discard(12));
    assert_eq!(feed(&mut session, Header::data(99, u32::MAX)).payload, Payload::Discard(u32::MAX));
    for header in [Header::window_update(99, 5), fin(99), rst(99), ack(99), Header::data(99, 0)] {
        let incoming = feed(&mut session, header);
        assert_eq!((incoming.payload, incoming.tag, incoming.credit), (Payload::None, None, 0));
        assert!(!incoming.opened && !incoming.reset && !incoming.finished && !incoming.closed);
    }
    assert_eq!((session.stream_count(), drain(&mut session)), (0, vec![]));
}

// Closing (5.5).

#[test]
fn a_stream_ends_when_both_sides_finished() {
    for peer_first in [true, false] {
        let mut session = accepted();
        if peer_first {
            let incoming = feed(&mut session, fin(1));
            assert!(incoming.finished && !incoming.closed);
            assert_eq!(session.finish(0, 1), Some(fin(1)));
        } else {
            assert_eq!(session.finish(0, 1), Some(fin(1)));
            assert_eq!(session.finish(0, 1), None);
            assert_eq!(session.reserve(1, 5), 0, "nothing behind our FIN");
            assert_eq!(feed(&mut session, Header::data(1, 5)).payload, Payload::Deliver(5));
            let incoming = feed(&mut session, Header::data(1, 6).with_flags(Flags::FIN));
            assert!(incoming.finished && incoming.closed);
            assert_eq!((incoming.payload, incoming.tag), (Payload::Deliver(6), Some(7)));
        }
        assert_eq!((session.stream_count(), session.inbound_count()), (0, 0));
        assert_eq!(feed(&mut session, Header::data(1, 3)).payload, Payload::Discard(3));
    }
}

#[test]
fn a_half_closed_stream_still_sends_and_receives_credit() {
    let mut session = accepted();
    session.reserve(1, INITIAL_WINDOW);
    feed(&mut session, fin(1));
    assert_eq!(feed(&mut session, Header::window_update(1, 77)).credit, 77);
    assert_eq!(session.reserve(1, 100), 77);
}

#[test]
fn a_second_fin_is_a_protocol_error() {
    let mut session = accepted();
    feed(&mut session, fin(1));
    let violation = session.handle_header(0, &fin(1)).expect_err("second FIN");
    assert_eq!(violation, Violation::UnexpectedFin { stream: 1 });
    assert_eq!(violation.go_away(), Some(Header::go_away(GO_AWAY_PROTOCOL_ERROR)));
}

#[test]
fn data_behind_the_peers_fin_is_dropped_and_still_counted() {
    let mut session = accepted();
    feed(&mut session, fin(1));
    assert_eq!(feed(&mut session, Header::data(1, INITIAL_WINDOW)).payload, Payload::Discard(INITIAL_WINDOW));
    assert!(session.handle_header(0, &Header::data(1, 1)).is_err());
}

#[test]
fn no_credit_is_returned_behind_the_peers_fin() {
    let mut session = accepted();
    feed(&mut session, Header::data(1, INITIAL_WINDOW));
    session.consumed(1, UPDATE_THRESHOLD);
    feed(&mut session, fin(1));
    session.consumed(1, UPDATE_THRESHOLD);
    session.grant_extra(1, 5);
    assert_eq!(drain(&mut session), []);
    assert_eq!(session.stream(1).map(Stream::unconsumed), Some(0));
}

#[test]
fn a_fin_takes_an_unsent_handshake_along() {
    let mut session = server();
    feed(&mut session, syn(1));
    session.accept(1, 0);
    assert_eq!(session.finish(0, 1), Some(fin(1).with_flags(Flags::ACK)));
    let own = session.open(0, 0).expect("open");
    assert_eq!(session.finish(0, own), Some(fin(2).with_flags(Flags::SYN)));
    feed(&mut session, syn(3));
    assert_eq!(session.finish(0, 3), Some(fin(3).with_flags(Flags::ACK)), "refused without accept");
    assert_eq!(drain(&mut session), []);
}

#[test]
fn a_reset_of_the_peer_ends_the_stream_at_once() {
    let mut session = accepted();
    feed(&mut session, Header::data(1, INITIAL_WINDOW));
    session.consumed(1, UPDATE_THRESHOLD);
    let incoming = feed(&mut session, Header::data(1, 8).with_flags(Flags::RST));
    assert!(incoming.reset);
    assert_eq!((incoming.tag, incoming.payload), (Some(7), Payload::Discard(8)));
    assert_eq!((session.stream_count(), drain(&mut session)), (0, vec![]), "its window update went with it");
}

#[test]
fn our_reset_is_queued_and_the_rest_of_the_stream_dropped() {
    let mut session = accepted();
    assert_eq!(session.reset(1), Some(7));
    assert_eq!(session.reset(1), None);
    assert_eq!(drain(&mut session), [rst(1)]);
    assert_eq!(feed(&mut session, Header::data(1, 3)).payload, Payload::Discard(3));
    assert!(feed(&mut session, syn(1)).opened, "the id is free again");
}

#[test]
fn a_stream_the_peer_never_heard_of_needs_no_reset() {
    let mut session = client();
    let id = session.open(0, 3).expect("open");
    assert_eq!(session.reset(id), Some(3));
    assert_eq!(drain(&mut session), []);
}

#[test]
fn a_peer_that_never_finishes_is_reset_after_the_close_timeout() {
    let mut session = Session::new(Config { keepalive_ns: None, ..Config::server() }, 0);
    for id in [1, 3, 5] {
        feed(&mut session, syn(id));
        session.accept(id, id);
    }
    drain(&mut session);
    session.finish(SECOND, 3);
    session.finish(2 * SECOND, 1);
    session.finish(2 * SECOND, 5);
    feed(&mut session, fin(5));
    assert_eq!(session.next_timeout(), Some(31 * SECOND));
    assert_eq!(session.handle_timeout(31 * SECOND - 1), None);
    assert_eq!(
        session.handle_timeout(40 * SECOND),
        Some(Timeout::StreamTimedOut { stream: 3, tag: Some(3) })
    );
    assert_eq!(
        session.handle_timeout(40 * SECOND),
        Some(Timeout::StreamTimedOut { stream: 1, tag: Some(1) })
    );
    assert_eq!(session.handle_timeout(40 * SECOND), None);
    assert_eq!(drain(&mut session), [rst(3), rst(1)]);
    assert_eq!((session.stream_count(), session.next_timeout()), (0, None));
}

#[test]
fn the_close_timeout_of_an_own_stream_counts_from_its_ack() {
    let mut session = Session::new(Config { keepalive_ns: None, ..Config::client() }, 0);
    let id = session.open(0, 0).expect("open");
    session.finish(SECOND, id);
    assert_eq!(session.next_timeout(), Some(75 * SECOND));
    session.handle_header(10 * SECOND, &ack(id)).expect("a legal ACK");
    assert_eq!(session.next_timeout(), Some(40 * SECOND));
}

// Session (5.6).

#[test]
fn pings_are_answered_with_their_value_before_anything_else() {
    let mut session = accepted();
    session.ping(0);
    feed(&mut session, Header::data(1, INITIAL_WINDOW));
    session.consumed(1, INITIAL_WINDOW);
    feed(&mut session, syn(3));
    session.accept(3, 0);
    session.go_away(GO_AWAY_NORMAL);
    feed(&mut session, syn(5));
    feed(&mut session, Header::ping(0xdead_beef));
    assert_eq!(
        drain(&mut session),
        [
            Header::pong(0xdead_beef),
            rst(5),
            Header::go_away(GO_AWAY_NORMAL),
            ack(3),
            Header::window_update(1, INITIAL_WINDOW),
            Header::ping(0),
        ]
    );
}

#[test]
fn pings_count_up_from_zero_every_interval() {
    let mut session = client();
    for round in 1..4_u32 {
        let now = u64::from(round) * 30 * SECOND;
        assert_eq!(session.next_timeout(), Some(now));
        assert_eq!(session.handle_timeout(now), None);
        assert_eq!(drain(&mut session), [Header::ping(round - 1)]);
        session.handle_header(now + 5, &Header::pong(round - 1)).expect("an answer");
        assert_eq!(session.poll_event(), Some(Event::PingAnswered { value: round - 1, rtt_ns: 5 }));
    }
}

#[test]
fn silence_after_a_ping_ends_the_session_once() {
    let mut session = client();
    assert_eq!(session.handle_timeout(30 * SECOND), None);
    drain(&mut session);
    assert_eq!(session.next_timeout(), Some(40 * SECOND));
    let dead = DeadReason::PingUnanswered { value: 0, silent_ns: 10 * SECOND };
    assert_eq!(session.handle_timeout(40 * SECOND), Some(Timeout::SessionDead(dead)));
    assert_eq!((session.handle_timeout(40 * SECOND), session.next_timeout()), (None, None));
}

#[test]
fn bytes_excuse_a_late_answer() {
    let mut session = client();
    session.handle_timeout(30 * SECOND);
    drain(&mut session);
    session.handle_bytes_received(38 * SECOND);
    assert_eq!(session.handle_timeout(40 * SECOND), None);
    assert_eq!(session.next_timeout(), Some(48 * SECOND));
    session.handle_header(47 * SECOND, &Header::pong(0)).expect("late");
    assert_eq!(session.poll_event(), Some(Event::PingAnswered { value: 0, rtt_ns: 17 * SECOND }));
    assert_eq!(session.next_timeout(), Some(60 * SECOND));
}

#[test]
fn a_ping_that_waits_serves_the_next_interval_too() {
    let mut session = client();
    session.handle_timeout(30 * SECOND);
    assert_eq!(drain(&mut session), [Header::ping(0)]);
    for second in 31..70 {
        session.handle_bytes_received(second * SECOND);
        assert_eq!(session.handle_timeout(second * SECOND), None);
    }
    assert_eq!(drain(&mut session), []);
    session.handle_header(70 * SECOND, &Header::pong(0)).expect("late");
    assert_eq!(session.handle_timeout(90 * SECOND), None);
    assert_eq!(drain(&mut session), [Header::ping(1)]);
}

#[test]
fn answers_to_nothing_are_ignored() {
    let mut session = client();
    feed(&mut session, Header::pong(0));
    session.ping(0);
    feed(&mut session, Header::pong(0));
    assert_eq!(session.poll_event(), None, "it was not sent yet");
    drain(&mut session);
    feed(&mut session, Header::pong(1));
    assert_eq!(session.poll_event(), None);
}

#[test]
fn a_newer_answer_settles_older_pings() {
    let mut session = client();
    assert_eq!((session.ping(0), session.ping(1)), (0, 1));
    assert_eq!(drain(&mut session), [Header::ping(0), Header::ping(1)]);
    session.handle_header(9, &Header::pong(1)).expect("an answer");
    assert_eq!(session.poll_event(), Some(Event::PingAnswered { value: 1, rtt_ns: 8 }));
    assert_eq!(session.next_timeout(), Some(30 * SECOND));
}

#[test]
fn own_pings_are_bounded() {
    let mut session = client();
    let values: Vec<u32> = (0..20).map(|now| session.ping(now)).collect();
    assert_eq!((values[7], values[19]), (7, 7));
    assert_eq!(drain(&mut session).len(), 8);
}

#[test]
fn answers_that_nobody_reads_end_the_session() {
    let config = Config { pending_replies_max: 3, ..Config::server() };
    let mut session: Session<u32> = Session::new(config, 0);
    for value in 0..3 {
        feed(&mut session, Header::ping(value));
    }
    let violation = session.handle_header(0, &Header::ping(3)).expect_err("too many");
    assert_eq!(violation, Violation::RepliesUnread { pending: 3 });
    assert_eq!(violation.go_away(), None);

    // As many resets as streams may exist can be our own doing at one moment; only what exceeds both is the peer's.
    let config = Config { streams_max: 4, ..config };
    let mut session: Session<u32> = Session::new(config, 0);
    for id in (1..15).step_by(2) {
        feed(&mut session, syn(id));
        session.reset(id);
    }
    assert_eq!(session.handle_header(0, &syn(15)), Err(Violation::RepliesUnread { pending: 7 }));
}

#[test]
fn resets_of_own_streams_are_never_held_against_the_peer() {
    let config = Config { pending_replies_max: 3, streams_max: 4, open_backlog: 100, ..Config::server() };
    let mut session: Session<u32> = Session::new(config, 0);
    let own: Vec<u32> = (0..50).map(|tag| session.open(0, tag).expect("within the backlog")).collect();
    assert_eq!(drain(&mut session).len(), 50);
    for &id in &own {
        session.reset(id);
    }
    feed(&mut session, syn(1));
    assert_eq!(session.stream_count(), 1);
    assert_eq!(drain(&mut session).len(), 50, "every reset is said");
}

#[test]
fn a_stream_without_ack_ends_the_session() {
    let mut session = Session::new(Config { keepalive_ns: None, ..Config::client() }, 0);
    for now in [0, SECOND, 2 * SECOND] {
        session.open(now, 0).expect("open");
    }
    feed(&mut session, ack(1));
    assert_eq!(session.next_timeout(), Some(76 * SECOND));
    let dead = DeadReason::OpenUnanswered { stream: 3 };
    assert_eq!(session.handle_timeout(76 * SECOND), Some(Timeout::SessionDead(dead)));
}

#[test]
fn go_away_codes_of_the_peer() {
    let mut session = client();
    feed(&mut session, Header::go_away(GO_AWAY_NORMAL));
    feed(&mut session, Header::go_away(GO_AWAY_NORMAL));
    assert_eq!(session.poll_event(), Some(Event::GoAwayReceived { code: GO_AWAY_NORMAL }));
    assert_eq!(session.poll_event(), None, "told once");
    assert_eq!(session.open(0, 0), Err(OpenError::PeerGoingAway));
    assert!(feed(&mut session, syn(2)).opened, "the peer may still open");
    for code in [GO_AWAY_PROTOCOL_ERROR, GO_AWAY_INTERNAL_ERROR, 77] {
        let violation = session.handle_header(0, &Header::go_away(code)).expect_err("the end");
        assert_eq!((violation, violation.go_away()), (Violation::PeerWentAway { code }, None));
    }
}

// Order and memory.

#[test]
fn outputs_keep_the_order_of_inputs() {
    let mut session = server();
    let ids: Vec<u32> = (0..300).map(|index| (index * 7919) % 65_521 + 1).collect();
    for id in &ids {
        feed(&mut session, syn(*id));
        session.accept(*id, 0);
    }
    assert_eq!(drain(&mut session), ids.iter().map(|id| ack(*id)).collect::<Vec<_>>());
    for id in ids.iter().rev() {
        session.grant_extra(*id, 1);
    }
    for id in ids.iter().skip(50).take(100) {
        session.reset(*id);
    }
    let kept = ids[..50].iter().chain(&ids[150..]).rev();
    let expected: Vec<Header> = (ids[50..150].iter().map(|id| rst(*id)))
        .chain(kept.map(|id| Header::window_update(*id, 1)))
        .collect();
    assert_eq!(drain(&mut session), expected);
    let mut sorted: Vec<u32> = [&ids[..50], &ids[150..]].concat();
    sorted.sort_unstable();
    assert_eq!(session.streams().map(|(id, _)| id).collect::<Vec<_>>(), sorted);
}

#[test]
fn tags_are_the_owners() {
    let mut session = accepted();
    *session.tag_mut(1).expect("accepted") = 8;
    assert_eq!(feed(&mut session, Header::data(1, 1)).tag, Some(8));
    session.accept(1, 9);
    assert_eq!(session.stream(1).and_then(|stream| stream.tag), Some(9));
    assert_eq!(drain(&mut session), [], "no second ACK");
    assert_eq!(session.tag_mut(3), None);
}

#[test]
fn a_stream_and_a_session_are_small() {
    assert!(size_of::<Stream<u32>>() <= 72, "{}", size_of::<Stream<u32>>());
    assert!(size_of::<Session<u32>>() <= 448, "{}", size_of::<Session<u32>>());
}

#[test]
fn roles_choose_only_the_ids() {
    assert_eq!((Config::client().role, Config::server().role), (Role::Client, Role::Server));
}
