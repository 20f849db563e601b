//! Table: a shard of the map from hashes to nodes, 6 bytes an entry.
//!
//! # Overview
//! An entry is a part of the hash, the *tag*, and the number of the node where the block stands. Entries are
//! sorted by tag, with gaps: an entry stands at its *home*, which is in proportion to its tag, or behind it
//! if that is taken (linear probing, kept in order). So a search ends at the first greater tag, and a table
//! grows by any factor in one pass over memory, without the hashes: by a seventh, so that it stays 75 to 86 %
//! full while it grows. Fuller, and an insert has more to move: 25 entries at 86 %, 50 at 90 %.
//!
//! A tag does not tell two hashes apart for sure: whoever looks up checks in the node. [`Table::version`]
//! changes with the entries, so that "not in any of these nodes" can be told from "it just moved";
//! [`Table::inserts`] tells whether a block that was absent can have come since.

use super::account::{Account, allocated};
use super::prefetch::prefetch;

/// Bits of a tag. With 10 bits for the shard, one of 430 lookups in 1e7 blocks meets another's tag.
pub(super) const TAG_BITS: u32 = 22;
/// Nodes are numbered below 2 to the power of that, less one.
pub(super) const NODE_BITS: u32 = 26;
/// Bytes of an entry in half words.
const WORDS: usize = 3;
const _: () = assert!(TAG_BITS + NODE_BITS == WORDS as u32 * 16);

/// Sorts behind every entry: no node has the last number.
const GAP: [u16; WORDS] = [u16::MAX; WORDS];
/// Slots behind the last home, for entries that found theirs taken; more are added when they are needed.
const TAIL: usize = 16;
/// Below that many homes a table does not shrink.
const HOMES_MIN: u32 = 8;

/// Sorted entries with gaps.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<[u16; WORDS]>,
    /// 4 bytes each, so that a shard is one cache line.
    homes: u32,
    used: u32,
    version: u32,
    inserts: u32,
}

/// Where a table's entries are, or were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) address: usize,
    pub(super) homes: usize,
}

impl Spot {
    fn home(tag: u32, homes: usize) -> usize {
        ((u64::from(tag) * homes as u64) >> TAG_BITS) as usize
    }

    /// A search or an insert of the tag is about to come.
    pub(super) fn prefetch(self, tag: u32) {
        let address = self.address + Self::home(tag, self.homes) * size_of::<[u16; WORDS]>();
        prefetch(address);
        // A search reaches the next line now and then, an insert moves entries up to it mostly.
        prefetch(address + 64);
    }
}

/// An entry was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// There is one with the same tag, which may be that of the same block.
    Similar,
    /// The budget does not have the memory.
    Full,
}

fn unpack(slot: [u16; WORDS]) -> u64 {
    u64::from(slot[0]) << 32 | u64::from(slot[1]) << 16 | u64::from(slot[2])
}

fn pack(tag: u32, node: u32) -> [u16; WORDS] {
    let entry = u64::from(tag) << NODE_BITS | u64::from(node);
    [(entry >> 32) as u16, (entry >> 16) as u16, entry as u16]
}

fn tag_of(slot: [u16; WORDS]) -> u32 {
    (unpack(slot) >> NODE_BITS) as u32
}

fn node_of(slot: [u16; WORDS]) -> u32 {
    (unpack(slot) & ((1 << NODE_BITS) - 1)) as u32
}

impl Table {
    /// Changes whenever an entry comes, goes or leads elsewhere.
    pub(super) fn version(&self) -> u32 {
        self.version
    }

    /// Changes whenever an entry comes: until then a block that is absent stays so.
    pub(super) fn inserts(&self) -> u32 {
        self.inserts
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        allocated::<[u16; WORDS]>(self.slots.capacity())
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used as usize
    }

    fn home(&self, tag: u32) -> usize {
        Spot::home(tag, self.homes as usize)
    }

    /// Where entries with the tag begin, or would.
    fn start(&self, tag: u32) -> usize {
        let home = self.home(tag);
        let smaller = self.slots[home..].iter().take_while(|slot| tag_of(**slot) < tag);
        home + smaller.count()
    }

    fn similar(&self, tag: u32) -> impl Iterator<Item = (usize, u32)> {
        let start = self.start(tag);
        let same = self.slots[start..].iter().take_while(move |slot| **slot != GAP && tag_of(**slot) == tag);
        (start..).zip(same.map(|slot| node_of(*slot)))
    }

