//! Every exchange recorded from xtaci/smux v1.5.57 (`vectors/dmsg/smux.json`), replayed against our sessions.
//!
//! Two of our sessions play the recorded client and server: for each step the test does what the step says and compares
//! all bytes both sides send with the recorded ones. Reads return at most one received frame, as the recorded reader did.
#![allow(clippy::expect_used, reason = "tests")]

use std::collections::VecDeque;

use ringwire_proto::smux::{
    Command, Config, Control, Cutter, DeadReason, Header, Payload, Piece, Session, Update, Version,
};
use serde_json::Value;

const VECTORS: &str = include_str!("vectors/dmsg/smux.json");

fn vectors() -> Value {
    serde_json::from_str(VECTORS).expect("smux.json is JSON")
}

/// One side of the exchange.
struct Side {
    session: Session<u32>,
    cutter: Cutter,
    /// Per stream: bytes that wait for credit.
    unsent: VecDeque<(u32, usize)>,
    /// Lengths of received frames of each stream that were not read to their end.
    received: Vec<(u32, VecDeque<usize>)>,
    opened: Vec<u32>,
    finished: Vec<u32>,
    /// Bytes to carry across, and the headers among them.
    wire: Vec<u8>,
    sent: Vec<String>,
}

impl Side {
    fn new(config: Config) -> Self {
        Self {
            session: Session::new(Config { keepalive_ns: None, ..config }, 0),
            cutter: Cutter::new(config.version),
            unsent: VecDeque::new(),
            received: Vec::new(),
            opened: Vec::new(),
            finished: Vec::new(),
            wire: Vec::new(),
            sent: Vec::new(),
        }
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        self.wire.extend_from_slice(&header.encode());
        self.wire.extend_from_slice(payload);
        self.sent.push(hex::encode(header.encode()));
    }

    fn open(&mut self, tag: u32) {
        let (_, header) = self.session.open_with_header(tag).expect("room");
        self.send(header, &[]);
    }

    fn write(&mut self, id: u32, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let want = u16::try_from(rest.len()).unwrap_or(u16::MAX);
            let granted = self.session.reserve(id, want);
            if granted == 0 {
                self.unsent.push_back((id, rest.len()));
                return;
            }
            let (now, later) = rest.split_at(usize::from(granted));
            self.send(Header::push(self.session.config().version, id, granted), now);
            rest = later;
        }
    }

    fn finish(&mut self, id: u32) {
        let header = self.session.finish(id).expect("open until now");
        self.send(header, &[]);
    }

    fn unread(&mut self, id: u32) -> &mut VecDeque<usize> {
        let index = match self.received.iter().position(|(stream, _)| *stream == id) {
            Some(index) => index,
            None => {
                self.received.push((id, VecDeque::new()));
                self.received.len() - 1
            }
        };
        &mut self.received[index].1
    }

    /// Reads until `length` bytes were taken or nothing is left, one frame at a time; updates go out between reads.
    fn read(&mut self, id: u32, mut length: usize) -> usize {
        let mut total = 0;
        while let Some(front) = self.unread(id).front_mut().filter(|_| length > 0) {
            let taken = length.min(*front);
            *front -= taken;
            if *front == 0 {
                self.unread(id).pop_front();
            }
            self.session.consumed(id, taken as u32);
            self.flush_control();
            length -= taken;
            total += taken;
        }
        total
    }

    fn flush_control(&mut self) {
        while let Some(control) = self.session.poll_control() {
            let mut bytes = Vec::new();
            control.encode_to(&mut bytes);
            self.sent.push(hex::encode(&bytes));
            self.wire.extend(bytes);
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while let Some(piece) = self.cutter.next(bytes, &mut at).expect("readable") {
            match piece {
                Piece::Payload { .. } => {}
                Piece::Update { stream, update } => {
                    assert_eq!(self.session.handle_update(0, stream, update).fault, None);
                }
                Piece::Header(header) => {
                    let incoming = self.session.handle_header(0, &header).expect("legal");
                    if incoming.opened {
                        self.opened.push(incoming.stream);
                    }
                    if incoming.finished {
                        self.finished.push(incoming.stream);
                    }
                    match incoming.payload {
                        Payload::Deliver(length) => {
                            self.unread(incoming.stream).push_back(usize::from(length));
                        }
                        Payload::Discard(length) => panic!("{length} bytes of a known stream dropped"),
                        Payload::None => {}
                    }
                }
            }
        }
        for (id, length) in std::mem::take(&mut self.unsent) {
            self.write(id, &vec![0; length]);
        }
    }
}

