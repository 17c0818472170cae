//! Strangers whose message 1 is longer than any that is known, by the address prefix they come from: what their stashes have
//! beyond everybody's, and who goes when that is too much.
//!
//! In: that such a message begins, is answered, ends. Out: what all of them have, and the one to close. As with half-open
//! connections (`half_open`), many from one place cost that place its own oldest.

use crate::fair::Fair;
use crate::prefix::Prefix;
use crate::slab::Key;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct LongStashes {
    all: Fair<Prefix, Entry>,
    /// Of all together, in bytes.
    len: usize,
}

#[derive(Debug)]
struct Entry {
    session: Key,
    /// Beyond everybody's, in bytes.
    len: usize,
}

impl LongStashes {
    /// A stash may grow by `len` bytes.
    pub(crate) fn push(&mut self, prefix: Prefix, session: Key, len: usize) -> Key {
        self.len += len;
        self.all.push(prefix, Entry { session, len })
    }

    /// Its message was answered, or its connection ends.
    pub(crate) fn remove(&mut self, place: Key) {
        if let Some(entry) = self.all.remove(place) {
            self.len -= entry.len;
        }
    }

    /// The connection to close: the oldest of the prefix that has most.
    pub(crate) fn next_to_go(&self) -> Option<Key> {
        self.all.oldest_of_largest().map(|(_, entry)| entry.session)
    }

    /// Bytes of all together.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_crowd_of_one_address_makes_room_for_others_from_its_oldest_on() {
        let mut stashes = LongStashes::default();
        let prefix = |last: u8| Prefix::from(IpAddr::from([192, 0, 2, last]));
        let key = |index| Key { index, generation: 0 };
        let lone = stashes.push(prefix(1), key(1), 10);
        let crowd: Vec<Key> = (100..105).map(|index| stashes.push(prefix(2), key(index), 100)).collect();
        assert_eq!(stashes.len(), 510);
        for (index, place) in (100..104).zip(crowd) {
            assert_eq!(stashes.next_to_go(), Some(key(index)));
            stashes.remove(place);
            stashes.remove(place);
        }
        assert_eq!(stashes.len(), 110);
        stashes.remove(lone);
        assert_eq!((stashes.len(), stashes.next_to_go()), (100, Some(key(104))));
    }
}
