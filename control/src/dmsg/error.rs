//! What can go wrong with a dmsg connection, one enum per request.
//!
//! Faults of the peer are a type of their own ([`PeerFault`]), so that nobody mistakes a broken server for a wrong
//! setting. Each text names the cause and, where the reader can do something about it, the cure.

use std::io;
use std::time::Duration;

use ringwire_proto::identity::{Address, PublicKey};
use ringwire_proto::noise::HandshakeError;
use ringwire_proto::object::{ErrorCode, ObjectError};
use ringwire_proto::yamux;
use thiserror::Error;

use super::address::ServerAddress;

/// Something the other side of a connection did that the protocol does not allow.
#[derive(Debug, Clone, Error)]
pub enum PeerFault {
    /// A handshake message did not verify: another key answers there, or the bytes were changed on the way.
    #[error("the handshake failed: {0}")]
    Handshake(String),
    /// A handshake frame announces more than the protocol allows (dmsg-wire 3).
    #[error("a handshake frame of {0} bytes, more than the 4094 that are allowed")]
    FrameLength(usize),
    /// A rule of the session multiplexer was broken (dmsg-wire 5).
    #[error("the session multiplexer broke a rule: {0}")]
    Multiplexer(String),
    /// An object could not be opened or is not valid (dmsg-wire 7 to 9).
    #[error("an object is not valid: {0}")]
    Object(String),
    /// A ping was answered with something else (dmsg-wire 10.5).
    #[error("a ping was answered with {0:02x?} instead of 00 00")]
    PingAnswer([u8; 2]),
}

impl From<HandshakeError> for PeerFault {
    fn from(error: HandshakeError) -> Self {
        Self::Handshake(error.to_string())
    }
}

impl From<ObjectError> for PeerFault {
    fn from(error: ObjectError) -> Self {
        Self::Object(error.to_string())
    }
}

/// Why a connection to a server is over.
#[derive(Debug, Clone, Error)]
pub enum Disconnected {
    /// [`super::Session::close`] was called, or the last handle was dropped.
    #[error("the connection was closed on this side")]
    Here,
    /// The server closed it: it stopped, ended this session, or has another one of this key (dmsg-wire 11.1). It does not say which.
    #[error("the server closed the connection")]
    ByServer,
    /// The server closed it and had not sent a byte: it stopped, or it is one of 2024 that was too busy to read the end of the handshake
    /// before the first bytes behind it came (dmsg-wire 4.4). The next session with it sends later.
    #[error(
        "the server closed the connection before it sent anything: it stopped, or what was sent came too soon behind the handshake, which \
         servers of 2024 do not bear when they are busy"
    )]
    Unheard,
    /// The server announced an end with an error (dmsg-wire 5.6).
    #[error("the server gave up on the connection with go-away code {0}")]
    GoAway(u32),
    /// Nothing came back within the time of the keepalive.
    #[error("the server stopped answering: {0}")]
    Silent(String),
    /// The operating system reported an error of the connection.
    #[error("the connection failed: {0}")]
    Io(io::ErrorKind),
    /// The server broke the protocol.
    #[error("{0}")]
    Fault(PeerFault),
}

/// Why no connection to a server came about.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The server took the handshake and then closed the connection.
    #[error("no session with {server}: {reason}; look at the server's log")]
    Ended {
        /// The server.
        server: ServerAddress,
        /// How it ended.
        reason: Disconnected,
    },
    /// The server's host name has no address.
    #[error("cannot resolve {address}: {source}")]
    Resolve {
        /// Host and port as given.
        address: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// No TCP connection.
    #[error("cannot connect to {address}: {source}; is the server running, and is the address right?")]
    Connect {
        /// Host and port as given.
        address: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// TCP or the handshake took too long (dmsg-wire 3: 5 s for the handshake).
    #[error("{server} did not finish {step} within {limit:?}; is it a dmsg server?")]
    TimedOut {
        /// The server.
        server: ServerAddress,
        /// What was waited for.
        step: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The connection ended inside the handshake.
    #[error(
        "{server} closed the connection during the handshake: most often its key is another one than the one given"
    )]
    Refused {
        /// The server.
        server: ServerAddress,
    },
    /// The server refuses handshakes without the post-quantum part, and this side leaves it off.
    #[error(
        "{server} requires the post-quantum part of the handshake and this side leaves it off; use hybrid offer instead of off"
    )]
    HybridWanted {
        /// The server.
        server: ServerAddress,
    },
    /// The connection failed inside the handshake.
    #[error("the connection to {server} failed during the handshake: {source}")]
    Io {
        /// The server.
        server: ServerAddress,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The server broke the protocol.
    #[error("{server}: {fault}")]
    Fault {
        /// The server.
        server: ServerAddress,
        /// What it did.
        fault: PeerFault,
    },
    /// This side asks for the post-quantum part and the server does not have it.
    #[error(
        "{server} has no post-quantum handshake and this side requires one; use hybrid offer instead of require"
    )]
    NotHybrid {
        /// The server.
        server: ServerAddress,
    },
}

