//! Handshakes and frames against recorded ones, byte for byte, in both roles (dmsg-wire 2, 3).
//!
//! Each side runs against the recorded messages of the other, with the recorded ephemeral key. `ck_after` of the
//! classical files stays inside the Noise engine; it is covered by the keys that are derived from it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use ringwire_proto::aead::RustCryptoAead;
use ringwire_proto::frame::{FRAME_PLAINTEXT_MAX, StreamReader, StreamWriter, push_prefix};
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::sealed::{
    Opener, OrderedReplay, Replay as _, ReplayError, Sealer, WINDOW, WindowReplay,
};
use ringwire_proto::noise::{DirectionKey, Handshake, HandshakeError, Hybrid, Outcome, Pattern, Role};
use serde_json::Value;
use support::{Replay, array, bytes, flag, list, parse, text};

const XK: &str = include_str!("vectors/dmsg/noise_xk_classical.json");
const KK: &str = include_str!("vectors/dmsg/noise_kk_classical.json");
const HYBRID: &str = include_str!("vectors/dmsg/noise_pq_2026.json");
const CHUNKING: &str = include_str!("vectors/dmsg/noise_chunking.json");
const NONCE_WINDOW: &str = include_str!("vectors/dmsg/nonce_window_2026.json");

/// The randomness `m` of the recorded encapsulations, which the file does not give. It was decrypted from the recorded
/// ciphertexts with the recorded seeds (K-PKE.Decrypt of FIPS 203); that it is right shows when the responder, fed with
/// it, produces the recorded ciphertext.
const ENCAPSULATION_RANDOMNESS: [(&str, &str, &str); 4] = [
    ("XK", "both_pq_0", "b6071e6bb0d5632260e606a0670cbd48b0b7a77f8be5fd90605e464c4ff389d9"),
    ("XK", "both_pq_1", "609f78c24644e5b55a8eb5116132bc80bb7ed07a2b030c29d4ea9a0da447949b"),
    ("KK", "both_pq_0", "c819f0e45260ff7bf4ee79862e6234713ef67b0a794644c3d191967d28afbf78"),
    ("KK", "both_pq_1", "844b3e542719243a0e47449f0faef94841b8868561e9600f4eed649907883f30"),
];

#[test]
fn classical_xk() {
    let vectors = parse(XK);
    for transcript in list(&vectors, "transcripts") {
        let (initiator, responder) = check_transcript(transcript, Hybrid::Off, Hybrid::Off);
        check_recorded_keys(transcript, "responder", &responder);
        check_frames(transcript, &initiator, &responder);
    }
}

#[test]
fn classical_kk() {
    let vectors = parse(KK);
    for transcript in list(&vectors, "transcripts") {
        let (initiator, responder) = check_transcript(transcript, Hybrid::Off, Hybrid::Off);
        check_recorded_keys(transcript, "responder", &responder);
        check_frames(transcript, &initiator, &responder);
    }
}

/// A peer without the hybrid part is served classically; both files of a pair agree with ours switched on.
#[test]
fn hybrid_and_its_fallbacks() {
    let vectors = parse(HYBRID);
    let mut hybrid_transcripts = 0;
    for transcript in list(&vectors, "transcripts") {
        let mode = |name| if flag(transcript, name) { Hybrid::Offer } else { Hybrid::Off };
        let (initiator, responder) =
            check_transcript(transcript, mode("initiator_offers_pq"), mode("responder_does_pq"));
        assert_eq!(initiator.hybrid, flag(transcript, "pq_active"));
        assert_eq!(responder.hybrid, flag(transcript, "pq_active"));
        check_frames(transcript, &initiator, &responder);
        hybrid_transcripts += usize::from(initiator.hybrid);
    }
    assert_eq!(hybrid_transcripts, ENCAPSULATION_RANDOMNESS.len());
}

