//! The store that all workers share: DRAM, NVMe and S3 behind the engines' memory.
//!
//! Each tier has the eviction order of the real one ([`Order`]) under the virtual clock. What it will drop next is to
//! be copied to the tier behind, if that admits it ([`Sightings`]); what is dropped without a copy is lost. What is
//! used comes back into DRAM.
//!
//! A block of the store is one or more of the engines' blocks, known by the key of the last of them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::ops::Range;
use std::time::Duration;

use kelvin_kvstore::HashMixer;
use kelvin_tiering::mover::Sightings;
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

/// Blocks of an engine that each tier has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) dram: usize,
    pub(crate) nvme: usize,
    /// Whether there is an object store, which is never full.
    pub(crate) s3: bool,
}

/// How the store is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) capacity: Capacity,
    pub(crate) policy: PolicyKind,
    /// Blocks of an engine in a block of the store.
    pub(crate) stride: usize,
    /// A block is copied to a colder tier once it was asked for so often; 0 and 1: at once.
    pub(crate) admission: u8,
}

/// Blocks that are counted for admission, as in the real store.
const SIGHTINGS_BLOCKS: usize = 1 << 20;

/// Offloading begins when so much of a tier is taken, and looks at so much of it, as the store's does ...
const FILL_PERCENT: usize = 70;
const WINDOW_PERCENT: usize = 20;
/// ... on each node.
const WINDOW_BLOCKS_MAX: usize = 8192;

/// A block to be copied to a colder tier, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) key: u64,
    pub(crate) node: u16,
    pub(crate) to: Source,
}

/// A tier of some size.
struct Tier {
    capacity: usize,
    order: Order<u64, Hasher>,
    /// Blocks so far.
    came: u64,
}

impl Tier {
    fn new(policy: PolicyKind, capacity: usize) -> Self {
        Self { capacity, order: Order::new(policy, capacity), came: 0 }
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
        self.came += 1;
        gone
    }
}

/// See the module.
pub(crate) struct Store {
    stride: usize,
    dram: Tier,
    nvme: Tier,
    s3: Option<HashSet<u64, Hasher>>,
    /// The node that stored a block first; of one node alone nothing is noted.
    homes: HashMap<u64, u16, Hasher>,
    /// What a block stands behind, where there are tiers below DRAM.
    parents: HashMap<u64, u64, Hasher>,
    nodes: usize,
    sightings: Option<(u8, Sightings)>,
    /// Blocks that were dropped before they were copied.
    uncopied: u64,
}

impl Store {
    pub(crate) fn new(plan: Plan, nodes: usize) -> Self {
        let Plan { capacity, policy, stride, admission } = plan;
        Self {
            stride,
            dram: Tier::new(policy, capacity.dram / stride),
            nvme: Tier::new(policy, capacity.nvme / stride),
            s3: capacity.s3.then(HashSet::default),
            homes: HashMap::default(),
            parents: HashMap::default(),
            nodes,
            uncopied: 0,
            sightings: (admission > 1).then(|| (admission, Sightings::new(SIGHTINGS_BLOCKS))),
        }
    }

    /// Engine's blocks in one of the store.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Tiers below DRAM.
    pub(crate) fn cold(&self) -> impl Iterator<Item = Source> {
        let nvme = (self.nvme.capacity > 0).then_some(Source::Nvme);
        nvme.into_iter().chain(self.s3.is_some().then_some(Source::S3))
    }

    /// Blocks that were dropped before they were copied to the tier behind.
    pub(crate) fn uncopied(&self) -> u64 {
        self.uncopied
    }

    /// Takes a range of a prompt's blocks in that a node has.
    pub(crate) fn put(&mut self, node: u16, keys: &[u64], range: Range<usize>, now: Nanos) {
        for (key, parent) in whole(self.stride, keys, range) {
            self.put_block(node, key, parent, now);
        }
    }

