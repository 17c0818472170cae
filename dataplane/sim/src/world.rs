//! Everything outside the worker: the clock, the event heap, the links and the peers.
//!
//! Events are ordered by (time, insertion number) and nothing else. The driver takes them one by one while the worker has
//! nothing to do.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use ringwire_netem::{Duplex, Nanos, Random, SECOND_NS, Side};
use ringwire_proto::identity::PublicKey;

use crate::ledger::Ledger;
use crate::log::{Event, Log};
use crate::peer::{Context, Peer};
use crate::plan::{Fault, Plan};

/// An entry of the heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// A connection has something to move, or was touched.
    Wire(usize),
    /// A connection's handshake reached the server.
    Connected(usize),
    /// A peer has something to do by the clock.
    Peer(usize),
    /// A peer connects.
    Connect(usize),
    /// A fault of a peer begins (true) or is over.
    Fault(usize, usize, bool),
    /// A bridge is dialled.
    Dial(usize),
    /// The operations of a worker's cancelled socket complete.
    Cancel(usize, u32, u32),
    /// A completion becomes visible.
    Ready,
    /// The oracle looks for starvation.
    Watch,
    /// It looks again at what it saw.
    LookAgain,
    /// The worker is to be replaced.
    Handover,
    /// The worker is to stop.
    Stop,
    /// The run enters its next phase.
    Phase(Phase),
}

/// What a run goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Bridges run.
    Busy,
    /// Everybody ends what is left.
    Quiesce,
    /// Streams are gone, sessions are up: the worker is inspected.
    Settled,
    /// Sessions end.
    Leave,
    /// Everything is gone: the worker is inspected again.
    Over,
}

/// A connection between a peer (side A) and the server (side B).
#[derive(Debug)]
pub struct Wire {
    /// Its bytes.
    pub duplex: Duplex,
    /// Whose it is.
    pub peer: usize,
    /// Which worker's listener it came to.
    pub worker: usize,
    /// The driver's socket, once accepted.
    pub socket: Option<u32>,
    /// The errno of the server's side, once the kernel gave up on it.
    pub error: Option<i32>,
    scheduled_at: Nanos,
}

/// See the module's head.
#[derive(Debug)]
pub struct World {
    /// Virtual time.
    pub now: Nanos,
    /// All connections there ever were.
    pub wires: Vec<Wire>,
    /// The clients.
    pub peers: Vec<Peer>,
    /// The oracle.
    pub ledger: Ledger,
    /// The record.
    pub log: Log,
    /// The phase the run is in.
    pub phase: Phase,
    /// The run loop has to stop the worker.
    pub is_stop_due: bool,
    /// The run loop has to replace the worker.
    pub is_handover_due: bool,
    /// The run loop has to look at the worker before time goes on.
    pub is_interrupted: bool,
    /// It has to wait for a worker that is being frozen.
    pub is_freezing: bool,
    /// Connections that wait to be accepted, by worker.
    pub backlogs: Vec<VecDeque<usize>>,
    /// What happened for another worker's driver than the one that let it happen.
    pub deferred: Vec<Wake>,
    /// Payload pages read by peers need somewhere to go.
    heap: BinaryHeap<Reverse<(Nanos, u64, Wake)>>,
    inserted: u64,
    steps_at_this_time: u32,
    /// Turns since something happened.
    idle_turns: u32,
    keys: Vec<PublicKey>,
    absent: PublicKey,
    random: Random,
}

/// Events at one time after which something is wrong with the simulator itself.
const SPINNING_STEPS: u32 = 1_000_000;
/// How often the oracle looks for starvation.
const WATCH_NS: Nanos = SECOND_NS / 2;
/// Between the phases at the end.
const LEAVE_NS: Nanos = 90 * SECOND_NS;

impl World {
    /// A world at the beginning of a run.
    pub fn new(ledger: Ledger, peers: Vec<Peer>, absent: PublicKey, log: Log, random: Random) -> Self {
        let keys = peers.iter().map(|peer| peer.key).collect();
        let workers = ledger.plan.workers;
        let mut world = Self {
            now: SECOND_NS,
            wires: Vec::new(),
            peers,
            ledger,
            log,
            phase: Phase::Busy,
            is_stop_due: false,
            is_handover_due: false,
            is_interrupted: false,
            is_freezing: false,
            backlogs: (0..workers).map(|_| VecDeque::new()).collect(),
            deferred: Vec::new(),
            heap: BinaryHeap::new(),
            inserted: 0,
            steps_at_this_time: 0,
            idle_turns: 0,
            keys,
            absent,
            random,
        };
        world.schedule_plan();
        world
    }

