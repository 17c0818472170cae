//! Who the worker's memory is held for: bytes that wait and streams in the tables, by address prefix and then by key.
//!
//! In: that sessions, streams and bytes come and go, each with its *holder*, who is whoever dialled: what waits on a bridge, in either
//! direction, is there because somebody opened that bridge, and nobody can be made to hold anything by being dialled. Out: how much a
//! holder has, and whose turn it is to let go when memory is short: the largest prefix first, and there the largest key, because
//! keys are free and addresses are not.
//!
//! What a byte costs here is one addition when it begins to wait and one when it has left. Prefixes are summed up only when somebody
//! asks, which is when memory is short.

use hashbrown::HashMap;
use ringwire_proto::identity::PublicKey;

use crate::limits;
use crate::prefix::Prefix;
use crate::slab::{Key, Slab};

/// What a holder is known by. The address is that of its session when that began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    pub(crate) prefix: Prefix,
    pub(crate) peer: PublicKey,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    table: Slab<Holder>,
    by_name: HashMap<Name, Key>,
    /// Requests that are not complete, by where they come from.
    unfinished: HashMap<Prefix, Unfinished>,
    /// Dials that nobody has answered, by where they come from; and how many these are.
    dials: HashMap<Prefix, usize>,
    dials_len: usize,
    /// Holders that went above the bound given with the charge, each once.
    above: Vec<Key>,
}

#[derive(Debug)]
struct Holder {
    name: Name,
    /// Sessions, and streams in the tables: each is a reason to stay known.
    sessions: u32,
    streams: u32,
    /// Bytes that wait, or are with the kernel.
    bytes: usize,
    /// Streams whose request is not complete.
    unfinished: u32,
    /// Dials of it that nobody has answered.
    dials: usize,
    /// It is listed in `above`.
    is_above: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Unfinished {
    streams: u32,
    /// Holders that have some.
    holders: u32,
}

impl Holder {
    /// What it has in all, in bytes.
    fn len(&self) -> usize {
        self.bytes + self.streams as usize * limits::STREAM_LEN
    }
}

impl Holders {
    /// A session begins. Its holder is one that is known already, if what it left behind still waits.
    pub(crate) fn enter(&mut self, name: Name) -> Key {
        let key = self.find_or_insert(name);
        if let Some(holder) = self.table.find_mut(key) {
            holder.sessions += 1;
        }
        key
    }

    /// A session has ended.
    pub(crate) fn leave(&mut self, key: Key) {
        if let Some(holder) = self.table.find_mut(key) {
            holder.sessions -= 1;
        }
        self.forget_if_done(key);
    }

    /// The holder of this name, for a stream of it; count that with [`add_stream`](Self::add_stream).
    pub(crate) fn find_or_insert(&mut self, name: Name) -> Key {
        *self.by_name.entry(name).or_insert_with(|| {
            self.table.insert(Holder {
                name,
                sessions: 0,
                streams: 0,
                bytes: 0,
                unfinished: 0,
                dials: 0,
                is_above: false,
            })
        })
    }

    /// What a holder is known by.
    pub(crate) fn name(&self, key: Key) -> Option<Name> {
        Some(self.table.find(key)?.name)
    }

    /// A stream is in the tables.
    pub(crate) fn add_stream(&mut self, key: Key) {
        if let Some(holder) = self.table.find_mut(key) {
            holder.streams += 1;
        }
    }

    /// It is not any more.
    pub(crate) fn remove_stream(&mut self, key: Key) {
        if let Some(holder) = self.table.find_mut(key) {
            debug_assert!(holder.streams > 0, "only what was added is removed");
            holder.streams -= 1;
        }
        self.forget_if_done(key);
    }

    /// `len` bytes begin to wait; above `limit` in all the holder is listed for [`take_above`](Self::take_above).
    #[inline]
    pub(crate) fn charge(&mut self, key: Key, len: usize, limit: usize) {
        let Some(holder) = self.table.find_mut(key) else { return };
        holder.bytes += len;
        if holder.bytes > limit && !holder.is_above {
            holder.is_above = true;
            self.above.push(key);
        }
    }

