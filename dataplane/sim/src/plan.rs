//! What a seed decided beforehand: peers, bridges, faults. Plain data; [`crate::scenario`] draws it.

use ringwire_dataplane::Share;
use ringwire_netem::{Nanos, Side, StreamConfig};
use ringwire_proto::{smux, yamux};

/// Everything about a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed it was drawn from.
    pub seed: u64,
    /// Which kind of scenario.
    pub theme: &'static str,
    /// The clients.
    pub peers: Vec<PeerPlan>,
    /// The dials.
    pub bridges: Vec<BridgePlan>,
    /// How the kernel behaves.
    pub kernel: KernelPlan,
    /// Workers of the server. Connections are dealt to them by chance, as the kernel does.
    pub workers: usize,
    /// Buffer memory may run out: streams may be refused and reset for that reason alone.
    pub is_tight: bool,
    /// When what must complete has to be complete, and everybody ends what is left.
    pub quiesce_at: Nanos,
    /// When everything must have ended, with sessions still up.
    pub settled_at: Nanos,
    /// When the worker is frozen and another goes on with its state.
    pub handovers: Vec<Nanos>,
    /// When the worker is told to stop, whatever runs.
    pub stops_at: Option<Nanos>,
    /// Stop the worker with sessions up, instead of ending the sessions first.
    pub stops_with_sessions: bool,
}

impl Plan {
    /// One worker with a smooth kernel, and nobody there.
    pub fn empty(seed: u64, theme: &'static str) -> Self {
        Self {
            seed,
            theme,
            peers: Vec::new(),
            bridges: Vec::new(),
            kernel: KernelPlan::smooth(),
            workers: 1,
            is_tight: false,
            quiesce_at: 0,
            settled_at: 0,
            handovers: Vec::new(),
            stops_at: None,
            stops_with_sessions: false,
        }
    }
}

/// One client.
#[derive(Debug, Clone)]
pub struct PeerPlan {
    /// Which key it has; two peers with one key displace each other.
    pub identity: usize,
    /// When it connects.
    pub connects_at: Nanos,
    /// Bytes to the server.
    pub up: StreamConfig,
    /// Bytes from the server.
    pub down: StreamConfig,
    /// Offers the post-quantum part.
    pub hybrid: bool,
    /// Its generation of the wire.
    pub manner: Manner,
    /// It speaks smux of this version; none: yamux.
    pub smux: Option<smux::Version>,
    /// What it is besides an honest client.
    pub character: Character,
    /// Asks for a sign of life every so often, besides the keepalive.
    pub pings: bool,
    /// Answers a FIN with its own. Clients of 2024 forget to.
    pub answers_finish: bool,
    /// What it wants of the server itself, the latest first.
    pub errands: Vec<(Nanos, Errand)>,
    /// What happens to its connection.
    pub faults: Vec<Fault>,
}

/// How a client cuts its writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Frames of 12 + 4096 bytes at most, one for each write, as the Go clients.
    Go,
    /// Frames as large as the multiplexer makes them.
    Native,
}

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Character {
    /// A client that keeps the rules.
    Honest,
    /// Opens so many streams and says nothing on them.
    Opener(u32),
    /// Breaks a rule of the multiplexer so long after its session opened.
    Rude(Nanos, Rudeness),
    /// Never gets through its handshake.
    Stranger(Strangeness),
}

/// What a client wants of the server itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// A sign of life, on a stream.
    Ping,
    /// Its own address.
    AskForAddress,
    /// To be taken for somebody else.
    LieAboutSource,
}

/// Which rule is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rudeness {
    /// More payload than the credit.
    Overrun,
    /// A frame of a version there is not.
    Version,
    /// SYN for a stream in use.
    Reopen,
    /// Two FINs.
    SecondFinish,
    /// A frame every few seconds, and it does not mind that nothing comes back.
    Deaf,
}

/// What comes instead of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strangeness {
    /// Nothing.
    Silent,
    /// Something else.
    Noise,
    /// Half of message 1.
    Half,
    /// Message 1, and then nothing.
    Stops,
}

