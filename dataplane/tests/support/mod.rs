//! A dmsg client for tests: blocking socket, its own session keys, yamux or smux through the connections of `ringwire_proto`.
//!
//! Kept apart from the client library of the control plane, so that a mistake made twice does not cancel out.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unreachable_pub, reason = "a module of tests has no outside")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

pub mod drivers;
pub mod living;
#[path = "../../sim/src/peer/mux.rs"]
pub mod mux;
pub mod proxy;
pub mod stage;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ringwire_dataplane::aead::AwsLcAead;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::limits::HANDSHAKE_TIMEOUT_NS;
use ringwire_dataplane::{Server, ServerConfig};
use ringwire_proto::frame::FrameReader;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::sealed::{Opener, Sealer, WindowReplay};
use ringwire_proto::noise::{Handshake, Hybrid, Pattern, Role};
use ringwire_proto::object::{
    Generation, RawAddress, StreamRequest, StreamResponse, object_hash, open_request, open_response,
    sign_object,
};
use ringwire_proto::smux::{self, Version};
use ringwire_proto::yamux::{self, StreamError};

use mux::{ClientMux, MuxEvent};
use rustix::io::Errno;
use rustix::net::SendFlags;

/// How long anything in a test may take before it counts as lost.
pub const LIMIT: Duration = Duration::from_secs(60);

pub fn start_server() -> Server {
    start_server_with(|_| {})
}

pub fn start_server_with(change: impl FnOnce(&mut ServerConfig)) -> Server {
    let secret_key = SecretKey::generate(&mut OsEntropy);
    let mut config = ServerConfig::new(secret_key, vec!["127.0.0.1:0".parse().unwrap()]);
    config.buffer_memory_len = 64 * 1024 * 1024;
    config.driver = drivers::current();
    change(&mut config);
    Server::start(config).unwrap()
}

/// One session of one client.
pub struct Peer {
    pub secret: SecretKey,
    pub key: PublicKey,
    pub server: PublicKey,
    pub hybrid: bool,
    pub mux: ClientMux,
    pub socket: TcpStream,
    pub closed: bool,
    sealer: Sealer<AwsLcAead>,
    opener: Opener<AwsLcAead, WindowReplay>,
    started: Instant,
    out: Vec<u8>,
}

impl Peer {
    pub fn connect(server: &Server) -> Self {
        Self::connect_as(SecretKey::generate(&mut OsEntropy), server, Hybrid::Offer)
    }

    pub fn connect_as(secret: SecretKey, server: &Server, hybrid: Hybrid) -> Self {
        Self::handshake(secret, server.public_key(), server.addresses()[0], hybrid, &[]).unwrap()
    }

    /// Handshake; `behind` goes out in the same write as message 3.
    pub fn handshake(
        secret: SecretKey,
        server: PublicKey,
        address: SocketAddr,
        hybrid: Hybrid,
        behind: &[u8],
    ) -> Result<Self, String> {
        let socket = TcpStream::connect(address).map_err(|error| error.to_string())?;
        Self::handshake_over(socket, secret, server, hybrid, behind)
    }

    /// As [`handshake`](Self::handshake), on a connection that exists.
    pub fn handshake_over(
        mut socket: TcpStream,
        secret: SecretKey,
        server: PublicKey,
        hybrid: Hybrid,
        behind: &[u8],
    ) -> Result<Self, String> {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let mut noise =
            Handshake::new(Pattern::Xk, Role::Initiator, &secret, Some(&server), hybrid, &mut OsEntropy)
                .unwrap();
        write_frame(&mut socket, &mut noise, &[]);
        let message = read_frame(&mut socket)?;
        noise.read_message(&message).map_err(|error| error.to_string())?;
        write_frame(&mut socket, &mut noise, behind);
        let outcome = noise.finish().map_err(|error| error.to_string())?;
        socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        Ok(Self {
            key: secret.public_key(),
            secret,
            server,
            hybrid: outcome.hybrid,
            mux: ClientMux::new(None, 0),
            socket,
            closed: false,
            sealer: Sealer::new(&outcome.send),
            opener: Opener::new(&outcome.receive),
            started: Instant::now(),
            out: Vec::new(),
        })
    }

