//! One direction of a TCP-like connection.
//!
//! In: bytes of the writer, reads of the reader. Out: the same bytes in the same order, later. Loss never loses a byte:
//! the segment comes a retransmission later, and holds up what is behind it. A full send buffer blocks the writer; a full
//! receive buffer stops the sender (its window). While the way is cut nothing passes, but writes succeed until the send
//! buffer is full, as on a real black-holed connection; what was under way is sent again after the way is restored.

use std::collections::VecDeque;

use crate::{Line, LineConfig, Loss, LossConfig, Nanos, Random};

/// What a stream is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamConfig {
    /// Rate, delay and jitter of the way.
    pub line: LineConfig,
    /// Loss of the way; shows as delay.
    pub loss: LossConfig,
    /// Delay of a segment that had to be sent again, in nanoseconds.
    pub retransmit_ns: Nanos,
    /// Bytes sent as one segment at most.
    pub segment_len: usize,
    /// Bytes the sender holds, not acknowledged yet, at most. When full the writer is blocked.
    pub send_buffer_len: usize,
    /// Bytes the receiver holds unread at most. When full nothing more is sent.
    pub receive_buffer_len: usize,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            line: LineConfig::with_delay(0),
            loss: LossConfig::None,
            retransmit_ns: 200_000_000,
            segment_len: 16 * 1024,
            send_buffer_len: 128 * 1024,
            receive_buffer_len: 256 * 1024,
        }
    }
}

/// See the module's head.
#[derive(Debug, Clone)]
pub struct Stream {
    config: StreamConfig,
    line: Line,
    loss: Loss,
    random: Random,
    /// Arrived bytes, then those under way, then those not sent.
    bytes: VecDeque<u8>,
    arrived_len: usize,
    written_len: u64,
    /// Arrived, but the acknowledgement cannot come back.
    unacknowledged_len: usize,
    flight: VecDeque<Segment>,
    flight_len: usize,
    last_arrival_at: Nanos,
    end: End,
    is_cut: bool,
    acknowledgements_held: bool,
    progress_at: Nanos,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    len: usize,
    arrives_at: Nanos,
}

/// How far the writer's end of stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Wanted,
    UnderWay,
    Arrived,
}

impl Stream {
    /// A fresh stream; `random` is its own.
    #[must_use]
    pub fn new(config: StreamConfig, random: Random) -> Self {
        Self {
            line: Line::new(config.line.clone()),
            loss: Loss::new(config.loss),
            config,
            random,
            bytes: VecDeque::new(),
            arrived_len: 0,
            written_len: 0,
            unacknowledged_len: 0,
            flight: VecDeque::new(),
            flight_len: 0,
            last_arrival_at: 0,
            end: End::Open,
            is_cut: false,
            acknowledgements_held: false,
            progress_at: 0,
        }
    }

