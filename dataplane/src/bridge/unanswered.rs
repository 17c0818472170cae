//! Dials of one session that its peer has not answered, dealt out among those who dial.
//!
//! A peer takes so many unaccepted streams and no more (256 with the Go peers of 2024, dmsg-wire 5.1), and one that was offered cannot be
//! taken back: a client of 2024 ends its session over that (quirk, dmsg-wire 10.3). So the last quarter is for those who have few:
//! first by address prefix, then by key.

use std::collections::VecDeque;

use crate::holders::Name;
use crate::limits;
use crate::slab::Key;

/// See the module's head. In the order of dialling; empty it allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Unanswered(VecDeque<(Key, Name)>);

impl Unanswered {
    /// Whether somebody may dial: there is room, and where it gets scarce this one has less than its share.
    pub(crate) fn admits(&self, name: Name) -> bool {
        if self.0.len() < limits::UNANSWERED_FREE_MAX {
            return true;
        }
        if self.0.len() >= limits::UNANSWERED_MAX {
            return false;
        }
        let (mut prefixes, mut keys) = (vec![name.prefix], vec![name.peer]);
        let (mut of_prefix, mut of_key) = (0, 0);
        for (_, other) in &self.0 {
            prefixes.push(other.prefix);
            if other.prefix == name.prefix {
                of_prefix += 1;
                of_key += usize::from(other.peer == name.peer);
                keys.push(other.peer);
            }
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        keys.sort_unstable();
        keys.dedup();
        // Half of all among those who dial now: the rest is for whoever comes.
        let share = (limits::UNANSWERED_MAX / 2 / prefixes.len()).max(1);
        let has_room = self.0.len() < limits::UNANSWERED_ALONE_MAX && prefixes.len() == 1;
        (has_room || of_prefix < share) && of_key < (share / keys.len()).max(1)
    }

    /// A dial is under way.
    pub(crate) fn push(&mut self, half: Key, name: Name) {
        self.0.push_back((half, name));
    }

    /// It was answered, or is over.
    pub(crate) fn remove(&mut self, half: Key) {
        // Answers come about in the order of the dials.
        if let Some(at) = self.0.iter().position(|&(other, _)| other == half) {
            self.0.remove(at);
        }
        if self.0.is_empty() && self.0.capacity() > 0 {
            self.0.shrink_to(limits::UNANSWERED_KEPT);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use ringwire_proto::identity::SecretKey;

    use super::*;
    use crate::entropy::OsEntropy;
    use crate::prefix::Prefix;

    fn name(last: u8) -> Name {
        let prefix = Prefix::from(IpAddr::from([192, 0, 2, last]));
        Name { prefix, peer: SecretKey::generate(&mut OsEntropy).public_key() }
    }

    /// Dials as often as it may, `most` times at most; how often it did.
    fn dial(unanswered: &mut Unanswered, name: Name, most: usize, next: &mut u32) -> usize {
        (0..most)
            .filter(|_| {
                let admitted = unanswered.admits(name);
                if admitted {
                    *next += 1;
                    unanswered.push(Key { index: *next, generation: 0 }, name);
                }
                admitted
            })
            .count()
    }

    #[test]
    fn whoever_dials_most_leaves_room_for_whoever_comes() {
        let (mut unanswered, mut next) = (Unanswered::default(), 0);
        let (greedy, other_key, elsewhere) = (name(1), name(1), name(2));
        let other_key = Name { prefix: greedy.prefix, ..other_key };
        assert_eq!(dial(&mut unanswered, greedy, 1000, &mut next), limits::UNANSWERED_FREE_MAX);
        assert!(dial(&mut unanswered, other_key, 10, &mut next) == 10, "another key of that prefix");
        assert!(dial(&mut unanswered, elsewhere, 10, &mut next) == 10, "another prefix");
        assert_eq!(dial(&mut unanswered, greedy, 1000, &mut next), 0);
        assert!(unanswered.0.len() <= limits::UNANSWERED_MAX);
        // As answers come, those with few are served and those with many are not.
        for index in 1..=20 {
            unanswered.remove(Key { index, generation: 0 });
        }
        assert_eq!(dial(&mut unanswered, elsewhere, 20, &mut next), 20);
        while next > 0 {
            unanswered.remove(Key { index: next, generation: 0 });
            next -= 1;
        }
        assert!(unanswered.0.is_empty());
    }

    #[test]
    fn many_keys_of_one_prefix_do_not_keep_another_prefix_out() {
        let (mut unanswered, mut next) = (Unanswered::default(), 0);
        let prefix = name(1).prefix;
        for _ in 0..300 {
            dial(&mut unanswered, Name { prefix, ..name(1) }, 3, &mut next);
        }
        assert!(unanswered.0.len() < limits::UNANSWERED_MAX, "{}", unanswered.0.len());
        assert!(unanswered.admits(name(2)));
    }
}
