//! One core's turn. Read this after `docs/ARCHITECTURE.md`; everything else hangs on it.
//!
//! 1. **Reap**: the driver moves what has finished into a batch, at most so many completions a turn.
//! 2. **Handle**: each completion goes to its session; bytes become frames, frames become decisions (modules `session`,
//!    `bridge`). What the [handshake lane](crate::lane) has found out since the last turn is handled alike.
//! 3. **Forward**: each session with something to send gets at most one gathered send.
//! 4. **Mail**: what others want of the worker ([`crate::mail`]).
//! 5. **Submit and wait**: one call into the kernel, with a wait chosen by [`crate::wait`].
//!
//! A worker owns its sessions, streams and buffers; no other thread touches them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::channel::Receiver;
use ipnet::IpNet;
use ringwire_exchange::WorkerIndex;
use ringwire_exchange::directory::Directory;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use ringwire_proto::yamux;

use crate::addresses::AddressCounts;
use crate::bridge::{Half, Undecided};
use crate::budget::Budget;
use crate::channel::Link;
use crate::coalesce::Coalescer;
use crate::counters::{Counter, CounterBlock};
use crate::driver::{Batch, Completion, Driver, DriverError, Gather, Nanos, SocketKey, Wait};
use crate::half_open::HalfOpenTable;
use crate::holders::Holders;
use crate::lane::Lane;
use crate::limits;
use crate::long_stashes::LongStashes;
use crate::mail::{ORDERS_MAX, Order};
use crate::prefix::Prefix;
use crate::queue::Nodes;
use crate::session::{CloseReason, ContestedDial, Crowd, Session, Share};
use crate::slab::{Key, Slab};
use crate::team::Team;
use crate::wait::{Brought, WaitPolicy};
use crate::warn::{self, Warnings};
use crate::wheel::Wheel;

/// Who the server is. Shared by its workers.
#[derive(Debug)]
pub struct Identity {
    /// Proves the server in handshakes and signs its answers to IP requests.
    pub secret_key: SecretKey,
    /// What clients know it by.
    pub public_key: PublicKey,
}

/// What an operator can set of a worker.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether sessions answer the post-quantum offer, or require it. For the handshake lane.
    pub hybrid: Hybrid,
    /// Timers and bounds of the session multiplexer.
    pub yamux: yamux::Config,
    /// Longest wait for company, in microseconds; 0: always return at once.
    pub company_us_max: u32,
    /// Longest time for which receiving from one busy session of many is put off, in microseconds; 0: never.
    pub pause_us_max: u32,
    /// Small frames a second from which on that is done.
    pub busy_frames_per_second: u64,
    /// What a turn handles of one session.
    pub share: Share,
    /// Connections at a time, half-open ones included: what the limit of descriptors permits. One more costs a half-open
    /// connection, or is closed at once.
    pub connections_max: usize,
    /// Half-open connections at a time; past it the oldest of the largest address prefix is closed.
    pub half_open_max: usize,
    /// What strangers with a long message 1 have beyond all others, all together, in bytes; past it the oldest of the largest address
    /// prefix is closed.
    pub long_stashes_len_max: usize,
    /// Sessions of one address (IPv6: of one /64) at a time; the next is closed once its key is proven. `None`: no limit.
    pub sessions_per_address: Option<u32>,
    /// Networks whose PROXY headers are believed.
    pub proxy_from: Arc<[IpNet]>,
}

impl Settings {
    /// The bound of half-open connections in force: never more than their share of all connections.
    pub fn half_open_max(&self) -> usize {
        let share = self.connections_max / 100 * limits::HALF_OPEN_PERCENT
            + self.connections_max % 100 * limits::HALF_OPEN_PERCENT / 100;
        self.half_open_max.min(share.max(1))
    }
}

/// Networks whose PROXY headers are believed unless configured otherwise: this machine.
pub fn default_proxy_from() -> Arc<[IpNet]> {
    Arc::new([
        IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8)),
        IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128)),
    ])
}

