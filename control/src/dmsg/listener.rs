//! Streams that others dial to one of our ports.

use std::fmt;

use tokio::sync::mpsc;

use super::error::Disconnected;
use super::shared::Handle;
use super::stream::Stream;

/// Takes the streams dialled to one port. Its queue is bounded: when it is full, further dials are refused until one is
/// accepted (dmsg-wire 10.3). Dropping it gives the port back and refuses what waits.
pub struct Listener {
    streams: mpsc::Receiver<Stream>,
    port: u16,
    handle: Handle,
}

impl Listener {
    pub(super) fn new(streams: mpsc::Receiver<Stream>, port: u16, handle: Handle) -> Self {
        Self { streams, port, handle }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next stream. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Why the connection to the server is over, once the streams that came before are accepted.
    pub async fn accept(&mut self) -> Result<Stream, Disconnected> {
        match self.streams.recv().await {
            Some(stream) => Ok(stream),
            None => Err(self.handle.disconnected()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.handle.remove_listener(self.port);
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Listener").field("port", &self.port).finish_non_exhaustive()
    }
}
