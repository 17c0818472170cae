//! A dmsg session, client side, on a socket that never blocks: what honest clients and attackers are both made of.
//!
//! In: where and whose the server is, an own key; frames and objects to send. Out: [`Event`]s. Unlike
//! [`crate::raw_session`] it has many streams under way at a time, sends any frame it is given, and keeps nothing of what
//! streams carry behind their object. Called by [`super::honest`] and by every attack.

use crate::frames::{
    ACK, DATA, FIN, GO_AWAY, Header, INITIAL_WINDOW, PING, Piece, RST, SYN, Scanner, WINDOW_UPDATE,
};
use crate::raw_session::prove;
use anyhow::{Context, Result, bail};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::aead::RustCryptoAead;
use ringwire_proto::frame::{FrameReader, push_prefix};
use ringwire_proto::identity::{Address, PublicKey, SecretKey};
use ringwire_proto::noise::sealed::{Opener, Sealer, WindowReplay};
use ringwire_proto::object::{
    Generation, OBJECT_PACKET_MAX, StreamRequest, StreamResponse, object_hash, sign_object,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Ports of requests; servers look at nothing but "not zero" (dmsg-wire 10.1).
const SOURCE_PORT: u16 = 49_153;
const DESTINATION_PORT: u16 = 80;
/// Bytes of one read.
const READ_LEN: usize = 64 * 1024;
/// Bytes of the first message of a KK handshake, which the server passes on unread.
const NOISE_LEN: usize = 49;

/// From where to which server.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Where the server listens.
    pub server: SocketAddr,
    /// Its key.
    pub key: PublicKey,
    /// The address to come from.
    pub source: IpAddr,
    /// Longest wait for the connection and for each answer of the handshake.
    pub limit: Duration,
    /// Bytes that the kernel may keep for a reader that does not read; none: as usual.
    pub receive_buffer: Option<usize>,
}

/// What came from the server.
#[derive(Debug)]
pub enum Event {
    /// It opened a stream, for a request of somebody.
    Opened(u32),
    /// The object of a stream is complete: the request on one it opened, the response on one of ours.
    Object(u32, Vec<u8>),
    /// It finished or reset a stream.
    Ended {
        /// Which.
        stream: u32,
        /// By a reset: no answer is due.
        reset: bool,
    },
    /// It may be sent so many more bytes on a stream.
    Credit(u32, u32),
    /// A ping was answered; answers come in the order of the questions.
    Pong,
}

/// An authenticated session.
pub struct Wire {
    socket: TcpStream,
    local: SecretKey,
    sealer: Sealer<RustCryptoAead>,
    opener: Opener<RustCryptoAead, WindowReplay>,
    scanner: Scanner,
    /// Streams whose object has not arrived.
    heads: HashMap<u32, FrameReader>,
    out: Vec<u8>,
    sent: usize,
    input: Box<[u8]>,
    next_stream: u32,
    payload_received: u64,
}