    /// A peer that speaks smux.
    pub fn connect_smux(server: &Server, version: Version) -> Self {
        let mut peer = Self::connect(server);
        peer.speak_smux(version);
        peer
    }

    /// From here on the peer speaks smux; nothing was said before.
    pub fn speak_smux(&mut self, version: Version) {
        self.mux = ClientMux::new(Some(version), self.now());
    }

    /// A liveness ping by hand on a stream of this id, past the multiplexer, which does not know what was written before: the
    /// session lives.
    pub fn settle_on(&mut self, id: u32) {
        let (frames, fin) = match &self.mux {
            ClientMux::Yamux(_) => {
                let syn = yamux::Header::window_update(id, 0).with_flags(yamux::Flags::SYN).encode();
                let fin = yamux::Header::window_update(id, 0).with_flags(yamux::Flags::FIN).encode();
                ([&syn[..], &yamux::Header::data(id, 2).encode()].concat(), fin.to_vec())
            }
            ClientMux::Smux(mux) => {
                let version = mux.session().config().version;
                let push = smux::Header::push(version, id, 2).encode();
                let syn = smux::Header::syn(version, id).encode();
                ([&syn[..], &push].concat(), smux::Header::fin(version, id).encode().to_vec())
            }
        };
        self.socket.write_all(&[&frames[..], &[0, 0]].concat()).unwrap();
        self.expect_raw(&fin);
    }

