//! What a run cost: processor time and memory of the server, processor time of this program.

use std::time::{Duration, Instant};

use super::process::{self, CpuTime};

/// A measurement that has begun.
pub(super) struct Meter {
    server_pid: Option<u32>,
    started: Instant,
    server: Option<CpuTime>,
    own: Option<CpuTime>,
    server_rss_bytes: Option<u64>,
}

/// What was measured. `None` is what cannot be known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) elapsed: Duration,
    pub(super) server_cpu_s: Option<f64>,
    pub(super) client_cpu_s: Option<f64>,
    /// Now.
    pub(super) server_rss_bytes: Option<u64>,
    /// By how much it grew since the beginning; 0 when it shrank.
    pub(super) server_rss_growth_bytes: Option<u64>,
}

impl Meter {
    pub(super) fn start(server_pid: Option<u32>) -> Self {
        Self {
            server_pid,
            server: server_pid.and_then(CpuTime::now),
            own: CpuTime::now(std::process::id()),
            server_rss_bytes: server_pid.and_then(process::resident_bytes),
            started: Instant::now(),
        }
    }

    /// The cost so far.
    pub(super) fn read(&self) -> Cost {
        let elapsed = self.started.elapsed();
        let used = |before: &Option<CpuTime>, pid: u32| {
            Some(CpuTime::now(pid)?.since(before.as_ref()?)?.as_secs_f64())
        };
        let server_rss_bytes = self.server_pid.and_then(process::resident_bytes);
        Cost {
            elapsed,
            server_cpu_s: self.server_pid.and_then(|pid| used(&self.server, pid)),
            client_cpu_s: used(&self.own, std::process::id()),
            server_rss_bytes,
            server_rss_growth_bytes: server_rss_bytes
                .zip(self.server_rss_bytes)
                .map(|(now, before)| now.saturating_sub(before)),
        }
    }
}
