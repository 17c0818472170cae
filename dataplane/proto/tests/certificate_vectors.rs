//! QUIC identity certificates against the recordings of Go's x509 (dmsg-wire 13.2), and every way to break
//! one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "the body is a public item of the fuzz package")]

#[path = "../fuzz/src/certificate.rs"]
mod certificate;

use proptest::collection::vec;
use proptest::prelude::*;
use ringwire_proto::certificate::{
    CERTIFICATE_LEN, CERTIFICATE_MAX, CertificateError, build, extension_value, private_key_der,
    verify_certificate,
};
use ringwire_proto::identity::{SecretKey, Signature, verify};
use serde_json::Value;

const VECTORS: &str = include_str!("vectors/dmsg/quic_identity_2026.json");

fn recorded() -> Vec<Value> {
    let vectors: Value = serde_json::from_str(VECTORS).unwrap();
    let certificates = vectors["certificates"].as_array().unwrap().clone();
    assert_eq!(certificates.len(), 3);
    certificates
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn secret_key(byte: u8) -> SecretKey {
    SecretKey::from_bytes(&[byte; 32]).unwrap()
}

#[test]
fn recorded_certificates_prove_their_key() {
    for certificate in recorded() {
        let key = verify_certificate(&bytes(&certificate["certificate_der"])).unwrap();
        assert_eq!(key.as_bytes().to_vec(), bytes(&certificate["pk"]));
        let tls_public_key = bytes(&certificate["ed25519_pub"]);
        let signature = Signature::from_bytes(&bytes(&certificate["identity_sig"])).unwrap();
        verify(&key, &tls_public_key, &signature).unwrap();
    }
}

#[test]
fn our_certificates_differ_from_the_recorded_in_signatures_only() {
    for recorded in recorded() {
        let secret_key = SecretKey::from_bytes(&bytes(&recorded["sk"])).unwrap();
        let seed = bytes(&recorded["ed25519_seed"]).try_into().unwrap();
        let ours = build(&secret_key, &seed);
        assert_eq!(verify_certificate(&ours), Ok(secret_key.public_key()));
        let theirs = bytes(&recorded["certificate_der"]);
        assert_eq!(ours.len(), theirs.len());
        let identity_signature = CERTIFICATE_LEN - 64 - 10 - 65..CERTIFICATE_LEN - 64 - 10;
        let certificate_signature = CERTIFICATE_LEN - 64..CERTIFICATE_LEN;
        for (index, (our, their)) in ours.iter().zip(&theirs).enumerate() {
            let free = identity_signature.contains(&index) || certificate_signature.contains(&index);
            assert!(free || our == their, "byte {index}");
        }
        let value = extension_value(&secret_key, &bytes(&recorded["ed25519_pub"]).try_into().unwrap());
        assert_eq!(value.len(), bytes(&recorded["extension_value"]).len());
        assert_eq!(value[..39], bytes(&recorded["extension_value"])[..39]);
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    let good = build(&secret_key(1), &[2; 32]);
    for index in 0..good.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = good;
            bad[index] ^= flip;
            assert!(verify_certificate(&bad).is_err(), "byte {index} with {flip:02x}");
        }
    }
}

#[test]
fn truncation_and_trailing_bytes() {
    let good = build(&secret_key(1), &[2; 32]);
    for length in 0..good.len() {
        assert_eq!(verify_certificate(&good[..length]), Err(CertificateError::Malformed), "length {length}");
    }
    let mut longer = good.to_vec();
    longer.push(0);
    assert_eq!(verify_certificate(&longer), Err(CertificateError::Malformed));
    longer.resize(CERTIFICATE_MAX + 1, 0);
    assert_eq!(verify_certificate(&longer), Err(CertificateError::TooLong));
}

/// The extension of one party inside the certificate of another TLS key: copied from the wire, it proves
/// nothing.
#[test]
fn stolen_extension_is_refused() {
    let victim = build(&secret_key(1), &[2; 32]);
    let mut thief = build(&secret_key(3), &[4; 32]);
    let extension = CERTIFICATE_LEN - 64 - 10 - 104..CERTIFICATE_LEN - 64 - 10;
    thief[extension.clone()].copy_from_slice(&victim[extension]);
    assert_eq!(verify_certificate(&thief), Err(CertificateError::SelfSignature));
    // With a fresh signature of the thief's TLS key the certificate itself is in order.
    let key = ed25519_dalek::SigningKey::from_bytes(&[4; 32]);
    let signature = ed25519_dalek::Signer::sign(&key, &thief[4..CERTIFICATE_LEN - 64 - 10]);
    thief[CERTIFICATE_LEN - 64..].copy_from_slice(&signature.to_bytes());
    assert_eq!(verify_certificate(&thief), Err(CertificateError::IdentitySignature));
}

#[test]
fn other_extensions_are_not_taken_for_the_identity() {
    let mut other = build(&secret_key(1), &[2; 32]);
    // The last byte of the object identifier: 1.3.6.1.4.1.53594.1.2.
    let at = CERTIFICATE_LEN - 64 - 10 - 104 - 3;
    assert_eq!(other[at], 1);
    other[at] = 2;
    assert_eq!(verify_certificate(&other), Err(CertificateError::NoExtension));
}

#[test]
fn private_key_has_the_form_of_rfc_8410() {
    let der = private_key_der(&[7; 32]);
    assert_eq!(hex::encode(&der[..16]), "302e020100300506032b657004220420");
    assert_eq!(der[16..], [7; 32]);
}

proptest! {
    #[test]
    fn edits_and_arbitrary_bytes(data in vec(any::<u8>(), 0..60)) {
        certificate::run(&data);
    }
}
