//! Requests of this client on streams it opens: dial (dmsg-wire 10.2), ping (10.5) and IP request (10.6).
//!
//! Dropping any of these futures at any point gives back the port and resets the stream.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::Address;
use ringwire_proto::noise::{Handshake, HandshakeError, Pattern, Role};
use ringwire_proto::object::{
    self, ErrorCode, Generation, ObjectError, PING_MARKER, RawAddress, StreamRequest,
};

use super::error::{DialError, PeerFault, PingError, StreamError};
use super::raw::{OpenFailure, RawStream};
use super::shared::Handle;
use super::stream::Stream;

/// The port an IP request names (dmsg-wire 10.6).
const IP_PORT: u16 = 1;

/// Dials without a limit of its own.
pub(super) async fn dial(
    handle: &Handle,
    destination: Address,
    generation: Generation,
) -> Result<Stream, DialError> {
    if destination.port == 0 {
        return Err(DialError::PortZero);
    }
    let _turn = handle.dials.acquire().await.map_err(|_| handle.disconnected())?;
    let port = handle.ports.reserve().ok_or(DialError::NoPort)?;
    let source = Address { key: handle.local, port: port.port() };

    let mut handshake = Handshake::new(
        Pattern::Kk,
        Role::Initiator,
        &handle.secret_key,
        Some(&destination.key),
        handle.hybrid,
        &mut OsEntropy,
    )
    .map_err(PeerFault::from)?;
    let mut noise_message = Vec::new();
    handshake.write_message(&mut noise_message).map_err(PeerFault::from)?;
    let request = StreamRequest {
        timestamp_ns: unix_time_ns(),
        source: RawAddress { key: Some(source.key), port: source.port },
        destination: RawAddress { key: Some(destination.key), port: destination.port },
        ip_info: false,
        geo_info: false,
        noise_message,
    };
    let signed = object::sign_object(&handle.secret_key, &request.encode(generation));
    let mut raw = RawStream::open(handle, handle.seal_object(&signed))?;

    let mut packet = match raw.read_object().await {
        Ok(Some(packet)) => packet,
        Ok(None) | Err(StreamError::Reset) => return Err(DialError::Unreachable(destination)),
        Err(error) => return Err(no_answer(error, destination)),
    };
    let signed_response = handle
        .open_object(&mut packet)
        .map_err(|error| PeerFault::Object(format!("the response cannot be opened: {error}")))?;
    let response =
        match object::open_response(&signed_response, &object::object_hash(&signed), &destination.key) {
            Ok(response) => response,
            // These two are our own verdict about the response, not an answer in it (dmsg-wire 9.2).
            Err(ObjectError::Refused(code @ (ErrorCode::ResponseHash | ErrorCode::ResponseSignature))) => {
                return Err(PeerFault::Object(code.to_string()).into());
            }
            Err(ObjectError::Refused(code)) => return Err(DialError::Rejected(code)),
            Err(error) => return Err(PeerFault::from(error).into()),
        };
    let outcome = handshake.read_message(&response.noise_message).and_then(|()| handshake.finish()).map_err(
        |error| match error {
            HandshakeError::HybridRequired => DialError::NotHybrid(destination),
            other => PeerFault::from(other).into(),
        },
    )?;
    Ok(Stream::new(raw, handle.clone(), Some(port), source, destination, &outcome))
}

/// Asks the server for a sign of life on a stream of its own.
pub(super) async fn ping(handle: &Handle) -> Result<Duration, PingError> {
    let started = Instant::now();
    let mut raw = RawStream::open(handle, PING_MARKER.to_vec())?;
    let mut answer = [0; 2];
    match raw.read_exact(&mut answer).await {
        Ok(true) if answer == PING_MARKER => {
            raw.finish_on_drop();
            Ok(started.elapsed())
        }
        Ok(true) => Err(PeerFault::PingAnswer(answer).into()),
        Ok(false) | Err(StreamError::Reset) => Err(PingError::Refused(handle.server)),
        Err(StreamError::Disconnected(reason)) => Err(reason.into()),
        Err(error) => Err(PeerFault::Multiplexer(error.to_string()).into()),
    }
}

/// Asks the server which address it sees this session come from.
pub(super) async fn observed_ip(handle: &Handle) -> Result<IpAddr, PingError> {
    let port = handle.ports.reserve().ok_or(PingError::NoPort)?;
    let request = StreamRequest {
        timestamp_ns: unix_time_ns(),
        source: RawAddress { key: Some(handle.local), port: port.port() },
        destination: RawAddress { key: Some(handle.server), port: IP_PORT },
        ip_info: true,
        ..StreamRequest::default()
    };
    // The field is one of 2026, and so is every server that answers.
    let signed = object::sign_object(&handle.secret_key, &request.encode(Generation::Go2026));
    let mut raw = RawStream::open(handle, handle.seal_object(&signed))?;
    let mut packet = match raw.read_object().await {
        Ok(Some(packet)) => packet,
        Ok(None) | Err(StreamError::Reset) => return Err(PingError::Refused(handle.server)),
        Err(StreamError::Disconnected(reason)) => return Err(reason.into()),
        Err(error) => return Err(PeerFault::Multiplexer(error.to_string()).into()),
    };
    let signed_response =
        handle.open_object(&mut packet).map_err(|error| PeerFault::Object(error.to_string()))?;
    let response = object::open_response(&signed_response, &object::object_hash(&signed), &handle.server)
        .map_err(PeerFault::from)?;
    // The server leaves the closing to the client (dmsg-wire 10.6).
    raw.finish_on_drop();
    let address = response.ip_address();
    address.ok_or_else(|| PeerFault::Object("the answer to an IP request holds no address".to_owned()).into())
}

fn no_answer(error: StreamError, destination: Address) -> DialError {
    match error {
        StreamError::Disconnected(reason) => reason.into(),
        StreamError::Reset | StreamError::TimedOut | StreamError::Truncated => {
            DialError::Unreachable(destination)
        }
        other @ (StreamError::Frame(_) | StreamError::WriteAfterShutdown) => {
            PeerFault::Multiplexer(other.to_string()).into()
        }
    }
}

/// Unix time in nanoseconds; only has to be positive (dmsg-wire 9.1).
fn unix_time_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX).max(1)
}

impl From<OpenFailure> for DialError {
    fn from(failure: OpenFailure) -> Self {
        match failure {
            OpenFailure::Disconnected(reason) => reason.into(),
            OpenFailure::Open(error) => error.into(),
        }
    }
}

impl From<OpenFailure> for PingError {
    fn from(failure: OpenFailure) -> Self {
        match failure {
            OpenFailure::Disconnected(reason) => reason.into(),
            OpenFailure::Open(error) => error.into(),
        }
    }
}
