//! A responder that anybody may talk to: no message makes it panic, and an edited one never ends well (dmsg-wire 2).
//!
//! Input: one byte for the pattern and the mode; then either raw messages (two bytes of length, then the message), or
//! edits of four bytes (message, position, mask) of an honest handshake.

use ringwire_proto::entropy::SeededEntropy;
use ringwire_proto::identity::SecretKey;
use ringwire_proto::noise::{Handshake, HandshakeError, Hybrid, Pattern, Role};

/// Against a responder without the post-quantum part.
pub fn run_classical(data: &[u8]) {
    run(data, Hybrid::Off);
}

/// Against a responder that answers offers.
pub fn run_hybrid(data: &[u8]) {
    run(data, Hybrid::Offer);
}

fn run(data: &[u8], hybrid: Hybrid) {
    let [selector, rest @ ..] = data else { return };
    let pattern = if selector & 1 == 0 { Pattern::Xk } else { Pattern::Kk };
    if selector & 2 == 0 { raw(pattern, hybrid, rest) } else { edited(pattern, hybrid, rest) }
}

// libFuzzer watches the comparisons of tags and learns to forge them, so a raw message may be accepted.
fn raw(pattern: Pattern, hybrid: Hybrid, mut messages: &[u8]) {
    let (_, mut responder) = pair(pattern, hybrid);
    let mut failed = false;
    while let Some((len, rest)) = messages.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
        let (message, rest) = rest.split_at(len);
        messages = rest;
        let was_my_turn = responder.is_my_turn();
        let was_finished = responder.is_finished();
        match responder.read_message(message) {
            Ok(()) => assert!(!failed && !was_my_turn && !was_finished, "read out of turn"),
            Err(HandshakeError::OutOfTurn) => assert!(was_my_turn || was_finished),
            Err(error) => {
                assert_eq!(error == HandshakeError::Failed, failed, "{error}");
                failed = true;
            }
        }
        if responder.is_my_turn() {
            responder.write_message(&mut Vec::new()).expect("it is our turn");
        }
    }
    let finished = responder.is_finished();
    assert_eq!(responder.finish().is_ok(), finished);
}

fn edited(pattern: Pattern, hybrid: Hybrid, edits: &[u8]) {
    let (mut initiator, mut responder) = pair(pattern, hybrid);
    let mut messages = 0;
    while !(initiator.is_finished() && responder.is_finished()) {
        let (writer, reader) = if messages % 2 == 0 {
            (&mut initiator, &mut responder)
        } else {
            (&mut responder, &mut initiator)
        };
        let mut message = Vec::new();
        writer.write_message(&mut message).expect("it is the writer's turn");
        let honest = message.clone();
        for edit in edits.chunks_exact(4).filter(|edit| edit[0] % 3 == messages) {
            let at = usize::from(u16::from_be_bytes([edit[1], edit[2]])) % (message.len() + 1);
            match message.get_mut(at) {
                Some(byte) => *byte ^= edit[3],
                None => message.push(edit[3]),
            }
        }
        let read = reader.read_message(&message);
        if message != honest {
            assert!(read.is_err(), "an edited message was accepted");
            assert_eq!(reader.read_message(&honest), Err(HandshakeError::Failed), "a second try");
            return;
        }
        read.expect("an honest message");
        messages += 1;
    }
    let (initiator, responder) =
        (initiator.finish().expect("finished"), responder.finish().expect("finished"));
    assert_eq!(initiator.send.expose(), responder.receive.expose());
    assert_eq!(initiator.receive.expose(), responder.send.expose());
    assert_eq!(initiator.hybrid, hybrid != Hybrid::Off);
}

fn pair(pattern: Pattern, hybrid: Hybrid) -> (Handshake, Handshake) {
    let mut entropy = SeededEntropy::new(1);
    let (one, two) = (SecretKey::generate(&mut entropy), SecretKey::generate(&mut entropy));
    let known = (pattern == Pattern::Kk).then(|| one.public_key());
    let initiator =
        Handshake::new(pattern, Role::Initiator, &one, Some(&two.public_key()), hybrid, &mut entropy);
    let responder = Handshake::new(pattern, Role::Responder, &two, known.as_ref(), hybrid, &mut entropy);
    (initiator.expect("the peer is named"), responder.expect("the peer is named where it must be"))
}
