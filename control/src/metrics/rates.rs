//! How much of something came in the last second and the last minute, from readings of its total.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest span that is asked for.
const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
/// Readings that come closer together than this replace each other.
const SPACING: Duration = Duration::from_millis(900);

/// Readings of the last minute. Fed about once a second; the spans are as exact as that.
#[derive(Debug, Default)]
pub struct Rates(Mutex<VecDeque<(Instant, u64)>>);

impl Rates {
    /// Notes the total as it is now. A total below the one before is a new beginning: the data plane was replaced.
    pub fn note(&self, total: u64, now: Instant) {
        let mut readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match readings.back() {
            Some(&(_, before)) if total < before => readings.clear(),
            Some(&(at, _)) if now.saturating_duration_since(at) < SPACING => return,
            Some(_) | None => {}
        }
        readings.push_back((now, total));
        // One reading older than the span stays: the span is measured from it.
        while readings.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= MINUTE) {
            readings.pop_front();
        }
    }

    /// What came between the last reading and the one a second before.
    pub fn per_second(&self) -> u64 {
        self.within(SECOND)
    }

    /// What came between the last reading and the one a minute before, or since the beginning.
    pub fn per_minute(&self) -> u64 {
        self.within(MINUTE)
    }

    fn within(&self, span: Duration) -> u64 {
        let readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(&(last_at, last)) = readings.back() else { return 0 };
        let before = readings.iter().rev().skip(1);
        let from = before
            .clone()
            .find(|(at, _)| last_at.saturating_duration_since(*at) + (SECOND - SPACING) >= span);
        from.or(readings.front()).map_or(0, |(_, total)| last - total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_measured_between_readings() {
        let (rates, start) = (Rates::default(), Instant::now());
        assert_eq!((rates.per_second(), rates.per_minute()), (0, 0));
        let at = |second: u64| start + Duration::from_secs(second);
        for second in 0..=200 {
            rates.note(second * second, at(second));
            assert!(rates.0.lock().unwrap().len() <= 62);
        }
        assert_eq!(rates.per_second(), 200 * 200 - 199 * 199);
        assert_eq!(rates.per_minute(), 200 * 200 - 140 * 140);
        rates.note(50_000, at(200) + Duration::from_millis(100));
        assert_eq!(rates.per_second(), 200 * 200 - 199 * 199, "readings too close together are left out");
    }

    #[test]
    fn before_a_minute_is_over_the_beginning_counts() {
        let (rates, start) = (Rates::default(), Instant::now());
        rates.note(10, start);
        rates.note(15, start + Duration::from_secs(1));
        rates.note(35, start + Duration::from_secs(2));
        assert_eq!((rates.per_second(), rates.per_minute()), (20, 25));
    }

    #[test]
    fn a_smaller_total_is_a_new_beginning() {
        let (rates, start) = (Rates::default(), Instant::now());
        rates.note(1000, start);
        rates.note(3, start + Duration::from_secs(1));
        assert_eq!((rates.per_second(), rates.per_minute()), (0, 0));
        rates.note(7, start + Duration::from_secs(2));
        assert_eq!((rates.per_second(), rates.per_minute()), (4, 4));
    }
}
