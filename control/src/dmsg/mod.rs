//! The dmsg client library: a session with a server, and streams to other clients through it.
//!
//! ```text
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
//! use ringwire::dmsg::{Session, SessionConfig};
//! use ringwire_proto::identity::SecretKey;
//! use ringwire_dataplane::entropy::OsEntropy;
//!
//! let server = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798@127.0.0.1:8081".parse()?;
//! let session = Session::connect(SessionConfig::new(SecretKey::generate(&mut OsEntropy), server)).await?;
//! let mut listener = session.listen(80)?;
//! let stream = listener.accept().await?;
//! println!("{} is here", stream.peer_address());
//! # Ok(())
//! # }
//! ```

mod address;
mod buffers;
mod connect;
mod dial;
mod driver;
mod error;
mod inbound;
mod limits;
mod listener;
mod mux;
mod raw;
mod session;
mod shared;
mod stream;

pub use address::{ServerAddress, ServerAddressError};
pub use error::{ConnectError, DialError, Disconnected, ListenError, PeerFault, PingError, StreamError};
pub use listener::Listener;
pub use session::{Session, SessionConfig};
pub use stream::Stream;