    /// What the driver of a worker holds while another one has the world.
    pub fn nowhere(&self) -> Self {
        let plan = Plan { peers: Vec::new(), bridges: Vec::new(), ..self.ledger.plan.clone() };
        Self::new(Ledger::new(plan), Vec::new(), self.absent, Log::new(None), self.random.fork(0))
    }

    fn schedule_plan(&mut self) {
        let plan = self.ledger.plan.clone();
        for (peer, peer_plan) in plan.peers.iter().enumerate() {
            self.schedule(peer_plan.connects_at, Wake::Connect(peer));
            for (at, _) in &peer_plan.errands {
                self.schedule(*at, Wake::Peer(peer));
            }
            for (index, fault) in peer_plan.faults.iter().enumerate() {
                let (from, until) = match *fault {
                    Fault::GoAwayAt(at)
                    | Fault::ResetAt(at)
                    | Fault::CloseAt(at)
                    | Fault::BlackHole(at)
                    | Fault::CutOneWay(at, _) => (at, None),
                    Fault::CutFor(at, ns) | Fault::PauseFor(at, ns) => (at, Some(at + ns)),
                    Fault::StallFor(at, _, _) => (at, None),
                    Fault::ResetAfterReceived(_) | Fault::ResetAfterSent(_) => continue,
                };
                self.schedule(from, Wake::Fault(peer, index, true));
                if let Some(until) = until {
                    self.schedule(until, Wake::Fault(peer, index, false));
                }
            }
        }
        for (bridge, bridge_plan) in plan.bridges.iter().enumerate() {
            self.schedule(bridge_plan.at, Wake::Dial(bridge));
        }
        if let Some(at) = plan.stops_at {
            self.schedule(at, Wake::Stop);
        }
        for at in plan.handovers {
            self.schedule(at, Wake::Handover);
        }
        self.schedule(plan.quiesce_at, Wake::Phase(Phase::Quiesce));
        self.schedule(plan.settled_at, Wake::Phase(Phase::Settled));
        if !plan.stops_with_sessions {
            self.schedule(plan.settled_at + SECOND_NS, Wake::Phase(Phase::Leave));
            self.schedule(plan.settled_at + LEAVE_NS, Wake::Phase(Phase::Over));
        }
        self.schedule(SECOND_NS + WATCH_NS, Wake::Watch);
    }

    /// Puts an entry into the heap.
    pub fn schedule(&mut self, at: Nanos, wake: Wake) {
        self.inserted += 1;
        self.heap.push(Reverse((at.max(self.now), self.inserted, wake)));
    }

    /// When the next event is.
    pub fn next_event(&self) -> Option<Nanos> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    /// Lets the next event happen, and returns it for the driver to look at.
    pub fn step(&mut self) -> Option<Wake> {
        let Reverse((at, _, wake)) = self.heap.pop()?;
        if at > self.now {
            self.now = at;
            self.steps_at_this_time = 0;
        }
        self.steps_at_this_time += 1;
        if self.steps_at_this_time > SPINNING_STEPS {
            self.ledger.fail(self.now, format!("the simulator spins, last with {wake:?}"));
        }
        match wake {
            Wake::Wire(wire) => {
                if self.wires[wire].scheduled_at <= self.now {
                    self.wires[wire].scheduled_at = Nanos::MAX;
                }
                let now = self.now;
                self.wires[wire].duplex.advance(now);
                self.run_peer(self.wires[wire].peer);
                self.reschedule(wire);
            }
            Wake::Connected(wire) => self.backlogs[self.wires[wire].worker].push_back(wire),
            Wake::Peer(peer) => {
                self.peers[peer].timer_fired(self.now);
                self.run_peer(peer);
            }
            Wake::Connect(peer) => self.connect(peer),
            Wake::Fault(peer, index, begins) => self.fault(peer, index, begins),
            Wake::Dial(bridge) => {
                let source = self.ledger.plan.bridges[bridge].source;
                self.peers[source].ask_to_dial(bridge);
                self.run_peer(source);
            }
            Wake::Watch => {
                self.ledger.check_starvation(self.now);
                if self.phase < Phase::Settled {
                    self.schedule(self.now + WATCH_NS, Wake::Watch);
                }
            }
            Wake::Stop => (self.is_stop_due, self.is_interrupted) = (true, true),
            Wake::Handover => (self.is_handover_due, self.is_interrupted) = (true, true),
            Wake::Phase(phase) => self.enter(phase),
            Wake::Cancel(..) | Wake::Ready | Wake::LookAgain => {}
        }
        Some(wake)
    }

    /// A worker took a turn, with completions or without; so many were without since something happened.
    pub fn count_turn(&mut self, has_completions: bool) -> u32 {
        self.idle_turns = if has_completions { 0 } else { self.idle_turns + 1 };
        self.idle_turns
    }

    /// Something happened.
    pub fn count_event(&mut self) {
        self.idle_turns = 0;
    }

