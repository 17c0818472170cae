//! Every exchange recorded from hashicorp/yamux v0.1.1 (`vectors/dmsg/yamux.json`), replayed against our sessions.
//!
//! Two of our sessions play the recorded client and server: for each step the test does what the step says and compares
//! all bytes both sides send with the recorded ones. Data frames are cut as the recorded writer did: all that the credit allows.

#![allow(clippy::expect_used, reason = "tests")]

use ringwire_proto::yamux::{
    Config, Cutter, Event, Flags, GO_AWAY_NORMAL, Header, Incoming, OpenError, Payload, Piece, Role, Session,
    Violation,
};
use serde_json::Value;

const VECTORS: &str = include_str!("vectors/dmsg/yamux.json");

fn vectors() -> Value {
    serde_json::from_str(VECTORS).expect("yamux.json is JSON")
}

/// The recorded frames of one direction in one step: (header bytes in hex, payload bytes in hex if recorded).
fn recorded(step: &Value, direction: &str) -> Vec<(String, Option<String>)> {
    let Some(frames) = step[direction].as_array() else { return Vec::new() };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    frames.iter().map(|frame| (text(&frame["header"]).expect("header"), text(&frame["payload"]))).collect()
}

/// One side of the exchange: a session, data it wants to send, and everything it sent in the current step.
struct Side {
    session: Session<u32>,
    cutter: Cutter,
    /// Bytes of each stream that wait for credit.
    unsent: Vec<(u32, u32)>,
    sent: Vec<(Header, Vec<u8>)>,
    incoming: Vec<Incoming<u32>>,
    /// Accept the next stream of the peer at once, with this tag.
    accept_as: Option<u32>,
}

impl Side {
    fn new(config: Config) -> Self {
        Self {
            session: Session::new(config, 0),
            cutter: Cutter::new(),
            unsent: Vec::new(),
            sent: Vec::new(),
            incoming: Vec::new(),
            accept_as: None,
        }
    }

    fn write(&mut self, id: u32, bytes: &[u8]) {
        let granted = self.session.reserve(id, bytes.len() as u32);
        if granted > 0 {
            self.sent.push((Header::data(id, granted), bytes[..granted as usize].to_vec()));
        }
        if (granted as usize) < bytes.len() {
            self.unsent.push((id, bytes.len() as u32 - granted));
        }
    }

    /// Drains control headers, then data that found credit.
    fn flush(&mut self) {
        while let Some(header) = self.session.poll_control() {
            self.sent.push((header, Vec::new()));
        }
        for (id, length) in std::mem::take(&mut self.unsent) {
            self.write(id, &vec![0; length as usize]);
        }
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut at = 0;
        while let Some(piece) = self.cutter.next(bytes, &mut at)? {
            if let Piece::Header { header, .. } = piece {
                let incoming = self.session.handle_header(0, &header)?;
                self.incoming.push(incoming);
                if let Some(tag) = self.accept_as.take_if(|_| incoming.opened) {
                    self.session.accept(incoming.stream, tag);
                }
            }
        }
        Ok(())
    }

    fn last(&self) -> Incoming<u32> {
        *self.incoming.last().expect("a frame arrived")
    }
}

/// Carries what both sides sent across until both are quiet, and compares it with the step's frames.
fn settle(client: &mut Side, server: &mut Side, step: &Value) {
    let (mut from_client, mut from_server) = (Vec::new(), Vec::new());
    loop {
        client.flush();
        server.flush();
        if client.sent.is_empty() && server.sent.is_empty() {
            break;
        }
        for (header, payload) in client.sent.drain(..) {
            let bytes = [&header.encode()[..], &payload].concat();
            server.receive(&bytes).expect("the recorded client keeps the rules");
            from_client.push((header, payload));
        }
        for (header, payload) in server.sent.drain(..) {
            let bytes = [&header.encode()[..], &payload].concat();
            client.receive(&bytes).expect("the recorded server keeps the rules");
            from_server.push((header, payload));
        }
    }
    for (direction, sent) in [("client_to_server", from_client), ("server_to_client", from_server)] {
        let expected = recorded(step, direction);
        let headers: Vec<String> = sent.iter().map(|(header, _)| hex::encode(header.encode())).collect();
        let wanted: Vec<&str> = expected.iter().map(|(header, _)| header.as_str()).collect();
        assert_eq!(headers, wanted, "{direction} at step {}", step["step"]);
        for ((_, payload), (_, wanted)) in sent.iter().zip(&expected) {
            if let Some(wanted) = wanted {
                assert_eq!(&hex::encode(payload), wanted, "payload {direction} at step {}", step["step"]);
            }
        }
    }
}

