//! Bodies of the fuzz targets: each takes arbitrary bytes and panics when a promise of the crate is broken.
//!
//! In: bytes of libFuzzer (`fuzz_targets`), or generated ones in the ordinary tests, which include these files by path.
//! Out: nothing, or a panic that names the broken promise.

pub mod certificate;
pub mod entry_json;
pub mod frame_reader;
pub mod gob_request;
pub mod gob_response;
pub mod handshake_responder;
pub mod sealed_window;
pub mod signed_object;
pub mod smux_connection;
pub mod smux_session;
pub mod stream_reader;
pub mod yamux_connection;
pub mod yamux_cutter;
pub mod yamux_session;
