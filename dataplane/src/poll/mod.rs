//! The poll driver: epoll for hosts that forbid io_uring (Docker's default profile does), emulating completions.
//!
//! In: the operations of a worker, as with [`UringDriver`](crate::ring::UringDriver). Out: the same completions in the same
//! order; the worker cannot tell. Chosen by `--driver poll`, or by `auto` where io_uring cannot be used.
//!
//! * **Edge-triggered.** A socket is registered once, for both directions, and what the kernel said last is remembered
//!   (`readable`, `writable`); a send that blocks and one that goes on cost no call to change an interest. A receive that
//!   did not fill its pages has emptied the socket, so the call that would only say so is saved.
//! * **Eager sends.** A send starts when it is asked for; its completion waits for the next turn, so the worker is never
//!   re-entered. A turn that has such completions and nothing else to do does not ask epoll (a bounded number of times
//!   in a row): one wait per round of work, as in a plain epoll relay.
//! * **Bounded turns.** Accepts, completions and received pages of a turn have their limits; what is left is served first
//!   in the next turn, in the order in which it became ready.
//! * **No waiting for company** ([`Wait::company_us`]). epoll cannot wait for several events, and a pause before it saved
//!   nothing for certain: with 100 us, 4 KiB frames of one connection took 2.0-3.2 CPU-s/GiB instead of 1.4-1.9 at 60 MB/s, and
//!   0.8-1.6 instead of 0.95-1.2 at 150 MB/s (five rounds each, test build, a virtual machine of two busy cores).
//!
//! Safe code throughout: pages are filled through [`Pool::fill`].

mod socket;
mod source;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::time::Timespec;

use crate::clock::monotonic;
use crate::driver::{
    Batch, Completion, Driver, DriverError, Gather, Nanos, ReceiveEnd, SocketKey, Taken, Wait,
};
use crate::limits;
use crate::ring::{Pool, hold_back, taken};
use crate::slab::Slab;
use crate::waker::{WakeEvent, Waker};
use socket::Socket;
use source::Source;

/// Events taken from the kernel in one call: each may complete a receive and a send.
const EVENTS_MAX: usize = limits::COMPLETIONS_PER_TURN_MAX / 2;
/// Connections accepted in one turn: a flood of them must leave room for those that are there.
const ACCEPTS_PER_TURN_MAX: usize = limits::COMPLETIONS_PER_TURN_MAX / 4;
/// Pages filled in one turn; as many as io_uring has at hand. What is received is forwarded while it is in the cache.
const PAGES_PER_TURN_MAX: usize = limits::RECEIVE_RING_PAGES;
/// Turns in a row that do not ask epoll because completions of sends wait.
const UNPOLLED_TURNS_MAX: u32 = 4;

/// See the module's head.
pub struct PollDriver {
    epoll: OwnedFd,
    event: WakeEvent,
    /// The same for another process: only that one can be held up by what it does to its copy.
    bell: WakeEvent,
    pool: Pool,
    sockets: Slab<Socket>,
    listeners: Vec<Listener>,
    /// Sockets of which something asked for is possible now. May name sockets that are closed.
    runnable: VecDeque<SocketKey>,
    /// Completions for the next batch.
    local: VecDeque<Completion>,
    /// Room for what epoll says; empty between calls.
    events: Vec<epoll::Event>,
    /// Room for the slices of a send; empty between calls.
    slices: Vec<IoSlice<'static>>,
    unpolled_turns: u32,
    now: Nanos,
}

impl std::fmt::Debug for PollDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PollDriver")
            .field("sockets", &self.sockets.len())
            .field("pool", &self.pool.len())
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Listener {
    socket: socket2::Socket,
    /// The worker wants connections.
    accepting: bool,
    /// There may be one.
    ready: bool,
}

