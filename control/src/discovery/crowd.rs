//! Who leaves when there are too many entries of a kind.
//!
//! In: entries as they come, are proven and go. Out: whose turn it is to leave. Keys and signatures cost nothing, so entries
//! are counted by the source that brought them, and within it by age.
//!
//! An entry is *unproven* until it was renewed a while after it came, or its key has a session here: what a flood brings is.
//! Unproven entries leave first, of the source that has most of them the oldest; then the oldest of the source that has most
//! at all, if that is more than the newcomer's has. Size counts too: an entry weighs as much as one for each KiB.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use ringwire_proto::identity::PublicKey;

use super::source::Source;

/// Text that weighs as much as an entry itself, in bytes. An honest entry has half of it.
const WEIGHT_BYTES: usize = 1024;

/// Bounds on the entries of one kind.
#[derive(Debug, Clone, Copy)]
pub struct KindLimits {
    /// Entries; beyond it one leaves for each newcomer, see the module's head.
    pub entries_max: usize,
    /// Their text together, in bytes; the same.
    pub bytes_max: usize,
    /// Of the entries, from one address (IPv6: /64) that is not loopback; beyond it its oldest unproven one leaves, and when
    /// it has none the newcomer is refused.
    pub source_entries_max: usize,
    /// Of the bytes, from one address; the same.
    pub source_bytes_max: usize,
}

/// What the order of leaving depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    /// With whom it is counted.
    pub(super) source: Source,
    /// Rises with every post of the store.
    pub(super) order: u64,
    pub(super) proven: bool,
    /// Of its text.
    pub(super) bytes: usize,
}

impl Member {
    fn weight(&self) -> usize {
        1 + self.bytes / WEIGHT_BYTES
    }
}

/// Weight, then age of the oldest: the greatest is the next to lose one.
type Rank = (usize, Reverse<u64>, Source);

/// Entries of one source that leave in the order of their age.
#[derive(Debug, Default)]
struct Line {
    weight: usize,
    keys: BTreeMap<u64, PublicKey>,
}

impl Line {
    fn oldest(&self) -> Option<(u64, PublicKey)> {
        self.keys.first_key_value().map(|(order, key)| (*order, *key))
    }
}

#[derive(Debug, Default)]
struct Group {
    bytes: usize,
    unproven: Line,
    proven: Line,
}

impl Group {
    fn entries(&self) -> usize {
        self.unproven.keys.len() + self.proven.keys.len()
    }

    fn weight(&self) -> usize {
        self.unproven.weight + self.proven.weight
    }

    fn rank_of_unproven(&self, source: Source) -> Option<Rank> {
        let (order, _) = self.unproven.oldest()?;
        Some((self.unproven.weight, Reverse(order), source))
    }

    fn rank_of_proven(&self, source: Source) -> Option<Rank> {
        let (order, _) = self.proven.oldest()?;
        Some((self.weight(), Reverse(order), source))
    }

    fn line(&mut self, proven: bool) -> &mut Line {
        if proven { &mut self.proven } else { &mut self.unproven }
    }
}

/// The entries of one kind, by source.
#[derive(Debug)]
pub(super) struct Crowd {
    limits: KindLimits,
    entries: usize,
    bytes: usize,
    groups: HashMap<Source, Group>,
    /// Sources with unproven entries.
    unproven: BTreeSet<Rank>,
    /// Sources with proven entries, by the weight of all they have.
    proven: BTreeSet<Rank>,
}

impl Crowd {
    pub(super) fn new(limits: KindLimits) -> Self {
        Self {
            limits,
            entries: 0,
            bytes: 0,
            groups: HashMap::new(),
            unproven: BTreeSet::new(),
            proven: BTreeSet::new(),
        }
    }

    pub(super) fn add(&mut self, key: PublicKey, member: &Member) {
        self.entries += 1;
        self.bytes += member.bytes;
        self.change(member.source, |group| {
            group.bytes += member.bytes;
            let line = group.line(member.proven);
            line.weight += member.weight();
            line.keys.insert(member.order, key);
        });
    }

    /// Takes back an [`add`](Self::add) of the same member.
    pub(super) fn remove(&mut self, member: &Member) {
        self.entries -= 1;
        self.bytes -= member.bytes;
        self.change(member.source, |group| {
            group.bytes -= member.bytes;
            let line = group.line(member.proven);
            line.weight -= member.weight();
            line.keys.remove(&member.order);
        });
    }

