//! Which packets a path loses: each by itself, or in bursts (a chain of two states).

use crate::Random;

/// How packets get lost. Chances are per million packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossConfig {
    /// None does.
    None,
    /// Each with the same chance.
    Independent {
        /// The chance.
        per_million: u32,
    },
    /// In one of two states, good and bad, each with its own chance.
    Burst {
        /// Chance to turn bad, drawn for each packet.
        to_bad: u32,
        /// Chance to turn good.
        to_good: u32,
        /// Chance of loss while good.
        good: u32,
        /// Chance of loss while bad.
        bad: u32,
    },
}

/// The loss of a path with its state.
#[derive(Debug, Clone)]
pub struct Loss {
    config: LossConfig,
    is_bad: bool,
}

impl Loss {
    /// Begins in the good state.
    #[must_use]
    pub const fn new(config: LossConfig) -> Self {
        Self { config, is_bad: false }
    }

    /// Whether the next packet is lost.
    pub fn takes(&mut self, random: &mut Random) -> bool {
        match self.config {
            LossConfig::None => false,
            LossConfig::Independent { per_million } => random.chance(per_million),
            LossConfig::Burst { to_bad, to_good, good, bad } => {
                let turn = if self.is_bad { to_good } else { to_bad };
                self.is_bad ^= random.chance(turn);
                random.chance(if self.is_bad { bad } else { good })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(config: LossConfig) -> Vec<bool> {
        let (mut loss, mut random) = (Loss::new(config), Random::new(3));
        (0..100_000).map(|_| loss.takes(&mut random)).collect()
    }

    #[test]
    fn losses_match_their_chance_and_bursts_come_together() {
        assert!(!losses(LossConfig::None).contains(&true));
        let single = losses(LossConfig::Independent { per_million: 10_000 });
        let count = single.iter().filter(|lost| **lost).count();
        assert!((800..1200).contains(&count), "{count}");
        let burst = LossConfig::Burst { to_bad: 2_000, to_good: 100_000, good: 0, bad: 500_000 };
        let burst = losses(burst);
        let pairs = |lost: &[bool]| lost.windows(2).filter(|pair| pair[0] && pair[1]).count();
        let count = burst.iter().filter(|lost| **lost).count();
        assert!((500..1500).contains(&count), "{count}");
        assert!(pairs(&burst) > 20 * pairs(&single).max(1), "{} {}", pairs(&burst), pairs(&single));
    }
}
