//! Busy sessions of small frames are received from a little later, and lose nothing by it: real sockets, on each driver.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::{Duration, Instant};

use ringwire_dataplane::counters::Counter;
use support::drivers::on_each_driver;
use support::{LIMIT, Peer, bridge, pattern, start_server_with};

on_each_driver!(
    small_frames_are_gathered_and_verified,
    who_is_asked_and_answers_is_not_put_off,
    nothing_is_put_off_where_that_is_forbidden,
);

/// Sends frames of 4 KiB one by one from `a` to `b` until `enough` of them; verifies each.
fn trickle(a: &mut Peer, b: &mut Peer, (on_a, on_b): (u32, u32), mut enough: impl FnMut(usize) -> bool) {
    let deadline = Instant::now() + LIMIT;
    let mut sent = 0;
    while !enough(sent) {
        assert!(Instant::now() < deadline, "in vain: {sent} frames");
        // Two by two, so that a machine whose sleeps are long has more than one in a millisecond, too.
        for _ in 0..2 {
            a.write(on_a, &pattern(7, 4096 * sent, 4096));
            sent += 1;
        }
        std::thread::sleep(Duration::from_micros(200));
        if sent % 16 == 0 {
            // Credit comes back.
            a.pump();
        }
        // Some of them are under way at any time.
        if sent >= 8 {
            let at = 4096 * (sent - 8);
            assert!(b.read_exact(on_b, 8192) == pattern(7, at, 8192), "frame {}", sent - 8);
        }
    }
    let rest = sent.min(6);
    let at = 4096 * (sent - rest);
    assert!(b.read_exact(on_b, 4096 * rest) == pattern(7, at, 4096 * rest), "the last of {sent}");
}

fn small_frames_are_gathered_and_verified() {
    let server = start_server_with(|config| config.busy_frames_per_second = 1);
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let streams = bridge(&mut a, &mut b);
    let paused = || server.counters().value(Counter::ReceivesPaused);
    trickle(&mut a, &mut b, streams, |_| paused() >= 20);
    // A lone request, after it, is answered.
    a.write(streams.0, b"still there?");
    assert_eq!(b.read_exact(streams.1, 12), b"still there?");
}

fn who_is_asked_and_answers_is_not_put_off() {
    let server = start_server_with(|config| config.busy_frames_per_second = 1);
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let (on_a, on_b) = bridge(&mut a, &mut b);
    // Too long for keystrokes, and by themselves as quick as frames that are gathered.
    let (question, answer) = (pattern(8, 0, 4096), pattern(9, 0, 4096));
    // Longer than the opening of the bridge, which looks like keystrokes, is remembered.
    let until = Instant::now() + Duration::from_millis(300);
    for round in (0..).take_while(|&round| round < 300 || Instant::now() < until) {
        a.write(on_a, &question);
        assert!(b.read_exact(on_b, 4096) == question, "question {round}");
        b.write(on_b, &answer);
        assert!(a.read_exact(on_a, 4096) == answer, "answer {round}");
    }
    assert_eq!(server.counters().value(Counter::ReceivesPaused), 0);
}

fn nothing_is_put_off_where_that_is_forbidden() {
    let server = start_server_with(|config| {
        config.busy_frames_per_second = 1;
        config.pause_us_max = 0;
    });
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let streams = bridge(&mut a, &mut b);
    trickle(&mut a, &mut b, streams, |sent| sent == 200);
    assert_eq!(server.counters().value(Counter::ReceivesPaused), 0);
}
