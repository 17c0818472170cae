//! Identities against a second implementation of the curve (k256), over generated keys, hashes and signatures
//! (dmsg-wire 1).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use k256::elliptic_curve::ops::Reduce;
use k256::elliptic_curve::sec1::ToSec1Point;
use k256::elliptic_curve::{Group, PrimeField};
use k256::{FieldBytes, ProjectivePoint, Scalar, U256};
use proptest::prelude::*;
use ringwire_proto::entropy::Entropy;
use ringwire_proto::identity::{
    Address, KeyError, PublicKey, SecretKey, Signature, SignatureError, ecdh, recover, sha256, sign,
    sign_hash, verify_hash,
};

/// The order of the group and the prime of the field.
const N: U256 = U256::from_be_hex("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141");
const P: U256 = U256::from_be_hex("fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f");
const HALF_N: U256 = U256::from_be_hex("7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0");

fn secret_key() -> impl Strategy<Value = SecretKey> {
    any::<[u8; 32]>().prop_filter_map("out of range", |bytes| SecretKey::from_bytes(&bytes).ok())
}

fn scalar(bytes: &[u8; 32]) -> Scalar {
    Scalar::reduce(&FieldBytes::from(*bytes))
}

fn oracle_point(compressed: &[u8]) -> Option<ProjectivePoint> {
    k256::PublicKey::from_sec1_bytes(compressed).ok().map(|key| key.to_projective())
}

fn oracle_compressed(point: &ProjectivePoint) -> Option<[u8; 33]> {
    let key = k256::PublicKey::from_affine(point.to_affine()).ok()?;
    key.to_sec1_point(true).as_bytes().try_into().ok()
}

/// The recovery of dmsg-wire 1.2, written down from its text.
fn oracle_recover(hash: &[u8; 32], signature: &[u8; 65]) -> Option<[u8; 33]> {
    let (r, s) = (U256::from_be_slice(&signature[..32]), U256::from_be_slice(&signature[32..64]));
    let recid = signature[64];
    if recid > 3 || [r, s].iter().any(|value| *value == U256::ZERO || *value >= N) {
        return None;
    }
    let mut x = r;
    if recid & 2 != 0 {
        if r >= P.wrapping_sub(&N) {
            return None;
        }
        x = r.wrapping_add(&N);
    }
    let mut compressed = [2 | (recid & 1); 33];
    compressed[1..].copy_from_slice(&<[u8; 32]>::from(x.to_be_bytes()));
    let point = oracle_point(&compressed)?;
    let (r, s) = (Scalar::reduce(&r), Scalar::reduce(&s));
    let key = (point * s - ProjectivePoint::GENERATOR * scalar(hash)) * Option::from(r.invert()).unwrap_or(r);
    if bool::from(key.is_identity()) { None } else { oracle_compressed(&key) }
}

/// A signature by chosen `k` and `s`, and the hash that it fits: how an S above n/2 is made.
fn chosen_signature(secret_key: &SecretKey, k: &Scalar, s: &U256) -> (Signature, [u8; 32]) {
    let point = oracle_compressed(&(ProjectivePoint::GENERATOR * k)).unwrap();
    let r = U256::from_be_slice(&point[1..]);
    assert!(r < N, "odds of 2^-128");
    let hash = Scalar::reduce(s) * k - Scalar::reduce(&r) * scalar(secret_key.expose_bytes());
    let mut bytes = [0; 65];
    bytes[..32].copy_from_slice(&point[1..]);
    bytes[32..64].copy_from_slice(&<[u8; 32]>::from(s.to_be_bytes()));
    bytes[64] = point[0] & 1;
    (Signature::from_bytes(&bytes).unwrap(), hash.to_repr().into())
}

/// Hands out these bytes, 32 at a time.
struct Drawn(Vec<[u8; 32]>);

impl Entropy for Drawn {
    fn fill(&mut self, out: &mut [u8]) {
        out.copy_from_slice(&self.0.remove(0));
    }
}