impl PollDriver {
    /// Builds the driver and its buffer memory of `memory_len` bytes, with the listeners it shall accept from. Errors are the kernel's: memory or descriptors are used up.
    pub fn new(listeners: Vec<socket2::Socket>, memory_len: usize) -> Result<Self, DriverError> {
        let pool = Pool::new(memory_len)
            .map_err(call("mmap of buffer memory (setting buffer_memory, limit `ulimit -v`)"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(call("epoll_create1"))?;
        let event = WakeEvent::new().map_err(call("eventfd"))?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let bell = WakeEvent::new().map_err(call("eventfd"))?;
        for event in [&event, &bell] {
            epoll::add(&epoll, event, Source::Wake.data(), edge).map_err(call("epoll_ctl"))?;
        }
        for (index, listener) in listeners.iter().enumerate() {
            listener.set_nonblocking(true).map_err(call("fcntl"))?;
            epoll::add(&epoll, listener, Source::Listener(index).data(), edge).map_err(call("epoll_ctl"))?;
        }
        Ok(Self {
            epoll,
            event,
            bell,
            pool,
            sockets: Slab::default(),
            listeners: listeners
                .into_iter()
                .map(|socket| Listener { socket, accepting: false, ready: true })
                .collect(),
            runnable: VecDeque::new(),
            local: VecDeque::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            slices: Vec::with_capacity(limits::GATHER_PARTS_MAX),
            unpolled_turns: 0,
            now: monotonic(),
        })
    }

    /// A handle with which other threads interrupt the wait.
    pub fn waker(&self) -> Waker {
        self.event.waker()
    }

    /// A handle with which the control plane interrupts the wait.
    pub fn bell(&self) -> Waker {
        self.bell.waker()
    }

    /// Takes over a connected socket that does not block.
    fn add(&mut self, descriptor: OwnedFd) -> Result<SocketKey, Errno> {
        let key = self.sockets.insert(Socket::new(descriptor));
        let Some(socket) = self.sockets.find(key) else { return Ok(key) };
        let registered =
            epoll::add(&self.epoll, socket.descriptor(), Source::Socket(key).data(), Socket::interest());
        if let Err(error) = registered {
            self.sockets.remove(key);
            return Err(error);
        }
        Ok(key)
    }

    /// Whether a listener may have what the worker wants.
    fn may_accept(&self) -> bool {
        self.listeners.iter().any(|listener| listener.accepting && listener.ready)
    }

    /// Asks epoll, waiting as `wait` says, and remembers what it answers. Reports wake-ups into `batch`.
    fn poll(&mut self, wait: Wait, batch: &mut Batch) -> Result<(), DriverError> {
        let has_work = !self.runnable.is_empty() || self.may_accept();
        let has_news = !self.local.is_empty();
        if has_news && !has_work && !wait.poll && self.unpolled_turns < UNPOLLED_TURNS_MAX {
            self.unpolled_turns += 1;
            return Ok(());
        }
        self.unpolled_turns = 0;
        let timeout = if has_work || has_news || wait.poll {
            Some(timespec(0))
        } else {
            wait.until.map(|until| timespec(until.saturating_sub(self.now)))
        };
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(call("epoll_wait")(error)),
        }
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            let (data, flags) = (event.data, event.flags);
            match Source::of(data) {
                Source::Wake => {
                    self.event.clear();
                    self.bell.clear();
                    batch.completions.push(Completion::Woken);
                }
                Source::Listener(index) => self.listeners[index].ready = true,
                Source::Socket(key) => {
                    // A closed one's last event may be under way still.
                    let Some(socket) = self.sockets.find_mut(key) else { continue };
                    socket.note(flags);
                    if socket.enqueue() {
                        self.runnable.push_back(key);
                    }
                }
            }
        }
        self.events = events;
        Ok(())
    }

    /// Accepts what the listeners have, up to the turn's limit.
    fn accept_ready(&mut self, batch: &mut Batch) {
        let mut left = ACCEPTS_PER_TURN_MAX.min(room(batch));
        for index in 0..self.listeners.len() {
            while left > 0 && self.listeners[index].accepting && self.listeners[index].ready {
                if let Some(completion) = self.accept_one(index) {
                    batch.completions.push(completion);
                    left -= 1;
                }
            }
        }
    }

    /// One connection, or why there is none. `None`: nothing to report.
    fn accept_one(&mut self, index: usize) -> Option<Completion> {
        let listener = &mut self.listeners[index];
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let outcome = rustix::net::acceptfrom_with(&listener.socket, flags);
        let error = match outcome {
            Ok((descriptor, address)) => {
                // A connection without a peer was reset before we came to it: dropping the descriptor is all there is to do.
                let peer = SocketAddr::try_from(address?).ok()?;
                match self.add(descriptor) {
                    Ok(socket) => return Some(Completion::Accepted { listener: index, socket, peer }),
                    Err(error) => error,
                }
            }
            Err(Errno::AGAIN) => {
                listener.ready = false;
                return None;
            }
            // A signal; or what had gone wrong with this connection before it was accepted (accept(2) says to go on).
            Err(
                Errno::INTR
                | Errno::CONNABORTED
                | Errno::PERM
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::NONET
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH,
            ) => return None,
            Err(error) => error,
        };
        // Descriptors or memory are used up. The worker decides when to ask again, so that this is not a busy loop; the
        // connection waits in the listener, which stays ready.
        self.listeners[index].accepting = false;
        Some(Completion::AcceptFailed { listener: index, error: error.raw_os_error() })
    }