    /// Reads until these bytes have come.
    pub fn expect_raw(&mut self, wanted: &[u8]) {
        let deadline = Instant::now() + LIMIT;
        let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
        while !said.windows(wanted.len()).any(|window| window == wanted) {
            assert!(Instant::now() < deadline, "no {wanted:02x?} in {said:02x?}");
            match self.socket.read(&mut buffer) {
                Ok(0) => panic!("closed before {wanted:02x?}, after {said:02x?}"),
                Ok(len) => said.extend_from_slice(&buffer[..len]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("{error} before {wanted:02x?}"),
            }
        }
    }

    /// Ends our direction of a stream.
    pub fn finish(&mut self, stream: u32) {
        let now = self.now();
        self.mux.finish(now, stream);
        self.flush();
    }

    /// A session of a new client that is filed, from the address that `connect` comes from. A client whose handshake the server
    /// timed out comes again: a machine busy elsewhere may take those five seconds from anybody. Who is kept out every time fails.
    pub fn come(
        server: PublicKey,
        hybrid: Hybrid,
        connect: impl Fn() -> std::io::Result<TcpStream>,
    ) -> (Self, Duration) {
        let mut failures = Vec::new();
        loop {
            let started = Instant::now();
            let secret = SecretKey::generate(&mut OsEntropy);
            let failure = match connect().map_err(|error| error.to_string()).and_then(|socket| {
                let mut peer = Self::handshake_over(socket, secret, server, hybrid, &[])?;
                if peer.try_settle() { Ok(peer) } else { Err("closed before it was filed".to_owned()) }
            }) {
                Ok(peer) => return (peer, started.elapsed()),
                Err(failure) => failure,
            };
            let took = started.elapsed();
            failures.push((failure, took));
            assert!(took.as_nanos() >= HANDSHAKE_TIMEOUT_NS.into(), "not for being late: {failures:?}");
            assert!(failures.len() < 5, "never gets its session: {failures:?}");
        }
    }

    /// As [`settle`](Self::settle); false when the server closed the connection instead.
    pub fn try_settle(&mut self) -> bool {
        let stream = self.open();
        let now = self.now();
        if self.mux.write(stream, &[0, 0]) != Ok(2) {
            return false;
        }
        let deadline = Instant::now() + LIMIT;
        while !self.closed && !self.mux.read(stream, &mut [0; 2]).is_ok_and(|len| len > 0) {
            assert!(Instant::now() < deadline, "neither filed nor closed");
            self.pump();
        }
        self.mux.finish(now, stream);
        self.flush();
        !self.closed
    }

    /// Waits until the server has filed this session: message 3 may still be on its way.
    pub fn settle(&mut self) {
        let stream = self.open();
        self.write(stream, &[0, 0]);
        self.read_exact(stream, 2);
        self.wait_end(stream);
        let now = self.now();
        self.mux.finish(now, stream);
        self.flush();
    }

    pub fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Moves bytes both ways for a moment. Waits until the server takes what there is to send.
    pub fn pump(&mut self) {
        self.flush();
        self.receive();
        self.flush();
    }

    /// Ends the connection by a reset.
    pub fn abort(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Sends what there is to send, and reads nothing.
    pub fn transmit(&mut self) {
        self.send(false);
    }

    /// Likewise, but what the server does not take stays for the next time: for a thread that has several peers, one of which
    /// may have to read before the server takes more from another (an smux 1 session is stopped as a whole, dmsg-wire 6).
    pub fn pump_without_waiting(&mut self) {
        self.send(false);
        self.receive();
        self.send(false);
    }

    fn receive(&mut self) {
        let mut buffer = [0; 65_536];
        if !self.mux.may_receive() {
            return;
        }
        match self.socket.read(&mut buffer) {
            Ok(0) => self.closed = true,
            Ok(len) => {
                let now = self.now();
                self.mux.push(now, &buffer[..len]);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => self.closed = true,
        }
    }

    fn flush(&mut self) {
        self.send(true);
    }

    /// Writes what the multiplexer has to say; without waiting the rest stays in `out`.
    fn send(&mut self, wait: bool) {
        let flags = if wait { SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL | SendFlags::DONTWAIT };
        while !self.out.is_empty() || self.mux.poll_transmit(&mut self.out, 1 << 20) > 0 {
            match rustix::net::send(&self.socket, &self.out, flags) {
                Ok(len) => drop(self.out.drain(..len)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.closed = true;
                    self.out.clear();
                    return;
                }
            }
        }
    }

    /// Pumps until `done` or the limit; panics at the limit.
    pub fn wait<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(value) = done(self) {
                return value;
            }
            assert!(Instant::now() < deadline, "in vain: {what} (closed: {})", self.closed);
            self.pump();
        }
    }

    pub fn open(&mut self) -> u32 {
        let now = self.now();
        self.mux.open(now).unwrap()
    }

    /// Waits for a stream that the server opens.
    pub fn accept(&mut self) -> u32 {
        self.wait("a stream from the server", |peer| peer.mux.accept())
    }

    pub fn write(&mut self, stream: u32, bytes: &[u8]) {
        let mut rest = bytes;
        self.wait("room to write", |peer| {
            match peer.mux.write(stream, rest) {
                Ok(taken) => rest = &rest[taken..],
                Err(StreamError::Blocked) => {}
                Err(error) => panic!("write: {error}"),
            }
            rest.is_empty().then_some(())
        });
        self.flush();
    }

    pub fn read_exact(&mut self, stream: u32, len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        self.wait("bytes to read", |peer| {
            let mut buffer = vec![0; (len - out.len()).min(65_536)];
            match peer.mux.read(stream, &mut buffer) {
                Ok(0) if len > out.len() => panic!("the stream ended after {} of {len} bytes", out.len()),
                Ok(read) => out.extend_from_slice(&buffer[..read]),
                Err(StreamError::Blocked) => {}
                Err(error) => panic!("read: {error}"),
            }
            (out.len() == len).then_some(())
        });
        self.flush();
        out
    }

    /// Waits until the stream ends: true when it finished, false when it was reset.
    pub fn wait_end(&mut self, stream: u32) -> bool {
        self.wait("the end of the stream", |peer| {
            let mut buffer = [0; 4096];
            match peer.mux.read(stream, &mut buffer) {
                Ok(0) => Some(true),
                Ok(_) | Err(StreamError::Blocked) => None,
                Err(_) => Some(false),
            }
        })
    }

    pub fn wait_closed(&mut self) {
        self.wait("the end of the session", |peer| peer.closed.then_some(()));
    }

    /// An object in its packet, with its length in front.
    pub fn seal(&mut self, signed: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 2];
        self.sealer.seal(signed, &mut bytes);
        let len = (bytes.len() - 2) as u16;
        bytes[..2].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    pub fn write_object(&mut self, stream: u32, signed: &[u8]) {
        let bytes = self.seal(signed);
        self.write(stream, &bytes);
    }

    pub fn read_object(&mut self, stream: u32) -> Vec<u8> {
        let prefix = self.read_exact(stream, 2);
        let mut packet = self.read_exact(stream, usize::from(u16::from_be_bytes([prefix[0], prefix[1]])));
        self.opener.open(&mut packet).unwrap().to_vec()
    }

    /// The object that a stream brings; none when it ends instead.
    pub fn try_read_object(&mut self, stream: u32) -> Option<Vec<u8>> {
        let mut first = [0; 1];
        let begins = self.wait("an object or the end", |peer| match peer.mux.read(stream, &mut first) {
            Ok(1) => Some(true),
            Err(StreamError::Blocked) => None,
            Ok(_) | Err(_) => Some(false),
        });
        if !begins {
            return None;
        }
        let len = usize::from(u16::from_be_bytes([first[0], self.read_exact(stream, 1)[0]]));
        let mut packet = self.read_exact(stream, len);
        Some(self.opener.open(&mut packet).unwrap().to_vec())
    }

    pub fn request(&self, destination: PublicKey) -> StreamRequest {
        StreamRequest {
            timestamp_ns: 1,
            source: RawAddress { key: Some(self.key), port: 49_153 },
            destination: RawAddress { key: Some(destination), port: 80 },
            ip_info: false,
            geo_info: false,
            noise_message: vec![0x5a; 49],
        }
    }

    pub fn sign(&self, request: &StreamRequest) -> Vec<u8> {
        sign_object(&self.secret, &request.encode(Generation::Go2024))
    }

    /// As a client of 2026 does, who can ask for its address.
    pub fn sign_2026(&self, request: &StreamRequest) -> Vec<u8> {
        sign_object(&self.secret, &request.encode(Generation::Go2026))
    }

    /// Answers a request that arrived on a stream the server opened; returns the stream.
    pub fn answer(&mut self) -> u32 {
        let stream = self.accept();
        self.answer_on(stream);
        stream
    }

    /// Likewise, when it is known which.
    pub fn answer_on(&mut self, stream: u32) {
        let signed = self.read_object(stream);
        let request = open_request(&signed).unwrap();
        assert_eq!(request.destination.key, Some(self.key));
        let response = StreamResponse {
            request_hash: object_hash(&signed),
            accepted: true,
            noise_message: vec![0xa5; 49],
            ..StreamResponse::default()
        };
        let signed = sign_object(&self.secret, &response.encode(Generation::Go2024));
        self.write_object(stream, &signed);
    }

    pub fn events(&mut self) -> Vec<MuxEvent> {
        std::iter::from_fn(|| self.mux.poll_event()).collect()
    }
}

/// Opens a bridge from `a` to `b`; returns the stream on either side.
pub fn bridge(a: &mut Peer, b: &mut Peer) -> (u32, u32) {
    let stream = a.open();
    let request = a.request(b.key);
    let signed = a.sign(&request);
    a.write_object(stream, &signed);
    a.pump();
    let other = b.answer();
    b.pump();
    let response = a.read_object(stream);
    open_response(&response, &object_hash(&signed), &b.key).unwrap();
    (stream, other)
}

/// Bytes that depend on their place, so that a lost, doubled or swapped piece is seen.
pub fn pattern(seed: u64, from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|at| {
            let word = (at as u64 / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
            word.to_le_bytes()[at % 8]
        })
        .collect()
}

pub fn write_frame(socket: &mut TcpStream, noise: &mut Handshake, behind: &[u8]) {
    let mut message = Vec::new();
    noise.write_message(&mut message).unwrap();
    let mut frame = (message.len() as u16).to_be_bytes().to_vec();
    frame.extend_from_slice(&message);
    frame.extend_from_slice(behind);
    // A server that closed already is found out by the next read.
    let _ = socket.write_all(&frame);
}

pub fn read_frame(socket: &mut TcpStream) -> Result<Vec<u8>, String> {
    let mut reader = FrameReader::new(4094);
    loop {
        let mut byte = [0; 1];
        match socket.read(&mut byte) {
            Ok(0) => return Err("the server closed the connection".into()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
        if let Some(body) = reader.push(&mut &byte[..]).map_err(|error| error.to_string())? {
            return Ok(body.to_vec());
        }
    }
}
