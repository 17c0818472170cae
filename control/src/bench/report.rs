//! What a benchmark found, for people and for programs.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::bridge::{Mode, Options};
use super::cost::Cost;
use super::{opens, sessions, streams};

/// The result of a run. Field names are those of the JSON output and stay.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Every byte arrived, once, in order, unchanged. False: the run failed, see `errors`.
    pub verified: bool,
    /// `bulk`, `latency`, `handshakes`, `opens`, `idle` or `idle-streams`.
    pub mode: Mode,
    /// Client pairs, in the modes that have some: all but handshakes and idle mode.
    pub pairs: Option<usize>,
    /// Streams of each pair, in the same.
    pub streams: Option<usize>,
    /// Sessions at a time, in handshakes and idle mode.
    pub sessions: Option<usize>,
    /// Bytes of one write by the application, in bulk and latency mode.
    pub write_size: Option<usize>,
    /// One multiplexer frame per Noise frame, as Go clients write.
    pub go_frames: bool,
    /// A system call for each multiplexer header and payload, as Go clients make.
    pub go_writes: bool,
    /// Application bytes that arrived and were checked, sender to receiver, all streams together. Latency mode sends
    /// the same number back. In these two modes.
    pub bytes: Option<u64>,
    /// From the first write to the last verdict.
    pub seconds: f64,
    /// `bytes` as bits over `seconds`.
    pub bits_per_second: Option<f64>,
    /// Round trips of 64 bytes through the bridge and back in latency mode; TCP connection and handshake in handshakes
    /// and idle mode; dial and answer in opens mode.
    pub latency_us: Option<Latency>,
    /// Handshakes that succeeded over `seconds`, in handshakes mode.
    pub handshakes_per_second: Option<f64>,
    /// Streams opened over `seconds`, in opens mode.
    pub opens_per_second: Option<f64>,
    /// Processor time of the server for the run, when its process is known.
    pub server_cpu_s: Option<f64>,
    /// The same for each GiB of `bytes`, in bulk mode.
    pub server_cpu_s_per_gib: Option<f64>,
    /// Processor time of the server for each handshake, its session's ping and end included, in milliseconds.
    pub server_cpu_ms_per_handshake: Option<f64>,
    /// Processor time of the server for each stream, its few bytes and its end included, in milliseconds.
    pub server_cpu_ms_per_open: Option<f64>,
    /// The server's resident memory at the end of the run, streams and idle sessions still open.
    pub server_rss_bytes: Option<u64>,
    /// By how much that grew for each idle session, if it did.
    pub rss_bytes_per_session: Option<f64>,
    /// By how much that grew for each idle stream, behind the first tenth of them, if it did.
    pub rss_bytes_per_stream: Option<f64>,
    /// By how much the kernel's own memory grew for each idle session, in all processes of this machine: with the server on
    /// loopback, both ends of the connection.
    pub kernel_bytes_per_session: Option<f64>,
    /// Resident memory of the control plane at the end of the run, when its process is known.
    pub control_rss_bytes: Option<u64>,
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

impl Report {
    /// What all modes have in common.
    pub(super) fn new(options: &Options, cost: &Cost, errors: Vec<String>) -> Self {
        let in_pairs = options.mode.is_in_pairs();
        Self {
            verified: errors.is_empty(),
            mode: options.mode,
            pairs: in_pairs.then_some(options.pairs),
            streams: in_pairs.then_some(options.streams),
            sessions: (!in_pairs).then_some(options.sessions),
            write_size: None,
            go_frames: options.go_frames,
            go_writes: options.go_writes,
            bytes: None,
            seconds: cost.elapsed.as_secs_f64(),
            bits_per_second: None,
            latency_us: None,
            handshakes_per_second: None,
            opens_per_second: None,
            server_cpu_s: cost.server_cpu_s,
            server_cpu_s_per_gib: None,
            server_cpu_ms_per_handshake: None,
            server_cpu_ms_per_open: None,
            server_rss_bytes: cost.server_rss_bytes,
            rss_bytes_per_session: None,
            rss_bytes_per_stream: None,
            kernel_bytes_per_session: None,
            control_rss_bytes: cost.control_rss_bytes,
            client_cpu_s: cost.client_cpu_s,
            warnings: warnings(options, cost),
            errors,
        }
    }

