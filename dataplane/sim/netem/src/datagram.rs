//! One direction of a packet path: datagrams may be lost, doubled, reordered and changed.
//!
//! In: datagrams of the sender. Out: those that arrive, each with its time. The queue in front of the line is bounded:
//! when full it drops the newest or blocks the writer.

use std::collections::VecDeque;

use crate::{Line, LineConfig, Loss, LossConfig, Nanos, Random};

/// What a full queue does with another datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueuePolicy {
    /// Drops it; the writer does not learn of it.
    DropTail,
    /// Refuses it: the writer tries again later.
    BlockWriter,
}

/// What a packet path is made of. Chances are per million datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatagramConfig {
    /// Rate, delay and jitter.
    pub line: LineConfig,
    /// Loss.
    pub loss: LossConfig,
    /// Bytes that may wait to leave.
    pub queue_len: usize,
    /// When that is full.
    pub policy: QueuePolicy,
    /// Chance to arrive twice.
    pub duplicate: u32,
    /// Chance that one bit changes.
    pub corrupt: u32,
    /// Whether jitter may change the order. If not, a late datagram holds up those behind it.
    pub reorder: bool,
}

/// The queue is full and the policy is to block the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// See the module's head.
#[derive(Debug, Clone)]
pub struct Datagrams {
    config: DatagramConfig,
    line: Line,
    loss: Loss,
    random: Random,
    waiting: VecDeque<Vec<u8>>,
    waiting_len: usize,
    /// In the order of arrival; ties in the order of leaving.
    flight: VecDeque<(Nanos, Vec<u8>)>,
    last_arrival_at: Nanos,
    is_cut: bool,
}

impl Datagrams {
    /// A quiet path; `random` is its own.
    #[must_use]
    pub fn new(config: DatagramConfig, random: Random) -> Self {
        Self {
            line: Line::new(config.line.clone()),
            loss: Loss::new(config.loss),
            config,
            random,
            waiting: VecDeque::new(),
            waiting_len: 0,
            flight: VecDeque::new(),
            last_arrival_at: 0,
            is_cut: false,
        }
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// [`Full`] with [`QueuePolicy::BlockWriter`] only.
    pub fn send(&mut self, now: Nanos, datagram: Vec<u8>) -> Result<(), Full> {
        self.advance(now);
        if self.waiting_len + datagram.len() > self.config.queue_len && !self.waiting.is_empty() {
            return match self.config.policy {
                QueuePolicy::DropTail => Ok(()),
                QueuePolicy::BlockWriter => Err(Full),
            };
        }
        self.waiting_len += datagram.len();
        self.waiting.push_back(datagram);
        self.advance(now);
        Ok(())
    }

    /// The next datagram that has arrived by `now`.
    pub fn poll(&mut self, now: Nanos) -> Option<Vec<u8>> {
        self.advance(now);
        if self.flight.front()?.0 > now {
            return None;
        }
        self.flight.pop_front().map(|(_, datagram)| datagram)
    }

    /// When something happens by itself.
    #[must_use]
    pub fn next_event(&self, now: Nanos) -> Option<Nanos> {
        let arrival = self.flight.front().map(|(at, _)| *at);
        let departure = if self.waiting.is_empty() { None } else { self.line.ready_at(now) };
        arrival.into_iter().chain(departure).min()
    }

    /// Cuts or restores the path: while it is cut, everything that leaves is lost.
    pub const fn set_cut(&mut self, cut: bool) {
        self.is_cut = cut;
    }

    /// Nothing leaves before `until`.
    pub fn stall(&mut self, until: Nanos) {
        self.line.stall(until);
    }

    /// Bytes that wait to leave.
    #[must_use]
    pub const fn queued_len(&self) -> usize {
        self.waiting_len
    }

    fn advance(&mut self, now: Nanos) {
        while self.line.ready_at(now).is_some_and(|at| at <= now) {
            let Some(mut datagram) = self.waiting.pop_front() else { return };
            self.waiting_len -= datagram.len();
            let arrives_at = self.line.send(now, datagram.len(), &mut self.random);
            if self.loss.takes(&mut self.random) || self.is_cut {
                continue;
            }
            if !datagram.is_empty() && self.random.chance(self.config.corrupt) {
                let bit = self.random.below(8 * datagram.len() as u64) as usize;
                datagram[bit / 8] ^= 1 << (bit % 8);
            }
            if self.random.chance(self.config.duplicate) {
                self.file(arrives_at, datagram.clone());
            }
            self.file(arrives_at, datagram);
        }
    }

    fn file(&mut self, mut arrives_at: Nanos, datagram: Vec<u8>) {
        if !self.config.reorder {
            arrives_at = arrives_at.max(self.last_arrival_at);
        }
        self.last_arrival_at = self.last_arrival_at.max(arrives_at);
        let place = self.flight.partition_point(|(at, _)| *at <= arrives_at);
        self.flight.insert(place, (arrives_at, datagram));
    }
}