    /// `len` bytes have left, or were dropped.
    #[inline]
    pub(crate) fn discharge(&mut self, key: Key, len: usize) {
        if len == 0 {
            return;
        }
        let Some(holder) = self.table.find_mut(key) else { return };
        debug_assert!(holder.bytes >= len, "only what was charged is discharged");
        holder.bytes = holder.bytes.saturating_sub(len);
        if holder.bytes == 0 {
            self.forget_if_done(key);
        }
    }

    /// A holder that went above the bound since it was asked last.
    pub(crate) fn take_above(&mut self) -> Option<Key> {
        let key = self.above.pop()?;
        if let Some(holder) = self.table.find_mut(key) {
            holder.is_above = false;
        }
        Some(key)
    }

    /// What a holder has, in bytes: what waits, and its streams in the tables.
    pub(crate) fn len_of(&self, key: Key) -> usize {
        self.table.find(key).map_or(0, Holder::len)
    }

    /// Bytes of a holder that wait or are with the kernel.
    pub(crate) fn bytes_of(&self, key: Key) -> usize {
        self.table.find(key).map_or(0, |holder| holder.bytes)
    }

    /// A request begins. False: its holder has as many unfinished ones as it may, or its prefix has and this holder has more than
    /// its share of them; then it is not counted.
    pub(crate) fn begin_request(&mut self, key: Key) -> bool {
        let Some(holder) = self.table.find_mut(key) else { return true };
        let of_prefix = self.unfinished.entry(holder.name.prefix).or_default();
        let is_first = holder.unfinished == 0;
        let holders = of_prefix.holders + u32::from(is_first);
        let share = (limits::UNFINISHED_PER_PREFIX_MAX / holders).max(1);
        if holder.unfinished >= limits::UNFINISHED_PER_SESSION_MAX
            || (of_prefix.streams >= limits::UNFINISHED_PER_PREFIX_MAX && holder.unfinished >= share)
        {
            return false;
        }
        holder.unfinished += 1;
        *of_prefix = Unfinished { streams: of_prefix.streams + 1, holders };
        true
    }

    /// A request that was counted is complete, or its stream is gone.
    pub(crate) fn end_request(&mut self, key: Key) {
        let Some(holder) = self.table.find_mut(key) else { return };
        debug_assert!(holder.unfinished > 0, "only what began ends");
        holder.unfinished -= 1;
        let (is_last, prefix) = (holder.unfinished == 0, holder.name.prefix);
        if let Some(of_prefix) = self.unfinished.get_mut(&prefix) {
            of_prefix.streams -= 1;
            of_prefix.holders -= u32::from(is_last);
            if of_prefix.streams == 0 {
                self.unfinished.remove(&prefix);
            }
        }
    }

    /// A dial begins, of `most` that this worker may have unanswered. False: there are as many already, or its holder has as many as
    /// it may, or, where room gets scarce, its prefix has its share; then it is not counted.
    pub(crate) fn begin_dial(&mut self, key: Key, most: usize) -> bool {
        let Some(holder) = self.table.find_mut(key) else { return true };
        let prefix = holder.name.prefix;
        let of_prefix = self.dials.get(&prefix).copied().unwrap_or(0);
        let prefixes = self.dials.len() + usize::from(of_prefix == 0);
        // The last quarter is for those who have few.
        let is_scarce = self.dials_len >= most - most / 4;
        if holder.dials >= limits::UNANSWERED_MAX
            || self.dials_len >= most
            || (is_scarce && of_prefix >= (most / 2 / prefixes).max(1))
        {
            return false;
        }
        holder.dials += 1;
        self.dials_len += 1;
        self.dials.insert(prefix, of_prefix + 1);
        true
    }