/// Does what the step's words say. Returns false for words this replay does not know.
fn perform(name: &str, client: &mut Side, server: &mut Side) -> bool {
    match name {
        "client opens stream (peer has not accepted yet)" => {
            assert_eq!(client.session.open(0, 10), Ok(1));
        }
        "client writes 5 bytes" => {
            assert!(server.last().opened);
            client.write(1, b"hello");
        }
        "server application accepts the stream" => {
            assert_eq!(server.last().payload, Payload::Deliver(5));
            server.session.accept(1, 20);
        }
        "server reads 5 bytes (no window update: below half)" => {
            assert!(client.last().acked);
            server.session.consumed(1, 5);
        }
        "server writes 3 bytes" => server.write(1, b"abc"),
        "client reads 3" => client.session.consumed(1, 3),
        "server opens its own stream" => assert_eq!(server.session.open(0, 21), Ok(2)),
        "client accepts it" => client.session.accept(2, 11),
        "server opens and writes 2 bytes on it" => {
            assert!(server.last().acked);
            server.write(2, &[1, 2]);
        }
        "client writes 300000 bytes, server not reading (window 262139 left)" => {
            client.session.consumed(2, 2);
            client.write(1, &vec![0; 300_000]);
        }
        "server reads 131066 bytes (131071 consumed in all: one byte short of half the window, no update)" => {
            server.session.consumed(1, 131_066);
        }
        "server reads 1 byte more (131072 = half the window consumed: update)" => {
            server.session.consumed(1, 1);
        }
        "server reads the remaining 168933 bytes" => server.session.consumed(1, 168_933),
        "client pings" => assert_eq!(client.session.ping(0), 0),
        "server pings" => {
            assert_eq!(client.session.poll_event(), Some(Event::PingAnswered { value: 0, rtt_ns: 0 }));
            assert_eq!(server.session.ping(0), 0);
        }
        "client closes stream 1 (FIN)" => finish(client, 1),
        "server reads EOF and closes stream 1" => {
            assert!(server.last().finished && !server.last().closed);
            finish(server, 1);
            assert!(server.session.stream(1).is_none());
        }
        "server closes stream 2, then client closes it" => {
            assert!(client.last().closed, "stream 1 ended");
            finish(server, 2);
            finish(client, 2);
        }
        "client sends go-away" => client.session.go_away(GO_AWAY_NORMAL),
        "server tries to open after remote go-away" => {
            assert_eq!(server.session.poll_event(), Some(Event::PingAnswered { value: 0, rtt_ns: 0 }));
            assert_eq!(server.session.poll_event(), Some(Event::GoAwayReceived { code: GO_AWAY_NORMAL }));
            assert_eq!(server.session.open(0, 22), Err(OpenError::PeerGoingAway));
        }
        "client opens a stream itself and server accepts (go-away only stops the other side)" => {
            assert_eq!(client.session.open(0, 12), Ok(3));
            server.accept_as = Some(23);
        }
        "client session close (no go-away frame is sent, TCP closes)" => {}
        _ => return false,
    }
    true
}

fn finish(side: &mut Side, id: u32) {
    let header = side.session.finish(0, id).expect("open until now");
    side.sent.push((header, Vec::new()));
}

#[test]
fn the_scripted_exchange_gives_the_recorded_bytes() {
    let vectors = vectors();
    let (mut client, mut server) = (Side::new(Config::client()), Side::new(Config::server()));
    let (mut steps, mut notes) = (0, 0);
    for step in vectors["steps"].as_array().expect("steps") {
        let Some(name) = step["step"].as_str() else {
            assert_eq!(step["error"], "remote end is not accepting connections");
            notes += 1;
            continue;
        };
        assert!(perform(name, &mut client, &mut server), "unknown step {name}");
        settle(&mut client, &mut server, step);
        steps += 1;
    }
    assert_eq!((steps, notes), (22, 1), "every step of the file was replayed");
    assert_eq!(client.session.stream_count(), 1);
    assert_eq!(server.session.stream_count(), 1);
}

