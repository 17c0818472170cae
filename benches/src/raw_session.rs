//! A dmsg client session on a blocking socket: handshake, session objects, and then raw yamux frames.
//!
//! In: a server's address and key, an own key. Out: an authenticated session on which streams are dialled and accepted
//! as real clients do (XK, signed objects sealed with the session keys, a KK message inside each), and finally the bare
//! socket with the streams' ids and credits, for a caller that wants to write frames of its own. No tokio and no
//! thread: both ends of a stream can be driven from one thread, because dialling is cut in two ([`RawSession::dial`],
//! [`RawSession::finish_dial`]) and the other end accepts between them. Called by [`crate::link`].

use crate::frames::{
    ACK, DATA, FIN, GO_AWAY, Header, INITIAL_WINDOW, PING, Piece, RST, SYN, Scanner, WINDOW_UPDATE,
};
use anyhow::{Context, Result, bail};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::aead::RustCryptoAead;
use ringwire_proto::frame::{FRAME_BODY_MAX, FrameReader, push_prefix};
use ringwire_proto::identity::{Address, PublicKey, SecretKey};
use ringwire_proto::noise::sealed::{Opener, Sealer, WindowReplay};
use ringwire_proto::noise::{Handshake, Hybrid, Outcome, Pattern, Role};
use ringwire_proto::object::{
    Generation, OBJECT_PACKET_MAX, StreamRequest, StreamResponse, object_hash, open_request, open_response,
    sign_object,
};
use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest wait for any one answer of the server or of the other end.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Port from which streams are dialled; servers do not look at it beyond "not zero" (dmsg-wire 10.1).
const SOURCE_PORT: u16 = 49_153;

/// An authenticated session, mux client side.
pub struct RawSession {
    socket: TcpStream,
    local: SecretKey,
    sealer: Sealer<RustCryptoAead>,
    opener: Opener<RustCryptoAead, WindowReplay>,
    scanner: Scanner,
    streams: BTreeMap<u32, Arrived>,
    opened_by_server: VecDeque<u32>,
    answered_pings: u32,
    next_stream: u32,
}

/// What arrived for one stream.
#[derive(Default)]
struct Arrived {
    credit: u64,
    data: Vec<u8>,
    ended: bool,
}

/// A stream whose request is out.
pub struct Dial {
    stream: u32,
    request_hash: [u8; 32],
    destination: PublicKey,
    handshake: Handshake,
}

/// An open stream.
pub struct RawStream {
    /// Its yamux id on this session.
    pub id: u32,
    /// Bytes that may be sent on it now.
    pub send_credit: u64,
    /// Keys between the two ends (KK).
    pub keys: Outcome,
}

impl RawSession {
    /// Connects, proves both identities, and waits until the server answers a ping: from then on it has filed the
    /// session and others can reach it.
    ///
    /// # Errors
    /// When the server does not answer, is not `server`, or refuses `local`.
    pub fn connect(address: SocketAddr, server: &PublicKey, local: &SecretKey) -> Result<Self> {
        let mut socket = TcpStream::connect(address).context("the server cannot be reached")?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        socket.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let outcome = prove(&mut socket, server, local)?;
        let mut session = Self {
            socket,
            local: local.clone(),
            sealer: Sealer::new(&outcome.send),
            opener: Opener::new(&outcome.receive),
            scanner: Scanner::default(),
            streams: BTreeMap::new(),
            opened_by_server: VecDeque::new(),
            answered_pings: 0,
            next_stream: 1,
        };
        session.ping()?;
        Ok(session)
    }

