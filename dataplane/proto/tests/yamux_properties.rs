//! Properties of the yamux layers under random operations, chunking and input (dmsg-wire 5).
#![allow(clippy::expect_used, reason = "tests")]

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use ringwire_proto::yamux::{
    Config, Connection, ConnectionEvent, Cutter, Flags, Header, INITIAL_WINDOW, Kind, Payload, Piece,
    Session, Stream, StreamError, Timeout, Violation,
};

// The cutter against a model that looks at the whole input at once.

/// A frame for the cutter: any header, payload bytes for data.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    (0..4_u8, any::<u16>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..50), any::<u32>()).prop_map(
        |(kind, flags, stream, payload, value)| {
            let kind = [Kind::Data, Kind::WindowUpdate, Kind::Ping, Kind::GoAway][usize::from(kind)];
            let flags = Flags(flags);
            if kind == Kind::Data {
                let header = Header { kind, flags, stream, length: payload.len() as u32 };
                [&header.encode()[..], &payload].concat()
            } else {
                Header { kind, flags, stream, length: value }.encode().to_vec()
            }
        },
    )
}

/// Headers and whole payloads of a byte stream, and the bytes behind the last whole frame.
fn model_cut(mut bytes: &[u8]) -> (Vec<(Header, Vec<u8>)>, usize) {
    let mut frames = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<12>() {
        let header = Header::decode(header).expect("readable");
        let length = header.payload_len() as usize;
        let Some(payload) = rest.get(..length) else { break };
        frames.push((header, payload.to_vec()));
        bytes = &rest[length..];
    }
    (frames, bytes.len())
}

/// Splits a byte stream at these lengths, used in a circle.
fn chunks<'a>(bytes: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let (mut rest, mut chunks) = (bytes, Vec::new());
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (chunk, tail) = rest.split_at((*length).min(rest.len()));
        chunks.push(chunk);
        rest = tail;
    }
    chunks
}

proptest! {
    #[test]
    fn the_cutter_equals_the_model_for_any_chunking(
        frames in prop::collection::vec(frame(), 0..20),
        cut_off in 0..30_usize,
        lengths in prop::collection::vec(1..60_usize, 1..10),
    ) {
        let mut bytes = frames.concat();
        bytes.truncate(bytes.len().saturating_sub(cut_off));
        let (expected, left) = model_cut(&bytes);
        let mut cutter = Cutter::new();
        let mut found: Vec<(Header, Vec<u8>)> = Vec::new();
        let mut whole = 0;
        for chunk in chunks(&bytes, &lengths) {
            let mut at = 0;
            while let Some(piece) = cutter.next(chunk, &mut at).expect("readable") {
                match piece {
                    Piece::Header { header, start } => {
                        if let Some(start) = start {
                            prop_assert_eq!(&chunk[start..start + 12], &header.encode());
                        }
                        prop_assert_eq!(found.len(), whole);
                        whole += usize::from(header.payload_len() == 0);
                        found.push((header, Vec::new()));
                    }
                    Piece::Payload { range, last } => {
                        prop_assert!(!range.is_empty());
                        found.last_mut().expect("a header first").1.extend_from_slice(&chunk[range]);
                        whole += usize::from(last);
                    }
                }
            }
            prop_assert_eq!(at, chunk.len());
        }
        prop_assert_eq!(whole, expected.len());
        prop_assert_eq!(&found[..whole], &expected[..]);
        prop_assert_eq!(cutter.is_between_frames(), left == 0);
    }

    #[test]
    fn random_bytes_never_panic_a_connection(
        inputs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
    ) {
        let mut connection = Connection::new(Config::server(), 0);
        for (now, input) in (0..).zip(&inputs) {
            connection.push(now, input);
            connection.poll_transmit(&mut Vec::new(), 1 << 16);
        }
    }
}

// One session under random headers and requests, against a model of the counts and credits.

