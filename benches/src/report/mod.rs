//! From measurements to rows, verdicts and ratios.
//!
//! In: what [`crate::measure`] found in each round. Out: [`Report`], which is the JSON, and its table for people.
//! Called by [`crate::command`].

mod table;
mod targets;
mod verdict;

use crate::measure::{Measurement, Verified};
use crate::relay::Relay;
use crate::statistics::{Summary, paired_ratio};
use crate::workload::Workload;
use serde::Serialize;
use std::collections::BTreeMap;

pub use targets::Judged;

/// Rounds below which medians are noted as weak.
const ROUNDS_MIN: usize = 5;

/// Everything that one run found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Always "ringwire-bench-relay".
    pub kind: &'static str,
    /// Where and with what.
    pub header: Header,
    /// Content checks, one for each kind of bulk and relay.
    pub verified: Vec<VerifiedRow>,
    /// One for each load and relay.
    pub rows: Vec<Row>,
    /// The four ratios that targets name: ours divided by theirs, below 1 is better. Absent where a side was not
    /// measured.
    pub ratios: BTreeMap<&'static str, Option<f64>>,
    /// Names of ratios that rest on an invalid row.
    pub ratios_on_invalid_rows: Vec<&'static str>,
    /// Every target, with what was found and whether that meets it.
    pub targets: Vec<Judged>,
    /// Every metric of every load, ours against each other relay.
    pub comparisons: Vec<Comparison>,
    /// What a reader has to know about these numbers.
    pub notes: Vec<String>,
}

/// Machine, versions and settings.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Header {
    /// Processor and cores.
    pub machine: String,
    /// Kernel release and version.
    pub kernel: String,
    /// Commit of the working tree, with a mark when it has changes; empty when unknown.
    pub commit: String,
    /// Driver of our server, as it says itself.
    pub driver: String,
    /// Wait policy of our server's worker.
    pub wait: String,
    /// HAProxy's version, or that it is not installed.
    pub haproxy: String,
    /// The system's congestion control, which the relays' connections use. One that paces costs timers.
    pub congestion_control: String,
    /// Load average at the start.
    pub load_average: String,
    /// Scheduling policy of the whole run. Under `chrt -f 1` other programs on the machine disturb little.
    pub scheduling: &'static str,
    /// Core of the relay and core of the generator.
    pub cores: String,
    /// Rounds.
    pub rounds: usize,
    /// Length of each window in seconds.
    pub window_s: f64,
    /// Warm-up before each window in seconds.
    pub warmup_s: f64,
}

/// One content check.
#[derive(Debug, Serialize)]
pub struct VerifiedRow {
    /// The first load with this bulk.
    pub workload: &'static str,
    /// Through which relay.
    pub relay: &'static str,
    /// What was found; absent when the round failed.
    pub outcome: Option<Verified>,
    /// Why it failed.
    pub error: Option<String>,
}

impl VerifiedRow {
    fn is_good(&self) -> bool {
        self.outcome.as_ref().is_some_and(|outcome| outcome.lost_bytes == 0 && outcome.faults.is_empty())
    }
}

/// One load through one relay, over all rounds.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Name of the load.
    pub workload: &'static str,
    /// Name of the relay.
    pub relay: &'static str,
    /// Whether the row counts.
    pub valid: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// What else to know.
    pub notes: Vec<String>,
    /// Metrics by name, those of [`METRICS`] that the load has.
    pub metrics: BTreeMap<&'static str, Summary>,
    /// The single rounds; the error in place of one that failed.
    pub rounds: Vec<Result<Measurement, String>>,
}

/// Ours against one other relay.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Name of the load.
    pub workload: &'static str,
    /// Name of the other relay.
    pub versus: &'static str,
    /// Name of the metric.
    pub metric: &'static str,
    /// Paired ratio ours / theirs.
    pub ratio: Summary,
    /// Whether both rows are valid.
    pub valid: bool,
}

