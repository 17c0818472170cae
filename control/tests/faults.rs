//! The dmsg client against servers and peers that are silent, wrong or hostile.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::scripted::{Scripted, busy_server_of_2024, connect};
use common::within;
use ringwire::dmsg::{
    Backoff, Client, ClientConfig, DialError, Disconnected, KnownServers, PeerFault, PingError,
    ServerAddress, Session, SessionConfig,
};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::{Address, PublicKey, SecretKey};
use ringwire_proto::noise::{Handshake, Hybrid, Pattern, Role};
use ringwire_proto::object::{
    self, ErrorCode, Generation, RawAddress, StreamRequest, StreamResponse, object_hash, sign_object,
};
use ringwire_proto::yamux::{Flags, Header, Kind};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

fn stranger() -> SecretKey {
    SecretKey::generate(&mut OsEntropy)
}

fn request(source: &SecretKey, destination: PublicKey, port: u16) -> Vec<u8> {
    let mut handshake =
        Handshake::new(Pattern::Kk, Role::Initiator, source, Some(&destination), Hybrid::Off, &mut OsEntropy)
            .unwrap();
    let mut noise_message = Vec::new();
    handshake.write_message(&mut noise_message).unwrap();
    let request = StreamRequest {
        timestamp_ns: 1,
        source: RawAddress { key: Some(source.public_key()), port: 50000 },
        destination: RawAddress { key: Some(destination), port },
        noise_message,
        ..StreamRequest::default()
    };
    sign_object(source, &request.encode(Generation::Go2024))
}

/// Hears a dial and says what `answer` makes of the signed request.
async fn answer_dial(server: &mut Scripted, answer: impl FnOnce(&[u8]) -> Vec<u8>) {
    let (syn, _) = server.hear().await;
    assert!(syn.flags.contains(Flags::SYN), "{syn:?}");
    server.say(Header::window_update(syn.stream, 0).with_flags(Flags::ACK), &[]).await;
    let (_, sealed) = server.hear().await;
    let signed = server.open_object(&sealed);
    let response = server.seal(&answer(&signed));
    server.say_data(syn.stream, &response).await;
}