/// The recorded frames of one direction, updates with their payload.
fn recorded(step: &Value, direction: &str) -> Vec<String> {
    let frames = step[direction].as_array().map(Vec::as_slice).unwrap_or_default();
    let number = |value: &Value| u32::try_from(value.as_u64().expect("number")).expect("32 bits");
    frames
        .iter()
        .map(|frame| {
            let header = frame["header"].as_str().expect("header").to_owned();
            if frame["cmd"] == "UPD" {
                let update =
                    Update { consumed: number(&frame["consumed"]), window: number(&frame["window"]) };
                header + &hex::encode(update.encode())
            } else {
                header
            }
        })
        .collect()
}

/// Carries bytes until both sides are quiet and compares them with the step's. While the server reads to the end, `more`
/// reads what its updates let through.
fn settle(client: &mut Side, server: &mut Side, step: &Value, mut more: impl FnMut(&mut Side)) {
    let name = &step["step"];
    let (mut from_client, mut from_server) = (Vec::new(), Vec::new());
    while !(client.wire.is_empty() && server.wire.is_empty()) {
        let bytes = std::mem::take(&mut client.wire);
        from_client.extend_from_slice(&bytes);
        server.receive(&bytes);
        more(server);
        let bytes = std::mem::take(&mut server.wire);
        from_server.extend_from_slice(&bytes);
        client.receive(&bytes);
    }
    for (direction, side, bytes) in
        [("client_to_server", client, from_client), ("server_to_client", server, from_server)]
    {
        assert_eq!(std::mem::take(&mut side.sent), recorded(step, direction), "{direction} at {name}");
        if let Some(expected) = step[format!("{direction}_bytes")].as_str() {
            assert_eq!(hex::encode(bytes), expected, "{direction} at {name}");
        }
    }
}

/// Reads the rest of 300000 bytes in blocks of 4096, as far as it is there and until an update has to be carried.
fn read_blocks(server: &mut Side, left: &mut usize) {
    const WHOLE: usize = 300_000 - 32_772;
    while *left > 0 && server.wire.is_empty() {
        let block_left = 4096 - (WHOLE - *left) % 4096;
        let front = server.unread(3).front().copied().unwrap_or_default();
        if front == 0 {
            break;
        }
        *left -= server.read(3, block_left.min(front).min(*left));
    }
}

