//! The io_uring driver: operations of a worker become ring entries, completions come back as a batch.
//!
//! Created on the thread that will run the worker (the ring has a single issuer). Set-up order: create disabled, register
//! the buffer ring, restrict to the operations of `op`, enable.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use io_uring::{IoUring, cqueue, opcode, register, squeue, types};
use socket2::{SockRef, Socket};

use super::buffers::ReceiveRing;
use super::op::{self, Kind, Token};
use super::pool::Pool;
use super::probe::{self, Features};
use super::taken::{hold_back, taken};
use crate::clock::monotonic;
use crate::driver::{
    Batch, Completion, Driver, DriverError, Gather, Nanos, Part, ReceiveEnd, SocketKey, Taken, Wait,
};
use crate::limits;
use crate::waker::{WakeEvent, Waker};

/// Completions a wait for company is content with: what a turn can take. Half of them are sends that complete at once, so a smaller
/// number ends the wait early just where many connections are to be gathered.
const COMPANY_WANTED: usize = limits::COMPLETIONS_PER_TURN_MAX;

/// See the module's head.
pub struct UringDriver {
    // Dropped first: afterwards the kernel no longer writes to the pages or reads the gathers below.
    ring: IoUring,
    receive_ring: ReceiveRing,
    pool: Pool,
    features: Features,
    sockets: Vec<Slot>,
    free: Vec<u32>,
    listeners: Vec<Socket>,
    /// Send records out of use, kept for the next send.
    #[allow(clippy::vec_box, reason = "the kernel knows the address of a record in use")]
    spare: Vec<Box<InFlight>>,
    /// Completions made without the kernel, for the next batch.
    local: Vec<Completion>,
    event: WakeEvent,
    /// The same for another process: only that one can be held up by what it does to its copy.
    bell: WakeEvent,
    now: Nanos,
}

impl std::fmt::Debug for UringDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringDriver")
            .field("features", &self.features)
            .field("pool", &self.pool.len())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Slot {
    descriptor: Option<OwnedFd>,
    generation: u32,
    receiving: bool,
    /// The time of the last receive if that left nothing behind, else 0.
    drained_at: Nanos,
    sending: Option<Box<InFlight>>,
    closing: bool,
}

/// What the kernel reads during a send; boxed, so that its address holds.
struct InFlight {
    gather: Option<Box<Gather>>,
    slices: Vec<libc::iovec>,
    message: libc::msghdr,
}

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InFlight").field("slices", &self.slices.len()).finish_non_exhaustive()
    }
}

impl UringDriver {
    /// Builds the ring and its buffer memory of `memory_len` bytes on this thread, with the listeners it shall accept
    /// from. Errors say what forbids io_uring and the cure.
    pub fn new(listeners: Vec<Socket>, memory_len: usize) -> Result<Self, DriverError> {
        let ring = probe::build()?;
        let features = probe::features(&ring);
        let mut pool = Pool::new(memory_len)
            .map_err(call("mmap of buffer memory (setting buffer_memory, limit `ulimit -v`)"))?;
        let mut receive_ring = ReceiveRing::register(&ring).map_err(call("registering the buffer ring"))?;
        restrict(&ring).map_err(call("restricting the ring"))?;
        ring.submitter().register_enable_rings().map_err(call("enabling the ring"))?;
        receive_ring.refill(&mut pool);
        let event = WakeEvent::new().map_err(call("eventfd"))?;
        let bell = WakeEvent::new().map_err(call("eventfd"))?;
        for listener in &listeners {
            // The poll driver may have had it before: an accept of the ring then would end at once instead of waiting.
            listener.set_nonblocking(false).map_err(call("fcntl"))?;
        }
        let mut driver = Self {
            ring,
            receive_ring,
            pool,
            features,
            sockets: Vec::new(),
            free: Vec::new(),
            listeners,
            spare: (0..limits::GATHERS_AT_START).map(|_| Box::default()).collect(),
            local: Vec::new(),
            event,
            bell,
            now: monotonic(),
        };
        driver.arm_wake(WAKER);
        driver.arm_wake(BELL);
        Ok(driver)
    }

    /// What this kernel offers above the floor.
    pub fn features(&self) -> Features {
        self.features
    }

    /// A handle with which other threads interrupt the wait.
    pub fn waker(&self) -> Waker {
        self.event.waker()
    }

    /// A handle with which the control plane interrupts the wait.
    pub fn bell(&self) -> Waker {
        self.bell.waker()
    }