/// Why a dial gave no stream.
#[derive(Debug, Error)]
pub enum DialError {
    /// Port 0 cannot be dialled (dmsg-wire 9.1).
    #[error("port 0 cannot be dialled: {}", ErrorCode::RequestDestinationPort)]
    PortZero,
    /// All ephemeral ports are taken.
    #[error("all 16384 ephemeral ports are in use: drop streams that are no longer needed")]
    NoPort,
    /// The connection to the server is over.
    #[error("cannot dial: {0}")]
    Disconnected(#[from] Disconnected),
    /// The session takes no further stream now.
    #[error("cannot open a stream: {0}")]
    Open(#[from] yamux::OpenError),
    /// The server ended the stream without an answer (dmsg-wire 11.4).
    #[error(
        "the server could not reach {}:{}: no session with that key there, or nothing listens on that port; \
         check that it is connected to the same server",
        .0.key, .0.port
    )]
    Unreachable(Address),
    /// No answer within the limit. Servers of 2024 stay silent where newer ones refuse.
    #[error(
        "no answer from {}:{} within {limit:?}: it is not connected to this server, or it is overloaded",
        destination.key, destination.port
    )]
    TimedOut {
        /// Who was dialled.
        destination: Address,
        /// How long was waited.
        limit: Duration,
    },
    /// The destination, or the server in its place, said no with a code (dmsg-wire 9.4).
    #[error("{0}")]
    Rejected(ErrorCode),
    /// The destination or the server broke the protocol.
    #[error("{0}")]
    Fault(#[from] PeerFault),
    /// This side asks for the post-quantum part and the destination does not have it.
    #[error(
        "{}:{} has no post-quantum handshake and this side requires one; use hybrid offer instead of require",
        .0.key, .0.port
    )]
    NotHybrid(Address),
}

/// Why a port cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Port 0 has no meaning here.
    #[error("port 0 cannot be listened on: choose 1 to 65535")]
    PortZero,
    /// Somebody listens there already.
    #[error("{code} (port {port})", code = ErrorCode::PortInUse)]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// The connection to the server is over.
    #[error("cannot listen: {0}")]
    Disconnected(#[from] Disconnected),
}

/// Why a ping or an IP request has no result.
#[derive(Debug, Error)]
pub enum PingError {
    /// The connection to the server is over.
    #[error("cannot ask the server: {0}")]
    Disconnected(#[from] Disconnected),
    /// All ephemeral ports are taken.
    #[error("all 16384 ephemeral ports are in use: drop streams that are no longer needed")]
    NoPort,
    /// The session takes no further stream now.
    #[error("cannot open a stream: {0}")]
    Open(#[from] yamux::OpenError),
    /// No answer. A server of 2024 never answers, which is no proof that the session is dead (dmsg-wire 10.5).
    #[error("server {server} did not answer within {limit:?}; servers of 2024 never do")]
    TimedOut {
        /// The server.
        server: PublicKey,
        /// How long was waited.
        limit: Duration,
    },
    /// The server ended the stream without an answer.
    #[error("server {0} closed the stream without an answer")]
    Refused(PublicKey),
    /// The server broke the protocol.
    #[error("{0}")]
    Fault(#[from] PeerFault),
}

/// Why a stream no longer moves bytes. Inside an [`io::Error`] it is found with [`io::Error::get_ref`].
#[derive(Debug, Clone, Error)]
pub enum StreamError {
    /// The other side, or the server between, reset the stream.
    #[error("the stream was reset by the other side")]
    Reset,
    /// The stream timed out half closed and was reset here (dmsg-wire 5.1).
    #[error("the other side did not finish the stream in time")]
    TimedOut,
    /// The end of the stream came inside a frame.
    #[error("the stream ended inside a frame: bytes are missing")]
    Truncated,
    /// A frame does not verify, repeats or is too long (dmsg-wire 3). The stream stays broken.
    #[error("a frame is not valid: {0}")]
    Frame(String),
    /// Written after the end was announced.
    #[error("written after shutdown")]
    WriteAfterShutdown,
    /// The connection to the server is over.
    #[error("{0}")]
    Disconnected(#[from] Disconnected),
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match &error {
            StreamError::Reset => io::ErrorKind::ConnectionReset,
            StreamError::TimedOut => io::ErrorKind::TimedOut,
            StreamError::Truncated => io::ErrorKind::UnexpectedEof,
            StreamError::Frame(_) => io::ErrorKind::InvalidData,
            StreamError::WriteAfterShutdown => io::ErrorKind::BrokenPipe,
            StreamError::Disconnected(_) => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}
