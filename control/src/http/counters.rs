//! What the frame counts: things that begin and end as pairs, answers by their status.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use prometheus_client::metrics::counter::Counter;

/// Counters of one [`super::HttpServer`]. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct HttpCounters {
    /// Connections accepted and served.
    pub connections_opened: Counter,
    /// Of those, ended.
    pub connections_closed: Counter,
    /// Connections closed at once because there were too many, in all or from one address.
    pub connections_refused: Counter,
    /// Connections that ended with an error: no HTTP, a head that took too long or was too long, a peer that left
    /// or did not read.
    pub connections_failed: Counter,
    /// Connections that began with a PROXY header of a trusted proxy, and count under the address in it.
    pub proxy_headers: Counter,
    /// Connections that began with a PROXY header although they come from no trusted proxy; they were closed.
    pub proxy_untrusted: Counter,
    /// Connections that a trusted proxy began with a header that cannot be read; they were closed.
    pub proxy_malformed: Counter,
    /// Requests of which the head was read.
    pub requests_opened: Counter,
    /// Of those, answered or given up.
    pub requests_closed: Counter,
    /// Of those, given up because body and answer took too long.
    pub requests_timed_out: Counter,
    answers: Arc<Mutex<BTreeMap<u16, u64>>>,
}

impl HttpCounters {
    pub(super) fn answered(&self, status: StatusCode) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry(status.as_u16()).or_default() += 1;
    }

    /// Name, help and value of each, without the answers.
    pub fn totals(&self) -> [(&'static str, &'static str, u64); 10] {
        [
            ("http_connections_opened", "Connections accepted and served", self.connections_opened.get()),
            ("http_connections_closed", "Served connections that ended", self.connections_closed.get()),
            (
                "http_connections_refused",
                "Connections closed at once because there were too many, in all or from one address",
                self.connections_refused.get(),
            ),
            (
                "http_connections_failed",
                "Served connections that ended with an error",
                self.connections_failed.get(),
            ),
            (
                "http_proxy_headers",
                "Connections with a PROXY header of a trusted proxy, which count under the address in it",
                self.proxy_headers.get(),
            ),
            (
                "http_proxy_untrusted",
                "Connections closed because of a PROXY header from an address that is no trusted proxy",
                self.proxy_untrusted.get(),
            ),
            (
                "http_proxy_malformed",
                "Connections of a trusted proxy closed because of a header that cannot be read",
                self.proxy_malformed.get(),
            ),
            ("http_requests_opened", "Requests begun", self.requests_opened.get()),
            ("http_requests_closed", "Requests answered or given up", self.requests_closed.get()),
            (
                "http_requests_timed_out",
                "Requests given up because they took too long",
                self.requests_timed_out.get(),
            ),
        ]
    }

    /// Answers by status, those that were ever given.
    pub fn answers(&self) -> BTreeMap<u16, u64> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
