//! What an embedded discovery counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Counters of one [`super::DiscoveryService`]. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct DiscoveryCounters {
    /// Entries asked for and there.
    pub found: Counter,
    /// Entries asked for and not there.
    pub not_found: Counter,
    /// Posts that were stored.
    pub posts_stored: Counter,
    /// Posts that were refused.
    pub posts_refused: Counter,
    /// Entries removed by their owner.
    pub deletes: Counter,
    /// Removals refused: by somebody who shows what everybody can read.
    pub deletes_refused: Counter,
    /// Entries that left for a newcomer because there were too many.
    pub evicted: Counter,
    /// Posts of servers that are worth a line in the log: new, with a gap in the sequence, with another address.
    pub servers_noted: Counter,
    /// Texts of listings that were built.
    pub listings_built: Counter,
    /// Entries removed by a network monitor.
    pub deregistered: Counter,
}

impl DiscoveryCounters {
    /// Puts the counters into a registry.
    pub fn register(&self, registry: &mut Registry) {
        let mut add =
            |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        add("discovery_entries_found", "Entries asked for that were there", &self.found);
        add("discovery_entries_not_found", "Entries asked for that were not there", &self.not_found);
        add("discovery_posts_stored", "Posted entries that were stored", &self.posts_stored);
        add("discovery_posts_refused", "Posted entries that were refused", &self.posts_refused);
        add("discovery_deletes", "Entries removed by their owner", &self.deletes);
        add("discovery_deletes_refused", "Removals refused", &self.deletes_refused);
        add(
            "discovery_evicted",
            "Entries that left for a newcomer because there were too many",
            &self.evicted,
        );
        add(
            "discovery_servers_noted",
            "Posts of servers that were new, had a gap in the sequence or another address",
            &self.servers_noted,
        );
        add("discovery_listings_built", "Listings of clients that were built", &self.listings_built);
        add("discovery_deregistered", "Entries removed by a network monitor", &self.deregistered);
    }
}
