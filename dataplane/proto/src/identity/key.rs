//! Public and secret keys, their text forms, and the address of a port (dmsg-wire 1.1, 10.1).
//!
//! In: 33 or 32 bytes, or hex text. Out: [`PublicKey`] (always a point of the curve) and [`SecretKey`] (always in
//! `1..n`, erased when dropped). Called by everything that names a party.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use k256::elliptic_curve::sec1::ToSec1Point;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::entropy::Entropy;

/// Length of a compressed public key in bytes (dmsg-wire 1.1).
pub const PUBLIC_KEY_LEN: usize = 33;
/// Length of a secret key in bytes (dmsg-wire 1.1).
pub const SECRET_KEY_LEN: usize = 32;

/// A compressed secp256k1 public key: the name of a party (dmsg-wire 1.1).
///
/// Always a valid point. There is one encoding per point, so equality of bytes is equality of keys. The null key of
/// the Go code is not a `PublicKey`; where the wire allows it, the type is `Option<PublicKey>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; PUBLIC_KEY_LEN]);

impl PublicKey {
    /// Takes the 33 bytes of a compressed point.
    ///
    /// # Errors
    /// [`KeyError::Length`] for any other length, [`KeyError::NotAPoint`] when the first byte is not 02 or 03, x is
    /// not below p (quirk: the Go code of 2024 panics there, dmsg-wire 1.1), or no point has this x.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let bytes: [u8; PUBLIC_KEY_LEN] = bytes
            .try_into()
            .map_err(|_| KeyError::Length { expected: PUBLIC_KEY_LEN, found: bytes.len() })?;
        parse_point(&bytes)?;
        Ok(Self(bytes))
    }

    /// The 33 bytes of the compressed point.
    pub fn as_bytes(&self) -> &[u8; PUBLIC_KEY_LEN] {
        &self.0
    }

    /// Reads a key from text as the Go peers do (dmsg-wire 1.1): hex of either case, 66 characters.
    ///
    /// `Ok(None)` is the null key. Quirk: any text of `0` characters only, of any length and also the empty text,
    /// is the null key and no error.
    ///
    /// # Errors
    /// [`KeyError::Hex`] for other characters (spaces too) or an odd number, else as [`PublicKey::from_bytes`].
    pub fn parse_text(text: &str) -> Result<Option<Self>, KeyError> {
        if text.bytes().all(|byte| byte == b'0') {
            return Ok(None);
        }
        decode_hex::<PUBLIC_KEY_LEN>(text).and_then(|bytes| Self::from_bytes(&*bytes)).map(Some)
    }

    /// Bytes of which a curve operation has shown that they are a point.
    pub(crate) fn from_used_bytes(bytes: [u8; PUBLIC_KEY_LEN]) -> Self {
        debug_assert!(parse_point(&bytes).is_ok());
        Self(bytes)
    }

    pub(super) fn from_point(point: &secp256k1::PublicKey) -> Self {
        Self(point.serialize())
    }

    pub(crate) fn point(&self) -> secp256k1::PublicKey {
        #[allow(clippy::expect_used, reason = "the message is the proof")]
        parse_point(&self.0).expect("every constructor of PublicKey has parsed or serialised these bytes")
    }
}

pub(crate) fn parse_point(bytes: &[u8; PUBLIC_KEY_LEN]) -> Result<secp256k1::PublicKey, KeyError> {
    secp256k1::PublicKey::from_byte_array_compressed(*bytes).map_err(|_| KeyError::NotAPoint)
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    /// As [`PublicKey::parse_text`], but the null key is an error: here a party is named.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::parse_text(text)?.ok_or(KeyError::Null)
    }
}

/// A secret key with its public key (dmsg-wire 1.1). Erased when dropped, never shown by `Debug`.
#[derive(Clone)]
pub struct SecretKey {
    bytes: Zeroizing<[u8; SECRET_KEY_LEN]>,
    // Derived once: handshakes and signatures ask for it every time, and deriving costs as much as signing.
    public_key: PublicKey,
}

