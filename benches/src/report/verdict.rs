//! Which rows count, and what else to know about them.
//!
//! In: the rounds of a row. Out: reasons against it, none when it is valid, and notes that do not touch its validity.

use crate::measure::Measurement;
use crate::statistics::Summary;
use crate::workload::{Ping, Workload};
use std::collections::BTreeMap;

/// A saturating bulk row with the relay below this says nothing about the relay's cost under load.
const RELAY_BUSY_MIN: f64 = 0.8;
/// From here on the generator may have been the limit; noted, because it is no fault for a row that compares cost.
const GENERATOR_BUSY_NOTED: f64 = 0.99;
/// A paced row that moved less than this part of its rate is noted.
const PACE_KEPT_MIN: f64 = 0.97;
/// The rules of validity, all of them.
pub(super) fn reasons_against(
    workload: &Workload,
    rounds: &[Result<Measurement, String>],
    metrics: &BTreeMap<&'static str, Summary>,
) -> Vec<String> {
    let mut reasons = Vec::new();
    for (number, round) in (1..).zip(rounds) {
        match round {
            Err(error) => reasons.push(format!("round {number} failed: {error}")),
            Ok(round) => {
                if round.lost_bytes > 0 {
                    reasons.push(format!("round {number} lost {} bytes", round.lost_bytes));
                }
                reasons.extend(round.faults.iter().map(|fault| format!("round {number}: {fault}")));
                reasons.extend(
                    round.warnings.iter().map(|line| format!("round {number}: the relay warned: {line}")),
                );
            }
        }
    }
    if rounds.is_empty() {
        reasons.push("no round ran".into());
    }
    if let Some(busy) = metrics.get("relay_busy").filter(|_| workload.saturates_relay)
        && busy.median < RELAY_BUSY_MIN
    {
        reasons.push(format!("the relay was only {:.2} busy, less than {RELAY_BUSY_MIN}", busy.median));
    }
    reasons
}

pub(super) fn notes_on(
    workload: &Workload,
    rounds: &[&Measurement],
    metrics: &BTreeMap<&'static str, Summary>,
) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(busy) = metrics.get("generator_busy")
        && busy.median >= GENERATOR_BUSY_NOTED
    {
        notes.push(format!("generator {:.2} busy", busy.median));
    }
    if let Some(share) = metrics.get("company_share") {
        notes.push(format!("waited for company in {:.0} % of turns", share.median * 100.0));
    }
    let paced = workload.bulk.and_then(|bulk| bulk.bytes_per_second).zip(metrics.get("gbit_per_s"));
    if let Some((rate, throughput)) = paced
        && throughput.median < rate as f64 * 8e-9 * PACE_KEPT_MIN
    {
        notes.push(format!("pace not kept: {:.3} Gbit/s", throughput.median));
    }
    if workload.ping == Ping::OwnSession
        && rounds.iter().any(|round| round.ping.is_some_and(|ping| !ping.real_time))
    {
        notes.push("ping without real-time priority".into());
    }
    notes
}
