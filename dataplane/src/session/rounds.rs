//! Turns of bulk streams on one session: first between the sessions their bytes come from, then between the streams of each.
//!
//! Frames can be cut anywhere, so a turn is simply up to a quantum of bytes and no deficit has to be carried over. A source
//! with sixty-four streams gets the share of a source with one.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::planted::{self, Bug};
use crate::slab::Key;

/// Halves that have bulk to send, by source. Empty tables allocate nothing.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// Sources in the order of their turns, each once.
    order: VecDeque<Key>,
    halves: HashMap<Key, VecDeque<Key>>,
    /// Empty queues of former sources, for the next one.
    spare: Vec<VecDeque<Key>>,
}

/// Empty queues kept for reuse.
const SPARE_MAX: usize = 16;

impl Rounds {
    /// Puts a half behind the others of its source, and a new source behind the other sources.
    pub(crate) fn push(&mut self, source: Key, half: Key) {
        let (order, spare) = (&mut self.order, &mut self.spare);
        let queue = self.halves.entry(source).or_insert_with(|| {
            order.push_back(source);
            spare.pop().unwrap_or_default()
        });
        queue.push_back(half);
    }

    /// The half whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<Key> {
        let newest = planted::is(Bug::StarvationOfOneStream);
        let source = if newest { self.order.pop_back() } else { self.order.pop_front() }?;
        let queue = self.halves.get_mut(&source)?;
        let half = if newest { queue.pop_back() } else { queue.pop_front() };
        if queue.is_empty() {
            if let Some(queue) = self.halves.remove(&source)
                && self.spare.len() < SPARE_MAX
            {
                self.spare.push(queue);
            }
        } else {
            self.order.push_back(source);
        }
        half
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> Key {
        Key { index, generation: 0 }
    }

    #[test]
    fn sources_take_turns_whatever_their_number_of_streams() {
        let mut rounds = Rounds::default();
        let (many, one) = (key(1), key(2));
        for half in 10..14 {
            rounds.push(many, key(half));
        }
        rounds.push(one, key(20));
        let mut turns = Vec::new();
        for _ in 0..9 {
            let half = rounds.pop().unwrap();
            turns.push(half.index);
            // Whoever has more to send gets behind the others again.
            rounds.push(if half.index == 20 { one } else { many }, half);
        }
        assert_eq!(turns, [10, 20, 11, 20, 12, 20, 13, 20, 10]);
        assert_eq!(std::iter::from_fn(|| rounds.pop()).count(), 5);
        assert!(rounds.order.is_empty() && rounds.halves.is_empty());
    }
}
