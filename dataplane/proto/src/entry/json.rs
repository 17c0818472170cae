//! The JSON text of entries, both ways (dmsg-wire 12.1).
//!
//! Writing is by hand because the bytes are signed: member order, what is left out, and the escapes are part
//! of the protocol. Reading goes through serde_json.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Display, Write};
use core::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, de};

use super::{ClientPart, Entry, EntryError, ServerPart};
use crate::identity::{PublicKey, Signature};

/// The null key in text: 66 zeros.
const NULL_KEY: &str = "000000000000000000000000000000000000000000000000000000000000000000";

pub(super) fn encode(entry: &Entry, signature: Option<&Signature>) -> String {
    let mut object = ObjectWriter::new(String::with_capacity(640));
    object.text("version", &entry.version);
    object.plain("sequence", entry.sequence);
    object.plain("timestamp", entry.timestamp_ns);
    match &entry.static_key {
        Some(key) => object.quoted("static", key),
        None => object.quoted("static", NULL_KEY),
    }
    if let Some(client) = &entry.client {
        object.nested("client", |out| encode_client(client, out));
    }
    object.text_unless_empty("client_type", &entry.client_type);
    if let Some(server) = &entry.server {
        object.nested("server", |out| encode_server(server, out));
    }
    if let Some(signature) = signature {
        object.quoted("signature", signature);
    }
    object.text_unless_empty("protocol", &entry.protocol);
    object.finish()
}

fn encode_client(client: &ClientPart, out: String) -> String {
    let mut object = ObjectWriter::new(out);
    object.nested("delegated_servers", |mut out| {
        let Some(servers) = &client.delegated_servers else {
            out.push_str("null");
            return out;
        };
        out.push('[');
        for (index, key) in servers.iter().enumerate() {
            out.push_str(if index == 0 { "\"" } else { ",\"" });
            push_display(key, &mut out);
            out.push('"');
        }
        out.push(']');
        out
    });
    object.finish()
}

fn encode_server(server: &ServerPart, out: String) -> String {
    let mut object = ObjectWriter::new(out);
    object.text("address", &server.address);
    object.text_unless_empty("address_v6", &server.address_v6);
    object.text_unless_empty("address_udp", &server.address_udp);
    object.text_unless_empty("address_udp_v6", &server.address_udp_v6);
    object.text_unless_empty("address_ws", &server.address_ws);
    object.text_unless_empty("address_wt", &server.address_wt);
    object.text_unless_empty("cert_hash_wt", &server.cert_hash_wt);
    object.text_unless_empty("cert_hash_wt_next", &server.cert_hash_wt_next);
    object.plain("availableSessions", server.available_sessions);
    object.text_unless_empty("serverType", &server.server_type);
    if server.dht_bootstrap {
        object.plain("dht_bootstrap", true);
    }
    object.finish()
}

/// Writes the members of one JSON object.
struct ObjectWriter {
    out: String,
    separator: char,
}

impl ObjectWriter {
    fn new(out: String) -> Self {
        Self { out, separator: '{' }
    }

    fn name(&mut self, name: &str) {
        self.out.push(self.separator);
        self.separator = ',';
        self.out.push('"');
        self.out.push_str(name);
        self.out.push_str("\":");
    }

    /// A number or a bool.
    fn plain(&mut self, name: &str, value: impl Display) {
        self.name(name);
        push_display(value, &mut self.out);
    }

    /// Text that needs no escapes.
    fn quoted(&mut self, name: &str, value: impl Display) {
        self.name(name);
        self.out.push('"');
        push_display(value, &mut self.out);
        self.out.push('"');
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        push_text(value, &mut self.out);
    }

    fn text_unless_empty(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.text(name, value);
        }
    }

    fn nested(&mut self, name: &str, write: impl FnOnce(String) -> String) {
        self.name(name);
        self.out = write(core::mem::take(&mut self.out));
    }

    fn finish(mut self) -> String {
        self.out.push('}');
        self.out
    }
}

fn push_display(value: impl Display, out: &mut String) {
    // Writing into a String cannot fail.
    let _ = write!(out, "{value}");
}

