//! A worker's state as bytes: exported between two turns, imported into a new worker.
//!
//! [`Worker::freeze`] recalls what is pending at the driver, takes turns until nothing is, and writes sessions, streams and
//! queued bytes into one blob. Half-received frames are in the cutter, what was left of a send goes first in the outbox, what was
//! received and had not had its turn goes along: not a byte is lost or doubled. Connections stay with the driver; their keys are in the blob. Strangers in the middle of their
//! handshake are let go: they try again.
//!
//! A worker of several is frozen while the others go on: what they have for it waits in its mailbox, its place in the team is handed
//! over beside the blob, and so are its driver and with it the pages it has lent. What it borrowed is copied and goes home.
//!
//! The blob holds session keys: it is erased when dropped and must stay between the two workers.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ringwire_exchange::WorkerIndex;
use ringwire_proto::identity::PublicKey;
use ringwire_proto::noise::DirectionKey;
use ringwire_proto::noise::sealed::{Opener, Sealer, WindowReplay};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::bridge::{Expected, Half, Listed, State};
use crate::coalesce::Pace;
use crate::counters::{Counter, CounterBlock};
use crate::driver::{Batch, Driver, DriverError, Nanos, Wait};
use crate::holders::Name;
use crate::lane::Lane;
use crate::limits;
use crate::prefix::Prefix;
use crate::session::{
    CloseReason, Drain, Established, Mux, Phase, Purse, Rest, Rival, Session, Stall, Target,
};
use crate::slab::{Key, Slab};
use crate::team::{Dialling, Owes, StandIn, Team};
use crate::worker::{Settings, Timer, Worker};

/// Changes whenever the layout below does: a blob of another version is refused.
pub const VERSION: u32 = 6;

/// A frozen worker. Erased when dropped.
pub struct Frozen(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frozen({} bytes)", self.0.len())
    }
}

impl Frozen {
    /// The bytes, to hand over.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Bytes that were handed over.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

/// Why a worker could not be frozen or thawed.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The driver failed while what was pending was recalled.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The bytes are not a frozen worker.
    #[error("not a frozen worker: {0}. Start afresh: clients reconnect by themselves")]
    Malformed(#[from] postcard::Error),
    /// The bytes were written by another build.
    #[error(
        "frozen by a build with layout {found}, this one has {VERSION}. Start afresh: clients reconnect by themselves"
    )]
    Version {
        /// The layout in the bytes.
        found: u32,
    },
    /// The buffer memory of this worker cannot take the queues.
    #[error(
        "the buffer memory is too small for {needed} queued bytes. Thaw with at least the memory of the frozen worker"
    )]
    Memory {
        /// Queued bytes in all.
        needed: usize,
    },
}

#[derive(Serialize, Deserialize)]
struct FrozenWorker {
    version: u32,
    session_generations: Vec<u32>,
    half_generations: Vec<u32>,
    sessions: Vec<(Key, FrozenSession)>,
    halves: Vec<(Key, FrozenHalf)>,
    connections: usize,
}

#[derive(Serialize, Deserialize)]
struct FrozenSession {
    socket: Key,
    peer_address: std::net::SocketAddr,
    outbox: Vec<u8>,
    closing: bool,
    accepted_at: Nanos,
    drain: Drain,
    peer: Vec<u8>,
    hybrid: bool,
    opened_at: Nanos,
    mux: Mux,
    target: Target,
    send_key: [u8; 32],
    receive_key: [u8; 32],
    sent_objects: u64,
    replay: WindowReplay,
    /// That of its entry in the directory, if that outlives the worker.
    generation: u64,
    /// Another one holds its key.
    stands_by: bool,
    heard_at: Nanos,
    rival: Option<Rival>,
    /// Received and not handled.
    rest: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct FrozenHalf {
    session: Key,
    stream: u32,
    partner: Key,
    state: State,
    queue: Vec<u8>,
    early: Vec<u8>,
    /// An object the handshake lane had not judged yet: it is given to the successor's lane.
    verifying: Option<Vec<u8>>,
    own_len: usize,
    delivers: bool,
    sent_at: Nanos,
    finish: bool,
    finished: bool,
    is_dialled: bool,
    expected: Option<([u8; 32], Vec<u8>)>,
    active_at: Nanos,
    source: Key,
    /// For whom it holds what it holds.
    holder: (Prefix, Vec<u8>),
    extra: usize,
    debt: usize,
    window_len: usize,
    window_since: Nanos,
    bridged: u64,
    bridged_since: Nanos,
    blocked_since: Option<Nanos>,
    blocked_ns: u64,
    deadline: Nanos,
    crosses: bool,
    stand_in: Option<FrozenStandIn>,
}

#[derive(Serialize, Deserialize)]
struct FrozenStandIn {
    worker: WorkerIndex,
    half: Key,
    peer: Vec<u8>,
    dialling: Option<(u64, Vec<u8>)>,
    answer: Option<Vec<u8>>,
    delivered: usize,
    owes: Owes,
    lent_len: usize,
    lent_since: Nanos,
    backlog: usize,
    blocked_ns: Nanos,
    window: usize,
}

/// Turns a recall may take; each waits up to `RECALL_WAIT_NS`.
const RECALL_TURNS_MAX: usize = 500;
const RECALL_WAIT_NS: u64 = 10_000_000;

impl<D: Driver> Worker<D> {
    /// Ends this worker: its driver, with the connections and nothing pending, and its state.
    ///
    /// # Errors
    /// The driver's; then the connections are lost with it.
    pub fn freeze(self) -> Result<(D, Frozen), FreezeError> {
        self.freeze_of_team().map(|(driver, frozen, _)| (driver, frozen))
    }

