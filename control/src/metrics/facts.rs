//! What is not counted but looked at when somebody asks: the two processes, limits, how old registrations are, the build.

use std::fmt;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::PREFIX;
use super::process::ProcessFigures;
use crate::http::BuildInfo;

/// How things are at one moment.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Process of the data plane that is attached; 0: none.
    pub dataplane_pid: u32,
    /// How often it went away since this control plane started.
    pub dataplane_losses: u64,
    /// Connections it takes at most.
    pub connections_max: u64,
    /// Discoveries, each with when it last accepted the own entry.
    pub registrations: Vec<(String, Option<SystemTime>)>,
}

/// Asks for the facts at every look.
pub(super) struct FactCollector<F>(pub(super) F);

impl<F> fmt::Debug for FactCollector<F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("FactCollector").finish_non_exhaustive()
    }
}

/// One of a process, by its name, its help, and where it stands.
type Figure = (&'static str, &'static str, fn(&ProcessFigures) -> Option<i64>);

const FIGURES: [Figure; 3] = [
    ("process_resident_memory_bytes", "Resident memory in bytes", |figures| figures.resident_len),
    ("process_open_fds", "Open descriptors", |figures| figures.descriptors),
    ("process_max_fds", "Descriptors that may be open", |figures| figures.descriptors_max),
];

impl<F: Fn() -> Facts + Send + Sync + 'static> Collector for FactCollector<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let facts = (self.0)();
        let build = BuildInfo::of_this_program();
        let labels = [("version", build.version), ("commit", build.commit), ("date", build.date)];
        let help = "What runs: 1, with version, commit and date of the build";
        let name = format!("{PREFIX}_build_info");
        let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        ConstGauge::new(1).encode(metric.encode_family(&labels)?)?;

        let help = "Times the data plane went away since this control plane started";
        let name = format!("{PREFIX}_dataplane_losses");
        let metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
        ConstCounter::new(facts.dataplane_losses).encode(metric)?;
        let help = "Connections that the data plane takes at most, by its limit of descriptors";
        let name = format!("{PREFIX}_connections_max");
        let metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(facts.connections_max).unwrap_or(i64::MAX)).encode(metric)?;

        let help = "Seconds since the discovery accepted the own entry; absent: it has not yet";
        let name = format!("{PREFIX}_registration_age_seconds");
        let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        for (discovery, accepted) in facts.registrations {
            let Some(age) = accepted.and_then(|accepted| accepted.elapsed().ok()) else { continue };
            let labels = [("discovery", discovery)];
            ConstGauge::new(age.as_secs_f64()).encode(metric.encode_family(&labels)?)?;
        }

        let planes = [("control", std::process::id()), ("dataplane", facts.dataplane_pid)]
            .map(|(plane, pid)| ([("plane", plane)], ProcessFigures::of(pid)));
        let help = "CPU time in seconds";
        let mut metric = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
        for (labels, figures) in &planes {
            let Some(seconds) = figures.cpu_s else { continue };
            ConstCounter::new(seconds).encode(metric.encode_family(labels)?)?;
        }
        for (name, help, figure) in FIGURES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, figures) in &planes {
                let Some(value) = figure(figures) else { continue };
                ConstGauge::new(value).encode(metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}
