//! Properties of discovery entries: any entry survives the text, its signature covers every member, and no
//! text panics.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "the bodies are public items of the fuzz package")]

#[path = "../fuzz/src/entry_json.rs"]
mod entry_json;

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use ringwire_proto::entry::{ClientPart, Deployment, Entry, EntryError, ServerPart};
use ringwire_proto::identity::{PublicKey, SecretKey};

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

/// Any characters, control characters and what JSON escapes included.
fn text() -> impl Strategy<Value = String> {
    vec(prop_oneof![any::<char>(), (0..0x80_u8).prop_map(char::from)], 0..12).prop_map(String::from_iter)
}

fn client() -> impl Strategy<Value = ClientPart> {
    of(vec(public_key(), 0..4)).prop_map(|delegated_servers| ClientPart { delegated_servers })
}

prop_compose! {
    fn server()(
        texts in [text(), text(), text(), text(), text(), text(), text(), text(), text()],
        available_sessions in any::<i64>(),
        dht_bootstrap in any::<bool>(),
    ) -> ServerPart {
        let [address, v6, udp, udp_v6, ws, wt, hash, next, server_type] = texts;
        ServerPart {
            address, address_v6: v6, address_udp: udp, address_udp_v6: udp_v6, address_ws: ws, address_wt: wt,
            cert_hash_wt: hash, cert_hash_wt_next: next, available_sessions, server_type, dht_bootstrap,
        }
    }
}

prop_compose! {
    fn entry()(
        version in text(),
        sequence in any::<u64>(),
        timestamp_ns in any::<i64>(),
        static_key in of(public_key()),
        client in of(client()),
        client_type in text(),
        server in of(server()),
        protocol in text(),
    ) -> Entry {
        let signature = None;
        Entry {
            version, sequence, timestamp_ns, static_key, client, client_type, server, signature, protocol,
        }
    }
}

proptest! {
    #[test]
    fn text_round_trip(entry in entry(), key in secret_key()) {
        prop_assert_eq!(Entry::from_json(entry.to_json().as_bytes()), Ok(entry.clone()));
        let mut signed = entry;
        signed.sign(&key);
        let read = Entry::from_json(signed.to_json().as_bytes());
        prop_assert_eq!(read.as_ref(), Ok(&signed));
        prop_assert_eq!(read.unwrap().verify(), Ok(()));
        let list = format!("[{},{}]", signed.to_json(), signed.to_json());
        prop_assert_eq!(Entry::list_from_json(list.as_bytes()), Ok(vec![signed.clone(), signed]));
    }

    /// What serde_json reads from our text is what we meant: the escapes are JSON.
    #[test]
    fn texts_are_json(entry in entry()) {
        let value: serde_json::Value = serde_json::from_str(&entry.to_json()).unwrap();
        prop_assert_eq!(value["version"].as_str(), Some(entry.version.as_str()));
        prop_assert_eq!(value["client_type"].as_str().unwrap_or(""), entry.client_type.as_str());
        prop_assert_eq!(value["server"].is_object(), entry.server.is_some());
    }

    #[test]
    fn signature_covers_every_member(
        entry in entry(),
        other in entry(),
        key in secret_key(),
        member in 0..6_u8,
    ) {
        let mut signed = entry;
        signed.sign(&key);
        let mut changed = signed.clone();
        match member {
            0 => changed.version = other.version,
            1 => changed.sequence = other.sequence,
            2 => changed.timestamp_ns = other.timestamp_ns,
            3 => changed.client = other.client,
            4 => changed.server = other.server,
            _ => changed.protocol = other.protocol,
        }
        let expected = if changed == signed { Ok(()) } else { Err(EntryError::Signature) };
        prop_assert_eq!(changed.verify(), expected);
    }

    #[test]
    fn any_bytes(input in vec(any::<u8>(), 0..200)) {
        entry_json::run(&input);
    }

    #[test]
    fn changed_texts(entry in entry(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut text = entry.to_json().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        entry_json::run(&text);
    }

    #[test]
    fn validation_takes_any_time(entry in entry(), key in secret_key(), now_ns in any::<i64>()) {
        let mut entry = entry;
        entry.sign(&key);
        let _ = entry.validate(now_ns, Deployment::Production);
    }
}
