//! The dmsg client library. A [`Client`] keeps sessions with several servers and reaches others by key, wherever a
//! discovery says they are; a [`Session`] is one connection with one server, for those who want just that.
//!
//! ```text
//!   Client (client/): which servers, when, over which one
//!      │
//!   Session ─ dial ──► Stream          Listener ── accept ──► Stream        plaintext
//!      │                 │                 ▲                    │
//!      │               raw (objects, then Noise frames)       inbound       sealed bytes
//!      └──────────────► mux (yamux::Session, buffers, wakers) ◄─┘           frames
//!                        │
//!                      driver (one task, one TCP socket)
//! ```
//!
//! Every queue is bounded, every wait has a limit or ends with the connection, every future may be dropped.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use ringwire::dmsg::{Client, ClientConfig, KnownServers};
//! use ringwire_dataplane::entropy::OsEntropy;
//! use ringwire_proto::identity::SecretKey;
//!
//! let server = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798@127.0.0.1:8081".parse()?;
//! let directory = Arc::new(KnownServers::new(vec![server]));
//! let client = Client::start(ClientConfig::new(SecretKey::generate(&mut OsEntropy), directory))?;
//! client.ready(Duration::from_secs(10)).await?;
//! let mut listener = client.listen(80)?;
//! let stream = listener.accept().await?;
//! println!("{} is here", stream.peer_address());
//! client.close().await;
//! # Ok(())
//! # }
//! ```

mod address;
mod buffers;
mod client;
mod connect;
mod dial;
mod driver;
mod error;
mod inbound;
mod limits;
mod listener;
mod mux;
mod ports;
mod raw;
mod session;
mod shared;
mod stream;

pub use address::{ServerAddress, ServerAddressError};
pub use client::{
    Answer, Awaited, Backoff, Cause, Client, ClientConfig, Directory, DirectoryError, KnownServers, NotReady,
    Obstacle, PostTimes, ReachError, SessionError, SessionInfo, StartError,
};
pub use error::{ConnectError, DialError, Disconnected, ListenError, PeerFault, PingError, StreamError};
pub use listener::Listener;
pub use session::{Session, SessionConfig};
pub use stream::Stream;
