//! The simulated driver: the kernel's side of a worker, in virtual time.
//!
//! In: the operations of a worker. Out: completions, as the kernel might have given them: short, split, late, in another
//! order, too many for one batch, without a page to put bytes into. Time moves only in [`Driver::turn`], and there only
//! while nothing is ready. It holds the worker to the contract of [`Driver`]: what it asserts here, io_uring would turn
//! into corrupted memory.

use std::collections::VecDeque;
use std::net::SocketAddr;

use ringwire_dataplane::driver::{
    Batch, Completion, Driver, DriverError, Gather, Nanos, Part, ReceiveEnd, SocketKey, Taken, Wait,
};
use ringwire_dataplane::limits::{HANDSHAKE_TIMEOUT_NS, PAGE_LEN, PAUSE_US_MAX};
use ringwire_dataplane::ring::Pool;
use ringwire_netem::{Random, ReadOutcome, Side};

use crate::log::{Digest, Event};
use crate::plan::{Character, KernelPlan};
use crate::world::{Wake, World};

/// See the module's head.
#[derive(Debug)]
pub struct SimDriver {
    /// Everything outside the workers, while this driver's worker has its turn.
    pub world: Box<World>,
    /// Which worker's it is.
    worker: usize,
    pool: Pool,
    plan: KernelPlan,
    random: Random,
    /// Pages lent for receiving, in the order in which they will be filled.
    ring: VecDeque<u32>,
    sockets: Vec<Slot>,
    free: Vec<u32>,
    /// Asked for since the last turn.
    submitted: Vec<Operation>,
    ready: Vec<Ready>,
    accepts: bool,
    /// Bytes of payload and headers the worker sent.
    sent_len: u64,
    turns_at_this_time: u32,
    /// The worker did not want to wait.
    is_polled: bool,
}

#[derive(Debug, Default)]
struct Slot {
    wire: Option<usize>,
    generation: u32,
    /// Asked for and not completed.
    receiving: bool,
    /// Bytes it may bring.
    receive_len_max: usize,
    /// The kernel has it.
    receive_pending: bool,
    /// A recall caught this receive.
    receive_recalled: bool,
    sending: Option<Sending>,
    closing: bool,
}

#[derive(Debug)]
struct Sending {
    gather: Box<Gather>,
    /// A recall caught it.
    is_recalled: bool,
    /// The kernel has it.
    is_pending: bool,
    /// Bytes of what remained that are with the peer's link.
    taken: usize,
    /// Where this send ends: all that remained, or less.
    until: usize,
    digest: u64,
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Receive(SocketKey),
    Send(SocketKey),
    Recall(SocketKey),
    Close(SocketKey),
}

/// A completion on its way to the worker.
#[derive(Debug)]
struct Ready {
    visible_at: Nanos,
    what: Finished,
}

#[derive(Debug)]
enum Finished {
    Received { socket: SocketKey, pages: Vec<(u32, usize)>, more: bool },
    Other(Completion),
}

/// What a company wait is content with, as in the io_uring driver.
const COMPANY_WANTED: usize = 64;
/// Turns without any progress of time or of bytes after which the worker counts as spinning.
const SPINNING_TURNS: u32 = 20_000;
/// A connection may be left unread for so long without a reason: twice what the receives of busy sessions are put off.
const UNREAD_FOR_NS: Nanos = 2_000 * PAUSE_US_MAX as Nanos;
/// errno values of Linux.
const ECONNRESET: i32 = 104;
const ECANCELED: i32 = 125;
const EPIPE: i32 = 32;
const EMFILE: i32 = 24;

impl SimDriver {
    /// A kernel with these faults around a world, for worker number `worker`.
    pub fn new(world: World, worker: usize, plan: KernelPlan, random: Random) -> std::io::Result<Self> {
        let mut driver = Self {
            pool: Pool::new(plan.memory_pages * PAGE_LEN)?,
            world: Box::new(world),
            worker,
            plan,
            random,
            ring: VecDeque::new(),
            sockets: Vec::new(),
            free: Vec::new(),
            submitted: Vec::new(),
            ready: Vec::new(),
            accepts: false,
            sent_len: 0,
            turns_at_this_time: 0,
            is_polled: false,
        };
        driver.refill();
        Ok(driver)
    }

