//! Rows, targets and verdicts of [`super`], for people and as JSON.

use super::{Found, Row, summary};
use crate::statistics::Summary;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

const METRICS: [&str; 9] = [
    "server_cpu_ms",
    "per_second",
    "p50_us",
    "p99_us",
    "vm_rss_mib",
    "bytes_per_session",
    "kernel_bytes_per_session",
    "bytes_per_stream",
    "core_percent",
];

/// Everything that one run found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    kind: &'static str,
    load_average: String,
    rounds: usize,
    window_s: f64,
    idle_sessions: usize,
    idle_s: f64,
    rows: Vec<RowReport>,
}

/// One row over all rounds.
#[derive(Debug, Serialize)]
pub(super) struct RowReport {
    row: &'static str,
    metrics: BTreeMap<&'static str, Summary>,
    targets: Vec<Target>,
    errors: Vec<String>,
}

/// A target and what was found.
#[derive(Debug, Serialize)]
struct Target {
    metric: &'static str,
    limit: f64,
    found: Option<f64>,
    met: Option<bool>,
}

impl RowReport {
    pub(super) fn new(row: Row, rounds: Vec<Result<Found, String>>, idle_sessions: usize) -> Self {
        let metrics: BTreeMap<_, _> =
            METRICS.iter().filter_map(|metric| Some((*metric, summary(&rounds, metric)?))).collect();
        let target = |(metric, limit)| {
            let found = metrics.get(metric).map(|summary| summary.median);
            Target { metric, limit, found, met: found.map(|found| found <= limit) }
        };
        let targets = row.targets(idle_sessions).into_iter().map(target).collect();
        let errors = rounds.into_iter().filter_map(Result::err).collect();
        Self { row: row.name(), metrics, targets, errors }
    }
}

impl Report {
    pub(super) fn new(
        rows: Vec<RowReport>,
        rounds: usize,
        window: Duration,
        idle_sessions: usize,
        idle_time: Duration,
    ) -> Self {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            kind: "ringwire-bench-sessions",
            load_average: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
            rounds,
            window_s: window.as_secs_f64(),
            idle_sessions,
            idle_s: idle_time.as_secs_f64(),
            rows,
        }
    }

    /// The first round that failed.
    pub(super) fn failure(&self) -> Option<&str> {
        self.rows.iter().find_map(|row| row.errors.first()).map(String::as_str)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "rounds    {} interleaved of {} s; {} idle sessions for {} s, once; load average at the end {}",
            self.rounds, self.window_s, self.idle_sessions, self.idle_s, self.load_average
        )?;
        if cfg!(debug_assertions) {
            writeln!(f, "Built without optimisation: the numbers mean nothing.")?;
        }
        for row in &self.rows {
            writeln!(f, "{}", row.row)?;
            for (metric, Summary { median, min, max }) in &row.metrics {
                write!(f, "  {metric:<24} {median:>10.3} [{min:.3}-{max:.3}]")?;
                if let Some(target) = row.targets.iter().find(|target| target.metric == *metric) {
                    let word = if target.met == Some(true) { "met" } else { "MISSED" };
                    write!(f, "  at most {:.2}: {word}", target.limit)?;
                }
                writeln!(f)?;
            }
            for error in &row.errors {
                writeln!(f, "  FAILED: {error}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_judged_by_the_median() {
        let round = |ms| Ok(vec![("server_cpu_ms", ms)]);
        let row = |rounds| RowReport::new(Row::Open, rounds, 0);
        assert_eq!(row(vec![round(0.1), round(0.2), round(9.0)]).targets[0].met, Some(true));
        assert_eq!(row(vec![round(0.1), round(0.21), round(9.0)]).targets[0].met, Some(false));
        let failed = row(vec![Err("it broke".into())]);
        assert_eq!((failed.targets[0].met, failed.errors.len()), (None, 1));
        let report = Report::new(vec![failed], 1, Duration::ZERO, 0, Duration::ZERO);
        assert_eq!(report.failure(), Some("it broke"));
        assert!(report.to_string().contains("FAILED: it broke"));
    }

    #[test]
    fn idle_memory_grows_with_the_sessions() {
        assert_eq!(Row::Idle.targets(0)[0], ("vm_rss_mib", 16.0));
        assert_eq!(Row::Idle.targets(10_240)[0], ("vm_rss_mib", 56.0));
    }
}
