//! What a tenant offers to the tiers below its DRAM.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
    time::Duration,
};

use kelvin_kernels::Checksum;
use kelvin_tiering::{DramSlot, Tier};
use parking_lot::Mutex;

use super::{Stirred, Tiers};
#[cfg(test)]
use crate::store::counters::Counter;
use crate::{
    SequenceHash,
    catalog::NamespaceRecord,
    index::{HolderSet, TierSet},
    insight::Reason,
    store::{BlockKey, ImmutableBlock, Namespace, Tenant, meters::measuring, room::Removal, tiers_of},
};

/// Blocks that wait to be offloaded as they were committed; beyond it the oldest are left to near eviction.
const FRESH_MAX: usize = 65_536;

/// A tenant's side of the tiers below its DRAM.
#[derive(Default)]
pub(crate) struct Below {
    tiers: OnceLock<Arc<Tiers>>,
    /// Committed lately and not offloaded yet, in eager mode.
    fresh: Mutex<VecDeque<BlockKey>>,
    /// Blocks came to DRAM, or stand in another order: there may be something to offload.
    pub(in crate::store) stirred: Stirred,
    /// Held by who offloads: two at once would copy the same blocks.
    pub(super) offloading: tokio::sync::Mutex<()>,
    /// How often somebody looked what to offload.
    #[cfg(test)]
    pub(super) looks: Counter,
}

impl Below {
    /// A namespace is known from here on: it is noted, so that a restart finds it.
    pub(in crate::store) fn opened(&self, tenant: &str, namespace: &Namespace) {
        let Some(tiers) = self.tiers.get() else { return };
        tiers.apply_quotas(namespace);
        let record = NamespaceRecord {
            id: namespace.persistent,
            tenant: tenant.to_owned(),
            spec: namespace.spec.clone(),
        };
        if let Err(error) = tiers.catalog().put_namespace(&record) {
            tracing::warn!(%error, "a namespace could not be noted: a restart will not find its blocks");
        }
        if let Some(object) = tiers.objects() {
            object.discover_wanted.notify_one();
        }
    }

    /// A block was committed.
    pub(in crate::store) fn committed(&self, key: BlockKey) {
        let Some(tiers) = self.tiers.get() else { return };
        if tiers.eager {
            let mut fresh = self.fresh.lock();
            if fresh.len() == FRESH_MAX {
                fresh.pop_front();
            }
            fresh.push_back(key);
        }
        self.stirred.stir();
    }

    /// The checksum under which NVMe has the block. A copy out of reach does not count, nor does a pack's, which may
    /// be just when the block is made anew: then the new one has to serve.
    pub(in crate::store) fn settled(&self, key: &BlockKey) -> Option<Checksum> {
        let nvme = self.tiers.get()?.nvme.as_ref()?;
        let copy = nvme.copies.get(key).filter(|copy| nvme.device().reads_from(&copy.slot))?;
        Some(copy.checksum)
    }

    /// A block leaves DRAM to make room. Should it have no copy, that is counted, and why it has none is returned
    /// with the tier that lost it: the tier below did not want it, or takes nothing, or did not come to it in time.
    pub(in crate::store) fn left(&self, key: &BlockKey, why: Removal) -> Option<(Reason, Tier)> {
        let tiers = self.tiers.get()?;
        if why != Removal::Room || tiers.holds(key) {
            return None;
        }
        let (first, counters) = (tiers.first()?, tiers.first_counters()?);
        if !tiers.admits(key) {
            counters.not_admitted.add(1);
            return Some((Reason::AdmissionRefused, Tier::Dram));
        }
        counters.uncopied.add(1);
        if tiers.takes(first) {
            Some((Reason::TooLate, Tier::Dram))
        } else {
            Some((Reason::TierFailed, first))
        }
    }

    /// Blocks that wait to be copied as they were committed.
    pub(crate) fn fresh_blocks(&self) -> u64 {
        self.fresh.lock().len() as u64
    }

    /// Up to `count` blocks that were committed lately, oldest first.
    pub(super) fn take_fresh(&self, count: usize) -> Vec<BlockKey> {
        let mut fresh = self.fresh.lock();
        let count = count.min(fresh.len());
        fresh.drain(..count).collect()
    }