    /// Buffer memory that is neither free nor in the receive ring, in pages. 0 once everything came back.
    pub fn pages_missing(&self) -> usize {
        self.plan.memory_pages - self.pool.free_pages() - self.pool.kernel_pages()
    }

    /// Sockets that are not closed.
    pub fn sockets_open(&self) -> usize {
        self.sockets.iter().filter(|slot| slot.wire.is_some()).count()
    }

    fn refill(&mut self) {
        while self.ring.len() < self.plan.ring_pages {
            let Some(page) = self.pool.lend() else { break };
            self.ring.push_back(page);
        }
    }

    fn slot(&mut self, key: SocketKey) -> Option<&mut Slot> {
        self.sockets
            .get_mut(key.index as usize)
            .filter(|slot| slot.generation == key.generation && slot.wire.is_some())
    }

    /// A socket in the log: those of one worker are told from another's.
    fn name(&self, index: u32) -> u32 {
        10_000 * self.worker as u32 + index
    }

    fn key(&self, index: u32) -> SocketKey {
        SocketKey { index, generation: self.sockets[index as usize].generation }
    }

    fn complete(&mut self, what: Finished) {
        let late = self.random.range(0, self.plan.latency_ns);
        let visible_at = self.world.now + late;
        self.ready.push(Ready { visible_at, what });
        if late > 0 {
            self.world.schedule(visible_at, Wake::Ready);
        }
    }

    /// The kernel takes what was asked for.
    fn submit(&mut self) {
        for operation in std::mem::take(&mut self.submitted) {
            match operation {
                Operation::Receive(key) => {
                    if let Some(slot) = self.slot(key).filter(|slot| slot.receiving) {
                        slot.receive_pending = true;
                        self.try_receive(key.index);
                    }
                }
                Operation::Send(key) => self.start_send(key),
                Operation::Recall(key) | Operation::Close(key) => {
                    // A cancel catches what is pending when it is submitted, never what comes later.
                    if let Some(slot) = self.slot(key) {
                        slot.receive_recalled = slot.receiving;
                        if let Some(sending) = &mut slot.sending {
                            sending.is_recalled = true;
                        }
                    }
                    let at = self.world.now + self.random.range(0, self.plan.cancel_ns);
                    self.world.schedule(at, Wake::Cancel(self.worker, key.index, key.generation));
                }
            }
        }
        self.accept_waiting();
    }

    fn accept_waiting(&mut self) {
        while self.accepts && !self.world.backlogs[self.worker].is_empty() {
            if self.random.chance(self.plan.accept_fails) {
                self.accepts = false;
                self.world.log.note(self.world.now, Event::AcceptFailed { error: EMFILE });
                self.complete(Finished::Other(Completion::AcceptFailed { listener: 0, error: EMFILE }));
                return;
            }
            let Some(wire) = self.world.backlogs[self.worker].pop_front() else { return };
            let index = self.free.pop().unwrap_or_else(|| {
                self.sockets.push(Slot::default());
                (self.sockets.len() - 1) as u32
            });
            let slot = &mut self.sockets[index as usize];
            *slot = Slot { wire: Some(wire), generation: slot.generation, ..Slot::default() };
            self.world.wires[wire].socket = Some(index);
            let socket = self.key(index);
            let generation = socket.generation;
            self.world
                .log
                .note(self.world.now, Event::Accepted { wire, socket: self.name(index), generation });
            let peer = self.world.wires[wire].peer;
            // Strangers share an address: a flood comes from somewhere.
            let address = match self.world.ledger.plan.peers[peer].character {
                Character::Stranger(_) => [10, 0, 1, 1],
                _ => [10, 0, 0, 1 + peer as u8],
            };
            let peer = SocketAddr::from((address, 40_000));
            self.complete(Finished::Other(Completion::Accepted { listener: 0, socket, peer }));
        }
    }

