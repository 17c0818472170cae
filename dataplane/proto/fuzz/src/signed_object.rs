//! Any bytes as a signed object, as they are and under an honest signature (dmsg-wire 7, 9).
//!
//! Input: the object, or its gob.

use ringwire_proto::identity::SecretKey;
use ringwire_proto::object::{
    ErrorCode, SignedObject, StreamRequest, StreamResponse, object_hash, open_announce, open_request,
    open_response, sign_object,
};

/// Opens the bytes as every object. What opens must have passed every check.
pub fn run(data: &[u8]) {
    #[allow(clippy::expect_used, reason = "a constant below the group order")]
    let author = SecretKey::from_bytes(&[1; 32]).expect("01..01 is a secret key");
    assert_eq!(SignedObject::parse(data).is_err(), data.len() <= 65);
    open_all(data, &author);
    open_all(&sign_object(&author, data), &author);
}

fn open_all(signed: &[u8], author: &SecretKey) {
    let key = author.public_key();
    if let Ok(request) = open_request(signed) {
        assert_eq!(request.check(), Ok(()));
        let claimed = request.source.key;
        let verified = SignedObject::parse(signed).is_ok_and(|object| {
            claimed.is_some_and(|source| object.verify(&source).is_ok())
                && StreamRequest::decode(object.gob).as_ref() == Ok(&request)
        });
        assert!(verified, "an open request is signed by its source");
    }
    if let Ok(announce) = open_announce(signed, &key) {
        assert!(announce.source == Some(key) && announce.timestamp_ns > 0);
    }
    let Ok(object) = SignedObject::parse(signed) else { return };
    let Ok(response) = StreamResponse::decode(object.gob) else { return };
    let verdict = open_response(signed, &response.request_hash, &key);
    match (object.verify(&key), response.accepted) {
        (Err(_), _) => assert_eq!(verdict, Err(ErrorCode::ResponseSignature.into())),
        (Ok(()), true) => assert!(verdict.is_ok()),
        (Ok(()), false) => {
            let code = ErrorCode::from_code(response.error_code).unwrap_or(ErrorCode::ResponseRefused);
            assert_eq!(verdict, Err(code.into()));
        }
    }
    let other = object_hash(signed);
    assert_eq!(open_response(signed, &other, &key), Err(ErrorCode::ResponseHash.into()));
}