    /// Serves sockets that can do something asked for, in the order in which they became ready, up to the turn's limits.
    fn run(&mut self, batch: &mut Batch) {
        while room(batch) >= 2 && batch.spans.len() < PAGES_PER_TURN_MAX {
            let Some(key) = self.runnable.pop_front() else { return };
            let Some(socket) = self.sockets.find_mut(key) else { continue };
            socket.dequeue();
            let first = batch.spans.len();
            match socket.receive(&mut self.pool, &mut batch.spans) {
                None => {}
                Some(Ok(count)) => {
                    let more = socket.may_have_more();
                    batch.completions.push(Completion::Received { socket: key, first, count, more });
                }
                Some(Err(reason)) => {
                    batch.completions.push(Completion::ReceiveEnded { socket: key, reason });
                }
            }
            if let Some((gather, outcome)) = socket.send(&self.pool, &mut self.slices) {
                batch.completions.push(Completion::Sent { socket: key, gather, outcome });
            }
        }
    }
}

impl Driver for PollDriver {
    fn now(&self) -> Nanos {
        self.now
    }

    fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    fn accept(&mut self, listener: usize) {
        self.listeners[listener].accepting = true;
    }

    fn receive(&mut self, socket: SocketKey, len_max: usize) {
        let Some(state) = self.sockets.find_mut(socket) else { return };
        state.want_receive(len_max);
        if state.enqueue() {
            self.runnable.push_back(socket);
        }
    }

    fn send(&mut self, socket: SocketKey, gather: Box<Gather>) {
        let Some(state) = self.sockets.find_mut(socket) else {
            // The socket was closed in this turn; the gather must still come home.
            self.local.push_back(Completion::Sent { socket, gather, outcome: Err(libc::ECANCELED) });
            return;
        };
        state.want_send(gather);
        if let Some((gather, outcome)) = state.send(&self.pool, &mut self.slices) {
            self.local.push_back(Completion::Sent { socket, gather, outcome });
        }
    }

    fn hold_back(&mut self, socket: SocketKey, len: u32) {
        if let Some(socket) = self.sockets.find(socket) {
            hold_back(socket.descriptor(), len);
        }
    }

    fn taken(&mut self, socket: SocketKey) -> Option<Taken> {
        taken(self.sockets.find(socket)?.descriptor())
    }

    fn recall(&mut self, socket: SocketKey) {
        let Some(state) = self.sockets.find_mut(socket) else { return };
        let (receiving, sent) = state.recall();
        if receiving {
            self.local.push_back(Completion::ReceiveEnded { socket, reason: ReceiveEnd::Cancelled });
        }
        if let Some((gather, outcome)) = sent {
            self.local.push_back(Completion::Sent { socket, gather, outcome });
        }
    }

    fn close(&mut self, socket: SocketKey) {
        self.recall(socket);
        // Dropping the only descriptor of a connection ends its registration with epoll.
        if self.sockets.remove(socket).is_some() {
            self.local.push_back(Completion::Closed { socket });
        }
    }

    fn turn(&mut self, wait: Wait, batch: &mut Batch) -> Result<(), DriverError> {
        batch.completions.clear();
        debug_assert!(batch.spans.is_empty(), "the worker released the last batch");
        batch.spans.clear();
        self.poll(wait, batch)?;
        self.now = monotonic();
        let taken = self.local.len().min(room(batch));
        batch.completions.extend(self.local.drain(..taken));
        self.accept_ready(batch);
        self.run(batch);
        batch.exhausted = !self.local.is_empty() || !self.runnable.is_empty();
        Ok(())
    }
}

/// Completions the batch may still take.
fn room(batch: &Batch) -> usize {
    limits::COMPLETIONS_PER_TURN_MAX.saturating_sub(batch.completions.len())
}

fn timespec(nanos: u64) -> Timespec {
    // Both fit: the first is below 2^35, the second below 10^9.
    Timespec { tv_sec: (nanos / limits::SECOND_NS) as i64, tv_nsec: (nanos % limits::SECOND_NS) as _ }
}

fn call<E: Into<io::Error>>(name: &'static str) -> impl Fn(E) -> DriverError {
    move |error| DriverError::Call { call: name, error: error.into() }
}
