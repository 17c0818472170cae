//! The bodies of the multiplexers' fuzz targets over generated input, so that they compile and hold on every run of the
//! tests.
#![allow(unreachable_pub, reason = "the bodies are public items of the fuzz package")]

#[path = "../fuzz/src/smux_connection.rs"]
mod smux_connection;
#[path = "../fuzz/src/smux_session.rs"]
mod smux_session;
#[path = "../fuzz/src/yamux_connection.rs"]
mod yamux_connection;
#[path = "../fuzz/src/yamux_cutter.rs"]
mod yamux_cutter;
#[path = "../fuzz/src/yamux_session.rs"]
mod yamux_session;

use proptest::collection::vec;
use proptest::prelude::*;

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..24), vec(any::<u8>(), 0..most)]
}

/// Bytes in which unreadable yamux headers are rare.
fn nearly_headers() -> impl Strategy<Value = Vec<u8>> {
    let header = (0..4_u8, any::<u8>(), 0..40_u8)
        .prop_map(|(kind, stream, length)| [0, kind, 0, 0, 0, 0, 0, stream, 0, 0, 0, length]);
    vec(header, 0..20).prop_map(|headers| headers.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn yamux_cutter_random(data in bytes(600)) {
        yamux_cutter::run(&data);
    }

    #[test]
    fn yamux_cutter_headers(step in any::<u8>(), stream in nearly_headers()) {
        yamux_cutter::run(&[&[step % 30][..], &stream].concat());
    }

    #[test]
    fn yamux_session_steps(data in bytes(1200)) {
        yamux_session::run(&data);
    }

    #[test]
    fn yamux_connection_random(data in bytes(600)) {
        yamux_connection::run(&data);
    }

    #[test]
    fn yamux_connection_frames(step in any::<u8>(), steps in bytes(100)) {
        yamux_connection::run(&[&[1, step][..], &steps].concat());
    }

    #[test]
    fn smux_connection_random(data in bytes(600)) {
        smux_connection::run(&data);
    }

    #[test]
    fn smux_connection_frames(mode in any::<u8>(), step in any::<u8>(), steps in bytes(400)) {
        smux_connection::run(&[&[mode | 1, step][..], &steps].concat());
    }

    #[test]
    fn smux_session_random(data in bytes(600)) {
        smux_session::run(&data);
    }

    #[test]
    fn smux_session_frames(mode in any::<u8>(), step in any::<u8>(), steps in bytes(400)) {
        smux_session::run(&[&[mode | 1, step][..], &steps].concat());
    }
}
