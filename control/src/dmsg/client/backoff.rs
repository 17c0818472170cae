//! Which server to connect to next, and when: candidates, their failures, jittered pauses.
//!
//! In: lists of servers, outcomes, the time, random numbers. Out: [`Candidates::take`]. No clock, no I/O. Used by
//! [`super::keeper`].

use std::collections::HashMap;
use std::time::Duration;

use ringwire_proto::identity::PublicKey;
use tokio::time::Instant;

use crate::dmsg::address::ServerAddress;

/// Servers kept from a list. A discovery sends at most 512 (services 2.3).
const CANDIDATES_MAX: usize = 1024;

/// Pauses between attempts: `first`, then twice as long each time up to `longest`, each shortened at random by up to
/// half, so that the clients of a server that fell do not all come back at once.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// At most.
    pub longest: Duration,
}

impl Backoff {
    /// The pause after `failures` failures in a row; `random` is any number.
    pub(super) fn pause(self, failures: u32, random: u64) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.longest);
        // 53 bits are what a float holds.
        let part = (random >> 11) as f64 / (1_u64 << 53) as f64;
        doubled.mul_f64(1.0 - part / 2.0)
    }
}

/// Servers this client may connect to.
pub(super) struct Candidates {
    backoff: Backoff,
    servers: Vec<Candidate>,
    /// Of servers that left the list as well: a short absence is no pardon.
    troubles: HashMap<PublicKey, Trouble>,
}

struct Candidate {
    server: ServerAddress,
    /// Candidates are taken in this order, drawn anew with each list (dmsg-wire 15: shuffled).
    order: u64,
}

#[derive(Clone, Copy)]
struct Trouble {
    failures: u32,
    /// Sessions it closed before it sent a byte.
    unheard: u32,
    until: Instant,
}

impl Candidates {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self { backoff, servers: Vec::new(), troubles: HashMap::new() }
    }

    /// Takes a new list, in random order.
    pub(super) fn set(&mut self, servers: Vec<ServerAddress>, mut random: impl FnMut() -> u64) {
        self.servers = servers
            .into_iter()
            .take(CANDIDATES_MAX)
            .map(|server| Candidate { server, order: random() })
            .collect();
        self.servers.sort_by_key(|candidate| candidate.order);
        if self.troubles.len() > CANDIDATES_MAX {
            let listed = |key| self.servers.iter().any(|candidate| candidate.server.key == key);
            self.troubles.retain(|key, _| listed(*key));
        }
    }

    /// How long a server still rests.
    pub(super) fn resting(&self, key: &PublicKey, now: Instant) -> Option<Duration> {
        let left = self.troubles.get(key)?.until.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// The next server that is neither `excluded` nor resting.
    pub(super) fn take(&self, now: Instant, excluded: impl Fn(&PublicKey) -> bool) -> Option<ServerAddress> {
        let free = |candidate: &&Candidate| {
            let key = &candidate.server.key;
            !excluded(key) && self.troubles.get(key).is_none_or(|trouble| trouble.until <= now)
        };
        // Those without trouble first.
        let fresh = |candidate: &&Candidate| !self.troubles.contains_key(&candidate.server.key);
        let found = self.servers.iter().filter(free).find(fresh);
        found.or_else(|| self.servers.iter().find(free)).map(|candidate| candidate.server.clone())
    }

    /// When the next resting server may be tried again.
    pub(super) fn next_due(&self, excluded: impl Fn(&PublicKey) -> bool) -> Option<Instant> {
        let resting = self.servers.iter().map(|candidate| &candidate.server.key).filter(|key| !excluded(key));
        resting.filter_map(|key| self.troubles.get(key)).map(|trouble| trouble.until).min()
    }

    /// No session came about, or it ended too soon.
    pub(super) fn failed(&mut self, key: PublicKey, now: Instant, random: u64) -> Duration {
        let trouble = self.troubles.entry(key).or_insert(Trouble { failures: 0, unheard: 0, until: now });
        trouble.failures = trouble.failures.saturating_add(1);
        let pause = self.backoff.pause(trouble.failures, random);
        trouble.until = now + pause;
        pause
    }

    /// A session that failed was closed before a byte of the server came.
    pub(super) fn was_unheard(&mut self, key: &PublicKey) {
        if let Some(trouble) = self.troubles.get_mut(key) {
            trouble.unheard = trouble.unheard.saturating_add(1);
        }
    }

    /// How many of a server's sessions ended so since one lasted: the next is to be given more time.
    pub(super) fn unheard(&self, key: &PublicKey) -> u32 {
        self.troubles.get(key).map_or(0, |trouble| trouble.unheard)
    }

    /// A session lasted.
    pub(super) fn pardon(&mut self, key: &PublicKey) {
        self.troubles.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use ringwire_dataplane::entropy::OsEntropy;
    use ringwire_proto::identity::SecretKey;

    use super::*;

    const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(15) };

    fn server() -> ServerAddress {
        let key = SecretKey::generate(&mut OsEntropy).public_key();
        ServerAddress { key, address: "127.0.0.1:1".to_owned() }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_vary_by_half() {
        let seconds = |failures, random| BACKOFF.pause(failures, random).as_secs_f64();
        for (failures, longest) in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 15.0), (u32::MAX, 15.0)] {
            assert_eq!(seconds(failures, 0), longest);
            let least = seconds(failures, u64::MAX);
            assert!(least >= longest / 2.0 && least < longest * 0.51, "{least}");
        }
    }

    #[test]
    fn a_server_in_trouble_rests_and_others_come_first() {
        let (first, second) = (server(), server());
        let mut candidates = Candidates::new(BACKOFF);
        let mut order = 0;
        candidates.set(vec![first.clone(), second.clone()], || {
            order += 1;
            order
        });
        let now = Instant::now();
        assert_eq!(candidates.take(now, |_| false), Some(first.clone()));
        assert_eq!(candidates.take(now, |key| *key == first.key), Some(second.clone()));
        candidates.failed(first.key, now, 0);
        assert_eq!(candidates.take(now, |_| false), Some(second.clone()));
        assert_eq!(candidates.take(now, |key| *key == second.key), None);
        assert_eq!(candidates.next_due(|key| *key == second.key), Some(now + Duration::from_secs(1)));
        // Rested, but still behind one without trouble.
        let later = now + Duration::from_secs(1);
        assert_eq!(candidates.take(later, |key| *key == second.key), Some(first.clone()));
        assert_eq!(candidates.take(later, |_| false), Some(second.clone()));
        // A new list does not pardon; a session that lasted does.
        candidates.set(vec![first.clone()], || 0);
        assert_eq!(candidates.take(now, |_| false), None);
        assert_eq!(candidates.failed(first.key, later, 0), Duration::from_secs(2));
        candidates.pardon(&first.key);
        assert_eq!(candidates.take(now, |_| false), Some(first));
    }
}
