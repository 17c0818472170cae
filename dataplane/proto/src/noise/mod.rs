//! The two handshakes of dmsg: Noise XK for sessions, Noise KK for streams, with the hybrid part (dmsg-wire 2).
//!
//! In: our key, the peer's key where it is known, entropy, and the peer's messages. Out: our messages and, at the end,
//! an [`Outcome`]: one key for each direction, the peer's identity, the handshake hash. No I/O and no framing: session
//! messages travel in frames ([`crate::frame`]), stream messages in signed objects ([`crate::object`]).
//!
//! ```text
//!            initiator                          responder
//!   XK   1   write e, es [+ offer]       ──►    read            49 bytes, 1233 with the offer
//!        2   read                        ◄──    write e, ee     49 bytes, 1137 with the answer
//!        3   write s, se                 ──►    read            65 bytes
//!   KK   1   write e, es, ss [+ offer]   ──►    read            49 bytes, 1233 with the offer
//!        2   read                        ◄──    write e, ee, se 49 bytes, 1137 with the answer
//! ```
//!
//! A handshake that fails stays failed: close the connection, there is no second try on the same state.

mod hybrid;
mod outcome;
mod resolver;
pub mod sealed;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use snow::params::{
    BaseChoice, CipherChoice, DHChoice, HandshakeChoice, HandshakeModifierList, HandshakePattern, HashChoice,
    NoiseParams,
};
use zeroize::Zeroizing;

use crate::aead::TAG_LEN;
use crate::entropy::Entropy;
use crate::identity::{PublicKey, SecretKey};

pub use hybrid::{HYBRID_ANSWER_LEN, HYBRID_OFFER_LEN};
use outcome::engine;
pub use outcome::{DirectionKey, HandshakeError, Outcome};

/// Largest handshake message of the Noise framework in bytes. On a session the frame's limit of 4094 comes first.
pub const MESSAGE_MAX: usize = 65_535;
/// Length in bytes of messages 1 and 2 of both patterns, without payload (dmsg-wire 2.3, 2.4).
pub const EPHEMERAL_MESSAGE_LEN: usize = 49;
/// Length in bytes of message 3 of XK, without payload (dmsg-wire 2.3).
pub const STATIC_MESSAGE_LEN: usize = 65;

/// Which handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Sessions: the initiator knows the responder (dmsg-wire 2.3).
    Xk,
    /// Streams: both know each other (dmsg-wire 2.4).
    Kk,
}

impl Pattern {
    /// The protocol name, which enters the handshake hash (dmsg-wire 2.1).
    pub fn protocol_name(self) -> &'static str {
        match self {
            Self::Xk => "Noise_XK_Secp256k1_ChaChaPoly_SHA256",
            Self::Kk => "Noise_KK_Secp256k1_ChaChaPoly_SHA256",
        }
    }

    fn parameters(self) -> NoiseParams {
        let pattern = match self {
            Self::Xk => HandshakePattern::XK,
            Self::Kk => HandshakePattern::KK,
        };
        NoiseParams::new(
            self.protocol_name().to_string(),
            BaseChoice::Noise,
            HandshakeChoice { pattern, modifiers: HandshakeModifierList { list: Vec::new() } },
            // snow knows no secp256k1: the choice only selects what our resolver returns whatever it is.
            DHChoice::Curve25519,
            CipherChoice::ChaChaPoly,
            HashChoice::SHA256,
        )
    }
}

/// Which side. The initiator writes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The side that dialled.
    Initiator,
    /// The side that was dialled.
    Responder,
}

/// What to do about the post-quantum part (dmsg-wire 2.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hybrid {
    /// Never offer and never answer: every handshake is classical.
    Off,
    /// An initiator offers, a responder answers an offer; peers that do not take part are served classically.
    #[default]
    Offer,
    /// As [`Hybrid::Offer`], but a handshake that would end classical fails with [`HandshakeError::HybridRequired`].
    Require,
}

