//! Signed objects against the recordings (dmsg-wire 7, 9): envelope, hash, and the order of the checks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ringwire_proto::gob::GobError;
use ringwire_proto::identity::{PublicKey, SecretKey, sign};
use ringwire_proto::object::{
    ErrorCode, Generation, ObjectError, PeerAnnounce, RawAddress, SignedObject, StreamRequest,
    StreamResponse, object_hash, open_announce, open_request, open_response, sign_object,
};
use serde_json::Value;

const GOB_2024: &str = include_str!("vectors/dmsg/gob_2024.json");
const GOB_2026: &str = include_str!("vectors/dmsg/gob_2026.json");

/// Groups of objects that share a pair of keys: the file of 2024, and each run of 2026.
fn groups() -> Vec<Value> {
    let mut groups: Vec<Value> = vec![serde_json::from_str(GOB_2024).unwrap()];
    let runs: Value = serde_json::from_str(GOB_2026).unwrap();
    groups.extend(runs["runs"].as_array().unwrap().iter().cloned());
    groups
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn secret(group: &Value, name: &str) -> SecretKey {
    SecretKey::from_hex(group["keys"][name]["sk"].as_str().unwrap()).unwrap()
}

fn author(signed: &[u8], candidates: &[PublicKey]) -> Option<PublicKey> {
    let object = SignedObject::parse(signed).unwrap();
    candidates.iter().find(|key| object.verify(key).is_ok()).copied()
}

#[test]
fn envelope_and_hash_of_every_recording() {
    let mut count = 0;
    for group in groups() {
        let keys = [secret(&group, "a").public_key(), secret(&group, "b").public_key()];
        for object in group["objects"].as_array().unwrap() {
            let signed = bytes(&object["signed_object"]);
            assert_eq!(SignedObject::parse(&signed).unwrap().gob, bytes(&object["gob"]));
            assert_eq!(object_hash(&signed).to_vec(), bytes(&object["hash"]));
            assert!(author(&signed, &keys).is_some(), "{}", object["name"]);
            count += 1;
        }
    }
    assert_eq!(count, 8 + 30);
}

#[test]
fn requests_get_the_recorded_verdict() {
    let mut verdicts = 0;
    for group in groups() {
        for object in
            group["objects"].as_array().unwrap().iter().filter(|object| object["type"] == "StreamRequest")
        {
            let opened = open_request(&bytes(&object["signed_object"]));
            match object["verify_after_decode"].as_str() {
                Some("ok") | None => assert!(opened.is_ok(), "{}: {opened:?}", object["name"]),
                Some(words) => assert_eq!(opened.unwrap_err().to_string(), words),
            }
            verdicts += 1;
        }
    }
    assert_eq!(verdicts, 5 + 16);
}

#[test]
fn responses_pass_under_their_request_and_author() {
    let mut refusals = Vec::new();
    for group in groups() {
        let keys = [secret(&group, "a").public_key(), secret(&group, "b").public_key()];
        for object in
            group["objects"].as_array().unwrap().iter().filter(|object| object["type"] == "StreamResponse")
        {
            let signed = bytes(&object["signed_object"]);
            let hash: [u8; 32] = bytes(&object["fields"]["ReqHash"]).try_into().unwrap();
            let destination = author(&signed, &keys).unwrap();
            match open_response(&signed, &hash, &destination) {
                Ok(response) => assert!(response.accepted),
                Err(error) => refusals.push(error.code().unwrap().code()),
            }
            let stranger = keys.into_iter().find(|key| *key != destination).unwrap();
            assert_eq!(open_response(&signed, &hash, &stranger), Err(ErrorCode::ResponseSignature.into()));
            assert_eq!(open_response(&signed, &[9; 32], &stranger), Err(ErrorCode::ResponseHash.into()));
        }
    }
    // 306 of 2024; of 2026 a refused announcement (no number) and 307, in two runs.
    refusals.sort_unstable();
    assert_eq!(refusals, [306, 307, 307, 352, 352]);
}

#[test]
fn announcements_pass_only_on_the_session_of_their_author() {
    let mut count = 0;
    for group in groups() {
        for object in
            group["objects"].as_array().unwrap().iter().filter(|object| object["type"] == "PeerAnnounce")
        {
            let signed = bytes(&object["signed_object"]);
            let source = object["fields"]["SrcPK"].as_str().unwrap().parse().unwrap();
            assert_eq!(open_announce(&signed, &source).unwrap().source, Some(source));
            let other = secret(&group, "b").public_key();
            assert_eq!(open_announce(&signed, &other), Err(ErrorCode::RequestSourceKey.into()));
            // An announcement that fails is tried as a request and fails there with the same code.
            assert_eq!(open_request(&signed), Err(ErrorCode::RequestSourceKey.into()));
            count += 1;
        }
        for object in
            group["objects"].as_array().unwrap().iter().filter(|object| object["type"] == "StreamRequest")
        {
            let opened = open_announce(&bytes(&object["signed_object"]), &secret(&group, "a").public_key());
            assert_eq!(opened, Err(ErrorCode::RequestSourceKey.into()));
        }
    }
    assert_eq!(count, 2);
}

fn keys() -> (SecretKey, SecretKey) {
    (SecretKey::from_bytes(&[1; 32]).unwrap(), SecretKey::from_bytes(&[2; 32]).unwrap())
}

fn valid_request() -> StreamRequest {
    let (a, b) = keys();
    StreamRequest {
        timestamp_ns: 1,
        source: RawAddress { key: Some(a.public_key()), port: 49_153 },
        destination: RawAddress { key: Some(b.public_key()), port: 80 },
        noise_message: vec![7; 49],
        ..StreamRequest::default()
    }
}

/// Breaks a request from the last check backwards; each further fault must take over the verdict.
#[test]
fn request_checks_keep_their_order() {
    let (a, b) = keys();
    let mut request = valid_request();
    let open = |request: &StreamRequest, signer: &SecretKey| {
        open_request(&sign_object(signer, &request.encode(Generation::Go2024))).map_err(|error| error.code())
    };
    assert_eq!(open(&request, &a), Ok(request.clone()));
    assert_eq!(open(&request, &b), Err(Some(ErrorCode::RequestSignature)));
    request.timestamp_ns = 0;
    assert_eq!(open(&request, &b), Err(Some(ErrorCode::RequestTimestamp)));
    request.destination.port = 0;
    assert_eq!(open(&request, &b), Err(Some(ErrorCode::RequestDestinationPort)));
    request.destination.key = None;
    assert_eq!(open(&request, &b), Err(Some(ErrorCode::RequestDestinationKey)));
    request.source.port = 0;
    assert_eq!(open(&request, &b), Err(Some(ErrorCode::RequestSourcePort)));
    request.source.key = None;
    assert_eq!(open(&request, &b), Err(Some(ErrorCode::RequestSourceKey)));
}

#[test]
fn response_checks_keep_their_order() {
    let (a, b) = keys();
    let open = |response: &StreamResponse, signer: &SecretKey| {
        open_response(&sign_object(signer, &response.encode(Generation::Go2026)), &[5; 32], &b.public_key())
            .map_err(|error| error.code())
    };
    let mut response = StreamResponse { request_hash: [5; 32], accepted: true, ..StreamResponse::default() };
    assert_eq!(open(&response, &b), Ok(response.clone()));
    for (number, code) in [(0, 352), (306, 306), (9999, 352), (200, 200)] {
        (response.accepted, response.error_code) = (false, number);
        assert_eq!(open(&response, &b), Err(ErrorCode::from_code(code)));
    }
    assert_eq!(open(&response, &a), Err(Some(ErrorCode::ResponseSignature)));
    response.request_hash = [6; 32];
    assert_eq!(open(&response, &a), Err(Some(ErrorCode::ResponseHash)));
}

#[test]
fn announcement_checks() {
    let (a, b) = keys();
    let mut announce = PeerAnnounce { timestamp_ns: 1, source: Some(a.public_key()) };
    let open = |announce: &PeerAnnounce, signer: &SecretKey| {
        open_announce(&sign_object(signer, &announce.encode()), &a.public_key()).map_err(|error| error.code())
    };
    assert_eq!(open(&announce, &a), Ok(announce.clone()));
    assert_eq!(open(&announce, &b), Err(Some(ErrorCode::RequestSignature)));
    announce.timestamp_ns = -1;
    assert_eq!(open(&announce, &a), Err(Some(ErrorCode::RequestTimestamp)));
    announce.source = None;
    assert_eq!(open(&announce, &a), Err(Some(ErrorCode::RequestSourceKey)));
}

#[test]
fn short_objects() {
    for length in 0..=65 {
        assert_eq!(open_request(&vec![0; length]), Err(ErrorCode::ObjectTooShort.into()));
    }
    assert_eq!(open_request(&[0; 66]), Err(ObjectError::Gob(GobError::Truncated)));
    assert_eq!(open_request(&[0; 66]).unwrap_err().code(), None);
}

/// The signature covers the gob as sent, so bytes behind the value are part of the object although nobody
/// reads them.
#[test]
fn trailing_bytes_are_signed() {
    let (a, _) = keys();
    let mut gob = valid_request().encode(Generation::Go2026);
    gob.extend_from_slice(b"more");
    let mut signed = sign_object(&a, &gob);
    assert!(open_request(&signed).is_ok());
    signed.pop();
    assert_eq!(open_request(&signed), Err(ErrorCode::RequestSignature.into()));
}

#[test]
fn ip_requests_are_told_by_flag_and_destination() {
    let (a, b) = keys();
    let mut request = valid_request();
    assert!(!request.is_ip_request_to(&b.public_key()));
    request.ip_info = true;
    assert!(request.is_ip_request_to(&b.public_key()));
    assert!(!request.is_ip_request_to(&a.public_key()));
    request.destination.key = None;
    assert!(!request.is_ip_request_to(&b.public_key()));
}

/// The words recorded from Go code.
#[test]
fn recorded_words() {
    let shown = ErrorCode::CannotConnectToServer.to_string();
    assert_eq!(shown, "dmsg error 202 - cannot connect to delegated server");
    assert!(!ErrorCode::CannotConnectToServer.is_temporary());
}

#[test]
fn signing_is_what_the_envelope_carries() {
    let (a, _) = keys();
    let signed = sign_object(&a, b"gob");
    assert_eq!(signed, [sign(&a, b"gob").as_bytes(), &b"gob"[..]].concat());
}
