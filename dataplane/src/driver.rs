//! The seam between a worker and what moves its bytes: io_uring, a readiness loop, or the simulator.
//!
//! The interface has the shape of completions. The worker asks for operations, at most one receive and one send per
//! socket at a time, and then takes a [turn](Driver::turn): everything asked for is started, and what has finished comes
//! back as a batch of [`Completion`]s. Buffers belong to the driver (its [`Pool`]); received bytes arrive as spans of it,
//! and a send is a [`Gather`] of spans and headers that the driver keeps until its completion and then hands back.
//! A readiness driver emulates completions; the worker cannot tell.

use std::net::SocketAddr;

use crate::limits;
use crate::ring::{Pool, Span};
use crate::slab::Key;

/// Nanoseconds of CLOCK_MONOTONIC (or of virtual time, in the simulator).
pub type Nanos = u64;

/// Names a connection of a driver: index and generation, so that a completion for a former one is noticed.
pub type SocketKey = Key;

/// What a driver does for a worker. See the module's head.
pub trait Driver {
    /// The time, as of the last turn.
    fn now(&self) -> Nanos;

    /// The buffer memory, to read received bytes and to copy into.
    fn pool(&mut self) -> &mut Pool;

    /// Accepts connections from listener `listener` (an index into the listeners the driver was built with) until
    /// stopped. Each comes as [`Completion::Accepted`].
    fn accept(&mut self, listener: usize);

    /// Receives once from the socket: the next completion carries whatever is there, at least a byte and at most `len_max`
    /// (which is not zero). At most one receive per socket is pending; asking again is a no-op.
    fn receive(&mut self, socket: SocketKey, len_max: usize);

    /// Sends all of a gather; its completion hands the gather back. At most one per socket.
    fn send(&mut self, socket: SocketKey, gather: Box<Gather>);

    /// From now on the kernel takes bytes of this connection only while fewer than `len` wait there to be sent: what is not with it can be
    /// overtaken. For when the connection's rate has changed: it costs a system call.
    fn hold_back(&mut self, socket: SocketKey, len: u32);

    /// How much of what was sent the peer's side has taken, if that can be told. Not for every turn: it may cost a system call.
    fn taken(&mut self, socket: SocketKey) -> Option<Taken>;

    /// Takes back what is pending on a connection without ending it: the receive completes as cancelled (or with bytes), the
    /// send with what the kernel took of it, or as failed with `ECANCELED` when it took nothing.
    fn recall(&mut self, socket: SocketKey);

    /// Ends a connection: pending operations are cancelled and complete, then the descriptor is closed and
    /// [`Completion::Closed`] comes as the last of this socket.
    fn close(&mut self, socket: SocketKey);

    /// Starts what was asked for, waits as `wait` says, and moves what has finished into `batch` (cleared first), at most
    /// [`limits::COMPLETIONS_PER_TURN_MAX`].
    fn turn(&mut self, wait: Wait, batch: &mut Batch) -> Result<(), DriverError>;
}

/// What of a connection's bytes has arrived, as its acknowledgements say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Bytes acknowledged since the connection began.
    pub len: u64,
    /// Whether that is all the kernel was given.
    pub is_all: bool,
}

/// How long a turn may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// Return at this time even if nothing has finished. `None`: wait for a completion or a wake-up.
    pub until: Option<Nanos>,
    /// After the first completion, wait up to this many microseconds for company. Zero: return at once. A wish: a driver that
    /// would lose by it returns at once.
    pub company_us: u32,
    /// Do not wait at all.
    pub poll: bool,
}

/// What has finished since the last turn.
#[derive(Debug)]
pub struct Batch {
    /// In the order in which it finished.
    pub completions: Vec<Completion>,
    /// Received spans; completions refer to ranges of it. Each holds the first reference on its page.
    pub spans: Vec<Span>,
    /// More completions are waiting than the batch may hold.
    pub exhausted: bool,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            completions: Vec::with_capacity(limits::COMPLETIONS_PER_TURN_MAX),
            spans: Vec::with_capacity(limits::RECEIVE_RING_PAGES),
            exhausted: false,
        }
    }
}

/// Something that finished.
#[derive(Debug)]
pub enum Completion {
    /// A connection was accepted.
    Accepted {
        /// Index of the listener.
        listener: usize,
        /// The new connection.
        socket: SocketKey,
        /// The peer's address.
        peer: SocketAddr,
    },
    /// A connection could not be accepted; accepting goes on.
    AcceptFailed {
        /// Index of the listener.
        listener: usize,
        /// The errno.
        error: i32,
    },
    /// Bytes arrived: `batch.spans[first..first + count]`.
    Received {
        /// The connection.
        socket: SocketKey,
        /// Index of the first span.
        first: usize,
        /// How many spans.
        count: usize,
        /// The connection has more to receive already.
        more: bool,
    },
    /// A receive ended without bytes.
    ReceiveEnded {
        /// The connection.
        socket: SocketKey,
        /// Why.
        reason: ReceiveEnd,
    },
    /// A send finished, whole or in part.
    Sent {
        /// The connection.
        socket: SocketKey,
        /// What was sent; holds its spans until the worker releases them.
        gather: Box<Gather>,
        /// Bytes the kernel took of what remained, or an errno.
        outcome: Result<usize, i32>,
    },
    /// The last completion of a connection.
    Closed {
        /// The connection.
        socket: SocketKey,
    },
    /// Somebody outside the worker has something for it.
    Woken,
}

