//! Instructions of the worker for each thing it does: `cargo xtask bench micro`.
//!
//! In: the rows of [`Row::ALL`]. Out: instructions per payload, session or bridge, and with `--check` a failure that names
//! each row which grew by more than 3 % over `benches/micro.json`. Unlike times they are the same on a busy machine.
//!
//! Each row is the simulator's worker under callgrind, twice: with few repetitions and with many. The difference, divided
//! by the repetitions between, has no start-up in it. Counted is what happens inside of the worker's turns, the handshake
//! lane's verification included, and not what the emulated kernel and the clients do.

mod store;

use anyhow::{Context, Result, bail};
use clap::Args;
use ringwire_sim::plan::{Manner, Plan};
use ringwire_sim::{run_plan, steady};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
pub use store::{Stored, Verdict};

/// Where counting begins and ends, and what is left out of it.
const COUNTED: &str = "ringwire_sim::run::turn_worker";
const LEFT_OUT: &str = "ringwire_sim::driver::SimDriver::pass_time";

/// valgrind is not there.
#[derive(Debug, thiserror::Error)]
#[error(
    "valgrind, which counts the instructions, could not be started ({0}). Install it: apt install valgrind, or dnf install valgrind"
)]
pub struct NoValgrind(std::io::Error);

/// What to do with the counts.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Fail if a row takes over 3 % more instructions than benches/micro.json says
    #[arg(long)]
    check: bool,
    /// Write the counts to benches/micro.json
    #[arg(long, conflicts_with = "check")]
    update: bool,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// One row: what is repeated.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Name in micro.json and on the command line.
    pub name: &'static str,
    /// What one repetition is.
    pub unit: &'static str,
    /// Repetitions of the two runs.
    repetitions: (u64, u64),
    plan: fn(u64) -> Plan,
}

impl Row {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 6] = [
        Self {
            name: "bulk",
            unit: "write of 64 KiB",
            repetitions: (32, 96),
            plan: |count| steady::payloads(Manner::Native, 65_536, count),
        },
        Self {
            name: "go-frames",
            unit: "frame of 4096 B",
            repetitions: (256, 1024),
            plan: |count| steady::payloads(Manner::Go, 4096, count),
        },
        Self {
            name: "small-frames",
            unit: "frame of 64 B",
            repetitions: (1000, 4000),
            plan: |count| steady::payloads(Manner::Go, 64, count),
        },
        Self {
            name: "handshake-classical",
            unit: "session",
            repetitions: (8, 24),
            plan: |count| steady::handshakes(false, count),
        },
        Self {
            name: "handshake-hybrid",
            unit: "session",
            repetitions: (8, 24),
            plan: |count| steady::handshakes(true, count),
        },
        Self { name: "open", unit: "bridge, opened and closed", repetitions: (8, 24), plan: steady::opens },
    ];

    /// The row of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|row| row.name == name)
            .with_context(|| format!("no row is called {name:?}"))
    }

    /// Does what is counted, `count` times.
    ///
    /// # Errors
    /// When the simulator finds a broken promise: counts of a run that went wrong say nothing.
    pub fn run(&self, count: u64) -> Result<()> {
        match run_plan((self.plan)(count), false).failure {
            None => Ok(()),
            Some(failure) => bail!("the simulated run of {} failed: {}", self.name, failure.what),
        }
    }

    /// Instructions per repetition.
    ///
    /// # Errors
    /// [`NoValgrind`], or what the counted program said.
    pub fn count(&self, program: &Path) -> Result<u64> {
        let (few, many) = self.repetitions;
        let counts = (callgrind(program, self.name, few)?, callgrind(program, self.name, many)?);
        let more = counts.1.checked_sub(counts.0).filter(|more| *more > 0);
        Ok(more.with_context(|| {
            format!(
                "{many} repetitions of {} took no more instructions than {few}: is {COUNTED} inlined?",
                self.name
            )
        })? / (many - few))
    }
}

/// Instructions that `program` takes for the row's repetitions, within the worker's turns.
fn callgrind(program: &Path, row: &str, count: u64) -> Result<u64> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .args([format!("--toggle-collect={COUNTED}"), format!("--toggle-collect={LEFT_OUT}")])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["micro-row", row, "--count", &count.to_string()])
        .output()
        .map_err(NoValgrind)?;
    if !output.status.success() {
        bail!("{row} under valgrind: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = std::fs::read_to_string(&out).context("valgrind wrote no counts")?;
    total(&text).with_context(|| format!("the counts of {row} cannot be read"))
}

/// The sum line of a callgrind file.
fn total(text: &str) -> Option<u64> {
    let line =
        text.lines().rev().find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Counts every row, prints them, and checks or stores them.
///
/// # Errors
/// [`NoValgrind`]; a run that failed; with `--check` the rows that grew.
pub fn run(arguments: &Arguments) -> Result<()> {
    let stored = if arguments.update { None } else { Stored::read()? };
    let program = std::env::current_exe()?;
    let mut counts = BTreeMap::new();
    for row in Row::ALL {
        counts.insert(row.name.to_owned(), row.count(&program)?);
    }
    let verdicts = store::judge(&counts, stored.as_ref());
    let mut out = std::io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&verdicts)?)?;
    } else {
        for (row, verdict) in Row::ALL.iter().zip(&verdicts) {
            writeln!(out, "{:<20} {verdict}  per {}", row.name, row.unit)?;
        }
    }
    if arguments.update {
        return Stored::new(counts).write();
    }
    let complaints: Vec<String> = verdicts.iter().filter_map(Verdict::complaint).collect();
    if arguments.check && !complaints.is_empty() {
        bail!("{}", complaints.join("; "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_runs() {
        for row in Row::ALL {
            row.run(2).unwrap();
            assert_eq!(Row::named(row.name).unwrap().name, row.name);
            assert!(row.repetitions.0 < row.repetitions.1);
        }
        assert!(Row::named("nonsense").is_err());
    }

    #[test]
    fn totals_are_found() {
        assert_eq!(total("version: 1\nsummary: 5\nfn=x\n3 4\ntotals: 1234\n"), Some(1234));
        assert_eq!(total("version: 1\nsummary: 5\n"), Some(5));
        assert_eq!(total("version: 1\n"), None);
    }
}