/// `Require` changes no byte of a hybrid handshake, and ends a classical one at the first message that shows it.
#[test]
fn required_hybrid() {
    for transcript in list(&parse(HYBRID), "transcripts") {
        if flag(transcript, "pq_active") {
            check_transcript(transcript, Hybrid::Require, Hybrid::Require);
            continue;
        }
        let messages = list(transcript, "messages");
        if flag(transcript, "initiator_offers_pq") {
            let mut initiator = side(transcript, Role::Initiator, Hybrid::Require);
            initiator.write_message(&mut Vec::new()).unwrap();
            let read = initiator.read_message(&bytes(&messages[1], "message"));
            assert_eq!(read, Err(HandshakeError::HybridRequired));
            assert_eq!(initiator.finish().unwrap_err(), HandshakeError::Failed);
        } else {
            let mut responder = side(transcript, Role::Responder, Hybrid::Require);
            let read = responder.read_message(&bytes(&messages[0], "message"));
            assert_eq!(read, Err(HandshakeError::HybridRequired));
            assert_eq!(responder.write_message(&mut Vec::new()), Err(HandshakeError::Failed));
        }
    }
}

fn check_transcript(transcript: &Value, initiator: Hybrid, responder: Hybrid) -> (Outcome, Outcome) {
    assert_eq!(pattern(transcript).protocol_name(), text(transcript, "protocol_name"));
    let finish = |role, hybrid| {
        let outcome = check_side(transcript, role, side(transcript, role, hybrid));
        assert_eq!(outcome.hash, array(transcript, "handshake_hash"));
        outcome
    };
    let (initiator, responder) = (finish(Role::Initiator, initiator), finish(Role::Responder, responder));
    check_recorded_keys(transcript, "initiator", &initiator);
    assert_eq!(initiator.send.expose(), responder.receive.expose());
    assert_eq!(initiator.receive.expose(), responder.send.expose());
    assert_eq!(initiator.remote, public_key(transcript, "responder"));
    assert_eq!(responder.remote, public_key(transcript, "initiator"));
    (initiator, responder)
}

fn check_side(transcript: &Value, role: Role, mut handshake: Handshake) -> Outcome {
    for message in list(transcript, "messages") {
        let recorded = bytes(message, "message");
        let is_ours = (text(message, "dir") == "i2r") == (role == Role::Initiator);
        assert!(!handshake.is_finished());
        assert_eq!(handshake.is_my_turn(), is_ours);
        if is_ours {
            let mut frame = Vec::new();
            push_prefix(recorded.len(), &mut frame).unwrap();
            handshake.write_message(&mut frame).unwrap();
            assert_eq!(hex::encode(&frame), text(message, "wire_frame"), "{}", label(transcript));
        } else {
            handshake.read_message(&recorded).unwrap();
        }
        assert_eq!(handshake.hash(), array(message, "h_after"));
    }
    assert!(handshake.is_finished());
    handshake.finish().unwrap()
}

fn side(transcript: &Value, role: Role, hybrid: Hybrid) -> Handshake {
    let (own, other) = match role {
        Role::Initiator => ("initiator", "responder"),
        Role::Responder => ("responder", "initiator"),
    };
    let mut drawn = bytes(&transcript[own], "ephemeral_sk");
    match (hybrid, role) {
        (Hybrid::Off, _) => {}
        (_, Role::Initiator) => drawn.extend(bytes(transcript, "mlkem_seed_d_z")),
        (_, Role::Responder) => drawn.extend(encapsulation_randomness(transcript)),
    }
    let pattern = pattern(transcript);
    let knows_remote = (pattern, role) != (Pattern::Xk, Role::Responder);
    let remote = knows_remote.then(|| public_key(transcript, other));
    let local = SecretKey::from_bytes(&bytes(&transcript[own], "static_sk")).unwrap();
    let mut entropy = Replay(drawn);
    let handshake = Handshake::new(pattern, role, &local, remote.as_ref(), hybrid, &mut entropy).unwrap();
    assert!(entropy.0.is_empty(), "less entropy was drawn than documented");
    handshake
}

fn encapsulation_randomness(transcript: &Value) -> Vec<u8> {
    let found = ENCAPSULATION_RANDOMNESS.iter().find(|(pattern, label, _)| {
        *pattern == text(transcript, "pattern") && *label == text(transcript, "label")
    });
    match found {
        Some((_, _, randomness)) => hex::decode(randomness).unwrap(),
        None => vec![0; 32],
    }
}

fn pattern(transcript: &Value) -> Pattern {
    match text(transcript, "pattern") {
        "XK" => Pattern::Xk,
        "KK" => Pattern::Kk,
        other => panic!("pattern {other}"),
    }
}

fn label(transcript: &Value) -> &str {
    transcript["label"].as_str().unwrap_or("classical")
}

fn public_key(transcript: &Value, side: &str) -> PublicKey {
    text(&transcript[side], "static_pk").parse().unwrap()
}

