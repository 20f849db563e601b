//! Tail-first LRU: the least recently used block among those with nothing resident behind them.
//!
//! # Overview
//! A block whose parent is gone can't be matched, so only *tails*, blocks without a resident child, are
//! dropped; a block becomes a tail when the last one behind it goes. Each use gives a block a fresh number
//! from a counter, and the tails stand in a tree by that number. A touched prefix is numbered from its tail
//! to its head: all of it is newer than anything used before, and its tail goes before its head.
//!
//! A tail that may not go is in use, which is a use like any other: it gets a fresh number, and so moves
//! behind all other tails. Without that, tails on long leases would stand at the front and be asked about
//! again for every victim.
//!
//! # Limits
//! - `insert`, `remove`: O(log tails). `touch`: a hash lookup a block, and O(log tails) for each that is a tail.
//! - `victim`: O((1 + refusals) log tails). A tail that was refused is not asked about again before each tail
//!   that was older than the refusal has gone, been used, or been refused too. So on average there is less
//!   than one refusal a victim while fewer than half of the tails are refused. The worst case, all of
//!   them refused, asks about each tail once a call.
//! - Memory: an entry a resident block, one more for each parent that is not resident, one a tail.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{BuildHasher, Hash};

use super::upcoming::peel;
use super::{GLANCE_KEYS, Policy, Weight, glance};

/// Numbers of uses have this bit; those of demoted blocks do not, and so are older than any use.
const USED: u64 = 1 << 63;

/// Least recently used first, tails before what they stand on. `H` hashes the keys: where these are uniform
/// hashes already, a hasher that passes them through saves most of a touch.
pub struct TailFirstLru<K, H = RandomState> {
    blocks: HashMap<K, Block<K>, H>,
    /// Resident blocks without resident children, by last use.
    tails: BTreeMap<u64, K>,
    resident: usize,
    /// The next use gets this number.
    next_use: u64,
}

/// A resident block, or one that is gone but has resident children.
struct Block<K> {
    /// Number of its last use; `None` if it is not resident.
    last_use: Option<u64>,
    parent: Option<K>,
    /// Resident children.
    children: usize,
}

impl<K> Block<K> {
    fn absent() -> Self {
        Self { last_use: None, parent: None, children: 0 }
    }
}

impl<K, H> fmt::Debug for TailFirstLru<K, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tails = self.tails.len();
        f.debug_struct("TailFirstLru").field("resident", &self.resident).field("tails", &tails).finish()
    }
}

impl<K: Copy + Eq + Hash, H: BuildHasher + Default> TailFirstLru<K, H> {
    /// A policy that knows no block.
    pub fn new() -> Self {
        Self { blocks: HashMap::default(), tails: BTreeMap::new(), resident: 0, next_use: USED }
    }
}

impl<K: Copy + Eq + Hash, H: BuildHasher + Default> Default for TailFirstLru<K, H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Copy + Eq + Hash, H: BuildHasher> TailFirstLru<K, H> {
    /// Numbers a use of a resident block.
    fn renew(&mut self, key: K) {
        self.renumber(key, self.next_use);
    }

    fn renumber(&mut self, key: K, number: u64) {
        let Some(block) = self.blocks.get_mut(&key) else { return };
        let Some(last_use) = &mut block.last_use else { return };
        let before = std::mem::replace(last_use, number);
        if block.children == 0 {
            self.tails.remove(&before);
            self.tails.insert(number, key);
        }
        self.next_use += 1;
    }

    /// Counts a child that came in.
    fn add_child(&mut self, key: K) {
        let block = self.blocks.entry(key).or_insert_with(Block::absent);
        block.children += 1;
        if let Some(last_use) = block.last_use {
            self.tails.remove(&last_use);
        }
    }

    /// Counts a child that went.
    fn drop_child(&mut self, key: K) {
        let Some(block) = self.blocks.get_mut(&key) else { return };
        block.children -= 1;
        match block.last_use {
            _ if block.children > 0 => {}
            Some(last_use) => drop(self.tails.insert(last_use, key)),
            None => drop(self.blocks.remove(&key)),
        }
    }
}

impl<K, H> Policy<K> for TailFirstLru<K, H>
where
    K: Copy + Eq + Hash + Send,
    H: BuildHasher + Default + Send,
{
    fn insert(&mut self, key: K, parent: Option<K>, _weight: Weight) {
        let block = self.blocks.entry(key).or_insert_with(Block::absent);
        if block.last_use.is_some() {
            self.renew(key);
            return;
        }
        block.last_use = Some(self.next_use);
        block.parent = parent;
        if block.children == 0 {
            self.tails.insert(self.next_use, key);
        }
        self.next_use += 1;
        self.resident += 1;
        if let Some(parent) = parent {
            self.add_child(parent);
        }
    }

    fn touch(&mut self, prefix: &[K]) {
        for part in prefix.rchunks(GLANCE_KEYS) {
            glance(&self.blocks, part, |block| block.children);
            part.iter().rev().for_each(|key| self.renew(*key));
        }
    }

    fn remove(&mut self, key: K) -> bool {
        let Some(block) = self.blocks.get_mut(&key) else { return false };
        let Some(last_use) = block.last_use.take() else { return false };
        let parent = block.parent.take();
        if block.children == 0 {
            self.tails.remove(&last_use);
            self.blocks.remove(&key);
        }
        self.resident -= 1;
        if let Some(parent) = parent {
            self.drop_child(parent);
        }
        true
    }

    fn victim(&mut self, may_evict: &mut dyn FnMut(&K) -> bool) -> Option<K> {
        // Numbers from here on are of tails that were refused in this call.
        let refused_from = self.next_use;
        loop {
            let (last_use, key) = self.tails.first_key_value().map(|(last_use, key)| (*last_use, *key))?;
            if last_use >= refused_from {
                return None;
            }
            if may_evict(&key) {
                return Some(key);
            }
            self.renew(key);
        }
    }

    fn demote(&mut self, key: K) {
        self.renumber(key, self.next_use & !USED);
    }

    fn upcoming(&self, blocks: usize) -> Vec<K> {
        let children = |key: &K| self.blocks.get(key).map_or(0, |block| block.children);
        let above = |key: &K| {
            let parent = self.blocks.get(key)?.parent?;
            Some((self.blocks.get(&parent)?.last_use?, parent))
        };
        let tails = self.tails.iter().map(|(last_use, key)| (*last_use, *key));
        peel::<K, _, H>(blocks, tails, children, above)
    }

    fn set_capacity(&mut self, _blocks: usize) {}

    fn reserve(&mut self, blocks: usize) {
        self.blocks.reserve(blocks);
    }

    fn contains(&self, key: &K) -> bool {
        self.blocks.get(key).is_some_and(|block| block.last_use.is_some())
    }

    fn parent(&self, key: &K) -> Option<K> {
        self.blocks.get(key)?.parent
    }

    fn len(&self) -> usize {
        self.resident
    }
}