    /// A dial that was counted is answered, or over.
    pub(crate) fn end_dial(&mut self, key: Key) {
        let Some(holder) = self.table.find_mut(key) else { return };
        debug_assert!(holder.dials > 0, "only what began ends");
        holder.dials -= 1;
        self.dials_len -= 1;
        if let Some(of_prefix) = self.dials.get_mut(&holder.name.prefix) {
            *of_prefix -= 1;
            if *of_prefix == 0 {
                self.dials.remove(&holder.name.prefix);
            }
        }
    }

    /// Holders with streams, in the order in which they are to let go: those of the largest prefix first, and of each prefix the
    /// largest first. Walks all of them: for when memory is short.
    pub(crate) fn largest_first(&self) -> Vec<Key> {
        let by_prefix = self.by_prefix();
        let mut all: Vec<_> = self
            .table
            .iter()
            .filter(|(_, holder)| holder.streams > 0)
            .map(|(key, holder)| {
                let prefix = holder.name.prefix;
                (by_prefix.get(&prefix).copied().unwrap_or(0), prefix, holder.len(), key)
            })
            .collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.into_iter().map(|(.., key)| key).collect()
    }

    /// The prefix that has most.
    pub(crate) fn largest_prefix(&self) -> Option<Prefix> {
        let largest = self.by_prefix().into_iter().max_by_key(|&(prefix, len)| (len, prefix))?;
        Some(largest.0)
    }

    fn by_prefix(&self) -> HashMap<Prefix, usize> {
        let mut by_prefix: HashMap<Prefix, usize> = HashMap::new();
        for (_, holder) in self.table.iter() {
            *by_prefix.entry(holder.name.prefix).or_default() += holder.len();
        }
        by_prefix
    }

    /// Bytes that all of them have waiting, tables not counted.
    pub(crate) fn bytes(&self) -> usize {
        self.table.iter().map(|(_, holder)| holder.bytes).sum()
    }

    /// How many are known.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    fn forget_if_done(&mut self, key: Key) {
        let Some(holder) = self.table.find(key) else { return };
        if holder.sessions == 0 && holder.streams == 0 && holder.bytes == 0 {
            debug_assert_eq!((holder.unfinished, holder.dials), (0, 0), "each is a stream");
            self.by_name.remove(&holder.name);
            self.table.remove(key);
            if self.by_name.capacity() > SHRINK_ABOVE && self.by_name.len() < self.by_name.capacity() / 8 {
                self.by_name.shrink_to(2 * self.by_name.len());
            }
        }
    }
}

