//! Encoding and decoding of session objects against the recordings of Go's `encoding/gob` (dmsg-wire 8):
//! decoded values of every recording, our bytes against every recording of a fresh process, and Go's verdict
//! on odd streams.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ringwire_proto::gob::GobError;
use ringwire_proto::identity::PublicKey;
use ringwire_proto::object::{Generation, PeerAnnounce, RawAddress, StreamRequest, StreamResponse};
use serde_json::Value;

const GOB_2024: &str = include_str!("vectors/dmsg/gob_2024.json");
const GOB_2026: &str = include_str!("vectors/dmsg/gob_2026.json");
const DECODE_CASES: &str = include_str!("vectors/dmsg/gob_decode_cases.json");

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(text(value)).unwrap()
}

fn key(value: &Value) -> Option<PublicKey> {
    PublicKey::parse_text(text(value)).unwrap()
}

fn port(value: &Value) -> u16 {
    u16::try_from(value.as_u64().unwrap()).unwrap()
}

fn address(value: &Value) -> RawAddress {
    RawAddress { key: key(&value["PK"]), port: port(&value["Port"]) }
}

/// Members a generation does not have are absent in its vector file.
fn flag(value: &Value) -> bool {
    value.as_bool().unwrap_or(false)
}

fn request(fields: &Value) -> StreamRequest {
    StreamRequest {
        timestamp_ns: fields["Timestamp"].as_i64().unwrap(),
        source: address(&fields["SrcAddr"]),
        destination: address(&fields["DstAddr"]),
        ip_info: flag(&fields["IPinfo"]),
        geo_info: flag(&fields["GeoInfo"]),
        noise_message: bytes(&fields["NoiseMsg"]),
    }
}

fn response(fields: &Value) -> StreamResponse {
    let string = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
    StreamResponse {
        request_hash: bytes(&fields["ReqHash"]).try_into().unwrap(),
        accepted: fields["Accepted"].as_bool().unwrap(),
        ip: hex::decode(string("IP")).unwrap(),
        geo_country: string("GeoCountry"),
        geo_region: string("GeoRegion"),
        geo_latitude: fields["GeoLat"].as_f64().unwrap_or_default(),
        geo_longitude: fields["GeoLon"].as_f64().unwrap_or_default(),
        error_code: port(&fields["ErrCode"]),
        noise_message: bytes(&fields["NoiseMsg"]),
    }
}

fn announce(fields: &Value) -> PeerAnnounce {
    PeerAnnounce { timestamp_ns: fields["Timestamp"].as_i64().unwrap(), source: key(&fields["SrcPK"]) }
}

/// Compares the decoded values of a recording and returns our bytes for them.
fn decode_and_encode(object: &Value, generation: Generation) -> Vec<u8> {
    let gob = bytes(&object["gob"]);
    let name = text(&object["name"]);
    match text(&object["type"]) {
        "StreamRequest" => {
            let expected = request(&object["fields"]);
            assert_eq!(StreamRequest::decode(&gob).unwrap(), expected, "{name}");
            expected.encode(generation)
        }
        "StreamResponse" => {
            let expected = response(&object["fields"]);
            assert_eq!(StreamResponse::decode(&gob).unwrap(), expected, "{name}");
            if let Some(ip) = object["decoded_ip"].as_str().filter(|&ip| ip != "<nil>") {
                assert_eq!(expected.ip_address(), Some(ip.parse().unwrap()), "{name}");
            } else {
                assert_eq!(expected.ip_address(), None, "{name}");
            }
            expected.encode(generation)
        }
        "PeerAnnounce" => {
            let expected = announce(&object["fields"]);
            assert_eq!(PeerAnnounce::decode(&gob).unwrap(), expected, "{name}");
            expected.encode()
        }
        other => panic!("unknown object type {other}"),
    }
}

/// The recording as the same process would have written it had the object's types been its first: the ids of
/// a StreamResponse whose process had used three types before, moved to the start. Lengths of the messages
/// follow.
fn renumber_response_2024(gob: &[u8]) -> Vec<u8> {
    let mut text = hex::encode(gob);
    assert!(text.starts_with("4fff85"), "definition of 67 first");
    text.replace_range(..6, "4e7f");
    let ids = [
        ("6501ff86", "6501ff80"),
        ("01ff88000108", "01ff82000108"),
        ("16ff87", "16ff81"),
        ("3601ff88", "3601ff82"),
        ("ff860120", "ff800120"),
    ];
    for (late, early) in ids {
        assert_eq!(text.matches(late).count(), 1, "{late}");
        text = text.replace(late, early);
    }
    hex::decode(text).unwrap()
}