/// One handshake in progress, on one side.
///
/// Call [`write_message`](Self::write_message) and [`read_message`](Self::read_message) in turn, the initiator writing
/// first, until [`is_finished`](Self::is_finished), then [`finish`](Self::finish).
pub struct Handshake {
    state: snow::HandshakeState,
    pattern: Pattern,
    role: Role,
    expected_remote: Option<PublicKey>,
    exchange: hybrid::Exchange,
    hybrid: Hybrid,
    messages_done: u8,
    failed: bool,
}

impl Handshake {
    /// Prepares one side.
    ///
    /// `remote` is the peer's key. It is required except for an XK responder, which learns it from message 3; there a
    /// given key is the only one that is let in.
    ///
    /// All entropy is drawn here, in this order: 32 bytes for the ephemeral key (again while they are no valid key),
    /// then, unless `hybrid` is [`Hybrid::Off`], 64 bytes for an initiator (`d || z` of the ML-KEM key pair) or 32 for
    /// a responder (`m` of the encapsulation).
    ///
    /// # Errors
    /// [`HandshakeError::MissingRemote`] when `remote` is required and absent.
    pub fn new(
        pattern: Pattern,
        role: Role,
        local: &SecretKey,
        remote: Option<&PublicKey>,
        hybrid: Hybrid,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, HandshakeError> {
        let knows_remote = (pattern, role) != (Pattern::Xk, Role::Responder);
        if knows_remote && remote.is_none() {
            return Err(HandshakeError::MissingRemote);
        }
        let ephemeral_key = SecretKey::generate(entropy);
        let exchange = match hybrid {
            Hybrid::Off => hybrid::Exchange::Classical,
            Hybrid::Offer | Hybrid::Require => hybrid::Exchange::new(role, entropy),
        };
        let resolver = resolver::Resolver::new(local.clone(), ephemeral_key);
        let mut builder = snow::Builder::with_resolver(pattern.parameters(), Box::new(resolver))
            .local_private_key(local.expose_bytes())
            .map_err(engine)?;
        if let (true, Some(remote)) = (knows_remote, remote) {
            builder = builder.remote_public_key(remote.as_bytes()).map_err(engine)?;
        }
        let state = match role {
            Role::Initiator => builder.build_initiator(),
            Role::Responder => builder.build_responder(),
        }
        .map_err(engine)?;
        let expected_remote = remote.copied();
        Ok(Self { state, pattern, role, expected_remote, exchange, hybrid, messages_done: 0, failed: false })
    }

    /// Appends our next message to `out`, without any length in front.
    ///
    /// # Errors
    /// [`HandshakeError::OutOfTurn`] when it is the peer's turn or all is said; [`HandshakeError::Failed`] after an
    /// earlier failure; [`HandshakeError::InvalidRemoteKey`] never for keys of type [`PublicKey`].
    pub fn write_message(&mut self, out: &mut Vec<u8>) -> Result<(), HandshakeError> {
        self.check_turn(true)?;
        let payload = self.exchange.payload();
        self.write_in_turn(&payload, out)
    }

    /// As [`write_message`](Self::write_message), with a payload of the caller's in place of the hybrid part: what a peer may send that is
    /// of another time. In messages 1 and 2 it leaves the handshake classical.
    ///
    /// # Errors
    /// As for `write_message`, and [`HandshakeError::Engine`] when the message would be longer than [`MESSAGE_MAX`].
    pub fn write_message_with(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), HandshakeError> {
        self.check_turn(true)?;
        self.exchange.give_up();
        self.write_in_turn(payload, out)
    }

    fn write_in_turn(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), HandshakeError> {
        let start = out.len();
        out.resize(start + STATIC_MESSAGE_LEN + TAG_LEN + payload.len(), 0);
        match self.state.write_message(payload, &mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                self.messages_done += 1;
                Ok(())
            }
            Err(error) => {
                out.truncate(start);
                self.failed = true;
                Err(engine(error))
            }
        }
    }

    /// Takes the peer's next message, whole and without a length in front.
    ///
    /// A payload that is not the hybrid part expected here is ignored, as the Go peers do (dmsg-wire 2.1, 2.8).
    ///
    /// # Errors
    /// The message is refused and the handshake has failed for good: [`HandshakeError::MessageLength`],
    /// [`HandshakeError::InvalidRemoteKey`], [`HandshakeError::BadTag`], [`HandshakeError::OtherRemote`],
    /// [`HandshakeError::HybridRequired`]. Without harm to the handshake: [`HandshakeError::OutOfTurn`].
    pub fn read_message(&mut self, message: &[u8]) -> Result<(), HandshakeError> {
        self.check_turn(false)?;
        let result = self.read_in_turn(message);
        self.failed = result.is_err();
        result
    }

