//! Connections through a relay: one sender's and one sink's for each session pair, whatever the relay.
//!
//! In: where the relay listens. Out: a [`Link`] whose two sockets carry the same yamux frames in both cases. Through a
//! reference relay the frames are bytes like any others. Through our server both ends hold real dmsg sessions, and the
//! streams are opened with real requests. Called by [`crate::measure`] and by the ping process.

use crate::raw_session::RawSession;
use crate::relay::child::RelayChild;
use anyhow::{Context, Result, bail};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::{Address, PublicKey, SecretKey};
use socket2::SockRef;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Credit that a sink grants for each stream at the start, on top of the initial window.
pub const SINK_CREDIT: u32 = 1 << 30;
/// Connections tried for a place: that all of them come to the wrong one of two workers is as likely as 2^-64.
const PLACE_TRIES_MAX: usize = 64;
/// How long a relay may take to make the second half of a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// Port on which sinks are dialled.
const SINK_PORT: u16 = 80;
/// Stands for "no window": a plain relay has only TCP's.
const UNLIMITED: u64 = u64::MAX / 2;

/// A session pair: what a sender writes on one socket comes out of the other.
#[derive(Debug)]
pub struct Link {
    /// The sender's connection.
    pub sender: TcpStream,
    /// The sink's connection.
    pub sink: TcpStream,
    /// Whether the relay speaks yamux: credit limits the sender, and the sink has to return it.
    pub windowed: bool,
    /// Streams for bulk.
    pub streams: Vec<StreamPair>,
    /// A stream for a ping beside them.
    pub ping: Option<StreamPair>,
}

/// One stream from sender to sink.
#[derive(Clone, Copy, Debug)]
pub struct StreamPair {
    /// Its id on the sender's connection.
    pub sender_id: u32,
    /// Its id on the sink's connection.
    pub sink_id: u32,
    /// Bytes that the sender may send at once.
    pub sender_credit: u64,
    /// Bytes that the sink may send back at once.
    pub sink_credit: u64,
}

/// How to get through a relay.
#[derive(Debug)]
pub enum Route<'a> {
    /// Connect to `relay`; it connects to `sink`.
    Plain {
        /// Where the relay listens.
        relay: SocketAddr,
        /// Where it connects to.
        sink: &'a TcpListener,
    },
    /// Two sessions at our server.
    Sessions {
        /// Where the server listens.
        server: SocketAddr,
        /// Its key.
        key: PublicKey,
        /// Which workers the two are to be on, where there are several.
        place: Option<Place<'a>>,
    },
}

/// On which workers of a server the ends of a link are to be.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The server.
    pub child: &'a RelayChild,
    /// On different ones; else on one.
    pub apart: bool,
}

impl std::fmt::Debug for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("apart", &self.apart).finish_non_exhaustive()
    }
}

impl Link {
    /// Connects both ends and opens `streams` streams for bulk, and one for a ping when `ping`.
    ///
    /// # Errors
    /// When the relay does not let one of them through.
    pub fn open(route: &Route<'_>, streams: usize, ping: bool) -> Result<Self> {
        let wanted = streams + usize::from(ping);
        let (sender, sink, mut pairs, windowed) = match route {
            Route::Plain { relay, sink } => {
                let (sender, sink) = connect_plain(*relay, sink)?;
                (sender, sink, plain_streams(wanted), false)
            }
            Route::Sessions { server, key, place } => {
                let (sender, sink, pairs) = connect_sessions(*server, key, *place, wanted)?;
                (sender, sink, pairs, true)
            }
        };
        let ping = if ping { pairs.pop() } else { None };
        Ok(Self { sender, sink, windowed, streams: pairs, ping })
    }
}

fn connect_plain(relay: SocketAddr, sink: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let sender = TcpStream::connect(relay).context("the relay cannot be reached")?;
    // One connection is under way at a time, so the next one accepted is its other end. A relay that ended never makes it.
    SockRef::from(sink).set_read_timeout(Some(CONNECT_LIMIT))?;
    let (sink, _) = sink.accept().context("the relay did not connect to the sink")?;
    sink.set_read_timeout(None)?;
    sender.set_nodelay(true)?;
    sink.set_nodelay(true)?;
    Ok((sender, sink))
}

/// The ids that a mux client would use, on both sides: nobody renumbers them.
fn plain_streams(count: usize) -> Vec<StreamPair> {
    (0..)
        .map(|index| 2 * index + 1)
        .map(|id| StreamPair { sender_id: id, sink_id: id, sender_credit: UNLIMITED, sink_credit: UNLIMITED })
        .take(count)
        .collect()
}

/// A sender's session, where it is wanted: which worker accepts a connection is the kernel's choice, so it is tried until it
/// chose well.
fn connect_sender(
    server: SocketAddr,
    key: &PublicKey,
    place: Option<Place<'_>>,
    sink: PublicKey,
) -> Result<RawSession> {
    for _ in 0..PLACE_TRIES_MAX {
        let local = SecretKey::generate(&mut OsEntropy);
        let sender = RawSession::connect(server, key, &local).context("the sender has no session")?;
        let Some(Place { child, apart }) = place else { return Ok(sender) };
        let (ours, theirs) = (child.worker_of(local.public_key())?, child.worker_of(sink)?);
        if ours.is_none() || theirs.is_none() {
            bail!("the server has filed no session for one of two clients that it answers");
        }
        if (ours != theirs) == apart {
            return Ok(sender);
        }
    }
    bail!("{PLACE_TRIES_MAX} connections in a row came to the other worker")
}

fn connect_sessions(
    server: SocketAddr,
    key: &PublicKey,
    place: Option<Place<'_>>,
    streams: usize,
) -> Result<(TcpStream, TcpStream, Vec<StreamPair>)> {
    let sink_key = SecretKey::generate(&mut OsEntropy);
    let destination = Address { key: sink_key.public_key(), port: SINK_PORT };
    let mut sink = RawSession::connect(server, key, &sink_key).context("the sink has no session")?;
    let mut sender = connect_sender(server, key, place, sink_key.public_key())?;
    let mut pairs = Vec::with_capacity(streams);
    for _ in 0..streams {
        let dial = sender.dial(destination)?;
        let accepted = sink.accept()?;
        let dialled = sender.finish_dial(dial)?;
        // Both directions: the sink for bulk, the sender for the echo of a ping.
        sink.grant(accepted.id, SINK_CREDIT)?;
        sender.grant(dialled.id, SINK_CREDIT)?;
        pairs.push(StreamPair {
            sender_id: dialled.id,
            sink_id: accepted.id,
            sender_credit: dialled.send_credit,
            sink_credit: accepted.send_credit,
        });
    }
    Ok((sender.into_socket()?, sink.into_socket()?, pairs))
}
