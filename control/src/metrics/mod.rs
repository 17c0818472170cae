//! `/metrics` and `/health`: what an operator's tools read (dmsg-wire 11.8, services 1.3).
//!
//! In: the counters of the data plane (shared pages, through [`CounterSource`]) and those of the control plane's own
//! parts. Out: an HTTP server. Things that begin and end are pairs of counters; the gauges are those that
//! dashboards of the Go server expect by name, which are computed from the pairs, and what is looked at rather than counted
//! ([`Facts`]). The text is OpenMetrics, or the older format for whoever asks for that.
//!
//! ```text
//!   data plane's pages ──► source ──┬──► workers (ringwire_…, by worker)     ──┐
//!                                   └──► server (dmsg_server_…, for dashboards)├──► GET /metrics
//!   discovery, registration, listeners, facts ──► registry ────────────────────┘
//! ```

mod facts;
mod listeners;
mod process;
mod rates;
mod server;
mod source;
mod text;
mod workers;

pub use facts::Facts;
pub use rates::Rates;
pub use source::{CounterSource, Totals};

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::http::{Health, HttpCounters, HttpServer, Limits, Reply};
use facts::FactCollector;
use listeners::ListenerCollector;
use server::ServerCollector;
use text::{classic, prefers_classic};
use workers::WorkerCollector;

/// What stands before the names that are ours.
const PREFIX: &str = "ringwire";
/// The media type of the text that the library writes.
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// The media type of its older form.
const CLASSIC: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// The totals of the last read, shared between the read and the collectors.
type Latest = Arc<Mutex<Option<Totals>>>;

/// Everything that is to be shown, collected before the listener starts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    latest: Latest,
    listeners: Vec<(&'static str, HttpCounters)>,
}

impl Metrics {
    /// With the data plane's counters; `rates` is fed by whoever reads them regularly.
    pub fn new(rates: &Arc<Rates>) -> Self {
        let latest = Latest::default();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ServerCollector::new(Arc::clone(&latest), Arc::clone(rates))));
        let ours = registry.sub_registry_with_prefix(PREFIX);
        ours.register_collector(Box::new(WorkerCollector::new(Arc::clone(&latest))));
        Self { registry, latest, listeners: Vec::new() }
    }

    /// Where a part of the control plane puts its counters; their names get our prefix.
    pub fn registry(&mut self) -> &mut Registry {
        self.registry.sub_registry_with_prefix(PREFIX)
    }

    /// Shows what is to be looked at rather than counted, as `facts` finds it at every request.
    pub fn add_facts(&mut self, facts: impl Fn() -> Facts + Send + Sync + 'static) {
        self.registry.register_collector(Box::new(FactCollector(facts)));
    }

    /// Shows the counters of an HTTP listener under this name.
    pub fn add_listener(&mut self, name: &'static str, counters: HttpCounters) {
        self.listeners.push((name, counters));
    }

    /// A server of `/metrics` and `/health`, without a listener yet, that counts its own among the rest. What `health`
    /// says is asked at every request; `/health` and `/health/ready` are 503 with the reason while it is not ready,
    /// `/health/live` is 200 as long as this process answers.
    pub fn serve<S>(
        mut self,
        source: S,
        health: impl Fn() -> Health + Send + Sync + 'static,
        limits: Limits,
    ) -> HttpServer
    where
        S: CounterSource,
    {
        let own = HttpCounters::default();
        let mut listeners = std::mem::take(&mut self.listeners);
        listeners.push(("http", own.clone()));
        self.registry().register_collector(Box::new(ListenerCollector::new(listeners)));
        let shared = Arc::new(Shared { registry: self.registry, latest: self.latest, source });
        let health = Arc::new(health);
        let ready = {
            let health = Arc::clone(&health);
            get(move || async move { health().readiness() })
        };
        let router = Router::new()
            .route("/metrics", get(metrics::<S>))
            .with_state(shared)
            .route("/health", ready.clone())
            .route("/health/ready", ready)
            // That it answers is all that is asked.
            .route("/health/live", get(move || async move { Reply::json(&health()) }));
        HttpServer::with_counters(router, limits, own)
    }
}

struct Shared<S> {
    registry: Registry,
    latest: Latest,
    source: S,
}

async fn metrics<S: CounterSource>(State(shared): State<Arc<Shared<S>>>, headers: HeaderMap) -> Response {
    let totals = shared.source.totals().await;
    *shared.latest.lock().unwrap_or_else(PoisonError::into_inner) = totals;
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &shared.registry) {
        return Reply::message(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
    }
    let accept = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    if prefers_classic(accept) {
        return ([(CONTENT_TYPE, CLASSIC)], classic(&text)).into_response();
    }
    ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}