    /// Round trip through the server's multiplexer.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn ping(&mut self) -> Result<()> {
        let answered = self.answered_pings;
        self.write(&Header { kind: PING, flags: SYN, stream: 0, length: answered }.encode())?;
        while self.answered_pings == answered {
            self.receive().context("the server did not answer a ping")?;
        }
        Ok(())
    }

    /// Opens a stream and sends the request for `destination` (dmsg-wire 10.2, steps 1 to 4).
    ///
    /// # Errors
    /// The socket's.
    pub fn dial(&mut self, destination: Address) -> Result<Dial> {
        let mut handshake = Handshake::new(
            Pattern::Kk,
            Role::Initiator,
            &self.local,
            Some(&destination.key),
            Hybrid::Off,
            &mut OsEntropy,
        )?;
        let mut noise_message = Vec::new();
        handshake.write_message(&mut noise_message)?;
        let request = StreamRequest {
            timestamp_ns: i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?,
            source: Address { key: self.local.public_key(), port: SOURCE_PORT }.into(),
            destination: destination.into(),
            noise_message,
            ..StreamRequest::default()
        };
        let signed = sign_object(&self.local, &request.encode(Generation::Go2024));
        let stream = self.next_stream;
        self.next_stream += 2;
        self.streams.insert(stream, Arrived { credit: INITIAL_WINDOW, ..Arrived::default() });
        self.write(&Header::window_update(stream, SYN, 0).encode())?;
        self.write_object(stream, &signed)?;
        Ok(Dial { stream, request_hash: object_hash(&signed), destination: destination.key, handshake })
    }

    /// Waits for the response to a [`Dial`] (dmsg-wire 10.2, step 5).
    ///
    /// # Errors
    /// When none comes or it does not pass the checks of dmsg-wire 9.2.
    pub fn finish_dial(&mut self, dial: Dial) -> Result<RawStream> {
        let Dial { stream, request_hash, destination, mut handshake } = dial;
        let signed = self.read_object(stream).context("the dial was not answered")?;
        let response = open_response(&signed, &request_hash, &destination)?;
        handshake.read_message(&response.noise_message)?;
        self.opened(stream, handshake)
    }

    /// Waits for a stream opened by the server, checks its request, and accepts it (dmsg-wire 10.3).
    ///
    /// # Errors
    /// When none comes, or the request does not pass the checks of dmsg-wire 9.1 or is for somebody else.
    pub fn accept(&mut self) -> Result<RawStream> {
        let stream = loop {
            if let Some(stream) = self.opened_by_server.pop_front() {
                break stream;
            }
            self.receive().context("the server did not open a stream")?;
        };
        self.write(&Header::window_update(stream, ACK, 0).encode())?;
        let signed = self.read_object(stream).context("no request came on a stream of the server")?;
        let request = open_request(&signed)?;
        if request.destination.key != Some(self.local.public_key()) {
            bail!("the server delivered a request for another destination");
        }
        let mut handshake = Handshake::new(
            Pattern::Kk,
            Role::Responder,
            &self.local,
            request.source.key.as_ref(),
            Hybrid::Off,
            &mut OsEntropy,
        )?;
        handshake.read_message(&request.noise_message)?;
        let mut response = StreamResponse {
            request_hash: object_hash(&signed),
            accepted: true,
            ..StreamResponse::default()
        };
        handshake.write_message(&mut response.noise_message)?;
        let signed = sign_object(&self.local, &response.encode(Generation::Go2024));
        self.write_object(stream, &signed)?;
        self.opened(stream, handshake)
    }

    /// Raises the server's credit on a stream.
    ///
    /// # Errors
    /// The socket's.
    pub fn grant(&mut self, stream: u32, increment: u32) -> Result<()> {
        self.write(&Header::window_update(stream, 0, increment).encode())
    }

    /// Hands over the socket, blocking and without timeouts. Frames travel on it without any further wrapping.
    ///
    /// # Errors
    /// When the server has sent a part of a frame, or payload that nobody took.
    pub fn into_socket(mut self) -> Result<TcpStream> {
        // The answer proves that everything sent here was handled, and leaves the input at the end of a frame.
        self.ping()?;
        if !self.scanner.is_between_frames() || self.streams.values().any(|stream| !stream.data.is_empty()) {
            bail!("the server has already sent payload");
        }
        self.socket.set_read_timeout(None)?;
        self.socket.set_write_timeout(None)?;
        Ok(self.socket)
    }

    /// Bytes that may be sent on a stream now.
    #[must_use]
    pub fn send_credit(&self, stream: u32) -> u64 {
        self.streams.get(&stream).map_or(0, |arrived| arrived.credit)
    }

    fn opened(&self, stream: u32, handshake: Handshake) -> Result<RawStream> {
        Ok(RawStream { id: stream, send_credit: self.send_credit(stream), keys: handshake.finish()? })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.socket.write_all(bytes).context("the session failed")
    }

    /// Sends one object in one data frame (dmsg-wire 7).
    fn write_object(&mut self, stream: u32, signed: &[u8]) -> Result<()> {
        let mut packet = Vec::new();
        self.sealer.seal(signed, &mut packet);
        let length = u32::try_from(2 + packet.len())?;
        let mut frame = Header::data(stream, length).encode().to_vec();
        push_prefix(packet.len(), &mut frame)?;
        frame.append(&mut packet);
        let arrived = self.streams.entry(stream).or_default();
        arrived.credit = arrived.credit.saturating_sub(u64::from(length));
        self.write(&frame)
    }

    /// Receives until one object is complete on `stream`; bytes behind it stay there.
    fn read_object(&mut self, stream: u32) -> Result<Vec<u8>> {
        let mut reader = FrameReader::new(OBJECT_PACKET_MAX);
        loop {
            let arrived = self.streams.entry(stream).or_default();
            let data = std::mem::take(&mut arrived.data);
            let ended = arrived.ended;
            let mut input = &data[..];
            if let Some(packet) = reader.push(&mut input)? {
                let signed = self.opener.open(packet)?.to_vec();
                self.streams.entry(stream).or_default().data = input.to_vec();
                return Ok(signed);
            }
            if ended {
                bail!("the server ended stream {stream}");
            }
            self.receive()?;
        }
    }

    /// Reads once and files what came.
    fn receive(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        // No more than the rest of a frame or the next header is asked for, so that the input ends between frames when
        // the socket is handed over.
        let wanted = self.scanner.wanted().min(buffer.len());
        let len = self.socket.read(&mut buffer[..wanted]).context("the session failed")?;
        if len == 0 {
            bail!("the server closed the session");
        }
        let mut input = &buffer[..len];
        while let Some(piece) = self.scanner.next(&mut input)? {
            match piece {
                Piece::Header(header) => self.handle_header(header)?,
                Piece::Payload { stream, bytes, .. } => {
                    self.streams.entry(stream).or_default().data.extend_from_slice(bytes);
                }
            }
        }
        Ok(())
    }

    fn handle_header(&mut self, header: Header) -> Result<()> {
        let Header { kind, flags, stream, length } = header;
        match kind {
            PING if flags & SYN != 0 => {
                return self.write(&Header { kind: PING, flags: ACK, stream: 0, length }.encode());
            }
            PING => self.answered_pings += 1,
            GO_AWAY => bail!("the server says go away ({length})"),
            _ => {
                if flags & SYN != 0 {
                    self.streams.insert(stream, Arrived { credit: INITIAL_WINDOW, ..Arrived::default() });
                    self.opened_by_server.push_back(stream);
                }
                let arrived = self.streams.entry(stream).or_default();
                arrived.ended |= flags & (FIN | RST) != 0;
                if kind == WINDOW_UPDATE {
                    arrived.credit += u64::from(length);
                }
                debug_assert!(kind == DATA || kind == WINDOW_UPDATE, "the scanner knows no other types");
            }
        }
        Ok(())
    }
}

