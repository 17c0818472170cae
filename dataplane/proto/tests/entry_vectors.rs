//! Discovery entries against the recordings (dmsg-wire 12, services 2): exact text both ways, signatures,
//! validation.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ringwire_proto::entry::{ClientPart, Deployment, ENTRY_VERSION, Entry, EntryError, ServerPart};
use ringwire_proto::identity::{SecretKey, sha256};
use serde_json::Value;

const ENTRIES_2024: &str = include_str!("vectors/dmsg/disc_entries_2024.json");
const ENTRIES_2026: &str = include_str!("vectors/dmsg/disc_entries_2026.json");
const DISCOVERY: &str = include_str!("vectors/services/discovery-entries.json");

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn read(value: &Value) -> Entry {
    Entry::from_json(text(value).as_bytes()).unwrap()
}

#[test]
fn recorded_entries_are_read_written_and_verified() {
    let mut count = 0;
    for file in [ENTRIES_2024, ENTRIES_2026] {
        let vectors: Value = serde_json::from_str(file).unwrap();
        let keys = ["server_sk", "client_sk"].map(|name| SecretKey::from_hex(text(&vectors[name])).unwrap());
        for recorded in vectors["entries"].as_array().unwrap() {
            let name = text(&recorded["name"]);
            let entry = read(&recorded["json"]);
            assert_eq!(entry.to_json(), text(&recorded["json"]), "{name}");
            assert_eq!(entry.signed_text(), text(&recorded["signed_payload"]), "{name}");
            assert_eq!(entry.verify(), Ok(()), "{name}");
            assert_eq!(recorded["verify"].as_str().unwrap_or("ok"), "ok");
            // Signed again by its own key it is the same entry but for the signature.
            let key = keys.iter().find(|key| Some(key.public_key()) == entry.static_key).unwrap();
            let mut again = Entry { static_key: None, signature: None, ..entry.clone() };
            again.sign(key);
            assert_eq!(again.verify(), Ok(()), "{name}");
            assert_eq!(again.signed_text(), entry.signed_text(), "{name}");
            count += 1;
        }
    }
    assert_eq!(count, 7 + 4);
}

#[test]
fn recorded_members_arrive_where_they_belong() {
    let vectors: Value = serde_json::from_str(ENTRIES_2026).unwrap();
    let mut entries = vectors["entries"].as_array().unwrap().iter();
    let every = entries.find(|entry| entry["name"] == "server_every_field");
    let entry = read(&every.unwrap()["json"]);
    let server = ServerPart {
        address: "203.0.113.7:8081".into(),
        address_v6: "[2001:db8::7]:8081".into(),
        address_udp: "203.0.113.7:8081".into(),
        address_udp_v6: "[2001:db8::7]:8081".into(),
        address_ws: "ws://203.0.113.7:8081/dmsg".into(),
        address_wt: "https://203.0.113.7:8081/dmsg".into(),
        cert_hash_wt: "06298432e8066b29e2223bcc23aa9504b56ae508fabf3435508869b9c3190e22".into(),
        cert_hash_wt_next: "c6c1c9a9c8543f1e4cd980064cf1625eeb61a90703b2464fff039f21682508b3".into(),
        available_sessions: 2000,
        server_type: "official".into(),
        dht_bootstrap: true,
    };
    assert_eq!(entry.server, Some(server));
    assert_eq!((entry.version.as_str(), entry.sequence, entry.protocol.as_str()), ("v1.3.99", 12, "quic"));
    assert_eq!(entry.timestamp_ns, 1_770_000_000_000_000_002);
}

