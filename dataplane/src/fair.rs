//! A queue of many flows, served in turns: what the handshake lane takes its jobs from, and the order in which half-open
//! connections stand.
//!
//! Each flow is first in, first out; flows take turns, one value each, and only those that have something take part, so a flow
//! alone gets everything. Any value can be taken out again by its key, and the oldest value of the largest flow is known: that
//! one goes first when there are too many. All of it costs a logarithm of the number of flows.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::slab::{Key, Slab};

/// Values of `T` in flows named by `F`. See the module's head.
#[derive(Debug)]
pub struct Fair<F, T> {
    entries: Slab<Entry<F, T>>,
    flows: BTreeMap<F, Flow>,
    /// Flows in the order of their turns, each that has something once; one that was emptied meanwhile is passed over.
    turns: VecDeque<F>,
    /// Flows by their number of values, and of equally large ones those with an older value last.
    sizes: BTreeSet<(usize, Reverse<u64>, F)>,
    /// Values that were ever pushed: how old each is.
    pushed: u64,
}

#[derive(Debug)]
struct Entry<F, T> {
    flow: F,
    value: T,
    /// Which push it came with.
    number: u64,
    /// Neighbours in the flow, the older one first.
    older: Key,
    newer: Key,
}

#[derive(Debug)]
struct Flow {
    oldest: Key,
    newest: Key,
    len: usize,
    /// It has a place in `turns`.
    has_turn: bool,
}

impl<F, T> Default for Fair<F, T> {
    fn default() -> Self {
        Self {
            entries: Slab::default(),
            flows: BTreeMap::new(),
            turns: VecDeque::new(),
            sizes: BTreeSet::new(),
            pushed: 0,
        }
    }
}

impl<F: Ord + Copy, T> Fair<F, T> {
    /// Puts a value behind the others of its flow.
    pub fn push(&mut self, flow: F, value: T) -> Key {
        let state = self.flows.entry(flow).or_insert(Flow {
            oldest: Key::NONE,
            newest: Key::NONE,
            len: 0,
            has_turn: false,
        });
        let number = self.pushed;
        self.pushed += 1;
        let former = self.entries.find(state.oldest).map(|entry| entry.number);
        let key = self.entries.insert(Entry { flow, value, number, older: state.newest, newer: Key::NONE });
        if let Some(newest) = self.entries.find_mut(state.newest) {
            newest.newer = key;
        } else {
            state.oldest = key;
        }
        state.newest = key;
        if let Some(oldest) = former {
            self.sizes.remove(&(state.len, Reverse(oldest), flow));
        }
        state.len += 1;
        self.sizes.insert((state.len, Reverse(former.unwrap_or(number)), flow));
        if !state.has_turn {
            state.has_turn = true;
            self.turns.push_back(flow);
        }
        key
    }

    /// A value, wherever it stands.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        Some(&mut self.entries.find_mut(key)?.value)
    }

    /// Takes a value out, wherever it stands.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let Entry { flow, value, number, older, newer } = self.entries.remove(key)?;
        if let Some(entry) = self.entries.find_mut(older) {
            entry.newer = newer;
        }
        if let Some(entry) = self.entries.find_mut(newer) {
            entry.older = older;
        }
        let state = self.flows.get_mut(&flow)?;
        // The oldest of the flow before, which may be the one that goes, and after.
        let former = self.entries.find(state.oldest).map_or(number, |entry| entry.number);
        if state.oldest == key {
            state.oldest = newer;
        }
        if state.newest == key {
            state.newest = older;
        }
        self.sizes.remove(&(state.len, Reverse(former), flow));
        state.len -= 1;
        if let Some(oldest) = self.entries.find(state.oldest) {
            self.sizes.insert((state.len, Reverse(oldest.number), flow));
        } else if !state.has_turn {
            self.flows.remove(&flow);
        } else if self.turns.len() > 2 * self.sizes.len() + TURNS_SPARE {
            self.sweep();
        }
        Some(value)
    }

    /// Drops the turns of flows that were emptied without having had theirs.
    fn sweep(&mut self) {
        let flows = &mut self.flows;
        self.turns.retain(|flow| {
            let has_some = flows.get(flow).is_some_and(|state| state.len > 0);
            if !has_some {
                flows.remove(flow);
            }
            has_some
        });
        self.turns.shrink_to(2 * self.turns.len() + TURNS_SPARE);
    }

    /// The oldest value of the flow whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        loop {
            let flow = self.turns.pop_front()?;
            let Some(state) = self.flows.get_mut(&flow) else { continue };
            if state.len == 0 {
                self.flows.remove(&flow);
                continue;
            }
            let (oldest, is_last) = (state.oldest, state.len == 1);
            state.has_turn = !is_last;
            if !is_last {
                self.turns.push_back(flow);
            }
            return self.remove(oldest);
        }
    }

    /// The oldest value of the largest flow, and of several equally large ones the oldest of all: no flow is spared, or goes
    /// first, for its name.
    pub fn oldest_of_largest(&self) -> Option<(Key, &T)> {
        let (_, _, flow) = self.sizes.last()?;
        let key = self.flows.get(flow)?.oldest;
        Some((key, &self.entries.find(key)?.value))
    }

    /// The newest value of the largest flow.
    pub fn newest_of_largest(&self) -> Option<(Key, &T)> {
        let (_, _, flow) = self.sizes.last()?;
        let key = self.flows.get(flow)?.newest;
        Some((key, &self.entries.find(key)?.value))
    }

    /// Values in all flows.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Values in one flow.
    pub fn len_of(&self, flow: &F) -> usize {
        self.flows.get(flow).map_or(0, |state| state.len)
    }
}