/// The session handshake, client side, classical: both keys are proven, and what follows is yamux. Nothing behind it is read.
///
/// # Errors
/// The socket's; when the other side is not `server` or refuses `local`.
pub(crate) fn prove(socket: &mut TcpStream, server: &PublicKey, local: &SecretKey) -> Result<Outcome> {
    let mut handshake =
        Handshake::new(Pattern::Xk, Role::Initiator, local, Some(server), Hybrid::Off, &mut OsEntropy)?;
    write_handshake(&mut handshake, socket)?;
    let mut reader = FrameReader::new(FRAME_BODY_MAX);
    let mut byte = [0];
    // Byte by byte: what follows the message belongs to the multiplexer and must stay in the socket.
    loop {
        socket.read_exact(&mut byte).context("the server did not answer the handshake")?;
        if let Some(message) = reader.push(&mut &byte[..])? {
            handshake.read_message(message)?;
            break;
        }
    }
    write_handshake(&mut handshake, socket)?;
    Ok(handshake.finish()?)
}

/// Sends the next handshake message in a frame of its own (dmsg-wire 3).
fn write_handshake(handshake: &mut Handshake, socket: &mut TcpStream) -> Result<()> {
    let mut message = Vec::new();
    handshake.write_message(&mut message)?;
    let mut frame = Vec::with_capacity(2 + message.len());
    push_prefix(message.len(), &mut frame)?;
    frame.append(&mut message);
    Ok(socket.write_all(&frame)?)
}
