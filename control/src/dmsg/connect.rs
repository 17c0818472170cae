//! From a server's address to a session: TCP, then the XK handshake (dmsg-wire 4.1).

use std::io;
use std::time::Duration;

use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::frame::{FRAME_BODY_MAX, push_prefix};
use ringwire_proto::identity::SecretKey;
use ringwire_proto::noise::{Handshake, HandshakeError, Hybrid, Outcome, Pattern, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};

use super::address::ServerAddress;
use super::error::{ConnectError, PeerFault};
use super::limits::{CONNECT_LIMIT, HANDSHAKE_LIMIT};

/// A connected socket whose handshake is done.
pub(super) struct Connected {
    pub(super) socket: TcpStream,
    pub(super) outcome: Outcome,
    /// From our first message to the server's answer: the path's round trip, and what the server took to have its turn.
    pub(super) round_trip: Duration,
}

/// Connects and proves both sides' keys. Nothing behind the handshake is read.
pub(super) async fn connect(
    secret_key: &SecretKey,
    server: &ServerAddress,
    hybrid: Hybrid,
) -> Result<Connected, ConnectError> {
    let mut socket = within(CONNECT_LIMIT, server, "the TCP connection", open_socket(server)).await?;
    let failed = |source| ConnectError::Io { server: server.clone(), source };
    // dmsg-wire 4.1: on both sides.
    socket.set_nodelay(true).map_err(failed)?;
    let handshake = shake_hands(&mut socket, secret_key, server, hybrid);
    match within(HANDSHAKE_LIMIT, server, "the handshake", handshake).await {
        Ok((outcome, round_trip)) => Ok(Connected { socket, outcome, round_trip }),
        // It says nothing, but who refuses this and answers that has said it.
        Err(ConnectError::Refused { .. })
            if hybrid == Hybrid::Off && answers_hybrid(secret_key, server).await =>
        {
            Err(ConnectError::HybridWanted { server: server.clone() })
        }
        Err(error) => Err(error),
    }
}

/// Whether the server answers a first message that offers the post-quantum part. The handshake is not finished, so that no session
/// comes of it.
async fn answers_hybrid(secret_key: &SecretKey, server: &ServerAddress) -> bool {
    let asked = async {
        let mut socket = open_socket(server).await?;
        let mut handshake = begin(secret_key, server, Hybrid::Offer)?;
        write_step(&mut socket, &mut handshake, server).await?;
        read_step(&mut socket, &mut handshake, server).await
    };
    timeout(HANDSHAKE_LIMIT, asked).await.is_ok_and(|answered| answered.is_ok())
}

async fn within<T>(
    limit: Duration,
    server: &ServerAddress,
    step: &'static str,
    work: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(ConnectError::TimedOut { server: server.clone(), step, limit }))
}

async fn open_socket(server: &ServerAddress) -> Result<TcpStream, ConnectError> {
    let address = || server.address.clone();
    let addresses: Vec<_> = lookup_host(&server.address)
        .await
        .map_err(|source| ConnectError::Resolve { address: address(), source })?
        .collect();
    TcpStream::connect(addresses.as_slice())
        .await
        .map_err(|source| ConnectError::Connect { address: address(), source })
}

async fn shake_hands(
    socket: &mut TcpStream,
    secret_key: &SecretKey,
    server: &ServerAddress,
    hybrid: Hybrid,
) -> Result<(Outcome, Duration), ConnectError> {
    let mut handshake = begin(secret_key, server, hybrid)?;
    let (mut round_trip, mut written_at) = (Duration::ZERO, Instant::now());
    while !handshake.is_finished() {
        if handshake.is_my_turn() {
            write_step(socket, &mut handshake, server).await?;
            written_at = Instant::now();
        } else {
            read_step(socket, &mut handshake, server).await?;
            round_trip = written_at.elapsed();
        }
    }
    Ok((handshake.finish().map_err(|error| fault(server, error))?, round_trip))
}

fn begin(secret_key: &SecretKey, server: &ServerAddress, hybrid: Hybrid) -> Result<Handshake, ConnectError> {
    Handshake::new(Pattern::Xk, Role::Initiator, secret_key, Some(&server.key), hybrid, &mut OsEntropy)
        .map_err(|error| fault(server, error))
}

async fn write_step(
    socket: &mut TcpStream,
    handshake: &mut Handshake,
    server: &ServerAddress,
) -> Result<(), ConnectError> {
    let mut message = Vec::new();
    handshake.write_message(&mut message).map_err(|error| fault(server, error))?;
    let mut frame = Vec::with_capacity(2 + message.len());
    push_prefix(message.len(), &mut frame).map_err(|_| ConnectError::Fault {
        server: server.clone(),
        fault: PeerFault::FrameLength(message.len()),
    })?;
    frame.extend_from_slice(&message);
    socket.write_all(&frame).await.map_err(|error| failed(server, error))
}

async fn read_step(
    socket: &mut TcpStream,
    handshake: &mut Handshake,
    server: &ServerAddress,
) -> Result<(), ConnectError> {
    let length = usize::from(socket.read_u16().await.map_err(|error| failed(server, error))?);
    if length > FRAME_BODY_MAX {
        let fault = PeerFault::FrameLength(length);
        return Err(ConnectError::Fault { server: server.clone(), fault });
    }
    let mut message = vec![0; length];
    socket.read_exact(&mut message).await.map_err(|error| failed(server, error))?;
    handshake.read_message(&message).map_err(|error| fault(server, error))
}

fn fault(server: &ServerAddress, error: HandshakeError) -> ConnectError {
    match error {
        HandshakeError::HybridRequired => ConnectError::NotHybrid { server: server.clone() },
        other => ConnectError::Fault { server: server.clone(), fault: other.into() },
    }
}

fn failed(server: &ServerAddress, source: io::Error) -> ConnectError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            ConnectError::Refused { server: server.clone() }
        }
        _ => ConnectError::Io { server: server.clone(), source },
    }
}
