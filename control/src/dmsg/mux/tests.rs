//! Two ends joined by a byte pipe in memory, driven with seeds: what was pushed arrives once, in order, or both learn
//! why not; nothing is left behind.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use ringwire_proto::entropy::{Entropy as _, SeededEntropy};
use ringwire_proto::yamux::HEADER_LEN;

use super::*;
use crate::dmsg::error::StreamError;

/// The two ends and what is under way between them.
struct Link {
    ends: [Mux; 2],
    wires: [VecDeque<u8>; 2],
    random: SeededEntropy,
}

impl Link {
    fn new(seed: u64, go_frames: bool) -> Self {
        let ends =
            [yamux::Config::client(), yamux::Config::server()].map(|config| Mux::new(config, go_frames));
        Self { ends, wires: Default::default(), random: SeededEntropy::new(seed) }
    }

    fn below(&mut self, limit: usize) -> usize {
        let mut bytes = [0; 4];
        self.random.fill(&mut bytes);
        u32::from_le_bytes(bytes) as usize % limit
    }

    /// Moves some bytes from `from` to the other end, cut anywhere.
    fn step(&mut self, from: usize) {
        let mut out = Vec::new();
        self.ends[from].transmit(0, &mut out);
        self.wires[from].extend(out);
        let length = self.below(LOCKED_BYTES).min(self.wires[from].len());
        let bytes: Vec<u8> = self.wires[from].drain(..length).collect();
        self.ends[1 - from].receive(0, &bytes).unwrap();
    }

    /// Moves everything.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            self.step(0);
            self.step(1);
            if self.wires.iter().all(VecDeque::is_empty) && self.ends.iter().all(|end| !end.driver_needed) {
                return;
            }
        }
        panic!("the link does not come to rest");
    }

    fn open(&mut self) -> [Slot; 2] {
        let near = self.ends[0].open(0, frame(b"hello")).unwrap();
        self.settle();
        let far = self.ends[1].poll_opened().unwrap();
        assert_eq!(take(&mut self.ends[1], far).unwrap().unwrap(), frame(b"hello"));
        [near, far]
    }

    /// Streams that either end still holds.
    fn held(&self) -> [usize; 2] {
        [0, 1].map(|end: usize| self.ends[end].streams.iter().flatten().count())
    }
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// A length-prefixed frame, as objects and Noise frames are.
fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = u16::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}

/// What arrived; `Ok(None)` is the end, an empty vector: nothing yet.
fn take(mux: &mut Mux, slot: Slot) -> Result<Option<Vec<u8>>, StreamError> {
    let mut inbox = Vec::new();
    match mux.poll_take(slot, &context(), &mut inbox) {
        Poll::Ready(Ok(true)) => Ok(Some(inbox)),
        Poll::Ready(Ok(false)) => Ok(None),
        Poll::Ready(Err(error)) => Err(error),
        Poll::Pending => Ok(Some(Vec::new())),
    }
}

#[test]
fn bytes_arrive_once_and_in_order() {
    for seed in 0..40 {
        let mut link = Link::new(seed, seed % 2 == 1);
        let lanes: Vec<_> = (0..3).map(|_| link.open()).collect();
        let mut sent = vec![Vec::new(); lanes.len()];
        let mut heard = vec![Vec::new(); lanes.len()];
        for _ in 0..200 {
            let lane = link.below(lanes.len());
            match link.below(4) {
                0 if link.ends[0].poll_room(lanes[lane][0], &context()).is_ready() => {
                    let length = link.below(60_000);
                    let mut bytes: Vec<u8> =
                        (0..length).map(|index| (index + sent[lane].len()) as u8).collect();
                    bytes = bytes.chunks(4094).flat_map(frame).collect();
                    sent[lane].extend_from_slice(&bytes);
                    link.ends[0].push(lanes[lane][0], &mut bytes);
                    assert!(bytes.is_empty());
                }
                1 => heard[lane].extend(take(&mut link.ends[1], lanes[lane][1]).unwrap().unwrap()),
                2 => link.step(1),
                _ => link.step(0),
            }
        }
        for slots in &lanes {
            link.ends[0].finish(slots[0]);
        }
        let mut open = lanes.len();
        while open > 0 {
            link.settle();
            open = 0;
            for (slots, heard) in lanes.iter().zip(&mut heard) {
                while let Some(bytes) = take(&mut link.ends[1], slots[1]).unwrap() {
                    if bytes.is_empty() {
                        open += 1;
                        break;
                    }
                    heard.extend(bytes);
                }
            }
        }
        assert!(heard == sent, "seed {seed}");
        for [near, far] in lanes {
            link.ends[1].release(far, false);
            link.settle();
            link.ends[0].release(near, false);
        }
        link.settle();
        assert_eq!(link.held(), [0, 0], "seed {seed}");
    }
}

