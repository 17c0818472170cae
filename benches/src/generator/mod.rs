//! The load: sender and sink of every session pair in one thread, one epoll loop.
//!
//! In: connected [`Link`]s and a [`Load`]. Out: counted bytes, latencies of the ping that rides along where one is
//! asked for, and at the end whether every byte arrived. Called by [`crate::measure`].
//!
//! The generator has to be lighter than what it measures: payload is prepared once, and the sink discards inside the
//! kernel (`MSG_TRUNC`) and therefore cannot see frames. Two consequences, both documented in the report:
//!
//! * The sink of a session cannot return credit for what it consumed. It grants 1 GiB for each stream at the start and
//!   again what its sender, in this same thread, has sent since. The relay thus never waits for the sink's windows, as
//!   a plain relay does not; the windows towards the *sender* are the relay's own and are respected.
//! * Loss is found by counting. Yamux headers are 12 bytes and a relay may cut frames as it likes, so at the end the
//!   sink must have got the payload sent plus a multiple of 12. Verified rounds parse and compare everything.

mod ping;
mod sender;
mod sink;

pub(crate) use ping::{PING_LEN, latencies, ping_frame};

use crate::frames::{HEADER_LEN, Shape};
use crate::link::Link;
use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use sender::Sender;
use sink::Sink;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

const EVENTS_PER_WAIT: usize = 256;
/// Length of one discarding receive, and of the buffer that a parsing one fills.
const RECEIVE_LEN: usize = 1 << 20;
/// Silence after which a session that got all its payload is taken for drained, in a discarding round. Longer than the
/// 200 ms for which BBR lets almost nothing pass when it probes the round trip: with 30 ms one round in twenty ended with some
/// 80 KB still in the relay's kernel, and was taken for a loss.
const QUIET: Duration = Duration::from_millis(400);
/// A paced sender that fell behind catches up at most this far.
const CATCH_UP_MAX: Duration = Duration::from_millis(1);

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Frames and writes.
    pub shape: Shape,
    /// Bytes on the wire for each second over all links together; as fast as possible when absent.
    pub bytes_per_second: Option<u64>,
    /// Content that depends on stream and position, parsed and compared at the sink; prepared and discarded otherwise.
    pub verified: bool,
}

/// What became of everything that was sent.
#[derive(Debug, Default)]
pub struct Delivery {
    /// Payload bytes sent.
    pub payload_sent: u64,
    /// Of these, how many are missing at the sinks.
    pub lost: u64,
    /// Every deviation, in words. Empty means that all arrived, in order and unchanged as far as the mode can tell.
    pub faults: Vec<String>,
}

/// Sender and sink of all links.
pub struct Generator {
    epoll: OwnedFd,
    senders: Vec<Sender>,
    sinks: Vec<Sink>,
    pace: Option<Pace>,
    prepared: Vec<u8>,
    scratch: Vec<u8>,
    events: Vec<epoll::Event>,
    frames_per_turn: usize,
    latest_receive: Instant,
}

