//! What only a peer that breaks the rules can send: payloads and keys that [`Handshake`] itself never writes.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};

use super::resolver::Resolver;
use super::*;
use crate::entropy::SeededEntropy;

struct Parties {
    initiator: SecretKey,
    responder: SecretKey,
    entropy: SeededEntropy,
}

fn parties() -> Parties {
    let mut entropy = SeededEntropy::new(42);
    Parties {
        initiator: SecretKey::generate(&mut entropy),
        responder: SecretKey::generate(&mut entropy),
        entropy,
    }
}

impl Parties {
    fn side(&mut self, pattern: Pattern, role: Role, hybrid: Hybrid) -> Handshake {
        let (local, remote) = match role {
            Role::Initiator => (&self.initiator, self.responder.public_key()),
            Role::Responder => (&self.responder, self.initiator.public_key()),
        };
        Handshake::new(pattern, role, local, Some(&remote), hybrid, &mut self.entropy).unwrap()
    }
}

/// Writes the next message with a payload of the test's choice.
fn write_with(handshake: &mut Handshake, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    handshake.write_message_with(payload, &mut message).unwrap();
    message
}

fn write(handshake: &mut Handshake) -> Vec<u8> {
    let mut message = Vec::new();
    handshake.write_message(&mut message).unwrap();
    message
}

fn other_payloads(right: usize) -> Vec<Vec<u8>> {
    let lengths = [0, 1, 32, right - 1, right + 1, 4045, MESSAGE_MAX - EPHEMERAL_MESSAGE_LEN];
    let mut payloads: Vec<Vec<u8>> = lengths.iter().map(|len| vec![0x55; *len]).collect();
    if right == HYBRID_OFFER_LEN {
        // The right length, but coefficients of 4095 are above the modulus of 3329.
        payloads.push(vec![0xff; right]);
    }
    payloads
}

#[test]
fn any_other_payload_of_message_1_leaves_it_classical() {
    for pattern in [Pattern::Xk, Pattern::Kk] {
        for payload in other_payloads(HYBRID_OFFER_LEN) {
            let mut parties = parties();
            let mut initiator = parties.side(pattern, Role::Initiator, Hybrid::Off);
            let mut responder = parties.side(pattern, Role::Responder, Hybrid::Offer);
            let mut strict = parties.side(pattern, Role::Responder, Hybrid::Require);
            let message = write_with(&mut initiator, &payload);
            assert_eq!(strict.read_message(&message), Err(HandshakeError::HybridRequired));
            responder.read_message(&message).unwrap();
            let answer = write(&mut responder);
            assert_eq!(answer.len(), EPHEMERAL_MESSAGE_LEN);
            initiator.read_message(&answer).unwrap();
            if pattern == Pattern::Xk {
                responder.read_message(&write(&mut initiator)).unwrap();
            }
            let (initiator, responder) = (initiator.finish().unwrap(), responder.finish().unwrap());
            assert!(!initiator.hybrid && !responder.hybrid);
            assert_eq!(initiator.send.expose(), responder.receive.expose());
            assert_eq!(initiator.receive.expose(), responder.send.expose());
        }
    }
}

#[test]
fn any_other_payload_of_message_2_leaves_it_classical() {
    for pattern in [Pattern::Xk, Pattern::Kk] {
        for payload in other_payloads(HYBRID_ANSWER_LEN) {
            let mut parties = parties();
            let mut initiator = parties.side(pattern, Role::Initiator, Hybrid::Offer);
            let mut responder = parties.side(pattern, Role::Responder, Hybrid::Off);
            responder.read_message(&write(&mut initiator)).unwrap();
            let answer = write_with(&mut responder, &payload);
            initiator.read_message(&answer).unwrap();
            if pattern == Pattern::Xk {
                let last = write(&mut initiator);
                assert_eq!(last.len(), STATIC_MESSAGE_LEN);
                responder.read_message(&last).unwrap();
            }
            assert!(!initiator.finish().unwrap().hybrid);
        }
    }
}

/// ML-KEM rejects implicitly: any ciphertext of the right length gives a secret, and only the packets show that it is
/// another one.
#[test]
fn a_foreign_ciphertext_gives_other_keys() {
    let mut parties = parties();
    let mut initiator = parties.side(Pattern::Kk, Role::Initiator, Hybrid::Offer);
    let mut responder = parties.side(Pattern::Kk, Role::Responder, Hybrid::Offer);
    responder.read_message(&write(&mut initiator)).unwrap();
    let mut answer = responder.exchange.payload();
    answer[100] ^= 1;
    let message = write_with(&mut responder, &answer);
    initiator.read_message(&message).unwrap();
    let (initiator, responder) = (initiator.finish().unwrap(), responder.finish().unwrap());
    assert!(initiator.hybrid && responder.hybrid);
    assert_eq!(initiator.hash, responder.hash);
    assert_ne!(initiator.send.expose(), responder.receive.expose());
    assert_ne!(initiator.receive.expose(), responder.send.expose());
}

