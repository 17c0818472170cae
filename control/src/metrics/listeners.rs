//! What the HTTP frame counts, one sample per listener.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use crate::http::HttpCounters;

#[derive(Debug)]
pub(super) struct ListenerCollector {
    listeners: Vec<(&'static str, HttpCounters)>,
}

impl ListenerCollector {
    pub(super) fn new(listeners: Vec<(&'static str, HttpCounters)>) -> Self {
        Self { listeners }
    }
}

impl Collector for ListenerCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some((_, first)) = self.listeners.first() else { return Ok(()) };
        for (index, (name, help, _)) in first.totals().into_iter().enumerate() {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (listener, counters) in &self.listeners {
                let (_, _, value) = counters.totals()[index];
                ConstCounter::new(value).encode(metric.encode_family(&[("listener", *listener)])?)?;
            }
        }
        let help = "Answers by status";
        let mut metric = encoder.encode_descriptor("http_answers", help, None, MetricType::Counter)?;
        for (listener, counters) in &self.listeners {
            for (code, value) in counters.answers() {
                let labels = [("listener", (*listener).to_owned()), ("code", code.to_string())];
                ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
