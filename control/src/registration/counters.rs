//! What registrations count, all discoveries together.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Counters of registrations. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct RegistrationCounters {
    /// Requests sent: reads, posts and deletes.
    pub requests: Counter,
    /// Of the posts: accepted.
    pub posts_accepted: Counter,
    /// Requests that failed. A read that finds no entry did not fail.
    pub failures: Counter,
}

impl RegistrationCounters {
    /// Puts the counters into a registry.
    pub fn register(&self, registry: &mut Registry) {
        let mut add =
            |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        add("registration_requests", "Requests to discoveries about the own entry", &self.requests);
        add("registration_posts_accepted", "Own entries that a discovery accepted", &self.posts_accepted);
        add("registration_failures", "Requests about the own entry that failed", &self.failures);
    }
}