    /// Bytes a write would take now.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.end != End::Open {
            return 0;
        }
        self.config.send_buffer_len.saturating_sub(self.outstanding_len())
    }

    /// Takes what there is room for and returns how many bytes that was.
    pub fn write(&mut self, now: Nanos, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        if taken > 0 {
            if self.outstanding_len() == 0 {
                self.progress_at = now;
            }
            self.bytes.extend(&bytes[..taken]);
            self.written_len += taken as u64;
            self.advance(now);
        }
        taken
    }

    /// No more will be written: behind the last byte the reader finds the end.
    pub fn finish(&mut self, now: Nanos) {
        if self.end == End::Open {
            self.end = End::Wanted;
            self.advance(now);
        }
    }

    /// Bytes that can be read now.
    #[must_use]
    pub const fn readable_len(&self) -> usize {
        self.arrived_len
    }

    /// Whether the reader has everything, the end included.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.end == End::Arrived && self.arrived_len == 0
    }

    /// Takes arrived bytes and returns how many.
    pub fn read(&mut self, now: Nanos, out: &mut [u8]) -> usize {
        let taken = out.len().min(self.arrived_len);
        let (front, back) = self.bytes.as_slices();
        let from_front = taken.min(front.len());
        out[..from_front].copy_from_slice(&front[..from_front]);
        out[from_front..taken].copy_from_slice(&back[..taken - from_front]);
        self.bytes.drain(..taken);
        self.arrived_len -= taken;
        if taken > 0 {
            // The window opened.
            self.advance(now);
        }
        taken
    }

    /// When something happens by itself.
    #[must_use]
    pub fn next_event(&self, now: Nanos) -> Option<Nanos> {
        if self.is_cut {
            return None;
        }
        let arrival = self.flight.front().map(|segment| segment.arrives_at);
        let departure = if self.next_segment_len().is_some() { self.line.ready_at(now) } else { None };
        match (arrival, departure) {
            (Some(arrival), Some(departure)) => Some(arrival.min(departure)),
            (arrival, departure) => arrival.or(departure),
        }
    }

    /// Moves everything that is due.
    pub fn advance(&mut self, now: Nanos) {
        if self.is_cut {
            return;
        }
        loop {
            while let Some(segment) = self.flight.front().copied().filter(|first| first.arrives_at <= now) {
                self.flight.pop_front();
                self.arrive(now, segment);
            }
            let Some(len) = self.next_segment_len() else { return };
            if self.line.ready_at(now).is_none_or(|at| at > now) {
                return;
            }
            self.depart(now, len);
        }
    }

    /// Since when the sender has waited in vain for an acknowledgement: what `TCP_USER_TIMEOUT` looks at.
    #[must_use]
    pub fn stuck_since(&self) -> Option<Nanos> {
        (self.outstanding_len() > 0).then_some(self.progress_at)
    }

    /// How many bytes were acknowledged, and whether that is all that was written.
    #[must_use]
    pub fn acknowledged(&self) -> (u64, bool) {
        let outstanding_len = self.outstanding_len();
        (self.written_len - outstanding_len as u64, outstanding_len == 0)
    }

    /// Cuts or restores the way. Nothing passes while it is cut.
    pub fn set_cut(&mut self, now: Nanos, cut: bool) {
        let restored = self.is_cut && !cut;
        self.is_cut = cut;
        if restored {
            // What was under way is lost and sent again.
            let mut at = now + self.config.line.delay_ns + self.config.retransmit_ns;
            for segment in &mut self.flight {
                at = at.max(segment.arrives_at);
                segment.arrives_at = at;
            }
            self.last_arrival_at = self.last_arrival_at.max(at);
            self.advance(now);
        }
    }

    /// While held, arriving bytes are not acknowledged: the way back is cut.
    pub fn hold_acknowledgements(&mut self, now: Nanos, held: bool) {
        self.acknowledgements_held = held;
        if !held && self.unacknowledged_len > 0 {
            self.unacknowledged_len = 0;
            self.progress_at = now;
        }
    }

    /// Nothing leaves before `until`.
    pub fn stall(&mut self, until: Nanos) {
        self.line.stall(until);
    }

    /// Forgets what is not read yet, as a reset does.
    pub fn discard(&mut self) {
        self.bytes.clear();
        self.flight.clear();
        self.arrived_len = 0;
        self.flight_len = 0;
        self.unacknowledged_len = 0;
        self.end = End::Arrived;
    }

    /// Bytes the sender still holds.
    fn outstanding_len(&self) -> usize {
        self.bytes.len() - self.arrived_len + self.unacknowledged_len
    }

    /// Length of the segment that leaves next (0: the end of the stream); none when there is nothing or no window.
    fn next_segment_len(&self) -> Option<usize> {
        let unsent = self.bytes.len() - self.arrived_len - self.flight_len;
        if unsent == 0 {
            return (self.end == End::Wanted).then_some(0);
        }
        let window = self.config.receive_buffer_len.saturating_sub(self.arrived_len + self.flight_len);
        let whole = unsent.min(self.config.segment_len);
        // Small windows are waited out, as TCP does, or every read would make a tiny segment.
        let enough = whole.min(self.config.receive_buffer_len / 2).max(1);
        (window >= enough).then(|| whole.min(window))
    }

    fn depart(&mut self, now: Nanos, len: usize) {
        let mut arrives_at = self.line.send(now, len, &mut self.random);
        if len > 0 && self.loss.takes(&mut self.random) {
            arrives_at += self.config.retransmit_ns;
        }
        // In order, whatever jitter and loss say.
        arrives_at = arrives_at.max(self.last_arrival_at);
        self.last_arrival_at = arrives_at;
        self.flight_len += len;
        if len == 0 {
            self.end = End::UnderWay;
        }
        self.flight.push_back(Segment { len, arrives_at });
    }

    fn arrive(&mut self, now: Nanos, segment: Segment) {
        if segment.len == 0 {
            self.end = End::Arrived;
            return;
        }
        self.flight_len -= segment.len;
        self.arrived_len += segment.len;
        if self.acknowledgements_held {
            self.unacknowledged_len += segment.len;
        } else {
            self.progress_at = now;
        }
    }
}
