//! The store that all workers share: DRAM, NVMe and S3 behind the engines' memory.
//!
//! Each tier has the eviction order of the real one ([`Order`]) under the virtual clock. What a full tier
//! drops goes into the next one, and what is used comes back into DRAM.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::time::Duration;

use kelvin_kvstore::HashMixer;
use kelvin_tiering::{Attributes, Order, PolicyKind};

use super::clock::Nanos;

type Hasher = BuildHasherDefault<HashMixer>;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// DRAM of this node.
    Dram,
    /// DRAM of another node.
    Network,
    Nvme,
    S3,
    /// The memory of another engine.
    Device,
}

impl Source {
    pub(crate) const ALL: [Self; 5] = [Self::Dram, Self::Network, Self::Nvme, Self::S3, Self::Device];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dram => "DRAM",
            Self::Network => "DRAM of other nodes",
            Self::Nvme => "NVMe",
            Self::S3 => "S3",
            Self::Device => "other engines",
        }
    }
}

/// Blocks of a prompt that follow each other in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) source: Source,
    /// Whose DRAM; `None` where there is one node.
    pub(crate) node: Option<u16>,
    pub(crate) blocks: usize,
}

/// Blocks that each tier has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) dram: usize,
    pub(crate) nvme: usize,
    /// Whether there is an object store, which is never full.
    pub(crate) s3: bool,
}

/// A tier of some size.
struct Tier {
    capacity: usize,
    order: Order<u64, Hasher>,
}

impl Tier {
    fn new(policy: PolicyKind, capacity: usize) -> Self {
        Self { capacity, order: Order::new(policy, capacity) }
    }

    /// Takes a block in; what went for it.
    fn insert(&mut self, key: u64, parent: Option<u64>, now: Duration) -> Option<u64> {
        let mut gone = None;
        if self.order.len() >= self.capacity {
            // The parent of what comes stays: without it the block could not be found.
            let (victim, _) = self.order.victim(now, &mut |key| Some(*key) != parent)?;
            self.order.remove(victim);
            gone = Some(victim);
        }
        self.order.insert(key, parent, Attributes::default());
        gone
    }
}

/// See the module.
pub(crate) struct Store {
    dram: Tier,
    nvme: Tier,
    s3: Option<HashSet<u64, Hasher>>,
    /// The node that stored a block first; of one node alone nothing is noted.
    homes: HashMap<u64, u16, Hasher>,
    /// What a block stands behind, as long as it is in a tier below DRAM.
    parents: HashMap<u64, u64, Hasher>,
    has_nodes: bool,
}

impl Store {
    pub(crate) fn new(policy: PolicyKind, capacity: Capacity, has_nodes: bool) -> Self {
        Self {
            dram: Tier::new(policy, capacity.dram),
            nvme: Tier::new(policy, capacity.nvme),
            s3: capacity.s3.then(HashSet::default),
            homes: HashMap::default(),
            parents: HashMap::default(),
            has_nodes,
        }
    }

    /// Takes blocks in that a node has, a run behind `parent`.
    pub(crate) fn put(&mut self, node: u16, parent: Option<u64>, keys: &[u64], now: Nanos) {
        if self.dram.capacity == 0 {
            return;
        }
        let mut parent = parent;
        for &key in keys {
            if !self.dram.order.contains(&key) {
                self.insert(key, parent, Duration::from_nanos(now));
                if self.has_nodes && self.dram.order.contains(&key) {
                    self.homes.insert(key, node);
                }
            }
            parent = Some(key);
        }
    }

    fn insert(&mut self, key: u64, parent: Option<u64>, now: Duration) {
        let is_below = self.nvme.capacity > 0 || self.s3.is_some();
        if let (true, Some(parent)) = (is_below, parent) {
            self.parents.insert(key, parent);
        }
        let Some(gone) = self.dram.insert(key, parent, now) else { return };
        self.homes.remove(&gone);
        if self.nvme.capacity > 0 && !self.nvme.order.contains(&gone) {
            let parent = self.parents.get(&gone).copied();
            let Some(gone) = self.nvme.insert(gone, parent, now) else { return };
            if let Some(s3) = &mut self.s3 {
                s3.insert(gone);
            }
        } else if self.nvme.capacity == 0
            && let Some(s3) = &mut self.s3
        {
            s3.insert(gone);
        }
    }

    /// Where the leading blocks of `keys` are: runs of one place each.
    pub(crate) fn find(&self, keys: &[u64]) -> Vec<Run> {
        let find = |key: &u64| {
            if self.dram.order.contains(key) {
                return Some((Source::Dram, self.homes.get(key).copied()));
            }
            if self.nvme.order.contains(key) {
                return Some((Source::Nvme, None));
            }
            self.s3.as_ref().is_some_and(|s3| s3.contains(key)).then_some((Source::S3, None))
        };
        let mut runs: Vec<Run> = Vec::new();
        for (source, node) in keys.iter().map_while(find) {
            match runs.last_mut() {
                Some(run) if run.source == source && run.node == node => run.blocks += 1,
                _ => runs.push(Run { source, node, blocks: 1 }),
            }
        }
        runs
    }

    /// A prompt was matched so far.
    pub(crate) fn touch(&mut self, prefix: &[u64]) {
        self.dram.order.touch(prefix);
        if self.nvme.capacity > 0 {
            self.nvme.order.touch(prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dram: usize, nvme: usize, s3: bool) -> Store {
        Store::new(PolicyKind::Lru, Capacity { dram, nvme, s3 }, true)
    }

    #[test]
    fn what_a_tier_drops_goes_into_the_next() {
        let mut store = store(2, 2, true);
        for key in 1..=6 {
            store.put(0, None, &[key], key);
        }
        let places: Vec<_> = (1..=6).map(|key| store.find(&[key])[0].source).collect();
        assert_eq!(places, [Source::S3, Source::S3, Source::Nvme, Source::Nvme, Source::Dram, Source::Dram]);
    }

    #[test]
    fn a_prompt_is_in_runs() {
        let mut store = store(8, 0, false);
        store.put(0, None, &[1, 2], 1);
        store.put(3, Some(2), &[3], 1);
        store.put(1, None, &[1, 2, 3], 2);
        let run = |node, blocks| Run { source: Source::Dram, node: Some(node), blocks };
        assert_eq!(store.find(&[1, 2, 3, 4]), [run(0, 2), run(3, 1)]);
    }

    #[test]
    fn a_prefix_ends_where_a_block_is_nowhere() {
        let mut store = store(3, 0, false);
        store.put(0, None, &[1, 2, 3], 1);
        store.touch(&[1, 2, 3]);
        assert_eq!(store.find(&[1, 2, 3, 4])[0].blocks, 3);
        // The tail goes first.
        store.put(0, None, &[7], 2);
        assert_eq!(store.find(&[1, 2, 3])[0].blocks, 2);
        assert!(store.find(&[9, 1]).is_empty());
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let mut store = store(0, 0, false);
        store.put(0, None, &[1], 1);
        assert!(store.find(&[1]).is_empty());
    }
}
