//! Memory of a yamux session: none beside the struct until the first stream, none per frame afterwards.
#![allow(clippy::expect_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ringwire_proto::yamux::{Config, Cutter, Flags, Header, Payload, Piece, Session, UPDATE_THRESHOLD};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator with a count for each thread.
struct Counting;

// SAFETY: every call goes unchanged to the system allocator, and the count beside it allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(of: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    of();
    ALLOCATIONS.with(Cell::get) - before
}

/// Receives `frames` data frames on each of 64 streams, forwards them to the next stream, returns credit.
fn forward(session: &mut Session<u32>, cutter: &mut Cutter, frames: u32) {
    const LENGTH: u32 = 1000;
    let mut now = 0;
    for round in 0..frames * 64 {
        let id = (round % 64) * 2 + 1;
        let bytes = Header::data(id, LENGTH).encode();
        let mut at = 0;
        let Ok(Some(Piece::Header { header, .. })) = cutter.next(&bytes, &mut at) else { panic!("a header") };
        let incoming = session.handle_header(now, &header).expect("legal");
        assert_eq!(incoming.payload, Payload::Deliver(LENGTH));
        let mut at = 0;
        cutter.next(&[0; LENGTH as usize], &mut at).expect("payload");
        let next = (id + 2) % 128;
        if session.reserve(next, LENGTH) < LENGTH {
            session.handle_header(now, &Header::window_update(next, UPDATE_THRESHOLD)).expect("legal");
        }
        session.consumed(id, LENGTH);
        while session.poll_control().is_some() {}
        now += 1_000;
        assert!(session.next_timeout().is_some());
    }
}

#[test]
fn nothing_is_allocated_but_for_streams() {
    assert_ne!(allocations(|| drop(vec![0_u8; 64])), 0, "the count works");
    let mut session = None;
    assert_eq!(allocations(|| session = Some(Session::new(Config::server(), 0))), 0, "an idle session");
    let mut session: Session<u32> = session.expect("made");
    for id in 0..64 {
        let syn = Header::window_update(id * 2 + 1, 0).with_flags(Flags::SYN);
        session.handle_header(0, &syn).expect("legal");
        session.accept(id * 2 + 1, id);
    }
    let mut cutter = Cutter::new();
    // The first ping answer and the first reset make their queues.
    session.handle_header(0, &Header::ping(0)).expect("legal");
    forward(&mut session, &mut cutter, 1);
    let made = allocations(|| forward(&mut session, &mut cutter, 2000));
    assert_eq!(made, 0, "128000 frames");
}
