//! Streams that others dial to one of our ports.

use std::{fmt, io};

use ringwire_proto::identity::{Address, PublicKey};
use tokio::sync::mpsc;

use super::client::ClientHandle;
use super::error::Disconnected;
use super::ports::ListenGuard;
use super::shared::Handle;
use super::stream::Stream;

/// Takes the streams dialled to one port. Its queue is bounded: when it is full, further dials are refused until one is
/// accepted (dmsg-wire 10.3). Dropping it gives the port back and refuses what waits.
pub struct Listener {
    streams: mpsc::Receiver<Stream>,
    port: ListenGuard,
    owner: Owner,
}

/// What a listener keeps alive.
pub(super) enum Owner {
    /// One session: its end is the listener's.
    Session(Handle),
    /// A client: sessions come and go underneath.
    Client(ClientHandle),
}

impl Listener {
    pub(super) fn new(streams: mpsc::Receiver<Stream>, port: ListenGuard, owner: Owner) -> Self {
        Self { streams, port, owner }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port.port()
    }

    /// The next stream. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Once the streams that came before are accepted: why the session is over, for a listener of a
    /// [`Session`](super::Session); that the client was closed, for one of a [`Client`](super::Client).
    pub async fn accept(&mut self) -> Result<Stream, Disconnected> {
        match (self.streams.recv().await, &self.owner) {
            (Some(stream), _) => Ok(stream),
            (None, Owner::Session(handle)) => Err(handle.disconnected()),
            (None, Owner::Client(client)) => Err(client.disconnected()),
        }
    }
}

/// HTTP over dmsg is HTTP/1.1 on streams, and who asks is an authenticated key (services 0).
impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = Address;

    async fn accept(&mut self) -> (Stream, Address) {
        match Listener::accept(self).await {
            Ok(stream) => {
                let peer = stream.peer_address();
                (stream, peer)
            }
            // The trait has no word for the end: whoever serves learns of it elsewhere, and stops.
            Err(_) => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address { key: self.owner.key(), port: self.port() })
    }
}

impl Owner {
    fn key(&self) -> PublicKey {
        match self {
            Self::Session(handle) => handle.local,
            Self::Client(client) => client.key(),
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Listener").field("port", &self.port()).finish_non_exhaustive()
    }
}
