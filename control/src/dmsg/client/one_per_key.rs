//! One client per key in this process: two of them would evict each other at every server (control-plane 4.2).

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringwire_proto::identity::PublicKey;

/// Keys in use. The one piece of state that is the process's: a second client anywhere in it must see the first.
static KEYS: Mutex<Option<HashSet<PublicKey>>> = Mutex::new(None);

fn keys() -> MutexGuard<'static, Option<HashSet<PublicKey>>> {
    KEYS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to be the client of a key, until dropped.
#[derive(Debug)]
pub(super) struct KeyLease(PublicKey);

impl KeyLease {
    /// `None` when another client has it.
    pub(super) fn take(key: PublicKey) -> Option<Self> {
        let is_new = keys().get_or_insert_default().insert(key);
        // Not made before it is known to be new: its drop would free the key of the one who has it.
        is_new.then(|| Self(key))
    }
}

impl Drop for KeyLease {
    fn drop(&mut self) {
        if let Some(keys) = keys().as_mut() {
            keys.remove(&self.0);
        }
    }
}
