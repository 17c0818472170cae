//! The bodies of the fuzz targets over generated input, so that they compile and hold on every run of the tests.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "the bodies are public items of the fuzz package")]

#[path = "../fuzz/src/frame_reader.rs"]
mod frame_reader;
#[path = "../fuzz/src/handshake_responder.rs"]
mod handshake_responder;
#[path = "../fuzz/src/sealed_window.rs"]
mod sealed_window;
#[path = "../fuzz/src/stream_reader.rs"]
mod stream_reader;

use proptest::collection::vec;
use proptest::prelude::*;

/// Edits of an honest exchange: nothing, one or a few, and now and then many.
fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..12), vec(any::<u8>(), 0..most)]
}

/// A stream of frames that mostly hold together, of lengths that are mostly small.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let frame = (0_usize..300).prop_map(|len| {
        let mut frame = (len as u16).to_be_bytes().to_vec();
        frame.resize(len + 2, 7);
        frame
    });
    (vec(frame, 0..8), bytes(6)).prop_map(|(frames, tail)| [frames.concat(), tail].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn frame_reader_random(data in bytes(9000)) {
        frame_reader::run(&data);
    }

    #[test]
    fn frame_reader_framed(limit in any::<u8>(), step in any::<u8>(), stream in frames()) {
        frame_reader::run(&[&[limit, step][..], &stream].concat());
    }

    #[test]
    fn stream_reader_random(data in bytes(6000)) {
        stream_reader::run(&data);
    }

    #[test]
    fn stream_reader_edited(step in any::<u8>(), edits in bytes(40)) {
        stream_reader::run(&[&[1, step][..], &edits].concat());
    }

    #[test]
    fn sealed_window_steps(data in bytes(600)) {
        sealed_window::run(&data);
    }

    #[test]
    fn handshake_responder_classical(selector in 0_u8..4, data in bytes(300)) {
        handshake_responder::run_classical(&[&[selector][..], &data].concat());
    }

    #[test]
    fn handshake_responder_hybrid(selector in 0_u8..4, data in bytes(3000)) {
        handshake_responder::run_hybrid(&[&[selector][..], &data].concat());
    }

    #[test]
    fn handshake_responder_one_edit(hybrid in any::<bool>(), kk in 0_u8..2, message in 0_u8..3, at in any::<u16>(), mask in 1_u8..) {
        let [high, low] = at.to_be_bytes();
        let data = [2 | kk, message, high, low, mask];
        if hybrid { handshake_responder::run_hybrid(&data) } else { handshake_responder::run_classical(&data) }
    }
}