#[tokio::test]
async fn nothing_is_sent_during_the_pause_behind_the_handshake() {
    within(async {
        // The pause is behind the handshake, so it is over no earlier than this after its beginning.
        let (pause, started) = (Duration::from_millis(300), Instant::now());
        let (client, mut server) = connect(|config| config.first_frame_pause = pause).await;
        let ping = tokio::spawn(async move { client.ping().await });
        let (syn, _) = server.hear().await;
        assert!(started.elapsed() >= pause, "{:?}", started.elapsed());
        assert_eq!(syn, Header::window_update(1, 0).with_flags(Flags::SYN));
        let (marker, payload) = server.hear().await;
        assert_eq!((marker, &payload[..]), (Header::data(1, 2), &[0, 0][..]));
        server.say_data(1, &[0, 0]).await;
        ping.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_busy_server_of_2024_is_given_more_time_until_it_takes_the_session() {
    within(async {
        let secret_key = stranger();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = ServerAddress { key: secret_key.public_key(), address };
        let ended = Arc::new(AtomicUsize::new(0));
        // Later than the pause that is usual, and than a round trip.
        let late = Duration::from_millis(200);
        tokio::spawn(busy_server_of_2024(listener, secret_key, late, Arc::clone(&ended)));

        // Whoever sends at once learns what it looks like, and no second client is suspected.
        let mut hasty = SessionConfig::new(stranger(), server.clone());
        hasty.first_frame_pause = Duration::ZERO;
        let session = Session::connect(hasty).await.unwrap();
        let error = session.ping().await.unwrap_err();
        assert!(matches!(error, PingError::Disconnected(Disconnected::Unheard)), "{error}");
        assert!(!error.to_string().contains("same key"), "{error}");
        assert_eq!(ended.swap(0, Ordering::Relaxed), 1);

        let session = Session::connect_settled(SessionConfig::new(stranger(), server.clone())).await.unwrap();
        assert!(ended.swap(0, Ordering::Relaxed) >= 1, "it came too early at first");
        session.close().await;

        // And so does a client that keeps its sessions.
        let mut config = ClientConfig::new(stranger(), Arc::new(KnownServers::new(vec![server])));
        config.redial = Backoff { first: Duration::from_millis(20), longest: Duration::from_millis(40) };
        let client = Client::start(config).unwrap();
        loop {
            // A session that stayed longer than its pause and what the server needs.
            let sessions = client.sessions();
            if sessions.iter().any(|session| session.age > 20 * late) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(ended.load(Ordering::Relaxed) >= 1);
        client.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_silent_server_costs_the_limit_and_a_reset() {
    within(async {
        let limit = Duration::from_millis(200);
        let (client, mut server) = connect(|config| config.dial_limit = limit).await;
        let key = stranger().public_key();
        let mut took = Vec::new();
        // One of five, so that a machine's pause is not taken for a longer limit.
        while took.iter().all(|took| *took >= 5 * limit) {
            assert!(took.len() < 5, "{took:?}");
            let started = Instant::now();
            let error = client.dial(Address { key, port: 80 }).await.unwrap_err();
            took.push(started.elapsed());
            assert!(matches!(error, DialError::TimedOut { .. }), "{error}");
            assert!(started.elapsed() >= limit);
            let (syn, _) = server.hear().await;
            let (_, _request) = server.hear().await;
            let (reset, _) = server.hear().await;
            assert_eq!((reset.stream, reset.flags), (syn.stream, Flags::RST));
        }
    })
    .await;
}

#[tokio::test]
async fn answers_are_checked_against_request_and_destination() {
    within(async {
        let (client, mut server) = connect(|_| {}).await;
        let (destination, other) = (stranger(), stranger());
        let address = Address { key: destination.public_key(), port: 80 };
        let response = |hash, accepted, error_code| {
            let response = StreamResponse { request_hash: hash, accepted, error_code, ..Default::default() };
            response.encode(Generation::Go2024)
        };
        type Case<'a> = (&'a str, Box<dyn Fn(&[u8]) -> Vec<u8> + 'a>, fn(&DialError) -> bool);
        let is_fault = |error: &DialError| matches!(error, DialError::Fault(PeerFault::Object(_)));
        let cases: [Case<'_>; 5] = [
            (
                "another request's hash",
                Box::new(|_| sign_object(&destination, &response([7; 32], true, 0))),
                is_fault,
            ),
            (
                "another key's signature",
                Box::new(|signed| sign_object(&other, &response(object_hash(signed), true, 0))),
                is_fault,
            ),
            ("no object at all", Box::new(|_| vec![0; 30]), |error| {
                matches!(error, DialError::Rejected(ErrorCode::ObjectTooShort) | DialError::Fault(_))
            }),
            (
                "no, for a reason",
                Box::new(|signed| sign_object(&destination, &response(object_hash(signed), false, 306))),
                |error| matches!(error, DialError::Rejected(ErrorCode::NoListener)),
            ),
            (
                "yes, without a handshake",
                Box::new(|signed| sign_object(&destination, &response(object_hash(signed), true, 0))),
                |error| matches!(error, DialError::Fault(PeerFault::Handshake(_))),
            ),
        ];
        for (name, answer, expected) in cases {
            let (dialled, ()) = tokio::join!(client.dial(address), answer_dial(&mut server, answer));
            let error = dialled.unwrap_err();
            assert!(expected(&error), "{name}: {error:?}");
            let (reset, _) = server.hear().await;
            assert!(reset.flags.contains(Flags::RST), "{name}: {reset:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_bad_stream_costs_only_that_stream() {
    within(async {
        let (client, mut server) = connect(|config| config.dial_limit = Duration::from_secs(3)).await;
        let mut listener = client.listen(80).unwrap();
        let (peer, me) = (stranger(), client.public_key());
        let no_listener = request(&peer, me, 81);
        let not_me = request(&peer, stranger().public_key(), 80);
        let mut bad_signature = request(&peer, me, 80);
        bad_signature[10] ^= 1;
        let sealed: Vec<Vec<u8>> = vec![
            server.seal(&no_listener),
            server.seal(&not_me),
            server.seal(&bad_signature),
            server.seal(b"no object"),
            [0, 5].into_iter().chain([1; 5]).collect(),
            vec![0, 0],
            // Announced and never completed: the limit ends it.
            vec![0xff, 0xff, 1, 2, 3],
        ];
        for (index, bytes) in sealed.iter().enumerate() {
            let stream = 2 + 2 * u32::try_from(index).unwrap();
            server.open(stream, bytes).await;
            let (reset, _) = server.hear_beyond_ack().await;
            assert_eq!((reset.stream, reset.flags), (stream, Flags::RST), "case {index}");
        }
        // A repeated packet is refused as well: each number counts once (dmsg-wire 2.7).
        let good = server.seal(&request(&peer, me, 80));
        server.open(20, &good).await;
        let (answer, _) = server.hear_beyond_ack().await;
        assert_eq!((answer.stream, answer.kind), (20, Kind::Data));
        assert_eq!(listener.accept().await.unwrap().peer_address().key, peer.public_key());
        server.open(22, &good).await;
        loop {
            let (header, _) = server.hear_beyond_ack().await;
            if header.stream == 22 {
                assert_eq!(header.flags, Flags::RST);
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn data_right_behind_the_response_is_not_lost() {
    within(async {
        let (client, mut server) = connect(|_| {}).await;
        let destination = stranger();
        let address = Address { key: destination.public_key(), port: 80 };
        let dial = client.dial(address);
        let serve = async {
            let (syn, _) = server.hear().await;
            let (_, sealed) = server.hear().await;
            let signed = server.open_object(&sealed);
            let request = object::open_request(&signed).unwrap();
            let mut handshake = Handshake::new(
                Pattern::Kk,
                Role::Responder,
                &destination,
                request.source.key.as_ref(),
                Hybrid::Off,
                &mut OsEntropy,
            )
            .unwrap();
            handshake.read_message(&request.noise_message).unwrap();
            let mut noise_message = Vec::new();
            handshake.write_message(&mut noise_message).unwrap();
            let response = StreamResponse {
                request_hash: object_hash(&signed),
                accepted: true,
                noise_message,
                ..Default::default()
            };
            let outcome = handshake.finish().unwrap();
            let mut bytes = server.seal(&sign_object(&destination, &response.encode(Generation::Go2026)));
            let mut writer = ringwire_proto::frame::StreamWriter::<ringwire_proto::aead::RustCryptoAead>::new(
                &outcome.send,
            );
            writer.write(b"at once", &mut bytes);
            server.say_data(syn.stream, &bytes).await;
            // Then the end inside a frame.
            server.say_data(syn.stream, &[0, 40, 1]).await;
            server.say(Header::window_update(syn.stream, 0).with_flags(Flags::FIN), &[]).await;
            server
        };
        let (stream, _server) = tokio::join!(dial, serve);
        let mut stream = stream.unwrap();
        let mut heard = [0; 7];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"at once");
        let error = stream.read_u8().await.unwrap_err();
        assert!(error.to_string().contains("inside a frame"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_breaks_the_multiplexer_is_left_with_its_reason() {
    within(async {
        type Case = (Vec<u8>, fn(&Disconnected) -> bool);
        let cases: [Case; 5] = [
            (vec![9; 12], |reason| matches!(reason, Disconnected::Fault(PeerFault::Multiplexer(_)))),
            (Header::go_away(2).encode().to_vec(), |reason| matches!(reason, Disconnected::GoAway(2))),
            (
                [
                    Header::window_update(2, 0).with_flags(Flags::SYN).encode(),
                    Header::data(2, 262_145).encode(),
                ]
                .concat(),
                |reason| matches!(reason, Disconnected::Fault(PeerFault::Multiplexer(_))),
            ),
            (Vec::new(), |reason| matches!(reason, Disconnected::Unheard)),
            (Header::ping(1).encode().to_vec(), |reason| matches!(reason, Disconnected::ByServer)),
        ];
        for (bytes, expected) in cases {
            let (client, mut server) = connect(|_| {}).await;
            let waiting = client.clone();
            let ping = tokio::spawn(async move { waiting.ping().await });
            // The ping's stream is open before the fault.
            server.hear().await;
            if bytes.is_empty() {
                drop(server);
            } else {
                tokio::io::AsyncWriteExt::write_all(&mut server.socket, &bytes).await.unwrap();
                if bytes == Header::ping(1).encode() {
                    // Its answer shows that it was heard.
                    while server.hear().await.0.kind != Kind::Ping {}
                    drop(server);
                }
            }
            let reason = client.closed().await;
            assert!(expected(&reason), "{reason:?}");
            assert!(matches!(ping.await.unwrap(), Err(PingError::Disconnected(_))));
        }
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_streams_and_pings_is_bounded_and_survived() {
    within(async {
        let (client, mut server) = connect(|_| {}).await;
        // More streams than may be in work at once, each silent: the excess is reset, the session lives.
        for stream in 0..3000_u32 {
            server.say(Header::window_update(2 + 2 * stream, 0).with_flags(Flags::SYN), &[]).await;
        }
        for value in 0..500 {
            server.say(Header::ping(value), &[]).await;
        }
        let (mut acks, mut resets, mut pongs) = (0, 0, 0);
        while pongs < 500 {
            let (header, _) = server.hear().await;
            acks += u32::from(header.flags.contains(Flags::ACK) && header.kind == Kind::WindowUpdate);
            resets += u32::from(header.flags.contains(Flags::RST));
            pongs += u32::from(header.kind == Kind::Ping);
        }
        while resets < 3000 - 256 {
            let (header, _) = server.hear().await;
            resets += u32::from(header.flags.contains(Flags::RST));
        }
        assert!(acks <= 3000);
        let ping = tokio::spawn(async move { client.ping().await });
        let stream = loop {
            let (header, payload) = server.hear().await;
            if payload == [0, 0] {
                break header.stream;
            }
        };
        server.say_data(stream, &[0, 0]).await;
        ping.await.unwrap().unwrap();
    })
    .await;
}