    fn read_in_turn(&mut self, message: &[u8]) -> Result<(), HandshakeError> {
        let is_third = self.messages_done == 2;
        let least = if is_third { STATIC_MESSAGE_LEN } else { EPHEMERAL_MESSAGE_LEN };
        if !(least..=MESSAGE_MAX).contains(&message.len()) {
            return Err(HandshakeError::MessageLength { least, found: message.len() });
        }
        let mut payload = vec![0; message.len()];
        let payload_len = self.state.read_message(message, &mut payload).map_err(engine)?;
        self.messages_done += 1;
        if is_third {
            return self.check_remote();
        }
        self.exchange.handle_payload(&payload[..payload_len]);
        self.check_hybrid()
    }

    /// True when the last message has been written or read.
    pub fn is_finished(&self) -> bool {
        !self.failed && self.state.is_handshake_finished()
    }

    /// True when the next step is [`write_message`](Self::write_message).
    pub fn is_my_turn(&self) -> bool {
        !self.failed && !self.state.is_handshake_finished() && self.state.is_my_turn()
    }

    /// The handshake hash so far; after the last message it is [`Outcome::hash`].
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.state.get_handshake_hash());
        hash
    }

    /// The result.
    ///
    /// Quirk, XK directions: the side that *writes* the last message sends with the second key of the split. For KK
    /// this is the responder, as Noise has it; for XK it is the initiator, the reverse of Noise (dmsg-wire 2.5).
    ///
    /// # Errors
    /// [`HandshakeError::NotFinished`] before the last message, [`HandshakeError::Failed`] after a failure.
    pub fn finish(mut self) -> Result<Outcome, HandshakeError> {
        if self.failed {
            return Err(HandshakeError::Failed);
        }
        if !self.state.is_handshake_finished() {
            return Err(HandshakeError::NotFinished);
        }
        self.check_hybrid()?;
        let remote = self.remote()?;
        let hash = self.hash();
        let (first, second) = self.state.dangerously_get_raw_split();
        let first = self.exchange.combine(DirectionKey::new(Zeroizing::new(first)), &hash);
        let second = self.exchange.combine(DirectionKey::new(Zeroizing::new(second)), &hash);
        let wrote_last = match self.pattern {
            Pattern::Xk => self.role == Role::Initiator,
            Pattern::Kk => self.role == Role::Responder,
        };
        let (send, receive) = if wrote_last { (second, first) } else { (first, second) };
        Ok(Outcome { send, receive, remote, hash, hybrid: self.exchange.is_agreed() })
    }

    fn check_turn(&self, to_write: bool) -> Result<(), HandshakeError> {
        if self.failed {
            Err(HandshakeError::Failed)
        } else if self.state.is_handshake_finished() || self.state.is_my_turn() != to_write {
            Err(HandshakeError::OutOfTurn)
        } else {
            Ok(())
        }
    }

    /// The peer's key, which the `se` or `ss` of an earlier message has shown to be a point.
    fn remote(&self) -> Result<PublicKey, HandshakeError> {
        let bytes = self.state.get_remote_static().ok_or(HandshakeError::NotFinished)?;
        let bytes = bytes.try_into().map_err(|_| HandshakeError::InvalidRemoteKey)?;
        Ok(PublicKey::from_used_bytes(bytes))
    }

    fn check_remote(&self) -> Result<(), HandshakeError> {
        match self.expected_remote {
            Some(expected) if self.remote()? != expected => Err(HandshakeError::OtherRemote),
            _ => Ok(()),
        }
    }

    fn check_hybrid(&self) -> Result<(), HandshakeError> {
        let lost = matches!(self.exchange, hybrid::Exchange::Classical);
        if self.hybrid == Hybrid::Require && lost { Err(HandshakeError::HybridRequired) } else { Ok(()) }
    }
}
