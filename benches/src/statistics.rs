//! Medians, ranges and paired ratios over rounds.
//!
//! In: one number per round. Out: what the report prints. Nothing here is an average: one disturbed round must not move
//! the result.

use serde::Serialize;

/// The middle and the ends of a series.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The middle value; of an even number of values, the mean of the two in the middle.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Summary {
    /// Summary of the finite values, or nothing when there are none.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted.len() / 2;
        let lower = (sorted.len() - 1) / 2;
        Some(Self { median: f64::midpoint(sorted[lower], sorted[upper]), min, max })
    }
}

/// Ratio ours / theirs within each round, summarised. Rounds in which either side is missing are left out; nothing when
/// no round has both.
#[must_use]
pub fn paired_ratio(ours: &[Option<f64>], theirs: &[Option<f64>]) -> Option<Summary> {
    let ratios: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .filter_map(|(ours, theirs)| match (ours, theirs) {
            (Some(ours), Some(theirs)) if *theirs > 0.0 => Some(ours / theirs),
            _ => None,
        })
        .collect();
    Summary::of(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_series() {
        assert_eq!(Summary::of(&[3.0, 1.0, 2.0]), Some(Summary { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 3.0]), Some(Summary { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Summary::of(&[7.0]), Some(Summary { median: 7.0, min: 7.0, max: 7.0 }));
    }

    #[test]
    fn nothing_of_nothing() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[f64::NAN, f64::INFINITY]), None);
    }

    #[test]
    fn ratio_is_taken_within_rounds() {
        // The second round was slow for both: a ratio of medians would say 1.5, the paired one says 0.5.
        let ours = [Some(1.0), Some(10.0), Some(3.0)];
        let theirs = [Some(2.0), Some(20.0), Some(2.0)];
        assert_eq!(paired_ratio(&ours, &theirs).unwrap().median, 0.5);
    }

    #[test]
    fn ratio_skips_rounds_without_a_pair() {
        let ratio = paired_ratio(&[None, Some(1.0), Some(9.0)], &[Some(1.0), Some(4.0), Some(0.0)]).unwrap();
        assert_eq!((ratio.median, ratio.max), (0.25, 0.25));
        assert_eq!(paired_ratio(&[None], &[Some(1.0)]), None);
    }
}