    /// The same for one of the store's blocks.
    pub(crate) fn put_block(&mut self, node: u16, key: u64, parent: Option<u64>, now: Nanos) {
        if self.dram.capacity == 0 || self.dram.order.contains(&key) {
            return;
        }
        let first = self.cold().next();
        if let (Some(_), Some(parent)) = (first, parent) {
            self.parents.insert(key, parent);
        }
        if let Some(gone) = self.dram.insert(key, parent, Duration::from_nanos(now)) {
            self.homes.remove(&gone);
            self.dropped(gone, first);
        }
        if self.nodes > 1 && self.dram.order.contains(&key) {
            self.homes.insert(key, node);
        }
    }

    /// A tier dropped a block, which should have a copy in the tier behind.
    fn dropped(&mut self, key: u64, behind: Option<Source>) {
        self.uncopied += u64::from(behind.is_some_and(|behind| !self.has(behind, key)));
        if behind.is_some() && self.place(key).is_none() {
            self.parents.remove(&key);
        }
    }

    fn has(&self, tier: Source, key: u64) -> bool {
        match tier {
            Source::Nvme => self.nvme.order.contains(&key),
            Source::S3 => self.s3.as_ref().is_some_and(|s3| s3.contains(&key)),
            _ => self.dram.order.contains(&key),
        }
    }

    /// The tier that is copied to this one.
    fn before(&self, to: Source) -> Source {
        if to == Source::S3 && self.nvme.capacity > 0 { Source::Nvme } else { Source::Dram }
    }

    fn tier_before(&self, to: Source) -> &Tier {
        if self.before(to) == Source::Nvme { &self.nvme } else { &self.dram }
    }

    /// Blocks that came into that tier so far.
    pub(crate) fn came(&self, to: Source) -> u64 {
        self.tier_before(to).came
    }

    /// Of the blocks that it drops next, those that are looked at.
    pub(crate) fn window(&self, to: Source) -> usize {
        (self.tier_before(to).capacity * WINDOW_PERCENT / 100 + 1).min(WINDOW_BLOCKS_MAX * self.nodes)
    }

    /// Blocks that go next from the tier before `to` and have no copy there, each behind those of its ancestors that
    /// have none either.
    pub(crate) fn near_eviction(&self, to: Source) -> Vec<Outgoing> {
        let from = self.before(to);
        let Tier { capacity, order, .. } = self.tier_before(to);
        if order.len() * 100 < capacity * FILL_PERCENT {
            return Vec::new();
        }
        let admits =
            |key: &u64| self.sightings.as_ref().is_none_or(|(least, seen)| seen.count(*key) >= *least);
        let next = order.upcoming(self.window(to), &mut |key| !self.has(to, *key) && admits(key));
        let mut taken: HashSet<u64, Hasher> = HashSet::default();
        let (mut outgoing, mut path) = (Vec::new(), Vec::new());
        for key in next {
            let mut above = Some(key);
            while let Some(key) = above.filter(|key| !taken.contains(key) && !self.has(to, *key)) {
                if !order.contains(&key) {
                    // Without it those behind it would not be found.
                    path.clear();
                    break;
                }
                path.push(key);
                above = self.parents.get(&key).copied();
            }
            while let Some(key) = path.pop() {
                taken.insert(key);
                // Whose drive a copy is on is not known; all have the same share.
                let spread = (key % self.nodes as u64) as u16;
                let node = if from == Source::Dram { self.homes.get(&key).copied() } else { Some(spread) };
                outgoing.push(Outgoing { key, node: node.unwrap_or(0), to });
            }
        }
        outgoing
    }

    /// Whether a block is still there to be copied, and has to be.
    pub(crate) fn wants(&self, outgoing: &Outgoing) -> bool {
        !self.has(outgoing.to, outgoing.key) && self.has(self.before(outgoing.to), outgoing.key)
    }

