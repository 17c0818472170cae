//! The stored counts, `benches/micro.json`, and what a new count means beside them.

use super::Row;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// A row that takes more than so many percent of what is stored has failed.
const PERCENT_MAX: u64 = 103;

/// `benches/micro.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// The compiler that the counts are of: another one gives others.
    pub compiler: String,
    /// Instructions per repetition, by the row's name.
    pub rows: BTreeMap<String, u64>,
}

impl Stored {
    pub(super) fn new(rows: BTreeMap<String, u64>) -> Self {
        let compiler = std::process::Command::new("rustc").arg("--version").output();
        let compiler = compiler.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        Self { compiler: compiler.unwrap_or_default(), rows }
    }

    fn path() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("micro.json")
    }

    /// The file's content; nothing when there is none yet.
    pub(super) fn read() -> Result<Option<Self>> {
        let path = Self::path();
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).with_context(|| {
                format!(
                    "{} cannot be read; write it anew with: cargo xtask bench micro --update",
                    path.display()
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    pub(super) fn write(&self) -> Result<()> {
        let path = Self::path();
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))
    }
}

/// A row's count beside the stored one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Name of the row.
    pub row: &'static str,
    /// Instructions per repetition.
    pub instructions: u64,
    /// The same, as stored.
    pub stored: Option<u64>,
    /// Growth over what is stored: 0.01 is one percent more.
    pub growth: Option<f64>,
}

pub(super) fn judge(counts: &BTreeMap<String, u64>, stored: Option<&Stored>) -> Vec<Verdict> {
    let verdict = |row: &Row| {
        let instructions = *counts.get(row.name)?;
        let stored = stored.and_then(|stored| stored.rows.get(row.name).copied());
        let growth = stored.map(|stored| instructions as f64 / stored as f64 - 1.0);
        Some(Verdict { row: row.name, instructions, stored, growth })
    };
    Row::ALL.iter().filter_map(verdict).collect()
}

impl Verdict {
    /// What is wrong, with the row's name.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let Self { row, instructions, .. } = self;
        match (self.stored, self.growth) {
            (Some(stored), Some(growth)) if *instructions * 100 > stored * PERCENT_MAX => Some(format!(
                "{row} takes {instructions} instructions, {:.1} % more than the stored {stored} (if that is meant: cargo xtask bench micro --update)",
                growth * 100.0
            )),
            (Some(_), _) => None,
            (None, _) => {
                Some(format!("{row} is not in benches/micro.json: cargo xtask bench micro --update"))
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.growth {
            Some(growth) => write!(f, "{:>10} ({:+.2} %)", self.instructions, growth * 100.0),
            None => write!(f, "{:>10} (not stored)", self.instructions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(count: u64) -> BTreeMap<String, u64> {
        Row::ALL.iter().map(|row| (row.name.to_owned(), count)).collect()
    }

    fn complaints(counts: &BTreeMap<String, u64>, stored: Option<&Stored>) -> Vec<String> {
        judge(counts, stored).iter().filter_map(Verdict::complaint).collect()
    }

    #[test]
    fn a_row_that_grew_by_more_than_three_percent_is_named() {
        let stored = Stored { compiler: String::new(), rows: all(1000) };
        assert_eq!(complaints(&all(1030), Some(&stored)), Vec::<String>::new());
        assert_eq!(complaints(&all(500), Some(&stored)), Vec::<String>::new());
        let mut counts = all(1000);
        counts.insert("open".into(), 1031);
        let named = complaints(&counts, Some(&stored));
        assert!(named.len() == 1 && named[0].starts_with("open takes 1031"), "{named:?}");
    }

    #[test]
    fn a_row_without_a_stored_count_is_named() {
        assert_eq!(complaints(&all(1), None).len(), Row::ALL.len());
        let mut stored = Stored { compiler: String::new(), rows: all(1) };
        stored.rows.remove("bulk");
        assert!(complaints(&all(1), Some(&stored))[0].contains("bulk is not in"));
    }

    #[test]
    fn the_stored_file_has_every_row_and_no_other() {
        let stored = Stored::read().unwrap().expect("benches/micro.json exists");
        let names: Vec<&str> = stored.rows.keys().map(String::as_str).collect();
        let mut rows = Row::ALL.map(|row| row.name);
        rows.sort_unstable();
        assert_eq!(names, rows);
    }
}
