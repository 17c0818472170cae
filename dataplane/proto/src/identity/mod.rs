//! Who somebody is: secp256k1 keys, recoverable signatures and the shared secret of two keys (dmsg-wire 1).
//!
//! In: bytes and text of peers and configuration. Out: keys that are valid by construction, verdicts on signatures,
//! shared secrets. Called by the handshake ([`crate::noise`]), by signed objects and entries, and by configuration.
//!
//! The curve arithmetic is libsecp256k1. Its context (blinding of secret operations) is kept inside the `secp256k1`
//! crate; this module holds no state.

mod key;
mod signature;

pub(crate) use key::parse_point;
pub use key::{Address, KeyError, PUBLIC_KEY_LEN, PublicKey, SECRET_KEY_LEN, SecretKey};
pub use signature::{
    SIGNATURE_LEN, Signature, SignatureError, recover, sign, sign_hash, verify, verify_hash,
};

use secp256k1::ecdh::SharedSecret;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// SHA-256 of `data`; what the Go code calls SumSHA256 (dmsg-wire 1.1).
pub fn sha256(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

/// The shared secret of two parties: SHA-256 over the compressed shared point, parity byte included (dmsg-wire 1.3).
///
/// Constant time in the secret key.
pub fn ecdh(public_key: &PublicKey, secret_key: &SecretKey) -> Zeroizing<[u8; 32]> {
    ecdh_point(&public_key.point(), secret_key)
}

/// [`ecdh`] with a point that is already decompressed.
pub(crate) fn ecdh_point(point: &secp256k1::PublicKey, secret_key: &SecretKey) -> Zeroizing<[u8; 32]> {
    let mut shared = secret_key.with_scalar(|scalar| SharedSecret::new(point, scalar));
    let secret = Zeroizing::new(shared.to_secret_bytes());
    shared.non_secure_erase();
    secret
}