    /// Completes a pending receive if there is something to receive.
    fn try_receive(&mut self, index: u32) {
        let key = self.key(index);
        let slot = &self.sockets[index as usize];
        let Some(wire) = slot.wire.filter(|_| slot.receive_pending) else { return };
        let now = self.world.now;
        let available = self.world.wires[wire].duplex.readable_len(Side::B);
        if available == 0 {
            let reason = match self.world.wires[wire].duplex.read(now, Side::B, &mut []) {
                ReadOutcome::Blocked | ReadOutcome::Bytes(_) => return,
                ReadOutcome::End => ReceiveEnd::EndOfStream,
                ReadOutcome::Lost => ReceiveEnd::Failed(self.world.wires[wire].error.unwrap_or(ECONNRESET)),
            };
            return self.end_receive(key, reason);
        }
        if self.ring.is_empty() {
            return self.end_receive(key, ReceiveEnd::NoBuffers);
        }
        let available = available.min(slot.receive_len_max);
        let mut wanted = available;
        if self.random.chance(self.plan.short_receive) {
            wanted = self.random.range(1, available as u64) as usize;
        }
        let splits = self.random.chance(self.plan.split_receive);
        let (mut pages, mut digest, mut len) = (Vec::new(), 0_u64, 0);
        while wanted > 0 {
            let Some(page) = self.ring.pop_front() else { break };
            let mut part = wanted.min(PAGE_LEN);
            if splits {
                // Mostly small pieces: they cut headers.
                let most = if self.random.chance(500_000) { 40 } else { part as u64 };
                part = self.random.range(1, most.min(part as u64)) as usize;
            }
            let target = &mut self.pool.lent_mut(page)[..part];
            let ReadOutcome::Bytes(taken) = self.world.wires[wire].duplex.read(now, Side::B, target) else {
                self.ring.push_front(page);
                break;
            };
            digest = digest.rotate_left(7) ^ Digest::of(&target[..taken]);
            pages.push((page, taken));
            wanted -= taken;
            len += taken;
        }
        let slot = &mut self.sockets[index as usize];
        (slot.receiving, slot.receive_pending, slot.receive_recalled) = (false, false, false);
        self.world
            .log
            .note(now, Event::Received { socket: self.name(index), len, pages: pages.len(), digest });
        let more = self.world.wires[wire].duplex.readable_len(Side::B) > 0;
        self.complete(Finished::Received { socket: key, pages, more });
        let peer = self.world.wires[wire].peer;
        self.world.ledger.took(now, peer, len);
        self.world.touched(wire);
    }

    fn end_receive(&mut self, socket: SocketKey, reason: ReceiveEnd) {
        let slot = &mut self.sockets[socket.index as usize];
        (slot.receiving, slot.receive_pending, slot.receive_recalled) = (false, false, false);
        let why = match reason {
            ReceiveEnd::EndOfStream => "end of stream",
            ReceiveEnd::NoBuffers => "no buffers",
            ReceiveEnd::Cancelled => "cancelled",
            ReceiveEnd::Failed(_) => "failed",
        };
        self.world.log.note(self.world.now, Event::ReceiveEnded { socket: self.name(socket.index), why });
        self.complete(Finished::Other(Completion::ReceiveEnded { socket, reason }));
    }

    fn start_send(&mut self, key: SocketKey) {
        let short = self.random.chance(self.plan.short_send);
        let drawn = self.random.next_u64();
        let Some(sending) = self.slot(key).and_then(|slot| slot.sending.as_mut()) else { return };
        let remaining = sending.gather.len() - sending.gather.sent();
        assert!(remaining > 0, "the worker sends something");
        sending.is_pending = true;
        sending.until = if short { 1 + (drawn % remaining as u64) as usize } else { remaining };
        self.try_send(key.index);
    }

    /// Moves bytes of a pending send to the link, and completes it when its end is reached.
    fn try_send(&mut self, index: u32) {
        let key = self.key(index);
        let now = self.world.now;
        let slot = &mut self.sockets[index as usize];
        let (Some(wire), Some(sending)) =
            (slot.wire, slot.sending.as_mut().filter(|sending| sending.is_pending))
        else {
            return;
        };
        let duplex = &mut self.world.wires[wire].duplex;
        let before = sending.taken;
        let mut failed = false;
        for (part, skip) in sending.gather.remaining_after(before) {
            let bytes = match part {
                Part::Header { from, len } => sending.gather.header_bytes(from, len),
                Part::Payload(span) => self.pool.bytes(span),
            };
            let rest = &bytes[skip..];
            let rest = &rest[..rest.len().min(sending.until - sending.taken)];
            if rest.is_empty() {
                break;
            }
            match duplex.write(now, Side::B, rest) {
                Ok(taken) => {
                    sending.digest = sending.digest.rotate_left(7) ^ Digest::of(&rest[..taken]);
                    sending.taken += taken;
                    if taken < rest.len() {
                        break;
                    }
                }
                Err(_) => {
                    failed = true;
                    break;
                }
            }
        }
        let moved = sending.taken - before;
        let (taken, until) = (sending.taken, sending.until);
        self.sent_len += moved as u64;
        if failed && taken == 0 {
            let error = self.world.wires[wire].error.unwrap_or(EPIPE);
            self.end_send(key, Err(error));
        } else if failed || taken == until {
            self.end_send(key, Ok(taken));
        }
        if moved > 0 {
            self.world.touched(wire);
        }
    }

