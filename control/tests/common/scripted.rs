//! A server that says exactly what a test wants said, right or wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringwire::dmsg::{ServerAddress, Session, SessionConfig};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::aead::RustCryptoAead;
use ringwire_proto::frame::push_prefix;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::sealed::{Opener, Sealer, WindowReplay};
use ringwire_proto::noise::{Handshake, Hybrid, Outcome, Pattern, Role};
use ringwire_proto::yamux::{Flags, HEADER_LEN, Header, Kind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The server's side of one connection, its handshake done.
pub struct Scripted {
    pub socket: TcpStream,
    pub secret_key: SecretKey,
    pub client: PublicKey,
    sealer: Sealer<RustCryptoAead>,
    opener: Opener<RustCryptoAead, WindowReplay>,
}

/// A client and the scripted server it is connected to.
pub async fn connect(adjust: impl FnOnce(&mut SessionConfig)) -> (Session, Scripted) {
    let secret_key = SecretKey::generate(&mut OsEntropy);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = ServerAddress { key: secret_key.public_key(), address };
    let mut config = SessionConfig::new(SecretKey::generate(&mut OsEntropy), server);
    config.first_frame_pause = Duration::ZERO;
    adjust(&mut config);
    let accept = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let outcome = shake_hands(&mut socket, &secret_key).await;
        (socket, outcome)
    };
    let (client, (socket, outcome)) = tokio::join!(Session::connect(config), accept);
    let (sealer, opener) = (Sealer::new(&outcome.send), Opener::new(&outcome.receive));
    (client.unwrap(), Scripted { socket, secret_key, client: outcome.remote, sealer, opener })
}

/// A server of 2024 on a busy machine: it reads the end of the handshake so late, and through a buffer, and ends the session when the
/// buffer has more than that in it (dmsg-wire 4.4). Otherwise it answers pings of the multiplexer. Counts what it ended so.
pub async fn busy_server_of_2024(
    listener: TcpListener,
    secret_key: SecretKey,
    late: Duration,
    ended: Arc<AtomicUsize>,
) {
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        let (secret_key, ended) = (secret_key.clone(), Arc::clone(&ended));
        tokio::spawn(async move {
            let mut handshake =
                Handshake::new(Pattern::Xk, Role::Responder, &secret_key, None, Hybrid::Off, &mut OsEntropy)
                    .unwrap();
            let mut message = vec![0; socket.read_u16().await.unwrap().into()];
            socket.read_exact(&mut message).await.unwrap();
            handshake.read_message(&message).unwrap();
            let (mut message, mut frame) = (Vec::new(), Vec::new());
            handshake.write_message(&mut message).unwrap();
            push_prefix(message.len(), &mut frame).unwrap();
            frame.extend(message);
            socket.write_all(&frame).await.unwrap();
            tokio::time::sleep(late).await;
            let mut buffer = vec![0; 4096];
            let mut len = 0;
            while len < 2 || len < 2 + usize::from(u16::from_be_bytes([buffer[0], buffer[1]])) {
                match socket.read(&mut buffer[len..]).await.unwrap() {
                    0 => return,
                    read => len += read,
                }
            }
            let end = 2 + usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
            handshake.read_message(&buffer[2..end]).unwrap();
            if len > end {
                ended.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let mut header = [0; HEADER_LEN];
            while socket.read_exact(&mut header).await.is_ok() {
                let header = Header::decode(&header).unwrap();
                let mut payload = vec![0; header.payload_len() as usize];
                socket.read_exact(&mut payload).await.unwrap();
                let answer = match header.kind {
                    Kind::Ping if header.flags.contains(Flags::SYN) => Header { flags: Flags::ACK, ..header },
                    Kind::WindowUpdate if header.flags.contains(Flags::SYN) => {
                        Header::window_update(header.stream, 0).with_flags(Flags::ACK)
                    }
                    _ => continue,
                };
                socket.write_all(&answer.encode()).await.unwrap();
            }
        });
    }
}

async fn shake_hands(socket: &mut TcpStream, secret_key: &SecretKey) -> Outcome {
    let mut handshake =
        Handshake::new(Pattern::Xk, Role::Responder, secret_key, None, Hybrid::Off, &mut OsEntropy).unwrap();
    while !handshake.is_finished() {
        if handshake.is_my_turn() {
            let (mut message, mut frame) = (Vec::new(), Vec::new());
            handshake.write_message(&mut message).unwrap();
            push_prefix(message.len(), &mut frame).unwrap();
            frame.extend(message);
            socket.write_all(&frame).await.unwrap();
        } else {
            let mut message = vec![0; socket.read_u16().await.unwrap().into()];
            socket.read_exact(&mut message).await.unwrap();
            handshake.read_message(&message).unwrap();
        }
    }
    handshake.finish().unwrap()
}

impl Scripted {
    pub async fn say(&mut self, header: Header, payload: &[u8]) {
        self.socket.write_all(&header.encode()).await.unwrap();
        self.socket.write_all(payload).await.unwrap();
    }

    pub async fn say_data(&mut self, stream: u32, payload: &[u8]) {
        self.say(Header::data(stream, u32::try_from(payload.len()).unwrap()), payload).await;
    }

    /// Opens a stream to the client with these first bytes.
    pub async fn open(&mut self, stream: u32, payload: &[u8]) {
        self.say(Header::window_update(stream, 0).with_flags(Flags::SYN), &[]).await;
        self.say_data(stream, payload).await;
    }

    /// The next frame of the client.
    pub async fn hear(&mut self) -> (Header, Vec<u8>) {
        let mut header = [0; HEADER_LEN];
        self.socket.read_exact(&mut header).await.unwrap();
        let header = Header::decode(&header).unwrap();
        let mut payload = vec![0; header.payload_len() as usize];
        self.socket.read_exact(&mut payload).await.unwrap();
        (header, payload)
    }

    /// The next frame that is not an acknowledgement; its flags and payload.
    pub async fn hear_beyond_ack(&mut self) -> (Header, Vec<u8>) {
        loop {
            let (header, payload) = self.hear().await;
            if !(header.kind == Kind::WindowUpdate && header.flags == Flags::ACK) {
                return (header, payload);
            }
        }
    }

    /// `length || packet` of a signed object.
    pub fn seal(&mut self, signed: &[u8]) -> Vec<u8> {
        let (mut packet, mut out) = (Vec::new(), Vec::new());
        self.sealer.seal(signed, &mut packet);
        push_prefix(packet.len(), &mut out).unwrap();
        out.extend(packet);
        out
    }

    /// The signed object in `length || packet`.
    pub fn open_object(&mut self, sealed: &[u8]) -> Vec<u8> {
        self.opener.open(&mut sealed[2..].to_vec()).unwrap().to_vec()
    }
}