    pub(super) fn of_handshakes(options: &Options, outcome: sessions::Outcome) -> Self {
        let mut report = Self::new(options, &outcome.cost, outcome.errors);
        report.expect_some(outcome.handshakes, "no handshake was finished");
        report.handshakes_per_second = Some(outcome.handshakes as f64 / report.seconds);
        report.server_cpu_ms_per_handshake = per_thing_ms(outcome.cost.server_cpu_s, outcome.handshakes);
        report.latency_us = Latency::of(&outcome.times);
        report.warn_of_mute_server(outcome.answers_pings);
        report
    }

    pub(super) fn of_idle(options: &Options, outcome: sessions::Outcome) -> Self {
        let mut report = Self::new(options, &outcome.cost, outcome.errors);
        report.rss_bytes_per_session = each(outcome.cost.server_rss_growth_bytes, outcome.sessions);
        report.kernel_bytes_per_session = each(outcome.cost.kernel_growth_bytes, outcome.sessions);
        report.latency_us = Latency::of(&outcome.times);
        report.warn_of_mute_server(outcome.answers_pings);
        report.warn_of_no_growth(&outcome.cost, outcome.sessions);
        report
    }

    pub(super) fn of_idle_streams(options: &Options, outcome: streams::Outcome) -> Self {
        let mut report = Self::new(options, &outcome.cost, outcome.errors);
        report.rss_bytes_per_stream = each(outcome.cost.server_rss_growth_bytes, outcome.counted);
        report.expect_some(outcome.alive, "no stream lived to the end");
        report.warn_of_no_growth(&outcome.cost, outcome.counted);
        report.latency_us = Latency::of(&outcome.times);
        report
    }

    pub(super) fn of_opens(options: &Options, outcome: opens::Outcome) -> Self {
        let mut report = Self::new(options, &outcome.cost, outcome.errors);
        report.expect_some(outcome.opens, "no stream was opened");
        report.opens_per_second = Some(outcome.opens as f64 / report.seconds);
        report.server_cpu_ms_per_open = per_thing_ms(outcome.cost.server_cpu_s, outcome.opens);
        report.latency_us = Latency::of(&outcome.times);
        report
    }

    /// Nothing that grew is nothing that was measured: what a server has, it uses again.
    fn warn_of_no_growth(&mut self, cost: &Cost, count: u64) {
        if cost.server_rss_growth_bytes == Some(0) && count > 0 {
            self.warnings.push(
                "the server's resident memory did not grow: it had room from before. Hold more, or start it anew, to measure"
                    .to_owned(),
            );
        }
    }

    fn expect_some(&mut self, count: u64, otherwise: &str) {
        if count == 0 {
            self.verified = false;
            self.errors.push(otherwise.to_owned());
        }
    }

    fn warn_of_mute_server(&mut self, answers_pings: bool) {
        if !answers_pings {
            self.warnings.push(
                "the server answers no pings, as those of 2024: a session counts when its handshake is done, filed or not"
                    .to_owned(),
            );
        }
    }
}

fn each(bytes: Option<u64>, count: u64) -> Option<f64> {
    bytes.filter(|&bytes| bytes > 0 && count > 0).map(|bytes| bytes as f64 / count as f64)
}

fn per_thing_ms(cpu_s: Option<f64>, count: u64) -> Option<f64> {
    cpu_s.filter(|_| count > 0).map(|cpu_s| cpu_s * 1000.0 / count as f64)
}

