//! What a run cost: processor time and memory of the server, memory of the kernel and of the control plane, processor time of
//! this program.

use std::time::{Duration, Instant};

use super::bridge::Options;
use super::process::{self, CpuTime};

/// A measurement that has begun.
pub(super) struct Meter {
    server_pid: Option<u32>,
    control_pid: Option<u32>,
    kernel_bytes: Option<u64>,
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
    /// By how much it grew since the beginning; 0 when it did not.
    pub(super) server_rss_growth_bytes: Option<u64>,
    /// By how much the kernel's own memory grew, see [`process::kernel_bytes`]; 0 when it did not.
    pub(super) kernel_growth_bytes: Option<u64>,
    /// Now.
    pub(super) control_rss_bytes: Option<u64>,
}

impl Meter {
    pub(super) fn start(options: &Options) -> Self {
        let Options { server_pid, control_pid, .. } = *options;
        Self {
            server_pid,
            control_pid,
            kernel_bytes: process::kernel_bytes(),
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
            kernel_growth_bytes: process::kernel_bytes()
                .zip(self.kernel_bytes)
                .map(|(now, before)| now.saturating_sub(before)),
            control_rss_bytes: self.control_pid.and_then(process::resident_bytes),
        }
    }
}