impl Default for Settings {
    fn default() -> Self {
        let yamux = yamux::Config {
            // Some above our own limit, so that a stream over it can be accepted and closed (dmsg-wire 11.2); beyond these the
            // multiplexer resets.
            streams_max: limits::STREAMS_PER_SESSION_MAX + 512,
            close_timeout_ns: limits::CLOSE_GRACE_NS,
            ..yamux::Config::server()
        };
        Self {
            hybrid: Hybrid::Offer,
            yamux,
            company_us_max: 100,
            pause_us_max: limits::PAUSE_US_MAX,
            busy_frames_per_second: limits::BUSY_FRAMES_PER_SECOND,
            share: Share::default(),
            connections_max: usize::MAX,
            half_open_max: limits::HALF_OPEN_MAX,
            long_stashes_len_max: limits::LONG_STASHES_LEN_MAX,
            sessions_per_address: None,
            proxy_from: default_proxy_from(),
        }
    }
}

/// An entry of the wheel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Timer {
    Session(Key),
    Half(Key),
    Accept(usize),
    Drain,
    /// Whose extra credit has been idle?
    Extra,
    /// Which memory is used no more?
    Trim,
}

/// One core's share of the server. See the module's head.
pub struct Worker<D> {
    pub(crate) driver: D,
    pub(crate) settings: Settings,
    /// Where handshakes and signatures are verified.
    pub(crate) lane: Box<dyn Lane>,
    pub(crate) counters: Arc<CounterBlock>,
    pub(crate) sessions: Slab<Session>,
    pub(crate) halves: Slab<Half>,
    pub(crate) nodes: Nodes,
    /// Its number among the workers that share the directory.
    pub(crate) index: WorkerIndex,
    /// The other workers, if there are any.
    pub(crate) team: Option<Team>,
    /// Sessions of all workers by the key of their peer.
    pub(crate) directory: Arc<Directory<PublicKey>>,
    pub(crate) wheel: Wheel<Timer>,
    pub(crate) budget: Budget,
    /// For whom memory is held.
    pub(crate) holders: Holders,
    /// Halves whose peers have credit beyond the base window.
    pub(crate) extended: Vec<Key>,
    /// A timer looks after free memory.
    trims: bool,
    /// When memory was short last, and streams were reset for it.
    pub(crate) relieved_at: Nanos,
    /// The prefix that holds most, as of this turn.
    pub(crate) largest: Option<(Nanos, Option<Prefix>)>,
    /// Connections that hold a descriptor, those that are being closed included.
    pub(crate) connections: usize,
    /// Sessions of each address.
    pub(crate) crowd: Crowd,
    /// Connections in their handshake.
    pub(crate) half_open: HalfOpenTable,
    pub(crate) long_stashes: LongStashes,
    /// Buffer memory in use as it is counted, in bytes.
    noted_len: usize,
    /// Clients of all workers by address, while there is a limit.
    pub(crate) by_address: Arc<AddressCounts>,
    pub(crate) warnings: Warnings,
    /// Connections whose message 3 is with the lane.
    pub(crate) proving: usize,
    /// Dials that wait for some of these.
    pub(crate) undecided: Vec<Undecided>,
    /// Dials that wait until it is known whether their destination lives.
    pub(crate) contested: Vec<(PublicKey, ContestedDial)>,
    /// Sessions that may have something to send.
    pub(crate) marked: Vec<Key>,
    /// Halves whose queue took spans in place in this turn.
    pub(crate) touched: Vec<Key>,
    /// Sessions whose receive found no page.
    pub(crate) starved: Vec<Key>,
    /// Sessions whose receive brought more than their share, in the order of their turns, each once; some may be gone.
    pub(crate) rests: VecDeque<Key>,
    #[allow(
        clippy::vec_box,
        reason = "they travel to the driver and back as boxes; unboxing would copy them"
    )]
    pub(crate) spare_gathers: Vec<Box<Gather>>,
    pub(crate) scratch: Vec<u8>,
    pub(crate) stopping: bool,
    /// What is pending at the driver is being taken back, and nothing new is asked of it.
    pub(crate) freezing: bool,
    /// What this turn brought so far.
    pub(crate) brought: Brought,
    /// Session of each connection, by the connection's index.
    by_socket: Vec<Option<(SocketKey, Key)>>,
    due: Vec<Timer>,
    stop: Arc<AtomicBool>,
    mail: Option<Receiver<Order>>,
    /// To the control plane, while there is one.
    pub(crate) link: Option<Link>,
    /// When a drain ends at the latest.
    pub(crate) drain_until: Option<Nanos>,
    pub(crate) wait: WaitPolicy,
    pub(crate) coalescer: Coalescer,
}