/// What happens to a client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is reset once the client has received so many bytes.
    ResetAfterReceived(u64),
    /// It is reset once the client has sent so many bytes.
    ResetAfterSent(u64),
    /// It is reset at this time.
    ResetAt(Nanos),
    /// The client closes it at this time, streams and all.
    CloseAt(Nanos),
    /// The client takes no new streams from this time on.
    GoAwayAt(Nanos),
    /// Nothing passes any more; nobody is told.
    BlackHole(Nanos),
    /// Nothing passes in one direction (bytes written by this side).
    CutOneWay(Nanos, Side),
    /// Nothing passes for a time.
    CutFor(Nanos, Nanos),
    /// Nothing leaves in one direction for a time.
    StallFor(Nanos, Nanos, Side),
    /// The client does not read its connection for a time.
    PauseFor(Nanos, Nanos),
}

impl Fault {
    /// Longest time for which it may hold up bytes of a session that must survive it; none: the session may die of it.
    pub fn survivable_ns(self) -> Option<Nanos> {
        match self {
            Self::CutFor(_, ns) | Self::StallFor(_, ns, _) | Self::PauseFor(_, ns) => {
                (ns <= SURVIVABLE_NS).then_some(ns)
            }
            Self::ResetAfterReceived(_)
            | Self::ResetAfterSent(_)
            | Self::ResetAt(_)
            | Self::CloseAt(_)
            | Self::GoAwayAt(_)
            | Self::BlackHole(_)
            | Self::CutOneWay(..) => None,
        }
    }
}

/// A session must survive an interruption of this length: ping replies are due in 10 s.
pub const SURVIVABLE_NS: Nanos = 5_000_000_000;

/// The window of an smux client's stream (dmsg-wire 6).
const SMUX_WINDOW_LEN: u64 = 65_536;

/// One dial.
#[derive(Debug, Clone)]
pub struct BridgePlan {
    /// The peer that dials.
    pub source: usize,
    /// Whom it dials; none: a key without a session.
    pub destination: Option<usize>,
    /// When it dials.
    pub at: Nanos,
    /// Bytes of the source.
    pub forth: FlowPlan,
    /// Bytes of the destination.
    pub back: FlowPlan,
    /// Who ends it, and when.
    pub end: EndPlan,
    /// What the destination answers.
    pub answer: Answer,
    /// So many bytes the source sends before the response came.
    pub eager_len: u64,
}

/// One direction of a bridge.
#[derive(Debug, Clone, Copy)]
pub struct FlowPlan {
    /// Bytes in all.
    pub len: u64,
    /// Bytes in one write.
    pub write_len: usize,
    /// Time between writes; 0: as fast as it goes.
    pub pause_ns: Nanos,
    /// How the other end reads them.
    pub reader: Reader,
}

/// How an end reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// At once.
    Eager,
    /// So many bytes every so often.
    Slow {
        /// Bytes.
        len: usize,
        /// Nanoseconds.
        every_ns: Nanos,
    },
    /// At once, but not at all between these two times.
    Pauses {
        /// Begin of the pause.
        from: Nanos,
        /// Its end.
        until: Nanos,
    },
    /// Not any more after so many bytes.
    StopsAfter(u64),
}

/// How a bridge ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndPlan {
    /// The source finishes once it has sent and received everything.
    SourceAfterBoth,
    /// The destination finishes once it has sent and received everything.
    DestinationAfterBoth,
    /// The source finishes behind its last byte.
    SourceWhenSent,
    /// The destination finishes behind its last byte.
    DestinationWhenSent,
    /// The source resets once it has read and written so many bytes.
    SourceResets(u64),
    /// The destination resets likewise.
    DestinationResets(u64),
    /// Nobody does, until everybody is told to.
    Never,
}

