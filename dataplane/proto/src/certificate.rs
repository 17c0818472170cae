//! Certificates of the QUIC carrier: a TLS key that a party's key vouches for (dmsg-wire 13.2).
//!
//! In: a secret key and an ed25519 seed of our own, or the DER certificate a peer presented. Out: our
//! certificate and its private key for the TLS library, or the [`PublicKey`] that the peer's certificate
//! proves. The QUIC listener and dialler of the control plane call it.
//!
//! Chain of proof: TLS proves that the peer holds the ed25519 key; the extension proves that the party's key
//! has signed that ed25519 key. Names, dates, serial numbers and authorities prove nothing here and are not
//! looked at.

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use x509_cert::Certificate;
use x509_cert::der::asn1::{ObjectIdentifier, OctetStringRef};
use x509_cert::der::{Decode, Header, Reader, SliceReader};
use zeroize::Zeroizing;

use crate::identity::{PUBLIC_KEY_LEN, PublicKey, SIGNATURE_LEN, SecretKey, Signature, sign, verify};

/// Object identifier of the extension that carries the identity.
pub const IDENTITY_EXTENSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.53594.1.1");

/// Object identifier of ed25519, as a key and as a signature algorithm (RFC 8410).
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Most bytes of a certificate that is looked at. The Go peers' have 381; longer ones are refused unparsed.
pub const CERTIFICATE_MAX: usize = 4096;

/// Bytes of the extension value: a SEQUENCE of two OCTET STRINGs of 33 and 65 bytes.
pub const EXTENSION_VALUE_LEN: usize = 2 + 2 + PUBLIC_KEY_LEN + 2 + SIGNATURE_LEN;

/// Bytes of the certificates [`build`] makes.
pub const CERTIFICATE_LEN: usize = 381;

/// The value of the identity extension: `secret_key`'s public key, and its signature over the ed25519 public
/// key.
pub fn extension_value(secret_key: &SecretKey, tls_public_key: &[u8; 32]) -> [u8; EXTENSION_VALUE_LEN] {
    encode_extension(&secret_key.public_key(), &sign(secret_key, tls_public_key))
}

/// A self-signed certificate for the ed25519 key of `tls_seed`, vouched for by `secret_key`; DER.
///
/// The bytes are those of the Go peers but for the two keys and signatures: subject and issuer
/// `skywire-quic`, serial 1, valid from 1970 to 2099, key usage digital signature, no authority. It is the
/// same for the same input.
pub fn build(secret_key: &SecretKey, tls_seed: &[u8; 32]) -> [u8; CERTIFICATE_LEN] {
    let tls_key = SigningKey::from_bytes(tls_seed);
    let extension = extension_value(secret_key, tls_key.verifying_key().as_bytes());
    assemble(&extension, &tls_key)
}

