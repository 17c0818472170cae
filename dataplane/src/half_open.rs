//! Connections in their handshake, by the address prefix they come from: who goes when there are too many.
//!
//! In: that connections begin, say something, are ascribed to another address by a proxy, prove their key, end. Out: the one to
//! close. A flood from one place costs that place its own oldest connections; nobody else's. While most of them have not said a
//! word, one of those goes: whoever has a handshake under way, or two from one address, is not let go for a crowd of which each
//! has a silent connection of its own.

use crate::fair::Fair;
use crate::prefix::Prefix;
use crate::slab::Key;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct HalfOpenTable {
    all: Fair<Prefix, Entry>,
    silent: Fair<Prefix, Key>,
}

#[derive(Debug)]
struct Entry {
    session: Key,
    /// Its place among the silent ones; `Key::NONE` once it has sent a whole message.
    silent: Key,
}

impl HalfOpenTable {
    /// A connection begins, or is ascribed to another address; it has said nothing yet.
    pub(crate) fn push(&mut self, prefix: Prefix, session: Key) -> Key {
        let silent = self.silent.push(prefix, session);
        self.all.push(prefix, Entry { session, silent })
    }

    /// It has sent a whole message.
    pub(crate) fn spoke(&mut self, place: Key) {
        if let Some(entry) = self.all.get_mut(place) {
            self.silent.remove(std::mem::replace(&mut entry.silent, Key::NONE));
        }
    }

    /// It is not half open any more.
    pub(crate) fn remove(&mut self, place: Key) {
        if let Some(entry) = self.all.remove(place) {
            self.silent.remove(entry.silent);
        }
    }

    /// The connection to close: the oldest of the prefix that has most of those that are silent, if these are half of all, and
    /// else of all.
    pub(crate) fn next_to_go(&self) -> Option<Key> {
        if 2 * self.silent.len() >= self.all.len()
            && let Some((_, &session)) = self.silent.oldest_of_largest()
        {
            return Some(session);
        }
        self.all.oldest_of_largest().map(|(_, entry)| entry.session)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn prefix(third: u8, last: u8) -> Prefix {
        Prefix::from(IpAddr::from([192, 0, third, last]))
    }

    fn key(index: u32) -> Key {
        Key { index, generation: 0 }
    }

    #[test]
    fn two_handshakes_under_way_outlive_a_crowd_of_silent_connections() {
        let mut table = HalfOpenTable::default();
        let mut silent = Vec::new();
        for index in 0..500 {
            silent.push((table.push(prefix((index / 250) as u8, (index % 250) as u8), key(index)), index));
            if index == 0 {
                for index in [1000, 1001] {
                    let place = table.push(prefix(9, 9), key(index));
                    table.spoke(place);
                }
            }
        }
        for (place, index) in silent {
            // Two of three would no longer be a crowd.
            if index < 499 {
                assert_eq!(table.next_to_go(), Some(key(index)), "the oldest silent one");
            }
            table.remove(place);
        }
        assert_eq!((table.next_to_go(), table.len()), (Some(key(1000)), 2));
    }

    #[test]
    fn a_flood_that_speaks_does_not_cost_those_who_have_just_come() {
        let mut table = HalfOpenTable::default();
        for index in 0..100 {
            let place = table.push(prefix(1, 1), key(index));
            table.spoke(place);
        }
        table.push(prefix(2, 2), key(1000));
        assert_eq!(table.next_to_go(), Some(key(0)));
    }
}