fn check_recorded_keys(transcript: &Value, side: &str, outcome: &Outcome) {
    assert_eq!(*outcome.send.expose(), array(&transcript[side], "send_key"));
    assert_eq!(*outcome.receive.expose(), array(&transcript[side], "recv_key"));
}

fn check_frames(transcript: &Value, initiator: &Outcome, responder: &Outcome) {
    for (name, send, receive) in [
        ("frames_i2r", &initiator.send, &responder.receive),
        ("frames_r2i", &responder.send, &initiator.receive),
    ] {
        let mut sealer = Sealer::<RustCryptoAead>::new(send);
        let mut ordered = Opener::<RustCryptoAead, OrderedReplay>::new(receive);
        let mut window = Opener::<RustCryptoAead, WindowReplay>::new(receive);
        let mut stream = StreamReader::<RustCryptoAead>::new(receive);
        for frame in list(transcript, name) {
            let plaintext = bytes(frame, "plaintext");
            let mut sealed = Vec::new();
            push_prefix(plaintext.len() + 24, &mut sealed).unwrap();
            sealer.seal(&plaintext, &mut sealed);
            assert_eq!(hex::encode(&sealed), text(frame, "wire_frame"));
            assert_eq!(Some(sealer.counter()), frame["nonce"].as_u64());
            if let Some(packet) = frame["nonce_and_ciphertext"].as_str() {
                assert_eq!(hex::encode(&sealed[2..]), packet);
            }
            assert_eq!(ordered.open(&mut sealed.clone()[2..]).unwrap(), plaintext);
            assert_eq!(window.open(&mut sealed.clone()[2..]).unwrap(), plaintext);
            let mut read = Vec::new();
            stream.push(&sealed, &mut read).unwrap();
            assert_eq!(read, plaintext);
        }
    }
}

/// One writer through all cases, as in the recording: the numbers go on. The empty write of the Go code that comes first
/// puts nothing on the wire.
#[test]
fn stream_writes_are_cut_as_recorded() {
    let key = DirectionKey::from_bytes([9; 32]);
    let mut writer = StreamWriter::<RustCryptoAead>::new(&key);
    let mut reader = StreamReader::<RustCryptoAead>::new(&key);
    for case in list(&parse(CHUNKING), "cases") {
        let size = case["write_size"].as_u64().unwrap() as usize;
        let plaintext = vec![0xab; size];
        let mut wire = Vec::new();
        writer.write(&plaintext, &mut wire);
        assert_eq!(wire.len(), StreamWriter::<RustCryptoAead>::written_len(size));

        let mut rest = wire.as_slice();
        let lengths: Vec<usize> =
            list(case, "write_calls").iter().map(|len| len.as_u64().unwrap() as usize).collect();
        let mut heads = Vec::new();
        for len in lengths.into_iter().filter(|len| *len > 0) {
            let (frame, behind) = rest.split_at(len);
            heads.push(hex::encode(&frame[..10]));
            assert!(frame.len() <= FRAME_PLAINTEXT_MAX + 26);
            rest = behind;
        }
        assert!(rest.is_empty());
        let recorded: Vec<&str> = case["frame_heads_len_then_nonce"]
            .as_array()
            .map(|heads| heads.iter().map(|head| head.as_str().unwrap()).collect())
            .unwrap_or_default();
        assert_eq!(heads, recorded);

        let mut read = Vec::new();
        reader.push(&wire, &mut read).unwrap();
        assert_eq!(read, plaintext);
    }
}

/// The recorded rule marks before it verifies, ours afterwards: for authentic packets the same verdicts.
#[test]
fn window_of_numbers() {
    let vectors = parse(NONCE_WINDOW);
    assert_eq!(vectors["window"].as_u64(), Some(WINDOW));
    for case in list(&vectors, "cases") {
        let mut window = WindowReplay::default();
        for step in list(case, "steps") {
            let number: u64 = text(step, "nonce").parse().unwrap();
            let verdict = match window.check(number) {
                Ok(()) => "accept",
                Err(ReplayError::Zero) => "reject: nonce cannot be zero",
                Err(ReplayError::Repeated) => "reject: repeated",
                Err(ReplayError::TooOld) => "reject: too old",
            };
            assert_eq!(verdict, text(step, "result"), "{} at {number}", text(case, "name"));
            if verdict == "accept" {
                window.mark(number);
            }
        }
    }
}
