//! The data plane's counters under their own names, one sample per worker.

use std::fmt;
use std::sync::PoisonError;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use ringwire_dataplane::counters::Counter;

use super::Latest;

/// What the text format adds to the name of a counter by itself.
const SUFFIX: &str = "_total";

#[derive(Debug)]
pub(super) struct WorkerCollector {
    latest: Latest,
}

impl WorkerCollector {
    pub(super) fn new(latest: Latest) -> Self {
        Self { latest }
    }
}

impl Collector for WorkerCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let attached = latest.as_ref().is_some_and(|totals| totals.attached);
        let help =
            "Whether the data plane is attached to this control plane and its workers take their turns";
        let gauge = ConstGauge::new(i64::from(attached));
        let metric = encoder.encode_descriptor("dataplane_attached", help, None, MetricType::Gauge)?;
        gauge.encode(metric)?;
        let Some(totals) = latest.as_ref() else { return Ok(()) };
        let help = "Buffer memory in use, with what streams count for: the difference of what was taken and given back";
        let held = totals.open(Counter::BufferTaken, Counter::BufferGivenBack);
        let metric = encoder.encode_descriptor("buffer_memory_used_bytes", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(held).unwrap_or(i64::MAX)).encode(metric)?;
        for &counter in Counter::ALL {
            let name = counter.name().strip_suffix(SUFFIX).unwrap_or(counter.name());
            let help = counter.help().trim().trim_end_matches('.');
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (worker, row) in totals.workers.iter().enumerate() {
                let value = row.get(counter as usize).copied().unwrap_or_default();
                let labels = [("worker", worker.to_string())];
                ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