    /// A copy is written.
    pub(crate) fn copied(&mut self, copy: Outgoing, now: Nanos) {
        match (copy.to, &mut self.s3) {
            (Source::S3, Some(s3)) => drop(s3.insert(copy.key)),
            (Source::Nvme, s3) if !self.nvme.order.contains(&copy.key) => {
                let behind = s3.as_ref().map(|_| Source::S3);
                let parent = self.parents.get(&copy.key).copied();
                if let Some(gone) = self.nvme.insert(copy.key, parent, Duration::from_nanos(now)) {
                    self.dropped(gone, behind);
                }
            }
            _ => (),
        }
    }

    /// Where a block of the store is.
    pub(crate) fn place(&self, key: u64) -> Option<(Source, Option<u16>)> {
        if self.dram.order.contains(&key) {
            return Some((Source::Dram, self.homes.get(&key).copied()));
        }
        if self.nvme.order.contains(&key) {
            return Some((Source::Nvme, None));
        }
        self.s3.as_ref().is_some_and(|s3| s3.contains(&key)).then_some((Source::S3, None))
    }

    /// Where the blocks of a prompt are behind its first `from`: runs of one place each.
    pub(crate) fn find(&self, keys: &[u64], from: usize) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (block, (key, _)) in (from / self.stride..).zip(whole(self.stride, keys, from..keys.len())) {
            let Some((source, node)) = self.place(key) else { break };
            let blocks = (block + 1) * self.stride - from.max(block * self.stride);
            match runs.last_mut() {
                Some(run) if run.source == source && run.node == node => run.blocks += blocks,
                _ => runs.push(Run { source, node, blocks }),
            }
        }
        runs
    }

    /// A prompt was asked for, and matched so far.
    pub(crate) fn asked(&mut self, keys: &[u64], matched: usize) {
        let keys: Cow<'_, [u64]> = match self.stride {
            1 => keys.into(),
            stride => whole(stride, keys, 0..keys.len()).map(|(key, _)| key).collect(),
        };
        if let Some((_, sightings)) = &mut self.sightings {
            for key in keys.iter() {
                sightings.note(*key);
            }
        }
        let prefix = &keys[..matched / self.stride];
        self.dram.order.touch(prefix);
        if self.nvme.capacity > 0 {
            self.nvme.order.touch(prefix);
        }
    }
}