/// A JSON string with the escapes of the Go peers' codec: quote, backslash and control characters, of which
/// only the two line ends and the tab have short forms.
///
/// quirk: `<`, `>`, `&`, U+2028 and all else above the control characters stay as they are, unlike in Go's
/// standard encoder.
fn push_text(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\x1f' => {
                out.push_str("\\u00");
                push_display(format_args!("{:02x}", u32::from(character)), out);
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

pub(super) fn decode(text: &[u8]) -> Result<Entry, EntryError> {
    serde_json::from_slice(text).map_err(|error| EntryError::Malformed(error.to_string()))
}

pub(super) fn decode_list(text: &[u8]) -> Result<Vec<Entry>, EntryError> {
    let elements: Vec<serde_json::Value> =
        serde_json::from_slice(text).map_err(|error| EntryError::Malformed(error.to_string()))?;
    Ok(elements.into_iter().filter_map(|element| serde_json::from_value(element).ok()).collect())
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Object(members) = Object::<Members>::deserialize(deserializer)?;
        Ok(Self {
            version: members.version,
            sequence: members.sequence,
            timestamp_ns: members.timestamp,
            static_key: members.static_key.and_then(|KeyText(key)| key),
            client: members.client.map(|Object(client)| client_part(client)).transpose()?,
            client_type: members.client_type,
            server: members.server.map(|Object(server)| server_part(server)),
            signature: members.signature.and_then(|SignatureText(signature)| signature),
            protocol: members.protocol,
        })
    }
}

/// A structure that is read from a JSON object only; what serde derives would take an array of its members
/// too.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, members: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members)).map(Object)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// The members as they stand in the text.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Members {
    #[serde(deserialize_with = "null_is_default")]
    version: String,
    #[serde(deserialize_with = "null_is_default")]
    sequence: u64,
    #[serde(deserialize_with = "null_is_default")]
    timestamp: i64,
    #[serde(rename = "static")]
    static_key: Option<KeyText>,
    client: Option<Object<ClientMembers>>,
    #[serde(deserialize_with = "null_is_default")]
    client_type: String,
    server: Option<Object<ServerMembers>>,
    signature: Option<SignatureText>,
    #[serde(deserialize_with = "null_is_default")]
    protocol: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ClientMembers {
    delegated_servers: Option<Vec<KeyText>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ServerMembers {
    #[serde(deserialize_with = "null_is_default")]
    address: String,
    #[serde(deserialize_with = "null_is_default")]
    address_v6: String,
    #[serde(deserialize_with = "null_is_default")]
    address_udp: String,
    #[serde(deserialize_with = "null_is_default")]
    address_udp_v6: String,
    #[serde(deserialize_with = "null_is_default")]
    address_ws: String,
    #[serde(deserialize_with = "null_is_default")]
    address_wt: String,
    #[serde(deserialize_with = "null_is_default")]
    cert_hash_wt: String,
    #[serde(deserialize_with = "null_is_default")]
    cert_hash_wt_next: String,
    #[serde(rename = "availableSessions", deserialize_with = "null_is_default")]
    available_sessions: i64,
    #[serde(rename = "serverType", deserialize_with = "null_is_default")]
    server_type: String,
    #[serde(deserialize_with = "null_is_default")]
    dht_bootstrap: bool,
}

/// A key in text; `None` is one of the null forms (dmsg-wire 1.1).
struct KeyText(Option<PublicKey>);

impl<'de> Deserialize<'de> for KeyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        PublicKey::parse_text(&text).map(Self).map_err(de::Error::custom)
    }
}

/// A signature in text; `None` is the empty text.
struct SignatureText(Option<Signature>);

impl<'de> Deserialize<'de> for SignatureText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self(None));
        }
        Signature::from_hex(&text).map(|signature| Self(Some(signature))).map_err(de::Error::custom)
    }
}

fn client_part<E: de::Error>(members: ClientMembers) -> Result<ClientPart, E> {
    // A null key names no server; no peer lists one, and refusing it keeps the list a list of keys.
    let named = |KeyText(key): KeyText| key.ok_or_else(|| E::custom("null key among the delegated servers"));
    let delegated_servers = members
        .delegated_servers
        .map(|servers| servers.into_iter().map(named).collect::<Result<Vec<_>, E>>())
        .transpose()?;
    Ok(ClientPart { delegated_servers })
}

fn server_part(members: ServerMembers) -> ServerPart {
    ServerPart {
        address: members.address,
        address_v6: members.address_v6,
        address_udp: members.address_udp,
        address_udp_v6: members.address_udp_v6,
        address_ws: members.address_ws,
        address_wt: members.address_wt,
        cert_hash_wt: members.cert_hash_wt,
        cert_hash_wt_next: members.cert_hash_wt_next,
        available_sessions: members.available_sessions,
        server_type: members.server_type,
        dht_bootstrap: members.dht_bootstrap,
    }
}

/// Go leaves a member at zero when its value is `null`.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let mut out = String::new();
        push_text("\0\x08\x0c\x1f \n\r\t\"\\/\x7f<>&\u{e9}\u{2028}\u{1f600}", &mut out);
        let expected = "\"\\u0000\\u0008\\u000c\\u001f \\n\\r\\t\\\"\\\\/\x7f<>&\u{e9}\u{2028}\u{1f600}\"";
        assert_eq!(out, expected);
    }
}
