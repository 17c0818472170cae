//! What the frame counts: things that begin and end as pairs, answers by their status.

use axum::http::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Counters of one [`super::HttpServer`]. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct HttpCounters {
    /// Connections accepted and served.
    pub connections_opened: Counter,
    /// Of those, ended.
    pub connections_closed: Counter,
    /// Connections closed at once because there were too many.
    pub connections_refused: Counter,
    /// Connections that ended with an error: no HTTP, a head that took too long or was too long, a peer that left.
    pub connections_failed: Counter,
    /// Requests of which the head was read.
    pub requests_opened: Counter,
    /// Of those, answered or given up.
    pub requests_closed: Counter,
    /// Of those, given up because body and answer took too long.
    pub requests_timed_out: Counter,
    /// Answers by status.
    pub answers: Family<[(&'static str, u16); 1], Counter>,
}

impl HttpCounters {
    pub(super) fn answered(&self, status: StatusCode) {
        self.answers.get_or_create(&[("code", status.as_u16())]).inc();
    }

    /// Puts the counters into a registry, in which they must be the only ones of this kind.
    pub fn register(&self, registry: &mut Registry) {
        let mut add =
            |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        add("http_connections_opened", "Connections accepted and served", &self.connections_opened);
        add("http_connections_closed", "Served connections that ended", &self.connections_closed);
        add(
            "http_connections_refused",
            "Connections closed at once because there were too many",
            &self.connections_refused,
        );
        add(
            "http_connections_failed",
            "Served connections that ended with an error",
            &self.connections_failed,
        );
        add("http_requests_opened", "Requests begun", &self.requests_opened);
        add("http_requests_closed", "Requests answered or given up", &self.requests_closed);
        add(
            "http_requests_timed_out",
            "Requests given up because they took too long",
            &self.requests_timed_out,
        );
        registry.register("http_answers", "Answers by status", self.answers.clone());
    }
}
