//! Connections in their handshake, by the address prefix they come from: who goes when there are too many.
//!
//! In: that connections begin, are ascribed to another address by a proxy, prove their key, end. Out: the one to close. A flood
//! from one place costs that place its own oldest connections; nobody else's.

use crate::fair::Fair;
use crate::prefix::Prefix;
use crate::slab::Key;

/// Half-open connections, by prefix in order of arrival.
pub(crate) type HalfOpenTable = Fair<Prefix, Key>;
