//! Packets and frames: what was sealed comes out again, in place and appended; what was not, does not (dmsg-wire 2.6,
//! 2.7, 3). The longer histories are in `fuzz_bodies.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use proptest::collection::vec;
use proptest::prelude::*;
use ringwire_proto::aead::{BadTag, RustCryptoAead};
use ringwire_proto::frame::{
    FRAME_BODY_MAX, FRAME_PLAINTEXT_MAX, FrameError, FrameReader, StreamError, StreamReader, StreamWriter,
    push_prefix,
};
use ringwire_proto::noise::DirectionKey;
use ringwire_proto::noise::sealed::{
    Opener, OrderedReplay, Replay, ReplayError, SEALED_OVERHEAD, SealedError, Sealer, WINDOW, WindowReplay,
};

fn key() -> DirectionKey {
    DirectionKey::from_bytes([0x17; 32])
}

fn sealed(number: u64, plaintext: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    Sealer::<RustCryptoAead>::with_counter(&key(), number - 1).seal(plaintext, &mut packet);
    packet
}

#[test]
fn quirk_the_first_number_is_one() {
    let mut sealer = Sealer::<RustCryptoAead>::new(&key());
    let mut packet = Vec::new();
    sealer.seal(b"x", &mut packet);
    assert_eq!(packet[..8], [0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!((packet.len(), sealer.counter()), (1 + SEALED_OVERHEAD, 1));
}

#[test]
fn refused_packets_leave_no_trace() {
    let mut opener = Opener::<RustCryptoAead, WindowReplay>::new(&key());
    for len in 0..SEALED_OVERHEAD {
        assert_eq!(opener.open(&mut vec![0; len]), Err(SealedError::TooShort { found: len }));
    }
    // A forged packet far ahead would make every honest one too old, if its number counted.
    let mut forged = sealed(u64::MAX, b"forged");
    forged[10] ^= 1;
    assert_eq!(opener.open(&mut forged), Err(SealedError::BadTag(BadTag)));
    assert_eq!(opener.open(&mut sealed(1, b"honest")).unwrap(), b"honest");
    let mut damaged = sealed(2, b"honest");
    damaged[29] ^= 1;
    assert_eq!(opener.open(&mut damaged), Err(SealedError::BadTag(BadTag)));
    assert_eq!(opener.open(&mut sealed(2, b"honest")).unwrap(), b"honest");
    assert_eq!(opener.open(&mut sealed(2, b"honest")), Err(SealedError::Replay(ReplayError::Repeated)));
}

#[test]
fn ordered_numbers_grow_and_may_skip() {
    let mut opener = Opener::<RustCryptoAead, OrderedReplay>::new(&key());
    for (number, expected) in [
        (3, Ok(())),
        (3, Err(ReplayError::Repeated)),
        (2, Err(ReplayError::TooOld)),
        (4, Ok(())),
        (u64::MAX, Ok(())),
        (u64::MAX, Err(ReplayError::Repeated)),
    ] {
        let opened = opener.open(&mut sealed(number, b"")).map(|plaintext| assert!(plaintext.is_empty()));
        assert_eq!(opened, expected.map_err(SealedError::Replay), "{number}");
    }
    assert_eq!(OrderedReplay::default().check(0), Err(ReplayError::Zero));
    assert_eq!(opener.replay(), &OrderedReplay::after(u64::MAX));
}

#[test]
fn in_place_sealing_needs_its_free_bytes() {
    let mut sealer = Sealer::<RustCryptoAead>::new(&key());
    let short = sealer.seal_in_place(&mut [0; SEALED_OVERHEAD - 1]);
    assert_eq!(short, Err(SealedError::TooShort { found: SEALED_OVERHEAD - 1 }));
    assert_eq!(sealer.counter(), 0);
    sealer.seal_in_place(&mut [0; SEALED_OVERHEAD]).unwrap();
    assert_eq!(sealer.counter(), 1);
}

#[test]
fn announced_lengths_are_bounded() {
    let mut reader = FrameReader::new(FRAME_BODY_MAX);
    let error = FrameError::TooLong { len: FRAME_BODY_MAX + 1, limit: FRAME_BODY_MAX };
    assert_eq!(reader.push(&mut &[0x0f, 0xff, 0, 0][..]), Err(error));
    let mut stream = StreamReader::<RustCryptoAead>::new(&key());
    for _ in 0..2 {
        assert_eq!(stream.push(&[0x0f, 0xff], &mut Vec::new()), Err(StreamError::Frame(error)));
    }
    assert_eq!(push_prefix(65_536, &mut Vec::new()), Err(FrameError::TooLong { len: 65_536, limit: 65_535 }));

    // An announced length alone takes no memory: the largest body, byte by byte, works all the same.
    let mut reader = FrameReader::new(65_535);
    let mut frame = vec![0xff, 0xff];
    frame.resize(2 + 65_535, 0xab);
    for (at, byte) in frame.iter().enumerate() {
        let mut piece = std::slice::from_ref(byte);
        let body = reader.push(&mut piece).unwrap();
        assert_eq!(body.map(|body| body.len()), (at + 1 == frame.len()).then_some(65_535));
    }
    assert!(reader.is_between_frames());
}

#[test]
fn bytes_behind_a_frame_are_left_to_the_caller() {
    let mut reader = FrameReader::new(FRAME_BODY_MAX);
    let mut input: &[u8] = &[0, 2, 7, 8, 0, 0, 9];
    assert_eq!(reader.push(&mut input).unwrap().unwrap(), [7, 8]);
    assert_eq!(input, [0, 0, 9]);
    assert!(reader.push(&mut input).unwrap().unwrap().is_empty());
    assert_eq!(input, [9]);
    assert!(reader.is_between_frames());
    assert_eq!(reader.push(&mut input), Ok(None));
    assert!(!reader.is_between_frames());
}

proptest! {
    #[test]
    fn packets_round_trip(number in 1_u64.., plaintext in vec(any::<u8>(), 0..5000)) {
        let mut packet = sealed(number, &plaintext);
        prop_assert_eq!(packet.len(), plaintext.len() + SEALED_OVERHEAD);

        let mut in_place = vec![0; packet.len()];
        in_place[8..8 + plaintext.len()].copy_from_slice(&plaintext);
        let mut sealer = Sealer::<RustCryptoAead>::with_counter(&key(), number - 1);
        sealer.seal_in_place(&mut in_place).unwrap();
        prop_assert_eq!(&in_place, &packet);

        let mut opener = Opener::<RustCryptoAead, OrderedReplay>::new(&key());
        prop_assert_eq!(opener.open(&mut packet).unwrap(), &plaintext[..]);
    }

    #[test]
    fn damaged_packets_are_refused(plaintext in vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), mask in 1_u8..) {
        let mut packet = sealed(77, &plaintext);
        let at = at.index(packet.len());
        packet[at] ^= mask;
        prop_assert!(Opener::<RustCryptoAead, WindowReplay>::new(&key()).open(&mut packet).is_err());
    }

    /// Any writes, any cuts: one byte stream.
    #[test]
    fn streams_round_trip(writes in vec(write_len(), 0..6), cuts in vec(1_usize..6000, 1..20)) {
        let mut writer = StreamWriter::<RustCryptoAead>::new(&key());
        let (mut plaintext, mut wire) = (Vec::new(), Vec::new());
        for (index, len) in writes.into_iter().enumerate() {
            let before = wire.len();
            let piece: Vec<u8> = (0..len).map(|n| (n * 7 + index) as u8).collect();
            writer.write(&piece, &mut wire);
            prop_assert_eq!(wire.len() - before, StreamWriter::<RustCryptoAead>::written_len(len));
            plaintext.extend(piece);
        }
        let mut reader = StreamReader::<RustCryptoAead>::new(&key());
        let (mut read, mut rest) = (Vec::new(), wire.as_slice());
        for cut in cuts.into_iter().cycle() {
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            reader.push(piece, &mut read).unwrap();
            prop_assert!(plaintext.starts_with(&read));
            rest = behind;
            if rest.is_empty() { break }
        }
        prop_assert_eq!(read, plaintext);
        prop_assert!(reader.is_between_frames());
    }

    /// The window against a model with the whole history, for numbers that stay near each other.
    #[test]
    fn window_agrees_with_a_full_history(steps in vec(0_u64..4000, 1..300)) {
        let mut window = WindowReplay::default();
        let mut history: Vec<u64> = Vec::new();
        for number in steps {
            let greatest = history.iter().copied().max().unwrap_or(0);
            let expected = if number == 0 {
                Err(ReplayError::Zero)
            } else if number + WINDOW <= greatest {
                Err(ReplayError::TooOld)
            } else if history.contains(&number) {
                Err(ReplayError::Repeated)
            } else {
                Ok(())
            };
            prop_assert_eq!(window.check(number), expected);
            if expected.is_ok() {
                window.mark(number);
                history.push(number);
            }
        }
    }
}

fn write_len() -> impl Strategy<Value = usize> {
    prop_oneof![0_usize..50, FRAME_PLAINTEXT_MAX - 2..FRAME_PLAINTEXT_MAX + 3, 0_usize..20_000]
}
