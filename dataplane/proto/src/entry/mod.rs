//! Discovery entries: what servers and clients publish about themselves (dmsg-wire 12, services 2).
//!
//! In: JSON of a discovery, or the parts of an own entry. Out: [`Entry`], its exact JSON text, its signature
//! and the verdicts on both. The control plane posts its own entry and reads those of others; a discovery
//! would use [`Entry::validate`] too.
//!
//! The signature covers a JSON text that nobody transmits: the entry without its signature, encoded anew by
//! whoever signs or verifies. So the text has one exact form (see [`Entry::signed_text`]), and members that
//! the verifier does not know make the signature fail.

mod json;
mod validate;

use alloc::string::String;
use alloc::vec::Vec;

use crate::identity::{PublicKey, SecretKey, Signature, sign, verify};

pub use validate::{Deployment, TIMESTAMP_FUTURE_MAX_NS, TIMESTAMP_PAST_MAX_NS};

/// The `version` of entries that do not carry a build version (dmsg-wire 12.1).
pub const ENTRY_VERSION: &str = "0.0.1";

/// One entry of the discovery (dmsg-wire 12.1). Members in the order of the JSON text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// [`ENTRY_VERSION`], or the build version of a server of late 2026.
    pub version: String,
    /// Rises with every post.
    pub sequence: u64,
    /// Unix time of the post in nanoseconds.
    pub timestamp_ns: i64,
    /// Whose entry this is, member `static`; `None` is the null key, written as 66 zeros.
    pub static_key: Option<PublicKey>,
    /// Present in the entry of a client.
    pub client: Option<ClientPart>,
    /// For instance `visor`; left out when empty.
    pub client_type: String,
    /// Present in the entry of a server.
    pub server: Option<ServerPart>,
    /// Over [`Self::signed_text`] by [`Self::static_key`]; left out when absent.
    pub signature: Option<Signature>,
    /// `yamux`, `smux` or `quic`; left out when empty. 2026: an entry that has it does not verify at 2024
    /// peers.
    pub protocol: String,
}

/// The part of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientPart {
    /// The servers it has sessions with. Quirk: `None` is written `null` and an empty list `[]`, and the two
    /// sign differently; a member that is missing altogether reads as `None`, because Go writes it back as
    /// `null`.
    pub delegated_servers: Option<Vec<PublicKey>>,
}

/// The part of a server. All text members but the first are left out when empty; those of 2026 make the entry
/// fail verification at 2024 peers, so leave them empty when not needed (dmsg-wire 12.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerPart {
    /// `host:port`, TCP.
    pub address: String,
    /// The same over IPv6. Late 2026.
    pub address_v6: String,
    /// `host:port` for QUIC. Late 2026.
    pub address_udp: String,
    /// The same over IPv6. Late 2026.
    pub address_udp_v6: String,
    /// URL for WebSocket. Late 2026.
    pub address_ws: String,
    /// URL for WebTransport. Late 2026.
    pub address_wt: String,
    /// SHA-256 of the WebTransport certificate, hex. Late 2026.
    pub cert_hash_wt: String,
    /// SHA-256 of the next WebTransport certificate, hex. Late 2026.
    pub cert_hash_wt_next: String,
    /// How many more sessions the server takes.
    pub available_sessions: i64,
    /// `official` or `community`. Quirk: the discovery overwrites it after verifying, so stored server
    /// entries do not verify any more; a reader must not drop a server for that (dmsg-wire 12.2).
    pub server_type: String,
    /// The server is an entry point of the hash table; left out when false. 2026.
    pub dht_bootstrap: bool,
}

impl Entry {
    /// Reads an entry. Unknown members are ignored, absent ones are zero, `null` counts as absent.
    ///
    /// # Errors
    /// [`EntryError::Malformed`].
    pub fn from_json(text: &[u8]) -> Result<Self, EntryError> {
        json::decode(text)
    }

    /// Reads an array of entries, as the discovery lists servers, and passes over elements that are no
    /// entries: one of them must not hide the others. The caller bounds the length of the text.
    ///
    /// # Errors
    /// [`EntryError::Malformed`] when the text is not a JSON array.
    pub fn list_from_json(text: &[u8]) -> Result<Vec<Self>, EntryError> {
        json::decode_list(text)
    }

    /// The exact text to post: compact, members in order, no HTML escaping, no final newline.
    pub fn to_json(&self) -> String {
        json::encode(self, self.signature.as_ref())
    }

    /// The exact text under the signature: [`Self::to_json`] without the signature.
    pub fn signed_text(&self) -> String {
        json::encode(self, None)
    }

    /// Makes this the entry of `secret_key`: sets [`Self::static_key`] and signs.
    pub fn sign(&mut self, secret_key: &SecretKey) {
        self.static_key = Some(secret_key.public_key());
        self.signature = Some(sign(secret_key, self.signed_text().as_bytes()));
    }

    /// Decides whether the signature is that of [`Self::static_key`] over this structure as we encode it.
    ///
    /// # Errors
    /// [`EntryError::NullKey`], [`EntryError::NoSignature`] or [`EntryError::Signature`].
    pub fn verify(&self) -> Result<(), EntryError> {
        let key = self.static_key.as_ref().ok_or(EntryError::NullKey)?;
        let signature = self.signature.as_ref().ok_or(EntryError::NoSignature)?;
        verify(key, self.signed_text().as_bytes(), signature).map_err(|_| EntryError::Signature)
    }
}

/// Why an entry is refused. The texts are those of the discovery of 2024, which puts `entry validation error:
/// ` before those it answers with 422: all but the first two (services 2.2).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The text is not JSON, or a member has another kind, or a key or signature in it is none.
    #[error("malformed entry: {0}")]
    Malformed(String),
    /// The signature is not that of the entry's key over the entry. A discovery answers 401.
    #[error("invalid signature")]
    Signature,
    /// A server names a loopback address, or none before the port.
    #[error("advertising localhost listening address is not allowed in production mode")]
    Loopback,
    /// `version` is empty.
    #[error("entry has no version")]
    NoVersion,
    /// `signature` is absent.
    #[error("entry has no signature")]
    NoSignature,
    /// `static` is the null key.
    #[error("entry Keys is nil")]
    NullKey,
    /// Neither a client nor a server.
    #[error("entry has neither client or server field")]
    NoPart,
    /// A server without address.
    #[error("server address cannot be empty")]
    NoAddress,
    /// The timestamp of a pure server is too far from the clock.
    #[error("advertised entry has outdated timestamp")]
    Outdated,
    /// Not a greater sequence than that of the stored entry. The text says more than the rule.
    #[error("sequence field of new entry is not sequence of old entry + 1")]
    Sequence,
    /// An earlier timestamp than that of the stored entry.
    #[error("advertised entry timestamp is not greater than previous")]
    TimestampOrder,
}