#[test]
fn a_payload_in_message_3_is_ignored() {
    let mut parties = parties();
    let mut initiator = parties.side(Pattern::Xk, Role::Initiator, Hybrid::Offer);
    let mut responder = parties.side(Pattern::Xk, Role::Responder, Hybrid::Offer);
    responder.read_message(&write(&mut initiator)).unwrap();
    initiator.read_message(&write(&mut responder)).unwrap();
    let message = write_with(&mut initiator, &[0x33; HYBRID_OFFER_LEN]);
    responder.read_message(&message).unwrap();
    let (initiator, responder) = (initiator.finish().unwrap(), responder.finish().unwrap());
    assert!(responder.hybrid);
    assert_eq!(initiator.send.expose(), responder.receive.expose());
}

/// Keys that are no points: wrong prefix, x without a point, x not below p, the null key.
fn invalid_keys() -> [[u8; 33]; 4] {
    let mut no_point = [0; 33];
    (no_point[0], no_point[32]) = (2, 5);
    let mut too_large = [0xff; 33];
    too_large[0] = 3;
    let mut prefix = *parties().initiator.public_key().as_bytes();
    prefix[0] = 4;
    [prefix, no_point, too_large, [0; 33]]
}

#[test]
fn an_invalid_ephemeral_key_fails_the_handshake() {
    for key in invalid_keys() {
        for pattern in [Pattern::Xk, Pattern::Kk] {
            let mut parties = parties();
            let mut initiator = parties.side(pattern, Role::Initiator, Hybrid::Offer);
            let mut responder = parties.side(pattern, Role::Responder, Hybrid::Offer);
            let first = write(&mut initiator);
            let mut bad = first.clone();
            bad[..33].copy_from_slice(&key);
            let mut other = parties.side(pattern, Role::Responder, Hybrid::Offer);
            assert_eq!(other.read_message(&bad), Err(HandshakeError::InvalidRemoteKey));
            assert_eq!(other.read_message(&first), Err(HandshakeError::Failed));

            responder.read_message(&first).unwrap();
            let mut answer = write(&mut responder);
            answer[..33].copy_from_slice(&key);
            assert_eq!(initiator.read_message(&answer), Err(HandshakeError::InvalidRemoteKey));
            assert_eq!(initiator.finish().unwrap_err(), HandshakeError::Failed);
        }
    }
}

/// Message 3 carries the static key under encryption, so only an initiator that lies about its key can send a bad one.
#[test]
fn an_invalid_static_key_fails_the_handshake() {
    for key in invalid_keys() {
        let mut parties = parties();
        let ephemeral_key = SecretKey::generate(&mut parties.entropy);
        let resolver = Resolver::new(parties.initiator.clone(), ephemeral_key);
        let responder_key = parties.responder.public_key();
        let mut liar = snow::Builder::with_resolver(Pattern::Xk.parameters(), Box::new(Lying(resolver, key)))
            .local_private_key(parties.initiator.expose_bytes())
            .and_then(|builder| builder.remote_public_key(responder_key.as_bytes()))
            .and_then(snow::Builder::build_initiator)
            .unwrap();
        let mut responder = parties.side(Pattern::Xk, Role::Responder, Hybrid::Offer);
        let mut buffer = [0; 200];
        let len = liar.write_message(&[], &mut buffer).unwrap();
        responder.read_message(&buffer[..len]).unwrap();
        liar.read_message(&write(&mut responder), &mut buffer).unwrap();
        let len = liar.write_message(&[], &mut buffer).unwrap();
        assert_eq!(len, STATIC_MESSAGE_LEN);
        assert_eq!(responder.read_message(&buffer[..len]), Err(HandshakeError::InvalidRemoteKey));
    }
}

/// A resolver whose static DH object states another public key than it has.
struct Lying(Resolver, [u8; 33]);

impl CryptoResolver for Lying {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        self.0.resolve_rng()
    }
    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(LyingDh { honest: self.0.resolve_dh(choice)?, claimed: None, claim: self.1 }))
    }
    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        self.0.resolve_hash(choice)
    }
    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        self.0.resolve_cipher(choice)
    }
}

struct LyingDh {
    honest: Box<dyn Dh>,
    claimed: Option<[u8; 33]>,
    claim: [u8; 33],
}

impl Dh for LyingDh {
    fn name(&self) -> &'static str {
        self.honest.name()
    }
    fn pub_len(&self) -> usize {
        self.honest.pub_len()
    }
    fn priv_len(&self) -> usize {
        self.honest.priv_len()
    }
    fn set(&mut self, secret: &[u8]) {
        self.claimed = Some(self.claim);
        self.honest.set(secret);
    }
    fn generate(&mut self, random: &mut dyn Random) -> Result<(), snow::Error> {
        self.honest.generate(random)
    }
    fn pubkey(&self) -> &[u8] {
        match &self.claimed {
            Some(claimed) => claimed,
            None => self.honest.pubkey(),
        }
    }
    fn privkey(&self) -> &[u8] {
        self.honest.privkey()
    }
    fn dh(&self, remote: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        self.honest.dh(remote, out)
    }
}