    /// As [`freeze`](Self::freeze), for a worker of several: with its place among them, for its successor on the same driver.
    ///
    /// # Errors
    /// As for `freeze`.
    pub fn freeze_of_team(mut self) -> Result<(D, Frozen, Option<Team>), FreezeError> {
        self.recall()?;
        self.decide_all_contested();
        let half_open: Vec<Key> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.open().is_none())
            .map(|(key, _)| key)
            .collect();
        for key in half_open {
            self.close_session(key, CloseReason::Stopping);
        }
        self.recall_dials();
        let sessions = std::mem::take(&mut self.sessions);
        let halves = std::mem::take(&mut self.halves);
        let frozen = FrozenWorker {
            version: VERSION,
            session_generations: sessions.generations(),
            half_generations: halves.generations(),
            sessions: sessions
                .into_entries()
                .filter_map(|(key, mut session)| {
                    let rest = self.write_out(session.open_mut()?.rest.spans());
                    let stands_by = session.open().is_some_and(|open| self.stands_by(open));
                    Some((key, freeze_session(session, stands_by, rest)?))
                })
                .collect(),
            halves: halves
                .into_entries()
                .filter_map(|(key, half)| Some((key, self.freeze_half(half)?)))
                .collect(),
            connections: self.connections,
        };
        let bytes = Zeroizing::new(postcard::to_allocvec(&frozen)?);
        debug_assert!(self.nodes.is_empty(), "every queue was written out");
        let mut team = self.team.take();
        if let Some(team) = &mut team {
            team.forget_listed();
        }
        Ok((self.driver, Frozen(bytes), team))
    }