    fn end_send(&mut self, socket: SocketKey, outcome: Result<usize, i32>) {
        let Some(sending) = self.sockets[socket.index as usize].sending.take() else { return };
        let asked = sending.gather.len() - sending.gather.sent();
        let name = self.name(socket.index);
        self.world.log.note(
            self.world.now,
            match outcome {
                Ok(taken) => Event::Sent { socket: name, asked, taken, digest: sending.digest },
                Err(error) => Event::SendFailed { socket: name, error },
            },
        );
        self.complete(Finished::Other(Completion::Sent { socket, gather: sending.gather, outcome }));
    }

    /// A late cancel arrives: what is pending completes as far as it came.
    fn cancel(&mut self, index: u32, generation: u32) {
        let key = SocketKey { index, generation };
        let Some(slot) = self.slot(key) else { return };
        let receives = slot.receiving && (slot.receive_recalled || slot.closing);
        let sending = slot.sending.as_ref().filter(|sending| sending.is_recalled || slot.closing);
        let taken = sending.map(|sending| sending.taken);
        if receives {
            self.end_receive(key, ReceiveEnd::Cancelled);
        }
        if let Some(taken) = taken {
            self.end_send(key, if taken > 0 { Ok(taken) } else { Err(ECANCELED) });
        }
        self.finish_close(index);
    }

    fn finish_close(&mut self, index: u32) {
        let key = self.key(index);
        let slot = &mut self.sockets[index as usize];
        if !slot.closing || slot.receiving || slot.sending.is_some() {
            return;
        }
        // Completions of its operations come first.
        let busy = self.ready.iter().any(|ready| match &ready.what {
            Finished::Received { socket, .. } => *socket == key,
            Finished::Other(
                Completion::ReceiveEnded { socket, .. }
                | Completion::Sent { socket, .. }
                | Completion::Accepted { socket, .. },
            ) => *socket == key,
            Finished::Other(_) => false,
        });
        if busy {
            return;
        }
        let Some(wire) = slot.wire.take() else { return };
        slot.closing = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        let now = self.world.now;
        self.world.wires[wire].socket = None;
        self.world.wires[wire].duplex.close(now, Side::B);
        self.world.log.note(now, Event::Closed { socket: self.name(index) });
        self.complete(Finished::Other(Completion::Closed { socket: key }));
        self.world.touched(wire);
    }

    /// Something of a connection changed: its pending operations may go on.
    fn poke(&mut self, wire: usize) {
        if let Some(index) = self.world.wires[wire].socket {
            self.try_receive(index);
            self.try_send(index);
            self.finish_close(index);
        }
    }

    /// Lets the next event happen.
    pub fn step(&mut self) {
        if let Some(wake) = self.world.step() {
            match wake {
                Wake::Watch => {
                    self.world.ledger.forget_unread();
                    if self.sees_unread() {
                        self.world.schedule(self.world.now + UNREAD_FOR_NS, Wake::LookAgain);
                    }
                }
                Wake::LookAgain => {
                    self.sees_unread();
                }
                _ => {}
            }
            match self.world.worker_of(wake) {
                Some(worker) if worker != self.worker => self.world.deferred.push(wake),
                Some(_) => self.take(wake),
                None => {}
            }
        }
    }

