//! A TCP-like connection between two sides: a [`Stream`] each way, and how it ends.
//!
//! A side that closes gives up both directions: what it wrote still arrives, then the end; but if it had not read
//! everything, or bytes arrive later, the other side learns of a reset instead, as with real sockets. A reset reaches the
//! other side after the delay of the way, and not at all while that is cut.

use crate::{Nanos, Random, Stream, StreamConfig};

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one that connected.
    A,
    /// The one that accepted.
    B,
}

impl Side {
    /// The opposite end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// The connection was reset (by the other side, or by a lack of acknowledgements).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLost;

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome {
    /// So many bytes.
    Bytes(usize),
    /// Nothing yet.
    Blocked,
    /// The other side closed, and everything it wrote was read.
    End,
    /// The connection was reset.
    Lost,
}

/// See the module's head.
#[derive(Debug, Clone)]
pub struct Duplex {
    /// Written by A, written by B.
    streams: [Stream; 2],
    delays_ns: [Nanos; 2],
    is_cut: [bool; 2],
    closed: [bool; 2],
    lost: [bool; 2],
    /// When a reset arrives at A, at B.
    reset_arrives_at: [Option<Nanos>; 2],
}

impl Duplex {
    /// A connection; the first configuration is the way from A to B.
    #[must_use]
    pub fn new(from_a: StreamConfig, from_b: StreamConfig, random: &Random) -> Self {
        Self {
            delays_ns: [from_a.line.delay_ns, from_b.line.delay_ns],
            streams: [Stream::new(from_a, random.fork(1)), Stream::new(from_b, random.fork(2))],
            is_cut: [false; 2],
            closed: [false; 2],
            lost: [false; 2],
            reset_arrives_at: [None; 2],
        }
    }

    /// Bytes a write of this side would take.
    #[must_use]
    pub fn room(&self, side: Side) -> usize {
        self.streams[side as usize].room()
    }

    /// Bytes this side can read.
    #[must_use]
    pub fn readable_len(&self, side: Side) -> usize {
        if self.lost[side as usize] { 0 } else { self.streams[side.other() as usize].readable_len() }
    }

    /// Whether a read of this side would not block.
    #[must_use]
    pub fn is_readable(&self, side: Side) -> bool {
        let stream = &self.streams[side.other() as usize];
        self.lost[side as usize] || stream.readable_len() > 0 || stream.is_at_end()
    }

    /// Whether this side knows of a reset.
    #[must_use]
    pub const fn is_lost(&self, side: Side) -> bool {
        self.lost[side as usize]
    }

    /// How many bytes of this side were acknowledged, and whether that is all it wrote.
    #[must_use]
    pub fn acknowledged(&self, side: Side) -> (u64, bool) {
        self.streams[side as usize].acknowledged()
    }

    /// Takes what there is room for; 0 means blocked.
    ///
    /// # Errors
    /// The connection was reset, or this side closed it.
    pub fn write(&mut self, now: Nanos, side: Side, bytes: &[u8]) -> Result<usize, ConnectionLost> {
        let own = side as usize;
        if self.lost[own] || self.closed[own] {
            return Err(ConnectionLost);
        }
        Ok(self.streams[own].write(now, bytes))
    }

    /// Reads what has arrived.
    pub fn read(&mut self, now: Nanos, side: Side, out: &mut [u8]) -> ReadOutcome {
        if self.lost[side as usize] {
            return ReadOutcome::Lost;
        }
        let stream = &mut self.streams[side.other() as usize];
        match stream.read(now, out) {
            0 if stream.is_at_end() => ReadOutcome::End,
            0 => ReadOutcome::Blocked,
            taken => ReadOutcome::Bytes(taken),
        }
    }

    /// Closes this side's end: no more reading or writing.
    pub fn close(&mut self, now: Nanos, side: Side) {
        let (own, other) = (side as usize, side.other() as usize);
        if self.closed[own] || self.lost[own] {
            self.closed[own] = true;
            return;
        }
        self.closed[own] = true;
        if self.streams[other].readable_len() > 0 {
            self.reset(now, side);
            return;
        }
        self.streams[own].finish(now);
    }

    /// Ends the connection at once; what is under way may never be read.
    pub fn reset(&mut self, now: Nanos, side: Side) {
        let (own, other) = (side as usize, side.other() as usize);
        self.closed[own] = true;
        self.lost[own] = true;
        if !self.is_cut[own] {
            self.schedule_reset(side.other(), now + self.delays_ns[own]);
        }
        self.streams[other].discard();
    }

    /// Cuts or restores one way: bytes written by `from`.
    pub fn set_cut(&mut self, now: Nanos, from: Side, cut: bool) {
        self.is_cut[from as usize] = cut;
        self.streams[from as usize].set_cut(now, cut);
        self.streams[from.other() as usize].hold_acknowledgements(now, cut);
    }

    /// Nothing written by `from` leaves before `until`.
    pub fn stall(&mut self, from: Side, until: Nanos) {
        self.streams[from as usize].stall(until);
    }

    /// Since when bytes of this side wait in vain for an acknowledgement.
    #[must_use]
    pub fn stuck_since(&self, side: Side) -> Option<Nanos> {
        self.streams[side as usize].stuck_since()
    }

    /// When something happens by itself.
    #[must_use]
    pub fn next_event(&self, now: Nanos) -> Option<Nanos> {
        let streams = self.streams.iter().filter_map(|stream| stream.next_event(now));
        streams.chain(self.reset_arrives_at.into_iter().flatten()).min()
    }

    /// Moves everything that is due.
    pub fn advance(&mut self, now: Nanos) {
        for stream in &mut self.streams {
            stream.advance(now);
        }
        for side in [Side::A, Side::B] {
            let own = side as usize;
            if self.reset_arrives_at[own].is_some_and(|at| at <= now) {
                self.reset_arrives_at[own] = None;
                self.lost[own] = true;
                for stream in &mut self.streams {
                    stream.discard();
                }
            }
            // Bytes arrive at a side that closed: nobody reads them, and it answers with a reset.
            let unread = self.streams[side.other() as usize].readable_len();
            if self.closed[own] && unread > 0 {
                self.streams[side.other() as usize].read(now, &mut vec![0; unread]);
                if !self.is_cut[own] && !self.lost[own] {
                    self.schedule_reset(side.other(), now + self.delays_ns[own]);
                }
            }
        }
    }

    fn schedule_reset(&mut self, at_side: Side, at: Nanos) {
        let slot = &mut self.reset_arrives_at[at_side as usize];
        *slot = Some(slot.map_or(at, |sooner| sooner.min(at)));
    }
}
