//! How many clients an address has: what the setting `sessions_per_address` limits. Shared by the workers of a data plane, as the
//! directory is; used when a session begins or ends, and only while there is a limit.
//!
//! In: that a session of a key begins or ends at an address. Out: whether it may. What counts is *keys*: a session that takes the
//! place of a former one of its key needs no room of its own, wherever that one is, so that whoever reconnects is not locked
//! out by what is left of it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringwire_proto::identity::PublicKey;

use crate::prefix::Prefix;

/// See the module's head. One lock for all: a session's handshake costs a thousand times what is done under it.
#[derive(Debug, Default)]
pub(crate) struct AddressCounts(Mutex<HashMap<Prefix, Clients>>);

/// Sessions of each key at one address: more than one only while a former one is being closed.
type Clients = HashMap<PublicKey, u32>;

impl AddressCounts {
    /// Counts a session that begins, unless it would be one of more than `limit` clients there; whether it was counted.
    pub(crate) fn admit(&self, prefix: Prefix, peer: PublicKey, limit: u32) -> bool {
        let mut counts = self.lock();
        let clients = counts.get(&prefix);
        let is_known = clients.is_some_and(|clients| clients.contains_key(&peer));
        let count = clients.map_or(0, HashMap::len);
        if !is_known && count >= usize::try_from(limit).unwrap_or(usize::MAX) {
            return false;
        }
        *counts.entry(prefix).or_default().entry(peer).or_default() += 1;
        true
    }

    /// A session that was counted has ended.
    pub(crate) fn leave(&self, prefix: Prefix, peer: &PublicKey) {
        let mut counts = self.lock();
        let Some(clients) = counts.get_mut(&prefix) else { return };
        let Some(sessions) = clients.get_mut(peer) else { return };
        *sessions -= 1;
        if *sessions == 0 {
            clients.remove(peer);
            if clients.is_empty() {
                counts.remove(&prefix);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Prefix, Clients>> {
        // A holder that panicked (out of memory, in the insert) left a table that is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use ringwire_proto::identity::SecretKey;

    use super::*;
    use crate::entropy::OsEntropy;

    fn key() -> PublicKey {
        SecretKey::generate(&mut OsEntropy).public_key()
    }

    #[test]
    fn keys_are_counted_and_a_reconnect_needs_no_room() {
        let counts = AddressCounts::default();
        let [here, there] = [1, 2].map(|last| Prefix::from(IpAddr::from([192, 0, 2, last])));
        let [first, second, third] = [key(), key(), key()];
        assert!(counts.admit(here, first, 2) && counts.admit(here, second, 2));
        assert!(!counts.admit(here, third, 2));
        assert!(counts.admit(there, third, 2), "each address has its own");
        // The new session is here before the old one has gone, as often as it likes.
        assert!(counts.admit(here, first, 2) && counts.admit(here, first, 2));
        counts.leave(here, &first);
        counts.leave(here, &first);
        assert!(!counts.admit(here, third, 2), "its last session has its room still");
        counts.leave(here, &first);
        assert!(counts.admit(here, third, 2));
        assert!(!counts.admit(here, first, 2));
        for (prefix, key) in [(here, second), (here, third), (there, third), (there, first)] {
            counts.leave(prefix, &key);
        }
        assert!(counts.lock().is_empty(), "nothing is kept of who left");
    }
}