impl SecretKey {
    /// Takes 32 big-endian bytes with `0 < key < n`.
    ///
    /// # Errors
    /// [`KeyError::Length`] for any other length, [`KeyError::OutOfRange`] for zero and for n and above.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let bytes: Zeroizing<[u8; SECRET_KEY_LEN]> = Zeroizing::new(
            bytes
                .try_into()
                .map_err(|_| KeyError::Length { expected: SECRET_KEY_LEN, found: bytes.len() })?,
        );
        let mut scalar = secp256k1::SecretKey::from_secret_bytes(*bytes).map_err(|_| KeyError::OutOfRange)?;
        let public_key = PublicKey::from_point(&secp256k1::PublicKey::from_secret_key(&scalar));
        scalar.non_secure_erase();
        Ok(Self { bytes, public_key })
    }

    /// Draws a key: 32 bytes of `entropy`, again while they are out of range (odds of 2^-127).
    ///
    /// Constant time in the key. Every handshake draws one, so the public key is derived by the quicker of two libraries:
    /// libsecp256k1 blinds itself anew after each derivation, which doubles the cost and guards keys that are used often.
    pub fn generate(entropy: &mut dyn Entropy) -> Self {
        let mut bytes = Zeroizing::new([0; SECRET_KEY_LEN]);
        loop {
            entropy.fill(&mut *bytes);
            if let Some(public_key) = derive_quickly(&bytes) {
                return Self { bytes, public_key };
            }
        }
    }

    /// Reads 64 hex characters of either case.
    ///
    /// # Errors
    /// [`KeyError::Hex`] for text that is not hex, else as [`SecretKey::from_bytes`]. The null text forms of public
    /// keys are errors here.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        decode_hex::<SECRET_KEY_LEN>(text).and_then(|bytes| Self::from_bytes(&*bytes))
    }

    /// The key as 64 lower-case hex characters, for a key file.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(*self.bytes))
    }

    /// The public key; costs nothing.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    pub(crate) fn public_key_bytes(&self) -> &[u8; PUBLIC_KEY_LEN] {
        self.public_key.as_bytes()
    }

    /// The 32 secret bytes.
    pub fn expose_bytes(&self) -> &[u8; SECRET_KEY_LEN] {
        &self.bytes
    }

    /// Lends the key to the curve library and erases the library's copy afterwards.
    pub(crate) fn with_scalar<T>(&self, use_scalar: impl FnOnce(&secp256k1::SecretKey) -> T) -> T {
        #[allow(clippy::expect_used, reason = "the message is the proof")]
        let mut scalar = secp256k1::SecretKey::from_secret_bytes(*self.bytes)
            .expect("the only constructor has accepted these bytes");
        let result = use_scalar(&scalar);
        scalar.non_secure_erase();
        result
    }
}

/// The public key of 32 bytes, unless they are out of range.
fn derive_quickly(bytes: &[u8; SECRET_KEY_LEN]) -> Option<PublicKey> {
    // Erased when dropped.
    let key = k256::SecretKey::from_bytes(bytes.into()).ok()?;
    let point = key.public_key().to_sec1_point(true);
    Some(PublicKey(point.as_bytes().try_into().ok()?))
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public_key)
    }
}

impl PartialEq for SecretKey {
    fn eq(&self, other: &Self) -> bool {
        self.bytes.as_slice().ct_eq(other.bytes.as_slice()).into()
    }
}

impl Eq for SecretKey {}

/// A port of a party: where a stream starts or ends (dmsg-wire 10.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The party.
    pub key: PublicKey,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key, self.port)
    }
}

impl FromStr for Address {
    type Err = KeyError;

    /// Reads `key:port`, the port in decimal.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (key, port) = text.split_once(':').ok_or(KeyError::Port)?;
        Ok(Self { key: key.parse()?, port: port.parse().map_err(|_| KeyError::Port)? })
    }
}

/// Why bytes or text are not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The number of bytes is wrong.
    #[error("a key of {expected} bytes was expected, not of {found}")]
    Length {
        /// The right number of bytes.
        expected: usize,
        /// The number of bytes that came.
        found: usize,
    },
    /// The bytes are not a compressed point of the curve.
    #[error("the bytes are not a point of secp256k1")]
    NotAPoint,
    /// The number is zero or not below the order of the group.
    #[error("the secret key is zero or not below the group order")]
    OutOfRange,
    /// The text is not hexadecimal.
    #[error("the text is not hexadecimal")]
    Hex,
    /// The null key, where a party must be named.
    #[error("the null key names nobody")]
    Null,
    /// An address without a decimal port behind a colon.
    #[error("an address is written key:port")]
    Port,
}

pub(super) fn decode_hex<const LEN: usize>(text: &str) -> Result<Zeroizing<[u8; LEN]>, KeyError> {
    let mut bytes = Zeroizing::new([0; LEN]);
    match hex::decode_to_slice(text, &mut *bytes) {
        Ok(()) => Ok(bytes),
        Err(hex::FromHexError::InvalidStringLength) if text.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Err(KeyError::Length { expected: LEN, found: text.len() / 2 })
        }
        Err(_) => Err(KeyError::Hex),
    }
}

pub(super) fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in bytes {
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}