#[derive(Clone, Debug)]
enum Act {
    Header(Header),
    Accept(u32),
    Open,
    Reserve(u32, u32),
    Finish(u32),
    Reset(u32),
    Consume(u32, u32),
    Grant(u32, u32),
    Ping,
    GoAway,
    Drain,
    Time(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let id = 0..12_u32;
    let flags =
        prop_oneof![4 => Just(0), 3 => Just(1), 1 => Just(2), 2 => Just(4), 1 => Just(8), 1 => 0..16_u16];
    let length = prop_oneof![3 => 0..1000_u32, 2 => 100_000..300_000_u32, 1 => any::<u32>()];
    let kind = prop_oneof![6 => Just(Kind::Data), 4 => Just(Kind::WindowUpdate), 1 => Just(Kind::Ping)];
    prop_oneof![
        10 => (kind, flags, id.clone(), length.clone())
            .prop_map(|(kind, flags, stream, length)| Act::Header(Header { kind, flags: Flags(flags), stream, length })),
        3 => id.clone().prop_map(Act::Accept),
        2 => Just(Act::Open),
        3 => (id.clone(), length.clone()).prop_map(|(id, length)| Act::Reserve(id, length)),
        2 => id.clone().prop_map(Act::Finish),
        1 => id.clone().prop_map(Act::Reset),
        4 => (id.clone(), length.clone()).prop_map(|(id, length)| Act::Consume(id, length)),
        1 => (id, length).prop_map(|(id, length)| Act::Grant(id, length)),
        1 => Just(Act::Ping),
        1 => Just(Act::GoAway),
        2 => Just(Act::Drain),
        2 => (0..20_000_000_000_u64).prop_map(Act::Time),
    ]
}

/// What the peer knows of one stream: credit it may spend, credit it gave, kept apart from the session's own counts.
#[derive(Clone, Copy, Debug)]
struct Seen {
    peer_may_send: u64,
    we_may_send: u64,
    undelivered: u64,
    finished: bool,
}

struct Model {
    session: Session<u32>,
    seen: BTreeMap<u32, Seen>,
    now: u64,
    opened: u64,
    ended: u64,
}

impl Model {
    fn run(acts: &[Act]) -> Result<(), TestCaseError> {
        let config = Config { streams_max: 5, accept_backlog: 3, open_backlog: 3, ..Config::server() };
        let mut model =
            Self { session: Session::new(config, 0), seen: BTreeMap::new(), now: 0, opened: 0, ended: 0 };
        for act in acts {
            if !model.perform(act)? {
                return Ok(());
            }
            model.check()?;
        }
        model.drain()?;
        for id in model.seen.keys().copied().collect::<Vec<_>>() {
            model.session.reset(id);
            model.end(id);
        }
        model.check()?;
        prop_assert_eq!(model.opened, model.ended, "opened = ended at the end");
        prop_assert_eq!((model.session.stream_count(), model.session.inbound_count()), (0, 0));
        Ok(())
    }

    fn begin(&mut self, id: u32) -> Result<(), TestCaseError> {
        let window = u64::from(INITIAL_WINDOW);
        let seen = Seen { peer_may_send: window, we_may_send: window, undelivered: 0, finished: false };
        prop_assert!(self.seen.insert(id, seen).is_none());
        self.opened += 1;
        Ok(())
    }

    fn end(&mut self, id: u32) {
        self.ended += u64::from(self.seen.remove(&id).is_some());
    }

    /// False when the session is over.
    fn perform(&mut self, act: &Act) -> Result<bool, TestCaseError> {
        match *act {
            Act::Header(header) => return self.header(&header),
            Act::Accept(id) => self.session.accept(id, id),
            Act::Open => {
                if let Ok(id) = self.session.open(self.now, 0) {
                    prop_assert_eq!(id % 2, 0);
                    self.begin(id)?;
                }
            }
            Act::Reserve(id, want) => {
                let granted = self.session.reserve(id, want);
                prop_assert!(granted <= want);
                if granted > 0 {
                    let seen = self.seen.get_mut(&id).expect("no credit without a stream");
                    prop_assert!(!seen.finished && u64::from(granted) <= seen.we_may_send);
                    seen.we_may_send -= u64::from(granted);
                }
            }
            Act::Finish(id) => {
                if let Some(header) = self.session.finish(self.now, id) {
                    self.sent(&header)?;
                    let seen = self.seen.get_mut(&id).expect("known");
                    prop_assert!(!seen.finished);
                    seen.finished = true;
                    if self.session.stream(id).is_none() {
                        self.end(id);
                    }
                }
            }
            Act::Reset(id) => {
                self.session.reset(id);
                self.end(id);
            }
            Act::Consume(id, length) => {
                if let Some(seen) = self.seen.get_mut(&id) {
                    let length = u64::from(length).min(seen.undelivered);
                    seen.undelivered -= length;
                    self.session.consumed(id, length as u32);
                }
            }
            Act::Grant(id, length) => self.session.grant_extra(id, length),
            Act::Ping => drop(self.session.ping(self.now)),
            Act::GoAway => self.session.go_away(0),
            Act::Drain => self.drain()?,
            Act::Time(step) => {
                self.now += step;
                while let Some(timeout) = self.session.handle_timeout(self.now) {
                    match timeout {
                        Timeout::StreamTimedOut { stream, .. } => self.end(stream),
                        Timeout::SessionDead(_) => return Ok(false),
                    }
                }
                prop_assert!(self.session.next_timeout().is_none_or(|at| at > self.now));
            }
        }
        Ok(true)
    }