#[test]
fn recordings_of_the_discovery() {
    let vectors: Value = serde_json::from_str(DISCOVERY).unwrap();
    let entries = vectors["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 6);
    for recorded in entries {
        let entry = read(&recorded["entry_json"]);
        assert_eq!(entry.to_json(), text(&recorded["entry_json"]));
        assert_eq!(entry.signed_text(), text(&recorded["signed_bytes_utf8"]));
        assert_eq!(hex::encode(sha256(entry.signed_text().as_bytes())), text(&recorded["digest_sha256"]));
        assert_eq!(entry.verify().is_ok(), recorded["verifies"].as_bool().unwrap());
    }
    for recorded in vectors["html_escaping"].as_array().unwrap() {
        let mut entry = read(&recorded["unescaped_bytes"]);
        assert_eq!(entry.signed_text(), text(&recorded["unescaped_bytes"]));
        // The escaped form reads as the same entry, and it is the unescaped form that is signed.
        assert_eq!(read(&recorded["encoding_json_would_give"]), entry);
        let signature = format!("{{\"signature\":\"{}\"}}", text(&recorded["signature_example"]));
        entry.signature = Entry::from_json(signature.as_bytes()).unwrap().signature;
        assert_eq!(entry.verify(), Ok(()));
    }
}

/// A verdict in the words of the discovery.
fn shown(verdict: Result<(), EntryError>) -> String {
    verdict.map_or_else(|error| format!("entry validation error: {error}"), |()| String::new())
}

#[test]
fn recorded_validation_verdicts() {
    let vectors: Value = serde_json::from_str(DISCOVERY).unwrap();
    let cases = vectors["validate"].as_array().unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let entry = read(&case["entry_json"]);
        // A case that is not checked against the clock is checked at its own time.
        let checked = case["validate_timestamp"].as_bool().unwrap();
        let age_ns = if checked { 1_000_000_000_000_000_000 } else { 0 };
        let verdict = entry.validate(entry.timestamp_ns + age_ns, Deployment::Test);
        assert_eq!(shown(verdict), text(&case["error"]), "{}", case["name"]);
    }
    let cases = vectors["iteration"].as_array().unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let entry = |prefix: &str| Entry {
            sequence: case[format!("{prefix}Seq")].as_u64().unwrap(),
            timestamp_ns: case[format!("{prefix}TS")].as_i64().unwrap(),
            ..Entry::default()
        };
        let verdict = entry("New").validate_successor_of(&entry("Old"));
        assert_eq!(shown(verdict), text(&case["Err"]), "{case}");
    }
}

const NOW_NS: i64 = 1_770_000_000_000_000_000;

fn server_entry() -> (Entry, SecretKey) {
    let key = SecretKey::from_bytes(&[1; 32]).unwrap();
    let mut entry = Entry {
        version: ENTRY_VERSION.into(),
        timestamp_ns: NOW_NS,
        server: Some(ServerPart {
            address: "203.0.113.7:8081".into(),
            available_sessions: 2048,
            ..ServerPart::default()
        }),
        ..Entry::default()
    };
    entry.sign(&key);
    (entry, key)
}

/// Breaks an entry from the last check backwards; each further fault must take over the verdict.
#[test]
fn validation_keeps_its_order() {
    let (mut entry, key) = server_entry();
    let validate = |entry: &Entry| entry.validate(NOW_NS, Deployment::Production);
    assert_eq!(validate(&entry), Ok(()));
    entry.sequence = 1;
    assert_eq!(validate(&entry), Err(EntryError::Signature));
    entry.timestamp_ns -= 61_000_000_000;
    assert_eq!(validate(&entry), Err(EntryError::Outdated));
    entry.server.as_mut().unwrap().address = String::new();
    assert_eq!(validate(&entry), Err(EntryError::NoAddress));
    entry.server = None;
    assert_eq!(validate(&entry), Err(EntryError::NoPart));
    entry.static_key = None;
    assert_eq!(validate(&entry), Err(EntryError::NullKey));
    entry.signature = None;
    assert_eq!(validate(&entry), Err(EntryError::NoSignature));
    entry.version = String::new();
    assert_eq!(validate(&entry), Err(EntryError::NoVersion));
    entry.server = Some(ServerPart { address: "127.0.0.1:8081".into(), ..ServerPart::default() });
    assert_eq!(validate(&entry), Err(EntryError::Loopback));

    entry.version = ENTRY_VERSION.into();
    entry.timestamp_ns = NOW_NS;
    entry.sign(&key);
    assert_eq!(validate(&entry), Err(EntryError::Loopback));
    assert_eq!(entry.validate(NOW_NS, Deployment::Test), Ok(()));
}

