//! What a path does to time: serialisation at a rate, delay, jitter.

use crate::{Nanos, Random, SECOND_NS};

/// How fast a line takes bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rate {
    /// No serialisation time.
    Unlimited,
    /// Bytes per second; 0 lets nothing pass.
    Constant(u64),
    /// Bytes per second from each time on, in order of time; before the first entry the first one holds.
    Steps(Vec<(Nanos, u64)>),
}

impl Rate {
    /// Bytes per second at a time; none: unlimited.
    #[must_use]
    pub fn at(&self, now: Nanos) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::Constant(rate) => Some(*rate),
            Self::Steps(steps) => {
                let step = steps.iter().rev().find(|(from, _)| *from <= now).or(steps.first());
                step.map(|(_, rate)| *rate)
            }
        }
    }

    /// When the rate changes next, after `now`.
    #[must_use]
    pub fn next_step(&self, now: Nanos) -> Option<Nanos> {
        match self {
            Self::Unlimited | Self::Constant(_) => None,
            Self::Steps(steps) => steps.iter().map(|(from, _)| *from).find(|from| *from > now),
        }
    }
}

/// How much the delay varies from packet to packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jitter {
    /// Not at all.
    None,
    /// Evenly, by up to `max_ns` more.
    Uniform {
        /// Largest addition in nanoseconds.
        max_ns: Nanos,
    },
    /// Normally distributed, cut at zero additional delay.
    Normal {
        /// Standard deviation in nanoseconds.
        deviation_ns: Nanos,
    },
}

impl Jitter {
    fn draw(self, random: &mut Random) -> Nanos {
        match self {
            Self::None => 0,
            Self::Uniform { max_ns } => random.range(0, max_ns),
            Self::Normal { deviation_ns } => random.normal(deviation_ns).max(0) as Nanos,
        }
    }
}

/// A path's timing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineConfig {
    /// How fast bytes leave.
    pub rate: Rate,
    /// From leaving to arriving, in nanoseconds.
    pub delay_ns: Nanos,
    /// Its variation.
    pub jitter: Jitter,
}

impl LineConfig {
    /// No rate limit, no jitter.
    #[must_use]
    pub const fn with_delay(delay_ns: Nanos) -> Self {
        Self { rate: Rate::Unlimited, delay_ns, jitter: Jitter::None }
    }
}

/// A path with its state: one packet at a time leaves.
#[derive(Debug, Clone)]
pub struct Line {
    config: LineConfig,
    free_at: Nanos,
    stalled_until: Nanos,
}

impl Line {
    /// A quiet line.
    #[must_use]
    pub const fn new(config: LineConfig) -> Self {
        Self { config, free_at: 0, stalled_until: 0 }
    }

    /// When a packet may leave, if one waits at `now`. None while the rate is 0 for good.
    #[must_use]
    pub fn ready_at(&self, now: Nanos) -> Option<Nanos> {
        let at = self.free_at.max(self.stalled_until);
        if self.config.rate.at(at.max(now)) == Some(0) {
            return self.config.rate.next_step(at.max(now));
        }
        Some(at)
    }

    /// Sends a packet of `len` bytes that is ready at `now`; returns when it arrives.
    pub fn send(&mut self, now: Nanos, len: usize, random: &mut Random) -> Nanos {
        let start = now.max(self.free_at).max(self.stalled_until);
        let busy = match self.config.rate.at(start) {
            None => 0,
            Some(rate) => {
                let busy = len as u128 * u128::from(SECOND_NS) / u128::from(rate.max(1));
                Nanos::try_from(busy).unwrap_or(Nanos::MAX / 4)
            }
        };
        self.free_at = start.saturating_add(busy);
        self.free_at.saturating_add(self.config.delay_ns).saturating_add(self.config.jitter.draw(random))
    }

    /// Nothing leaves before `until`.
    pub fn stall(&mut self, until: Nanos) {
        self.stalled_until = self.stalled_until.max(until);
    }

    /// The timing.
    #[must_use]
    pub const fn config(&self) -> &LineConfig {
        &self.config
    }

    /// Changes the timing for packets that leave from now on.
    pub fn reconfigure(&mut self, config: LineConfig) {
        self.config = config;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_leave_one_by_one_at_the_rate() {
        let config = LineConfig { rate: Rate::Constant(1000), delay_ns: 5, jitter: Jitter::None };
        let (mut line, mut random) = (Line::new(config), Random::new(1));
        assert_eq!(line.send(0, 500, &mut random), SECOND_NS / 2 + 5);
        assert_eq!(line.ready_at(0), Some(SECOND_NS / 2));
        assert_eq!(line.send(0, 500, &mut random), SECOND_NS + 5);
        line.stall(3 * SECOND_NS);
        assert_eq!(line.send(SECOND_NS, 0, &mut random), 3 * SECOND_NS + 5);
    }

    #[test]
    fn a_step_table_changes_the_rate_and_zero_waits_for_the_next_step() {
        let rate = Rate::Steps(vec![(0, 1000), (10, 0), (20, 2000)]);
        assert_eq!((rate.at(0), rate.at(15), rate.at(20)), (Some(1000), Some(0), Some(2000)));
        let line = Line::new(LineConfig { rate, delay_ns: 0, jitter: Jitter::None });
        assert_eq!(line.ready_at(5), Some(0));
        assert_eq!(line.ready_at(12), Some(20));
        let dead = Line::new(LineConfig { rate: Rate::Constant(0), delay_ns: 0, jitter: Jitter::None });
        assert_eq!(dead.ready_at(0), None);
    }

    #[test]
    fn jitter_adds_within_its_bounds() {
        let mut random = Random::new(9);
        assert!((0..1000).all(|_| Jitter::Uniform { max_ns: 10 }.draw(&mut random) <= 10));
        assert!((0..1000).all(|_| Jitter::Normal { deviation_ns: 10 }.draw(&mut random) <= 60));
        assert_eq!(Jitter::None.draw(&mut random), 0);
    }
}