    /// The oracle looks for connections that are left unread although the worker has nothing else to do. Not among several
    /// workers: what makes one read on may be with another.
    fn sees_unread(&mut self) -> bool {
        // One that does not wait has something of its own to do.
        let is_busy =
            !self.ready.is_empty() || !self.submitted.is_empty() || self.ring.is_empty() || self.is_polled;
        if is_busy || self.world.is_freezing || self.world.ledger.plan.workers > 1 {
            return false;
        }
        let now = self.world.now;
        // What a send under way has moved the worker learns at its end, and holds until then.
        let sending = self.sockets.iter().filter_map(|slot| slot.sending.as_ref());
        let moved = sending.map(|sending| sending.taken as u64).sum();
        let mut sees_one = false;
        for slot in self.sockets.iter().filter(|slot| !slot.receiving && !slot.closing) {
            let Some(wire) = slot.wire else { continue };
            let peer = self.world.wires[wire].peer;
            let plan = &self.world.ledger.plan.peers[peer];
            // Until then it may be a stranger, who is read as far as there is room.
            let is_known =
                now > plan.connects_at + HANDSHAKE_TIMEOUT_NS && plan.character == Character::Honest;
            if is_known && self.world.wires[wire].duplex.readable_len(Side::B) > 0 {
                sees_one |= self.world.ledger.check_unread(now, peer, moved);
            }
        }
        sees_one
    }

    /// An event of this worker's has happened.
    pub fn take(&mut self, wake: Wake) {
        match wake {
            Wake::Wire(wire) => self.poke(wire),
            Wake::Connected(_) => self.accept_waiting(),
            Wake::Cancel(_, index, generation) => self.cancel(index, generation),
            _ => {}
        }
    }

    /// The kernel takes what was asked for. With [`has_news`](Self::has_news) and [`leave`](Self::leave) a turn in parts, for
    /// several workers in one time.
    pub fn enter(&mut self) {
        self.world.now += self.random.range(0, self.plan.turn_ns);
        self.refill();
        self.submit();
    }

    /// Whether there is something for the worker, in a wait with so much company.
    pub fn has_news(&self, now: Nanos, company_us: u32) -> bool {
        let mut visible = self.ready.iter().filter(|ready| ready.visible_at <= now).peekable();
        if company_us == 0 || visible.peek().is_none() {
            return visible.peek().is_some();
        }
        let longest = visible.clone().map(|ready| now - ready.visible_at).max().unwrap_or(0);
        visible.count() >= COMPANY_WANTED || longest >= u64::from(company_us) * 1000
    }

    /// When [`has_news`](Self::has_news) changes by the clock alone.
    pub fn news_at(&self, company_us: u32) -> Option<Nanos> {
        let first = self.ready.iter().map(|ready| ready.visible_at).min()?;
        Some(first + u64::from(company_us) * 1000)
    }

    /// What finished, for the worker.
    pub fn leave(&mut self, batch: &mut Batch) {
        assert!(batch.spans.is_empty(), "the worker released the last batch");
        batch.completions.clear();
        batch.exhausted = false;
        self.collect(batch);
        if !batch.completions.is_empty() {
            let (completions, exhausted) = (batch.completions.len(), batch.exhausted);
            self.world.log.note(self.world.now, Event::Turn { completions, exhausted });
        }
    }

    /// What the kernel and the clients do while the worker waits. Not inlined: counts of the worker's instructions leave
    /// it out by its name.
    #[inline(never)]
    fn pass_time(&mut self, wait: Wait, batch: &mut Batch) {
        self.refill();
        self.submit();
        self.wait(wait);
        self.collect(batch);
    }

    fn visible(&self) -> usize {
        self.ready.iter().filter(|ready| ready.visible_at <= self.world.now).count()
    }

    /// Lets events happen until there is something for the worker, or its time is up.
    fn wait(&mut self, wait: Wait) {
        let mut until = if wait.poll { Some(self.world.now) } else { wait.until };
        let mut has_company_limit = false;
        loop {
            let is_interrupted = self.world.is_interrupted && !self.world.is_freezing;
            if is_interrupted || self.world.ledger.failure.is_some() {
                return;
            }
            let visible = self.visible();
            if visible > 0 {
                if wait.company_us == 0 || visible >= COMPANY_WANTED {
                    return;
                }
                if !has_company_limit {
                    has_company_limit = true;
                    let limit = self.world.now + u64::from(wait.company_us) * 1000;
                    until = Some(until.map_or(limit, |until| until.min(limit)));
                }
            }
            match (self.world.next_event(), until) {
                (Some(at), Some(until)) if at > until => {
                    self.world.now = self.world.now.max(until);
                    return;
                }
                (Some(_), _) => self.step(),
                (None, Some(until)) => {
                    self.world.now = self.world.now.max(until);
                    return;
                }
                (None, None) => {
                    let now = self.world.now;
                    self.world.ledger.fail(now, "nothing will ever happen again".into());
                    return;
                }
            }
        }
    }

