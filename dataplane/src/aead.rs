//! The AEAD engine of the product: ChaCha20-Poly1305 of aws-lc-rs, two to three times the speed of the portable one at
//! the sizes dmsg frames have.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ringwire_proto::aead::{Aead, BadTag};

/// ChaCha20-Poly1305 through aws-lc-rs. The key schedule is erased by the library when the value is dropped.
pub struct AwsLcAead(LessSafeKey);

impl core::fmt::Debug for AwsLcAead {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("AwsLcAead")
    }
}

impl Aead for AwsLcAead {
    #[allow(
        clippy::expect_used,
        reason = "the only failure is a key of another length, and the length is in the type"
    )]
    fn new(key: &[u8; 32]) -> Self {
        Self(LessSafeKey::new(
            UnboundKey::new(&CHACHA20_POLY1305, key).expect("a 32-byte key fits ChaCha20-Poly1305"),
        ))
    }

    #[allow(
        clippy::expect_used,
        reason = "the only failure is a plaintext near 2^38 bytes; buffers here are at most 64 KiB"
    )]
    fn seal(&self, nonce: &[u8; 12], buffer: &mut [u8]) -> [u8; 16] {
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(*nonce), Aad::empty(), buffer)
            .expect("a packet is far below the limit of the cipher");
        let mut out = [0; 16];
        out.copy_from_slice(tag.as_ref());
        out
    }

    fn open(&self, nonce: &[u8; 12], buffer: &mut [u8], tag: &[u8; 16]) -> Result<(), BadTag> {
        self.0
            .open_in_place_separate_tag(Nonce::assume_unique_for_key(*nonce), Aad::empty(), tag, buffer)
            .map(|_| ())
            .map_err(|_| BadTag)
    }
}
