//! Any bytes as an identity certificate, and edits of an honest one (dmsg-wire 13.2): nothing but the honest
//! bytes proves the identity.
//!
//! Input: a certificate, and read again as edits of three bytes each: position, position, value.

use ringwire_proto::certificate::{build, verify_certificate};
use ringwire_proto::identity::SecretKey;

/// Verifies the bytes, then the edited certificate.
pub fn run(data: &[u8]) {
    let _ = verify_certificate(data);
    #[allow(clippy::expect_used, reason = "a constant below the group order")]
    let identity = SecretKey::from_bytes(&[1; 32]).expect("01..01 is a secret key");
    let honest = build(&identity, &[2; 32]);
    let mut edited = honest;
    for edit in data.chunks_exact(3).take(16) {
        let position = usize::from(u16::from_be_bytes([edit[0], edit[1]])) % edited.len();
        edited[position] = edit[2];
    }
    let verdict = verify_certificate(&edited);
    if edited == honest {
        assert_eq!(verdict, Ok(identity.public_key()));
    } else {
        assert!(verdict.is_err(), "an edited certificate proves {verdict:?}");
    }
}
