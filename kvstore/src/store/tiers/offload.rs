//! Offloading: copying blocks to a colder tier before they are evicted.
//!
//! # Overview
//! One task a tenant looks at which blocks DRAM will drop next, and copies those to NVMe that have no copy there,
//! with their ancestors first: so a copy can always be matched from its start, after a crash too, and heads,
//! which DRAM never drops, are on NVMe as soon as anything behind them is. Without NVMe the same goes to packs;
//! with both, packs are made from what NVMe will drop next.
//!
//! In eager mode blocks are copied as they are committed.
//!
//! The task looks after something happened that may have made work, and rests between two looks: an idle store
//! does nothing. What a tier did not take is looked at again, at longer and longer intervals.
//!
//! # Back-pressure
//! One batch is under way at a time. DRAM does not wait for it: a block that is evicted before its turn is
//! dropped, and counted (`evicted_uncopied`). A batch stays in DRAM until it is written, so it takes a small part of
//! it only. So a slow device costs copies, never latency.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use kelvin_tiering::Tier;
use tokio_util::sync::CancellationToken;

use super::{
    Tiers,
    attach::BlockBytes,
    nvme::Outgoing,
    object::{Objects, Packing},
};
use crate::store::{BlockKey, ImmutableBlock, Namespace, Tenant};

/// The task rests so long between two looks, but for one in eager mode on NVMe.
const REST: Duration = Duration::from_millis(50);
/// Looks that failed in a row, after which the rest does not double any more.
const FAILURES_MAX: u32 = 5;
/// Offloading begins when so much of a tier is taken.
const FILL_PERCENT: u64 = 70;
/// And looks at so much of it, from the next victim on.
const WINDOW_PERCENT: u64 = 20;
/// Blocks looked at, at most.
const WINDOW_BLOCKS_MAX: usize = 8192;
/// Blocks of one batch in eager mode.
const FRESH_BATCH: usize = 256;
/// Looked at for packs in eager mode, which take that many small ones.
const FRESH_BATCH_OF_PACKS: usize = 8192;
/// A batch takes at most one in so many bytes of DRAM, but for enough to make a pack of.
const BATCH_SHARE: u64 = 8;
/// Bytes of one batch to NVMe.
const BATCH_BYTES: u64 = 64 << 20;
/// Bytes of one pack, unless told otherwise ...
pub(super) const PACK_BYTES: u64 = 32 << 20;
/// ... and blocks at least, so that large blocks cost few requests too.
const PACK_BLOCKS_MIN: usize = 12;

/// Blocks and their ancestors that a tier lacks, parents first.
#[derive(Default)]
struct Chains {
    /// Those of them, or not reached yet, that were taken from those committed lately.
    fresh: Vec<BlockKey>,
    blocks: Vec<(BlockKey, ImmutableBlock)>,
    taken: HashSet<BlockKey>,
    bytes: u64,
}

/// What a look came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Batch {
    /// Blocks that were to get a copy.
    pub(super) wanted: u64,
    /// Those that got one.
    pub(super) copied: u64,
}

impl Batch {
    /// Nothing is taken just now, so that nothing was looked at.
    pub(super) const REFUSED: Self = Self { wanted: 1, copied: 0 };
}

/// How long a task of looks rests: longer after each in a row that got nothing done.
#[derive(Default)]
pub(super) struct Rests(u32);

impl Rests {
    /// How many looks failed lately.
    pub(super) fn after(&mut self, last: Batch) -> u32 {
        self.0 = if last.wanted > last.copied { (self.0 + 1).min(FAILURES_MAX) } else { 0 };
        self.0
    }
}