/// What a destination answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// An acceptance, after so long.
    Accepts(Nanos),
    /// Nothing, ever.
    Silent,
    /// The end of the stream.
    Finishes,
    /// An acceptance signed by somebody else.
    Forged,
    /// A signed refusal.
    Refuses,
}

impl Answer {
    /// An acceptance that comes before the destination is given up.
    pub fn is_in_time(self) -> bool {
        matches!(self, Self::Accepts(after) if after < ringwire_dataplane::limits::FORWARD_TIMEOUT_NS)
    }
}

/// How the emulated kernel behaves. Chances are per million operations.
#[derive(Debug, Clone)]
pub struct KernelPlan {
    /// Pages of buffer memory.
    pub memory_pages: usize,
    /// Pages in the receive ring.
    pub ring_pages: usize,
    /// Completions in one batch at most.
    pub batch_max: usize,
    /// A receive brings fewer bytes than there are.
    pub short_receive: u32,
    /// A receive fills its pages only in part.
    pub split_receive: u32,
    /// A send takes fewer bytes than it was given.
    pub short_send: u32,
    /// Completions come in another order than they happened.
    pub reorder: bool,
    /// Completions come up to so much later.
    pub latency_ns: Nanos,
    /// Cancelling takes up to so long.
    pub cancel_ns: Nanos,
    /// Accepting fails.
    pub accept_fails: u32,
    /// A turn takes up to so long.
    pub turn_ns: Nanos,
    /// Longest wait for company the worker may choose, in microseconds.
    pub company_us_max: u32,
    /// Worker's `busy_frames_per_second`.
    pub busy_frames_per_second: u64,
    /// Worker's `share`: what a turn handles of one session.
    pub share: Share,
    /// A worker of several is not let run, after one in a million turns of so many, for up to `pause_ns`.
    pub pauses: u32,
    /// How long at most; at most [`PAUSES_MAX`] times in a run.
    pub pause_ns: Nanos,
    /// How fast the handshake lane is.
    pub lane: LanePlan,
}

/// Pauses of workers in one run.
pub const PAUSES_MAX: u32 = 8;

/// The handshake lane of a run.
#[derive(Debug, Clone, Copy)]
pub struct LanePlan {
    /// Jobs it does at a time.
    pub hands: usize,
    /// What a job takes at most.
    pub cost_ns: Nanos,
    /// Jobs that may wait in each of its queues.
    pub jobs_max: usize,
}

impl KernelPlan {
    /// A kernel without faults.
    pub fn smooth() -> Self {
        Self {
            memory_pages: 4096,
            ring_pages: 64,
            batch_max: 1024,
            short_receive: 0,
            split_receive: 0,
            short_send: 0,
            reorder: false,
            latency_ns: 0,
            cancel_ns: 0,
            accept_fails: 0,
            turn_ns: 2_000,
            company_us_max: 100,
            busy_frames_per_second: ringwire_dataplane::limits::BUSY_FRAMES_PER_SECOND,
            share: Share::default(),
            pauses: 0,
            pause_ns: 0,
            lane: LanePlan { hands: 1, cost_ns: 200_000, jobs_max: usize::MAX },
        }
    }
}

impl Plan {
    /// Whether a peer's session must live through the whole run.
    pub fn is_healthy(&self, peer: usize) -> bool {
        let plan = &self.peers[peer];
        plan.character == Character::Honest
            && plan.faults.iter().all(|fault| fault.survivable_ns().is_some())
            && self.peers.iter().filter(|other| other.identity == plan.identity).count() == 1
    }

    /// Whether a bridge must open, carry everything and end as planned.
    pub fn must_complete(&self, bridge: &BridgePlan) -> bool {
        let Some(destination) = bridge.destination.filter(|_| !self.is_tight) else { return false };
        let stops = |flow: &FlowPlan| matches!(flow.reader, Reader::StopsAfter(_));
        self.is_healthy(bridge.source)
            && self.is_healthy(destination)
            && bridge.answer.is_in_time()
            && !stops(&bridge.forth)
            && !stops(&bridge.back)
            && !self.may_be_held_up(bridge.source)
            && !self.may_be_held_up(destination)
            && !matches!(
                bridge.end,
                EndPlan::SourceResets(_) | EndPlan::DestinationResets(_) | EndPlan::Never
            )
    }