#[test]
fn a_drawn_key_is_never_zero_and_never_n_or_above() {
    let n = <[u8; 32]>::from(N.to_be_bytes());
    let last = <[u8; 32]>::from(N.wrapping_sub(&U256::ONE).to_be_bytes());
    let key = SecretKey::generate(&mut Drawn(vec![[0; 32], n, [0xff; 32], last]));
    assert_eq!(*key.expose_bytes(), last);
    // n - 1 times the base point is its mirror image: the same x, the other y.
    let one = SecretKey::generate(&mut Drawn(vec![{
        let mut one = [0; 32];
        one[31] = 1;
        one
    }]));
    assert_eq!(key.public_key().as_bytes()[1..], one.public_key().as_bytes()[1..]);
    assert_ne!(key.public_key(), one.public_key());
}

proptest! {
    #[test]
    fn drawn_keys_are_those_of_their_bytes(key in secret_key()) {
        // Two libraries: the key is drawn with one and read with the other.
        let drawn = SecretKey::generate(&mut Drawn(vec![*key.expose_bytes()]));
        prop_assert_eq!(drawn.public_key(), key.public_key());
        prop_assert!(drawn == key);
    }

    #[test]
    fn public_keys_and_shared_secrets_agree(one in secret_key(), two in secret_key()) {
        let expected = oracle_compressed(&(ProjectivePoint::GENERATOR * scalar(one.expose_bytes()))).unwrap();
        prop_assert_eq!(*one.public_key().as_bytes(), expected);

        let shared = oracle_point(two.public_key().as_bytes()).unwrap() * scalar(one.expose_bytes());
        let expected = sha256(&oracle_compressed(&shared).unwrap());
        prop_assert_eq!(*ecdh(&two.public_key(), &one), expected);
        prop_assert_eq!(*ecdh(&one.public_key(), &two), expected);
    }

    #[test]
    fn same_bytes_are_points(prefix in 0_u8..8, x in any::<[u8; 32]>()) {
        let bytes = [&[prefix][..], &x].concat();
        let key = PublicKey::from_bytes(&bytes);
        // The oracle also knows the compact form with prefix 5, which is no key here.
        prop_assert_eq!(key.is_ok(), matches!(prefix, 2 | 3) && oracle_point(&bytes).is_some());
        if let Ok(key) = key {
            prop_assert_eq!(key.to_string().parse(), Ok(key));
            prop_assert_eq!(PublicKey::parse_text(&key.to_string().to_uppercase()), Ok(Some(key)));
        }
    }

    #[test]
    fn text_never_panics(text in "\\PC{0,140}|[0-9a-f]{0,140}|0{0,70}") {
        let _ = PublicKey::parse_text(&text);
        let _ = SecretKey::from_hex(&text);
        let _ = Signature::from_hex(&text);
    }

    #[test]
    fn own_signatures_are_strict_and_recover(key in secret_key(), hash in any::<[u8; 32]>()) {
        let signature = sign_hash(&key, &hash);
        prop_assert!(U256::from_be_slice(&signature.as_bytes()[32..64]) <= HALF_N);
        prop_assert_eq!(verify_hash(&key.public_key(), &hash, &signature), Ok(()));
        prop_assert_eq!(recover(&hash, &signature), Ok(key.public_key()));
        prop_assert_eq!(oracle_recover(&hash, signature.as_bytes()), Some(*key.public_key().as_bytes()));
        // RFC 6979: the same again.
        prop_assert_eq!(sign_hash(&key, &hash), signature);
    }

    #[test]
    fn recovery_agrees_on_any_numbers(
        hash in any::<[u8; 32]>(),
        r in prop_oneof![any::<[u8; 32]>(), small(), near_n()],
        s in prop_oneof![any::<[u8; 32]>(), small(), near_n()],
        recid in 0_u8..6,
    ) {
        let bytes: [u8; 65] = [&r[..], &s, &[recid]].concat().try_into().unwrap();
        let signature = Signature::from_bytes(&bytes).unwrap();
        let recovered = recover(&hash, &signature).ok();
        prop_assert_eq!(recovered.map(|key| *key.as_bytes()), oracle_recover(&hash, &bytes));
        if let Some(key) = recovered {
            prop_assert_eq!(verify_hash(&key, &hash, &signature).is_ok(), s[0] & 0x80 == 0);
        }
    }

    #[test]
    fn damaged_signatures_are_never_valid(key in secret_key(), hash in any::<[u8; 32]>(), at in 0_usize..65, mask in 1_u8..) {
        let mut bytes = *sign_hash(&key, &hash).as_bytes();
        bytes[at] ^= mask;
        let damaged = Signature::from_bytes(&bytes).unwrap();
        prop_assert!(verify_hash(&key.public_key(), &hash, &damaged).is_err());
    }

    /// Between n/2 and 2^255 lies what strict implementations refuse and both generations of the Go code accept.
    #[test]
    fn quirk_high_s_below_the_top_bit_is_valid(key in secret_key(), k in secret_key(), above in 1_u128..) {
        // 2^255 - n/2 is about 1.27 * 2^127: half of a u128 stays inside.
        let s = HALF_N.wrapping_add(&U256::from_u128(above >> 1).wrapping_add(&U256::ONE));
        let (signature, hash) = chosen_signature(&key, &scalar(k.expose_bytes()), &s);
        prop_assert_eq!(signature.as_bytes()[32] & 0x80, 0);
        prop_assert_eq!(verify_hash(&key.public_key(), &hash, &signature), Ok(()));

        let high = N.wrapping_sub(&U256::from_u128(above));
        let (signature, hash) = chosen_signature(&key, &scalar(k.expose_bytes()), &high);
        prop_assert_eq!(recover(&hash, &signature), Ok(key.public_key()));
        prop_assert_eq!(verify_hash(&key.public_key(), &hash, &signature), Err(SignatureError::HighS));
    }
}

