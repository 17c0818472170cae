//! How long a turn waits: the largest lever there is for small frames.
//!
//! A stream of small writes that arrive one by one costs a wake-up each. Waiting a little for company moves many of them
//! with one receive and one send, at the price of the wait; a lone request and its answer only pay the price. So the worker
//! waits for company only while traffic flows and its recent wake-ups found little work each; after a pause, or when
//! wake-ups bring plenty by themselves, it returns at once.

use crate::driver::{Batch, Completion, Nanos, Wait};

/// Received bytes in a turn from which on a wake-up was worth it by itself.
const TURN_LEN_WORTHY: usize = 32 * 1024;
/// Below this rate, in bytes per second, traffic counts as interactive: no waiting for company.
const RATE_FLOWING: u64 = 8 * 1024 * 1024;
/// Over which time the rate is measured, in nanoseconds.
const WINDOW_NS: u64 = 1_000_000;

/// Chooses each turn's wait from what the last turns brought.
#[derive(Debug)]
pub struct WaitPolicy {
    company_us_max: u32,
    company_us: u32,
    window_start: Nanos,
    window_len: usize,
    window_turns: usize,
}

impl WaitPolicy {
    /// A policy that waits for company at most `company_us_max` microseconds; 0: never.
    pub fn new(company_us_max: u32) -> Self {
        Self { company_us_max, company_us: 0, window_start: 0, window_len: 0, window_turns: 0 }
    }

    /// The wait of the next turn; `timer`: when the wheel fires.
    pub fn choose(&self, now: Nanos, timer: Option<Nanos>) -> Wait {
        Wait { until: timer.map(|at| at.max(now)), company_us: self.company_us, poll: false }
    }

    /// What a turn brought.
    pub fn observe(&mut self, now: Nanos, batch: &Batch) {
        let received: usize = batch.spans.iter().map(|span| span.len()).sum();
        let has_traffic = batch
            .completions
            .iter()
            .any(|completion| matches!(completion, Completion::Received { .. } | Completion::Sent { .. }));
        self.window_len += received;
        self.window_turns += usize::from(has_traffic);
        let elapsed = now.saturating_sub(self.window_start);
        if elapsed < WINDOW_NS {
            return;
        }
        let rate = self.window_len as u64 * 1_000_000_000 / elapsed.max(1);
        let per_turn = self.window_len / self.window_turns.max(1);
        // Much traffic in small pieces: wait. Otherwise each wake-up is either worth it or must not be delayed.
        self.company_us =
            if rate >= RATE_FLOWING && per_turn < TURN_LEN_WORTHY { self.company_us_max } else { 0 };
        self.window_start = now;
        self.window_len = 0;
        self.window_turns = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PAGE_LEN;
    use crate::ring::Pool;
    use crate::slab::Key;

    /// Feeds turns of `len` received bytes every `gap_ns` and returns the wait that results.
    fn wait_after(len: usize, gap_ns: u64) -> u32 {
        let mut pool = Pool::new(64 * PAGE_LEN).unwrap();
        let mut policy = WaitPolicy::new(100);
        let mut now = 1_000_000_000;
        for _ in 0..2000 {
            now += gap_ns;
            let mut batch = Batch::default();
            let mut left = len;
            while left > 0 {
                let page = pool.lend().unwrap();
                batch.spans.push(pool.received(page, left.min(PAGE_LEN)));
                left -= left.min(PAGE_LEN);
            }
            batch.completions.push(Completion::Received {
                socket: Key::NONE,
                first: 0,
                count: batch.spans.len(),
            });
            policy.observe(now, &batch);
            for span in batch.spans {
                pool.release(span);
            }
        }
        policy.choose(now, None).company_us
    }

    #[test]
    fn waits_for_company_only_when_much_comes_in_small_pieces() {
        assert_eq!(wait_after(4108, 20_000), 100, "a train of small frames");
        assert_eq!(wait_after(256 * 1024, 100_000), 0, "bulk fills every turn by itself");
        assert_eq!(wait_after(64, 60_000), 0, "a lone ping-pong");
        assert_eq!(wait_after(4096, 10_000_000), 0, "a trickle");
    }
}