    /// Goes on where a frozen worker stopped. `driver` has its connections, by the same keys; the other arguments are as for
    /// [`Worker::new`].
    ///
    /// # Errors
    /// The bytes are not usable here; the connections are untouched, for a fresh worker cannot use them: drop the driver.
    #[allow(clippy::too_many_arguments, reason = "those of `new` and the bytes")]
    pub fn thaw(
        frozen: &Frozen,
        driver: D,
        listeners: usize,
        settings: Settings,
        lane: Box<dyn Lane>,
        counters: Arc<CounterBlock>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, FreezeError> {
        Self::thaw_in_team(frozen, None, driver, listeners, settings, lane, counters, stop)
    }

    /// As [`thaw`](Self::thaw), with the place among several workers that the frozen one had.
    ///
    /// # Errors
    /// As for `thaw`.
    #[allow(clippy::too_many_arguments, reason = "those of `new`, the bytes and the team")]
    pub fn thaw_in_team(
        frozen: &Frozen,
        team: Option<Team>,
        driver: D,
        listeners: usize,
        settings: Settings,
        lane: Box<dyn Lane>,
        counters: Arc<CounterBlock>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, FreezeError> {
        let (version, _) = postcard::take_from_bytes::<u32>(&frozen.0)?;
        if version != VERSION {
            return Err(FreezeError::Version { found: version });
        }
        let frozen: FrozenWorker = postcard::from_bytes(&frozen.0)?;
        let mut worker = Self::new(driver, listeners, settings, lane, counters, stop);
        if let Some(team) = team {
            worker.join(team);
        }
        let queued = frozen.halves.iter().map(|(_, half)| half.queue.len() + half.early.len());
        let needed = queued.chain(frozen.sessions.iter().map(|(_, session)| session.rest.len())).sum();
        let mut halves = Vec::with_capacity(frozen.halves.len());
        for (key, half) in frozen.halves {
            halves.push((key, worker.thaw_half(half).ok_or(FreezeError::Memory { needed })?));
        }
        worker.halves = Slab::from_entries(&frozen.half_generations, halves);
        // The directory of several outlives each; that of one is made anew, holders before those who stand by, in their order.
        let mut entries: Vec<(bool, u64, Key)> = frozen
            .sessions
            .iter()
            .map(|(key, session)| (session.stands_by, session.generation, *key))
            .collect();
        entries.sort_unstable();
        let sessions: Vec<(Key, Session)> = frozen
            .sessions
            .into_iter()
            .map(|(key, session)| worker.thaw_session(session, needed).map(|session| (key, session)))
            .collect::<Result<_, _>>()?;
        worker.sessions = Slab::from_entries(&frozen.session_generations, sessions);
        worker.connections = frozen.connections;
        if worker.team.is_none() {
            entries.into_iter().for_each(|(_, _, key)| worker.file_again(key));
        }
        worker.resume();
        Ok(worker)
    }

    /// Files a thawed session under its key, beside or behind those that came before it.
    fn file_again(&mut self, key: Key) {
        let Some(session) = self.sessions.find_mut(key) else { return };
        let address = session.peer_address;
        if let Some(open) = session.open_mut() {
            let inserted = self.directory.insert(open.peer, self.index, key.number(), address);
            open.generation = inserted.generation;
        }
    }

    /// Takes back what is pending at the driver.
    fn recall(&mut self) -> Result<(), DriverError> {
        self.freezing = true;
        let sockets: Vec<Key> = self.sessions.iter().map(|(_, session)| session.socket).collect();
        for socket in sockets {
            self.driver.recall(socket);
        }
        let mut batch = Batch::default();
        for _ in 0..RECALL_TURNS_MAX {
            if !self.sessions.iter().any(|(_, session)| session.sending || session.receiving) {
                break;
            }
            let until = Some(self.driver.now() + RECALL_WAIT_NS);
            self.driver.turn(Wait { until, company_us: 0, poll: false }, &mut batch)?;
            self.handle(&mut batch);
        }
        Ok(())
    }

    fn freeze_half(&mut self, mut half: Half) -> Option<FrozenHalf> {
        let Name { prefix, peer } = self.holders.name(half.holder)?;
        let holder = (prefix, peer.as_bytes().to_vec());
        let queue = self.write_out(&mut half.queue);
        let early = self.write_out(&mut half.early);
        Some(FrozenHalf {
            session: half.session,
            stream: half.stream,
            partner: half.partner,
            state: half.state,
            queue,
            early,
            verifying: half.verifying.map(|signed| signed.to_vec()),
            own_len: half.own_len,
            delivers: half.delivers,
            sent_at: half.sent_at,
            finish: half.finish,
            finished: half.finished,
            is_dialled: half.is_dialled,
            expected: half
                .expected
                .map(|expected| (expected.request_hash, expected.destination.as_bytes().to_vec())),
            active_at: half.active_at,
            source: half.source,
            holder,
            extra: half.extra,
            debt: half.debt,
            window_len: half.window_len,
            window_since: half.window_since,
            bridged: half.bridged,
            bridged_since: half.bridged_since,
            blocked_since: half.blocked_since,
            blocked_ns: half.blocked_ns,
            deadline: half.deadline,
            crosses: half.crosses,
            stand_in: half.stand_in.map(|stand_in| freeze_stand_in(*stand_in)),
        })
    }

    fn write_out(&mut self, queue: &mut crate::queue::Queue) -> Vec<u8> {
        let mut out = Vec::with_capacity(queue.len());
        while let Some(span) = queue.pop(&mut self.nodes, self.driver.pool(), usize::MAX) {
            out.extend_from_slice(self.driver.pool().bytes(span));
            self.driver.pool().release(span);
        }
        out
    }

    fn thaw_half(&mut self, frozen: FrozenHalf) -> Option<Half> {
        let (prefix, peer) = frozen.holder;
        let holder = self.holders.find_or_insert(Name { prefix, peer: PublicKey::from_bytes(&peer).ok()? });
        let mut half = Half::new(frozen.session, frozen.stream, frozen.state, frozen.is_dialled, holder);
        for (queue, bytes) in [(&mut half.queue, &frozen.queue), (&mut half.early, &frozen.early)] {
            if queue.push_copy(&mut self.nodes, self.driver.pool(), bytes) < bytes.len() {
                return None;
            }
        }
        half.verifying = frozen.verifying.map(Arc::from);
        half.partner = frozen.partner;
        half.own_len = frozen.own_len;
        half.delivers = frozen.delivers;
        half.sent_at = frozen.sent_at;
        half.finish = frozen.finish;
        half.finished = frozen.finished;
        half.expected = match frozen.expected {
            None => None,
            Some((request_hash, destination)) => Some(Box::new(Expected {
                request_hash,
                destination: PublicKey::from_bytes(&destination).ok()?,
            })),
        };
        half.active_at = frozen.active_at;
        half.source = frozen.source;
        half.extra = frozen.extra;
        half.debt = frozen.debt;
        half.window_len = frozen.window_len;
        half.window_since = frozen.window_since;
        half.bridged = frozen.bridged;
        half.bridged_since = frozen.bridged_since;
        half.blocked_since = frozen.blocked_since;
        half.blocked_ns = frozen.blocked_ns;
        half.deadline = frozen.deadline;
        half.crosses = frozen.crosses;
        half.stand_in = match frozen.stand_in {
            None => None,
            Some(stand_in) => Some(Box::new(thaw_stand_in(stand_in)?)),
        };
        self.holders.add_stream(holder);
        self.budget.grant(half.extra);
        self.charge(holder, half.held_len());
        Some(half)
    }

    fn thaw_session(&mut self, mut frozen: FrozenSession, needed: usize) -> Result<Session, FreezeError> {
        let rest = std::mem::take(&mut frozen.rest);
        let mut session = thaw_session(frozen, self.driver.now())?;
        if let Some(open) = session.open_mut()
            && open.rest.spans().push_copy(&mut self.nodes, self.driver.pool(), &rest) < rest.len()
        {
            return Err(FreezeError::Memory { needed });
        }
        Ok(session)
    }

    /// Counts a thawed half where it is counted besides, and lets go of a partner that was gone already: places are given out anew,
    /// and a stranger must not be taken for it.
    fn resume_half(&mut self, key: Key) {
        let Some(half) = self.halves.find_mut(key) else { return };
        let (session, partner, early_len, holder) =
            (half.session, half.partner, half.early.len(), half.holder);
        let is_open = half.verifying.is_none() && half.stand_in.is_none();
        half.is_unfinished = is_open && half.state == State::Request && self.holders.begin_request(holder);
        let is_dial = half.state == State::Response && half.expected.is_some();
        half.is_dialling =
            half.state == State::Waiting && self.holders.begin_dial(holder, self.budget.dials_max());
        if half.extra > 0 {
            half.is_extended = true;
            self.extended.push(key);
        }
        if let Some(open) = self.sessions.find_mut(session).and_then(Session::open_mut)
            && let Some(name) = self.holders.name(holder).filter(|_| is_dial)
        {
            open.unanswered.push(key, name);
        }
        self.count_unbridged(key, early_len);
        if self.halves.find(partner).is_none()
            && let Some(half) = self.halves.find_mut(key)
        {
            half.partner = Key::NONE;
        }
        self.list_half(key);
        match self.halves.find_mut(key).and_then(|half| half.verifying.take()) {
            Some(signed) => self.verify_object(key, signed),
            // A request or response that was complete and had not had its turn.
            None => self.advance_opening(key),
        }
    }

    /// Files what was thawed and sets it going: directory, timers, receives, sends.
    fn resume(&mut self) {
        let halves: Vec<(Key, Nanos)> = self.halves.iter().map(|(key, half)| (key, half.deadline)).collect();
        for (key, deadline) in halves {
            if deadline != Nanos::MAX {
                let (at, timer) = self.wheel.schedule(deadline, Timer::Half(key));
                if let Some(half) = self.halves.find_mut(key) {
                    (half.timer_at, half.timer) = (at, timer);
                }
            }
            self.resume_half(key);
        }
        if !self.extended.is_empty() {
            self.wheel.schedule(self.driver.now() + limits::EXTRA_SWEEP_NS, Timer::Extra);
        }
        let sessions: Vec<Key> = self.sessions.keys().collect();
        for key in sessions {
            self.enter_holder(key);
            let Some(session) = self.sessions.find(key) else { continue };
            let socket = session.socket;
            let prefix = Prefix::from(session.peer_address.ip());
            let peer = session.open().map(|open| open.peer);
            self.file_socket(socket, key);
            if self.settings.sessions_per_address.is_some()
                && let Some(peer) = peer
            {
                // Whom the former worker let in stays, whatever the limit.
                self.by_address.admit(prefix, peer, u32::MAX);
            }
            // What its predecessor sent may be under way.
            self.watch_for_stall(key);
            self.arm_session_timer(key);
            self.mark(key);
            // What was received is handled before more is.
            if self.sessions.find(key).and_then(Session::open).is_some_and(|open| !open.rest.is_empty()) {
                self.rests.push_back(key);
            }
            self.arm_receive(key);
        }
        self.counters.count(Counter::Thaws);
        self.forward();
    }
}

fn freeze_stand_in(stand_in: StandIn) -> FrozenStandIn {
    FrozenStandIn {
        worker: stand_in.worker,
        half: stand_in.half,
        peer: stand_in.peer.as_bytes().to_vec(),
        dialling: stand_in.dialling.map(|dial| (dial.generation, dial.signed.to_vec())),
        answer: stand_in.answer.map(|signed| signed.to_vec()),
        delivered: stand_in.delivered,
        owes: stand_in.owes,
        lent_len: stand_in.lent_len,
        lent_since: stand_in.lent_since,
        backlog: stand_in.backlog,
        blocked_ns: stand_in.blocked_ns,
        window: stand_in.window,
    }
}

fn thaw_stand_in(frozen: FrozenStandIn) -> Option<StandIn> {
    let peer = PublicKey::from_bytes(&frozen.peer).ok()?;
    let dialling = frozen.dialling.map(|(generation, signed)| Dialling {
        generation,
        signed: Arc::from(signed),
        unsent: None,
    });
    Some(StandIn {
        dialling,
        answer: frozen.answer.map(Arc::from),
        delivered: frozen.delivered,
        owes: frozen.owes,
        lent_len: frozen.lent_len,
        lent_since: frozen.lent_since,
        backlog: frozen.backlog,
        blocked_ns: frozen.blocked_ns,
        window: frozen.window,
        ..StandIn::new(frozen.worker, frozen.half, peer)
    })
}

fn freeze_session(session: Session, stands_by: bool, rest: Vec<u8>) -> Option<FrozenSession> {
    let Phase::Established(open) = session.phase else { return None };
    Some(FrozenSession {
        socket: session.socket,
        peer_address: session.peer_address,
        outbox: session.outbox,
        closing: session.closing.is_some(),
        accepted_at: session.accepted_at,
        drain: session.drain,
        peer: open.peer.as_bytes().to_vec(),
        hybrid: open.hybrid,
        opened_at: open.opened_at,
        mux: open.mux,
        target: open.target,
        send_key: *open.send_key.expose(),
        receive_key: *open.receive_key.expose(),
        sent_objects: open.sealer.counter(),
        replay: open.opener.replay().clone(),
        generation: open.generation,
        stands_by,
        heard_at: open.heard_at,
        rival: open.rival,
        rest,
    })
}

fn thaw_session(frozen: FrozenSession, now: Nanos) -> Result<Session, FreezeError> {
    let send_key = DirectionKey::from_bytes(frozen.send_key);
    let receive_key = DirectionKey::from_bytes(frozen.receive_key);
    let peer = PublicKey::from_bytes(&frozen.peer).map_err(|_| postcard::Error::DeserializeBadEncoding)?;
    let open = Established {
        peer,
        hybrid: frozen.hybrid,
        opened_at: frozen.opened_at,
        mux: frozen.mux,
        target: frozen.target,
        sealer: Sealer::with_counter(&send_key, frozen.sent_objects),
        opener: Opener::with_replay(&receive_key, frozen.replay),
        send_key,
        receive_key,
        generation: frozen.generation,
        holder: Key::NONE,
        unbridged_len: 0,
        unanswered: Default::default(),
        round_trip_ns: None,
        pace: Pace::default(),
        rest: Rest::default(),
        purse: Purse::new(now),
        pinged_at: 0,
        heard_at: frozen.heard_at,
        rival: frozen.rival,
        stall: Stall::default(),
        urgent: Default::default(),
        bulk: Default::default(),
    };
    let mut session = Session::new(
        frozen.socket,
        frozen.peer_address,
        Phase::Established(Box::new(open)),
        frozen.accepted_at,
    );
    session.outbox = frozen.outbox;
    session.closing = frozen.closing.then_some(CloseReason::Violation);
    session.drain = frozen.drain;
    Ok(session)
}

const _: () = assert!(Listed::No as u8 == 0, "a thawed half is in no list until it is put into one");
