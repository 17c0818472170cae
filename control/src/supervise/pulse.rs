//! Whether the workers take their turns: their counters of turns, looked at once a second, and a ring where one stands still.
//!
//! In: each worker's number of turns at a beat. Out: whom to wake, and who has not moved although it was woken. Without I/O and
//! without a clock: a control plane that itself stood still has missed beats, and accuses nobody. Used by `channel`.

use std::time::Duration;

/// Time between two looks.
pub(super) const BEAT: Duration = Duration::from_secs(1);

/// Beats without a turn, each after a ring, until a worker counts as silent: with [`BEAT`] less than five seconds after it
/// stopped. A turn takes milliseconds at most.
const MISSED_MAX: u8 = 2;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Pulse(Vec<Seen>);

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    turns: u64,
    missed: u8,
}

impl Pulse {
    /// A beat. Returns the workers that are to be woken: those that have taken no turn since the last one, because they sleep or
    /// because they are stuck.
    pub(super) fn beat(&mut self, turns: impl IntoIterator<Item = u64>) -> Vec<usize> {
        let mut still = Vec::new();
        for (worker, turns) in turns.into_iter().enumerate() {
            match self.0.get_mut(worker) {
                None => self.0.push(Seen { turns, missed: 0 }),
                Some(seen) if seen.turns == turns => {
                    seen.missed = seen.missed.saturating_add(1).min(MISSED_MAX + 1);
                    still.push(worker);
                }
                Some(seen) => *seen = Seen { turns, missed: 0 },
            }
        }
        still
    }

    /// The first worker that has been woken in vain for long enough.
    pub(super) fn silent(&self) -> Option<usize> {
        // The first beat that finds it still is before the first ring.
        self.0.iter().position(|seen| seen.missed > MISSED_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sleeps_is_woken_and_who_does_not_wake_is_named() {
        let mut pulse = Pulse::default();
        assert!(pulse.beat([7, 3]).is_empty() && pulse.silent().is_none());
        // The first moves by itself, the second when it is woken.
        assert_eq!(pulse.beat([8, 3]), [1]);
        assert!(pulse.beat([9, 4]).is_empty() && pulse.silent().is_none());
        // The first stops.
        for beat in 1..=u64::from(MISSED_MAX) {
            assert_eq!(pulse.beat([9, 4 + beat]), [0]);
            assert_eq!(pulse.silent(), None);
        }
        assert_eq!(pulse.beat([9, 99]), [0]);
        assert_eq!(pulse.silent(), Some(0));
        for beat in 100..400 {
            pulse.beat([9, beat]);
            assert_eq!(pulse.silent(), Some(0));
        }
        pulse.beat([10, 99]);
        assert_eq!(pulse.silent(), None);
    }

    #[test]
    fn it_is_noticed_within_five_seconds() {
        // The turn that came last was behind a beat, so the next one has nothing to say.
        assert!(BEAT * (u32::from(MISSED_MAX) + 2) < Duration::from_secs(5));
    }
}