/// Name and source of each metric.
type Metric = (&'static str, fn(&Measurement) -> Option<f64>);

/// What is summarised. For all but throughput less is better.
pub const METRICS: [Metric; 10] = [
    ("relay_cpu_s_per_gib", |round| round.relay_cpu_s_per_gib),
    ("gbit_per_s", |round| round.gbit_per_s),
    ("relay_busy", |round| Some(round.relay_busy)),
    ("generator_busy", |round| Some(round.generator_busy)),
    ("ping_p50_us", |round| round.ping.map(|ping| ping.p50_us)),
    ("ping_p99_us", |round| round.ping.map(|ping| ping.p99_us)),
    ("ping_p999_us", |round| round.ping.map(|ping| ping.p999_us)),
    ("relay_cpu_us_per_ping", |round| round.relay_cpu_us_per_ping),
    ("lost_bytes", |round| Some(round.lost_bytes as f64)),
    ("company_share", |round| round.company_share),
];

impl Row {
    /// Summarises the rounds and judges them; `verified` is the content check of the same bulk and relay, if one ran.
    #[must_use]
    pub fn new(
        workload: &Workload,
        relay: Relay,
        rounds: Vec<Result<Measurement, String>>,
        verified: Option<&VerifiedRow>,
    ) -> Self {
        let good: Vec<&Measurement> = rounds.iter().flatten().collect();
        let metrics: BTreeMap<_, _> = METRICS
            .iter()
            .filter_map(|(name, of)| {
                let values: Vec<f64> = good.iter().filter_map(|round| of(round)).collect();
                Summary::of(&values).map(|summary| (*name, summary))
            })
            .collect();
        let mut reasons = verdict::reasons_against(workload, &rounds, &metrics);
        if let Some(verified) = verified.filter(|verified| !verified.is_good()) {
            reasons.push(format!("verified round failed: {}", verified.words()));
        }
        let notes = verdict::notes_on(workload, &good, &metrics);
        Self {
            workload: workload.name,
            relay: relay.name(),
            valid: reasons.is_empty(),
            reasons,
            notes,
            metrics,
            rounds,
        }
    }

    fn series(&self, metric: &str) -> Vec<Option<f64>> {
        let of = METRICS.iter().find(|(name, _)| *name == metric).map(|(_, of)| of);
        self.rounds
            .iter()
            .map(|round| round.as_ref().ok().and_then(|round| of.and_then(|of| of(round))))
            .collect()
    }

    fn median(&self, metric: &str) -> Option<f64> {
        self.metrics.get(metric).map(|summary| summary.median)
    }
}

impl VerifiedRow {
    fn words(&self) -> String {
        match (&self.outcome, &self.error) {
            (_, Some(error)) => error.clone(),
            (Some(outcome), None) if self.is_good() => format!("{} bytes compared, all right", outcome.bytes),
            (Some(outcome), None) => {
                format!("{} bytes lost; {}", outcome.lost_bytes, outcome.faults.join("; "))
            }
            (None, None) => "did not run".into(),
        }
    }
}

impl Report {
    /// Puts rows, ratios and notes together.
    #[must_use]
    pub fn new(header: Header, verified: Vec<VerifiedRow>, rows: Vec<Row>) -> Self {
        let mut ratios = BTreeMap::new();
        let mut ratios_on_invalid_rows = Vec::new();
        let copies = [Relay::Tokio64k, Relay::Tokio256k];
        for (name, workload, metric, others) in [
            ("bulk64k_vs_best_copy", "bulk64k-1x8", "relay_cpu_s_per_gib", &copies[..]),
            ("bulk64k_vs_splice", "bulk64k-1x8", "relay_cpu_s_per_gib", &[Relay::Splice]),
            ("goframes_vs_tokio", "goframes-1x8", "relay_cpu_s_per_gib", &copies),
            ("pingpong_p50_vs_tokio", "ping-idle", "ping_p50_us", &copies),
        ] {
            let compared = versus_best(&rows, workload, metric, others);
            if compared.as_ref().is_some_and(|compared| !compared.valid) {
                ratios_on_invalid_rows.push(name);
            }
            ratios.insert(name, compared.map(|compared| compared.ratio.median));
        }
        let comparisons = compare_all(&rows);
        let targets = targets::judge(&rows);
        let notes = notes_for(&header, &rows);
        Self {
            kind: "ringwire-bench-relay",
            header,
            verified,
            rows,
            ratios,
            ratios_on_invalid_rows,
            targets,
            comparisons,
            notes,
        }
    }

    /// Whether anything was lost, changed or warned about, or a round failed. A row that is invalid only because the
    /// relay had too little to do does not count.
    #[must_use]
    pub fn has_failures(&self) -> bool {
        let bad_round = |round: &Result<Measurement, String>| match round {
            Ok(round) => round.lost_bytes > 0 || !round.faults.is_empty() || !round.warnings.is_empty(),
            Err(_) => true,
        };
        self.verified.iter().any(|row| !row.is_good())
            || self.rows.iter().any(|row| row.rounds.iter().any(bad_round))
    }
}

fn row<'a>(rows: &'a [Row], workload: &str, relay: Relay) -> Option<&'a Row> {
    rows.iter().find(|row| row.workload == workload && row.relay == relay.name())
}

