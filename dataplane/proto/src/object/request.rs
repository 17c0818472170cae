//! The request to open a stream (dmsg-wire 8.3, 9.1): from the dialling client, through servers, to the
//! destination.

use alloc::vec::Vec;

use super::prefix::{REQUEST_2024, REQUEST_2026, VALUE_TYPE};
use super::{ErrorCode, Generation, ObjectError, SignedObject};
use crate::gob::{self, BadValue, Field, GobError, Set, StructWriter};
use crate::identity::PublicKey;

/// A request to open a stream, or (2026) for the own IP address as the server sees it (dmsg-wire 10.6).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamRequest {
    /// Unix time in nanoseconds. Only its sign is ever checked (dmsg-wire 9.1).
    pub timestamp_ns: i64,
    /// Who dials, and from which port.
    pub source: RawAddress,
    /// Who is dialled, and on which port.
    pub destination: RawAddress,
    /// The sender wants to know its IP address. Not sent to [`Generation::Go2024`].
    pub ip_info: bool,
    /// With [`Self::ip_info`]: its location too. Not sent to [`Generation::Go2024`].
    pub geo_info: bool,
    /// First message of the end-to-end KK handshake; empty in an IP request.
    pub noise_message: Vec<u8>,
}

/// A party and port as they stand in a request: the key may be null, the port zero (dmsg-wire 9.1 refuses
/// both).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawAddress {
    /// The key; `None` is the null key, which is not sent.
    pub key: Option<PublicKey>,
    /// The port.
    pub port: u16,
}

impl RawAddress {
    fn set_key(&mut self, bytes: &[u8]) -> Result<(), BadValue> {
        self.key = Some(PublicKey::from_bytes(bytes).map_err(|_| BadValue)?);
        Ok(())
    }

    fn write(&self, writer: &mut StructWriter<'_>) {
        writer.bytes(0, self.key.as_ref().map_or(&[], |key| key.as_bytes()));
        writer.uint(1, u64::from(self.port));
    }
}

impl From<crate::identity::Address> for RawAddress {
    fn from(address: crate::identity::Address) -> Self {
        Self { key: Some(address.key), port: address.port }
    }
}

/// Both generations; a 2024 sender has no `IPinfo` and `GeoInfo`.
const FIELDS: &[Field<StreamRequest>] = &[
    Field { name: "Timestamp", set: Set::Int(|request, value| request.timestamp_ns = value) },
    Field {
        name: "SrcAddr",
        set: Set::Struct(&[
            Field { name: "PK", set: Set::Marshaled(|request, bytes| request.source.set_key(bytes)) },
            Field { name: "Port", set: Set::Uint16(|request, value| request.source.port = value) },
        ]),
    },
    Field {
        name: "DstAddr",
        set: Set::Struct(&[
            Field { name: "PK", set: Set::Marshaled(|request, bytes| request.destination.set_key(bytes)) },
            Field { name: "Port", set: Set::Uint16(|request, value| request.destination.port = value) },
        ]),
    },
    Field { name: "IPinfo", set: Set::Bool(|request, value| request.ip_info = value) },
    Field { name: "GeoInfo", set: Set::Bool(|request, value| request.geo_info = value) },
    Field { name: "NoiseMsg", set: Set::Bytes(|request, bytes| request.noise_message = bytes.to_vec()) },
];

impl StreamRequest {
    /// The gob bytes of the request, as a fresh Go process of that generation writes them.
    pub fn encode(&self, generation: Generation) -> Vec<u8> {
        let mut out = Vec::with_capacity(384 + self.noise_message.len());
        match generation {
            Generation::Go2024 => out.extend_from_slice(&REQUEST_2024),
            Generation::Go2026 => out.extend_from_slice(&REQUEST_2026),
        }
        gob::push_value_message(VALUE_TYPE, &mut out, |writer| {
            writer.int(0, self.timestamp_ns);
            writer.structure(1, |writer| self.source.write(writer));
            writer.structure(2, |writer| self.destination.write(writer));
            match generation {
                Generation::Go2024 => writer.bytes(3, &self.noise_message),
                Generation::Go2026 => {
                    writer.bool(3, self.ip_info);
                    writer.bool(4, self.geo_info);
                    writer.bytes(5, &self.noise_message);
                }
            }
        });
        out
    }

    /// Reads a request of either generation, and whatever else has a field in common with one (dmsg-wire
    /// 8.4).
    ///
    /// # Errors
    /// Every [`GobError`].
    pub fn decode(gob: &[u8]) -> Result<Self, GobError> {
        let mut request = Self::default();
        gob::decode(gob, FIELDS, &mut request)?;
        Ok(request)
    }

    /// The checks of dmsg-wire 9.1 that need no signature, in their order.
    ///
    /// # Errors
    /// The first of 302, 304, 303, 305 and 301 that applies.
    pub fn check(&self) -> Result<(), ErrorCode> {
        if self.source.key.is_none() {
            Err(ErrorCode::RequestSourceKey)
        } else if self.source.port == 0 {
            Err(ErrorCode::RequestSourcePort)
        } else if self.destination.key.is_none() {
            Err(ErrorCode::RequestDestinationKey)
        } else if self.destination.port == 0 {
            Err(ErrorCode::RequestDestinationPort)
        } else if self.timestamp_ns <= 0 {
            Err(ErrorCode::RequestTimestamp)
        } else {
            Ok(())
        }
    }

    /// True when `server` is asked for the sender's IP address; with another destination the flag means
    /// nothing and the request is a dial (dmsg-wire 10.6).
    pub fn is_ip_request_to(&self, server: &PublicKey) -> bool {
        self.ip_info && self.destination.key.as_ref() == Some(server)
    }
}

/// Opens a signed request: envelope, gob, then the checks of dmsg-wire 9.1, the signature last because it
/// costs most. The source and destination keys of the result are present.
///
/// # Errors
/// 370, a [`GobError`], then the first of 302, 304, 303, 305, 301 and 300 that applies.
pub fn open_request(signed: &[u8]) -> Result<StreamRequest, ObjectError> {
    let object = SignedObject::parse(signed)?;
    let request = StreamRequest::decode(object.gob)?;
    request.check()?;
    let author = request.source.key.ok_or(ErrorCode::RequestSourceKey)?;
    object.verify(&author).map_err(|_| ErrorCode::RequestSignature)?;
    Ok(request)
}
