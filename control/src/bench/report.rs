//! What a benchmark found, for people and for programs.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::bridge::Mode;

/// The result of a run. Field names are those of the JSON output and stay.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Every byte arrived, once, in order, unchanged. False: the run failed, see `errors`.
    pub verified: bool,
    /// `bulk` or `latency`.
    pub mode: Mode,
    /// Client pairs.
    pub pairs: usize,
    /// Streams of each pair.
    pub streams: usize,
    /// Bytes of one write by the application.
    pub write_size: usize,
    /// One multiplexer frame per Noise frame, as Go clients write.
    pub go_frames: bool,
    /// A system call for each multiplexer header and payload, as Go clients make.
    pub go_writes: bool,
    /// Application bytes that arrived and were checked, sender to receiver, all streams together. Latency mode sends
    /// the same number back.
    pub bytes: u64,
    /// From the first write to the last verdict.
    pub seconds: f64,
    /// `bytes` as bits over `seconds`.
    pub bits_per_second: f64,
    /// Round trips of 64 bytes through the bridge and back, in latency mode.
    pub latency_us: Option<Latency>,
    /// Processor time of the server for the run, when its process is known.
    pub server_cpu_s: Option<f64>,
    /// The same for each GiB of `bytes`, in bulk mode.
    pub server_cpu_s_per_gib: Option<f64>,
    /// The server's resident memory at the end of the run, streams still open.
    pub server_rss_bytes: Option<u64>,
    /// Processor time of this program for the run.
    pub client_cpu_s: Option<f64>,
    /// What makes the numbers less trustworthy.
    pub warnings: Vec<String>,
    /// What went wrong; empty when `verified`.
    pub errors: Vec<String>,
}

/// Percentiles of round-trip times in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    /// Half are faster.
    pub p50: f64,
    /// 99 of 100 are faster.
    pub p99: f64,
    /// 999 of 1000 are faster.
    pub p999: f64,
    /// Round trips measured.
    pub count: u64,
}

impl Latency {
    /// Of round trips in nanoseconds; none without any.
    pub(super) fn of(round_trips_ns: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| round_trips_ns.value_at_quantile(quantile) as f64 / 1000.0;
        (!round_trips_ns.is_empty()).then(|| Self {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            count: round_trips_ns.len(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: String| writeln!(f, "  {name:<18}{value}");
        let verdict = if self.verified { "every byte arrived unchanged" } else { "FAILED" };
        line("verified", verdict.to_owned())?;
        line("load", self.load())?;
        line("moved", format!("{} in {:.2} s", bytes(self.bytes), self.seconds))?;
        if let Some(latency) = &self.latency_us {
            let Latency { p50, p99, p999, count } = latency;
            line(
                "round trip",
                format!("p50 {p50:.0} us, p99 {p99:.0} us, p999 {p999:.0} us ({count} times)"),
            )?;
        } else {
            line("rate", format!("{:.3} Gbit/s", self.bits_per_second / 1e9))?;
        }
        if let Some(cpu_s) = self.server_cpu_s {
            let per_gib = self.server_cpu_s_per_gib.map(|cost| format!(", {cost:.2} s per GiB"));
            line("server processor", format!("{cpu_s:.2} s{}", per_gib.unwrap_or_default()))?;
        }
        if let Some(resident) = self.server_rss_bytes {
            line("server memory", bytes(resident))?;
        }
        if let Some(cpu_s) = self.client_cpu_s {
            line("client processor", format!("{cpu_s:.2} s"))?;
        }
        for warning in &self.warnings {
            line("warning", warning.clone())?;
        }
        for error in &self.errors {
            line("error", error.clone())?;
        }
        Ok(())
    }
}

impl Report {
    fn load(&self) -> String {
        let go = match (self.go_frames, self.go_writes) {
            (_, true) => ", frames and system calls as of Go clients",
            (true, false) => ", frames as of Go clients",
            (false, false) => "",
        };
        format!(
            "{} pairs x {} streams, writes of {}{go}",
            self.pairs,
            self.streams,
            bytes(self.write_size as u64)
        )
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [(&str, f64); 3] = [("GiB", 1073741824.0), ("MiB", 1048576.0), ("KiB", 1024.0)];
    let value = count as f64;
    match UNITS.iter().find(|(_, size)| value >= *size) {
        Some((unit, size)) if value % size == 0.0 => format!("{} {unit}", value / size),
        Some((unit, size)) => format!("{:.2} {unit}", value / size),
        None => format!("{count} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(bytes(64), "64 bytes");
        assert_eq!(bytes(65536), "64 KiB");
        assert_eq!(bytes(3 << 30), "3 GiB");
        assert_eq!(bytes(1_500_000), "1.43 MiB");
    }

    #[test]
    fn percentiles_are_in_microseconds() {
        let mut histogram = super::super::transfer::histogram();
        assert!(Latency::of(&histogram).is_none());
        for micros in 1..=1000 {
            histogram.record(micros * 1000).unwrap();
        }
        let latency = Latency::of(&histogram).unwrap();
        assert!((latency.p50 - 500.0).abs() < 2.0 && (latency.p99 - 990.0).abs() < 2.0, "{latency:?}");
        assert_eq!(latency.count, 1000);
    }
}
