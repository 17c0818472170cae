//! The steady state allocates nothing: a counting allocator watches the worker's thread over a million forwarded frames.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringwire_dataplane::counters::Counter;
use ringwire_proto::yamux::{Cutter, Header, Kind, Piece};
use support::drivers::on_each_driver;
use support::{LIMIT, Peer, bridge, start_server};

struct Counting;

static WATCHING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this thread is a worker's; found out by its name at its first allocation.
    static IS_WORKER: Cell<Option<bool>> = const { Cell::new(None) };
}

// SAFETY: needed to count; every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if WATCHING.load(Ordering::Relaxed) && is_worker() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn is_worker() -> bool {
    IS_WORKER
        .try_with(|known| match known.get() {
            Some(is_worker) => is_worker,
            None => {
                // Set first: asking for the name may allocate.
                known.set(Some(false));
                let is_worker = std::thread::current().name().is_some_and(|name| name.starts_with("worker"));
                known.set(Some(is_worker));
                is_worker
            }
        })
        .unwrap_or(false)
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Payload of a frame: small, so that both the copying and the forwarding path are walked.
const SMALL: usize = 48;
const LARGE: usize = 1500;

on_each_driver!(a_million_frames_are_forwarded_without_an_allocation);

/// The counter is one for the program: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn a_million_frames_are_forwarded_without_an_allocation() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    ALLOCATIONS.store(0, Ordering::Relaxed);
    let server = start_server();
    let (mut a, mut b) = (Peer::connect(&server), Peer::connect(&server));
    let (on_a, on_b) = bridge(&mut a, &mut b);
    let mut frames = Vec::new();
    let mut payload_len = 0;
    for index in 0..400 {
        let len = if index % 8 == 0 { LARGE } else { SMALL };
        frames.extend_from_slice(&Header::data(on_a, len as u32).encode());
        frames.resize(frames.len() + len, index as u8);
        payload_len += len;
    }
    // The sink grants enough for all of it at once, and only counts.
    let rounds = 2600;
    b.socket.write_all(&Header::window_update(on_b, (payload_len * rounds) as u32).encode()).unwrap();
    let mut sink = b.socket.try_clone().unwrap();
    sink.set_read_timeout(Some(LIMIT)).unwrap();
    let reader = std::thread::spawn(move || {
        let (mut cutter, mut got, mut buffer) = (Cutter::new(), 0, vec![0; 256 * 1024]);
        while got < payload_len * rounds {
            let len = sink.read(&mut buffer).unwrap();
            assert!(len > 0, "the server closed the connection after {got} bytes");
            let mut at = 0;
            while let Some(piece) = cutter.next(&buffer[..len], &mut at).unwrap() {
                if let Piece::Payload { range, .. } = piece {
                    got += range.len();
                }
            }
        }
    });
    // Warm: tables and lists reach their size. Then a million frames are watched.
    let mut credit = Credit { left: 262_144, cutter: Cutter::new() };
    let started = Instant::now();
    for round in 0..rounds {
        if round == 100 {
            WATCHING.store(true, Ordering::Relaxed);
        }
        credit.take(&mut a, payload_len);
        a.socket.write_all(&frames).unwrap();
    }
    reader.join().unwrap();
    WATCHING.store(false, Ordering::Relaxed);
    let counters = server.counters();
    assert!(counters.value(Counter::FramesReceived) >= 1_000_000);
    assert!(counters.value(Counter::BytesCopied) > 0, "small frames are copied");
    // By the clock, and not by frames: a bucket of the timers makes room when its tick comes round for the first time. Where that
    // many frames take a second at most, there is nothing of the kind.
    let ticks = started.elapsed().saturating_sub(Duration::from_secs(1)).as_millis() / 64;
    let allocations = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(u128::from(allocations) <= ticks, "{allocations} allocations in the worker in {ticks} ticks");
    server.stop().unwrap();
}

/// The sender's side of the window, by hand: frames are prepared, so the multiplexer of the peer is passed by.
struct Credit {
    left: usize,
    cutter: Cutter,
}

impl Credit {
    fn take(&mut self, peer: &mut Peer, len: usize) {
        let deadline = Instant::now() + LIMIT;
        let mut buffer = [0; 4096];
        while self.left < len {
            assert!(Instant::now() < deadline, "no credit came back");
            let Ok(read) = peer.socket.read(&mut buffer) else { continue };
            let mut at = 0;
            while let Some(piece) = self.cutter.next(&buffer[..read], &mut at).unwrap() {
                if let Piece::Header { header, .. } = piece
                    && header.kind == Kind::WindowUpdate
                {
                    self.left += header.length as usize;
                }
            }
        }
        self.left -= len;
    }
}
