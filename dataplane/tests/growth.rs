//! What a client may make the server keep: a counting allocator watches the worker's thread while streams come and go by the
//! thousand, on a connection that is read and on one that is not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringwire_dataplane::Server;
use ringwire_dataplane::counters::Counter;
use ringwire_proto::yamux::{Flags, Header};
use support::drivers::on_each_driver;
use support::{LIMIT, Peer, bridge, start_server};

struct Counting;

/// Bytes that workers' threads have allocated, less what they have freed.
static HELD_LEN: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    /// Whether this thread is a worker's; found out by its name at its first allocation.
    static IS_WORKER: Cell<Option<bool>> = const { Cell::new(None) };
}

// SAFETY: needed to count; every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn note(len: isize) {
    let is_worker = IS_WORKER.try_with(|known| match known.get() {
        Some(is_worker) => is_worker,
        None => {
            // Set first: asking for the name may allocate.
            known.set(Some(false));
            let is_worker = std::thread::current().name().is_some_and(|name| name.starts_with("worker"));
            known.set(Some(is_worker));
            is_worker
        }
    });
    if is_worker.unwrap_or(false) {
        HELD_LEN.fetch_add(len, Ordering::Relaxed);
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

on_each_driver!(
    streams_that_come_and_go_leave_no_timer_behind,
    streams_that_end_while_a_send_is_stuck_leave_no_place_behind,
);

/// The count is one for the program: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Streams that come and go in each test: with two or three frames each they stay below what a session may send for nothing.
const STREAMS: u32 = 8000;
/// What the worker may hold more afterwards, in bytes: a few chunks of its tables, and nothing for each stream.
const GROWTH_MAX: isize = 48 * 1024;

/// The worker's growth while `peer` sends `frames_of` each of many streams, which the server has seen begin and end.
fn growth(server: &Server, peer: &mut Peer, from: u32, frames_of: impl Fn(u32) -> Vec<u8>) -> isize {
    let send = |peer: &mut Peer, from: u32, count: u32| {
        let closed_before = server.counters().value(Counter::StreamsClosed);
        for chunk in (0..count).collect::<Vec<u32>>().chunks(100) {
            let frames: Vec<u8> = chunk.iter().flat_map(|number| frames_of(from + 2 * number)).collect();
            peer.socket.write_all(&frames).unwrap();
        }
        let deadline = Instant::now() + LIMIT;
        while server.counters().value(Counter::StreamsClosed) < closed_before + u64::from(count) {
            assert!(Instant::now() < deadline, "the streams do not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    // Tables and lists reach their size.
    send(peer, from, 300);
    let before = HELD_LEN.load(Ordering::Relaxed);
    send(peer, from + 600, STREAMS);
    // A report is made on the worker's thread and freed here: none in between.
    let growth = HELD_LEN.load(Ordering::Relaxed) - before;
    assert_eq!(server.counters().value(Counter::SessionsClosed), 0);
    growth
}

fn frame(stream: u32, flags: Flags) -> [u8; 12] {
    Header::window_update(stream, 0).with_flags(flags).encode()
}

/// Each had five seconds for its request, and for that long there was something to remember.
fn streams_that_come_and_go_leave_no_timer_behind() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let server = start_server();
    let mut peer = Peer::connect(&server);
    peer.settle();
    let growth = growth(&server, &mut peer, 1001, |stream| {
        [frame(stream, Flags::SYN), frame(stream, Flags::RST)].concat()
    });
    assert!(growth < GROWTH_MAX, "{growth} bytes for {STREAMS} streams");
}

/// A stream that is refused waits for its turn to say so; when it ends before, nobody waits any more.
fn streams_that_end_while_a_send_is_stuck_leave_no_place_behind() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    socket2::SockRef::from(&a.socket).set_recv_buffer_size(4096).unwrap();
    let streams: Vec<(u32, u32)> = (0..16).map(|_| bridge(&mut a, &mut b)).collect();
    // From here on a reads nothing; what is for it fills its connection.
    for &(_, on_b) in &streams {
        b.write(on_b, &[7; 200_000]);
    }
    let stuck = || {
        let sent = server.counters().value(Counter::BytesSent);
        std::thread::sleep(Duration::from_millis(100));
        let queued: usize = server.report().unwrap().bridges.iter().map(|bridge| bridge.back.queued).sum();
        queued > 100_000 && server.counters().value(Counter::BytesSent) == sent
    };
    let deadline = Instant::now() + LIMIT;
    while !(stuck() && stuck()) {
        assert!(Instant::now() < deadline, "a's connection never fills");
    }
    let growth = growth(&server, &mut a, 1001, |stream| {
        let refused = Header::window_update(stream, 0).with_flags(Flags::SYN).with_flags(Flags::FIN);
        [refused.encode(), frame(stream, Flags::RST)].concat()
    });
    assert!(growth < GROWTH_MAX, "{growth} bytes for {STREAMS} streams");
}
