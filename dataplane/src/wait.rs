//! How long a turn waits: the largest lever there is for small frames.
//!
//! A stream of small writes that arrive one by one costs a wake-up each. Waiting a little for company moves many of them
//! with one receive and one send, at the price of the wait; a lone request and its answer only pay the price. So the worker
//! waits for company only while traffic flows in small pieces and nobody seems to wait for an answer; after a pause, when
//! receives bring plenty by themselves, or beside interactive traffic it returns at once.

use crate::driver::{Nanos, Wait};
use crate::limits;

/// Received bytes per receive from which on waiting longer gains little, where frames are large.
const RECEIVE_LEN_WORTHY: usize = 32 * 1024;
/// The same where frames are small: what one receive takes. Less would end the wait by its own success at 7 Gbit/s, and
/// begin it again a moment later.
const RECEIVE_LEN_WORTHY_SMALL: usize = limits::RECEIVE_LEN_MAX;
/// Average length up to which frames are small.
pub(crate) const FRAME_LEN_SMALL: usize = 16 * 1024;
/// Bytes that must be expected within a wait for it to gather anything: one Go client's frame.
const COMPANY_LEN_MIN: u64 = 4096;
/// Over which time traffic is judged, in nanoseconds.
const WINDOW_NS: u64 = 1_000_000;

/// Chooses each turn's wait from what the last turns brought.
#[derive(Debug)]
pub struct WaitPolicy {
    company_us_max: u32,
    company_us: u32,
    window_start: Nanos,
    window: Brought,
}

/// What turns brought.
#[derive(Debug, Clone, Copy, Default)]
pub struct Brought {
    /// Bytes received.
    pub len: usize,
    /// Receives that brought them.
    pub receives: usize,
    /// Data frames that began in them.
    pub frames: usize,
    /// Complete small ones of these, which somebody may be waiting for.
    pub interactive: usize,
}

impl WaitPolicy {
    /// A policy that waits for company at most `company_us_max` microseconds; 0: never.
    pub fn new(company_us_max: u32) -> Self {
        Self { company_us_max, company_us: 0, window_start: 0, window: Brought::default() }
    }

    /// Changes the longest wait for company, in microseconds; 0: never.
    pub fn set_company_us_max(&mut self, company_us_max: u32) {
        self.company_us_max = company_us_max;
        self.company_us = self.company_us.min(company_us_max);
    }

    /// The wait of the next turn; `timer`: when the wheel fires.
    pub fn choose(&self, now: Nanos, timer: Option<Nanos>) -> Wait {
        Wait { until: timer.map(|at| at.max(now)), company_us: self.company_us, poll: false }
    }

    /// What a turn brought.
    pub fn observe(&mut self, now: Nanos, brought: Brought) {
        let window = &mut self.window;
        window.len += brought.len;
        window.receives += brought.receives;
        window.frames += brought.frames;
        window.interactive += brought.interactive;
        let elapsed = now.saturating_sub(self.window_start);
        if elapsed < WINDOW_NS {
            return;
        }
        let expected = window.len as u64 * u64::from(self.company_us_max) * 1000 / elapsed.max(1);
        // Much traffic in small pieces, and nobody who waits for an answer: wait. Otherwise each wake-up is either worth it or
        // must not be delayed.
        let waits = expected >= COMPANY_LEN_MIN && window.is_in_small_pieces() && window.interactive == 0;
        self.company_us = if waits { self.company_us_max } else { 0 };
        self.window_start = now;
        self.window = Brought::default();
    }
}

impl Brought {
    fn is_in_small_pieces(self) -> bool {
        let are_frames_small = self.len / self.frames.max(1) <= FRAME_LEN_SMALL;
        let worthy = if are_frames_small { RECEIVE_LEN_WORTHY_SMALL } else { RECEIVE_LEN_WORTHY };
        self.len / self.receives.max(1) < worthy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The wait that results from turns that each bring this, every `gap_ns`.
    fn wait_after(turn: Brought, gap_ns: u64) -> u32 {
        let mut policy = WaitPolicy::new(100);
        let mut now = 1_000_000_000;
        for _ in 0..2000 {
            now += gap_ns;
            policy.observe(now, turn);
        }
        policy.choose(now, None).company_us
    }

    /// `receives` receives with `frames` frames of `frame_len` bytes each.
    fn turn(receives: usize, frames: usize, frame_len: usize) -> Brought {
        let frames = receives * frames;
        Brought { len: frames * frame_len, receives, frames, interactive: 0 }
    }

    #[test]
    fn waits_for_company_only_when_much_comes_in_small_pieces() {
        assert_eq!(wait_after(turn(1, 1, 4108), 20_000), 100, "a train of small frames");
        assert_eq!(wait_after(turn(64, 1, 4108), 500_000), 100, "small frames on many connections");
        assert_eq!(wait_after(turn(1, 20, 4108), 100_000), 100, "many small frames: more still cost less");
        assert_eq!(wait_after(turn(1, 64, 4108), 150_000), 0, "so many that a receive is full by itself");
        assert_eq!(wait_after(turn(1, 1, 65_548), 60_000), 0, "large frames");
        assert_eq!(wait_after(turn(1, 4, 65_548), 100_000), 0, "bulk fills every receive by itself");
        let piece = Brought { len: 16_384, receives: 1, frames: 0, interactive: 0 };
        assert_eq!(wait_after(piece, 20_000), 100, "a large frame that comes in small pieces");
        let lone = |len| Brought { interactive: 1, ..turn(1, 1, len) };
        assert_eq!(wait_after(lone(64), 60_000), 0, "a lone ping-pong");
        assert_eq!(wait_after(lone(4108), 20_000), 0, "a ping-pong beside small frames");
        assert_eq!(wait_after(turn(1, 1, 4108), 200_000), 0, "a trickle");
    }
}