/// Turns of emptied flows that may stand in the list before it is swept.
const TURNS_SPARE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(fair: &mut Fair<char, u32>) -> Vec<u32> {
        std::iter::from_fn(|| fair.pop()).collect()
    }

    #[test]
    fn flows_take_turns_and_each_is_first_in_first_out() {
        let mut fair = Fair::default();
        for value in 0..4 {
            fair.push('a', value);
        }
        fair.push('b', 10);
        fair.push('b', 11);
        fair.push('c', 20);
        assert_eq!((fair.len(), fair.len_of(&'a'), fair.len_of(&'z')), (7, 4, 0));
        assert_eq!(drain(&mut fair), [0, 10, 20, 1, 11, 2, 3]);
        assert!(fair.is_empty() && fair.flows.is_empty() && fair.sizes.is_empty() && fair.turns.is_empty());
    }

    #[test]
    fn a_flow_alone_has_everything_and_a_newcomer_is_next() {
        let mut fair = Fair::default();
        for value in 0..1000 {
            fair.push('a', value);
        }
        assert_eq!((fair.pop(), fair.pop()), (Some(0), Some(1)));
        fair.push('b', 5000);
        assert_eq!((fair.pop(), fair.pop(), fair.pop()), (Some(2), Some(5000), Some(3)));
    }

    #[test]
    fn values_can_be_taken_out_from_anywhere() {
        let mut fair = Fair::default();
        let keys: Vec<Key> = (0..5).map(|value| fair.push('a', value)).collect();
        let other = fair.push('b', 9);
        for (key, value) in [(keys[2], 2), (keys[0], 0), (keys[4], 4), (other, 9)] {
            assert_eq!(fair.remove(key), Some(value));
            assert_eq!(fair.remove(key), None);
        }
        fair.push('a', 5);
        assert_eq!(drain(&mut fair), [1, 3, 5]);
        assert!(fair.flows.is_empty());
    }

    #[test]
    fn the_oldest_of_the_largest_flow_is_known() {
        let mut fair = Fair::default();
        assert!(fair.oldest_of_largest().is_none());
        fair.push('a', 1);
        for value in 10..14 {
            fair.push('b', value);
        }
        for expected in [10, 11, 12] {
            let (key, &value) = fair.oldest_of_largest().unwrap();
            assert_eq!(value, expected);
            fair.remove(key);
        }
        assert_eq!(fair.len(), 2);
    }

    #[test]
    fn of_equally_large_flows_the_one_with_the_oldest_value_is_named_whatever_its_name() {
        let mut fair = Fair::default();
        let first = fair.push('m', 0);
        for (flow, value) in [('a', 1), ('z', 2), ('b', 3)] {
            fair.push(flow, value);
        }
        assert_eq!(fair.oldest_of_largest(), Some((first, &0)), "neither the last name nor the newest");
        fair.remove(first);
        assert_eq!(fair.oldest_of_largest().map(|(_, &value)| value), Some(1));
        // Two values each: the older of the flow's two counts, and what has gone no longer does.
        for (flow, value) in [('z', 4), ('a', 5)] {
            fair.push(flow, value);
        }
        assert_eq!(fair.oldest_of_largest().map(|(_, &value)| value), Some(1));
        assert_eq!((fair.pop(), fair.pop()), (Some(1), Some(2)));
        assert_eq!(fair.oldest_of_largest().map(|(_, &value)| value), Some(3));
    }

    #[test]
    fn flows_that_come_and_go_without_a_turn_leave_nothing_behind() {
        let mut fair = Fair::default();
        for flow in 0..100_000_u32 {
            let key = fair.push(flow, flow);
            fair.remove(key);
        }
        assert!(fair.turns.len() <= 2 * TURNS_SPARE && fair.flows.len() <= 2 * TURNS_SPARE);
        assert_eq!(fair.pop(), None);
        assert!(fair.flows.is_empty());
    }

    proptest::proptest! {
        /// Against a model of plain vectors: whatever is pushed comes out once, in its flow's order, and no flow gets a second
        /// turn while another waits for its first.
        #[test]
        fn agrees_with_a_plain_model(steps in proptest::collection::vec((0_u8..4, 0_u8..6), 0..300)) {
            let mut fair = Fair::default();
            let mut model: Vec<(u8, u32, Key)> = Vec::new();
            for (number, (step, flow)) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 => {
                        let key = fair.push(flow, number as u32);
                        model.push((flow, number as u32, key));
                    }
                    2 if !model.is_empty() => {
                        let (_, value, key) = model.remove(number % model.len());
                        proptest::prop_assert_eq!(fair.remove(key), Some(value));
                    }
                    _ => {
                        let popped = fair.pop();
                        proptest::prop_assert_eq!(popped.is_some(), !model.is_empty());
                        if let Some(value) = popped {
                            let at = model.iter().position(|entry| entry.1 == value).unwrap();
                            let flow = model[at].0;
                            proptest::prop_assert!(model[..at].iter().all(|entry| entry.0 != flow));
                            model.remove(at);
                        }
                    }
                }
                proptest::prop_assert_eq!(fair.len(), model.len());
                for flow in 0..6 {
                    let len = model.iter().filter(|entry| entry.0 == flow).count();
                    proptest::prop_assert_eq!(fair.len_of(&flow), len);
                }
                let largest = (0..6_u8).map(|flow| fair.len_of(&flow)).max().unwrap();
                if let Some((_, value)) = fair.oldest_of_largest() {
                    let flow = model.iter().find(|entry| entry.1 == *value).unwrap().0;
                    proptest::prop_assert_eq!(fair.len_of(&flow), largest);
                    proptest::prop_assert_eq!(model.iter().find(|entry| entry.0 == flow).unwrap().1, *value);
                }
            }
        }
    }
}