/// Why a receive ended without bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveEnd {
    /// The peer closed its side.
    EndOfStream,
    /// No page was free; arm again when pages are back.
    NoBuffers,
    /// It was cancelled by [`Driver::close`].
    Cancelled,
    /// The connection failed with this errno.
    Failed(i32),
}

/// One gathered send: frames in order, as slices of buffer memory and of a small store of headers.
///
/// Boxed and recycled: the steady state allocates none. The accounting of the frames travels with it, so that credit is
/// returned for what was really sent.
#[derive(Debug)]
pub struct Gather {
    headers: Vec<u8>,
    parts: Vec<Part>,
    frames: Vec<FrameShare>,
    len: usize,
    sent: usize,
}

/// A slice of a gathered send.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    /// Bytes `from..from + len` of the gather's own header store.
    Header {
        /// Start in the store.
        from: u32,
        /// Length in bytes.
        len: u32,
    },
    /// Payload in buffer memory.
    Payload(Span),
}

/// Payload bytes of one stream in a gathered send.
#[derive(Debug, Clone, Copy)]
pub struct FrameShare {
    /// The half that sent them.
    pub half: Key,
    /// Payload bytes.
    pub len: u32,
    /// Of these: in memory of this worker.
    pub own_len: u32,
    /// Whose they are, in the worker's table of holders.
    pub holder: Key,
}

impl Default for Gather {
    fn default() -> Self {
        Self {
            headers: Vec::with_capacity(limits::GATHER_FRAMES_MAX * HEADER_LEN),
            parts: Vec::with_capacity(limits::GATHER_PARTS_MAX),
            frames: Vec::with_capacity(limits::GATHER_FRAMES_MAX),
            len: 0,
            sent: 0,
        }
    }
}

/// Room for a frame's header, or for a whole control frame.
const HEADER_LEN: usize = crate::session::Frame::LEN_MAX;

impl Gather {
    /// Appends bytes that are not in buffer memory: frame headers, handshake messages.
    pub fn push_header(&mut self, bytes: &[u8]) {
        let from = self.headers.len() as u32;
        self.headers.extend_from_slice(bytes);
        self.len += bytes.len();
        // Neighbouring headers are one slice.
        if let Some(Part::Header { from: start, len }) = self.parts.last_mut()
            && *start + *len == from
        {
            *len += bytes.len() as u32;
            return;
        }
        self.parts.push(Part::Header { from, len: bytes.len() as u32 });
    }

    /// Appends payload that has [departed](Pool::depart); the gather takes over the caller's reference.
    pub fn push_payload(&mut self, span: Span) {
        self.len += span.len();
        self.parts.push(Part::Payload(span));
    }

    /// Notes whose payload the last parts were.
    pub fn push_share(&mut self, share: FrameShare) {
        self.frames.push(share);
    }

    /// Whether another frame with up to `parts` slices fits.
    pub fn has_room(&self, parts: usize) -> bool {
        self.headers.len() + HEADER_LEN <= limits::GATHER_FRAMES_MAX * HEADER_LEN
            && self.parts.len() + parts < limits::GATHER_PARTS_MAX
            && self.frames.len() < limits::GATHER_FRAMES_MAX
    }

    /// Slices that still fit.
    pub fn parts_left(&self) -> usize {
        limits::GATHER_PARTS_MAX - self.parts.len()
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// `taken` more bytes are with the kernel; true when that was the rest.
    pub fn advance(&mut self, taken: usize) -> bool {
        self.sent += taken;
        debug_assert!(self.sent <= self.len, "the kernel took no more than it was given");
        self.sent >= self.len
    }

    /// The slices not sent yet, as (part, bytes of it to skip).
    pub fn remaining(&self) -> impl Iterator<Item = (Part, usize)> + '_ {
        self.remaining_after(0)
    }

    /// As [`remaining`](Self::remaining), without the first `taken` bytes of it: for a driver that sends a gather in
    /// several calls and reports them as one.
    pub fn remaining_after(&self, taken: usize) -> impl Iterator<Item = (Part, usize)> + '_ {
        let mut skip = self.sent + taken;
        self.parts.iter().filter_map(move |&part| {
            let len = match part {
                Part::Header { len, .. } => len as usize,
                Part::Payload(span) => span.len(),
            };
            if skip >= len {
                skip -= len;
                return None;
            }
            Some((part, std::mem::take(&mut skip)))
        })
    }

    /// Bytes of the header store.
    pub fn header_bytes(&self, from: u32, len: u32) -> &[u8] {
        &self.headers[from as usize..(from + len) as usize]
    }

    /// The streams that had payload in it.
    pub fn shares(&self) -> &[FrameShare] {
        &self.frames
    }

    /// Releases the spans and empties the gather for its next use.
    pub fn reset(&mut self, pool: &mut Pool) {
        for part in self.parts.drain(..) {
            if let Part::Payload(span) = part {
                pool.release_departed(span);
            }
        }
        self.headers.clear();
        self.frames.clear();
        self.len = 0;
        self.sent = 0;
    }
}

/// A driver that cannot go on or cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// io_uring is not to be had here.
    #[error("io_uring cannot be used: {reason}. {cure}")]
    Unavailable {
        /// Which of the ways it is forbidden.
        reason: String,
        /// What to change.
        cure: &'static str,
    },
    /// A call on the ring failed.
    #[error("{call} failed: {error}")]
    Call {
        /// Which.
        call: &'static str,
        /// How.
        error: std::io::Error,
    },
}