    fn wake_event(&self, index: u32) -> &WakeEvent {
        if index == BELL { &self.bell } else { &self.event }
    }

    fn arm_wake(&mut self, index: u32) {
        let event = self.wake_event(index).as_fd().as_raw_fd();
        let entry = op::wake(event, Token::new(Kind::Wake, index, 0));
        self.push(&entry);
    }

    /// Queues an entry; a full submission queue is submitted first.
    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: needed because the kernel will act on addresses in the entry. Every entry is built in `op` from a
            // descriptor that is closed only after its operations completed, and from an `InFlight` that is kept until then.
            let pushed = unsafe { self.ring.submission().push(entry) };
            if pushed.is_ok() {
                return;
            }
            if let Err(error) = self.ring.submit() {
                // EBUSY and EINTR pass once completions are reaped or the signal is handled; a ring of our own making gives
                // no other error here.
                debug_assert!(
                    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINTR | libc::EAGAIN)),
                    "{error}"
                );
                std::thread::yield_now();
            }
        }
    }

    fn slot(&mut self, key: SocketKey) -> Option<&mut Slot> {
        self.sockets
            .get_mut(key.index as usize)
            .filter(|slot| slot.generation == key.generation && slot.descriptor.is_some())
    }

    fn add(&mut self, descriptor: OwnedFd) -> SocketKey {
        let index = self.free.pop().unwrap_or_else(|| {
            self.sockets.push(Slot::default());
            (self.sockets.len() - 1) as u32
        });
        let slot = &mut self.sockets[index as usize];
        slot.descriptor = Some(descriptor);
        slot.closing = false;
        slot.drained_at = 0;
        SocketKey { index, generation: slot.generation }
    }

    /// Takes back what is pending on a socket.
    fn cancel(&mut self, socket: SocketKey, receiving: bool, sending: bool) {
        for (kind, is_pending) in [(Kind::Receive, receiving), (Kind::Send, sending)] {
            if is_pending {
                let operation = Token::new(kind, socket.index, socket.generation);
                let entry = op::cancel(operation, Token::new(Kind::Cancel, socket.index, socket.generation));
                self.push(&entry);
            }
        }
    }

    /// Closes the descriptor once nothing of it is with the kernel.
    fn finish_close(&mut self, index: u32) {
        let slot = &mut self.sockets[index as usize];
        if !slot.closing || slot.receiving || slot.sending.is_some() {
            return;
        }
        slot.descriptor = None;
        slot.closing = false;
        let key = SocketKey { index, generation: slot.generation };
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        self.local.push(Completion::Closed { socket: key });
    }

    fn submit_and_wait(&mut self, wait: Wait) -> Result<(), DriverError> {
        let ready = !self.local.is_empty() || !self.ring.completion().is_empty();
        let outcome = if ready || wait.poll || wait.until.is_some_and(|until| until <= self.now) {
            let pending = self.ring.submission().len() as u32;
            // SAFETY: needed because only the raw call can run deferred task work without waiting; no argument is passed by
            // address.
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(pending, 0, ENTER_GETEVENTS, None) }
        } else {
            let mut arguments = types::SubmitArgs::new();
            let timeout;
            if let Some(until) = wait.until {
                let left = until - self.now;
                timeout = types::Timespec::new()
                    .sec(left / limits::SECOND_NS)
                    .nsec((left % limits::SECOND_NS) as u32);
                arguments = arguments.timespec(&timeout);
            }
            let mut wanted = 1;
            if wait.company_us > 0 && self.features.minimum_wait {
                arguments = arguments.min_wait_usec(wait.company_us);
                wanted = COMPANY_WANTED;
            }
            self.ring.submitter().submit_with_args(wanted, &arguments)
        };
        match outcome {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The time is up; a signal came; completions must be reaped before more is submitted; no memory for a
                // request just now (what was not submitted stays queued).
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(call("io_uring_enter")(error)),
            },
        }
    }

    fn complete(&mut self, token: Token, result: i32, flags: u32, batch: &mut Batch) {
        match token.kind {
            Kind::Accept => self.complete_accept(token.index, result, flags, batch),
            Kind::Receive => self.complete_receive(token, result, flags, batch),
            Kind::Send => self.complete_send(token, result, batch),
            Kind::Cancel => {}
            Kind::Wake => {
                // The poll reports each write by itself, whatever is in the event: it is cleared only where it would end a new
                // poll at once.
                if !cqueue::more(flags) {
                    self.wake_event(token.index).clear();
                    self.arm_wake(token.index);
                }
                batch.completions.push(Completion::Woken);
            }
        }
    }

    fn complete_accept(&mut self, listener: u32, result: i32, flags: u32, batch: &mut Batch) {
        let listener = listener as usize;
        if result < 0 {
            // Of one connection that was gone before we came to it: the next ones are not its business.
            if matches!(-result, libc::ECONNABORTED | libc::EPROTO | libc::EPERM | libc::EINTR | libc::EAGAIN)
            {
                if !cqueue::more(flags) {
                    self.accept(listener);
                }
                return;
            }
            // Without "more" the kernel ended the accept; the worker decides when to ask again, so that running out of
            // descriptors is not a busy loop.
            batch.completions.push(Completion::AcceptFailed { listener, error: -result });
            return;
        }
        // SAFETY: needed to own what the kernel made; a successful accept returns a fresh descriptor that nobody else has.
        let descriptor = unsafe { OwnedFd::from_raw_fd(result) };
        let peer = SockRef::from(&descriptor).peer_addr().ok().and_then(|address| address.as_socket());
        if let Some(peer) = peer {
            let socket = self.add(descriptor);
            batch.completions.push(Completion::Accepted { listener, socket, peer });
        }
        // A connection without a peer was reset before we came to it: dropping the descriptor is all there is to do.
        if !cqueue::more(flags) {
            self.accept(listener);
        }
    }

    fn complete_receive(&mut self, token: Token, result: i32, flags: u32, batch: &mut Batch) {
        let first = batch.spans.len();
        if let Some(place) = cqueue::buffer_select(flags) {
            if result > 0 {
                self.receive_ring.take(&mut self.pool, place, result as usize, &mut batch.spans);
            } else {
                self.receive_ring.discard(&mut self.pool, place);
            }
        }
        let Some(slot) =
            self.sockets.get_mut(token.index as usize).filter(|slot| token.is_of(slot.generation))
        else {
            debug_assert!(false, "a socket outlives its operations");
            return;
        };
        slot.receiving = false;
        slot.drained_at = if result > 0 && !cqueue::sock_nonempty(flags) { self.now } else { 0 };
        let socket = SocketKey { index: token.index, generation: slot.generation };
        let closing = slot.closing;
        batch.completions.push(match result {
            1.. => {
                let (count, more) = (batch.spans.len() - first, cqueue::sock_nonempty(flags));
                Completion::Received { socket, first, count, more }
            }
            0 => Completion::ReceiveEnded { socket, reason: ReceiveEnd::EndOfStream },
            _ => Completion::ReceiveEnded { socket, reason: receive_end(-result) },
        });
        if closing {
            self.finish_close(token.index);
        }
    }

    fn complete_send(&mut self, token: Token, result: i32, batch: &mut Batch) {
        let Some(slot) =
            self.sockets.get_mut(token.index as usize).filter(|slot| token.is_of(slot.generation))
        else {
            debug_assert!(false, "a socket outlives its operations");
            return;
        };
        let Some(mut record) = slot.sending.take() else {
            debug_assert!(false, "a send completes once");
            return;
        };
        let socket = SocketKey { index: token.index, generation: slot.generation };
        let closing = slot.closing;
        if let Some(gather) = record.gather.take() {
            let outcome = if result >= 0 { Ok(result as usize) } else { Err(-result) };
            batch.completions.push(Completion::Sent { socket, gather, outcome });
        }
        if self.spare.len() < limits::SPARE_GATHERS_MAX {
            self.spare.push(record);
        }
        if closing {
            self.finish_close(token.index);
        }
    }
}