fn replay(run: &Value) {
    let version = if run["version"] == 1 { Version::V1 } else { Version::V2 };
    let (mut client, mut server) = (Side::new(Config::client(version)), Side::new(Config::server(version)));
    let mut left_to_read = 0_usize;
    let mut steps = 0;
    for step in run["steps"].as_array().expect("steps") {
        match step["step"].as_str().expect("step") {
            "client opens its first stream" => client.open(10),
            "server accepts (nothing is sent)" => {
                assert_eq!(server.opened, [3]);
                server.session.accept(3, 20);
            }
            "client writes 5 bytes" => client.write(3, b"hello"),
            "server reads 2 bytes (v2: first read sends an update)" => assert_eq!(server.read(3, 2), 2),
            "server reads 3 bytes" => assert_eq!(server.read(3, 3), 3),
            "server opens its first stream" => server.open(21),
            "client accepts" => {
                assert_eq!(client.opened, [2]);
                client.session.accept(2, 11);
            }
            "server writes 3 bytes" => server.write(2, b"abc"),
            "client reads 3" => assert_eq!(client.read(2, 3), 3),
            "client writes 300000 bytes, server not reading" => client.write(3, &vec![0; 300_000]),
            "server reads 32762 bytes" => assert_eq!(server.read(3, 32_762), 32_762),
            "server reads 10 bytes" => assert_eq!(server.read(3, 10), 10),
            "server reads the rest (io.ReadFull, 4096 at a time)" => {
                left_to_read = 300_000 - 32_772;
                read_blocks(&mut server, &mut left_to_read);
            }
            "client half-closes its write side" => client.finish(3),
            "server closes stream" => {
                assert_eq!(server.finished, [3]);
                server.finish(3);
            }
            "server closes its own stream" => server.finish(2),
            "client closes that stream too" => {
                assert_eq!(client.finished, [3, 2]);
                client.finish(2);
                assert_eq!(client.session.stream_count(), 0);
            }
            "client opens a second stream" => client.open(12),
            "client session close (no frame)" => {}
            other => panic!("unknown step {other}"),
        }
        settle(&mut client, &mut server, step, |server| {
            read_blocks(server, &mut left_to_read);
        });
        steps += 1;
    }
    assert_eq!((steps, left_to_read), (19, 0), "every step of the run was replayed");
    assert_eq!((client.session.stream_count(), server.session.stream_count()), (1, 1));
}

#[test]
fn both_recorded_runs_give_the_recorded_bytes() {
    let vectors = vectors();
    let runs = vectors["runs"].as_array().expect("runs");
    assert_eq!(runs.iter().map(|run| run["version"].as_u64()).collect::<Vec<_>>(), [Some(2), Some(1)]);
    runs.iter().for_each(replay);
}

#[test]
fn the_recorded_keepalive_of_a_silent_peer() {
    let vectors = vectors();
    let keepalive = &vectors["keepalive"];
    assert_eq!(keepalive["config"], "interval 200ms, timeout 900ms, silent peer");
    let config = Config {
        keepalive_ns: Some(200_000_000),
        silence_timeout_ns: 900_000_000,
        ..Config::client(Version::V2)
    };
    let mut session: Session<()> = Session::new(config, 0);
    let mut frames = Vec::new();
    let (dead_at, reason) = loop {
        let now = session.next_timeout().expect("a timer");
        if let Some(reason) = session.handle_timeout(now) {
            break (now, reason);
        }
        while let Some(control) = session.poll_control() {
            assert_eq!(control, Control::Nop(Version::V2));
            control.encode_to(&mut frames);
        }
    };
    let recorded: Vec<&str> = keepalive["frames"]
        .as_array()
        .expect("frames")
        .iter()
        .filter_map(|frame| frame["header"].as_str())
        .collect();
    assert_eq!(hex::encode(frames), recorded.concat());
    assert_eq!(recorded.len(), 4);
    assert_eq!(Some(dead_at / 1_000_000), keepalive["closed_after_ms_rounded_100"].as_u64());
    assert_eq!(reason, DeadReason { silent_ns: 900_000_000 });
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
                    let bytes: [u8; 8] = hex::decode(text).expect("hex").try_into().expect("8 bytes");
                    let version = Version::from_first_byte(bytes[0]).expect("a version");
                    let header = Header::decode(version, &bytes).expect("readable");
                    assert_eq!(header.encode(), bytes);
                    assert_eq!(u64::from(header.stream), fields["stream"].as_u64().expect("stream"));
                    assert_eq!(u64::from(header.length), fields["length"].as_u64().expect("length"));
                    let name = match header.command {
                        Command::Syn => "SYN",
                        Command::Fin => "FIN",
                        Command::Push => "PSH",
                        Command::Nop => "NOP",
                        Command::Update => "UPD",
                    };
                    assert_eq!(fields["cmd"], name);
                    count += 1;
                }
                stack.extend(fields.values());
            }
            _ => {}
        }
    }
    assert_eq!(count, 55, "every header of the file");
}
