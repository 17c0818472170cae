//! Properties of objects and their gob: round trips of every value, and no input that panics or takes long.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "the bodies are public items of the fuzz package")]

#[path = "../fuzz/src/gob_request.rs"]
mod gob_request;
#[path = "../fuzz/src/gob_response.rs"]
mod gob_response;
#[path = "../fuzz/src/signed_object.rs"]
mod signed_object;

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use ringwire_proto::gob::{FIELDS_MAX, GOB_MAX, GobError, NESTING_MAX, TYPES_MAX, push_int, push_uint};
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::object::{
    Generation, PeerAnnounce, RawAddress, StreamRequest, StreamResponse, object_hash, open_request,
    open_response, sign_object,
};

fn secret_key() -> impl Strategy<Value = SecretKey> {
    any::<[u8; 31]>().prop_map(|tail| {
        let mut bytes = [1; 32];
        bytes[1..].copy_from_slice(&tail);
        SecretKey::from_bytes(&bytes).unwrap()
    })
}

fn public_key() -> impl Strategy<Value = PublicKey> {
    secret_key().prop_map(|key| key.public_key())
}

fn address() -> impl Strategy<Value = RawAddress> {
    (proptest::option::of(public_key()), any::<u16>()).prop_map(|(key, port)| RawAddress { key, port })
}

prop_compose! {
    fn request()(
        timestamp_ns in any::<i64>(),
        source in address(),
        destination in address(),
        ip_info in any::<bool>(),
        geo_info in any::<bool>(),
        noise_message in vec(any::<u8>(), 0..2000),
    ) -> StreamRequest {
        StreamRequest { timestamp_ns, source, destination, ip_info, geo_info, noise_message }
    }
}

prop_compose! {
    fn response()(
        request_hash in any::<[u8; 32]>(),
        accepted in any::<bool>(),
        ip in vec(any::<u8>(), 0..20),
        geo_country in ".{0,8}",
        geo_region in ".{0,8}",
        geo_latitude in any::<f64>(),
        geo_longitude in -180.0..180.0,
        error_code in any::<u16>(),
        noise_message in vec(any::<u8>(), 0..2000),
    ) -> StreamResponse {
        StreamResponse {
            request_hash, accepted, ip, geo_country, geo_region, geo_latitude, geo_longitude, error_code,
            noise_message,
        }
    }
}

/// All that a peer's bytes go through, with the promises the fuzz targets check.
fn decode_all(input: &[u8]) {
    gob_request::run(input);
    gob_response::run(input);
    signed_object::run(input);
}

