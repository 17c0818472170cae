//! The byte stream inside sealed frames: whatever arrives, what comes out is a prefix of what was written
//! (dmsg-wire 2.6, 2.7, 3).
//!
//! Input: one byte for the mode, one for the length of the pieces; then either the raw stream, or edits of three bytes
//! (position, mask) of an honest one.

use ringwire_proto::aead::RustCryptoAead;
use ringwire_proto::frame::{StreamError, StreamReader, StreamWriter};
use ringwire_proto::noise::DirectionKey;

/// Feeds a raw or an edited stream.
pub fn run(data: &[u8]) {
    let [mode, step, rest @ ..] = data else { return };
    let step = usize::from(*step).max(1);
    if mode % 2 == 0 { raw(rest, step) } else { edited(rest, step) }
}

// libFuzzer watches the comparisons of tags and learns to forge them, so authenticity cannot be asserted here.
fn raw(stream: &[u8], step: usize) {
    let (out, _) = read(stream, step);
    assert!(out.len() <= stream.len(), "plaintext out of nothing");
    let (whole, _) = read(stream, stream.len().max(1));
    assert_eq!(out, whole, "cutting changed the result");
}

fn edited(edits: &[u8], step: usize) {
    let plaintext: Vec<u8> = (0..9000_u32).map(|n| (n % 251) as u8).collect();
    let mut wire = Vec::new();
    let mut writer = StreamWriter::<RustCryptoAead>::new(&key());
    for piece in [&plaintext[..10], &plaintext[10..10], &plaintext[10..200], &plaintext[200..]] {
        writer.write(piece, &mut wire);
    }
    let honest = wire.clone();
    for edit in edits.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([edit[0], edit[1]])) % wire.len();
        wire[at] ^= edit[2];
    }
    let (out, error) = read(&wire, step);
    if wire == honest {
        assert_eq!((out.as_slice(), error), (plaintext.as_slice(), None));
    } else {
        assert!(plaintext.starts_with(&out), "plaintext that nobody wrote");
        assert!(out.len() < plaintext.len(), "an edit went unnoticed");
    }
}

fn key() -> DirectionKey {
    DirectionKey::from_bytes([0x5a; 32])
}

fn read(stream: &[u8], step: usize) -> (Vec<u8>, Option<StreamError>) {
    let mut reader = StreamReader::<RustCryptoAead>::new(&key());
    let mut out = Vec::new();
    for piece in stream.chunks(step) {
        if let Err(error) = reader.push(piece, &mut out) {
            let len = out.len();
            assert_eq!(reader.push(stream, &mut out), Err(error), "the error was not permanent");
            assert_eq!(out.len(), len, "output behind an error");
            return (out, Some(error));
        }
    }
    (out, None)
}