#[test]
fn go_frames_leave_one_by_one() {
    let mut link = Link::new(1, true);
    let [near, _far] = link.open();
    let mut bytes: Vec<u8> = [frame(&[1; 4094]), frame(&[2; 4094]), frame(&[3; 700])].concat();
    link.ends[0].push(near, &mut bytes);
    let mut out = Vec::new();
    link.ends[0].transmit(0, &mut out);
    let lengths = [4096, 4096, 702];
    assert_eq!(out.len(), lengths.iter().map(|length| HEADER_LEN + length).sum::<usize>());
    let mut at = 0;
    for length in lengths {
        let header = Header::decode(out[at..at + HEADER_LEN].try_into().unwrap()).unwrap();
        assert_eq!(header.length as usize, length);
        at += HEADER_LEN + length;
    }
}

#[test]
fn without_credit_the_writer_waits() {
    let mut link = Link::new(2, false);
    let [near, far] = link.open();
    let mut pushed = 0;
    while link.ends[0].poll_room(near, &context()).is_ready() {
        let mut bytes = frame(&[0; 4094]);
        pushed += bytes.len();
        link.ends[0].push(near, &mut bytes);
        link.settle();
    }
    // The window, and what the queue takes beyond it.
    let least = 262_144 + STREAM_QUEUE_BYTES;
    assert!((least..least + 8192).contains(&pushed), "{pushed}");
    let mut heard = 0;
    while heard < pushed {
        heard += take(&mut link.ends[1], far).unwrap().unwrap().len();
        link.settle();
    }
    assert!(link.ends[0].poll_room(near, &context()).is_ready());
    assert!(link.ends[0].poll_drained(near, &context()).is_ready());
}

#[test]
fn a_reset_is_learned_after_what_arrived() {
    let mut link = Link::new(3, false);
    let [near, far] = link.open();
    link.ends[0].push(near, &mut frame(b"last words"));
    link.settle();
    link.ends[0].release(near, true);
    link.settle();
    assert_eq!(take(&mut link.ends[1], far).unwrap().unwrap(), frame(b"last words"));
    assert!(matches!(take(&mut link.ends[1], far), Err(StreamError::Reset)));
    assert!(matches!(link.ends[1].poll_room(far, &context()), Poll::Ready(Err(StreamError::Reset))));
    link.ends[1].release(far, false);
    assert_eq!(link.held(), [0, 0]);
}

#[test]
fn owners_may_leave_in_any_state() {
    // Each end lets go at its own moment, in order or by force, with bytes in every place they can be in.
    for seed in 0..400 {
        let mut link = Link::new(seed, false);
        let [near, far] = link.open();
        let moments = [link.below(12), link.below(12)];
        let resets = [link.below(2) == 0, link.below(2) == 0];
        for moment in 0..12 {
            for (end, slot) in [(0, near), (1, far)] {
                if moment == moments[end] {
                    link.ends[end].release(slot, resets[end]);
                } else if moment < moments[end] {
                    match link.below(4) {
                        0 => link.ends[end].finish(slot),
                        1 => {
                            take(&mut link.ends[end], slot).ok();
                        }
                        _ => {
                            let length = link.below(4094);
                            link.ends[end].push(slot, &mut frame(&vec![0; length]));
                        }
                    }
                }
                link.step(end);
            }
        }
        link.settle();
        assert_eq!(link.held(), [0, 0], "seed {seed}");
    }
}

#[test]
fn breaches_end_the_connection_with_their_name() {
    let receive = |bytes: &[u8]| Mux::new(yamux::Config::client(), false).receive(0, bytes);
    let go_away = |code| receive(&Header::go_away(code).encode());
    assert!(go_away(0).is_ok());
    assert!(matches!(go_away(1), Err(Disconnected::GoAway(1))));
    assert!(matches!(receive(&[9; HEADER_LEN]), Err(Disconnected::Fault(PeerFault::Multiplexer(_)))));

    let mut mux = Mux::new(yamux::Config::client(), false);
    let slot = mux.open(0, frame(b"x")).unwrap();
    let mut out = Vec::new();
    mux.transmit(0, &mut out);
    assert!(mux.receive(0, &Header::data(1, 300_000).encode()).is_err());
    out.clear();
    mux.transmit(0, &mut out);
    assert_eq!(out, Header::go_away(1).encode());
    mux.end(Disconnected::ByServer);
    assert!(matches!(take(&mut mux, slot), Err(StreamError::Disconnected(Disconnected::ByServer))));
    mux.release(slot, false);
    assert!(mux.streams.iter().all(Option::is_none));
}

#[test]
fn a_dead_server_is_noticed() {
    let mut mux = Mux::new(yamux::Config::client(), false);
    let due_ns = mux.next_timeout_ns().unwrap();
    assert_eq!(due_ns, 30_000_000_000);
    let deadline_ns = mux.handle_timeout(due_ns).unwrap().unwrap();
    let mut out = Vec::new();
    mux.transmit(due_ns, &mut out);
    assert_eq!(out, Header::ping(0).encode());
    let deadline_ns = deadline_ns.max(due_ns + 10_000_000_000);
    assert!(matches!(mux.handle_timeout(deadline_ns), Err(Disconnected::Silent(_))));
}
