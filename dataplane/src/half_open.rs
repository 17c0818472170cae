//! Connections in their handshake, by the address prefix they come from: who goes when there are too many, and how many
//! sessions an address has.
//!
//! In: that connections begin, are ascribed to another address by a proxy, prove their key, end. Out: the one to close. A flood
//! from one place costs that place its own oldest connections; nobody else's.

use std::collections::BTreeMap;

use crate::fair::Fair;
use crate::prefix::Prefix;
use crate::slab::Key;

/// Half-open connections, by prefix in order of arrival.
pub(crate) type HalfOpenTable = Fair<Prefix, Key>;

/// Sessions by prefix, counted only while there is a limit.
#[derive(Debug, Default)]
pub(crate) struct AddressCounts(BTreeMap<Prefix, u32>);

impl AddressCounts {
    /// One more session from here.
    pub(crate) fn add(&mut self, prefix: Prefix) {
        *self.0.entry(prefix).or_insert(0) += 1;
    }

    /// Sessions from here.
    pub(crate) fn count(&self, prefix: Prefix) -> u32 {
        self.0.get(&prefix).copied().unwrap_or(0)
    }

    /// One less.
    pub(crate) fn remove(&mut self, prefix: Prefix) {
        if let Some(count) = self.0.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&prefix);
            }
        }
    }
}