    fn header(&mut self, header: &Header) -> Result<bool, TestCaseError> {
        let id = header.stream;
        let incoming = match self.session.handle_header(self.now, header) {
            Ok(incoming) => incoming,
            Err(violation) => {
                if let Violation::WindowExceeded { stream, length, .. } = violation {
                    let fresh = u64::from(INITIAL_WINDOW);
                    let may = self.seen.get(&stream).map_or(fresh, |seen| seen.peer_may_send);
                    prop_assert!(u64::from(length) > may, "within its credit");
                }
                return Ok(false);
            }
        };
        if incoming.opened {
            self.begin(id)?;
        }
        let seen = self.seen.get_mut(&id);
        match incoming.payload {
            Payload::None => prop_assert_eq!(header.payload_len(), 0),
            Payload::Discard(length) => prop_assert_eq!(length, header.payload_len()),
            Payload::Deliver(length) => {
                prop_assert_eq!(length, header.payload_len());
                seen.expect("delivered to a stream").undelivered += u64::from(length);
            }
        }
        if let Some(seen) = self.seen.get_mut(&id) {
            seen.we_may_send += u64::from(incoming.credit);
            let length = if incoming.reset { 0 } else { u64::from(header.payload_len()) };
            prop_assert!(length <= seen.peer_may_send, "beyond its credit");
            seen.peer_may_send -= length;
        }
        if incoming.reset || incoming.closed {
            self.end(id);
        }
        Ok(true)
    }