/// The private key of the ed25519 `tls_seed` in the form TLS libraries read: PKCS #8, DER (RFC 8410).
pub fn private_key_der(tls_seed: &[u8; 32]) -> Zeroizing<[u8; 48]> {
    // SEQUENCE { INTEGER 0, SEQUENCE { OID ed25519 }, OCTET STRING { OCTET STRING seed } }
    const HEAD: [u8; 16] =
        [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    let mut der = Zeroizing::new([0; 48]);
    der[..16].copy_from_slice(&HEAD);
    der[16..].copy_from_slice(tls_seed);
    der
}

/// Verifies the certificate a peer presented in TLS and returns whose it is. A dialler compares the result
/// with the key it dialled.
///
/// # Errors
/// Every [`CertificateError`].
pub fn verify_certificate(der: &[u8]) -> Result<PublicKey, CertificateError> {
    if der.len() > CERTIFICATE_MAX {
        return Err(CertificateError::TooLong);
    }
    let certificate = Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
    let tls_key = tls_key(&certificate)?;
    let value = identity_extension(&certificate)?;
    let (public_key, identity_signature) = decode_extension(value)?;

    // The cheap check first: ed25519 costs less than recovering a secp256k1 key.
    let signature = certificate.signature().as_bytes().ok_or(CertificateError::SelfSignature)?;
    let signature =
        ed25519_dalek::Signature::from_slice(signature).map_err(|_| CertificateError::SelfSignature)?;
    tls_key.verify_strict(signed_part(der)?, &signature).map_err(|_| CertificateError::SelfSignature)?;
    verify(&public_key, tls_key.as_bytes(), &identity_signature)
        .map_err(|_| CertificateError::IdentitySignature)?;
    Ok(public_key)
}

/// Why a certificate proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// More than [`CERTIFICATE_MAX`] bytes.
    #[error("the certificate is longer than {CERTIFICATE_MAX} bytes")]
    TooLong,
    /// Not the DER of a certificate.
    #[error("the certificate is malformed")]
    Malformed,
    /// The key or the signature of the certificate is not ed25519.
    #[error("the certificate is not ed25519")]
    Algorithm,
    /// The identity extension is absent, or there are two.
    #[error("the certificate has no single identity extension")]
    NoExtension,
    /// The identity extension is not a sequence of a public key and a signature.
    #[error("the identity extension of the certificate is malformed")]
    Extension,
    /// The certificate is not signed by its own key.
    #[error("the certificate's own signature is invalid")]
    SelfSignature,
    /// The party has not signed the certificate's key.
    #[error("the identity's signature over the certificate's key is invalid")]
    IdentitySignature,
}

fn tls_key(certificate: &Certificate) -> Result<VerifyingKey, CertificateError> {
    let key_info = certificate.tbs_certificate().subject_public_key_info();
    if key_info.algorithm.oid != ED25519 || certificate.signature_algorithm().oid != ED25519 {
        return Err(CertificateError::Algorithm);
    }
    let bytes = key_info.subject_public_key.as_bytes().ok_or(CertificateError::Algorithm)?;
    let bytes = <&[u8; 32]>::try_from(bytes).map_err(|_| CertificateError::Algorithm)?;
    VerifyingKey::from_bytes(bytes).map_err(|_| CertificateError::Algorithm)
}

fn identity_extension(certificate: &Certificate) -> Result<&[u8], CertificateError> {
    let extensions = certificate.tbs_certificate().extensions().ok_or(CertificateError::NoExtension)?;
    let mut found = extensions.iter().filter(|extension| extension.extn_id == IDENTITY_EXTENSION);
    match (found.next(), found.next()) {
        (Some(extension), None) => Ok(extension.extn_value.as_bytes()),
        _ => Err(CertificateError::NoExtension),
    }
}

/// The bytes under the certificate's signature: the first element of the outer sequence, as received.
fn signed_part(der: &[u8]) -> Result<&[u8], CertificateError> {
    let outer = || -> x509_cert::der::Result<&[u8]> {
        let mut reader = SliceReader::new(der)?;
        Header::decode(&mut reader)?;
        reader.tlv_bytes()
    };
    outer().map_err(|_| CertificateError::Malformed)
}

fn decode_extension(value: &[u8]) -> Result<(PublicKey, Signature), CertificateError> {
    let parts = || -> x509_cert::der::Result<(&[u8], &[u8])> {
        let mut reader = SliceReader::new(value)?;
        let parts = reader.sequence(|reader| -> x509_cert::der::Result<_> {
            let key = <&OctetStringRef>::decode(reader)?;
            let signature = <&OctetStringRef>::decode(reader)?;
            Ok((key.as_bytes(), signature.as_bytes()))
        })?;
        reader.finish()?;
        Ok(parts)
    };
    let (key, signature) = parts().map_err(|_| CertificateError::Extension)?;
    let key = PublicKey::from_bytes(key).map_err(|_| CertificateError::Extension)?;
    let signature = Signature::from_bytes(signature).map_err(|_| CertificateError::Extension)?;
    Ok((key, signature))
}

fn encode_extension(public_key: &PublicKey, signature: &Signature) -> [u8; EXTENSION_VALUE_LEN] {
    let mut value = [0; EXTENSION_VALUE_LEN];
    value[..4].copy_from_slice(&[0x30, 0x66, 0x04, 0x21]);
    value[4..37].copy_from_slice(public_key.as_bytes());
    value[37..39].copy_from_slice(&[0x04, 0x41]);
    value[39..].copy_from_slice(signature.as_bytes());
    value
}