#[test]
fn recordings_of_2024() {
    let vectors: Value = serde_json::from_str(GOB_2024).unwrap();
    let objects = vectors["objects"].as_array().unwrap();
    assert_eq!(objects.len(), 8);
    for object in objects {
        assert_eq!(text(&object["decode"]), "ok");
        let encoded = decode_and_encode(object, Generation::Go2024);
        let recorded = bytes(&object["gob"]);
        let expected = match text(&object["type"]) {
            "StreamRequest" => recorded,
            _ => renumber_response_2024(&recorded),
        };
        assert_eq!(hex::encode(encoded), hex::encode(expected), "{}", object["name"]);
    }
}

#[test]
fn recordings_of_2026() {
    let vectors: Value = serde_json::from_str(GOB_2026).unwrap();
    let mut equal = 0;
    let mut other_ids = 0;
    for run in vectors["runs"].as_array().unwrap() {
        for object in run["objects"].as_array().unwrap() {
            let encoded = decode_and_encode(object, Generation::Go2026);
            // What each process used first has the ids of a fresh process, and there the bytes must be ours.
            let fresh = matches!(
                (text(&run["order"]), text(&object["type"])),
                ("request_first", "StreamRequest")
                    | ("announce_first", "PeerAnnounce")
                    | ("response_first", "StreamResponse")
            );
            let recorded = bytes(&object["gob"]);
            assert_eq!(encoded == recorded, fresh, "{} {}", run["order"], object["name"]);
            if fresh {
                equal += 1;
            } else {
                other_ids += 1;
            }
        }
    }
    assert_eq!((equal, other_ids), (4 + 1 + 6, 7 + 4 + 4 + 4));
}

#[test]
fn request_and_announcement_decode_as_each_other() {
    let vectors: Value = serde_json::from_str(GOB_2026).unwrap();
    let mut seen = [0, 0];
    for run in vectors["runs"].as_array().unwrap() {
        for object in run["objects"].as_array().unwrap() {
            let gob = bytes(&object["gob"]);
            if let Some(verdict) = object["decode_as_PeerAnnounce"].as_str() {
                let found = PeerAnnounce::decode(&gob).unwrap();
                let shown =
                    format!("ok Timestamp={} SrcPK.null={}", found.timestamp_ns, found.source.is_none());
                assert_eq!(shown, verdict);
                seen[0] += 1;
            }
            if let Some(verdict) = object["decode_as_StreamRequest"].as_str() {
                let found = StreamRequest::decode(&gob).unwrap();
                assert_eq!(format!("ok Timestamp={}", found.timestamp_ns), verdict);
                seen[1] += 1;
            }
        }
    }
    assert_eq!(seen, [16, 2]);
}

/// What we say where Go says no, by the name of the case.
fn refusal(name: &str) -> GobError {
    match name {
        "no field in common" => GobError::NoCommonField,
        "Timestamp sent as uint" => GobError::KindMismatch("Timestamp"),
        "Port 65536 overflows uint16" => GobError::OutOfRange("Port"),
        "NoiseMsg sent as string" => GobError::KindMismatch("NoiseMsg"),
        "PK sent as plain bytes instead of a binary-marshaler value" => GobError::KindMismatch("PK"),
        "PK of 33 zero bytes sent explicitly" | "PK with a bad prefix" | "PK of 32 bytes" => {
            GobError::Invalid("PK")
        }
        "top level is not a struct" => GobError::NotAStruct,
        "IPinfo sent as uint" => GobError::KindMismatch("IPinfo"),
        "truncated by one byte" | "empty input" | "only the type definitions" => GobError::Truncated,
        "value before any type definition" => GobError::UnknownType(64),
        "first type definition repeated" => GobError::DuplicateType(64),
        other => panic!("no verdict for the case {other}"),
    }
}

#[test]
fn verdicts_of_the_go_decoder() {
    let vectors: Value = serde_json::from_str(DECODE_CASES).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 25);
    for case in cases {
        let name = text(&case["name"]);
        let found = StreamRequest::decode(&bytes(&case["gob"]));
        if text(&case["decode_as_StreamRequest"]) != "ok" {
            assert_eq!(found, Err(refusal(name)), "{name}");
            continue;
        }
        let fields = &case["fields"];
        let expected = StreamRequest {
            timestamp_ns: fields["Timestamp"].as_i64().unwrap(),
            source: RawAddress { key: key(&fields["SrcPK"]), port: port(&fields["SrcPort"]) },
            destination: RawAddress { key: key(&fields["DstPK"]), port: port(&fields["DstPort"]) },
            ip_info: flag(&fields["IPinfo"]),
            geo_info: flag(&fields["GeoInfo"]),
            noise_message: bytes(&fields["NoiseMsg"]),
        };
        assert_eq!(found, Ok(expected), "{name}");
    }
}
