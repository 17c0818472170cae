//! The announcement of one server to another over a peer link (dmsg-wire 9.3, 2026).

use alloc::vec::Vec;

use super::prefix::{ANNOUNCE_2026, VALUE_TYPE};
use super::{ErrorCode, ObjectError, SignedObject};
use crate::gob::{self, BadValue, Field, GobError, Set};
use crate::identity::PublicKey;

/// A server says that the session it stands on leads to it. The declaration is inferred (dmsg-wire 17, item
/// 1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerAnnounce {
    /// Unix time in nanoseconds; any positive value passes.
    pub timestamp_ns: i64,
    /// The announcing server; `None` is the null key, which every request decoded as announcement has.
    pub source: Option<PublicKey>,
}

const FIELDS: &[Field<PeerAnnounce>] = &[
    Field { name: "Timestamp", set: Set::Int(|announce, value| announce.timestamp_ns = value) },
    Field { name: "SrcPK", set: Set::Marshaled(PeerAnnounce::set_source) },
];

impl PeerAnnounce {
    /// The gob bytes of the announcement, as a fresh Go process of 2026 writes them; 2024 has no such object.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = ANNOUNCE_2026.to_vec();
        gob::push_value_message(VALUE_TYPE, &mut out, |writer| {
            writer.int(0, self.timestamp_ns);
            writer.bytes(1, self.source.as_ref().map_or(&[], |key| key.as_bytes()));
        });
        out
    }

    /// Reads an announcement. A request decodes as one too, with a null source.
    ///
    /// # Errors
    /// Every [`GobError`].
    pub fn decode(gob: &[u8]) -> Result<Self, GobError> {
        let mut announce = Self::default();
        gob::decode(gob, FIELDS, &mut announce)?;
        Ok(announce)
    }

    fn set_source(&mut self, bytes: &[u8]) -> Result<(), BadValue> {
        self.source = Some(PublicKey::from_bytes(bytes).map_err(|_| BadValue)?);
        Ok(())
    }
}

/// Opens a signed announcement on a session whose handshake has proven `peer` (dmsg-wire 9.3). A receiver
/// tries this first and, on any error, opens the same bytes as a request.
///
/// # Errors
/// 370, a [`GobError`], 302 when the source is not `peer`, 301 for a timestamp that is not positive, 300 for
/// a signature that is not `peer`'s.
pub fn open_announce(signed: &[u8], peer: &PublicKey) -> Result<PeerAnnounce, ObjectError> {
    let object = SignedObject::parse(signed)?;
    let announce = PeerAnnounce::decode(object.gob)?;
    if announce.source.as_ref() != Some(peer) {
        return Err(ErrorCode::RequestSourceKey.into());
    }
    if announce.timestamp_ns <= 0 {
        return Err(ErrorCode::RequestTimestamp.into());
    }
    object.verify(peer).map_err(|_| ErrorCode::RequestSignature)?;
    Ok(announce)
}