impl<D: std::fmt::Debug> std::fmt::Debug for Worker<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("driver", &self.driver)
            .field("sessions", &self.sessions.len())
            .finish_non_exhaustive()
    }
}

/// After a failed accept (descriptors used up), when it is tried again, in nanoseconds.
const ACCEPT_RETRY_NS: u64 = 200_000_000;

impl<D: Driver> Worker<D> {
    /// A worker that accepts from the first `listeners` listeners of its driver, until `stop` is set (and the driver woken).
    pub fn new(
        mut driver: D,
        listeners: usize,
        settings: Settings,
        lane: Box<dyn Lane>,
        counters: Arc<CounterBlock>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        for listener in 0..listeners {
            driver.accept(listener);
        }
        let now = driver.now();
        let memory_len = driver.pool().len();
        let company_us_max = settings.company_us_max;
        let coalescer = Coalescer::new(settings.pause_us_max, settings.busy_frames_per_second);
        // A predecessor may have counted in the same block.
        let noted =
            counters.value(Counter::BufferTaken).saturating_sub(counters.value(Counter::BufferGivenBack));
        Self {
            noted_len: usize::try_from(noted).unwrap_or_default(),
            driver,
            settings,
            lane,
            counters,
            sessions: Slab::default(),
            halves: Slab::default(),
            nodes: Nodes::default(),
            index: 0,
            team: None,
            directory: Arc::default(),
            wheel: Wheel::new(now),
            budget: Budget::new(memory_len),
            holders: Holders::default(),
            extended: Vec::new(),
            trims: false,
            relieved_at: 0,
            largest: None,
            connections: 0,
            crowd: Crowd::default(),
            half_open: HalfOpenTable::default(),
            long_stashes: LongStashes::default(),
            by_address: Arc::default(),
            warnings: Warnings::default(),
            proving: 0,
            undecided: Vec::new(),
            contested: Vec::new(),
            marked: Vec::with_capacity(limits::TURN_LIST_AT_START),
            touched: Vec::with_capacity(limits::TURN_LIST_AT_START),
            starved: Vec::with_capacity(limits::TURN_LIST_AT_START),
            rests: VecDeque::with_capacity(limits::TURN_LIST_AT_START),
            spare_gathers: (0..limits::GATHERS_AT_START).map(|_| Box::default()).collect(),
            scratch: Vec::with_capacity(limits::PAGE_LEN),
            stopping: false,
            freezing: false,
            brought: Brought::default(),
            by_socket: Vec::new(),
            due: Vec::new(),
            stop,
            mail: None,
            link: None,
            drain_until: None,
            wait: WaitPolicy::new(company_us_max),
            coalescer,
        }
    }

    /// Orders to read each turn; whoever sends one wakes the driver.
    pub fn set_mail(&mut self, mail: Receiver<Order>) {
        self.mail = Some(mail);
    }

    /// Turns until it is told to stop. An error is one of the driver's and ends the worker.
    pub fn run(&mut self) -> Result<(), DriverError> {
        let mut batch = Batch::default();
        while !self.stopping {
            self.turn(&mut batch)?;
        }
        self.close_all();
        self.leave_team(&mut batch)
    }

    /// One turn. See the module's head.
    pub fn turn(&mut self, batch: &mut Batch) -> Result<(), DriverError> {
        let wait = self.begin_turn();
        self.driver.turn(wait, batch)?;
        self.finish_turn(batch);
        Ok(())
    }

    /// What of a turn comes before the wait: how long that is. For those who do the waiting themselves.
    pub fn begin_turn(&mut self) -> Wait {
        let next = [self.wheel.next(), self.lane.due(), self.coalescer.next()].into_iter().flatten().min();
        let mut wait = self.wait.choose(self.driver.now(), next);
        if !self.rests.is_empty() {
            (wait.poll, wait.company_us) = (true, 0);
        }
        self.before_wait(&mut wait);
        self.announce_sleep(&mut wait);
        self.counters.add(Counter::CompanyWaits, u64::from(wait.company_us > 0));
        wait
    }