/// Offloads a tenant's blocks until `stop`, which ends a copy on its way too: one that is not recorded was never
/// there.
pub(crate) async fn run(tenant: Arc<Tenant>, tiers: Arc<Tiers>, stop: CancellationToken) {
    let looks = async {
        let at_once = tiers.eager && tiers.nvme.is_some();
        let mut rests = Rests::default();
        loop {
            tenant.below.stirred.wait().await;
            let last = loop {
                let batch = tenant.offload_once(&tiers, Wanted::Upcoming).await;
                if batch.copied == 0 {
                    break batch;
                }
            };
            let failures = rests.after(last);
            if failures > 0 {
                tenant.below.stirred.stir();
            }
            if failures > 0 || !at_once {
                tokio::time::sleep(REST * 2u32.pow(failures)).await;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = looks => {}
    }
}

/// Which blocks to copy.
enum Wanted<'a> {
    /// Those that go next, or in eager mode those that came.
    Upcoming,
    /// All of these, before a stop. A batch takes from the front.
    These(&'a mut VecDeque<BlockKey>),
}

impl Tenant {
    /// Copies every block that has no copy in a cold tier, so that a restart finds it. Returns how many.
    pub(crate) async fn flush(self: &Arc<Self>, tiers: &Arc<Tiers>) -> u64 {
        let mut copied = 0;
        let mut keys = VecDeque::from(self.sealed_keys());
        loop {
            let left = keys.len();
            let batch = self.offload_once(tiers, Wanted::These(&mut keys)).await;
            copied += batch.copied;
            if batch.copied < batch.wanted || batch.copied == 0 && keys.len() == left {
                return copied;
            }
        }
    }

    /// One batch.
    async fn offload_once(self: &Arc<Self>, tiers: &Arc<Tiers>, mut wanted: Wanted<'_>) -> Batch {
        let _one = self.below.offloading.lock().await;
        let Some(tier) = tiers.first() else { return Batch::default() };
        if !tiers.takes(tier) {
            return Batch::REFUSED;
        }
        #[cfg(test)]
        self.below.looks.add(1);
        let all = matches!(wanted, Wanted::These(_));
        let chains = self.chains(tiers, tier, &mut wanted);
        let batch = match &tiers.nvme {
            Some(nvme) => {
                let blocks = chains.blocks.into_iter().filter_map(|(key, block)| {
                    Some(Outgoing { key, namespace: self.namespace(key.namespace).ok()?, block })
                });
                let blocks: Vec<Outgoing> = blocks.collect();
                let wanted = blocks.len() as u64;
                let copied = if wanted > 0 { nvme.store(blocks).await as u64 } else { 0 };
                nvme.counters.offloaded.add(copied);
                Batch { wanted, copied }
            }
            None => self.pack(tiers, chains.blocks, all).await,
        };
        if batch.copied > 0 {
            tiers.cascade_wanted.stir();
        }
        let left = chains.fresh.into_iter();
        self.below
            .put_back_fresh(left.filter(|key| !tiers.contains(tier, key) && self.sealed(*key).is_some()));
        batch
    }

    /// Packs of each namespace that has enough for one; with `all`, of the rest too.
    async fn pack(
        self: &Arc<Self>,
        tiers: &Arc<Tiers>,
        blocks: Vec<(BlockKey, ImmutableBlock)>,
        all: bool,
    ) -> Batch {
        let mut batch = Batch::default();
        let Some(object) = &tiers.object else { return batch };
        for (namespace, blocks) in by_namespace(self, blocks) {
            for pack in packs(blocks, |(_, block)| block.slot().len(), object.pack_bytes(), all) {
                let count = pack.len() as u64;
                let packing = pack.into_iter().map(|(key, block)| Packing {
                    key,
                    parent: block.parent(),
                    checksum: block.checksum(),
                    bytes: BlockBytes(block),
                });
                batch.wanted += count;
                if object.store(Tier::Dram, &namespace, packing.collect()).await {
                    batch.copied += count;
                }
            }
        }
        batch
    }

    /// Blocks wanted in `tier`, each behind its ancestors that it lacks, for about one batch.
    fn chains(&self, tiers: &Tiers, tier: Tier, wanted: &mut Wanted<'_>) -> Chains {
        let share = self.usage().capacity_bytes / BATCH_SHARE;
        let (bytes_max, fresh_max) = match tier {
            Tier::Nvme => (share.min(BATCH_BYTES), FRESH_BATCH),
            _ => {
                let pack_bytes = tiers.objects().map_or(PACK_BYTES, Objects::pack_bytes);
                (share.clamp(pack_bytes / 2, 2 * pack_bytes), FRESH_BATCH_OF_PACKS)
            }
        };
        let has = |key: &BlockKey| tiers.contains(tier, key);
        let mut chains = Chains::default();
        // How many were gone through.
        let add = |chains: &mut Chains, keys: &mut dyn Iterator<Item = BlockKey>| {
            let wants = |key: &BlockKey| !has(key) && tiers.admits(key);
            keys.take_while(|key| {
                chains.bytes < bytes_max && (!wants(key) || self.add_chain(chains, *key, &has, bytes_max))
            })
            .count()
        };
        match wanted {
            Wanted::These(keys) => {
                let reached = add(&mut chains, &mut keys.iter().copied());
                keys.drain(..reached);
            }
            Wanted::Upcoming => {
                let mut fresh = if tiers.eager { self.below.take_fresh(fresh_max) } else { Vec::new() };
                let reached = add(&mut chains, &mut fresh.iter().copied());
                // Fresh blocks may wait for more to make a pack of, while others near eviction.
                if fresh.is_empty() || tier == Tier::Object {
                    add(&mut chains, &mut self.near_eviction().into_iter());
                }
                let mut at = 0..;
                fresh.retain(|key| at.next() >= Some(reached) || chains.taken.contains(key));
                chains.fresh = fresh;
            }
        }
        chains
    }

    /// The blocks that DRAM drops next, once it is full enough to drop some soon.
    fn near_eviction(&self) -> Vec<BlockKey> {
        let usage = self.usage();
        if usage.used_bytes * 100 < usage.capacity_bytes * FILL_PERCENT {
            return Vec::new();
        }
        let window = (usage.places * WINDOW_PERCENT / 100 + 1).min(WINDOW_BLOCKS_MAX as u64);
        self.upcoming(window as usize)
    }

    /// Adds a block behind those of its ancestors that have no copy; nothing, should one of them not be there.
    /// False if there was no room for all of them.
    fn add_chain(
        &self,
        chains: &mut Chains,
        key: BlockKey,
        has: &dyn Fn(&BlockKey) -> bool,
        bytes_max: u64,
    ) -> bool {
        let mut path = Vec::new();
        let mut next = Some(key);
        while let Some(key) = next {
            if chains.taken.contains(&key) || has(&key) {
                break;
            }
            // Not held yet: a path may be most of DRAM, and who wants a slot meanwhile would find none.
            let Some(parent) = self.sealed(key).map(|block| block.parent()) else { return true };
            next = parent.map(|hash| BlockKey { hash, ..key });
            path.push(key);
        }
        for key in path.into_iter().rev() {
            if chains.bytes >= bytes_max {
                return false;
            }
            // What stands behind one that went meanwhile would have no parent.
            let Some(block) = self.sealed(key) else { return true };
            chains.taken.insert(key);
            chains.bytes += block.slot().len();
            chains.blocks.push((key, block));
        }
        true
    }
}

/// Blocks of one namespace.
type Group = (Arc<Namespace>, Vec<(BlockKey, ImmutableBlock)>);

fn by_namespace(tenant: &Tenant, blocks: Vec<(BlockKey, ImmutableBlock)>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (key, block) in blocks {
        match groups.iter_mut().find(|(namespace, _)| namespace.id == key.namespace) {
            Some((_, group)) => group.push((key, block)),
            None => {
                let Ok(namespace) = tenant.namespace(key.namespace) else { continue };
                groups.push((namespace, vec![(key, block)]));
            }
        }
    }
    groups
}

/// Cuts blocks into packs of about `pack_bytes`; a last one of less than half of that, which is not worth two
/// requests, waits for more, unless `all`.
pub(super) fn packs<T>(
    blocks: Vec<T>,
    bytes_of: impl Fn(&T) -> u64,
    pack_bytes: u64,
    all: bool,
) -> Vec<Vec<T>> {
    let mut packs = Vec::new();
    let (mut pack, mut bytes) = (Vec::new(), 0);
    for block in blocks {
        bytes += bytes_of(&block);
        pack.push(block);
        if bytes >= pack_bytes && pack.len() >= PACK_BLOCKS_MIN {
            packs.push(std::mem::take(&mut pack));
            bytes = 0;
        }
    }
    if !pack.is_empty() && (all || bytes >= pack_bytes / 2) {
        packs.push(pack);
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_are_full_or_wait() {
        let blocks = vec![PACK_BYTES / 16; 36];
        let lengths = |all| -> Vec<usize> {
            packs(blocks.clone(), |bytes| *bytes, PACK_BYTES, all).iter().map(Vec::len).collect()
        };
        assert_eq!(lengths(false), [16, 16]);
        assert_eq!(lengths(true), [16, 16, 4]);
        assert_eq!(
            packs(vec![PACK_BYTES / 2], |bytes| *bytes, PACK_BYTES, false).len(),
            1,
            "half a pack is worth it"
        );
        assert_eq!(
            packs(vec![PACK_BYTES / 4; 24], |bytes| *bytes, PACK_BYTES, false)[0].len(),
            12,
            "large blocks"
        );
    }
}
