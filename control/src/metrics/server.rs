//! The names that dashboards of the Go server know (dmsg-wire 11.8), computed from our counters.

use std::fmt;
use std::sync::{Arc, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use ringwire_dataplane::counters::Counter;

use super::{Latest, Rates, Totals};

/// A total under a name of the Go server; the text format adds `_total`.
struct Total {
    name: &'static str,
    help: &'static str,
    parts: &'static [Counter],
}

/// Refusals after an object was read count as failed streams; a stream over the limit of its session counts nowhere.
const TOTALS: &[Total] = &[
    Total {
        name: "dmsg_server_vm_session_success",
        help: "Sessions filed",
        parts: &[Counter::SessionsOpened],
    },
    Total {
        name: "dmsg_server_vm_session_fail",
        help: "Session handshakes that failed or took too long",
        parts: &[Counter::HandshakesFailed, Counter::HandshakesTimedOut],
    },
    Total {
        name: "dmsg_server_vm_stream_success",
        help: "Bridges that started",
        parts: &[Counter::BridgesOpened],
    },
    Total {
        name: "dmsg_server_vm_stream_fail",
        help: "Streams refused after an object was read",
        parts: &[
            Counter::RefusedObject,
            Counter::RefusedSource,
            Counter::RefusedDestination,
            Counter::RefusedBudget,
            Counter::RefusedDraining,
            Counter::RefusedOpen,
            Counter::RefusedResponse,
        ],
    },
];

/// How many there are now.
struct Level {
    name: &'static str,
    help: &'static str,
    opened: Counter,
    closed: Counter,
}

const LEVELS: &[Level] = &[
    Level {
        name: "dmsg_server_clients_count",
        help: "Clients with a session",
        opened: Counter::SessionsOpened,
        closed: Counter::SessionsClosed,
    },
    Level {
        name: "dmsg_server_vm_active_sessions_count",
        help: "Sessions",
        opened: Counter::SessionsOpened,
        closed: Counter::SessionsClosed,
    },
    Level {
        name: "dmsg_server_vm_active_streams_count",
        help: "Bridges",
        opened: Counter::BridgesOpened,
        closed: Counter::BridgesClosed,
    },
];

#[derive(Debug)]
pub(super) struct ServerCollector {
    latest: Latest,
    rates: Arc<Rates>,
}

impl ServerCollector {
    pub(super) fn new(latest: Latest, rates: Arc<Rates>) -> Self {
        Self { latest, rates }
    }
}

impl Collector for ServerCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let none = Totals::default();
        let totals = latest.as_ref().unwrap_or(&none);
        for total in TOTALS {
            let value = total.parts.iter().fold(0u64, |sum, part| sum.wrapping_add(totals.sum(*part)));
            let metric = encoder.encode_descriptor(total.name, total.help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        let levels =
            LEVELS.iter().map(|level| (level.name, level.help, totals.open(level.opened, level.closed)));
        let rates = [
            (
                "dmsg_server_packets_per_second",
                "Data frames received in the last second",
                self.rates.per_second(),
            ),
            (
                "dmsg_server_packets_per_minute",
                "Data frames received in the last minute",
                self.rates.per_minute(),
            ),
        ];
        for (name, help, value) in levels.chain(rates) {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)?;
        }
        Ok(())
    }
}