fn compare(ours: &Row, theirs: &Row, metric: &'static str) -> Option<Comparison> {
    let ratio = paired_ratio(&ours.series(metric), &theirs.series(metric))?;
    let valid = ours.valid && theirs.valid;
    Some(Comparison { workload: ours.workload, versus: theirs.relay, metric, ratio, valid })
}

/// Ours against the one of `others` with the best median.
fn versus_best(rows: &[Row], workload: &str, metric: &'static str, others: &[Relay]) -> Option<Comparison> {
    ours_versus_best(rows, Relay::Ringwire, workload, metric, others)
}

/// The same for our server on a driver of choice.
fn ours_versus_best(
    rows: &[Row],
    ours: Relay,
    workload: &str,
    metric: &'static str,
    others: &[Relay],
) -> Option<Comparison> {
    let best = others
        .iter()
        .filter_map(|relay| row(rows, workload, *relay))
        .filter_map(|row| row.median(metric).map(|median| (row, median)))
        .min_by(|one, other| one.1.total_cmp(&other.1))?;
    compare(row(rows, workload, ours)?, best.0, metric)
}

fn compare_all(rows: &[Row]) -> Vec<Comparison> {
    let ours = rows.iter().filter(|row| row.relay == Relay::Ringwire.name());
    ours.flat_map(|ours| {
        let theirs = rows.iter().filter(|row| row.workload == ours.workload && row.relay != ours.relay);
        theirs.flat_map(|theirs| METRICS.iter().filter_map(|(metric, _)| compare(ours, theirs, metric)))
    })
    .collect()
}

