//! The authenticated cipher of sessions and streams, as a trait: ChaCha20-Poly1305 (dmsg-wire 2.1).
//!
//! In: a key once, then nonces and buffers. Out: ciphertext in place and a detached tag. [`crate::noise::sealed`] and
//! [`crate::frame`] are generic over [`Aead`]: the data plane brings an engine that uses the processor's vector units,
//! and [`RustCryptoAead`] is the one that needs nothing but this crate, and the oracle in tests.

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};

/// Length of a key in bytes.
pub const KEY_LEN: usize = 32;
/// Length of a nonce in bytes.
pub const NONCE_LEN: usize = 12;
/// Length of an authentication tag in bytes.
pub const TAG_LEN: usize = 16;

/// A ChaCha20-Poly1305 engine bound to one key, with empty associated data.
///
/// Implementations erase the key when dropped.
pub trait Aead: Sized {
    /// Prepares the engine for `key`.
    fn new(key: &[u8; KEY_LEN]) -> Self;

    /// Encrypts `buffer` in place and returns the tag. A nonce must never be used twice with one key.
    fn seal(&self, nonce: &[u8; NONCE_LEN], buffer: &mut [u8]) -> [u8; TAG_LEN];

    /// Verifies `tag` over the ciphertext in `buffer` and decrypts it in place.
    ///
    /// # Errors
    /// [`BadTag`] when the tag does not belong to this key, nonce and ciphertext; `buffer` then holds nothing of use.
    fn open(&self, nonce: &[u8; NONCE_LEN], buffer: &mut [u8], tag: &[u8; TAG_LEN]) -> Result<(), BadTag>;
}

/// The tag does not belong to the ciphertext: forged, damaged, or sealed under another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authentication tag does not match")]
pub struct BadTag;

/// The engine of the RustCrypto project: portable, `no_std`.
pub struct RustCryptoAead(ChaCha20Poly1305);

impl RustCryptoAead {
    /// [`Aead::seal`] with associated data, which only the handshake has (dmsg-wire 2.2).
    pub(crate) fn seal_with(
        &self,
        nonce: &[u8; NONCE_LEN],
        associated: &[u8],
        buffer: &mut [u8],
    ) -> [u8; TAG_LEN] {
        #[allow(clippy::expect_used, reason = "the message is the proof")]
        let tag = self
            .0
            .encrypt_inout_detached(nonce.into(), associated, InOutBuf::from(buffer))
            .expect("the cipher refuses buffers of 256 GiB and more only, and no buffer here exceeds 64 KiB");
        tag.into()
    }

    /// [`Aead::open`] with associated data, which only the handshake has (dmsg-wire 2.2).
    pub(crate) fn open_with(
        &self,
        nonce: &[u8; NONCE_LEN],
        associated: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), BadTag> {
        self.0
            .decrypt_inout_detached(nonce.into(), associated, InOutBuf::from(buffer), tag.into())
            .map_err(|_| BadTag)
    }
}

impl Aead for RustCryptoAead {
    fn new(key: &[u8; KEY_LEN]) -> Self {
        Self(ChaCha20Poly1305::new(key.into()))
    }

    fn seal(&self, nonce: &[u8; NONCE_LEN], buffer: &mut [u8]) -> [u8; TAG_LEN] {
        self.seal_with(nonce, &[], buffer)
    }

    fn open(&self, nonce: &[u8; NONCE_LEN], buffer: &mut [u8], tag: &[u8; TAG_LEN]) -> Result<(), BadTag> {
        self.open_with(nonce, &[], buffer, tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_damage_is_noticed() {
        let engine = RustCryptoAead::new(&[7; 32]);
        let nonce = [1; 12];
        let mut buffer = *b"forty-two bytes are not a magical number..";
        let plain = buffer;
        let tag = engine.seal(&nonce, &mut buffer);
        assert_ne!(buffer, plain);

        let mut opened = buffer;
        engine.open(&nonce, &mut opened, &tag).unwrap();
        assert_eq!(opened, plain);

        let mut damaged = buffer;
        damaged[3] ^= 1;
        assert_eq!(engine.open(&nonce, &mut damaged, &tag), Err(BadTag));
        let mut bad_tag = tag;
        bad_tag[15] ^= 0x80;
        assert_eq!(engine.open(&nonce, &mut buffer.clone(), &bad_tag), Err(BadTag));
        assert_eq!(engine.open(&[2; 12], &mut buffer.clone(), &tag), Err(BadTag));
        assert_eq!(RustCryptoAead::new(&[8; 32]).open(&nonce, &mut buffer, &tag), Err(BadTag));
    }
}
