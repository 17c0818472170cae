//! The dmsg client against the real server, over TCP on the loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use common::{address, config, connect, pair, server, server_with, session, within};
use ringwire::dmsg::{
    ConnectError, DialError, Disconnected, ListenError, ServerAddress, Session, SessionConfig, StreamError,
};
use ringwire_dataplane::DriverChoice;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::{Address, SecretKey};
use ringwire_proto::noise::Hybrid;
use ringwire_proto::object::Generation;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Bytes that differ from place to place.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 56) as u8
    })
    .take(length)
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn megabytes_come_back_as_they_went() {
    within(async {
        for (driver, go_frames) in [
            (DriverChoice::Auto, false),
            (DriverChoice::Auto, true),
            (DriverChoice::Poll, false),
            (DriverChoice::Poll, true),
        ] {
            let server = server_with(Hybrid::Offer, driver);
            let dialler = connect(SessionConfig { go_frames, go_writes: go_frames, ..config(&server) }).await;
            let destination =
                connect(SessionConfig { go_frames, go_writes: go_frames, ..config(&server) }).await;
            let mut listener = destination.listen(80).unwrap();
            let mut tasks = Vec::new();
            for seed in 0..3 {
                let (mut dialled, accepted) = pair(&dialler, &destination, &mut listener).await;
                assert_eq!(accepted.peer_address(), dialled.local_address());
                assert_eq!(dialled.peer_address(), accepted.local_address());
                assert_eq!(dialled.local_address().port, 49153 + seed as u16);
                tasks.push(tokio::spawn(async move {
                    let (mut reader, mut writer) = tokio::io::split(accepted);
                    tokio::io::copy(&mut reader, &mut writer).await.unwrap();
                }));
                tasks.push(tokio::spawn(async move {
                    let sent = pattern(4 << 20, seed);
                    let (mut reader, mut writer) = tokio::io::split(&mut dialled);
                    let write = async {
                        for (index, part) in sent.chunks(70_001).enumerate() {
                            writer.write_all(part).await.unwrap();
                            if index % 7 == 0 {
                                writer.flush().await.unwrap();
                            }
                        }
                    };
                    let mut back = vec![0; sent.len()];
                    let read = async { reader.read_exact(&mut back).await.unwrap() };
                    tokio::join!(write, read);
                    assert!(back == sent, "stream {seed} changed on its way");
                    dialled.shutdown().await.unwrap();
                }));
            }
            for task in tasks {
                task.await.unwrap();
            }
            dialler.close().await;
            destination.close().await;
            server.stop().unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn requests_of_both_generations_are_understood() {
    within(async {
        let server = server(Hybrid::Offer);
        let destination = session(&server).await;
        let mut listener = destination.listen(7).unwrap();
        for generation in [Generation::Go2024, Generation::Go2026] {
            let dialler = connect(SessionConfig { generation, ..config(&server) }).await;
            let (mut dialled, mut accepted) = pair(&dialler, &destination, &mut listener).await;
            // Either side may speak first (dmsg-wire 10.2).
            accepted.write_all(b"hello").await.unwrap();
            let mut heard = [0; 5];
            dialled.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"hello");
        }
    })
    .await;
}

#[tokio::test]
async fn an_absent_destination_is_refused_promptly() {
    within(async {
        let server = server(Hybrid::Offer);
        let dialler = session(&server).await;
        let stranger = SecretKey::generate(&mut OsEntropy).public_key();
        let mut took = Vec::new();
        // One of five, so that a machine's pause is not taken for a time-out.
        while took.iter().all(|took| *took >= Duration::from_secs(2)) {
            assert!(took.len() < 5, "{took:?}");
            let started = Instant::now();
            let error = dialler.dial(Address { key: stranger, port: 80 }).await.unwrap_err();
            took.push(started.elapsed());
            assert!(matches!(error, DialError::Unreachable(address) if address.key == stranger), "{error}");
            assert!(error.to_string().contains("same server"), "{error}");
        }

        // A key that is there, a port where nobody listens: the destination refuses.
        let destination = session(&server).await;
        let nobody = Address { key: destination.public_key(), port: 80 };
        let error = dialler.dial(nobody).await.unwrap_err();
        assert!(matches!(error, DialError::Unreachable(_)), "{error}");
        let zero = Address { key: destination.public_key(), port: 0 };
        assert!(matches!(dialler.dial(zero).await, Err(DialError::PortZero)));
        // And none of it cost the session.
        dialler.ping().await.unwrap();
        destination.ping().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_dial_that_is_dropped_leaves_nothing_behind() {
    within(async {
        let server = server(Hybrid::Offer);
        let (dialler, destination) = (session(&server).await, session(&server).await);
        let mut listener = destination.listen(80).unwrap();
        let address = Address { key: destination.public_key(), port: 80 };
        for wait_us in (0..40).map(|step| step * 50) {
            tokio::time::timeout(Duration::from_micros(wait_us), dialler.dial(address)).await.ok();
        }
        // Streams that were accepted all the same have ended; the next one works.
        let mut dialled = dialler.dial(address).await.unwrap();
        let mut accepted = loop {
            let accepted = listener.accept().await.unwrap();
            if accepted.peer_address() == dialled.local_address() {
                break accepted;
            }
        };
        dialled.write_all(b"x").await.unwrap();
        assert_eq!(accepted.read_u8().await.unwrap(), b'x');
    })
    .await;
}

#[tokio::test]
async fn a_port_has_one_listener_and_a_bounded_queue() {
    within(async {
        let server = server(Hybrid::Offer);
        let dialler = session(&server).await;
        let destination = connect(SessionConfig { listener_queue: 2, ..config(&server) }).await;
        let mut listener = destination.listen(80).unwrap();
        let error = destination.listen(80).unwrap_err();
        assert!(matches!(error, ListenError::PortInUse { port: 80 }), "{error}");
        assert!(error.to_string().contains("400"), "{error}");
        assert!(matches!(destination.listen(0), Err(ListenError::PortZero)));

        let address = Address { key: destination.public_key(), port: 80 };
        let first = dialler.dial(address).await.unwrap();
        let _second = dialler.dial(address).await.unwrap();
        let third = dialler.dial(address).await.unwrap_err();
        assert!(matches!(third, DialError::Unreachable(_)), "{third}");
        assert_eq!(listener.accept().await.unwrap().peer_address(), first.local_address());
        let _third = dialler.dial(address).await.unwrap();

        drop(listener);
        assert!(dialler.dial(address).await.is_err());
        drop(destination.listen(80).unwrap());
    })
    .await;
}

#[tokio::test]
async fn the_end_of_a_stream_is_an_end_and_not_an_error() {
    within(async {
        let server = server(Hybrid::Offer);
        let (dialler, destination) = (session(&server).await, session(&server).await);
        let mut listener = destination.listen(80).unwrap();
        // By shutdown, and by drop right after the write.
        for by_drop in [false, true] {
            let (mut dialled, mut accepted) = pair(&dialler, &destination, &mut listener).await;
            let sent = pattern(300_000, 9);
            let reader = tokio::spawn(async move {
                let mut heard = Vec::new();
                accepted.read_to_end(&mut heard).await.map(|_| heard)
            });
            dialled.write_all(&sent).await.unwrap();
            if by_drop {
                drop(dialled);
            } else {
                dialled.shutdown().await.unwrap();
                let error = dialled.write_all(b"more").await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            }
            assert!(reader.await.unwrap().unwrap() == sent);
        }
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_its_own_writer_only() {
    within(async {
        let server = server(Hybrid::Offer);
        let (dialler, destination) = (session(&server).await, session(&server).await);
        let mut listener = destination.listen(80).unwrap();
        let (mut stuck, mut unread) = pair(&dialler, &destination, &mut listener).await;
        let chunk = vec![7; 64 * 1024];
        let mut written = 0;
        while tokio::time::timeout(Duration::from_millis(500), stuck.write_all(&chunk)).await.is_ok() {
            written += chunk.len();
            assert!(written < 64 << 20, "nothing ever pushes back");
        }
        let (mut free, mut read) = pair(&dialler, &destination, &mut listener).await;
        free.write_all(b"passes").await.unwrap();
        let mut heard = [0; 6];
        read.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"passes");
        // And the stuck one goes on where it was.
        let mut first = vec![0; written];
        unread.read_exact(&mut first).await.unwrap();
        assert!(first.iter().all(|byte| *byte == 7));
    })
    .await;
}

#[tokio::test]
async fn hybrid_settings_meet() {
    within(async {
        let settings = [Hybrid::Off, Hybrid::Offer, Hybrid::Require];
        for of_server in settings {
            let server = server(of_server);
            for of_client in settings {
                let classical = of_server == Hybrid::Off || of_client == Hybrid::Off;
                let required = of_server == Hybrid::Require || of_client == Hybrid::Require;
                let case = format!("server {of_server:?}, client {of_client:?}");
                let connected =
                    Session::connect(SessionConfig { hybrid: of_client, ..config(&server) }).await;
                if !(classical && required) {
                    let client = connected.expect(&case);
                    assert_eq!(client.is_hybrid(), !classical, "{case}");
                    client.ping().await.expect(&case);
                } else if of_client == Hybrid::Require {
                    assert!(matches!(connected, Err(ConnectError::NotHybrid { .. })), "{case}");
                } else {
                    // The server refuses behind a handshake that is done for the client, or within it.
                    if let Ok(client) = connected {
                        client.closed().await;
                    }
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn streams_have_a_hybrid_of_their_own() {
    within(async {
        let server = server(Hybrid::Offer);
        let with = async |hybrid| connect(SessionConfig { hybrid, ..config(&server) }).await;
        let (off, offer, require) =
            (with(Hybrid::Off).await, with(Hybrid::Offer).await, with(Hybrid::Require).await);
        let mut at_offer = offer.listen(80).unwrap();
        let (stream, _accepted) = pair(&require, &offer, &mut at_offer).await;
        assert!(stream.is_hybrid());
        let (stream, accepted) = pair(&off, &offer, &mut at_offer).await;
        assert!(!stream.is_hybrid() && !accepted.is_hybrid());
        let _at_off = off.listen(80).unwrap();
        let error = require.dial(Address { key: off.public_key(), port: 80 }).await.unwrap_err();
        assert!(matches!(error, DialError::NotHybrid(_)), "{error}");
    })
    .await;
}

#[tokio::test]
async fn the_end_of_the_server_reaches_everybody() {
    within(async {
        let server = server(Hybrid::Offer);
        let (dialler, destination) = (session(&server).await, session(&server).await);
        let mut listener = destination.listen(80).unwrap();
        let (mut dialled, mut accepted) = pair(&dialler, &destination, &mut listener).await;
        let reader = tokio::spawn(async move { accepted.read_u8().await });
        server.stop().unwrap();
        let error = reader.await.unwrap().unwrap_err();
        let disconnected = matches!(
            error.get_ref().and_then(|error| error.downcast_ref()),
            Some(StreamError::Disconnected(_) | StreamError::Reset)
        );
        assert!(disconnected || error.kind() == ErrorKind::UnexpectedEof, "{error:?}");
        let reason = dialler.closed().await;
        assert!(matches!(reason, Disconnected::ByServer | Disconnected::Io(_)), "{reason}");
        assert!(listener.accept().await.is_err());
        assert!(dialled.write_all(b"x").await.is_err());
        assert!(matches!(
            dialler.dial(Address { key: destination.public_key(), port: 80 }).await,
            Err(DialError::Disconnected(_))
        ));
        assert!(matches!(dialler.listen(81), Err(ListenError::Disconnected(_))));
    })
    .await;
}

#[tokio::test]
async fn two_sessions_of_one_key_that_live_both_stay_and_the_first_is_dialled() {
    within(async {
        let server = server(Hybrid::Offer);
        let config = config(&server);
        let first = Session::connect(config.clone()).await.unwrap();
        first.ping().await.unwrap();
        let second = Session::connect(config).await.unwrap();
        second.ping().await.unwrap();
        let dialler = session(&server).await;
        let destination = Address { key: first.public_key(), port: 80 };
        let (mut at_first, mut at_second) = (first.listen(80).unwrap(), second.listen(80).unwrap());
        for _ in 0..24 {
            let (dialled, accepted) = tokio::join!(dialler.dial(destination), at_first.accept());
            dialled.unwrap();
            accepted.unwrap();
        }
        // It leaves, and the other one is dialled.
        drop(at_first);
        first.close().await;
        loop {
            // A dial may come before the end of the first one is known.
            let dialled = tokio::time::timeout(Duration::from_secs(5), dialler.dial(destination)).await;
            if let Ok(Ok(_)) = dialled {
                break;
            }
        }
        at_second.accept().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_connection_lives_as_long_as_something_uses_it() {
    within(async {
        let server = server(Hybrid::Offer);
        let (dialler, destination) = (session(&server).await, session(&server).await);
        let mut listener = destination.listen(80).unwrap();
        let (mut dialled, mut accepted) = pair(&dialler, &destination, &mut listener).await;
        drop(dialler);
        drop(destination);
        drop(listener);
        dialled.write_all(b"still here").await.unwrap();
        let mut heard = [0; 10];
        accepted.read_exact(&mut heard).await.unwrap();
        drop(dialled);
        assert_eq!(accepted.read(&mut heard).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn the_server_says_where_a_session_comes_from() {
    within(async {
        let server = server(Hybrid::Offer);
        let session = session(&server).await;
        assert!(session.observed_ip().await.unwrap().is_loopback());
        let asked = server.counters().value(ringwire_dataplane::counters::Counter::IpRequests);
        assert_eq!(asked, 1);
        session.ping().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_server_that_requires_the_post_quantum_part_is_told_from_one_with_another_key() {
    within(async {
        let server = server(Hybrid::Require);
        let mut classical = config(&server);
        classical.hybrid = Hybrid::Off;
        let error = Session::connect(classical).await.unwrap_err();
        assert!(matches!(error, ConnectError::HybridWanted { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("requires") && text.contains("hybrid offer") && !text.contains("key"),
            "{text}"
        );
        // To find it out made no session.
        let opened = server.counters().value(ringwire_dataplane::counters::Counter::SessionsOpened);
        assert_eq!(opened, 0);
        // Another key is refused in the same way, and is the cause there.
        let mut wrong = config(&server);
        wrong.hybrid = Hybrid::Off;
        wrong.server.key = wrong.secret_key.public_key();
        let error = Session::connect(wrong).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("key"), "{error}");
        session(&server).await.ping().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn wrong_servers_are_named() {
    within(async {
        let server = server(Hybrid::Offer);
        let secret_key = SecretKey::generate(&mut OsEntropy);
        // Another key than the one that answers.
        let wrong = ServerAddress { key: secret_key.public_key(), ..address(&server) };
        let error = Session::connect(SessionConfig::new(secret_key.clone(), wrong)).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused { .. } | ConnectError::Fault { .. }), "{error}");
        // Nobody there.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let nobody = ServerAddress { key: server.public_key(), address: free.to_string() };
        let error = Session::connect(SessionConfig::new(secret_key.clone(), nobody)).await.unwrap_err();
        assert!(matches!(error, ConnectError::Connect { .. }), "{error}");
        // Something else there.
        let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http =
            ServerAddress { key: server.public_key(), address: other.local_addr().unwrap().to_string() };
        let answer = tokio::spawn(async move {
            let (mut socket, _) = other.accept().await.unwrap();
            socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            socket
        });
        let error = Session::connect(SessionConfig::new(secret_key, http)).await.unwrap_err();
        assert!(matches!(error, ConnectError::Fault { .. }), "{error}");
        answer.await.unwrap();
    })
    .await;
}
