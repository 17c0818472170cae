//! The report as text for people.
//!
//! In: a [`Report`]. Out: lines for a terminal, one for each row.

use super::{Report, Row};
use crate::statistics::Summary;
use std::fmt::Write;

impl Report {
    /// The report for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let header = &self.header;
        writeln!(out, "machine   {}", header.machine)?;
        writeln!(out, "kernel    {}", header.kernel)?;
        writeln!(out, "commit    {}", if header.commit.is_empty() { "unknown" } else { &header.commit })?;
        writeln!(out, "driver    {}", header.driver)?;
        writeln!(out, "wait      {}", header.wait)?;
        writeln!(out, "haproxy   {}", header.haproxy)?;
        writeln!(
            out,
            "cores     {}; {}; load average {}",
            header.cores, header.scheduling, header.load_average
        )?;
        writeln!(
            out,
            "TCP       congestion control of the relays' connections: {}",
            header.congestion_control
        )?;
        writeln!(
            out,
            "rounds    {} interleaved, window {} s after {} s; medians [min-max]",
            header.rounds, header.window_s, header.warmup_s
        )?;
        writeln!(out, "\nverified rounds")?;
        for row in &self.verified {
            writeln!(out, "  {:<18} {:<13} {}", row.workload, row.relay, row.words())?;
        }
        writeln!(
            out,
            "\n{:<18} {:<13} {:>20} {:>7} {:>6} {:>6} {:>23} {:>17} {:>9} {:>8}  verdict",
            "load", "relay", "CPU-s/GiB", "Gbit/s", "relay", "gen", "p50 us", "p99 us", "p99.9 us", "CPU us"
        )?;
        for row in &self.rows {
            row.write_line(out)?;
        }
        writeln!(out, "\nratios, ours / theirs (paired within rounds; less is better)")?;
        for (name, ratio) in &self.ratios {
            let mark = if self.ratios_on_invalid_rows.contains(name) { "  (on an invalid row)" } else { "" };
            match ratio {
                Some(ratio) => writeln!(out, "  {name:<24} {ratio:.3}{mark}")?,
                None => writeln!(out, "  {name:<24} not measured")?,
            }
        }
        writeln!(out, "\ntargets (ratios: medians of paired rounds)")?;
        for judged in &self.targets {
            writeln!(out, "  {}", judged.line())?;
        }
        writeln!(out, "\nnotes")?;
        for note in &self.notes {
            writeln!(out, "  {note}")?;
        }
        Ok(())
    }
}

impl Row {
    fn write_line(&self, out: &mut String) -> std::fmt::Result {
        let ranged = |metric, digits: usize| match self.metrics.get(metric) {
            Some(Summary { median, min, max }) => {
                format!("{median:.digits$} [{min:.digits$}-{max:.digits$}]")
            }
            None => "-".into(),
        };
        let single = |metric, digits: usize| match self.median(metric) {
            Some(median) => format!("{median:.digits$}"),
            None => "-".into(),
        };
        let mut verdict =
            if self.valid { "valid".to_owned() } else { format!("INVALID: {}", self.reasons.join("; ")) };
        if !self.notes.is_empty() {
            let _ = write!(verdict, " ({})", self.notes.join("; "));
        }
        writeln!(
            out,
            "{:<18} {:<13} {:>20} {:>7} {:>6} {:>6} {:>23} {:>17} {:>9} {:>8}  {verdict}",
            self.workload,
            self.relay,
            ranged("relay_cpu_s_per_gib", 3),
            single("gbit_per_s", 2),
            single("relay_busy", 2),
            single("generator_busy", 2),
            ranged("ping_p50_us", 1),
            ranged("ping_p99_us", 0),
            single("ping_p999_us", 0),
            single("relay_cpu_us_per_ping", 1),
        )
    }
}