    /// What the peer learns from a header of ours.
    fn sent(&mut self, header: &Header) -> Result<(), TestCaseError> {
        if header.kind == Kind::WindowUpdate && !header.flags.contains(Flags::RST) {
            let seen = self.seen.get_mut(&header.stream).expect("no update without a stream");
            seen.peer_may_send += u64::from(header.length);
            prop_assert!(seen.peer_may_send <= u64::from(u32::MAX));
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), TestCaseError> {
        while let Some(header) = self.session.poll_control() {
            self.sent(&header)?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.session.stream_count(), self.seen.len());
        for ((id, stream), (expected_id, seen)) in self.session.streams().zip(&self.seen) {
            prop_assert_eq!(id, *expected_id);
            prop_assert_eq!(u64::from(stream.send_credit()), seen.we_may_send);
            prop_assert_eq!(u64::from(stream.receive_credit()), seen.peer_may_send);
            prop_assert_eq!(u64::from(stream.unconsumed()), seen.undelivered);
            prop_assert_eq!(stream.sent_fin(), seen.finished);
        }
        let inbound = self.session.streams().filter(|(_, stream)| !stream.is_local());
        prop_assert_eq!(self.session.inbound_count() as usize, inbound.count());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn counts_and_credits_of_a_session_keep_with_the_model(acts in prop::collection::vec(act(), 0..120)) {
        Model::run(&acts)?;
    }
}

// Two connections over a wire with random chunking.

#[derive(Clone, Copy, Debug)]
enum Op {
    Open,
    Write { stream: usize, length: usize },
    Read { stream: usize, length: usize },
    Finish { stream: usize },
    Deliver { length: usize },
}

fn op() -> impl Strategy<Value = (bool, Op)> {
    let stream = 0..4_usize;
    (
        any::<bool>(),
        prop_oneof![
            1 => Just(Op::Open),
            4 => (stream.clone(), 1..200_000_usize).prop_map(|(stream, length)| Op::Write { stream, length }),
            4 => (stream.clone(), 1..300_000_usize).prop_map(|(stream, length)| Op::Read { stream, length }),
            1 => stream.prop_map(|stream| Op::Finish { stream }),
            6 => (1..50_000_usize).prop_map(|length| Op::Deliver { length }),
        ],
    )
}

/// One end, the bytes on their way to it, and what it wrote and read on each stream.
struct End {
    connection: Connection,
    wire: VecDeque<u8>,
    streams: Vec<u32>,
    /// Per stream: bytes written here, bytes read here, whether the end was read.
    written: BTreeMap<u32, usize>,
    read: BTreeMap<u32, (usize, bool)>,
}

impl End {
    fn new(config: Config) -> Self {
        Self {
            connection: Connection::new(config, 0),
            wire: VecDeque::new(),
            streams: Vec::new(),
            written: BTreeMap::new(),
            read: BTreeMap::new(),
        }
    }

    /// The byte at this place of everything one side writes to a stream.
    fn byte(id: u32, from_client: bool, index: usize) -> u8 {
        (index as u32)
            .wrapping_mul(2_654_435_761)
            .wrapping_add(id * 17 + u32::from(from_client))
            .to_be_bytes()[0]
    }

    fn write(&mut self, is_client: bool, id: u32, length: usize) {
        let done = self.written.entry(id).or_default();
        let bytes: Vec<u8> = (*done..*done + length).map(|index| Self::byte(id, is_client, index)).collect();
        *done += self.connection.write(id, &bytes).unwrap_or(0);
    }

    fn read(&mut self, is_client: bool, id: u32, length: usize) -> Result<bool, TestCaseError> {
        let mut buffer = vec![0; length];
        let (done, ended) = self.read.entry(id).or_default();
        match self.connection.read(id, &mut buffer) {
            Ok(0) => *ended = true,
            Ok(count) => {
                prop_assert!(!*ended);
                for byte in &buffer[..count] {
                    prop_assert_eq!(*byte, Self::byte(id, !is_client, *done), "in order");
                    *done += 1;
                }
                return Ok(true);
            }
            Err(StreamError::Gone) => prop_assert!(*ended, "only ended streams go away"),
            Err(error) => prop_assert_eq!(error, StreamError::Blocked),
        }
        Ok(false)
    }

    fn deliver(&mut self, length: usize) -> Result<(), TestCaseError> {
        let bytes: Vec<u8> = self.wire.drain(..length.min(self.wire.len())).collect();
        self.connection.push(0, &bytes);
        while let Some(id) = self.connection.accept() {
            self.streams.push(id);
        }
        while let Some(event) = self.connection.poll_event() {
            prop_assert!(
                !matches!(event, ConnectionEvent::Closed(_) | ConnectionEvent::Reset(_)),
                "{event:?}"
            );
        }
        for (_, stream) in self.connection.session().streams() {
            let stream: &Stream<()> = stream;
            prop_assert!(stream.send_credit() <= INITIAL_WINDOW && stream.receive_credit() <= INITIAL_WINDOW);
            prop_assert!(stream.unconsumed() <= INITIAL_WINDOW - stream.receive_credit());
        }
        Ok(())
    }
}

fn run_pair(ops: &[(bool, Op)]) -> Result<(), TestCaseError> {
    let mut ends = [End::new(Config::client()), End::new(Config::server())];
    for (is_client, op) in ops {
        let end = &mut ends[usize::from(!is_client)];
        let chosen = |stream: usize| end.streams.get(stream % end.streams.len().max(1)).copied();
        match *op {
            Op::Open => end.streams.extend(end.connection.open(0)),
            Op::Write { stream, length } => {
                if let Some(id) = chosen(stream) {
                    end.write(*is_client, id, length);
                }
            }
            Op::Read { stream, length } => {
                if let Some(id) = chosen(stream) {
                    end.read(*is_client, id, length)?;
                }
            }
            Op::Finish { stream } => {
                if let Some(id) = chosen(stream) {
                    end.connection.finish(0, id);
                }
            }
            Op::Deliver { length } => end.deliver(length)?,
        }
        exchange(&mut ends, 20_000);
    }
    wind_up(&mut ends)
}

/// Moves up to `max` bytes of output each way onto the wires.
fn exchange([client, server]: &mut [End; 2], max: usize) {
    let mut out = Vec::new();
    client.connection.poll_transmit(&mut out, max);
    server.wire.extend(out.drain(..));
    server.connection.poll_transmit(&mut out, max);
    client.wire.extend(out);
}

/// Delivers, reads and finishes everything; then every stream must be gone and every byte have arrived.
fn wind_up(ends: &mut [End; 2]) -> Result<(), TestCaseError> {
    for round in 0.. {
        prop_assert!(round < 10_000, "it does not come to rest");
        exchange(ends, 1 << 20);
        let mut busy = false;
        for (index, end) in ends.iter_mut().enumerate() {
            busy |= !end.wire.is_empty();
            end.deliver(1 << 20)?;
            for id in end.streams.clone() {
                end.connection.finish(0, id);
                busy |= end.read(index == 0, id, 1 << 20)?;
            }
        }
        if !busy && ends.iter().all(|end| end.connection.session().stream_count() == 0) {
            break;
        }
    }
    let [client, server] = ends;
    for (sender, receiver) in [(&*client, &*server), (&*server, &*client)] {
        for (id, written) in &sender.written {
            let (read, ended) = receiver.read.get(id).copied().unwrap_or_default();
            prop_assert_eq!((read, ended), (*written, true), "stream {}", id);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn bytes_pass_in_order_and_every_stream_ends(ops in prop::collection::vec(op(), 0..80)) {
        run_pair(&ops)?;
    }
}