    /// True when another entry of this length fits among those of all.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.entries < self.limits.entries_max && self.bytes + bytes <= self.limits.bytes_max
    }

    /// True when another entry of this length fits among those of its source.
    pub(super) fn fits_source(&self, source: Source, bytes: usize) -> bool {
        let limits = &self.limits;
        let group = self.groups.get(&source).filter(|_| source.is_bounded());
        group.is_none_or(|group| {
            group.entries() < limits.source_entries_max && group.bytes + bytes <= limits.source_bytes_max
        })
    }

    /// True from three quarters of a bound on: the order of leaving may soon matter.
    pub(super) fn is_dense(&self) -> bool {
        let dense = |have: usize, max: usize| have / 3 >= max / 4;
        dense(self.entries, self.limits.entries_max) || dense(self.bytes, self.limits.bytes_max)
    }

    /// Who leaves so that `source` may have another entry, if anybody of its own can.
    pub(super) fn leaver_of(&self, source: Source) -> Option<PublicKey> {
        self.groups.get(&source)?.unproven.oldest().map(|(_, key)| key)
    }

    /// Who leaves so that `newcomer` may have another entry, if anybody must make room for it.
    pub(super) fn leaver(&self, newcomer: Source) -> Option<PublicKey> {
        if let Some((_, _, source)) = self.unproven.last() {
            return self.leaver_of(*source);
        }
        let (weight, _, source) = self.proven.last()?;
        let has = self.groups.get(&newcomer).map_or(0, Group::weight);
        let group = self.groups.get(source).filter(|_| *weight > has)?;
        group.proven.oldest().map(|(_, key)| key)
    }

    /// Changes a group and its place in the ranks.
    fn change(&mut self, source: Source, change: impl FnOnce(&mut Group)) {
        let group = self.groups.entry(source).or_default();
        let before = (group.rank_of_unproven(source), group.rank_of_proven(source));
        change(group);
        let after = (group.rank_of_unproven(source), group.rank_of_proven(source));
        if group.entries() == 0 {
            self.groups.remove(&source);
        }
        for (ranks, before, after) in
            [(&mut self.unproven, before.0, after.0), (&mut self.proven, before.1, after.1)]
        {
            if before != after {
                before.map(|rank| ranks.remove(&rank));
                ranks.extend(after);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ringwire_proto::identity::SecretKey;

    use super::*;

    fn key(number: u8) -> PublicKey {
        SecretKey::from_bytes(&[number; 32]).unwrap().public_key()
    }

    fn source(number: u8) -> Source {
        Source::Network(std::net::IpAddr::from([203, 0, 113, number]).into())
    }

    fn member(of: u8, order: u64, proven: bool) -> Member {
        Member { source: source(of), order, proven, bytes: 500 }
    }

    fn crowd(members: &[(u8, Member)]) -> Crowd {
        let limits = KindLimits {
            entries_max: 10,
            bytes_max: 100_000,
            source_entries_max: 3,
            source_bytes_max: 10_000,
        };
        let mut crowd = Crowd::new(limits);
        for (number, member) in members {
            crowd.add(key(*number), member);
        }
        crowd
    }

    #[test]
    fn the_oldest_unproven_of_the_largest_source_leaves_first() {
        let mut members = vec![
            (1, member(1, 1, false)),
            (2, member(2, 2, false)),
            (3, member(2, 3, false)),
            (4, member(3, 4, true)),
            (5, member(3, 5, true)),
            (6, member(4, 0, true)),
        ];
        let mut crowd = crowd(&members);
        let mut left = Vec::new();
        while let Some(leaver) = crowd.leaver(source(9)) {
            let at = members.iter().position(|(number, _)| key(*number) == leaver).unwrap();
            let (number, member) = members.remove(at);
            crowd.remove(&member);
            left.push(number);
        }
        assert_eq!(left, [2, 1, 3, 4, 6, 5]);
        assert!(crowd.groups.is_empty() && crowd.unproven.is_empty() && crowd.proven.is_empty());
        assert_eq!((crowd.entries, crowd.bytes), (0, 0));
    }

    #[test]
    fn who_has_as_much_as_the_largest_makes_nobody_leave() {
        let crowd = crowd(&[(1, member(1, 1, true)), (2, member(2, 2, true))]);
        assert_eq!(crowd.leaver(source(1)), None);
        assert_eq!(crowd.leaver(source(3)), Some(key(1)));
    }

    #[test]
    fn a_long_entry_weighs_as_much_as_many() {
        let long = Member { bytes: 8 * WEIGHT_BYTES, ..member(2, 9, false) };
        let crowd = crowd(&[(1, member(1, 1, false)), (2, member(1, 2, false)), (3, long)]);
        assert_eq!(crowd.leaver(source(1)), Some(key(3)));
        assert!(!crowd.fits_source(source(2), 2000), "bytes of one source are bounded");
        assert!(crowd.fits_source(source(1), 2000));
    }

    #[test]
    fn the_bounds_on_a_source_do_not_hold_for_loopback() {
        let local = Source::Network(std::net::IpAddr::from([127, 0, 0, 1]).into());
        let mut crowd = crowd(&[]);
        for number in 1..=5 {
            assert!(crowd.fits_source(local, 500));
            crowd.add(key(number), &Member { source: local, ..member(0, u64::from(number), false) });
        }
        assert!(crowd.fits_source(local, 500));
    }
}
