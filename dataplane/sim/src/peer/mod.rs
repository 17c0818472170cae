//! A model client: its connection, its session handshake, its multiplexer and its streams, on `ringwire_proto` alone.
//!
//! In: [`Peer::run`] whenever something may have changed. Out: bytes on its connection, entries in the ledger. It keeps
//! the rules of the wire unless its character says otherwise, and reports a server that does not.

mod app;
mod errand;
mod handshake;
mod mux;

use std::collections::{BTreeMap, VecDeque};

use ringwire_netem::{Duplex, Nanos, ReadOutcome, SECOND_NS, Side};
use ringwire_proto::aead::RustCryptoAead;
use ringwire_proto::entropy::SeededEntropy;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::sealed::{Opener, Sealer, WindowReplay};
use ringwire_proto::smux;
use ringwire_proto::yamux::{Flags, Header};

use self::app::App;
use self::errand::ErrandState;
use self::handshake::Greeting;
use self::mux::{ClientMux, MuxEvent};
use crate::ledger::{Ending, Ledger};
use crate::log::{Event, Log};
use crate::plan::{Character, Fault, Manner, PeerPlan, Rudeness};

/// What a peer may touch while it runs.
pub struct Context<'a> {
    /// The time.
    pub now: Nanos,
    /// Its connection; the peer is side A.
    pub duplex: &'a mut Duplex,
    /// The oracle.
    pub ledger: &'a mut Ledger,
    /// The record.
    pub log: &'a mut Log,
    /// Keys of all peers.
    pub keys: &'a [PublicKey],
    /// A key nobody has.
    pub absent: &'a PublicKey,
}

/// See the module's head.
pub struct Peer {
    /// Its place in the plan.
    pub index: usize,
    /// What it proves in its handshake.
    pub key: PublicKey,
    /// Its connection, once it has one.
    pub wire: Option<usize>,
    /// It does not read its connection for now.
    pub is_paused: bool,
    plan: PeerPlan,
    secret: SecretKey,
    server: PublicKey,
    entropy: SeededEntropy,
    stage: Stage,
    is_healthy: bool,
    /// Bytes for the connection.
    out: Vec<u8>,
    out_sent: usize,
    sent_len: u64,
    received_len: u64,
    dials: VecDeque<usize>,
    rude_at: Nanos,
    closes: bool,
    timer_at: Nanos,
    scheduled_at: Nanos,
    buffer: Vec<u8>,
}

enum Stage {
    Idle,
    Greeting(Box<Greeting>),
    Open(Box<Open>),
    Over,
}

/// An open session of a peer.
struct Open {
    mux: ClientMux,
    sealer: Sealer<RustCryptoAead>,
    opener: Opener<RustCryptoAead, WindowReplay>,
    apps: BTreeMap<u32, App>,
    errands: BTreeMap<u32, ErrandState>,
    /// Silent streams an opener has still to open.
    idle_left: u32,
    pings_at: Nanos,
}