impl Generator {
    /// Takes over connected links; their sockets become nonblocking.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(links: Vec<Link>, load: Load) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let loaded = links.iter().filter(|link| !link.streams.is_empty()).count().max(1);
        let rides = links.iter().any(|link| link.ping.is_some());
        let mut senders = Vec::with_capacity(links.len());
        let mut sinks = Vec::with_capacity(links.len());
        let mut number = 0;
        for (index, link) in links.into_iter().enumerate() {
            let flags = epoll::EventFlags::IN
                | epoll::EventFlags::OUT
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::ET;
            let token = |side: u64| epoll::EventData::new_u64(index as u64 * 2 + side);
            link.sender.set_nonblocking(true)?;
            link.sink.set_nonblocking(true)?;
            epoll::add(&epoll, &link.sender, token(0), flags)?;
            epoll::add(&epoll, &link.sink, token(1), flags)?;
            let (sender, sink) = (Sender::new(&link, load, number)?, Sink::new(&link, load, number)?);
            number += u32::try_from(link.streams.len())?;
            senders.push(sender.with_socket(link.sender));
            sinks.push(sink.with_socket(link.sink));
        }
        // Many connections take turns frame by frame, as independent clients would, and so does a connection beside a
        // ping; a single one may send a few frames at once.
        let frames_per_turn = match load.shape {
            _ if rides => 1,
            Shape::Bulk64k => (4 / loaded).max(1),
            Shape::GoClient => (16 / loaded).max(1),
        };
        Ok(Self {
            epoll,
            senders,
            sinks,
            pace: load.bytes_per_second.map(|rate| Pace::new(rate, load.shape)),
            prepared: vec![0x5a; load.shape.payload_len()],
            scratch: vec![0; RECEIVE_LEN],
            events: Vec::with_capacity(EVENTS_PER_WAIT),
            frames_per_turn,
            latest_receive: Instant::now(),
        })
    }

    /// Sends and receives for this long.
    ///
    /// # Errors
    /// When the relay closes or resets anything, or sends what it must not.
    pub fn run_for(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        loop {
            let now = Instant::now();
            if now >= until {
                return Ok(());
            }
            self.turn(now, until, true)?;
        }
    }

    /// Sends at least this many payload bytes.
    ///
    /// # Errors
    /// As [`Generator::run_for`], and when it takes longer than `timeout`.
    pub fn run_bytes(&mut self, payload: u64, timeout: Duration) -> Result<()> {
        let until = Instant::now() + timeout;
        while self.payload_sent() < payload {
            let now = Instant::now();
            if now >= until {
                bail!("only {} of {payload} bytes could be sent within {timeout:?}", self.payload_sent());
            }
            self.turn(now, until, true)?;
        }
        Ok(())
    }

    /// Bytes that arrived at the sinks, headers included.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.sinks.iter().map(|sink| sink.wire_received).sum()
    }

    /// Latencies in nanoseconds of the ping that rides along, if one does; emptied by the call.
    pub fn take_latencies(&mut self) -> Option<Histogram<u64>> {
        self.senders.iter_mut().find_map(Sender::take_latencies)
    }

    /// Ends frames that were begun, receives what is on the way, closes everything, and compares.
    ///
    /// # Errors
    /// As [`Generator::run_for`].
    pub fn finish(mut self, timeout: Duration) -> Result<Delivery> {
        let until = Instant::now() + timeout;
        loop {
            let now = Instant::now();
            if now >= until || self.is_drained(now) {
                break;
            }
            self.turn(now, until.min(now + QUIET), false)?;
        }
        let mut delivery = Delivery { payload_sent: self.payload_sent(), ..Delivery::default() };
        for (index, (sender, sink)) in self.senders.iter().zip(&self.sinks).enumerate() {
            let (lost, fault) = sink.compare(sender);
            delivery.lost += lost;
            delivery.faults.extend(fault.map(|fault| format!("link {index}: {fault}")));
        }
        Ok(delivery)
    }

    fn payload_sent(&self) -> u64 {
        self.senders.iter().map(Sender::payload_sent).sum()
    }

    fn is_drained(&self, now: Instant) -> bool {
        let quiet = now.duration_since(self.latest_receive) >= QUIET;
        self.senders
            .iter()
            .zip(&self.sinks)
            .all(|(sender, sink)| sender.is_between_frames() && sink.is_drained(sender, quiet))
    }

    /// One turn: wait for news unless something can be sent at once, then sinks, then returned credit, then senders.
    fn turn(&mut self, now: Instant, until: Instant, sending: bool) -> Result<()> {
        let due = if sending { self.pace.as_ref().map_or(now, Pace::due) } else { now };
        let can_send = self.senders.iter().any(|sender| sender.can_send(sending));
        let wait_until = if can_send { due.min(until) } else { until };
        self.wait(wait_until.saturating_duration_since(now))?;
        for (sender, sink) in self.senders.iter_mut().zip(&mut self.sinks) {
            if sink.readable {
                sink.receive(&mut self.scratch)?;
                self.latest_receive = now;
            }
            if sender.readable {
                sender.receive(&mut self.scratch)?;
            }
        }
        let now = Instant::now();
        let mut frames = match (&self.pace, sending) {
            (Some(pace), true) => pace.frames_due(now),
            _ => usize::MAX,
        };
        for (sender, sink) in self.senders.iter_mut().zip(&mut self.sinks) {
            if sender.can_send(sending) {
                let started = sender.send(&self.prepared, frames.min(self.frames_per_turn), sending, now)?;
                frames -= started;
                if let Some(pace) = &mut self.pace {
                    pace.started(started, now);
                }
            }
            sink.top_up(sender);
            sink.flush()?;
        }
        Ok(())
    }

    fn wait(&mut self, time: Duration) -> Result<()> {
        self.events.clear();
        let timeout = Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let input = epoll::EventFlags::IN
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::HUP
            | epoll::EventFlags::ERR;
        for event in &self.events {
            let token = usize::try_from(event.data.u64())?;
            let (flags, index) = (event.flags, token / 2);
            if token % 2 == 0 {
                self.senders[index].readable |= flags.intersects(input);
                self.senders[index].writable |= flags.contains(epoll::EventFlags::OUT);
            } else {
                self.sinks[index].readable |= flags.intersects(input);
            }
        }
        Ok(())
    }
}

/// Spreads frames evenly over time.
struct Pace {
    interval: Duration,
    next: Instant,
}

impl Pace {
    fn new(bytes_per_second: u64, shape: Shape) -> Self {
        let frame_len = (HEADER_LEN + shape.payload_len()) as u64;
        Self {
            interval: Duration::from_nanos(frame_len * 1_000_000_000 / bytes_per_second.max(1)),
            next: Instant::now(),
        }
    }

    fn due(&self) -> Instant {
        self.next
    }

    fn frames_due(&self, now: Instant) -> usize {
        match now.checked_duration_since(self.next) {
            None => 0,
            Some(late) => usize::try_from(late.as_nanos() / self.interval.as_nanos().max(1)).unwrap_or(0) + 1,
        }
    }

    fn started(&mut self, frames: usize, now: Instant) {
        self.next += self.interval * u32::try_from(frames).unwrap_or(u32::MAX);
        if let Some(earliest) = now.checked_sub(CATCH_UP_MAX) {
            self.next = self.next.max(earliest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_spreads_frames_and_forgets_old_debts() {
        let mut pace = Pace::new(41_080_000, Shape::GoClient);
        assert_eq!(pace.interval, Duration::from_micros(100));
        let start = pace.next;
        assert_eq!(pace.frames_due(start), 1);
        assert_eq!(pace.frames_due(start + Duration::from_micros(250)), 3);
        pace.started(3, start + Duration::from_micros(250));
        assert_eq!(pace.frames_due(start + Duration::from_micros(250)), 0);
        pace.started(0, start + Duration::from_secs(1));
        assert_eq!(pace.frames_due(start + Duration::from_secs(1)), 11);
    }
}
