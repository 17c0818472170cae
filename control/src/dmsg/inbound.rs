//! Streams the server opens to us: somebody dialled one of our ports (dmsg-wire 10.3).
//!
//! Each is served by a short task: read the request, check it, answer, hand the stream to its listener. A bad stream
//! costs only that stream: it is reset, and the session stays.

use std::sync::Arc;

use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::Address;
use ringwire_proto::noise::sealed::SealedError;
use ringwire_proto::noise::{Handshake, HandshakeError, Pattern, Role};
use ringwire_proto::object::{self, ErrorCode, Generation, ObjectError, StreamResponse};
use thiserror::Error;
use tokio::time::timeout;

use super::error::StreamError;
use super::mux::Slot;
use super::raw::RawStream;
use super::shared::{Handle, Shared};
use super::stream::Stream;

/// Serves a stream the server opened. Called by the driver under the connection's lock, so it only starts a task.
pub(super) fn spawn(shared: &Arc<Shared>, slot: Slot) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let raw = RawStream::new(Arc::clone(&shared), slot);
        let Ok(_permit) = Arc::clone(&shared.inbound).try_acquire_owned() else {
            tracing::debug!("dmsg stream refused: too many requests at once");
            return;
        };
        match timeout(shared.dial_limit, serve(&shared, raw)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "dmsg stream refused"),
            Err(_) => tracing::debug!("dmsg stream refused: its request did not come in time"),
        }
    });
}

#[derive(Debug, Error)]
enum Refusal {
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("the stream ended before its request")]
    NoRequest,
    #[error("the request cannot be opened: {0}")]
    Packet(#[from] SealedError),
    #[error("the request is not valid: {0}")]
    Object(#[from] ObjectError),
    #[error("{0}")]
    Code(ErrorCode),
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    #[error("the connection closes")]
    Closing,
}

async fn serve(shared: &Arc<Shared>, mut raw: RawStream) -> Result<(), Refusal> {
    let mut packet = raw.read_object().await?.ok_or(Refusal::NoRequest)?;
    let signed = shared.open_object(&mut packet)?;
    let request = object::open_request(&signed)?;
    let source_key = request.source.key.ok_or(Refusal::Code(ErrorCode::RequestSourceKey))?;
    if request.destination.key != Some(shared.local) {
        return Err(Refusal::Code(ErrorCode::RequestDestinationKey));
    }
    let port = request.destination.port;
    let queue = shared.ports.listener(port).ok_or(Refusal::Code(ErrorCode::NoListener))?;
    // The place in the queue comes first: once accepted, a stream must reach its listener.
    let place = queue.try_reserve_owned().map_err(|_| Refusal::Code(ErrorCode::AcceptQueueFull))?;
    let handle = Handle::join(shared).ok_or(Refusal::Closing)?;

    let mut handshake = Handshake::new(
        Pattern::Kk,
        Role::Responder,
        &shared.secret_key,
        Some(&source_key),
        shared.hybrid,
        &mut OsEntropy,
    )?;
    handshake.read_message(&request.noise_message)?;
    let mut noise_message = Vec::new();
    handshake.write_message(&mut noise_message)?;
    let response = StreamResponse {
        request_hash: object::object_hash(&signed),
        accepted: true,
        noise_message,
        ..StreamResponse::default()
    };
    let answer = object::sign_object(&shared.secret_key, &response.encode(Generation::Go2024));
    raw.push(&mut shared.seal_object(&answer));

    let local = Address { key: shared.local, port };
    let peer = Address { key: source_key, port: request.source.port };
    place.send(Stream::new(raw, handle, None, local, peer, &handshake.finish()?));
    Ok(())
}