impl Open {
    /// Opens as many silent streams as may wait for their acknowledgement.
    fn open_idle(&mut self, now: Nanos) {
        while self.idle_left > 0
            && let Ok(stream) = self.mux.open(now)
        {
            self.apps.insert(stream, App::idle());
            self.idle_left -= 1;
        }
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Bytes a peer prepares for its connection at a time.
const OUT_LEN: usize = 32 * 1024;
/// A Go client closes its session when a ping reply takes longer.
const PONG_WITHIN_NS: Nanos = 10 * SECOND_NS;
/// How often a deaf client says something.
const DEAF_EVERY_NS: Nanos = 5 * SECOND_NS;
/// Besides the keepalive, peers measure how long a ping takes.
const PING_EVERY_NS: Nanos = 7 * SECOND_NS;

impl Peer {
    /// A client that has not connected yet.
    pub fn new(
        index: usize,
        plan: PeerPlan,
        is_healthy: bool,
        secret: SecretKey,
        server: PublicKey,
        seed: u64,
    ) -> Self {
        Self {
            index,
            key: secret.public_key(),
            wire: None,
            is_paused: false,
            plan,
            secret,
            server,
            entropy: SeededEntropy::new(seed),
            stage: Stage::Idle,
            is_healthy,
            out: Vec::new(),
            out_sent: 0,
            sent_len: 0,
            received_len: 0,
            dials: VecDeque::new(),
            rude_at: Nanos::MAX,
            closes: false,
            timer_at: Nanos::MAX,
            scheduled_at: Nanos::MAX,
            buffer: vec![0; 64 * 1024],
        }
    }

    /// Its connection is under way.
    pub fn connected(&mut self, now: Nanos, wire: usize) {
        self.wire = Some(wire);
        self.begin_greeting(now);
    }

    /// To be dialled as soon as there is a session.
    pub fn ask_to_dial(&mut self, bridge: usize) {
        self.dials.push_back(bridge);
    }

    /// Closes the connection, streams and all.
    pub fn close_at_once(&mut self) {
        self.closes = true;
    }

    /// Tells the server to open no more streams.
    pub fn go_away(&mut self) {
        if let Stage::Open(open) = &mut self.stage {
            open.mux.go_away();
        }
    }

    /// Ends the session in an orderly way.
    pub fn leave(&mut self) {
        self.closes = true;
    }

    /// An entry of the heap for this peer fired.
    pub fn timer_fired(&mut self, now: Nanos) {
        if self.scheduled_at <= now {
            self.scheduled_at = Nanos::MAX;
        }
    }

    /// When the peer wants to run again, if that is sooner than what it said before.
    pub fn next_timer(&mut self) -> Option<Nanos> {
        if self.timer_at < self.scheduled_at {
            self.scheduled_at = self.timer_at;
            return Some(self.timer_at);
        }
        None
    }

    /// How many streams its multiplexer has; 0 without a session. What an smux client forgets to finish the server cannot end
    /// for it: such do not count.
    pub fn stream_count(&self) -> usize {
        match &self.stage {
            Stage::Open(open) if open.mux.is_smux() && !self.plan.answers_finish => 0,
            Stage::Open(open) => open.mux.stream_count(),
            Stage::Idle | Stage::Greeting(_) | Stage::Over => 0,
        }
    }

    /// Whether its session is up.
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }

    /// Does everything that can be done now. True when bytes moved.
    pub fn run(&mut self, context: &mut Context<'_>) -> bool {
        let mut moved = false;
        if matches!(self.stage, Stage::Over | Stage::Idle) {
            return false;
        }
        loop {
            let mut again = self.receive(context);
            if self.closes && !matches!(self.stage, Stage::Over) {
                self.transmit(context);
                self.note_closed(context);
                context.duplex.close(context.now, Side::A);
                self.end(context, "closed by itself");
                return true;
            }
            let was_held_back = self.is_held_back();
            self.work(context);
            again |= was_held_back && !self.is_held_back();
            again |= self.transmit(context);
            moved |= again;
            if !again || matches!(self.stage, Stage::Over) {
                break;
            }
        }
        self.plan_timer(context.now);
        moved
    }

    fn receive(&mut self, context: &mut Context<'_>) -> bool {
        if self.is_paused || self.is_held_back() || matches!(self.stage, Stage::Over) {
            return false;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let outcome = context.duplex.read(context.now, Side::A, &mut buffer);
        let moved = match outcome {
            ReadOutcome::Bytes(len) => {
                self.received_len += len as u64;
                self.take_bytes(context, &buffer[..len]);
                self.reset_if_due(context);
                true
            }
            ReadOutcome::Blocked => false,
            ReadOutcome::End => {
                self.end(context, "closed by the server");
                true
            }
            ReadOutcome::Lost => {
                self.end(context, "connection lost");
                true
            }
        };
        self.buffer = buffer;
        moved
    }

    /// Its multiplexer has more than its applications read.
    fn is_held_back(&self) -> bool {
        matches!(&self.stage, Stage::Open(open) if !open.mux.may_receive())
    }

    fn take_bytes(&mut self, context: &mut Context<'_>, bytes: &[u8]) {
        let mut rest = bytes;
        if matches!(self.stage, Stage::Greeting(_)) {
            self.greet(context, &mut rest);
        }
        if let Stage::Open(open) = &mut self.stage {
            open.mux.push(context.now, rest);
        }
    }

    /// The connection dies at a planned byte.
    fn reset_if_due(&mut self, context: &mut Context<'_>) {
        let due = self.plan.faults.iter().any(|fault| match *fault {
            Fault::ResetAfterReceived(len) => self.received_len >= len,
            Fault::ResetAfterSent(len) => self.sent_len >= len,
            _ => false,
        });
        if due && !matches!(self.stage, Stage::Over) {
            context
                .log
                .note(context.now, Event::Fault { peer: self.index, what: "connection reset at a byte" });
            context.duplex.reset(context.now, Side::A);
            self.end(context, "connection lost");
        }
    }

    /// Events, timers, streams.
    fn work(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        let is_deaf = self.is_deaf();
        if let Stage::Open(open) = &mut self.stage {
            if !is_deaf {
                open.mux.handle_timeout(now);
            }
            if now >= open.pings_at {
                open.pings_at = now + PING_EVERY_NS;
                open.mux.ping(now);
            }
        }
        self.handle_events(context);
        if matches!(self.stage, Stage::Open(_)) && now >= self.rude_at {
            self.rude_at = if self.is_deaf() { now + DEAF_EVERY_NS } else { Nanos::MAX };
            self.be_rude();
        }
        self.dial_waiting(context);
        self.run_apps(context);
        self.run_errands(context);
    }

    fn handle_events(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        while let Stage::Open(open) = &mut self.stage {
            let Some(event) = open.mux.poll_event() else { break };
            match event {
                MuxEvent::Opened(stream) => {
                    open.mux.accept();
                    open.apps.insert(stream, App::destination());
                }
                MuxEvent::Reset(stream) => {
                    if let Some(app) = open.apps.get_mut(&stream) {
                        app.was_reset = true;
                    }
                }
                MuxEvent::PingAnswered { rtt_ns } => {
                    context.log.note(now, Event::Pong { peer: self.index, rtt_ns });
                    if self.is_healthy && rtt_ns > PONG_WITHIN_NS {
                        let (peer, ms) = (self.index, rtt_ns / 1_000_000);
                        context.ledger.fail(now, format!("peer {peer}: a ping was answered after {ms} ms"));
                    }
                }
                MuxEvent::Closed { is_violation } => {
                    self.judge(context, is_violation);
                    self.transmit(context);
                    context.duplex.close(now, Side::A);
                    self.end(context, "closed for a reason of its multiplexer");
                }
                MuxEvent::Acked(_) => open.open_idle(context.now),
                MuxEvent::Readable(_) | MuxEvent::Other => {}
            }
        }
    }

    /// The multiplexer gave up on the server: with an honest peer that is a broken promise, unless the link explains it.
    fn judge(&self, context: &mut Context<'_>, is_violation: bool) {
        let is_rude = !matches!(self.plan.character, Character::Honest | Character::Opener(_));
        // One that is dialled before its first byte came through is taken for yamux (dmsg-wire 4.5).
        let is_mistaken = self.plan.smux.is_some() && !self.is_healthy;
        let (excused, what) = if is_violation {
            (is_rude || is_mistaken, "it broke a rule of the multiplexer")
        } else {
            (!self.is_healthy, "it is silent")
        };
        if !excused {
            context.ledger.fail(context.now, format!("peer {}: the server's fault: {what}", self.index));
        }
    }

    fn transmit(&mut self, context: &mut Context<'_>) -> bool {
        let mut moved = false;
        loop {
            if self.out_sent == self.out.len() {
                self.out.clear();
                self.out_sent = 0;
                if let Stage::Open(open) = &mut self.stage {
                    open.mux.poll_transmit(&mut self.out, OUT_LEN);
                }
            }
            if self.out_sent == self.out.len() || matches!(self.stage, Stage::Over) {
                return moved;
            }
            let mut until = self.out.len();
            for fault in &self.plan.faults {
                // Exactly at that byte.
                if let Fault::ResetAfterSent(len) = *fault {
                    until = until.min(self.out_sent + len.saturating_sub(self.sent_len) as usize);
                }
            }
            match context.duplex.write(context.now, Side::A, &self.out[self.out_sent..until]) {
                Ok(0) => {
                    self.reset_if_due(context);
                    return moved;
                }
                Ok(taken) => {
                    self.out_sent += taken;
                    self.sent_len += taken as u64;
                    moved = true;
                    self.reset_if_due(context);
                }
                // The next read says so too.
                Err(_) => return moved,
            }
        }
    }

    /// It is about to close its connection: whoever has all that it wrote in there has ended in order.
    fn note_closed(&self, context: &mut Context<'_>) {
        let Stage::Open(open) = &self.stage else { return };
        if self.out_sent < self.out.len() {
            return;
        }
        for (&stream, app) in &open.apps {
            if let Some(bridge) = app.bridge.filter(|_| open.mux.unsent_len(stream) == 0) {
                context.ledger.closed(context.now, bridge, app.role);
            }
        }
    }

    /// The session is over: its streams are, too.
    fn end(&mut self, context: &mut Context<'_>, why: &'static str) {
        let now = context.now;
        context.log.note(now, Event::PeerOver { peer: self.index, why });
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        self.timer_at = Nanos::MAX;
        let was_honest = matches!(self.plan.character, Character::Honest | Character::Opener(_));
        if self.is_healthy && was_honest && !context.ledger.is_ending {
            context
                .ledger
                .fail(now, format!("peer {}: its session ended without a cause: {why}", self.index));
        }
        if let Stage::Open(open) = stage {
            for app in open.apps.values() {
                if let Some(bridge) = app.bridge {
                    context.ledger.lost(now, bridge);
                    context.ledger.saw(now, context.log, bridge, app.role, Ending::Session);
                }
            }
        }
    }

    /// Breaks the rule it is there to break.
    fn be_rude(&mut self) {
        let Character::Rude(_, rudeness) = self.plan.character else { return };
        if let Some(version) = self.plan.smux {
            return self.be_rude_in_smux(version, rudeness);
        }
        let syn = Header::window_update(99_999, 0).with_flags(Flags::SYN).encode();
        let fin = Header::window_update(99_999, 0).with_flags(Flags::FIN).encode();
        match rudeness {
            Rudeness::Overrun => {
                self.out.extend_from_slice(&syn);
                self.out.extend_from_slice(&Header::data(99_999, 262_145).encode());
            }
            Rudeness::Version => self.out.extend_from_slice(&[9; 12]),
            Rudeness::Reopen => self.out.extend_from_slice(&[syn, syn].concat()),
            Rudeness::SecondFinish => self.out.extend_from_slice(&[syn, fin, fin].concat()),
            Rudeness::Deaf => self.out.extend_from_slice(&Header::window_update(99_999, 1).encode()),
        }
    }

    /// Likewise. A second SYN or FIN breaks no rule here, and what breaks one costs the stream alone, save the version.
    fn be_rude_in_smux(&mut self, version: smux::Version, rudeness: Rudeness) {
        let syn = smux::Header::syn(version, 99_999).encode();
        let fin = smux::Header::fin(version, 99_999).encode();
        match rudeness {
            Rudeness::Overrun => {
                self.out.extend_from_slice(&syn);
                for _ in 0..5 {
                    self.out.extend_from_slice(&smux::Header::push(version, 99_999, 60_000).encode());
                    self.out.resize(self.out.len() + 60_000, 0xff);
                }
            }
            Rudeness::Version => self.out.extend_from_slice(&[9; 8]),
            Rudeness::Reopen => self.out.extend_from_slice(&[syn, syn].concat()),
            Rudeness::SecondFinish => self.out.extend_from_slice(&[syn, fin, fin].concat()),
            Rudeness::Deaf => {}
        }
    }

    fn is_deaf(&self) -> bool {
        matches!(self.plan.character, Character::Rude(_, Rudeness::Deaf))
    }

    fn plan_timer(&mut self, now: Nanos) {
        self.timer_at = match &self.stage {
            Stage::Open(open) => {
                let apps = open.apps.values().map(|app| app.timer_at).min().unwrap_or(Nanos::MAX);
                let mux = open.mux.next_timeout().filter(|_| !self.is_deaf()).unwrap_or(Nanos::MAX);
                apps.min(mux).min(open.pings_at).min(self.rude_at).max(now)
            }
            Stage::Greeting(_) | Stage::Idle | Stage::Over => Nanos::MAX,
        };
    }

    /// The handshake is done.
    fn open_session(&mut self, context: &mut Context<'_>, outcome: &ringwire_proto::noise::Outcome) {
        let now = context.now;
        context.log.note(now, Event::PeerOpen { peer: self.index, hybrid: outcome.hybrid });
        let mut open = Open {
            mux: ClientMux::new(self.plan.smux, now),
            sealer: Sealer::new(&outcome.send),
            opener: Opener::new(&outcome.receive),
            apps: BTreeMap::new(),
            errands: BTreeMap::new(),
            idle_left: 0,
            pings_at: if self.plan.pings { now + PING_EVERY_NS } else { Nanos::MAX },
        };
        match self.plan.character {
            Character::Opener(count) => {
                open.idle_left = count;
                open.open_idle(now);
            }
            Character::Rude(after, _) => self.rude_at = now + after,
            Character::Honest | Character::Stranger(_) => {}
        }
        self.stage = Stage::Open(Box::new(open));
    }

    /// A Go client sends each write by itself.
    fn is_go(&self) -> bool {
        self.plan.manner == Manner::Go
    }
}