/// What makes the numbers less trustworthy, in every mode.
fn warnings(options: &Options, cost: &Cost) -> Vec<String> {
    let mut warnings = Vec::new();
    match options.server_pid {
        None => {
            warnings
                .push("the server's process is not known (--server-pid): its cost was not measured".into());
        }
        Some(pid) if cost.server_cpu_s.is_none() => {
            warnings.push(format!("process {pid} cannot be read: the server's cost was not measured"));
        }
        Some(_) => {}
    }
    if cfg!(debug_assertions) {
        warnings.push("this program is a debug build: build with --release to measure".into());
    }
    if options.duration < Duration::from_secs(3) && !matches!(options.mode, Mode::Idle | Mode::IdleStreams) {
        warnings.push("a run of less than 3 s measures mostly its beginning: use --seconds 5 or more".into());
    }
    warnings
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: String| writeln!(f, "  {name:<18}{value}");
        let verdict = match (self.verified, self.mode) {
            (false, _) => "FAILED",
            (true, Mode::Bulk | Mode::Latency | Mode::Opens) => "every byte arrived unchanged",
            (true, Mode::Handshakes) => "every session came about",
            (true, Mode::Idle) => "every session came about and still lives",
            (true, Mode::IdleStreams) => "every stream came about and still lives",
        };
        line("verified", verdict.to_owned())?;
        line("load", self.load())?;
        if let Some(moved) = self.bytes {
            line("moved", format!("{} in {:.2} s", bytes(moved), self.seconds))?;
        }
        if let Some(rate) = self.bits_per_second.filter(|_| self.mode == Mode::Bulk) {
            line("rate", format!("{:.3} Gbit/s", rate / 1e9))?;
        }
        if let Some(rate) = self.handshakes_per_second {
            line("handshakes", format!("{rate:.0} per second for {:.2} s", self.seconds))?;
        }
        if let Some(rate) = self.opens_per_second {
            line("opened streams", format!("{rate:.0} per second for {:.2} s", self.seconds))?;
        }
        if let Some(latency) = &self.latency_us {
            let Latency { p50, p99, p999, count } = latency;
            let name = match self.mode {
                Mode::Bulk | Mode::Latency => "round trip",
                Mode::Handshakes | Mode::Idle => "time of each",
                Mode::Opens | Mode::IdleStreams => "time of a dial",
            };
            line(name, format!("p50 {p50:.0} us, p99 {p99:.0} us, p999 {p999:.0} us ({count} times)"))?;
        }
        if let Some(cpu_s) = self.server_cpu_s {
            let each = [
                self.server_cpu_s_per_gib.map(|cost| format!(", {cost:.2} s per GiB")),
                self.server_cpu_ms_per_handshake.map(|cost| format!(", {cost:.3} ms per handshake")),
                self.server_cpu_ms_per_open.map(|cost| format!(", {cost:.3} ms per stream")),
            ];
            let each: String = each.into_iter().flatten().collect();
            line("server processor", format!("{cpu_s:.2} s{each}"))?;
        }
        if let Some(resident) = self.server_rss_bytes {
            let each = [
                self.rss_bytes_per_session.map(|cost| format!(", {} per session", bytes(cost as u64))),
                self.rss_bytes_per_stream.map(|cost| format!(", {} per stream", bytes(cost as u64))),
            ];
            let each: String = each.into_iter().flatten().collect();
            line("server memory", format!("{}{each}", bytes(resident)))?;
        }
        if let Some(each) = self.kernel_bytes_per_session {
            line("kernel memory", format!("{} per session, both ends", bytes(each as u64)))?;
        }
        if let Some(resident) = self.control_rss_bytes {
            line("control plane", format!("{} of memory", bytes(resident)))?;
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
        let count = |count: Option<usize>| count.unwrap_or_default();
        let sessions = count(self.sessions);
        let pairs = format!("{} pairs x {} streams", count(self.pairs), count(self.streams));
        match self.mode {
            Mode::Handshakes => format!("{sessions} sessions being made at a time"),
            Mode::Idle => format!("{sessions} sessions that do nothing"),
            Mode::Opens => format!("{pairs} being opened"),
            Mode::IdleStreams => format!("{pairs} that do nothing"),
            Mode::Bulk | Mode::Latency => {
                format!("{pairs}, writes of {}{go}", bytes(count(self.write_size) as u64))
            }
        }
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
    fn memory_that_did_not_grow_was_not_measured() {
        assert_eq!(each(Some(0), 10), None);
        assert_eq!(each(Some(20), 10), Some(2.0));
        assert_eq!((each(Some(20), 0), each(None, 10)), (None, None));
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
