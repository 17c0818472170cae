//! Keys, shared secrets and signatures against the recorded output of the Go code (dmsg-wire 1).
//!
//! The `deterministic_from_seed` pairs of `keys.json` come from a derivation that never appears on the wire and that
//! Ringwire does not have; what is tested of them is that the public key belongs to the secret key.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use ringwire_proto::identity::{
    KeyError, PublicKey, SecretKey, Signature, SignatureError, ecdh, recover, sha256, sign, verify,
    verify_hash,
};
use support::{array, bytes, flag, list, parse, text};

const KEYS: &str = include_str!("vectors/dmsg/keys.json");
const ECDH: &str = include_str!("vectors/dmsg/ecdh.json");
const SIGNATURES: &str = include_str!("vectors/dmsg/signatures.json");

#[test]
fn public_key_of_secret_key() {
    let keys = parse(KEYS);
    for name in ["sk_to_pk", "deterministic_from_seed"] {
        for pair in list(&keys, name) {
            let secret_key = SecretKey::from_hex(text(pair, "sk")).unwrap();
            assert_eq!(secret_key.public_key().to_string(), text(pair, "pk"));
            assert_eq!(*secret_key.to_hex(), text(pair, "sk"));
            assert_eq!(PublicKey::from_bytes(&bytes(pair, "pk")).unwrap(), secret_key.public_key());
        }
    }
}

#[test]
fn public_keys_accepted_and_refused() {
    for case in list(&parse(KEYS), "pubkey_validation") {
        let (name, hex) = (text(case, "name"), text(case, "pk"));
        let from_bytes = PublicKey::from_bytes(&bytes(case, "pk"));
        // "panic" is the Go code of 2024 at x >= p; a refusal here.
        assert_eq!(from_bytes.is_ok(), text(case, "NewPubKey") == "ok", "{name}: {from_bytes:?}");
        let parsed = PublicKey::parse_text(hex);
        assert_eq!(parsed.is_ok(), text(case, "UnmarshalText") == "ok", "{name}: {parsed:?}");
        if let Ok(key) = from_bytes {
            assert_eq!(parsed, Ok(Some(key)));
            assert_eq!(hex.parse(), Ok(key));
        }
    }
}

#[test]
fn quirk_text_of_zeros_is_the_null_key() {
    for case in list(&parse(KEYS), "pubkey_text_forms") {
        let input = text(case, "text");
        let parsed = PublicKey::parse_text(input);
        if text(case, "result") != "ok" {
            assert!(parsed.is_err(), "{input:?}");
            assert!(input.parse::<PublicKey>().is_err());
        } else if flag(case, "null") {
            assert_eq!(parsed, Ok(None), "{input:?}");
            assert_eq!(input.parse::<PublicKey>(), Err(KeyError::Null));
        } else {
            assert_eq!(parsed.unwrap().unwrap().to_string(), text(case, "pk"));
        }
    }
}

#[test]
fn secret_keys_accepted_and_refused() {
    for case in list(&parse(KEYS), "seckey_validation") {
        let expected = text(case, "NewSecKey") == "ok";
        assert_eq!(SecretKey::from_bytes(&bytes(case, "sk")).is_ok(), expected, "{}", text(case, "name"));
        assert_eq!(SecretKey::from_hex(text(case, "sk")).is_ok(), expected);
    }
}

#[test]
fn shared_secrets() {
    for case in list(&parse(ECDH), "vectors") {
        let secret = |name| SecretKey::from_hex(text(case, name)).unwrap();
        let public = |name| text(case, name).parse::<PublicKey>().unwrap();
        let expected = array(case, "ecdh32");
        assert_eq!(*ecdh(&public("pk_b"), &secret("sk_a")), expected);
        assert_eq!(*ecdh(&public("pk_a"), &secret("sk_b")), expected);
        assert_eq!(sha256(&bytes(case, "shared_point")), expected);
        assert_eq!(bytes(case, "dh33"), [&expected[..], &[0]].concat());
    }
}

#[test]
fn signatures_of_the_go_code_are_valid() {
    for case in list(&parse(SIGNATURES), "valid") {
        let public_key: PublicKey = text(case, "pk").parse().unwrap();
        let payload = bytes(case, "payload");
        let signature = Signature::from_hex(text(case, "sig")).unwrap();
        assert_eq!(signature.to_string(), text(case, "sig"));
        assert_eq!(sha256(&payload), array(case, "hash"));
        assert_eq!(verify(&public_key, &payload, &signature), Ok(()));
        assert_eq!(recover(&array(case, "hash"), &signature).unwrap().to_string(), text(case, "recover"));

        let own = sign(&SecretKey::from_hex(text(case, "sk")).unwrap(), &payload);
        assert_eq!(verify(&public_key, &payload, &own), Ok(()));
        assert_eq!(verify(&public_key, b"another payload", &own), Err(SignatureError::OtherKey));
    }
}

#[test]
fn quirk_signature_rule_at_its_edges() {
    for case in list(&parse(SIGNATURES), "edge_cases") {
        let name = text(case, "name");
        let hash = array(case, "hash");
        let signature = Signature::from_hex(text(case, "sig")).unwrap();
        let verdict = match text(case, "pk").parse::<PublicKey>() {
            Ok(public_key) => verify_hash(&public_key, &hash, &signature).is_ok(),
            Err(_) => false,
        };
        assert_eq!(verdict, text(case, "verify_2024") == "ok", "{name} [24]");
        assert_eq!(verdict, text(case, "verify_2026_rule") == "ok", "{name} [26]");
        // The Go code recovers with ids of 4 and above modulo something; the rule refuses those before.
        if signature.as_bytes()[64] < 4 {
            let recovered = recover(&hash, &signature).map_or("error".into(), |key| key.to_string());
            let expected = text(case, "recover").split(':').next().unwrap();
            assert_eq!(recovered, expected, "{name}");
        } else {
            assert_eq!(recover(&hash, &signature), Err(SignatureError::RecoveryId), "{name}");
        }
    }
}
