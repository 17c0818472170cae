//! The primitives that snow runs dmsg's Noise suite on: secp256k1, ChaCha20-Poly1305, SHA-256 (dmsg-wire 1.3, 2.1, 2.2).
//!
//! In: the static and the ephemeral key of one handshake, both drawn or loaded before. Out: boxed primitives for
//! [`snow::Builder`]. Called by [`super::Handshake::new`] only.
//!
//! A public key of the peer is parsed where it meets the secret key, in [`Dh::dh`]: every key that a message carries
//! gets there in the same message (XK: `e` by `es` or `ee`, `s` by `se`), so an invalid one fails its message.

use alloc::boxed::Box;
use alloc::sync::Arc;

use once_cell::race::OnceBox;
use sha2::{Digest, Sha256};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use subtle::ConstantTimeEq;

use crate::aead::{Aead, RustCryptoAead, TAG_LEN};
use crate::identity::{PUBLIC_KEY_LEN, SECRET_KEY_LEN, SecretKey, ecdh_point, parse_point};
use crate::noise::sealed::aead_nonce;

/// Hands out primitives that know the two secret keys of one handshake.
pub(super) struct Resolver(Arc<Keys>);

struct Keys {
    static_key: SecretKey,
    ephemeral_key: SecretKey,
    /// The first key of the peer that was met. A responder meets the peer's ephemeral key twice, by `es` and by `ee`, and taking
    /// the root in the field to decompress it is a tenth of a shared secret.
    met: OnceBox<Point>,
}

/// A key of the peer, and the point that it is.
struct Point {
    key: [u8; PUBLIC_KEY_LEN],
    point: secp256k1::PublicKey,
}

impl Resolver {
    pub(super) fn new(static_key: SecretKey, ephemeral_key: SecretKey) -> Self {
        Self(Arc::new(Keys { static_key, ephemeral_key, met: OnceBox::new() }))
    }
}

impl Keys {
    fn point(&self, key: &[u8; PUBLIC_KEY_LEN]) -> Result<secp256k1::PublicKey, snow::Error> {
        if let Some(met) = self.met.get().filter(|met| met.key == *key) {
            return Ok(met.point);
        }
        let point = parse_point(key).map_err(|_| snow::Error::Dh)?;
        // Only the first is kept.
        let _ = self.met.set(Box::new(Point { key: *key, point }));
        Ok(point)
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(NoRandomness))
    }

    // snow has no name for secp256k1; the choice it asks for is a placeholder of ours.
    fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(Secp256k1Dh { keys: Arc::clone(&self.0), chosen: Chosen::Nothing }))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        (*choice == HashChoice::SHA256).then(|| Box::new(Sha256Hash::default()) as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        (*choice == CipherChoice::ChaChaPoly)
            .then(|| Box::new(ChaChaPoly { engine: None }) as Box<dyn Cipher>)
    }
}

/// The ephemeral key exists before snow starts, so nothing is ever drawn.
struct NoRandomness;

impl Random for NoRandomness {
    fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), snow::Error> {
        Err(snow::Error::Rng)
    }
}

enum Chosen {
    Nothing,
    Static,
    Ephemeral,
}

/// The DH function of the suite. Which of the two keys it is, snow decides by the method it calls.
struct Secp256k1Dh {
    keys: Arc<Keys>,
    chosen: Chosen,
}

impl Secp256k1Dh {
    fn key(&self) -> Option<&SecretKey> {
        match self.chosen {
            Chosen::Nothing => None,
            Chosen::Static => Some(&self.keys.static_key),
            Chosen::Ephemeral => Some(&self.keys.ephemeral_key),
        }
    }
}

impl Dh for Secp256k1Dh {
    fn name(&self) -> &'static str {
        "Secp256k1"
    }

    fn pub_len(&self) -> usize {
        PUBLIC_KEY_LEN
    }

    fn priv_len(&self) -> usize {
        SECRET_KEY_LEN
    }

    // Cannot fail by its signature. Anything but the static key leaves the object without a key, and `dh` fails.
    fn set(&mut self, secret: &[u8]) {
        let is_static: bool = self.keys.static_key.expose_bytes().as_slice().ct_eq(secret).into();
        self.chosen = if is_static { Chosen::Static } else { Chosen::Nothing };
    }

    fn generate(&mut self, _: &mut dyn Random) -> Result<(), snow::Error> {
        self.chosen = Chosen::Ephemeral;
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        match self.chosen {
            Chosen::Nothing => &[0; PUBLIC_KEY_LEN],
            Chosen::Static => self.keys.static_key.public_key_bytes(),
            Chosen::Ephemeral => self.keys.ephemeral_key.public_key_bytes(),
        }
    }

    fn privkey(&self) -> &[u8] {
        self.key().map_or(&[], |key| key.expose_bytes())
    }

    /// `ecdh(PK, sk) || 00`, 33 bytes (dmsg-wire 1.3). snow hands over its whole key buffer, the key in front.
    fn dh(&self, remote: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let key = self.key().ok_or(snow::Error::Dh)?;
        let remote = remote.first_chunk().ok_or(snow::Error::Dh)?;
        let point = self.keys.point(remote)?;
        let (secret, rest) = out.split_first_chunk_mut().ok_or(snow::Error::Dh)?;
        *secret = *ecdh_point(&point, key);
        *rest.first_mut().ok_or(snow::Error::Dh)? = 0;
        Ok(())
    }

    fn dh_len(&self) -> usize {
        PUBLIC_KEY_LEN
    }
}

#[derive(Default)]
struct Sha256Hash(Sha256);

impl Hash for Sha256Hash {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(&self.0.finalize_reset());
    }
}

struct ChaChaPoly {
    engine: Option<RustCryptoAead>,
}

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.engine = Some(RustCryptoAead::new(key));
    }

    fn encrypt(&self, nonce: u64, associated: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        #[allow(clippy::expect_used, reason = "the message is the proof")]
        let engine = self.engine.as_ref().expect("snow encrypts only after MixKey has set a key");
        let (body, rest) = out.split_at_mut(plaintext.len());
        body.copy_from_slice(plaintext);
        let tag = engine.seal_with(&aead_nonce(nonce), associated, body);
        rest[..TAG_LEN].copy_from_slice(&tag);
        plaintext.len() + TAG_LEN
    }

    fn decrypt(
        &self,
        nonce: u64,
        associated: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, snow::Error> {
        let engine = self.engine.as_ref().ok_or(snow::Error::Decrypt)?;
        let (body, tag) = ciphertext.split_last_chunk().ok_or(snow::Error::Decrypt)?;
        let out = out.get_mut(..body.len()).ok_or(snow::Error::Decrypt)?;
        out.copy_from_slice(body);
        engine.open_with(&aead_nonce(nonce), associated, out, tag).map_err(|_| snow::Error::Decrypt)?;
        Ok(body.len())
    }
}
