//! Warnings that do not repeat themselves: one line per kind and interval, with how many were left out.
//!
//! In: the wish to warn. Out: leave, with the number of wishes refused since the last one. Whoever can be made to warn by
//! a stranger or by a service that is down keeps one of these per kind of warning, usually as a `static`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The interval where nothing speaks for another.
pub const INTERVAL: Duration = Duration::from_secs(60);

/// One kind of warning.
#[derive(Debug)]
pub struct Throttle {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

impl Throttle {
    /// One warning per `interval`.
    pub const fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::new(State { last: None, suppressed: 0 }) }
    }

    /// May this warning be written now? `Some` is yes, with the number of warnings that were left out since the last.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    /// [`admit`](Self::admit) at a time the caller read.
    pub fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < self.interval) {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new(INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_interval_with_what_was_left_out() {
        let throttle = Throttle::new(Duration::from_secs(10));
        let start = Instant::now();
        let at = |second| throttle.admit_at(start + Duration::from_secs(second));
        assert_eq!(at(0), Some(0));
        assert_eq!(at(1), None);
        assert_eq!(at(9), None);
        assert_eq!(at(10), Some(2));
        assert_eq!(at(11), None);
        assert_eq!(at(500), Some(1));
        assert_eq!(at(510), Some(0));
    }
}
