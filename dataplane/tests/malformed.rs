//! Malformed input on established sessions, every kind, on real sockets: each moves its counter and costs the stream or the
//! session it came on, as the table says, while an honest transfer beside it notices nothing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringwire_dataplane::Server;
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::object::{Generation, StreamRequest, StreamResponse, object_hash, sign_object};
use ringwire_proto::smux::{self, Version};
use ringwire_proto::yamux::{Flags, Header};
use support::drivers::on_each_driver;
use support::{LIMIT, Peer, bridge, pattern, start_server};
use tracing::Level;

on_each_driver!(
    frames_of_yamux,
    frames_of_smux,
    requests,
    responses,
    more_than_the_credit_of_a_bridge,
    answers_that_nobody_reads,
    lines_in_the_log_have_their_level_and_their_limit,
);

/// What a malformed input costs whoever sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Costs {
    Nothing,
    /// The stream it named last; the session goes on.
    Stream,
    Session,
    /// Likewise, with a go-away that says why.
    SessionWithGoAway,
}

/// An honest transfer through the same worker, verified byte by byte, until it is told to stop.
struct Honest {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Honest {
    fn start(server: &Server) -> Self {
        let (mut a, mut b) = (Peer::connect(server), Peer::connect_smux(server, Version::V2));
        b.settle();
        let (on_a, on_b) = bridge(&mut a, &mut b);
        let (rounds, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (rounds, stop) = (rounds.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = rounds.load(Ordering::Relaxed);
                    let bytes = pattern(seed, 0, 30_000);
                    a.write(on_a, &bytes);
                    assert!(b.read_exact(on_b, bytes.len()) == bytes, "round {seed}");
                    b.write(on_b, &bytes[..100]);
                    assert!(a.read_exact(on_a, 100) == bytes[..100], "round {seed}");
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { rounds, stop, thread }
    }

    /// Waits until two rounds began and ended after this moment.
    fn goes_on(&self, beside: &str) {
        let deadline = Instant::now() + LIMIT;
        let before = self.rounds.load(Ordering::Relaxed);
        while self.rounds.load(Ordering::Relaxed) < before + 2 {
            assert!(!self.thread.is_finished(), "the honest transfer failed beside: {beside}");
            assert!(Instant::now() < deadline, "the honest transfer stalls beside: {beside}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// The counters of which each row of a table moves one, and which nothing else here moves.
const WATCHED: [Counter; 19] = [
    Counter::SessionViolations,
    Counter::ViolationsFirstByte,
    Counter::ViolationsHeader,
    Counter::ViolationsCredit,
    Counter::ViolationsStream,
    Counter::ViolationsExcess,
    Counter::GoAwaysReceived,
    Counter::StreamsOverCredit,
    Counter::StreamsOverCount,
    Counter::FramesUnknown,
    Counter::ObjectsShort,
    Counter::ObjectsTruncated,
    Counter::ObjectsReplayed,
    Counter::ObjectsForged,
    Counter::ObjectsGob,
    Counter::ObjectsSignature,
    Counter::ObjectsInvalid,
    Counter::RefusedSource,
    Counter::StreamsTimedOut,
];

fn watched(server: &Server) -> Vec<u64> {
    let counters = server.counters();
    WATCHED.iter().map(|&counter| counters.value(counter)).collect()
}

/// Exactly the counters that were named moved, by one.
fn expect_moved(server: &Server, before: &[u64], moved: &[Counter], what: &str) {
    let expected: Vec<u64> = WATCHED
        .iter()
        .zip(before)
        .map(|(counter, value)| value + moved.iter().filter(|moved| *moved == counter).count() as u64)
        .collect();
    let deadline = Instant::now() + LIMIT;
    while watched(server) != expected {
        if Instant::now() >= deadline {
            let found = watched(server);
            let wrong: Vec<_> = (0..WATCHED.len())
                .filter(|&at| found[at] != expected[at])
                .map(|at| (WATCHED[at].name(), found[at] - before[at], expected[at] - before[at]))
                .collect();
            panic!("{what}: (counter, moved by, instead of) {wrong:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Everything the server says until it closes the connection.
fn read_to_end(peer: &Peer) -> Vec<u8> {
    let mut said = Vec::new();
    let mut socket = peer.socket.try_clone().unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    // A reset is an end, too: what was sent to a closed connection causes one.
    let _ = std::io::Read::read_to_end(&mut socket, &mut said);
    said
}

fn syn(id: u32) -> Vec<u8> {
    Header::window_update(id, 0).with_flags(Flags::SYN).encode().to_vec()
}

fn fin(id: u32) -> Vec<u8> {
    Header::window_update(id, 0).with_flags(Flags::FIN).encode().to_vec()
}

/// What it is, the bytes, what they cost, and the counters that move.
type Row = (&'static str, Vec<u8>, Costs, &'static [Counter]);

fn frames_of_yamux() {
    use Costs::{Nothing, Session, SessionWithGoAway};
    let over = [syn(1), Header::data(1, 262_145).encode().to_vec()].concat();
    let unknown_data = [Header::data(77, 5).encode().to_vec(), b"hello".to_vec()].concat();
    let reset = Header::window_update(77, 0).with_flags(Flags::RST).encode().to_vec();
    let rows: [Row; 16] = [
        ("a first byte of no multiplexer", vec![9; 12], Session, &[Counter::ViolationsFirstByte]),
        ("one first byte of no multiplexer", vec![0x16], Session, &[Counter::ViolationsFirstByte]),
        (
            "another version",
            [&Header::ping(1).encode()[..], &[1; 12]].concat(),
            Session,
            &[Counter::ViolationsHeader],
        ),
        ("an unknown frame type", [&[0, 4][..], &[0; 10]].concat(), Session, &[Counter::ViolationsHeader]),
        ("more than the credit", over, SessionWithGoAway, &[Counter::ViolationsCredit]),
        (
            "more than any credit",
            [syn(1), Header::data(1, u32::MAX).encode().to_vec()].concat(),
            SessionWithGoAway,
            &[Counter::ViolationsCredit],
        ),
        ("stream number 0", syn(0), SessionWithGoAway, &[Counter::ViolationsStream]),
        ("a stream opened twice", [syn(1), syn(1)].concat(), SessionWithGoAway, &[Counter::ViolationsStream]),
        (
            "a stream finished twice",
            [syn(1), fin(1), fin(1)].concat(),
            SessionWithGoAway,
            &[Counter::ViolationsStream],
        ),
        (
            "a go-away for a protocol error",
            Header::go_away(1).encode().to_vec(),
            Session,
            &[Counter::GoAwaysReceived],
        ),
        (
            "a go-away of an unknown code",
            Header::go_away(99).encode().to_vec(),
            Session,
            &[Counter::GoAwaysReceived],
        ),
        ("data for an unknown stream", unknown_data, Nothing, &[Counter::FramesUnknown]),
        ("credit for an unknown stream", Header::window_update(77, 9).encode().to_vec(), Nothing, &[]),
        ("the end of an unknown stream", [fin(77), reset].concat(), Nothing, &[]),
        ("an answer to no ping", Header::pong(123).encode().to_vec(), Nothing, &[]),
        (
            "more credit than can be counted",
            {
                let update = Header::window_update(1, u32::MAX).encode().to_vec();
                [
                    syn(1),
                    update.clone(),
                    update,
                    Header::window_update(1, 0).with_flags(Flags::RST).encode().to_vec(),
                ]
                .concat()
            },
            Nothing,
            &[],
        ),
    ];
    let server = start_server();
    let honest = Honest::start(&server);
    for (what, bytes, costs, moved) in rows {
        let before = watched(&server);
        let mut peer = Peer::connect(&server);
        peer.socket.write_all(&bytes).unwrap();
        let mut moved = moved.to_vec();
        match costs {
            Nothing | Costs::Stream => peer.settle_on(99),
            Session | SessionWithGoAway => {
                let said = read_to_end(&peer);
                let ends_so = said.ends_with(&Header::go_away(1).encode());
                assert_eq!(ends_so, costs == SessionWithGoAway, "{what}: {said:02x?}");
                if !moved.contains(&Counter::GoAwaysReceived) {
                    moved.push(Counter::SessionViolations);
                }
            }
        }
        expect_moved(&server, &before, &moved, what);
        honest.goes_on(what);
    }
    honest.stop();
}

fn frames_of_smux() {
    use Costs::{Nothing, Session, Stream};
    let push = |version, id, len: usize| {
        [&smux::Header::push(version, id, len as u16).encode()[..], &vec![0xff; len]].concat()
    };
    let update = |id, consumed| {
        let update = smux::Update { consumed, window: 65_536 };
        [smux::Header::update(id).encode(), update.encode()].concat()
    };
    let syn = |version| smux::Header::syn(version, 3).encode().to_vec();
    let (v1, v2) = (Version::V1, Version::V2);
    let nop = smux::Header::nop(v2).encode();
    let cut: &[Counter] = &[Counter::ViolationsHeader];
    let unknown: &[Counter] = &[Counter::FramesUnknown];
    let fin = |id| smux::Header::fin(v2, id).encode().to_vec();
    let rows: [(Version, Row); 15] = [
        (v2, ("another version", [&nop[..], &[1, 3, 0, 0, 0, 0, 0, 0]].concat(), Session, cut)),
        (v2, ("yamux behind smux", [&nop[..], &Header::ping(1).encode()].concat(), Session, cut)),
        (v2, ("an unknown command", vec![2, 5, 0, 0, 3, 0, 0, 0], Session, cut)),
        (v1, ("an update in version 1", vec![1, 4, 8, 0, 3, 0, 0, 0], Session, cut)),
        (v2, ("an update of 7 bytes", vec![2, 4, 7, 0, 3, 0, 0, 0], Session, cut)),
        (v2, ("a SYN with a length", vec![2, 0, 1, 0, 3, 0, 0, 0], Session, cut)),
        (v1, ("a FIN with a length", vec![1, 1, 1, 0, 3, 0, 0, 0], Session, cut)),
        (v2, ("a NOP with a length", vec![2, 3, 0, 1, 0, 0, 0, 0], Session, cut)),
        (
            v2,
            (
                "reading what was never sent",
                [syn(v2), update(3, 9)].concat(),
                Stream,
                &[Counter::StreamsOverCount],
            ),
        ),
        (v2, ("data for an unknown stream", push(v2, 77, 9), Nothing, unknown)),
        (v1, ("data for an unknown stream, version 1", push(v1, 77, 9), Nothing, unknown)),
        (v2, ("an update for an unknown stream", update(77, 1 << 31), Nothing, &[])),
        (v2, ("the end of an unknown stream", fin(77), Nothing, &[])),
        (v2, ("a stream opened twice", [syn(v2), syn(v2), fin(3)].concat(), Stream, &[])),
        (v2, ("a stream finished twice", [syn(v2), fin(3), fin(3)].concat(), Stream, &[])),
    ];
    let server = start_server();
    let honest = Honest::start(&server);
    for (version, (what, bytes, costs, moved)) in rows {
        let before = watched(&server);
        let mut peer = Peer::connect_smux(&server, version);
        peer.socket.write_all(&bytes).unwrap();
        let mut moved = moved.to_vec();
        match costs {
            Nothing => peer.settle_on(99),
            Stream => {
                peer.expect_raw(&smux::Header::fin(version, 3).encode());
                peer.settle_on(99);
            }
            Session | Costs::SessionWithGoAway => {
                read_to_end(&peer);
                moved.push(Counter::SessionViolations);
            }
        }
        expect_moved(&server, &before, &moved, what);
        honest.goes_on(what);
    }
    honest.stop();
}

/// What stands where a request is due: given a session, its destination and a request that is good.
type Forge = fn(&mut Peer, &Peer, StreamRequest) -> Vec<u8>;

fn requests() {
    let rows: [(&str, Forge, &[Counter]); 15] = [
        ("a packet of 5 bytes", |_, _, _| vec![0, 5, 1, 2, 3, 4, 5], &[Counter::ObjectsShort]),
        (
            "a packet of 24 bytes without a tag",
            |_, _, _| [&[0, 24][..], &[0, 0, 0, 0, 0, 0, 0, 1], &[7; 16]].concat(),
            &[Counter::ObjectsForged],
        ),
        (
            "a tag that is off by a bit",
            |peer, _, request| {
                let signed = peer.sign(&request);
                let mut packet = peer.seal(&signed);
                *packet.last_mut().unwrap() ^= 1;
                packet
            },
            &[Counter::ObjectsForged],
        ),
        (
            "another packet's length",
            |peer, _, request| {
                let signed = peer.sign(&request);
                let mut packet = peer.seal(&signed);
                packet[1] -= 1;
                packet.pop();
                packet
            },
            &[Counter::ObjectsForged],
        ),
        (
            "packet number 0",
            |peer, _, request| {
                let signed = peer.sign(&request);
                let mut packet = peer.seal(&signed);
                packet[2..10].fill(0);
                packet
            },
            &[Counter::ObjectsReplayed],
        ),
        ("an object without gob", |peer, _, _| peer.seal(&[5; 65]), &[Counter::ObjectsShort]),
        ("an empty object", |peer, _, _| peer.seal(&[]), &[Counter::ObjectsShort]),
        (
            "no gob at all",
            |peer, _, _| {
                let signed = sign_object(&peer.secret, b"\xff\xff\xff\xff");
                peer.seal(&signed)
            },
            &[Counter::ObjectsGob],
        ),
        (
            "half a gob",
            |peer, _, request| {
                let gob = request.encode(Generation::Go2026);
                let signed = sign_object(&peer.secret, &gob[..gob.len() / 2]);
                peer.seal(&signed)
            },
            &[Counter::ObjectsGob],
        ),
        (
            "a gob of another type",
            |peer, _, _| {
                let gob =
                    StreamResponse { accepted: true, ..StreamResponse::default() }.encode(Generation::Go2026);
                let signed = sign_object(&peer.secret, &gob);
                peer.seal(&signed)
            },
            &[Counter::ObjectsInvalid],
        ),
        (
            "no port",
            |peer, _, mut request| {
                request.destination.port = 0;
                let signed = peer.sign(&request);
                peer.seal(&signed)
            },
            &[Counter::ObjectsInvalid],
        ),
        (
            "no time",
            |peer, _, mut request| {
                request.timestamp_ns = 0;
                let signed = peer.sign(&request);
                peer.seal(&signed)
            },
            &[Counter::ObjectsInvalid],
        ),
        (
            "another's signature",
            |peer, other, request| {
                let signed = other.sign(&request);
                peer.seal(&signed)
            },
            &[Counter::ObjectsSignature],
        ),
        // Relayed requests are refused until there are peers to relay them (dmsg-wire 11.4).
        (
            "another's request",
            |peer, other, _| {
                let signed = other.sign(&other.request(peer.key));
                peer.seal(&signed)
            },
            &[Counter::RefusedSource],
        ),
        (
            "another's question for its address",
            |peer, other, mut request| {
                request.source.key = Some(other.key);
                request.destination.key = Some(peer.server);
                request.ip_info = true;
                let signed = sign_object(&other.secret, &request.encode(Generation::Go2026));
                peer.seal(&signed)
            },
            &[Counter::RefusedSource],
        ),
    ];
    let server = start_server();
    let honest = Honest::start(&server);
    let mut destination = Peer::connect(&server);
    destination.settle();
    let mut sessions = Vec::new();
    for version in [None, Some(Version::V2)] {
        let mut peer = match version {
            None => Peer::connect(&server),
            Some(version) => Peer::connect_smux(&server, version),
        };
        for (what, forge, moved) in rows {
            let before = watched(&server);
            let stream = peer.open();
            let request = peer.request(destination.key);
            let bytes = forge(&mut peer, &destination, request);
            peer.write(stream, &bytes);
            assert!(peer.wait_end(stream), "{what}: closed, not reset");
            peer.finish(stream);
            expect_moved(&server, &before, moved, what);
            honest.goes_on(what);
        }

        // The very object that was good once.
        let signed = peer.sign(&peer.request(destination.key));
        let packet = peer.seal(&signed);
        let stream = peer.open();
        peer.write(stream, &packet);
        let other = destination.answer();
        destination.pump();
        peer.read_object(stream);
        let before = watched(&server);
        let again = peer.open();
        peer.write(again, &packet);
        assert!(peer.wait_end(again), "a replayed object");
        expect_moved(&server, &before, &[Counter::ObjectsReplayed], "a replayed object");
        // The first one's bridge is none the worse for it.
        peer.write(stream, b"still here");
        assert_eq!(destination.read_exact(other, 10), b"still here");

        // A length that is never reached: by the end of the stream, and by the clock.
        let before = watched(&server);
        let stream = peer.open();
        peer.write(stream, &[0xff; 40]);
        peer.finish(stream);
        assert!(peer.wait_end(stream));
        expect_moved(&server, &before, &[Counter::ObjectsTruncated], "an end within the object");
        let before = watched(&server);
        let stopped = [&[0, 40][..], &[7], &[0xff; 40]].map(|bytes| {
            let stream = peer.open();
            peer.write(stream, bytes);
            stream
        });
        for stream in stopped {
            assert!(peer.wait_end(stream));
            peer.finish(stream);
        }
        expect_moved(&server, &before, &[Counter::StreamsTimedOut; 3], "an object that stops");
        peer.settle();
        sessions.push(peer);
    }
    let counters = server.counters();
    assert_eq!(counters.value(Counter::SessionViolations), 0);
    assert_eq!(counters.value(Counter::SessionsClosed), 0, "a bad stream costs no session");
    honest.stop();
}

/// What a destination answers with, given the signed request.
type Answer = fn(&mut Peer, &[u8]) -> Vec<u8>;

fn responses() {
    fn signed(peer: &mut Peer, response: &StreamResponse) -> Vec<u8> {
        let signed = sign_object(&peer.secret, &response.encode(Generation::Go2026));
        peer.seal(&signed)
    }
    let rows: [(&str, Answer, &[Counter]); 8] = [
        ("a ping", |_, _| vec![0, 0], &[Counter::ObjectsInvalid]),
        ("a packet of 5 bytes", |_, _| vec![0, 5, 1, 2, 3, 4, 5], &[Counter::ObjectsShort]),
        ("a forged packet", |_, _| [&[0, 40][..], &[9; 40]].concat(), &[Counter::ObjectsForged]),
        (
            "no gob",
            |peer, _| {
                let signed = sign_object(&peer.secret, b"\x01\x02");
                peer.seal(&signed)
            },
            &[Counter::ObjectsGob],
        ),
        (
            "the answer to another request",
            |peer, _| signed(peer, &StreamResponse { accepted: true, ..StreamResponse::default() }),
            &[Counter::ObjectsInvalid],
        ),
        (
            "a refusal",
            |peer, request| {
                signed(
                    peer,
                    &StreamResponse { request_hash: object_hash(request), ..StreamResponse::default() },
                )
            },
            &[Counter::ObjectsInvalid],
        ),
        (
            "another's signature",
            |peer, request| {
                let response = StreamResponse {
                    request_hash: object_hash(request),
                    accepted: true,
                    ..StreamResponse::default()
                };
                let stranger = SecretKey::generate(&mut OsEntropy);
                let signed = sign_object(&stranger, &response.encode(Generation::Go2026));
                peer.seal(&signed)
            },
            &[Counter::ObjectsSignature],
        ),
        ("the request itself", |peer, request| peer.seal(request), &[Counter::ObjectsInvalid]),
    ];
    let server = start_server();
    let honest = Honest::start(&server);
    let mut sessions = Vec::new();
    for version in [None, Some(Version::V2)] {
        let (mut dialler, mut peer) = match version {
            None => (Peer::connect_smux(&server, Version::V2), Peer::connect(&server)),
            Some(version) => (Peer::connect(&server), Peer::connect_smux(&server, version)),
        };
        peer.settle();
        for (what, answer, moved) in rows {
            let before = watched(&server);
            let refused = server.counters().value(Counter::RefusedResponse);
            let stream = dialler.open();
            let request = dialler.sign(&dialler.request(peer.key));
            dialler.write_object(stream, &request);
            let other = peer.accept();
            let request = peer.read_object(other);
            let bytes = answer(&mut peer, &request);
            peer.write(other, &bytes);
            peer.pump();
            assert!(dialler.wait_end(stream), "{what}: closed, not reset");
            assert!(peer.wait_end(other), "{what}: closed, not reset");
            dialler.finish(stream);
            peer.finish(other);
            expect_moved(&server, &before, moved, what);
            assert_eq!(server.counters().value(Counter::RefusedResponse), refused + 1, "{what}");
            honest.goes_on(what);
        }
        bridge(&mut dialler, &mut peer);
        sessions.extend([dialler, peer]);
    }
    assert_eq!(server.counters().value(Counter::SessionsClosed), 0, "a bad stream costs no session");
    honest.stop();
}

fn more_than_the_credit_of_a_bridge() {
    let server = start_server();
    let honest = Honest::start(&server);
    let mut destination = Peer::connect(&server);
    destination.settle();
    // The destination reads its connection and nothing of the streams: its window and the server's fill up.
    for version in [None, Some(Version::V2)] {
        let mut peer = match version {
            None => Peer::connect(&server),
            Some(version) => Peer::connect_smux(&server, version),
        };
        let (on_peer, _) = bridge(&mut peer, &mut destination);
        let before = watched(&server);
        let header = match version {
            None => Header::data(on_peer, 60_000).encode().to_vec(),
            Some(version) => smux::Header::push(version, on_peer, 60_000).encode().to_vec(),
        };
        let frame = [header, vec![3; 60_000]].concat();
        peer.socket.set_write_timeout(Some(LIMIT)).unwrap();
        // What the destination may have under way, what the server keeps, and one more.
        for _ in 0..2 * 262_144 / 60_000 + 2 {
            if peer.socket.write_all(&frame).is_err() {
                break;
            }
        }
        match version {
            None => {
                // Unread bytes at the server turn its close into a reset, which may overtake the go-away.
                read_to_end(&peer);
                let moved = [Counter::SessionViolations, Counter::ViolationsCredit];
                expect_moved(&server, &before, &moved, "more than the credit of a bridge");
            }
            Some(version) => {
                peer.expect_raw(&smux::Header::fin(version, on_peer).encode());
                peer.settle_on(99);
                let moved = server.counters().value(Counter::StreamsOverCredit);
                assert_eq!(moved, 1, "more than the window of a bridge");
            }
        }
        honest.goes_on("more than the credit of a bridge");
    }
    // Both bridges are over at the destination, whose session is not.
    destination.settle();
    honest.stop();
}

fn answers_that_nobody_reads() {
    let server = start_server();
    let honest = Honest::start(&server);
    let before = watched(&server);
    let mut peer = Peer::connect(&server);
    socket2::SockRef::from(&peer.socket).set_recv_buffer_size(4096).unwrap();
    peer.socket.set_write_timeout(Some(LIMIT)).unwrap();
    let pings = Header::ping(1).encode().repeat(1000);
    let most = 64 << 20;
    let mut sent = 0;
    while sent < most && peer.socket.write_all(&pings).is_ok() {
        sent += pings.len();
    }
    assert!(sent < most, "the server takes any number of pings");
    expect_moved(
        &server,
        &before,
        &[Counter::SessionViolations, Counter::ViolationsExcess],
        "pings whose answers are not read",
    );
    honest.goes_on("pings whose answers are not read");
    honest.stop();
}

/// Lines of all servers of this program.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(Level, String)>>>);

impl Lines {
    fn collect() -> Self {
        static LINES: OnceLock<Lines> = OnceLock::new();
        LINES
            .get_or_init(|| {
                let lines = Self::default();
                tracing::subscriber::set_global_default(lines.clone()).unwrap();
                lines
            })
            .clone()
    }

    /// Levels of the lines about one of these peers.
    fn about(&self, peers: &[PublicKey], message: &str) -> Vec<Level> {
        let keys: Vec<String> = peers.iter().map(|key| format!("{key:?}")).collect();
        let lines = self.0.lock().unwrap();
        let about = |line: &str| line.contains(message) && keys.iter().any(|key| line.contains(key));
        lines.iter().filter(|(_, line)| about(line)).map(|(level, _)| *level).collect()
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("ringwire")
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            text.push_str(&format!("{field}={value:?} "));
        });
        self.0.lock().unwrap().push((*event.metadata().level(), text));
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// What ends a session is for information, what ends a stream for debugging; neither wakes anybody, and neither can fill a disk.
fn lines_in_the_log_have_their_level_and_their_limit() {
    let lines = Lines::collect();
    let server = start_server();
    let started = Instant::now();
    let count = 40;
    let broken: Vec<PublicKey> = (0..count)
        .map(|_| {
            let mut peer = Peer::connect(&server);
            peer.socket.write_all(&[9; 12]).unwrap();
            read_to_end(&peer);
            peer.key
        })
        .collect();
    expect_moved(
        &server,
        &[0; WATCHED.len()],
        &[vec![Counter::SessionViolations; count], vec![Counter::ViolationsFirstByte; count]].concat(),
        "first bytes",
    );
    let levels = lines.about(&broken, "session violation");
    let intervals =
        started.elapsed().as_nanos() / u128::from(ringwire_dataplane::limits::WARNING_INTERVAL_NS);
    assert!(!levels.is_empty() && levels.len() as u128 <= 1 + intervals, "{levels:?}");
    assert!(levels.iter().all(|level| *level == Level::INFO), "{levels:?}");

    let mut peer = Peer::connect_smux(&server, Version::V2);
    let stream = peer.open();
    peer.write(stream, &[0, 5, 1, 2, 3, 4, 5]);
    assert!(peer.wait_end(stream));
    let stream = peer.open();
    peer.pump();
    let update = smux::Update { consumed: 5, window: 1 };
    let frame = [smux::Header::update(stream).encode(), update.encode()].concat();
    peer.socket.write_all(&frame).unwrap();
    assert!(peer.wait_end(stream));
    for message in ["object refused", "stream violation"] {
        assert_eq!(lines.about(&[peer.key], message), [Level::DEBUG], "{message}");
    }
    let loud = lines.about(&[&broken[..], &[peer.key]].concat(), "");
    assert!(loud.iter().all(|level| *level > Level::WARN), "nobody is woken: {loud:?}");
}