    /// Puts those of them back that got no copy: oldest first again, as far as there is room.
    pub(super) fn put_back_fresh(&self, keys: impl DoubleEndedIterator<Item = BlockKey>) {
        let mut fresh = self.fresh.lock();
        for key in keys.rev() {
            if fresh.len() == FRESH_MAX {
                return;
            }
            fresh.push_front(key);
        }
    }
}

/// The bytes of a block, which stays where it is as long as this lives.
pub(super) struct BlockBytes(pub(super) ImmutableBlock);

impl AsRef<[u8]> for BlockBytes {
    fn as_ref(&self) -> &[u8] {
        self.0.slot().bytes()
    }
}

impl Tenant {
    /// The tiers below DRAM, if there are any.
    pub(crate) fn tiers(&self) -> Option<&Arc<Tiers>> {
        self.below.tiers.get()
    }

    /// Gives the tenant its cold tiers, once, before it is used.
    pub(crate) fn attach(&self, tiers: Arc<Tiers>) {
        assert!(self.below.tiers.set(tiers).is_ok(), "tiers are attached once");
    }

    /// A slot in DRAM for a block on its way up; other blocks make room for it.
    pub(super) fn slot(&self, bytes: u64) -> Option<DramSlot> {
        let mut state = self.lock();
        self.allocate(&mut state, bytes)
    }

    /// Blocks that wait to be offloaded, in eager mode.
    pub(crate) fn offload_queue_blocks(&self) -> u64 {
        self.below.fresh_blocks()
    }

    /// The blocks that DRAM drops next.
    pub(super) fn upcoming(&self, blocks: usize) -> Vec<BlockKey> {
        self.lock().upcoming(blocks)
    }

    /// Every block in DRAM.
    pub(super) fn sealed_keys(&self) -> Vec<BlockKey> {
        self.table.each_sealed(|block| Some(block.key()))
    }

    /// Tiers of each block of the longest prefix that can be had now. What only tiers out of reach have is none of
    /// it: a match promises nothing that is known to fail.
    pub(crate) fn match_prefix(&self, namespace: &Namespace, hashes: &[SequenceHash]) -> Vec<TierSet> {
        let now = self.clock.now();
        let mut found = namespace.index.longest_prefix(hashes, Some(now.as_millis() as u64));
        if let Some(tiers) = self.tiers() {
            if tiers.sight(hashes.iter().take(found.len() + 1).copied()) {
                self.below.stirred.stir();
            }
            if let Some((at, tier)) = out_of_reach(tiers, &found) {
                found.truncate(at);
                // So that the miss is counted for what it is.
                namespace.gone.note(hashes[at], Reason::TierFailed, tier, now);
            }
        }
        if measuring() {
            namespace.count_match(hashes.len(), &found);
            self.watch_match(namespace, hashes, now);
        }
        found
    }

    /// For each tier that a matched prefix has to be brought from: its blocks, and the expected time.
    pub(crate) fn load_estimates(&self, found: &[TierSet], block_bytes: u64) -> Vec<(Tier, u64, Duration)> {
        let hottest = |holders: &TierSet| {
            [Tier::Dram, Tier::Nvme, Tier::Object].into_iter().find(|tier| holders.contains(*tier as u32))
        };
        let estimate = |tier: Tier| {
            let blocks = found.iter().filter(|holders| hottest(holders) == Some(tier)).count() as u64;
            let expected = self.tiers()?.expect_load(tier, blocks * block_bytes)?;
            (blocks > 0).then_some((tier, blocks, expected))
        };
        [Tier::Nvme, Tier::Object].into_iter().filter_map(estimate).collect()
    }

    /// How many of `hashes` have to be brought to DRAM before the prefix can be leased; with them, its length.
    pub(crate) fn cold_prefix(&self, namespace: &Namespace, hashes: &[SequenceHash]) -> Option<usize> {
        let tiers = self.tiers()?;
        let mut found = namespace.index.longest_prefix(hashes, None);
        if let Some((at, _)) = out_of_reach(tiers, &found) {
            found.truncate(at);
        }
        let cold = found.iter().any(|holders| !holders.contains(Tier::Dram as u32));
        cold.then_some(found.len())
    }
}

/// The first block of a prefix that only tiers out of reach have, and the hottest of those.
fn out_of_reach(tiers: &Tiers, found: &[TierSet]) -> Option<(usize, Option<Tier>)> {
    let reachable = tiers.reachable();
    let at = found.iter().position(|holders| holders.intersection(reachable).is_empty())?;
    Some((at, tiers_of(found[at]).next()))
}