    /// What of a turn comes behind the wait, with what that brought.
    pub fn finish_turn(&mut self, batch: &mut Batch) {
        self.after_wait();
        self.withdraw_sleep();
        self.counters.count(Counter::Turns);
        self.counters.add(Counter::TurnsExhausted, u64::from(batch.exhausted));
        self.brought.receives = batch
            .completions
            .iter()
            .filter(|completion| matches!(completion, Completion::Received { .. }))
            .count();

        self.handle(batch);
        self.take_findings();
        self.serve_rests();
        let now = self.driver.now();
        self.coalescer.observe(now, self.brought);
        self.wait.observe(now, std::mem::take(&mut self.brought));
        self.expire();
        self.read_letters();
        self.rearm_starved();
        self.resume_receiving();
        self.read_mail();
        self.read_commands();
        self.relieve_memory();
        self.schedule_trim(now, limits::TRIM_AFTER_NS);
        self.forward();
        self.write_letters();
        self.pack_touched();
        self.note_memory();
        self.ring_control();
        self.wake_team();
    }

    /// Counts what of the buffer memory came into use or was given back since the last turn.
    fn note_memory(&mut self) {
        let used = self.driver.pool().held_len() + self.halves.len() * limits::STREAM_LEN;
        let before = std::mem::replace(&mut self.noted_len, used);
        if used > before {
            self.counters.add(Counter::BufferTaken, (used - before) as u64);
        } else if used < before {
            self.counters.add(Counter::BufferGivenBack, (before - used) as u64);
        }
    }

    pub(crate) fn handle(&mut self, batch: &mut Batch) {
        for completion in batch.completions.drain(..) {
            match completion {
                Completion::Accepted { socket, peer, .. } => self.begin_session(socket, peer),
                Completion::AcceptFailed { listener, error } => self.accept_failed(listener, error),
                Completion::Received { socket, first, count, more } => {
                    self.receive(socket, &batch.spans[first..first + count], more);
                }
                Completion::ReceiveEnded { socket, reason } => self.receive_ended(socket, reason),
                Completion::Sent { socket, gather, outcome } => self.sent(socket, gather, outcome),
                Completion::Closed { .. } => {
                    self.counters.count(Counter::ConnectionsClosed);
                    self.connections = self.connections.saturating_sub(1);
                }
                Completion::Woken => {}
            }
        }
        for span in batch.spans.drain(..) {
            self.driver.pool().release(span);
        }
    }

    fn accept_failed(&mut self, listener: usize, error: i32) {
        self.counters.count(Counter::AcceptFailures);
        // A listener that was shut down is what the order to drain or to end begins with; it never accepts again.
        if self.stopping || self.is_draining() || error == rustix::io::Errno::INVAL.raw_os_error() {
            return;
        }
        let now = self.driver.now();
        if let Some(suppressed) = self.warnings.admit(warn::Kind::AcceptFailed, now) {
            let error = std::io::Error::from_raw_os_error(error);
            tracing::warn!(%error, suppressed, "cannot accept connections; trying again (raise the limit of open files, `ulimit -n`)");
        }
        let at = now + ACCEPT_RETRY_NS;
        self.wheel.schedule(at, Timer::Accept(listener));
    }

    fn expire(&mut self) {
        let now = self.driver.now();
        let mut due = std::mem::take(&mut self.due);
        self.wheel.expire(now, &mut due);
        for timer in due.drain(..) {
            match timer {
                Timer::Session(key) => self.session_timer(key, now),
                Timer::Half(key) => self.half_timer(key, now),
                Timer::Accept(listener) => self.driver.accept(listener),
                Timer::Drain => self.sweep_drained(),
                Timer::Extra => self.sweep_extra(now),
                Timer::Trim => self.trim_memory(now),
            }
        }
        // A crowd that is over leaves no room behind.
        due.shrink_to(limits::TURN_LIST_AT_START);
        self.due = due;
    }

    /// Connections whose receive found no page are armed again once pages are back, never on a timer.
    fn rearm_starved(&mut self) {
        if self.starved.is_empty() {
            return;
        }
        if self.driver.pool().free_pages() == 0 && self.driver.pool().kernel_pages() == 0 {
            // Those that are gone do not wait: the list never holds more than there are sessions, twice over.
            if self.starved.len() > 2 * self.sessions.len() {
                self.starved.retain(|&key| self.sessions.find(key).is_some());
            }
            return;
        }
        let mut starved = std::mem::take(&mut self.starved);
        for key in starved.drain(..) {
            self.arm_receive(key);
        }
        self.starved = starved;
    }