fn small() -> impl Strategy<Value = [u8; 32]> {
    (0_u64..40).prop_map(|value| U256::from_u64(value).to_be_bytes().into())
}

fn near_n() -> impl Strategy<Value = [u8; 32]> {
    (0_u64..4).prop_map(|value| {
        N.wrapping_add(&U256::ONE).wrapping_sub(&U256::from_u64(value)).to_be_bytes().into()
    })
}

#[test]
fn infinity_is_no_key() {
    // s*X = h*G gives Q = 0: take X = G, so r is its x and s = h.
    let generator = oracle_compressed(&ProjectivePoint::GENERATOR).unwrap();
    let hash = sha256(b"infinity");
    let mut bytes = [0; 65];
    bytes[..32].copy_from_slice(&generator[1..]);
    bytes[32..64].copy_from_slice(&hash);
    bytes[64] = generator[0] & 1;
    let signature = Signature::from_bytes(&bytes).unwrap();
    assert_eq!(recover(&hash, &signature), Err(SignatureError::Unrecoverable));
}

#[test]
fn secrets_are_not_shown() {
    let key = SecretKey::from_bytes(&[0x42; 32]).unwrap();
    assert!(!format!("{key:?}").contains("4242"));
    let signature = sign(&key, b"payload");
    assert_eq!(Signature::from_hex(&signature.to_string()), Ok(signature));
}

#[test]
fn addresses_are_written_key_and_port() {
    let key = SecretKey::from_bytes(&[1; 32]).unwrap().public_key();
    let address = Address { key, port: 80 };
    let text = format!("{key}:80");
    assert_eq!(address.to_string(), text);
    assert_eq!(text.parse(), Ok(address));
    assert_eq!(key.to_string().parse::<Address>(), Err(KeyError::Port));
    assert_eq!(format!("{key}:65536").parse::<Address>(), Err(KeyError::Port));
    assert_eq!(":80".parse::<Address>(), Err(KeyError::Null));
}