impl Wire {
    /// Connects and proves both keys. The server files the session a moment later; the answer to [`Wire::ping`] shows it.
    ///
    /// # Errors
    /// When the server does not answer in time, is not who it should be, or refuses `local`.
    pub fn connect(place: &Place, local: &SecretKey) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(place.server), Type::STREAM, None)?;
        if let Some(len) = place.receive_buffer {
            socket.set_recv_buffer_size(len)?;
        }
        socket.bind(&SocketAddr::new(place.source, 0).into())?;
        socket.connect_timeout(&place.server.into(), place.limit).context("the server cannot be reached")?;
        let mut socket = TcpStream::from(socket);
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(place.limit))?;
        socket.set_write_timeout(Some(place.limit))?;
        let outcome = prove(&mut socket, &place.key, local)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            local: local.clone(),
            sealer: Sealer::new(&outcome.send),
            opener: Opener::new(&outcome.receive),
            scanner: Scanner::default(),
            heads: HashMap::new(),
            out: Vec::new(),
            sent: 0,
            input: vec![0; READ_LEN].into_boxed_slice(),
            next_stream: 1,
            payload_received: 0,
        })
    }

    /// As [`Wire::connect`], and waits until the server answers a ping.
    ///
    /// # Errors
    /// Likewise, and when it does not answer.
    pub fn establish(place: &Place, local: &SecretKey) -> Result<Self> {
        let mut wire = Self::connect(place, local)?;
        wire.ping();
        let began = std::time::Instant::now();
        let mut events = Vec::new();
        while !events.iter().any(|event| matches!(event, Event::Pong)) {
            if began.elapsed() > place.limit {
                bail!("the server did not answer a ping");
            }
            wire.turn(place.limit, &mut events)?;
        }
        Ok(wire)
    }

    /// Whose session it is.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.local.public_key()
    }

    /// The same session once more, for somebody who was thrown out; streams and all that was under way are gone.
    ///
    /// # Errors
    /// As [`Wire::establish`].
    pub fn again(&mut self, place: &Place) -> Result<()> {
        *self = Self::establish(place, &self.local.clone())?;
        Ok(())
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Payload that came behind objects and was thrown away, in bytes.
    #[must_use]
    pub fn payload_received(&self) -> u64 {
        self.payload_received
    }

    /// The next id of a stream of ours, used or not.
    pub fn take_stream(&mut self) -> u32 {
        let stream = self.next_stream;
        self.next_stream = self.next_stream.wrapping_add(2);
        stream
    }

    /// Queues bytes as they are.
    pub fn queue(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Queues a header.
    pub fn queue_header(&mut self, kind: u8, flags: u16, stream: u32, length: u32) {
        self.queue(&Header { kind, flags, stream, length }.encode());
    }

    /// Queues a question for a sign of life of the multiplexer.
    pub fn ping(&mut self) {
        self.queue_header(PING, SYN, 0, 0);
    }

    /// Queues the end of a stream, or with `reset` its death.
    pub fn end(&mut self, stream: u32, reset: bool) {
        self.heads.remove(&stream);
        self.queue_header(WINDOW_UPDATE, if reset { RST } else { FIN }, stream, 0);
    }

    /// Queues a stream and on it the request for `destination`. `noise` is the first message of the handshake between the
    /// ends; none: noise indeed, for a destination that does not look. Returns the stream and the hash of the request.
    ///
    /// # Errors
    /// When the clock is before 1970.
    pub fn request(&mut self, destination: PublicKey, noise: Option<Vec<u8>>) -> Result<(u32, [u8; 32])> {
        let destination = Address { key: destination, port: DESTINATION_PORT };
        let request = StreamRequest {
            timestamp_ns: i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?,
            source: Address { key: self.local.public_key(), port: SOURCE_PORT }.into(),
            destination: destination.into(),
            noise_message: noise.unwrap_or_else(|| vec![0x5a; NOISE_LEN]),
            ..StreamRequest::default()
        };
        let signed = sign_object(&self.local, &request.encode(Generation::Go2024));
        let stream = self.take_stream();
        self.heads.insert(stream, FrameReader::new(OBJECT_PACKET_MAX));
        self.queue_header(WINDOW_UPDATE, SYN, stream, 0);
        self.queue_object(stream, &signed)?;
        Ok((stream, object_hash(&signed)))
    }

    /// Queues the response to the request `signed` on a stream of the server; `noise` as in [`Wire::request`].
    ///
    /// # Errors
    /// None in practice.
    pub fn respond(&mut self, stream: u32, signed: &[u8], noise: Option<Vec<u8>>) -> Result<()> {
        let response = StreamResponse {
            request_hash: object_hash(signed),
            accepted: true,
            noise_message: noise.unwrap_or_else(|| vec![0x5a; NOISE_LEN]),
            ..StreamResponse::default()
        };
        let signed = sign_object(&self.local, &response.encode(Generation::Go2024));
        self.queue_object(stream, &signed)
    }

    /// One data frame with one object (dmsg-wire 7).
    fn queue_object(&mut self, stream: u32, signed: &[u8]) -> Result<()> {
        let mut packet = Vec::new();
        self.sealer.seal(signed, &mut packet);
        self.queue(&Header::data(stream, u32::try_from(2 + packet.len())?).encode());
        push_prefix(packet.len(), &mut self.out)?;
        self.out.append(&mut packet);
        Ok(())
    }

    /// Waits until the socket takes or brings something, at most `wait`; sends what it takes, and reads once. Pings of the
    /// server are answered.
    ///
    /// # Errors
    /// When the session is over.
    pub fn turn(&mut self, wait: Duration, events: &mut Vec<Event>) -> Result<()> {
        self.flush()?;
        self.wait(wait, true)?;
        self.read(events)?;
        self.flush()
    }

    /// As [`Wire::turn`] for somebody who has always more to send: waits only while the socket takes nothing.
    ///
    /// # Errors
    /// When the session is over.
    pub fn turn_at_line_rate(&mut self, wait: Duration, events: &mut Vec<Event>) -> Result<()> {
        self.flush()?;
        self.wait(if self.unsent() > 0 { wait } else { Duration::ZERO }, true)?;
        self.read(events)?;
        self.flush()
    }

    /// As [`Wire::turn`] for somebody who does not read: sends only.
    ///
    /// # Errors
    /// When the session is over.
    pub fn turn_unread(&mut self, wait: Duration) -> Result<()> {
        self.flush()?;
        if self.unsent() > 0 {
            self.wait(wait, false)?;
            self.flush()?;
        }
        Ok(())
    }

    fn wait(&self, wait: Duration, reads: bool) -> Result<()> {
        let mut flags = if reads { PollFlags::IN } else { PollFlags::empty() };
        flags.set(PollFlags::OUT, self.unsent() > 0);
        let limit = Timespec::try_from(wait)?;
        match poll(&mut [PollFd::new(&self.socket, flags)], Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn flush(&mut self) -> Result<()> {
        while self.sent < self.out.len() {
            match self.socket.write(&self.out[self.sent..]) {
                Ok(0) => bail!("the server closed the session"),
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("the session failed"),
            }
        }
        self.out.drain(..self.sent);
        self.sent = 0;
        Ok(())
    }

    fn read(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.input);
        let result = match self.socket.read(&mut buffer) {
            Ok(0) => Err(anyhow::anyhow!("the server closed the session")),
            Ok(len) => self.scan(&buffer[..len], events),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error).context("the session failed"),
        };
        self.input = buffer;
        result
    }

    fn scan(&mut self, mut input: &[u8], events: &mut Vec<Event>) -> Result<()> {
        let mut scanner = std::mem::take(&mut self.scanner);
        while let Some(piece) = scanner.next(&mut input)? {
            match piece {
                Piece::Header(header) => self.header(header, events)?,
                Piece::Payload { stream, bytes, .. } => self.payload(stream, bytes, events)?,
            }
        }
        self.scanner = scanner;
        Ok(())
    }

    fn payload(&mut self, stream: u32, mut bytes: &[u8], events: &mut Vec<Event>) -> Result<()> {
        if let Some(reader) = self.heads.get_mut(&stream) {
            let Some(packet) = reader.push(&mut bytes)? else { return Ok(()) };
            // An empty one is the answer to a ping of the stream (dmsg-wire 10.5), which nobody here asks.
            let signed = self.opener.open(packet)?.to_vec();
            self.heads.remove(&stream);
            events.push(Event::Object(stream, signed));
        }
        self.payload_received += bytes.len() as u64;
        Ok(())
    }

    fn header(&mut self, header: Header, events: &mut Vec<Event>) -> Result<()> {
        let Header { kind, flags, stream, length } = header;
        match kind {
            PING if flags & SYN != 0 => self.queue_header(PING, ACK, 0, length),
            PING => events.push(Event::Pong),
            GO_AWAY => bail!("the server says go away ({length})"),
            _ => {
                if flags & SYN != 0 {
                    self.heads.insert(stream, FrameReader::new(OBJECT_PACKET_MAX));
                    self.queue_header(WINDOW_UPDATE, ACK, stream, 0);
                    events.push(Event::Opened(stream));
                }
                if kind == WINDOW_UPDATE && length > 0 {
                    events.push(Event::Credit(stream, length));
                }
                // What a data frame with FIN carries follows it: nobody here looks at it any more.
                if flags & (FIN | RST) != 0 && (kind != DATA || length == 0) {
                    self.heads.remove(&stream);
                    events.push(Event::Ended { stream, reset: flags & RST != 0 });
                }
            }
        }
        Ok(())
    }
}

/// A new key.
pub(super) fn fresh_key() -> SecretKey {
    SecretKey::generate(&mut OsEntropy)
}

/// Bytes that may be sent on a new stream at once.
pub(super) const WINDOW: u32 = INITIAL_WINDOW as u32;
