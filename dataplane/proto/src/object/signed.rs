//! `signature (65) || gob`: the envelope of every object (dmsg-wire 7).

use alloc::vec::Vec;

use super::{ErrorCode, ObjectError};
use crate::identity::{PublicKey, SIGNATURE_LEN, SecretKey, Signature, SignatureError, sha256, sign, verify};

/// A signed object taken apart; nothing is verified yet.
#[derive(Debug, Clone, Copy)]
pub struct SignedObject<'a> {
    /// Over SHA-256 of the gob bytes, by the author.
    pub signature: Signature,
    /// The gob stream exactly as received.
    pub gob: &'a [u8],
}

impl<'a> SignedObject<'a> {
    /// Splits the bytes of an object.
    ///
    /// # Errors
    /// [`ErrorCode::ObjectTooShort`] at 65 bytes and below: there is no gob.
    pub fn parse(signed: &'a [u8]) -> Result<Self, ObjectError> {
        let too_short = ObjectError::Refused(ErrorCode::ObjectTooShort);
        match signed.split_at_checked(SIGNATURE_LEN) {
            Some((signature, gob)) if !gob.is_empty() => {
                Ok(Self { signature: Signature::from_bytes(signature).map_err(|_| too_short)?, gob })
            }
            _ => Err(too_short),
        }
    }

    /// Decides whether the signature is `author`'s.
    ///
    /// # Errors
    /// As [`crate::identity::verify`].
    pub fn verify(&self, author: &PublicKey) -> Result<(), SignatureError> {
        verify(author, self.gob, &self.signature)
    }
}

/// Signs the gob bytes of an object and returns `signature || gob`.
pub fn sign_object(author: &SecretKey, gob: &[u8]) -> Vec<u8> {
    let mut signed = Vec::with_capacity(SIGNATURE_LEN + gob.len());
    signed.extend_from_slice(sign(author, gob).as_bytes());
    signed.extend_from_slice(gob);
    signed
}

/// The hash of an object: SHA-256 over all of it, signature included. A response names its request by this.
pub fn object_hash(signed: &[u8]) -> [u8; 32] {
    sha256(signed)
}
