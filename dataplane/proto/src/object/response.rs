//! The answer to a stream request (dmsg-wire 8.3, 9.2): from the destination, or from the server to an IP
//! request.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::prefix::{RESPONSE_2024, RESPONSE_2026, VALUE_TYPE};
use super::{ErrorCode, Generation, ObjectError, SignedObject};
use crate::gob::{self, Field, GobError, Set};
use crate::identity::PublicKey;

/// The answer to a [`super::StreamRequest`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamResponse {
    /// [`super::object_hash`] of the signed request.
    pub request_hash: [u8; 32],
    /// Whether the stream is open. No Go code sends false to a dial (dmsg-wire 9.4), but a reader accepts it.
    pub accepted: bool,
    /// 4 or 16 bytes in the answer to an IP request, else empty. This field and the four of the location are
    /// not sent to [`Generation::Go2024`].
    pub ip: Vec<u8>,
    /// ISO code, empty when unknown.
    pub geo_country: String,
    /// Region within the country, empty when unknown.
    pub geo_region: String,
    /// Degrees north, zero when unknown.
    pub geo_latitude: f64,
    /// Degrees east, zero when unknown.
    pub geo_longitude: f64,
    /// Why `accepted` is false: the number of an [`ErrorCode`], or an unknown number.
    pub error_code: u16,
    /// Second message of the end-to-end KK handshake.
    pub noise_message: Vec<u8>,
}

/// Both generations; a 2024 sender has no `IP` and `Geo` fields. Text that is not UTF-8 is replaced, as it is
/// only shown.
const FIELDS: &[Field<StreamResponse>] = &[
    Field { name: "ReqHash", set: Set::Hash(|response, hash| response.request_hash = hash) },
    Field { name: "Accepted", set: Set::Bool(|response, value| response.accepted = value) },
    Field { name: "IP", set: Set::Bytes(|response, bytes| response.ip = bytes.to_vec()) },
    Field { name: "GeoCountry", set: Set::Text(|response, bytes| response.geo_country = text(bytes)) },
    Field { name: "GeoRegion", set: Set::Text(|response, bytes| response.geo_region = text(bytes)) },
    Field { name: "GeoLat", set: Set::Float(|response, value| response.geo_latitude = value) },
    Field { name: "GeoLon", set: Set::Float(|response, value| response.geo_longitude = value) },
    Field { name: "ErrCode", set: Set::Uint16(|response, value| response.error_code = value) },
    Field { name: "NoiseMsg", set: Set::Bytes(|response, bytes| response.noise_message = bytes.to_vec()) },
];

impl StreamResponse {
    /// The gob bytes of the response, as a fresh Go process of that generation writes them.
    pub fn encode(&self, generation: Generation) -> Vec<u8> {
        let mut out = Vec::with_capacity(320 + self.noise_message.len());
        match generation {
            Generation::Go2024 => out.extend_from_slice(&RESPONSE_2024),
            Generation::Go2026 => out.extend_from_slice(&RESPONSE_2026),
        }
        gob::push_value_message(VALUE_TYPE, &mut out, |writer| {
            writer.byte_array(0, &self.request_hash);
            writer.bool(1, self.accepted);
            match generation {
                Generation::Go2024 => {
                    writer.uint(2, u64::from(self.error_code));
                    writer.bytes(3, &self.noise_message);
                }
                Generation::Go2026 => {
                    writer.bytes(2, &self.ip);
                    writer.bytes(3, self.geo_country.as_bytes());
                    writer.bytes(4, self.geo_region.as_bytes());
                    writer.float(5, self.geo_latitude);
                    writer.float(6, self.geo_longitude);
                    writer.uint(7, u64::from(self.error_code));
                    writer.bytes(8, &self.noise_message);
                }
            }
        });
        out
    }

    /// Reads a response of either generation.
    ///
    /// # Errors
    /// Every [`GobError`].
    pub fn decode(gob: &[u8]) -> Result<Self, GobError> {
        let mut response = Self::default();
        gob::decode(gob, FIELDS, &mut response)?;
        Ok(response)
    }

    /// The IP address of an IP response; an IPv4 address in its 16-byte form comes back as IPv4 (dmsg-wire
    /// 8.5). `None` when the field is empty or has another length than 4 and 16.
    pub fn ip_address(&self) -> Option<IpAddr> {
        if let Ok(bytes) = <[u8; 4]>::try_from(self.ip.as_slice()) {
            return Some(Ipv4Addr::from(bytes).into());
        }
        let bytes = <[u8; 16]>::try_from(self.ip.as_slice()).ok()?;
        Some(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical())
    }
}

/// Opens a signed response: envelope, gob, then the checks of dmsg-wire 9.2 in their order.
/// `request_signed_hash` is [`super::object_hash`] of the request as sent, `destination` the key the request
/// named; a server answers an IP request under its own key, which is then the destination.
///
/// # Errors
/// 370, a [`GobError`], 351 for the answer to another request, 350 for a signature that is not the
/// destination's, and for a refusal the code it carries, or 352 when that number is not in the table.
pub fn open_response(
    signed: &[u8],
    request_signed_hash: &[u8; 32],
    destination: &PublicKey,
) -> Result<StreamResponse, ObjectError> {
    let object = SignedObject::parse(signed)?;
    let response = StreamResponse::decode(object.gob)?;
    if response.request_hash != *request_signed_hash {
        return Err(ErrorCode::ResponseHash.into());
    }
    object.verify(destination).map_err(|_| ErrorCode::ResponseSignature)?;
    if !response.accepted {
        return Err(ErrorCode::from_code(response.error_code).unwrap_or(ErrorCode::ResponseRefused).into());
    }
    Ok(response)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
