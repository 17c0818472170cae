//! Recoverable ECDSA signatures and the rule that decides whether one is valid (dmsg-wire 1.2).
//!
//! In: a payload (or its SHA-256), a signature of 65 bytes, a public key. Out: a verdict, or a signature of ours.
//! Called by signed objects, discovery entries and certificates.

use core::fmt;

use secp256k1::Message;
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};

use super::key::{KeyError, PublicKey, SecretKey, decode_hex, write_hex};
use super::sha256;

/// Length of a signature in bytes: R, S and the recovery id (dmsg-wire 1.2).
pub const SIGNATURE_LEN: usize = 65;

/// `R (32) || S (32) || recid (1)`, not yet verified (dmsg-wire 1.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature([u8; SIGNATURE_LEN]);

impl Signature {
    /// Takes the 65 bytes as they are; their value is judged by [`verify`].
    ///
    /// # Errors
    /// [`SignatureError::Length`] for any other length.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignatureError> {
        bytes.try_into().map(Self).map_err(|_| SignatureError::Length { found: bytes.len() })
    }

    /// The 65 bytes.
    pub fn as_bytes(&self) -> &[u8; SIGNATURE_LEN] {
        &self.0
    }

    /// Reads 130 hex characters of either case.
    ///
    /// # Errors
    /// [`SignatureError::Length`] or [`SignatureError::Hex`].
    pub fn from_hex(text: &str) -> Result<Self, SignatureError> {
        match decode_hex::<SIGNATURE_LEN>(text) {
            Ok(bytes) => Ok(Self(*bytes)),
            Err(KeyError::Length { found, .. }) => Err(SignatureError::Length { found }),
            Err(_) => Err(SignatureError::Hex),
        }
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

/// Signs SHA-256 of `payload`. Deterministic (RFC 6979), S in its lower half: accepted by both generations.
pub fn sign(secret_key: &SecretKey, payload: &[u8]) -> Signature {
    sign_hash(secret_key, &sha256(payload))
}

/// Signs a hash that the caller has computed.
pub fn sign_hash(secret_key: &SecretKey, hash: &[u8; 32]) -> Signature {
    let signed = secret_key.with_scalar(|scalar| {
        RecoverableSignature::sign_ecdsa_recoverable(Message::from_digest(*hash), scalar)
    });
    let (recovery_id, compact) = signed.serialize_compact();
    let mut bytes = [0; SIGNATURE_LEN];
    bytes[..64].copy_from_slice(&compact);
    bytes[64] = recovery_id.to_u8();
    Signature(bytes)
}

/// Decides whether `signature` is `public_key`'s over SHA-256 of `payload` (dmsg-wire 1.2).
///
/// # Errors
/// As [`verify_hash`].
pub fn verify(public_key: &PublicKey, payload: &[u8], signature: &Signature) -> Result<(), SignatureError> {
    verify_hash(public_key, &sha256(payload), signature)
}

/// Decides whether `signature` is `public_key`'s over `hash`, by the rule of dmsg-wire 1.2: top bit of S clear,
/// recovery id below 4, recovered key equal.
///
/// Quirk: malleability is judged by the top bit of S alone, so an S between n/2 and 2^255 is valid.
/// Quirk: a correct (R, S) with the recovery id of another key is invalid.
///
/// # Errors
/// The first step of the rule that fails; [`SignatureError::OtherKey`] when it is somebody else's signature.
pub fn verify_hash(
    public_key: &PublicKey,
    hash: &[u8; 32],
    signature: &Signature,
) -> Result<(), SignatureError> {
    if signature.0[32] & 0x80 != 0 {
        return Err(SignatureError::HighS);
    }
    if recover(hash, signature)? == *public_key { Ok(()) } else { Err(SignatureError::OtherKey) }
}

/// The key whose signature over `hash` this is (dmsg-wire 1.2). Any S below n is taken, its top bit is not looked at.
///
/// # Errors
/// [`SignatureError::RecoveryId`] at 4 and above, [`SignatureError::Unrecoverable`] when R or S is zero or not below
/// n, when no point has this R, or when the result is infinity.
pub fn recover(hash: &[u8; 32], signature: &Signature) -> Result<PublicKey, SignatureError> {
    let recovery_id =
        RecoveryId::try_from(i32::from(signature.0[64])).map_err(|_| SignatureError::RecoveryId)?;
    RecoverableSignature::from_compact(&signature.0[..64], recovery_id)
        .and_then(|parsed| parsed.recover_ecdsa(Message::from_digest(*hash)))
        .map(|point| PublicKey::from_point(&point))
        .map_err(|_| SignatureError::Unrecoverable)
}

/// Why a signature is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The number of bytes is not 65.
    #[error("a signature has 65 bytes, not {found}")]
    Length {
        /// The number of bytes that came.
        found: usize,
    },
    /// The text is not hexadecimal.
    #[error("the text is not hexadecimal")]
    Hex,
    /// The top bit of S is set.
    #[error("the top bit of S is set")]
    HighS,
    /// The recovery id is not below 4.
    #[error("the recovery id is not below 4")]
    RecoveryId,
    /// No public key can be recovered from these numbers.
    #[error("no public key can be recovered from the signature")]
    Unrecoverable,
    /// A valid signature of another key, or over another payload.
    #[error("the signature is not of this key over this payload")]
    OtherKey,
}