#[test]
fn only_pure_servers_are_held_against_the_clock() {
    let (mut entry, key) = server_entry();
    entry.client = Some(ClientPart::default());
    entry.sign(&key);
    assert_eq!(entry.validate(i64::MAX, Deployment::Production), Ok(()));
}

#[test]
fn unknown_members_vanish_and_break_the_signature() {
    let (entry, key) = server_entry();
    let json = entry.to_json();
    let known = "\"availableSessions\":2048";
    let extended = json.replace(known, &format!("{known},\"new\":[{{\"a\":1}}]"));
    assert_eq!(Entry::from_json(extended.as_bytes()).unwrap(), entry);
    let signed = entry.signed_text().replace(known, &format!("{known},\"new\":1"));
    let signature = ringwire_proto::identity::sign(&key, signed.as_bytes());
    let mut posted = Entry::from_json(signed.as_bytes()).unwrap();
    posted.signature = Some(signature);
    assert_eq!(posted.verify(), Err(EntryError::Signature));
}

#[test]
fn null_empty_and_absent_lists_stay_apart() {
    let read =
        |client: &str| Entry::from_json(format!("{{\"version\":\"\"{client}}}").as_bytes()).unwrap().client;
    assert_eq!(read(""), None);
    assert_eq!(read(",\"client\":null"), None);
    assert_eq!(read(",\"client\":{}"), Some(ClientPart { delegated_servers: None }));
    assert_eq!(
        read(",\"client\":{\"delegated_servers\":null}"),
        Some(ClientPart { delegated_servers: None })
    );
    assert_eq!(
        read(",\"client\":{\"delegated_servers\":[]}"),
        Some(ClientPart { delegated_servers: Some(Vec::new()) })
    );
}

#[test]
fn tolerated_and_refused_texts() {
    let null_key = "0".repeat(66);
    let empty = Entry::from_json(b"{}").unwrap();
    assert_eq!(empty, Entry::default());
    assert_eq!(
        empty.to_json(),
        format!("{{\"version\":\"\",\"sequence\":0,\"timestamp\":0,\"static\":\"{null_key}\"}}")
    );
    for tolerated in [
        "{\"static\":\"\",\"signature\":\"\",\"version\":null,\"sequence\":null,\"server\":null}",
        "{\"static\":\"000\"}",
        " {\"static\" : null , \"signature\":null}\n",
    ] {
        assert_eq!(Entry::from_json(tolerated.as_bytes()), Ok(Entry::default()), "{tolerated}");
    }
    let upper = "{\"static\":\"02D9DC47E8FBDF8B7C60DAF4FA6ED6013D28C7966E8DFCCB6EA23B145AB0A3D44C\"}";
    let entry = Entry::from_json(upper.as_bytes()).unwrap();
    assert!(entry.to_json().contains("02d9dc47e8fbdf8b7c60daf4fa6ed6013d28c7966e8dfccb6ea23b145ab0a3d44c"));
    for refused in [
        "",
        "null",
        "{",
        "{} {}",
        "[]",
        "[[]]",
        "[\"0.0.1\"]",
        "{\"client\":[]}",
        "{\"server\":[\"a:1\"]}",
        "{\"version\":\"\",\"version\":\"\"}",
        "{\"sequence\":-1}",
        "{\"sequence\":\"1\"}",
        "{\"sequence\":18446744073709551616}",
        "{\"timestamp\":1.5}",
        "{\"static\":\"02\"}",
        "{\"signature\":\"00\"}",
        "{\"client\":[1]}",
        "{\"client\":{\"delegated_servers\":[\"\"]}}",
        "{\"server\":{\"availableSessions\":true}}",
    ] {
        let found = Entry::from_json(refused.as_bytes());
        assert!(matches!(found, Err(EntryError::Malformed(_))), "{refused}: {found:?}");
    }
}

#[test]
fn lists_pass_over_what_is_no_entry() {
    let (entry, _) = server_entry();
    let json = entry.to_json();
    let list = format!("[{json},7,null,[],{{\"static\":\"xx\"}},{json}]");
    assert_eq!(Entry::list_from_json(list.as_bytes()), Ok(vec![entry.clone(), entry]));
    assert_eq!(Entry::list_from_json(b"[]"), Ok(Vec::new()));
    assert!(Entry::list_from_json(b"{}").is_err());
}