    /// Nodes of the entries with that tag.
    pub(super) fn nodes(&self, tag: u32) -> impl Iterator<Item = u32> {
        self.similar(tag).map(|(_, node)| node)
    }

    /// Where the entries are, for [`Spot::prefetch`].
    pub(super) fn spot(&self) -> Spot {
        Spot { address: self.slots.as_ptr().addr(), homes: self.homes as usize }
    }

    /// Adds an entry, if no other has its tag or if the caller knows that its block had none at that
    /// number of [`inserts`](Self::inserts).
    pub(super) fn insert(
        &mut self,
        tag: u32,
        node: u32,
        absent_at: Option<u32>,
        account: &Account,
    ) -> Result<(), Refused> {
        if u64::from(self.used + 1) * 100 > u64::from(self.homes) * 86 && !self.resize(self.used + 1, account)
        {
            // Slower when fuller, but there are gaps still.
            let room = self.used + 1 + self.homes / 32 < self.homes;
            if !room {
                return Err(Refused::Full);
            }
        }
        let start = self.start(tag);
        if absent_at != Some(self.inserts)
            && self.slots.get(start).is_some_and(|slot| *slot != GAP && tag_of(*slot) == tag)
        {
            return Err(Refused::Similar);
        }
        let gap = start + self.slots[start..].iter().take_while(|slot| **slot != GAP).count();
        if gap == self.slots.len() && !self.lengthen(account) {
            return Err(Refused::Full);
        }
        self.slots.copy_within(start..gap, start + 1);
        self.slots[start] = pack(tag, node);
        self.used += 1;
        self.version = self.version.wrapping_add(1);
        self.inserts = self.inserts.wrapping_add(1);
        Ok(())
    }

    /// Takes out one entry with that tag and node; whether there was one.
    pub(super) fn remove(&mut self, tag: u32, node: u32, account: &Account) -> bool {
        let Some((at, _)) = self.similar(tag).find(|(_, other)| *other == node) else { return false };
        // Those behind that are not at home move up.
        let away = (at + 1..self.slots.len())
            .take_while(|at| self.slots[*at] != GAP && self.home(tag_of(self.slots[*at])) < *at)
            .count();
        self.slots.copy_within(at + 1..at + 1 + away, at);
        self.slots[at + away] = GAP;
        self.used -= 1;
        self.version = self.version.wrapping_add(1);
        if self.homes > HOMES_MIN && self.used < self.homes / 2 {
            // Without the memory for a smaller one it stays as it is.
            let _ = self.resize(self.used, account);
        }
        true
    }

    /// Lets one entry with that tag and node lead to another node.
    pub(super) fn lead(&mut self, tag: u32, from: u32, to: u32) {
        let at = self.similar(tag).find(|(_, node)| *node == from).map(|(at, _)| at);
        debug_assert!(at.is_some(), "the entry is there as long as the block is");
        if let Some(at) = at {
            self.slots[at] = pack(tag, to);
            self.version = self.version.wrapping_add(1);
        }
    }

    /// Makes it 3/4 full with `used` entries; whether the budget has the memory.
    pub(super) fn resize(&mut self, used: u32, account: &Account) -> bool {
        let homes = if used == 0 { 0 } else { (used + used / 3).max(HOMES_MIN) };
        let length = if homes == 0 { 0 } else { homes as usize + TAIL };
        if !account.take(allocated::<[u16; WORDS]>(length)) {
            return false;
        }
        let mut slots = Vec::with_capacity(length);
        slots.resize(length, GAP);
        let old = std::mem::replace(&mut self.slots, slots);
        self.homes = homes;
        let mut next = 0;
        for slot in old.iter().filter(|slot| **slot != GAP) {
            let at = next.max(self.home(tag_of(*slot)));
            if at == self.slots.len() {
                // Many alike at the end. The memory is there already in all but contrived cases.
                account.force(self.longer());
                self.lengthen_taken();
            }
            self.slots[at] = *slot;
            next = at + 1;
        }
        account.give(allocated::<[u16; WORDS]>(old.capacity()));
        true
    }

    /// What [`lengthen`](Self::lengthen) costs.
    fn longer(&self) -> usize {
        let capacity = self.slots.capacity();
        allocated::<[u16; WORDS]>(self.slots.len() + TAIL).saturating_sub(allocated::<[u16; WORDS]>(capacity))
    }

