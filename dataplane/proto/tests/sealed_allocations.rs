//! Packets and frames allocate nothing once their buffers have grown: the steady state of a worker.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ringwire_proto::aead::RustCryptoAead;
use ringwire_proto::frame::{FRAME_BODY_MAX, FrameReader, StreamReader, StreamWriter};
use ringwire_proto::noise::DirectionKey;
use ringwire_proto::noise::sealed::{Opener, Sealer, WindowReplay};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator with a count for each thread.
struct Counting;

// SAFETY: every method passes its arguments on to the system's allocator unchanged, and the count beside it allocates
// nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above, which took it from the same allocator with the same layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(run: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    run();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn steady_state_allocates_nothing() {
    assert_ne!(allocations(|| drop(vec![0_u8; 64])), 0, "the count works");

    let key = DirectionKey::from_bytes([3; 32]);
    let plaintext = [0x5c; 10_000];
    let mut sealer = Sealer::<RustCryptoAead>::new(&key);
    let mut opener = Opener::<RustCryptoAead, WindowReplay>::new(&key);
    let mut writer = StreamWriter::<RustCryptoAead>::new(&key);
    let mut reader = StreamReader::<RustCryptoAead>::new(&key);
    let mut frames = FrameReader::new(FRAME_BODY_MAX);
    let (mut wire, mut out, mut packet) = (Vec::new(), Vec::new(), [0; 1024]);
    let mut round = || {
        sealer.seal_in_place(&mut packet).unwrap();
        opener.open(&mut packet).unwrap();
        wire.clear();
        sealer.seal(&plaintext[..500], &mut wire);
        opener.open(&mut wire).unwrap();

        wire.clear();
        out.clear();
        writer.write(&plaintext, &mut wire);
        for piece in wire.chunks(1448) {
            reader.push(piece, &mut out).unwrap();
            let mut piece = piece;
            while frames.push(&mut piece).unwrap().is_some() {}
        }
        assert_eq!(out, plaintext);
    };
    round();
    assert_eq!(allocations(|| (0..100).for_each(|_| round())), 0);
}
