//! What each load has to show, and whether it did.
//!
//! In: rows. Out: one [`Judged`] for each target. A target whose rows were not measured is said to be open, never met;
//! one that rests on an invalid row says so. A new promise of docs/SPECIFICATION.md about relaying is a new line here.

use super::{Row, ours_versus_best, row};
use crate::relay::Relay;
use serde::Serialize;

/// The copying references, the better of which counts.
const COPIES: &[Relay] = &[Relay::Tokio64k, Relay::Tokio256k];
const CPU: &str = "relay_cpu_s_per_gib";
const P50: &str = "ping_p50_us";
const P99: &str = "ping_p99_us";

/// What is compared with the limit.
enum Against {
    /// Ours divided by the best of these, both measured in the same rounds.
    Best(&'static [Relay]),
    /// Ours by itself.
    Nothing,
}

/// One target: ours is to be at most `limit`.
struct Target {
    workload: &'static str,
    ours: Relay,
    metric: &'static str,
    against: Against,
    limit: f64,
}

const fn ratio(workload: &'static str, metric: &'static str, others: &'static [Relay], limit: f64) -> Target {
    Target { workload, ours: Relay::Ringwire, metric, against: Against::Best(others), limit }
}

const fn absolute(workload: &'static str, metric: &'static str, limit: f64) -> Target {
    Target { workload, ours: Relay::Ringwire, metric, against: Against::Nothing, limit }
}

const fn on_poll(target: Target) -> Target {
    Target { ours: Relay::RingwirePoll, ..target }
}

const fn apart(workload: &'static str) -> Target {
    Target { ours: Relay::TwoApart, ..ratio(workload, CPU, &[Relay::TwoTogether], 1.35) }
}

const ALL: [Target; 22] = [
    ratio("bulk64k-1x8", CPU, COPIES, 1.25),
    ratio("bulk64k-8x1", CPU, COPIES, 1.25),
    ratio("bulk64k-1x8", CPU, &[Relay::Splice], 1.8),
    ratio("bulk64k-8x1", CPU, &[Relay::Splice], 1.8),
    ratio("goframes-1x8", CPU, COPIES, 0.50),
    ratio("goframes-64x1", CPU, COPIES, 0.55),
    ratio("goframes-paced", CPU, COPIES, 1.0),
    ratio("ping-gopaced", P50, COPIES, 1.3),
    ratio("ping-idle", P50, COPIES, 1.15),
    ratio("ping-paced", P99, COPIES, 1.5),
    absolute("ping-paced", P99, 350.0),
    ratio("ping-bulk", P99, COPIES, 1.5),
    absolute("ping-same-session", P99, 3000.0),
    absolute("ping-go64", P99, 500.0),
    absolute("ping-go64-same-session", P99, 3000.0),
    ratio("bulk64k-1x8", CPU, &[Relay::TokioUring], 1.25),
    ratio("goframes-1x8", CPU, &[Relay::TokioUring], 0.50),
    ratio("bulk64k-1x8", CPU, &[Relay::Haproxy], 1.25),
    on_poll(ratio("bulk64k-1x8", CPU, &[Relay::Epoll], 1.15)),
    on_poll(ratio("bulk64k-8x1", CPU, &[Relay::Epoll], 1.15)),
    apart("bulk64k-1x8"),
    apart("bulk64k-8x1"),
];

/// A target and what was found.
#[derive(Debug, Serialize)]
pub struct Judged {
    /// Name of the load.
    pub workload: &'static str,
    /// Which of ours.
    pub relay: &'static str,
    /// Name of the metric.
    pub metric: &'static str,
    /// The other relay; none where the limit is on ours alone.
    pub versus: Option<&'static str>,
    /// Ratio, or value in the metric's unit, that may be reached but not exceeded.
    pub limit: f64,
    /// The median; none where a side was not measured.
    pub found: Option<f64>,
    /// Whether it was met; none where a side was not measured.
    pub met: Option<bool>,
    /// Whether the rows it rests on count.
    pub valid: bool,
}

impl Judged {
    /// For people: "bulk64k-1x8 relay_cpu_s_per_gib vs tokio256k: 0.830, at most 1.25: met".
    pub(super) fn line(&self) -> String {
        let versus = self.versus.map_or_else(String::new, |versus| format!(" vs {versus}"));
        let what = format!("{} {} {}{versus}", self.workload, self.relay, self.metric);
        let limit = self.limit;
        match (self.found, self.met) {
            (Some(found), Some(met)) => {
                let word = if met { "met" } else { "MISSED" };
                let mark = if self.valid { "" } else { " (on an invalid row)" };
                format!("{what:<64} {found:>9.3}  at most {limit:<6} {word}{mark}")
            }
            _ => format!("{what:<64} {:>9}  at most {limit}", "not measured"),
        }
    }
}

/// Every target against these rows.
pub(super) fn judge(rows: &[Row]) -> Vec<Judged> {
    ALL.iter().map(|target| target.judge(rows)).collect()
}

impl Target {
    fn judge(&self, rows: &[Row]) -> Judged {
        let Self { workload, ours, metric, limit, .. } = *self;
        let (found, versus, valid) = match self.against {
            Against::Best(others) => match ours_versus_best(rows, ours, workload, metric, others) {
                Some(compared) => (Some(compared.ratio.median), Some(compared.versus), compared.valid),
                None => (None, others.first().map(|other| other.name()), false),
            },
            Against::Nothing => {
                let row = row(rows, workload, ours);
                (row.and_then(|row| row.median(metric)), None, row.is_some_and(|row| row.valid))
            }
        };
        let met = found.map(|found| found <= limit);
        Judged { workload, relay: ours.name(), metric, versus, limit, found, met, valid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Measurement;
    use crate::report::METRICS;
    use crate::workload::{self, Workload};

    fn load(name: &str) -> &'static Workload {
        workload::ALL.iter().find(|load| load.name == name).unwrap()
    }

    fn measured(name: &str, relay: Relay, cpu: f64, p99_us: f64) -> Row {
        let ping = crate::ping::Figures {
            count: 1,
            p50_us: p99_us,
            p99_us,
            p999_us: p99_us,
            max_us: p99_us,
            real_time: true,
        };
        let round = Measurement {
            relay_cpu_s_per_gib: Some(cpu),
            relay_busy: 0.9,
            ping: Some(ping),
            ..Measurement::default()
        };
        Row::new(load(name), relay, vec![Ok(round)], None)
    }

    #[test]
    fn every_target_can_be_measured() {
        for target in &ALL {
            let load = load(target.workload);
            assert!(METRICS.iter().any(|(name, _)| *name == target.metric), "{}", target.metric);
            assert!(load.concerns(target.ours));
            if let Against::Best(others) = target.against {
                assert!(others.iter().all(|other| load.concerns(*other)), "{}", target.workload);
            }
        }
    }

    #[test]
    fn a_target_is_met_missed_or_open() {
        let rows = [
            measured("bulk64k-1x8", Relay::Ringwire, 1.3, 0.0),
            measured("bulk64k-1x8", Relay::Tokio64k, 1.0, 0.0),
            measured("bulk64k-1x8", Relay::Splice, 1.0, 0.0),
            measured("ping-same-session", Relay::Ringwire, 1.0, 2999.0),
        ];
        let judged = judge(&rows);
        let of = |workload: &str, versus: Option<&str>| {
            judged.iter().find(|one| one.workload == workload && one.versus == versus).unwrap()
        };
        assert_eq!(of("bulk64k-1x8", Some("tokio64k")).met, Some(false));
        assert!(of("bulk64k-1x8", Some("tokio64k")).line().contains("MISSED"));
        assert_eq!(of("bulk64k-1x8", Some("splice")).met, Some(true));
        assert_eq!(of("ping-same-session", None).met, Some(true));
        assert_eq!(of("bulk64k-1x8", Some("haproxy")).met, None);
        assert!(of("bulk64k-1x8", Some("haproxy")).line().contains("not measured"));
    }
}