/// Places below which the table of names is not made smaller.
const SHRINK_ABOVE: usize = 1024;

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use ringwire_proto::identity::SecretKey;

    use super::*;
    use crate::entropy::OsEntropy;

    fn name(last: u8) -> Name {
        let prefix = Prefix::from(IpAddr::from([192, 0, 2, last]));
        Name { prefix, peer: SecretKey::generate(&mut OsEntropy).public_key() }
    }

    #[test]
    fn the_largest_prefix_goes_first_however_many_keys_it_has() {
        let mut holders = Holders::default();
        let many: Vec<Key> = (0..10).map(|_| holders.enter(name(1))).collect();
        let one = holders.enter(name(2));
        many.iter().chain([&one]).for_each(|&key| holders.add_stream(key));
        // What is with the kernel only cannot be let go of.
        let gone = holders.enter(name(1));
        holders.charge(gone, 5000, usize::MAX);
        for (at, &key) in many.iter().enumerate() {
            holders.charge(key, 100 + at, usize::MAX);
        }
        // More than any of them, and less than all together, what streams count for included.
        holders.charge(one, 6000, usize::MAX);
        let order = holders.largest_first();
        assert_eq!(order[0], many[9], "of the largest prefix, and there the largest key");
        assert_eq!((order[10], order.len()), (one, 11));
        assert_eq!(holders.largest_prefix(), holders.name(many[0]).map(|name| name.prefix));
        holders.discharge(gone, 5000);
        many[1..].iter().for_each(|&key| holders.remove_stream(key));
        assert_eq!(holders.largest_first()[0], one);
    }

    #[test]
    fn a_holder_is_known_until_its_last_byte_and_stream_have_left() {
        let mut holders = Holders::default();
        let name = name(1);
        let key = holders.enter(name);
        holders.add_stream(key);
        holders.charge(key, 10, usize::MAX);
        holders.leave(key);
        assert_eq!(holders.len_of(key), 10 + limits::STREAM_LEN);
        // Whoever comes back is met by what it left.
        assert_eq!(holders.enter(name), key);
        holders.leave(key);
        holders.remove_stream(key);
        assert_eq!((holders.len(), holders.bytes()), (1, 10));
        holders.discharge(key, 10);
        assert_eq!((holders.len(), holders.by_name.len()), (0, 0));
    }

    #[test]
    fn whoever_goes_above_the_bound_is_listed_once() {
        let mut holders = Holders::default();
        let (key, other) = (holders.enter(name(1)), holders.enter(name(2)));
        for _ in 0..3 {
            holders.charge(key, 60, 100);
            holders.charge(other, 10, 100);
        }
        assert_eq!((holders.take_above(), holders.take_above()), (Some(key), None));
        holders.charge(key, 1, 100);
        assert_eq!((holders.take_above(), holders.take_above()), (Some(key), None));
    }

    #[test]
    fn unfinished_requests_of_a_prefix_are_dealt_out_among_its_keys() {
        let mut holders = Holders::default();
        let greedy: Vec<Key> = (0..2 * limits::UNFINISHED_PER_PREFIX_MAX
            / limits::UNFINISHED_PER_SESSION_MAX)
            .map(|_| holders.enter(name(1)))
            .collect();
        let begun: Vec<u32> = greedy
            .iter()
            .map(|&key| (0..3000).map(|_| u32::from(holders.begin_request(key))).sum())
            .collect();
        assert!(begun.iter().all(|&begun| begun <= limits::UNFINISHED_PER_SESSION_MAX));
        assert!(begun[0] == limits::UNFINISHED_PER_SESSION_MAX, "one alone has its whole share");
        let all: u32 = begun.iter().sum();
        assert!(all <= 2 * limits::UNFINISHED_PER_PREFIX_MAX, "{all}");
        // A newcomer from there, and anybody from elsewhere.
        let (late, elsewhere) = (holders.enter(name(1)), holders.enter(name(2)));
        assert!(holders.begin_request(late) && holders.begin_request(elsewhere));
        for (&key, begun) in greedy.iter().zip(begun) {
            (0..begun).for_each(|_| holders.end_request(key));
        }
        holders.end_request(late);
        holders.end_request(elsewhere);
        assert!(holders.unfinished.is_empty());
    }

    #[test]
    fn unanswered_dials_are_bounded_and_leave_room_for_whoever_has_few() {
        const MOST: usize = 4 * limits::UNANSWERED_MAX;
        let mut holders = Holders::default();
        let greedy: Vec<Key> = (0..8).map(|_| holders.enter(name(1))).collect();
        let mut begun = Vec::new();
        for &key in &greedy {
            let of_key = (0..1000).filter(|_| holders.begin_dial(key, MOST)).count();
            assert!(of_key <= limits::UNANSWERED_MAX);
            begun.extend((0..of_key).map(|_| key));
        }
        assert_eq!(begun.len(), MOST / 4 * 3, "one address alone");
        let elsewhere = holders.enter(name(2));
        assert_eq!((0..100).filter(|_| holders.begin_dial(elsewhere, MOST)).count(), 100);
        // However many there are, no more than so many in all.
        let crowd: Vec<Key> = (3..=250).map(|last| holders.enter(name(last))).collect();
        let of_crowd: Vec<Key> = crowd
            .iter()
            .flat_map(|&key| std::iter::repeat_n(key, 10))
            .filter(|&key| holders.begin_dial(key, MOST))
            .collect();
        assert!(begun.len() + 100 + of_crowd.len() <= MOST);
        begun.into_iter().chain(of_crowd).for_each(|key| holders.end_dial(key));
        (0..100).for_each(|_| holders.end_dial(elsewhere));
        assert!(holders.dials.is_empty() && holders.dials_len == 0);
    }
}
