//! The bounds of an HTTP listener. Each has its rule for what happens beyond it.

use std::time::Duration;

/// Bounds of one [`super::HttpServer`]. The defaults are for services that strangers can reach.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; one more is accepted and closed at once. The last sixteen (of few: a quarter) are only for
    /// callers of this machine.
    pub connections_max: usize,
    /// Of those, from one address that is not loopback; IPv6 by /64. One more is closed at once.
    pub connections_per_address_max: usize,
    /// How long a PROXY header may take, where one may come, and then the head of a request, counted from the end of the request before: a connection without
    /// requests is closed after it too.
    pub head: Duration,
    /// Longest head of a request in bytes; 431 beyond it.
    pub head_bytes_max: usize,
    /// Longest body of a request in bytes; beyond it 413 (services 1.8), before the body is asked for where its length says so, and
    /// the end of the connection.
    pub body_bytes_max: usize,
    /// How long body and answer of a request may take together; 408 beyond it.
    pub request: Duration,
    /// How long an answer may make no progress because nobody reads it; the connection is cut off after it.
    pub unread: Duration,
    /// How long a connection may live before it is asked to end after its current request, and is cut off
    /// [`request`](Self::request) later: bounds a reader that hardly reads.
    pub connection: Duration,
    /// How long requests in progress are waited for at an orderly stop.
    pub stop: Duration,
}

/// How long a connection is read on after an answer that did not wait for the request's body: whoever still sends reads the
/// answer meanwhile.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// And how much of it, in bytes: what a request may bring otherwise. The connection is cut off after either.
pub(super) const LINGER_BYTES_MAX: usize = 1024 * 1024;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            connections_per_address_max: 64,
            head: Duration::from_secs(10),
            head_bytes_max: 16 * 1024,
            body_bytes_max: 1024 * 1024,
            request: Duration::from_secs(10),
            unread: Duration::from_secs(10),
            connection: Duration::from_secs(120),
            stop: Duration::from_secs(3),
        }
    }
}