#[test]
fn the_recorded_backlog_overflow_gives_the_recorded_answers() {
    let vectors = vectors();
    let config = Config { accept_backlog: 2, ..Config::server() };
    let mut server = Side::new(config);
    let mut steps = 0;
    for step in vectors["backlog"].as_array().expect("backlog") {
        let syn = |id| Header::window_update(id, 0).with_flags(Flags::SYN).encode().to_vec();
        let data = |id, flags, bytes: &[u8]| {
            [&Header::data(id, bytes.len() as u32).with_flags(flags).encode()[..], bytes].concat()
        };
        let name = step["step"].as_str().expect("step");
        let input = match name {
            "SYN stream 1" => syn(1),
            "SYN stream 3" => syn(3),
            "SYN stream 5 (backlog 2 exceeded)" => syn(5),
            "data for stream 5 is drained silently" => data(5, Flags::NONE, b"refused"),
            "SYN in a data frame, stream 7, still over backlog" => data(7, Flags::SYN, b"abc"),
            "even id from a client is not rejected (stream 8, over backlog)" => syn(8),
            _ if name.starts_with("duplicate SYN for stream 1") => syn(1),
            _ => panic!("unknown step {name}"),
        };
        match server.receive(&input) {
            Ok(()) => {
                let last = server.last();
                assert_eq!(last.opened, last.stream < 5, "{name}");
                match last.stream {
                    5 if input.len() > 12 => assert_eq!(last.payload, Payload::Discard(7)),
                    7 => assert_eq!(last.payload, Payload::Discard(3)),
                    _ => assert_eq!(last.payload, Payload::None),
                }
            }
            Err(violation) => {
                assert_eq!(violation, Violation::StreamInUse { stream: 1 });
                server.sent.push((violation.go_away().expect("go-away 1"), Vec::new()));
            }
        }
        server.flush();
        let sent: Vec<u8> = server.sent.drain(..).flat_map(|(header, _)| header.encode()).collect();
        assert_eq!(hex::encode(sent), step["server_to_client_bytes"].as_str().expect("bytes"), "{name}");
        steps += 1;
    }
    assert_eq!(steps, 7, "every step of the file was replayed");
}

#[test]
fn the_recorded_window_violation_ends_the_session() {
    let vectors = vectors();
    let step = &vectors["window_exceeded"];
    let mut server = Side::new(Config::server());
    server.receive(&Header::window_update(1, 0).with_flags(Flags::SYN).encode()).expect("a legal SYN");
    server.session.accept(1, 0);
    let violation = server.receive(&Header::data(1, 262_145).encode()).expect_err("one byte too many");
    assert_eq!(violation, Violation::WindowExceeded { stream: 1, length: 262_145, credit: 262_144 });
    let bytes = violation.go_away().expect("go-away 1").encode();
    assert_eq!(hex::encode(bytes), step["server_to_client_bytes"].as_str().expect("bytes"));
    assert_eq!(step["session_closed"], true);
}

#[test]
fn every_recorded_header_is_read_and_written_alike() {
    let vectors = vectors();
    let (mut count, mut stack) = (0, vec![&vectors]);
    while let Some(value) = stack.pop() {
        match value {
            Value::Array(values) => stack.extend(values),
            Value::Object(fields) => {
                if let Some(text) = fields.get("header").and_then(Value::as_str) {
                    let bytes: [u8; 12] = hex::decode(text).expect("hex").try_into().expect("12 bytes");
                    let header = Header::decode(&bytes).expect("readable");
                    assert_eq!(header.encode(), bytes);
                    assert_eq!(u64::from(header.stream), fields["stream"].as_u64().expect("stream"));
                    assert_eq!(u64::from(header.length), fields["length"].as_u64().expect("length"));
                    assert_eq!(format!("{:?}", header.kind), fields["type"].as_str().expect("type"));
                    count += 1;
                }
                stack.extend(fields.values());
            }
            _ => {}
        }
    }
    assert_eq!(count, 27, "every header of the file");
}

#[test]
fn the_presets_differ_in_role() {
    assert_eq!((Config::client().role, Config::server().role), (Role::Client, Role::Server));
}