    fn collect(&mut self, batch: &mut Batch) {
        let now = self.world.now;
        if self.plan.reorder {
            self.random.shuffle(&mut self.ready);
            // Between sockets only: Closed stays behind, because it is made after the others were taken.
        }
        let max = self.plan.batch_max.min(ringwire_dataplane::limits::COMPLETIONS_PER_TURN_MAX);
        let mut kept = Vec::new();
        for ready in std::mem::take(&mut self.ready) {
            if ready.visible_at > now || batch.completions.len() >= max {
                batch.exhausted |= ready.visible_at <= now;
                kept.push(ready);
                continue;
            }
            batch.completions.push(match ready.what {
                Finished::Other(completion) => completion,
                Finished::Received { socket, pages, more } => {
                    let first = batch.spans.len();
                    let count = pages.len();
                    batch.spans.extend(pages.into_iter().map(|(page, len)| self.pool.received(page, len)));
                    Completion::Received { socket, first, count, more }
                }
            });
        }
        self.ready = kept;
        for index in 0..self.sockets.len() as u32 {
            if self.sockets[index as usize].closing {
                self.finish_close(index);
            }
        }
    }
}

impl Driver for SimDriver {
    fn now(&self) -> Nanos {
        self.world.now
    }

    fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    fn accept(&mut self, listener: usize) {
        assert_eq!(listener, 0, "there is one listener");
        self.accepts = true;
    }

    fn receive(&mut self, socket: SocketKey, len_max: usize) {
        assert!(len_max > 0, "a receive of nothing never ends");
        if let Some(slot) = self.slot(socket).filter(|slot| !slot.receiving && !slot.closing) {
            (slot.receiving, slot.receive_len_max) = (true, len_max);
            self.submitted.push(Operation::Receive(socket));
        }
    }

    fn send(&mut self, socket: SocketKey, gather: Box<Gather>) {
        let sending =
            Sending { gather, is_recalled: false, is_pending: false, taken: 0, until: 0, digest: 0 };
        let Some(slot) = self.slot(socket) else {
            let outcome = Err(ECANCELED);
            return self.complete(Finished::Other(Completion::Sent {
                socket,
                gather: sending.gather,
                outcome,
            }));
        };
        assert!(slot.sending.is_none(), "one send per socket at a time");
        slot.sending = Some(sending);
        self.submitted.push(Operation::Send(socket));
    }

    /// The emulated send buffer is what the plan says.
    fn hold_back(&mut self, _socket: SocketKey, _len: u32) {}

    fn taken(&mut self, socket: SocketKey) -> Option<Taken> {
        let wire = self.slot(socket)?.wire?;
        let (len, is_all) = self.world.wires[wire].duplex.acknowledged(Side::B);
        Some(Taken { len, is_all })
    }

    fn recall(&mut self, socket: SocketKey) {
        if self.slot(socket).is_some_and(|slot| slot.receiving || slot.sending.is_some()) {
            self.submitted.push(Operation::Recall(socket));
        }
    }

    fn close(&mut self, socket: SocketKey) {
        let Some(slot) = self.slot(socket).filter(|slot| !slot.closing) else { return };
        slot.closing = true;
        self.world.log.note(self.world.now, Event::Closing { socket: self.name(socket.index) });
        self.submitted.push(Operation::Close(socket));
    }

    fn turn(&mut self, wait: Wait, batch: &mut Batch) -> Result<(), DriverError> {
        assert!(batch.spans.is_empty(), "the worker released the last batch");
        batch.completions.clear();
        batch.exhausted = false;
        let began = self.world.now;
        self.is_polled = wait.poll;
        self.world.now += self.random.range(0, self.plan.turn_ns);
        self.pass_time(wait, batch);
        if !batch.completions.is_empty() {
            let (completions, exhausted) = (batch.completions.len(), batch.exhausted);
            self.world.log.note(self.world.now, Event::Turn { completions, exhausted });
        }
        // Turns themselves take next to no time: thousands within a moment are a loop.
        let is_moving = self.world.now > began + 2 * self.plan.turn_ns || !batch.completions.is_empty();
        self.turns_at_this_time = if is_moving { 0 } else { self.turns_at_this_time + 1 };
        if self.turns_at_this_time > SPINNING_TURNS {
            let now = self.world.now;
            self.world.ledger.fail(now, "the worker spins: it turns and turns, and nothing happens".into());
        }
        Ok(())
    }
}
