//! Any gob as a stream response (dmsg-wire 8.4): what decodes is encoded again and means the same.

use ringwire_proto::gob::{GOB_MAX, GobError};
use ringwire_proto::object::{Generation, StreamResponse};

/// Decodes, encodes and decodes again. Compares bytes, because a location may be no number.
pub fn run(data: &[u8]) {
    let Ok(response) = StreamResponse::decode(data) else { return };
    assert_eq!(response.ip_address().is_some(), [4, 16].contains(&response.ip.len()));
    for generation in [Generation::Go2024, Generation::Go2026] {
        let encoded = response.encode(generation);
        match StreamResponse::decode(&encoded) {
            Ok(again) => assert_eq!(again.encode(generation), encoded),
            // Replaced characters of a text are longer than what they replace.
            Err(error) => assert!(error == GobError::TooLong && encoded.len() > GOB_MAX, "{error}"),
        }
    }
}