    /// Pages that blocked destinations hold for little payload go back: what is queued in them is copied. A destination that
    /// still moves is looked at again.
    fn pack_touched(&mut self) {
        let now = self.driver.now();
        let mut touched = std::mem::take(&mut self.touched);
        touched.retain(|&key| {
            let Some(half) = self.halves.find_mut(key) else { return false };
            let session = self.sessions.find(half.session);
            let stuck = session.is_some_and(|session| {
                session.sending && now.saturating_sub(session.sending_since) >= limits::BLOCKED_AFTER_NS
            });
            if half.blocked_since.is_some() || stuck {
                let before = half.queue.own_len();
                half.queue.pack(&mut self.nodes, self.driver.pool(), &mut self.scratch);
                // What was copied from another worker's memory is held here now.
                let copied = half.queue.own_len() - before;
                self.holders.charge(half.holder, copied, self.budget.holder_limit());
            } else if !half.queue.is_empty() {
                return true;
            }
            half.touched = false;
            false
        });
        self.touched = touched;
    }

    /// While more memory is free than is kept, a timer looks after it.
    fn schedule_trim(&mut self, now: Nanos, after: Nanos) {
        if !self.trims && self.driver.pool().surplus_pages() > 0 {
            self.trims = true;
            self.wheel.schedule(now + after, Timer::Trim);
        }
    }

    fn trim_memory(&mut self, now: Nanos) {
        self.trims = false;
        let pages = self.driver.pool().trim(limits::TRIM_PAGES_MAX);
        let after = if pages > 0 { limits::TRIM_INTERVAL_NS } else { limits::TRIM_AFTER_NS };
        self.schedule_trim(now, after);
        if self.nodes.is_empty() {
            self.nodes.shrink();
        }
    }

    fn read_mail(&mut self) {
        if self.stop.load(Ordering::Acquire) {
            self.stopping = true;
        }
        // Bounded by what may wait, so a flood of orders cannot hold up the forwarding.
        for _ in 0..ORDERS_MAX {
            let Some(order) = self.mail.as_ref().and_then(|mail| mail.try_recv().ok()) else { return };
            self.handle_order(order);
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain_until.is_some()
    }

    /// Accepts nothing new from here on, closes sessions as they become idle, and ends with the last of them, those of all
    /// workers included, or at `until`.
    /// The listeners are shut down by whoever orders this.
    pub(crate) fn drain(&mut self, until: Nanos) {
        tracing::info!(sessions = self.sessions.len(), "draining");
        self.drain_until = Some(until);
        self.sweep_drained();
    }

    fn sweep_drained(&mut self) {
        let Some(until) = self.drain_until else { return };
        let idle = |session: &Session| session.open().is_none_or(|open| open.mux.stream_count() == 0);
        let idle: Vec<Key> =
            self.sessions.iter().filter(|(_, session)| idle(session)).map(|(key, _)| key).collect();
        for key in idle {
            self.close_session(key, CloseReason::Stopping);
        }
        let now = self.driver.now();
        let is_over = self.sessions.is_empty() && self.team.as_mut().is_none_or(Team::drained);
        if is_over || now >= until {
            self.stopping = true;
        } else {
            self.wheel.schedule(until.min(now + limits::DRAIN_SWEEP_NS), Timer::Drain);
        }
    }

    /// Whether it was told to stop, and turns no more.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Closes every session and half-open connection.
    pub fn close_all(&mut self) {
        let keys: Vec<Key> = self.sessions.keys().collect();
        for key in keys {
            self.close_session(key, CloseReason::Stopping);
        }
    }

    /// Sessions, half-open connections included.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// The driver, to look at.
    pub fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    pub(crate) fn session_of(&self, socket: SocketKey) -> Option<Key> {
        let (owner, key) = (*self.by_socket.get(socket.index as usize)?)?;
        (owner == socket).then_some(key)
    }

    pub(crate) fn file_socket(&mut self, socket: SocketKey, key: Key) {
        let index = socket.index as usize;
        if self.by_socket.len() <= index {
            self.by_socket.resize(index + 1, None);
        }
        self.by_socket[index] = Some((socket, key));
    }

    pub(crate) fn unfile_socket(&mut self, socket: SocketKey) {
        if self.session_of(socket).is_some() {
            self.by_socket[socket.index as usize] = None;
        }
    }
}