impl Driver for UringDriver {
    fn now(&self) -> Nanos {
        self.now
    }

    fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    fn accept(&mut self, listener: usize) {
        let descriptor: RawFd = self.listeners[listener].as_raw_fd();
        let entry = op::accept(descriptor, Token::new(Kind::Accept, listener as u32, 0));
        self.push(&entry);
    }

    fn receive(&mut self, socket: SocketKey, len_max: usize) {
        let (now, features) = (self.now, self.features);
        let Some(slot) = self.slot(socket).filter(|slot| !slot.receiving && !slot.closing) else { return };
        slot.receiving = true;
        // Asked again at once there is nothing to be had yet; after a pause there is.
        let drained = slot.drained_at == now;
        let Some(descriptor) = slot.descriptor.as_ref().map(AsRawFd::as_raw_fd) else { return };
        let entry = op::receive(
            descriptor,
            features,
            len_max,
            drained,
            Token::new(Kind::Receive, socket.index, socket.generation),
        );
        self.push(&entry);
    }

    fn send(&mut self, socket: SocketKey, gather: Box<Gather>) {
        let mut record = self.spare.pop().unwrap_or_default();
        record.fill(gather, &self.pool);
        let message = &raw const record.message;
        let Some(slot) = self.slot(socket) else {
            // The socket was closed in this turn; the gather must still come home.
            if let Some(gather) = record.gather.take() {
                self.local.push(Completion::Sent { socket, gather, outcome: Err(libc::ECANCELED) });
            }
            self.spare.push(record);
            return;
        };
        assert!(slot.sending.is_none(), "one send per socket at a time");
        slot.sending = Some(record);
        let Some(descriptor) = slot.descriptor.as_ref().map(AsRawFd::as_raw_fd) else { return };
        let entry = op::send(descriptor, message, Token::new(Kind::Send, socket.index, socket.generation));
        self.push(&entry);
    }