/// Blocks of the store that end within a range of a prompt's, each with what it stands behind.
fn whole(
    stride: usize,
    keys: &[u64],
    range: Range<usize>,
) -> impl Iterator<Item = (u64, Option<u64>)> + use<'_> {
    let last = move |block: usize| keys[(block + 1) * stride - 1];
    (range.start / stride..range.end / stride).map(move |block| (last(block), block.checked_sub(1).map(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dram: usize, nvme: usize, s3: bool) -> Store {
        strided(dram, nvme, s3, 1, 0)
    }

    fn strided(dram: usize, nvme: usize, s3: bool, stride: usize, admission: u8) -> Store {
        let capacity = Capacity { dram, nvme, s3 };
        Store::new(Plan { capacity, policy: PolicyKind::Lru, stride, admission }, 4)
    }

    /// Puts a prompt in, and all that is to be copied arrives at once.
    fn put(store: &mut Store, node: u16, keys: &[u64], range: Range<usize>) {
        store.put(node, keys, range, 1);
        for to in store.cold().collect::<Vec<_>>() {
            for copy in store.near_eviction(to) {
                assert!(store.wants(&copy));
                store.copied(copy, 1);
            }
        }
    }

    fn all(store: &mut Store, node: u16, keys: &[u64]) {
        put(store, node, keys, 0..keys.len());
    }

    fn sources(store: &Store, keys: Range<u64>) -> Vec<Option<Source>> {
        keys.map(|key| store.place(key).map(|(source, _)| source)).collect()
    }

    #[test]
    fn what_a_tier_drops_is_in_the_next() {
        let mut store = store(4, 4, true);
        for key in 1..=12 {
            all(&mut store, 0, &[key]);
        }
        let places = sources(&store, 1..13);
        assert_eq!(store.uncopied(), 0);
        for (source, keys) in [(Source::S3, 0..4), (Source::Nvme, 5..8), (Source::Dram, 8..12)] {
            assert!(places[keys].iter().all(|place| *place == Some(source)), "{places:?}");
        }
    }

    #[test]
    fn a_copy_goes_out_from_its_node_behind_its_ancestors() {
        let mut store = store(3, 8, false);
        store.put(3, &[1, 2], 0..2, 1);
        assert!(store.near_eviction(Source::Nvme).is_empty(), "there is room");
        store.put(2, &[1, 2, 3], 2..3, 1);
        let outgoing = |key, node| Outgoing { key, node, to: Source::Nvme };
        let copies = store.near_eviction(Source::Nvme);
        assert_eq!(copies, [outgoing(1, 3), outgoing(2, 3), outgoing(3, 2)]);
        // The tail is dropped before its turn.
        store.put(0, &[9], 0..1, 1);
        let wanted: Vec<_> = copies.iter().map(|copy| store.wants(copy)).collect();
        assert_eq!((store.uncopied(), &wanted[..]), (1, &[true, true, false][..]));
        store.copied(copies[0], 1);
        assert!(!store.wants(&copies[0]));
    }

    #[test]
    fn a_colder_tier_takes_what_was_asked_for_often_enough() {
        let mut store = strided(1, 8, false, 1, 2);
        store.asked(&[1], 0);
        store.asked(&[1, 2], 0);
        for key in 1..=3 {
            all(&mut store, 0, &[key]);
        }
        assert_eq!(sources(&store, 1..4), [Some(Source::Nvme), None, Some(Source::Dram)]);
    }

    #[test]
    fn a_prompt_is_in_runs() {
        let mut store = store(8, 0, false);
        all(&mut store, 0, &[1, 2]);
        put(&mut store, 3, &[1, 2, 3], 2..3);
        all(&mut store, 1, &[1, 2, 3]);
        let run = |node, blocks| Run { source: Source::Dram, node: Some(node), blocks };
        assert_eq!(store.find(&[1, 2, 3, 4], 0), [run(0, 2), run(3, 1)]);
        assert_eq!(store.find(&[1, 2, 3, 4], 1), [run(0, 1), run(3, 1)]);
    }

    #[test]
    fn a_block_of_the_store_may_be_several_of_an_engine() {
        let mut store = strided(12, 0, false, 4, 0);
        let keys: Vec<u64> = (1..=14).collect();
        // It is there when its last part is.
        put(&mut store, 0, &keys, 0..3);
        assert!(store.find(&keys, 0).is_empty());
        put(&mut store, 0, &keys, 3..9);
        put(&mut store, 2, &keys, 9..14);
        let run = |node, blocks| Run { source: Source::Dram, node: Some(node), blocks };
        assert_eq!(store.find(&keys, 0), [run(0, 8), run(2, 4)]);
        assert_eq!(store.find(&keys, 6), [run(0, 2), run(2, 4)]);
        assert_eq!(store.find(&keys[..11], 8), []);
        // Three fit; the tail goes first.
        store.asked(&keys, 12);
        all(&mut store, 0, &[21, 22, 23, 24]);
        assert_eq!(store.find(&keys, 0), [run(0, 8)]);
    }

    #[test]
    fn a_prefix_ends_where_a_block_is_nowhere() {
        let mut store = store(3, 0, false);
        all(&mut store, 0, &[1, 2, 3]);
        store.asked(&[1, 2, 3], 3);
        assert_eq!(store.find(&[1, 2, 3, 4], 0)[0].blocks, 3);
        // The tail goes first.
        all(&mut store, 0, &[7]);
        assert_eq!(store.find(&[1, 2, 3], 0)[0].blocks, 2);
        assert!(store.find(&[9, 1], 0).is_empty());
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let mut store = store(0, 0, false);
        all(&mut store, 0, &[1]);
        assert!(store.find(&[1], 0).is_empty());
    }
}