    /// Whose driver has to look at an event.
    pub fn worker_of(&self, wake: Wake) -> Option<usize> {
        match wake {
            Wake::Wire(wire) | Wake::Connected(wire) => Some(self.wires[wire].worker),
            Wake::Cancel(worker, ..) => Some(worker),
            _ => None,
        }
    }

    /// The server's side of a connection was used: the peer may have something to do, now or later.
    pub fn touched(&mut self, wire: usize) {
        self.schedule(self.now, Wake::Wire(wire));
    }

    fn connect(&mut self, peer: usize) {
        let plan = &self.ledger.plan.peers[peer];
        let wire = self.wires.len();
        let duplex = Duplex::new(plan.up.clone(), plan.down.clone(), &self.random.fork(wire as u64));
        let arrives_at = self.now + plan.up.line.delay_ns;
        let workers = self.ledger.plan.workers as u64;
        let worker = self.random.fork(!(wire as u64)).below(workers) as usize;
        self.wires.push(Wire { duplex, peer, worker, socket: None, error: None, scheduled_at: Nanos::MAX });
        self.log.note(self.now, Event::Connects { peer, wire });
        self.schedule(arrives_at, Wake::Connected(wire));
        self.peers[peer].connected(self.now, wire);
        self.run_peer(peer);
    }

    fn fault(&mut self, peer: usize, index: usize, begins: bool) {
        let now = self.now;
        let Some(wire) = self.peers[peer].wire else { return };
        let fault = self.ledger.plan.peers[peer].faults[index];
        let duplex = &mut self.wires[wire].duplex;
        let what = match (fault, begins) {
            (Fault::ResetAt(_), _) => {
                duplex.reset(now, Side::A);
                "connection reset"
            }
            (Fault::CloseAt(_), _) => {
                self.peers[peer].close_at_once();
                "closes its connection"
            }
            (Fault::GoAwayAt(_), _) => {
                self.peers[peer].go_away();
                "takes no new streams"
            }
            (Fault::BlackHole(_), _) => {
                duplex.set_cut(now, Side::A, true);
                duplex.set_cut(now, Side::B, true);
                "black hole"
            }
            (Fault::CutFor(..), begins) => {
                duplex.set_cut(now, Side::A, begins);
                duplex.set_cut(now, Side::B, begins);
                if begins { "cut both ways" } else { "restored" }
            }
            (Fault::CutOneWay(_, side), _) => {
                duplex.set_cut(now, side, true);
                "cut one way"
            }
            (Fault::StallFor(_, ns, side), _) => {
                duplex.stall(side, now + ns);
                "stall"
            }
            (Fault::PauseFor(..), begins) => {
                self.peers[peer].is_paused = begins;
                if begins { "stops reading its connection" } else { "reads again" }
            }
            (Fault::ResetAfterReceived(_) | Fault::ResetAfterSent(_), _) => return,
        };
        self.log.note(now, Event::Fault { peer, what });
        self.run_peer(peer);
        self.touched(wire);
    }

    /// Lets a peer do what it can, and plans when it is to be asked again.
    fn run_peer(&mut self, peer: usize) {
        let Some(wire) = self.peers[peer].wire else { return };
        let mut context = Context {
            now: self.now,
            duplex: &mut self.wires[wire].duplex,
            ledger: &mut self.ledger,
            log: &mut self.log,
            keys: &self.keys,
            absent: &self.absent,
        };
        let moved = self.peers[peer].run(&mut context);
        if let Some(at) = self.peers[peer].next_timer() {
            self.schedule(at, Wake::Peer(peer));
        }
        if moved {
            // The server's side may have bytes to read or room to write now.
            self.touched(wire);
        } else {
            self.reschedule(wire);
        }
    }

    fn reschedule(&mut self, wire: usize) {
        if let Some(at) = self.wires[wire].duplex.next_event(self.now)
            && at < self.wires[wire].scheduled_at
        {
            let at = at.max(self.now);
            self.wires[wire].scheduled_at = at;
            self.schedule(at, Wake::Wire(wire));
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        let now = self.now;
        let name = match phase {
            Phase::Busy => "busy",
            Phase::Quiesce => {
                self.ledger.check_complete(now);
                self.ledger.is_quiescing = true;
                "everybody ends what is left"
            }
            Phase::Settled => {
                self.ledger.check_settled(now);
                self.is_interrupted = true;
                "streams are gone"
            }
            Phase::Leave => {
                self.ledger.is_ending = true;
                "everybody leaves"
            }
            Phase::Over => {
                self.is_interrupted = true;
                "over"
            }
        };
        self.log.note(now, Event::Phase { name });
        for peer in 0..self.peers.len() {
            if phase == Phase::Leave {
                self.peers[peer].leave();
            }
            self.run_peer(peer);
        }
    }
}