    /// All streams of a session of smux version 1 share one flow control: one that nobody reads holds up all of them.
    pub fn may_be_held_up(&self, peer: usize) -> bool {
        let smooth = |flow: &FlowPlan| flow.reader == Reader::Eager;
        self.peers[peer].smux == Some(smux::Version::V1)
            && self
                .bridges_of(peer)
                .any(|bridge| !smooth(&bridge.forth) || !smooth(&bridge.back) || bridge.end == EndPlan::Never)
    }

    fn bridges_of(&self, peer: usize) -> impl Iterator<Item = &BridgePlan> {
        self.bridges.iter().filter(move |bridge| bridge.source == peer || bridge.destination == Some(peer))
    }

    /// Bytes per second that one stream brings a peer at least: what its way lets through, or half a window in a round trip.
    fn pace(&self, peer: usize) -> u64 {
        let plan = &self.peers[peer];
        let window = if plan.smux.is_some() { SMUX_WINDOW_LEN } else { u64::from(yamux::INITIAL_WINDOW) };
        let round_ns = plan.up.line.delay_ns + plan.down.line.delay_ns + 10_000_000;
        effective_rate(&plan.down).min(window / 2 * 1_000_000_000 / round_ns)
    }

    /// For how long a byte of a bridge that must complete may be under way before somebody counts as starved.
    pub fn patience_ns(&self, bridge: &BridgePlan) -> Nanos {
        let ends = [Some(bridge.source), bridge.destination];
        let mut patience = 3_000_000_000;
        let mut peers: Vec<usize> = ends.into_iter().flatten().collect();
        for end in peers.clone() {
            if self.peers[end].smux == Some(smux::Version::V1) {
                // Held up by whomever else it sends to: by what its connection and the server hold, at the pace of the slowest.
                let up = &self.peers[end].up;
                let held =
                    (up.send_buffer_len + up.receive_buffer_len) as u64 + 2 * u64::from(smux::INITIAL_WINDOW);
                let mut pace = u64::MAX;
                for other in self.bridges_of(end) {
                    for peer in [Some(other.source), other.destination].into_iter().flatten() {
                        pace = pace.min(self.pace(peer));
                        peers.push(peer);
                    }
                }
                patience += 2 * held * 1_000_000_000 / pace;
            }
        }
        for peer in peers {
            let streams = self.bridges_of(peer).count() as u64;
            let plan = &self.peers[peer];
            for way in [&plan.up, &plan.down] {
                // What the connection holds, a gathered send on top, and a round of everybody's turns; twice.
                let ahead = way.send_buffer_len as u64 + 64 * 1024 + streams * 64 * 1024;
                patience += 2 * ahead * 1_000_000_000 / effective_rate(way);
            }
            patience +=
                plan.faults.iter().filter_map(|fault| fault.survivable_ns()).map(|ns| 2 * ns).sum::<u64>();
        }
        for flow in [&bridge.forth, &bridge.back] {
            match flow.reader {
                Reader::Slow { every_ns, .. } => patience += 2 * every_ns,
                Reader::Pauses { from, until } => patience += until - from,
                Reader::Eager | Reader::StopsAfter(_) => {}
            }
        }
        patience
    }
}

/// Bytes per second that a way lets through: its rate, or what its buffers allow in a round trip.
pub fn effective_rate(config: &StreamConfig) -> u64 {
    let window = config.send_buffer_len.min(config.receive_buffer_len) as u64;
    // The round trip, and a retransmission now and then.
    let round_ns = 2 * config.line.delay_ns + 10_000_000;
    let by_window = window * 1_000_000_000 / round_ns;
    config.line.rate.at(0).unwrap_or(u64::MAX).min(by_window).max(1000)
}