#[test]
fn lengths_are_checked_before_anything_else() {
    for len in [0, 1, 32, 33, 48, MESSAGE_MAX + 1] {
        let mut responder = parties().side(Pattern::Xk, Role::Responder, Hybrid::Offer);
        let expected = HandshakeError::MessageLength { least: EPHEMERAL_MESSAGE_LEN, found: len };
        assert_eq!(responder.read_message(&vec![2; len]), Err(expected));
    }
    let mut parties = parties();
    let mut initiator = parties.side(Pattern::Xk, Role::Initiator, Hybrid::Off);
    let mut responder = parties.side(Pattern::Xk, Role::Responder, Hybrid::Off);
    responder.read_message(&write(&mut initiator)).unwrap();
    initiator.read_message(&write(&mut responder)).unwrap();
    let last = write(&mut initiator);
    let expected = HandshakeError::MessageLength { least: STATIC_MESSAGE_LEN, found: 64 };
    assert_eq!(responder.read_message(&last[..64]), Err(expected));
}

#[test]
fn steps_out_of_turn_do_no_harm() {
    let mut parties = parties();
    let mut initiator = parties.side(Pattern::Kk, Role::Initiator, Hybrid::Offer);
    let mut responder = parties.side(Pattern::Kk, Role::Responder, Hybrid::Offer);
    assert_eq!(initiator.read_message(&[2; 49]), Err(HandshakeError::OutOfTurn));
    assert_eq!(responder.write_message(&mut Vec::new()), Err(HandshakeError::OutOfTurn));
    let mut out = vec![1, 2, 3];
    initiator.write_message(&mut out).unwrap();
    assert_eq!(out.len(), 3 + EPHEMERAL_MESSAGE_LEN + HYBRID_OFFER_LEN);
    assert_eq!(initiator.write_message(&mut out), Err(HandshakeError::OutOfTurn));
    responder.read_message(&out[3..]).unwrap();
    initiator.read_message(&write(&mut responder)).unwrap();
    assert_eq!(initiator.write_message(&mut out), Err(HandshakeError::OutOfTurn));
    assert_eq!(responder.read_message(&out[3..]), Err(HandshakeError::OutOfTurn));
    assert!(initiator.finish().unwrap().hybrid && responder.finish().unwrap().hybrid);
}

#[test]
fn names_of_parties_are_checked() {
    let mut parties = parties();
    let stranger = SecretKey::generate(&mut parties.entropy);
    for (pattern, role) in
        [(Pattern::Xk, Role::Initiator), (Pattern::Kk, Role::Initiator), (Pattern::Kk, Role::Responder)]
    {
        let handshake = Handshake::new(pattern, role, &stranger, None, Hybrid::Off, &mut parties.entropy);
        assert!(matches!(handshake, Err(HandshakeError::MissingRemote)));
    }
    // The key of the side that waits is known to the stranger, but the stranger is not the one that is let in.
    let expected = parties.initiator.public_key();
    for pinned in [None, Some(&expected)] {
        let mut initiator = Handshake::new(
            Pattern::Xk,
            Role::Initiator,
            &stranger,
            Some(&parties.responder.public_key()),
            Hybrid::Off,
            &mut parties.entropy,
        )
        .unwrap();
        let local = parties.responder.clone();
        let entropy = &mut parties.entropy;
        let mut responder =
            Handshake::new(Pattern::Xk, Role::Responder, &local, pinned, Hybrid::Off, entropy).unwrap();
        responder.read_message(&write(&mut initiator)).unwrap();
        initiator.read_message(&write(&mut responder)).unwrap();
        let last = responder.read_message(&write(&mut initiator));
        if pinned.is_some() {
            assert_eq!(last, Err(HandshakeError::OtherRemote));
        } else {
            assert_eq!(responder.finish().unwrap().remote, stranger.public_key());
        }
    }
}

/// An initiator that expects somebody else, and a KK pair that disagrees about who is who, fail at message 1.
#[test]
fn a_wrong_static_key_fails_at_message_1() {
    for pattern in [Pattern::Xk, Pattern::Kk] {
        let mut one = parties();
        let mut initiator = one.side(pattern, Role::Initiator, Hybrid::Offer);
        let mut two = parties();
        two.responder = SecretKey::generate(&mut two.entropy);
        let mut responder = two.side(pattern, Role::Responder, Hybrid::Offer);
        assert_eq!(responder.read_message(&write(&mut initiator)), Err(HandshakeError::BadTag));
    }
}

#[test]
fn a_handshake_may_move_between_threads() {
    fn is_send<T: Send>() {}
    is_send::<Handshake>();
}
