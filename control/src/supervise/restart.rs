//! When a plane that went away is looked for or started again: at once, and then with growing pauses.
//!
//! In: that it is up, that it went away, with the time of each. Out: how long to wait. Without I/O; used by the task, and by the control
//! plane's parent.

use std::time::Duration;

use super::mirror::Nanos;

/// Pause after the second failure in a row; doubles with each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// Longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A plane that was up this long has not failed in a row with what was before.
const STABLE: Duration = Duration::from_secs(10);

/// See the module's head.
#[derive(Debug, Default)]
pub struct Restarts {
    failures: u32,
    up_since: Option<Nanos>,
}

impl Restarts {
    /// It is attached.
    pub fn up(&mut self, now: Nanos) {
        self.up_since = Some(now);
    }

    /// It went away, or an attempt failed: how long to wait before the next one.
    pub fn failed(&mut self, now: Nanos) -> Duration {
        let lived = self.up_since.take().map_or(0, |since| now.saturating_sub(since));
        if u128::from(lived) >= STABLE.as_nanos() {
            self.failures = 0;
        }
        let pause = match self.failures {
            0 => Duration::ZERO,
            // Beyond twenty doublings the limit has long been reached.
            failures => PAUSE_FIRST.saturating_mul(1 << (failures - 1).min(20)).min(PAUSE_MAX),
        };
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_once_then_slower_then_at_once_again() {
        let mut restarts = Restarts::default();
        restarts.up(0);
        let pauses: Vec<_> = (0..12).map(|_| restarts.failed(1).as_millis()).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        // Up for a moment only: still the same series.
        restarts.up(2);
        assert_eq!(restarts.failed(3), PAUSE_MAX);
        restarts.up(3);
        assert_eq!(restarts.failed(3 + STABLE.as_nanos() as u64), Duration::ZERO);
        assert_eq!(restarts.failed(4), PAUSE_FIRST);
        for _ in 0..100 {
            assert!(restarts.failed(5) <= PAUSE_MAX);
        }
    }
}
