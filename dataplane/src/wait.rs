//! How long a turn waits: the largest lever there is for small frames.
//!
//! A stream of small writes that arrive one by one costs a wake-up each. Waiting a little for company moves many of them
//! with one receive and one send, at the price of the wait; a lone request and its answer only pay the price. So the worker
//! waits for company only while traffic flows in small pieces and nobody seems to wait for an answer; after a pause, when
//! receives bring plenty by themselves, or beside interactive traffic it returns at once.

use crate::driver::{Nanos, Wait};

/// Received bytes per receive from which on waiting longer gains little.
const RECEIVE_LEN_WORTHY: usize = 32 * 1024;
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
    window_len: usize,
    window_receives: usize,
    window_interactive: u64,
}

impl WaitPolicy {
    /// A policy that waits for company at most `company_us_max` microseconds; 0: never.
    pub fn new(company_us_max: u32) -> Self {
        Self {
            company_us_max,
            company_us: 0,
            window_start: 0,
            window_len: 0,
            window_receives: 0,
            window_interactive: 0,
        }
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

    /// What a turn brought; `interactive`: complete small data frames in it, which somebody may be waiting for.
    pub fn observe(&mut self, now: Nanos, received_len: usize, receives: usize, interactive: u64) {
        self.window_len += received_len;
        self.window_receives += receives;
        self.window_interactive += interactive;
        let elapsed = now.saturating_sub(self.window_start);
        if elapsed < WINDOW_NS {
            return;
        }
        let expected = self.window_len as u64 * u64::from(self.company_us_max) * 1000 / elapsed.max(1);
        let per_receive = self.window_len / self.window_receives.max(1);
        // Much traffic in small pieces, and nobody who waits for an answer: wait. Otherwise each wake-up is either worth it or
        // must not be delayed.
        let waits =
            expected >= COMPANY_LEN_MIN && per_receive < RECEIVE_LEN_WORTHY && self.window_interactive == 0;
        self.company_us = if waits { self.company_us_max } else { 0 };
        self.window_start = now;
        (self.window_len, self.window_receives, self.window_interactive) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The wait that results from turns with `receives` receives of `len` bytes each, every `gap_ns`.
    fn wait_after(len: usize, receives: usize, gap_ns: u64, interactive: u64) -> u32 {
        let mut policy = WaitPolicy::new(100);
        let mut now = 1_000_000_000;
        for _ in 0..2000 {
            now += gap_ns;
            policy.observe(now, len * receives, receives, interactive);
        }
        policy.choose(now, None).company_us
    }

    #[test]
    fn waits_for_company_only_when_much_comes_in_small_pieces() {
        assert_eq!(wait_after(4108, 1, 20_000, 0), 100, "a train of small frames");
        assert_eq!(wait_after(4108, 64, 500_000, 0), 100, "small frames on many connections");
        assert_eq!(wait_after(256 * 1024, 1, 100_000, 0), 0, "bulk fills every receive by itself");
        assert_eq!(wait_after(64, 1, 60_000, 1), 0, "a lone ping-pong");
        assert_eq!(wait_after(4108, 1, 20_000, 1), 0, "a ping-pong beside small frames");
        assert_eq!(wait_after(4108, 1, 200_000, 0), 0, "a trickle");
    }
}
