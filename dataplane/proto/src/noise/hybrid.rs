//! The post-quantum half of a hybrid handshake: ML-KEM-768 in the handshake payloads (dmsg-wire 2.8).
//!
//! In: the role, the bytes drawn for it, and the payloads of messages 1 and 2. Out: the payload to send, and a secret
//! that is mixed into the keys of both directions when the two sides took part. Called by [`super::Handshake`] only.
//!
//! Nothing a peer sends here is an error: a payload that is no offer or no answer leaves the handshake classical, and a
//! damaged ciphertext gives another secret (implicit rejection), so that the first transport packet fails.

use alloc::vec::Vec;

use hkdf::Hkdf;
use ml_kem::kem::{Decapsulate, KeyExport};
use ml_kem::ml_kem_768::{Ciphertext, DecapsulationKey, EncapsulationKey};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{DirectionKey, Role};
use crate::entropy::Entropy;

/// Length of the initiator's offer, an ML-KEM-768 encapsulation key, in bytes (dmsg-wire 2.8).
pub const HYBRID_OFFER_LEN: usize = 1184;
/// Length of the responder's answer, an ML-KEM-768 ciphertext, in bytes (dmsg-wire 2.8).
pub const HYBRID_ANSWER_LEN: usize = 1088;

const INFO: &[u8] = b"skywire-pq-hybrid-v1";

/// How far one side is.
pub(super) enum Exchange {
    /// Not wanted, or the peer did not take part.
    Classical,
    /// Initiator before message 1: the seed `d || z` of the key pair.
    ToOffer(Zeroizing<[u8; 64]>),
    /// Initiator between messages 1 and 2.
    Offered(DecapsulationKey),
    /// Responder before message 1: the randomness `m` of the encapsulation.
    Listening(Zeroizing<[u8; 32]>),
    /// Responder between messages 1 and 2.
    ToAnswer(EncapsulationKey, Zeroizing<[u8; 32]>),
    /// Both sides have the secret.
    Agreed(Zeroizing<[u8; 32]>),
}

impl Exchange {
    pub(super) fn new(role: Role, entropy: &mut dyn Entropy) -> Self {
        match role {
            Role::Initiator => {
                let mut seed = Zeroizing::new([0; 64]);
                entropy.fill(&mut *seed);
                Self::ToOffer(seed)
            }
            Role::Responder => {
                let mut randomness = Zeroizing::new([0; 32]);
                entropy.fill(&mut *randomness);
                Self::Listening(randomness)
            }
        }
    }

    pub(super) fn is_agreed(&self) -> bool {
        matches!(self, Self::Agreed(_))
    }

    /// Something else was said in its place; what both sides have agreed on already stays.
    pub(super) fn give_up(&mut self) {
        if !self.is_agreed() {
            *self = Self::Classical;
        }
    }

    /// The payload of the message that is written now. The expensive work waits until here, behind the checks of the
    /// message before.
    pub(super) fn payload(&mut self) -> Vec<u8> {
        let (next, payload) = match core::mem::replace(self, Self::Classical) {
            Self::ToOffer(seed) => {
                let key = DecapsulationKey::from_seed((*seed).into());
                let offer = key.encapsulation_key().to_bytes().to_vec();
                (Self::Offered(key), offer)
            }
            Self::ToAnswer(offer, randomness) => {
                let (answer, secret) = offer.encapsulate_deterministic(&(*randomness).into());
                (Self::Agreed(Zeroizing::new(secret.into())), answer.to_vec())
            }
            other => (other, Vec::new()),
        };
        *self = next;
        payload
    }

    /// Takes the payload of a message that came in and was authentic.
    pub(super) fn handle_payload(&mut self, payload: &[u8]) {
        *self = match core::mem::replace(self, Self::Classical) {
            Self::Listening(randomness) => match parse_offer(payload) {
                Some(offer) => Self::ToAnswer(offer, randomness),
                None => Self::Classical,
            },
            Self::Offered(key) => match Ciphertext::try_from(payload) {
                Ok(answer) => Self::Agreed(Zeroizing::new(key.decapsulate(&answer).into())),
                Err(_) => Self::Classical,
            },
            other => other,
        };
    }

    /// Replaces a key of the split by the hybrid one; leaves it as it is when the handshake was classical.
    pub(super) fn combine(&self, key: DirectionKey, hash: &[u8; 32]) -> DirectionKey {
        let Self::Agreed(secret) = self else { return key };
        let mut material = Zeroizing::new([0; 64]);
        material[..32].copy_from_slice(key.expose());
        material[32..].copy_from_slice(&**secret);
        let mut combined = Zeroizing::new([0; 32]);
        #[allow(clippy::expect_used, reason = "the message is the proof")]
        Hkdf::<Sha256>::new(Some(hash), &*material)
            .expand(INFO, &mut *combined)
            .expect("HKDF-SHA-256 gives up to 8160 bytes, and 32 are asked for");
        DirectionKey::new(combined)
    }
}

fn parse_offer(payload: &[u8]) -> Option<EncapsulationKey> {
    let bytes = payload.try_into().ok()?;
    EncapsulationKey::new(bytes).ok()
}