    /// Adds slots at the end; whether the budget has the memory.
    fn lengthen(&mut self, account: &Account) -> bool {
        let taken = account.take(self.longer());
        if taken {
            self.lengthen_taken();
        }
        taken
    }

    fn lengthen_taken(&mut self) {
        self.slots.reserve_exact(TAIL);
        self.slots.extend([GAP; TAIL]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn check(table: &Table, model: &BTreeSet<(u32, u32)>) {
        let entries: Vec<_> = table
            .slots
            .iter()
            .filter(|slot| **slot != GAP)
            .map(|slot| (tag_of(*slot), node_of(*slot)))
            .collect();
        assert!(entries.is_sorted_by_key(|(tag, _)| *tag));
        assert_eq!(entries.len(), table.used());
        assert_eq!(&entries.iter().copied().collect::<BTreeSet<_>>(), model);
        for (at, slot) in table.slots.iter().enumerate().filter(|(_, slot)| **slot != GAP) {
            let home = table.home(tag_of(*slot));
            assert!(home <= at && table.slots[home..at].iter().all(|slot| *slot != GAP), "it can't be found");
        }
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_pairs(
            spread in prop_oneof![Just(1u32), Just(1 << 12), Just(1 << 17)],
            ops in proptest::collection::vec((any::<bool>(), 0u32..32, 0u32..4), 1..400),
        ) {
            let account = Account::new(usize::MAX);
            let mut table = Table::default();
            let mut model = BTreeSet::new();
            for (insert, tag, node) in ops {
                // Dense at one end of the table, or spread over it.
                let tag = ((1 << TAG_BITS) - 1) - tag * spread;
                let nodes: BTreeSet<_> = table.nodes(tag).collect();
                let expect: BTreeSet<_> =
                    model.range((tag, 0)..=(tag, u32::MAX)).map(|(_, node)| *node).collect();
                prop_assert_eq!(&nodes, &expect);
                if !insert {
                    prop_assert_eq!(table.remove(tag, node, &account), model.remove(&(tag, node)));
                } else if nodes.contains(&node) {
                    table.lead(tag, node, 9 + node);
                    table.lead(tag, 9 + node, node);
                } else {
                    let inserts = table.inserts();
                    let similar = if nodes.is_empty() { Ok(()) } else { Err(Refused::Similar) };
                    prop_assert_eq!(table.insert(tag, node, Some(inserts.wrapping_sub(1)), &account), similar);
                    if similar.is_err() {
                        prop_assert_eq!(table.insert(tag, node, Some(inserts), &account), Ok(()));
                    }
                    model.insert((tag, node));
                }
                check(&table, &model);
                prop_assert_eq!(account.bytes(), allocated::<[u16; WORDS]>(table.slots.capacity()));
            }
            for (tag, node) in model {
                prop_assert!(table.remove(tag, node, &account));
            }
            prop_assert!(table.slots.len() <= HOMES_MIN as usize + 40 * TAIL);
        }
    }

    #[test]
    fn it_stays_full_while_it_grows_and_shrinks_when_it_empties() {
        let account = Account::new(usize::MAX);
        let mut table = Table::default();
        let tag = |number: u32| number.wrapping_mul(0x9E37_79B1) >> (32 - TAG_BITS);
        for number in 0..20_000 {
            let inserts = table.inserts();
            table.insert(tag(number), number, Some(inserts), &account).unwrap();
            if number > 1000 {
                let entry_bytes = account.bytes() as f64 / f64::from(number);
                assert!((6.0..8.3).contains(&entry_bytes), "{number}: {entry_bytes}");
            }
        }
        for number in 0..19_000 {
            assert!(table.remove(tag(number), number, &account));
        }
        assert!(account.bytes() < 20_000, "{}", account.bytes());
    }

    #[test]
    fn a_table_without_budget_says_so() {
        let account = Account::new(4000);
        let mut table = Table::default();
        let full = (0..).find_map(|number| {
            let inserts = table.inserts();
            table.insert(number * 4099, number, Some(inserts), &account).err()
        });
        assert_eq!(full, Some(Refused::Full));
        assert!(account.bytes() <= 4000 && table.used() > 250, "{} {}", account.bytes(), table.used());
    }
}