fn notes_for(header: &Header, rows: &[Row]) -> Vec<String> {
    let mut notes = vec![
        "CPU is that of the relay's process, all threads, by its CPU clock. On loopback a sender also pays for the receiving half of its peer's TCP.".to_owned(),
        "Bytes are counted at the sinks, headers included. Sinks discard in the kernel and cannot parse, so a session's sink grants 1 GiB for each stream and renews it by what its sender sent.".to_owned(),
        "In an unverified round loss shows as payload missing behind whole 12-byte headers; verified rounds compare every byte.".to_owned(),
    ];
    if rows.iter().any(|row| row.workload == "ping-same-session") {
        notes.push(
            "ping-same-session: the generator's loop asks and answers; a reference relay carries the ping on a connection of its own.".to_owned(),
        );
    }
    if rows.iter().any(|row| row.relay == Relay::TwoApart.name()) {
        notes.push(
            "Two workers: each on a core of its own where the machine has three; with two they share the relay's, because the other one is the generator's, and what data costs on its way between cores is not in the row.".to_owned(),
        );
    }
    let priorities: Vec<bool> = rows
        .iter()
        .filter(|row| row.workload != "ping-same-session")
        .flat_map(|row| row.rounds.iter().flatten())
        .filter_map(|round| round.ping.map(|ping| ping.real_time))
        .collect();
    if !priorities.is_empty() {
        let words = if priorities.iter().all(|real_time| *real_time) {
            "with real-time priority (SCHED_FIFO)"
        } else {
            "WITHOUT real-time priority, which was not allowed"
        };
        notes.push(format!("Pings ran in a process of their own on the generator's core, {words}."));
    }
    if header.rounds < ROUNDS_MIN {
        notes.push(format!(
            "Only {} rounds: targets are judged by medians of at least {ROUNDS_MIN}.",
            header.rounds
        ));
    }
    if cfg!(debug_assertions) {
        notes.push("Built without optimisation: the numbers mean nothing.".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::ALL;

    fn round(cpu: f64, busy: f64) -> Result<Measurement, String> {
        Ok(Measurement {
            relay_cpu_s_per_gib: Some(cpu),
            relay_busy: busy,
            gbit_per_s: Some(8.0),
            ..Measurement::default()
        })
    }

    fn bulk_row(relay: Relay, rounds: Vec<Result<Measurement, String>>) -> Row {
        Row::new(&ALL[0], relay, rounds, None)
    }

    #[test]
    fn a_bulk_row_needs_a_busy_relay() {
        assert!(bulk_row(Relay::Splice, vec![round(0.2, 0.81), round(0.2, 0.79), round(0.2, 0.9)]).valid);
        let row = bulk_row(Relay::Splice, vec![round(0.2, 0.79), round(0.2, 0.78), round(0.2, 0.9)]);
        assert!(!row.valid);
        assert!(row.reasons[0].contains("0.79"), "{:?}", row.reasons);
        assert!(Row::new(&ALL[2], Relay::Splice, vec![round(0.2, 0.3)], None).valid);
    }

    #[test]
    fn loss_warnings_faults_and_failures_make_a_row_invalid() {
        let with = |change: fn(&mut Measurement)| {
            let mut bad = round(0.2, 0.9).unwrap();
            change(&mut bad);
            bulk_row(Relay::Ringwire, vec![round(0.2, 0.9), Ok(bad)])
        };
        for row in [
            with(|bad| bad.lost_bytes = 1),
            with(|bad| bad.warnings.push("queue full".into())),
            with(|bad| bad.faults.push("wrong content".into())),
            bulk_row(Relay::Ringwire, vec![round(0.2, 0.9), Err("relay ended".into())]),
            bulk_row(Relay::Ringwire, vec![]),
        ] {
            assert!(!row.valid, "{row:?}");
            assert_eq!(row.reasons.len(), 1);
        }
        assert!(with(|bad| bad.generator_busy = 1.0).valid);
    }

    #[test]
    fn a_failed_content_check_makes_the_rows_of_its_bulk_invalid() {
        let outcome = Verified { bytes: 10, lost_bytes: 0, faults: vec!["wrong content".into()] };
        let verified =
            VerifiedRow { workload: "bulk64k-1x8", relay: "splice", outcome: Some(outcome), error: None };
        assert!(!Row::new(&ALL[0], Relay::Splice, vec![round(0.2, 0.9)], Some(&verified)).valid);
    }

    #[test]
    fn ratios_take_the_better_copy_and_say_what_they_rest_on() {
        let rows = vec![
            bulk_row(Relay::Ringwire, vec![round(1.0, 0.9), round(4.0, 0.9)]),
            bulk_row(Relay::Tokio64k, vec![round(4.0, 0.9), round(9.0, 0.9)]),
            bulk_row(Relay::Tokio256k, vec![round(2.0, 0.9), round(8.0, 0.9)]),
            bulk_row(Relay::Splice, vec![round(0.5, 0.1), round(2.0, 0.1)]),
        ];
        let report = Report::new(Header::default(), Vec::new(), rows);
        assert_eq!(report.ratios["bulk64k_vs_best_copy"], Some(0.5));
        assert_eq!(report.ratios["bulk64k_vs_splice"], Some(2.0));
        assert_eq!(report.ratios["goframes_vs_tokio"], None);
        assert_eq!(report.ratios_on_invalid_rows, ["bulk64k_vs_splice"]);
        assert!(!report.has_failures());
        assert!(report.table().contains("INVALID"));
        assert!(report.table().contains("MISSED"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["ratios"]["bulk64k_vs_best_copy"], 0.5);
        assert_eq!(json["rows"][3]["valid"], false);
    }
}