    fn hold_back(&mut self, socket: SocketKey, len: u32) {
        if let Some(descriptor) = self.slot(socket).and_then(|slot| slot.descriptor.as_ref()) {
            hold_back(descriptor.as_fd(), len);
        }
    }

    fn taken(&mut self, socket: SocketKey) -> Option<Taken> {
        taken(self.slot(socket)?.descriptor.as_ref()?.as_fd())
    }

    fn recall(&mut self, socket: SocketKey) {
        let Some(slot) = self.slot(socket) else { return };
        let (receiving, sending) = (slot.receiving, slot.sending.is_some());
        self.cancel(socket, receiving, sending);
    }

    fn close(&mut self, socket: SocketKey) {
        let Some(slot) = self.slot(socket).filter(|slot| !slot.closing) else { return };
        slot.closing = true;
        // Ends operations that a cancel may just miss.
        if let Some(descriptor) = &slot.descriptor {
            let _ = rustix::net::shutdown(descriptor, rustix::net::Shutdown::Both);
        }
        let (receiving, sending) = (slot.receiving, slot.sending.is_some());
        self.cancel(socket, receiving, sending);
        // At once if nothing is pending.
        self.finish_close(socket.index);
    }

    fn turn(&mut self, wait: Wait, batch: &mut Batch) -> Result<(), DriverError> {
        batch.completions.clear();
        debug_assert!(batch.spans.is_empty(), "the worker released the last batch");
        batch.spans.clear();
        self.receive_ring.refill(&mut self.pool);
        self.submit_and_wait(wait)?;
        self.now = monotonic();
        batch.completions.append(&mut self.local);
        batch.exhausted = false;
        // Completions are moved out before they are handled: a handler never re-enters the ring.
        loop {
            if batch.completions.len() >= limits::COMPLETIONS_PER_TURN_MAX {
                batch.exhausted = true;
                break;
            }
            let Some(entry) = self.ring.completion().next() else { break };
            let Some(token) = Token::unpack(entry.user_data()) else {
                debug_assert!(false, "every entry carries a token");
                continue;
            };
            self.complete(token, entry.result(), entry.flags(), batch);
        }
        Ok(())
    }
}

impl Drop for UringDriver {
    fn drop(&mut self) {
        // Ring teardown is asynchronous in the kernel: without this the listening port and the connections would outlive the
        // driver for some 100 ms, and the kernel would read gathers that are about to be freed.
        let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any())
            .build()
            .user_data(Token::new(Kind::Cancel, u32::MAX, 0).pack());
        self.push(&entry);
        let mut batch = Batch::default();
        let busy = |sockets: &[Slot]| sockets.iter().any(|slot| slot.receiving || slot.sending.is_some());
        for _ in 0..100 {
            let until = Some(monotonic() + limits::SECOND_NS / 100);
            if self.turn(Wait { until, company_us: 0, poll: false }, &mut batch).is_err() {
                break;
            }
            for completion in batch.completions.drain(..) {
                if let Completion::Sent { mut gather, .. } = completion {
                    gather.reset(&mut self.pool);
                }
            }
            for span in batch.spans.drain(..) {
                self.pool.release(span);
            }
            if !busy(&self.sockets) {
                break;
            }
        }
        if busy(&self.sockets) {
            // The kernel would read freed memory; leaking these records is the lesser evil.
            for slot in &mut self.sockets {
                std::mem::forget(slot.sending.take());
            }
            self.pool.leak();
        }
    }
}