/// Outer SEQUENCE of the certificate.
const OUTER_HEAD: [u8; 4] = [0x30, 0x82, 0x01, 0x79];

/// The signed part up to the ed25519 public key.
const SIGNED_HEAD: &[u8] = b"\
    \x30\x82\x01\x2b\
    \xa0\x03\x02\x01\x02\
    \x02\x01\x01\
    \x30\x05\x06\x03\x2b\x65\x70\
    \x30\x17\x31\x15\x30\x13\x06\x03\x55\x04\x03\x13\x0cskywire-quic\
    \x30\x20\x17\x0d700101000000Z\x18\x0f20990101000000Z\
    \x30\x17\x31\x15\x30\x13\x06\x03\x55\x04\x03\x13\x0cskywire-quic\
    \x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

/// The signed part between the ed25519 public key and the value of the identity extension: the extensions for
/// key usage and basic constraints, both critical, then the head of ours.
const EXTENSIONS_HEAD: &[u8] = b"\
    \xa3\x81\x99\x30\x81\x96\
    \x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x07\x80\
    \x30\x0c\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x02\x30\x00\
    \x30\x76\x06\x0a\x2b\x06\x01\x04\x01\x83\xa2\x5a\x01\x01\x04\x68";

/// Algorithm and BIT STRING head in front of the ed25519 signature.
const SIGNATURE_HEAD: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];

const _: () = assert!(
    OUTER_HEAD.len()
        + SIGNED_HEAD.len()
        + 32
        + EXTENSIONS_HEAD.len()
        + EXTENSION_VALUE_LEN
        + SIGNATURE_HEAD.len()
        + 64
        == CERTIFICATE_LEN
);

fn assemble(extension: &[u8; EXTENSION_VALUE_LEN], tls_key: &SigningKey) -> [u8; CERTIFICATE_LEN] {
    let tls_public_key = tls_key.verifying_key();
    let mut certificate = [0; CERTIFICATE_LEN];
    let mut at = 0;
    let mut push = |part: &[u8], certificate: &mut [u8]| {
        certificate[at..at + part.len()].copy_from_slice(part);
        at += part.len();
        at
    };
    push(&OUTER_HEAD, &mut certificate);
    push(SIGNED_HEAD, &mut certificate);
    push(tls_public_key.as_bytes(), &mut certificate);
    push(EXTENSIONS_HEAD, &mut certificate);
    let signed_end = push(extension, &mut certificate);
    let signature = tls_key.sign(&certificate[OUTER_HEAD.len()..signed_end]);
    push(&SIGNATURE_HEAD, &mut certificate);
    push(&signature.to_bytes(), &mut certificate);
    certificate
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use alloc::vec::Vec;

    use serde_json::Value;

    use super::*;

    const VECTORS: &str = include_str!("../tests/vectors/dmsg/quic_identity_2026.json");

    /// The identity signatures of the recordings are randomised, so they are put in; all else is ours.
    #[test]
    fn assembled_bytes_are_those_of_the_go_code() {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        let certificates = vectors["certificates"].as_array().unwrap();
        assert_eq!(certificates.len(), 3);
        for recorded in certificates {
            let bytes = |name: &str| -> Vec<u8> { hex::decode(recorded[name].as_str().unwrap()).unwrap() };
            let key = PublicKey::from_bytes(&bytes("pk")).unwrap();
            let extension = encode_extension(&key, &Signature::from_bytes(&bytes("identity_sig")).unwrap());
            assert_eq!(extension.to_vec(), bytes("extension_value"));
            let tls_key = SigningKey::from_bytes(&bytes("ed25519_seed").try_into().unwrap());
            assert_eq!(tls_key.verifying_key().as_bytes().to_vec(), bytes("ed25519_pub"));
            let ours: String = hex::encode(assemble(&extension, &tls_key));
            assert_eq!(ours, recorded["certificate_der"].as_str().unwrap());
        }
    }
}