proptest! {
    #[test]
    fn request_round_trip(request in request()) {
        let late = StreamRequest::decode(&request.encode(Generation::Go2026));
        prop_assert_eq!(late, Ok(request.clone()));
        let early = StreamRequest::decode(&request.encode(Generation::Go2024));
        prop_assert_eq!(early, Ok(StreamRequest { ip_info: false, geo_info: false, ..request }));
    }

    #[test]
    fn response_round_trip(response in response()) {
        let late = StreamResponse::decode(&response.encode(Generation::Go2026));
        prop_assert_eq!(late, Ok(response.clone()));
        let early = StreamResponse::decode(&response.encode(Generation::Go2024));
        let expected = StreamResponse {
            request_hash: response.request_hash,
            accepted: response.accepted,
            error_code: response.error_code,
            noise_message: response.noise_message,
            ..StreamResponse::default()
        };
        prop_assert_eq!(early, Ok(expected));
    }

    #[test]
    fn announce_round_trip(timestamp_ns in any::<i64>(), source in proptest::option::of(public_key())) {
        let announce = PeerAnnounce { timestamp_ns, source };
        prop_assert_eq!(PeerAnnounce::decode(&announce.encode()), Ok(announce));
    }

    #[test]
    fn signed_objects_open_and_any_change_closes_them(
        request in request(),
        key in secret_key(),
        destination in secret_key(),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let mut request = request;
        request.timestamp_ns = request.timestamp_ns.saturating_abs().max(1);
        request.source = RawAddress { key: Some(key.public_key()), port: request.source.port.max(1) };
        request.destination.key = Some(destination.public_key());
        request.destination.port = request.destination.port.max(1);
        let mut signed = sign_object(&key, &request.encode(Generation::Go2026));
        prop_assert_eq!(open_request(&signed), Ok(request));
        let hash = object_hash(&signed);
        let response = StreamResponse { request_hash: hash, accepted: true, ..StreamResponse::default() };
        let answer = sign_object(&destination, &response.encode(Generation::Go2024));
        prop_assert_eq!(open_response(&answer, &hash, &destination.public_key()), Ok(response));
        let at = at.index(signed.len());
        signed[at] ^= flip;
        prop_assert!(open_request(&signed).is_err());
        prop_assert_ne!(object_hash(&signed), hash);
    }

    #[test]
    fn random_bytes(input in vec(any::<u8>(), 0..300)) {
        decode_all(&input);
    }

    /// Small numbers make far more of the input look like gob.
    #[test]
    fn gob_like_bytes(
        input in vec(prop_oneof![0..9_u8, Just(0x7f), Just(0x80), Just(0x82), Just(0xff)], 0..300),
    ) {
        decode_all(&input);
    }

    #[test]
    fn mutated_objects(
        request in request(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut gob = request.encode(Generation::Go2026);
        // Only the last part is long, and nothing in it is structure.
        for (at, byte) in changes {
            let at = at.index(gob.len().min(260));
            gob[at] = byte;
        }
        decode_all(&gob);
        decode_all(&gob[..cut.index(gob.len())]);
    }
}

fn message(id: i64, content: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    push_int(id, &mut body);
    body.extend_from_slice(content);
    let mut out = Vec::new();
    push_uint(body.len() as u64, &mut out);
    out.extend_from_slice(&body);
    out
}

fn structure(fields: &[(&str, i64)]) -> Vec<u8> {
    let mut out = vec![3, 2];
    push_uint(fields.len() as u64, &mut out);
    for (name, id) in fields {
        out.extend_from_slice(&[1, u8::try_from(name.len()).unwrap()]);
        out.extend_from_slice(name.as_bytes());
        out.push(1);
        push_int(*id, &mut out);
        out.push(0);
    }
    out.extend_from_slice(&[0, 0]);
    out
}

/// A stream of full length whose value makes the decoder walk: a slice of as many elements as fit, at several
/// types.
fn heavy_streams() -> Vec<Vec<u8>> {
    let mut streams = Vec::new();
    let slice = |element: i64| {
        let mut out = vec![2, 2];
        push_int(element, &mut out);
        out.extend_from_slice(&[0, 0]);
        out
    };
    // Elements: bool, nil interface, empty struct, empty slice of slices.
    for element in [1, 8, 66, 65] {
        let mut value = vec![1];
        push_uint(GOB_MAX as u64, &mut value);
        value.resize(GOB_MAX - 200, 0);
        streams.push(
            [
                message(-66, &structure(&[])),
                message(-65, &slice(element)),
                message(-64, &structure(&[("X", 65), ("Timestamp", 2)])),
                message(64, &value),
            ]
            .concat(),
        );
    }
    // All fields have the known struct field's name, and so have those inside it.
    let half = FIELDS_MAX / 2;
    let (outer, inner) = (vec![("SrcAddr", 65); half], vec![("Port", 3); half]);
    let mut value = Vec::new();
    for _ in 0..half {
        value.push(1);
        value.extend([1, 5].repeat(half));
        value.push(0);
    }
    value.push(0);
    streams.push(
        [message(-64, &structure(&outer)), message(-65, &structure(&inner)), message(64, &value)].concat(),
    );
    // As many definitions as are allowed, each nested in the one before.
    let mut deep = Vec::new();
    for index in 0..TYPES_MAX as i64 {
        let fields = [("X", 65 + index), ("Timestamp", 2)];
        deep.extend(message(-64 - index, &structure(&fields)));
    }
    deep.extend(message(64, &[1; NESTING_MAX + 1]));
    streams.push(deep);
    streams
}

#[test]
fn hostile_streams_cost_little() {
    for (index, stream) in heavy_streams().iter().enumerate() {
        assert!(stream.len() <= GOB_MAX, "stream {index} has {} bytes", stream.len());
        let mut took = Vec::new();
        // The limit is for a debug build on a slow machine; alone it takes a few milliseconds. One of several counts: others
        // may have the processor in between.
        let result = loop {
            let start = Instant::now();
            let result = StreamRequest::decode(stream);
            took.push(start.elapsed());
            if start.elapsed() < Duration::from_millis(250) {
                break result;
            }
            assert!(took.len() < 20, "stream {index}: {took:?}");
        };
        let expected: &[GobError] = if index < 4 {
            &[GobError::Truncated]
        } else if index == 5 {
            &[GobError::TooDeep]
        } else {
            &[]
        };
        match result {
            Ok(_) => assert!(expected.is_empty(), "stream {index}"),
            Err(error) => assert!(expected.contains(&error), "stream {index}: {error}"),
        }
    }
}