impl Default for Box<InFlight> {
    fn default() -> Self {
        // SAFETY: needed because `msghdr` has private padding on some targets; all-zero is its documented empty value.
        let message = unsafe { std::mem::zeroed() };
        Self::new(InFlight { gather: None, slices: Vec::with_capacity(limits::GATHER_PARTS_MAX), message })
    }
}

impl InFlight {
    /// Points the message at what is left of the gather.
    fn fill(&mut self, gather: Box<Gather>, pool: &Pool) {
        self.slices.clear();
        for (part, skip) in gather.remaining() {
            let bytes = match part {
                Part::Header { from, len } => gather.header_bytes(from, len),
                Part::Payload(span) => pool.bytes(span),
            };
            let bytes = &bytes[skip..];
            let start = bytes.as_ptr().cast_mut();
            // Neighbours in memory are one slice for the kernel.
            if let Some(last) = self.slices.last_mut()
                && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == start
            {
                last.iov_len += bytes.len();
                continue;
            }
            self.slices.push(libc::iovec { iov_base: start.cast(), iov_len: bytes.len() });
        }
        self.message.msg_iov = self.slices.as_mut_ptr();
        self.message.msg_iovlen = self.slices.len() as _;
        self.gather = Some(gather);
    }
}

/// Indices of the two events that end a wait.
const WAKER: u32 = 0;
const BELL: u32 = 1;

const ENTER_GETEVENTS: u32 = 1;

/// Only the operations of `op` are allowed on the ring from here on, and no further registration.
pub(super) fn restrict(ring: &IoUring) -> io::Result<()> {
    let mut restrictions = [
        register::Restriction::sqe_op(opcode::AcceptMulti::CODE),
        register::Restriction::sqe_op(opcode::Recv::CODE),
        register::Restriction::sqe_op(opcode::SendMsg::CODE),
        register::Restriction::sqe_op(opcode::AsyncCancel2::CODE),
        register::Restriction::sqe_op(opcode::PollAdd::CODE),
        register::Restriction::sqe_flags_allowed(squeue::Flags::BUFFER_SELECT.bits()),
    ];
    ring.submitter().register_restrictions(&mut restrictions)
}

fn receive_end(errno: i32) -> ReceiveEnd {
    match errno {
        libc::ENOBUFS => ReceiveEnd::NoBuffers,
        libc::ECANCELED => ReceiveEnd::Cancelled,
        errno => ReceiveEnd::Failed(errno),
    }
}

fn call(name: &'static str) -> impl Fn(io::Error) -> DriverError {
    move |error| DriverError::Call { call: name, error }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    /// Whatever waits in the kernel: others' receives must find pages too, and a turn is not to be made long by one peer.
    #[test]
    fn a_receive_brings_no_more_than_it_was_asked_for() {
        let Ok(mut driver) = UringDriver::new(Vec::new(), 16 << 20) else { return };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // The connection inherits it. A host may permit less than what is asked for here; then less waits.
        SockRef::from(&listener).set_recv_buffer_size(4 << 20).unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        let waiting = receiver.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            let _ = sender.write_all(&vec![7; 8 << 20]);
        });
        let socket = driver.add(OwnedFd::from(receiver));
        let (mut batch, mut received) = (Batch::default(), 0);
        while received < 8 << 20 {
            // Until nothing more comes.
            let (mut queued, deadline) = (0, Instant::now() + Duration::from_secs(20));
            while Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
                let now = rustix::io::ioctl_fionread(&waiting).unwrap();
                if now > 0 && (now == queued || now > 3 * limits::RECEIVE_LEN_MAX as u64) {
                    break;
                }
                queued = now;
            }
            driver.receive(socket, limits::RECEIVE_LEN_MAX);
            let until = Some(driver.now() + 10 * limits::SECOND_NS);
            driver.turn(Wait { until, company_us: 0, poll: false }, &mut batch).unwrap();
            for completion in batch.completions.drain(..) {
                let Completion::Received { count, .. } = completion else { panic!("{completion:?}") };
                let len: usize = batch.spans.iter().map(|span| span.len()).sum();
                assert!(len <= limits::RECEIVE_LEN_MAX, "{len} bytes in {count} pages");
                received += len;
            }
            for span in batch.spans.drain(..) {
                assert!(driver.pool.bytes(span).iter().all(|&byte| byte == 7));
                driver.pool.release(span);
            }
        }
        assert_eq!(received, 8 << 20);
        writer.join().unwrap();
    }
}
