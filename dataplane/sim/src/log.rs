//! What happened in a run: a running hash of every event, and on demand a readable line for each.
//!
//! In: events with their virtual time. Out: the hash by which two runs are compared, and the trace of a failing seed.
//! Lines are made only when tracing is on.

use std::cell::RefCell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use ringwire_netem::Nanos;

/// Something that happened. Sockets are the driver's index and generation; peers and bridges are those of the scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the fields are named like what the trace prints")]
pub enum Event {
    Turn { completions: usize, exhausted: bool },
    Connects { peer: usize, wire: usize },
    Accepted { wire: usize, socket: u32, generation: u32 },
    AcceptFailed { error: i32 },
    Received { socket: u32, len: usize, pages: usize, digest: u64 },
    ReceiveEnded { socket: u32, why: &'static str },
    Sent { socket: u32, asked: usize, taken: usize, digest: u64 },
    SendFailed { socket: u32, error: i32 },
    Closing { socket: u32 },
    Closed { socket: u32 },
    PeerOpen { peer: usize, hybrid: bool },
    PeerOver { peer: usize, why: &'static str },
    Dials { bridge: usize, peer: usize, stream: u32 },
    Requested { bridge: usize, peer: usize, stream: u32 },
    Answered { bridge: usize },
    Established { bridge: usize },
    Wrote { bridge: usize, forth: bool, len: usize },
    Read { bridge: usize, forth: bool, len: usize },
    Ends { bridge: usize, source: bool, how: &'static str },
    Ended { bridge: usize, source: bool, how: &'static str },
    Fault { peer: usize, what: &'static str },
    Pong { peer: usize, rtt_ns: Nanos },
    HandedOver { bytes: usize },
    Phase { name: &'static str },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = |forth: bool| if forth { "source -> destination" } else { "destination -> source" };
        let end = |source: bool| if source { "source" } else { "destination" };
        match *self {
            Self::Turn { completions, exhausted } => {
                write!(
                    f,
                    "worker  turn with {completions} completions{}",
                    if exhausted { ", exhausted" } else { "" }
                )
            }
            Self::Connects { peer, wire } => write!(f, "peer {peer}  connects (wire {wire})"),
            Self::Accepted { wire, socket, generation } => {
                write!(f, "socket {socket}  accepted, generation {generation} (wire {wire})")
            }
            Self::AcceptFailed { error } => write!(f, "driver  accept fails with errno {error}"),
            Self::Received { socket, len, pages, .. } => {
                write!(f, "socket {socket}  received {len} bytes in {pages} pages")
            }
            Self::ReceiveEnded { socket, why } => write!(f, "socket {socket}  receive ended: {why}"),
            Self::Sent { socket, asked, taken, .. } => {
                write!(f, "socket {socket}  sent {taken} of {asked} bytes")
            }
            Self::SendFailed { socket, error } => {
                write!(f, "socket {socket}  send failed with errno {error}")
            }
            Self::Closing { socket } => write!(f, "socket {socket}  the worker closes it"),
            Self::Closed { socket } => write!(f, "socket {socket}  closed"),
            Self::PeerOpen { peer, hybrid } => {
                write!(f, "peer {peer}  session open{}", if hybrid { ", hybrid" } else { "" })
            }
            Self::PeerOver { peer, why } => write!(f, "peer {peer}  session over: {why}"),
            Self::Dials { bridge, peer, stream } => {
                write!(f, "bridge {bridge}  peer {peer} dials on stream {stream}")
            }
            Self::Requested { bridge, peer, stream } => {
                write!(f, "bridge {bridge}  request reached peer {peer} on stream {stream}")
            }
            Self::Answered { bridge } => write!(f, "bridge {bridge}  destination answers"),
            Self::Established { bridge } => write!(f, "bridge {bridge}  response reached the source"),
            Self::Wrote { bridge, forth, len } => {
                write!(f, "bridge {bridge}  {} wrote {len} bytes", way(forth))
            }
            Self::Read { bridge, forth, len } => {
                write!(f, "bridge {bridge}  {} read {len} bytes", way(forth))
            }
            Self::Ends { bridge, source, how } => write!(f, "bridge {bridge}  {} {how}", end(source)),
            Self::Ended { bridge, source, how } => write!(f, "bridge {bridge}  {} sees {how}", end(source)),
            Self::Fault { peer, what } => write!(f, "peer {peer}  fault: {what}"),
            Self::Pong { peer, rtt_ns } => {
                write!(f, "peer {peer}  ping answered in {} ms", rtt_ns / 1_000_000)
            }
            Self::HandedOver { bytes } => write!(f, "worker  frozen into {bytes} bytes and thawed"),
            Self::Phase { name } => write!(f, "==== {name} ===="),
        }
    }
}

/// The record of a run. See the module's head.
#[derive(Debug)]
pub struct Log {
    digest: Digest,
    events: u64,
    lines: Option<Lines>,
}

/// Readable lines, shared with whoever wants them even if the run panics.
pub type Lines = Rc<RefCell<Vec<String>>>;

impl Log {
    /// An empty record; `lines`: where readable lines go, if anywhere.
    pub fn new(lines: Option<Lines>) -> Self {
        Self { digest: Digest::default(), events: 0, lines }
    }

    /// Adds an event.
    pub fn note(&mut self, now: Nanos, event: Event) {
        self.events += 1;
        now.hash(&mut self.digest);
        event.hash(&mut self.digest);
        if let Some(lines) = &mut self.lines {
            lines.borrow_mut().push(format!("{:>12.6} s  {event}", now as f64 / 1e9));
        }
    }

    /// The hash of everything so far.
    pub fn hash(&self) -> u64 {
        self.digest.finish()
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }
}

/// A fast hash that is the same everywhere and always; not for keys of strangers.
#[derive(Debug, Clone, Copy)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// The hash of some bytes.
    pub fn of(bytes: &[u8]) -> u64 {
        let mut digest = Self::default();
        digest.write(bytes);
        digest.finish()
    }

    fn mix(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.mix(word.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)));
        }
        for byte in words.remainder() {
            self.mix(u64::from(*byte));
        }
        self.mix(bytes.len() as u64);
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }

    fn finish(&self) -> u64 {
        (self.0 ^ self.0 >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93)
    }
}
