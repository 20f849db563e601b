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
//! # Back-pressure
//! One batch is under way at a time. DRAM does not wait for it: a block that is evicted before its turn is
//! dropped, and counted (`evicted_uncopied`). So a slow device costs copies, never latency.

use std::{collections::HashSet, sync::Arc, time::Duration};

use kelvin_tiering::Tier;
use tokio_util::sync::CancellationToken;

use super::{Tiers, attach::BlockBytes, nvme::Outgoing, object::Packing};
use crate::store::{BlockKey, ImmutableBlock, Namespace, Tenant};

/// How often the task looks, should nobody wake it.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Offloading begins when so much of a tier is taken.
const FILL_PERCENT: u64 = 70;
/// And looks at so much of it, from the next victim on.
const WINDOW_PERCENT: u64 = 20;
/// Blocks looked at, at most.
const WINDOW_BLOCKS_MAX: usize = 8192;
/// Blocks of one batch in eager mode.
const FRESH_BATCH: usize = 256;
/// Bytes of one batch to NVMe.
const BATCH_BYTES: u64 = 64 << 20;
/// Bytes of one pack, unless told otherwise ...
pub(super) const PACK_BYTES: u64 = 32 << 20;
/// ... and blocks at least, so that large blocks cost few requests too.
const PACK_BLOCKS_MIN: usize = 12;

/// Blocks and their ancestors that a tier lacks, parents first.
#[derive(Default)]
struct Chains {
    blocks: Vec<(BlockKey, ImmutableBlock)>,
    taken: HashSet<BlockKey>,
    bytes: u64,
}

/// Offloads a tenant's blocks until `stop`.
pub(crate) async fn run(tenant: Arc<Tenant>, tiers: Arc<Tiers>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tenant.below.offload_wanted.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        while tenant.offload_once(&tiers, Wanted::Upcoming).await > 0 {
            if stop.is_cancelled() {
                return;
            }
        }
    }
}

/// Which blocks to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Those that go next, or in eager mode those that came.
    Upcoming,
    /// All there are: before a stop.
    All,
}

impl Tenant {
    /// Copies every block that has no copy in a cold tier, so that a restart finds it. Returns how many.
    pub(crate) async fn flush(self: &Arc<Self>, tiers: &Arc<Tiers>) -> u64 {
        let mut copied = 0;
        loop {
            let now = self.offload_once(tiers, Wanted::All).await;
            if now == 0 {
                return copied;
            }
            copied += now;
        }
    }

    /// One batch; how many blocks got a copy.
    async fn offload_once(self: &Arc<Self>, tiers: &Arc<Tiers>, wanted: Wanted) -> u64 {
        let _one = self.below.offloading.lock().await;
        match (&tiers.nvme, &tiers.object) {
            (Some(nvme), _) => {
                let chains = self.chains(tiers, Tier::Nvme, wanted, BATCH_BYTES);
                if chains.blocks.is_empty() {
                    return 0;
                }
                let batch = chains.blocks.into_iter().filter_map(|(key, block)| {
                    Some(Outgoing { key, namespace: self.namespace(key.namespace).ok()?, block })
                });
                let copied = nvme.store(batch.collect()).await as u64;
                nvme.counters.offloaded.add(copied);
                copied
            }
            (None, Some(_)) => self.pack_once(tiers, wanted).await,
            (None, None) => 0,
        }
    }

    /// One pack of each namespace that has enough for one.
    async fn pack_once(self: &Arc<Self>, tiers: &Arc<Tiers>, wanted: Wanted) -> u64 {
        let Some(object) = &tiers.object else { return 0 };
        let chains = self.chains(tiers, Tier::Object, wanted, 2 * object.pack_bytes());
        let mut copied = 0;
        for (namespace, blocks) in by_namespace(self, chains.blocks) {
            for pack in
                packs(blocks, |(_, block)| block.slot().len(), object.pack_bytes(), wanted == Wanted::All)
            {
                let count = pack.len() as u64;
                let packing = pack.into_iter().map(|(key, block)| Packing {
                    key,
                    parent: block.parent(),
                    checksum: block.checksum(),
                    bytes: BlockBytes(block),
                });
                if object.store(&namespace, packing.collect()).await {
                    copied += count;
                }
            }
        }
        copied
    }

    /// Blocks wanted in `tier`, each behind its ancestors that it lacks, up to about `bytes_max`.
    fn chains(&self, tiers: &Tiers, tier: Tier, wanted: Wanted, bytes_max: u64) -> Chains {
        let has = |key: &BlockKey| tiers.contains(tier, key);
        let wants = |key: &BlockKey| !has(key) && tiers.admits(key);
        let candidates = match wanted {
            Wanted::All => self.sealed_keys(),
            Wanted::Upcoming if tiers.eager && self.below.has_fresh() => self.below.take_fresh(FRESH_BATCH),
            Wanted::Upcoming => {
                let usage = self.usage();
                if usage.used_bytes * 100 < usage.capacity_bytes * FILL_PERCENT {
                    return Chains::default();
                }
                let window = (usage.places * WINDOW_PERCENT / 100 + 1).min(WINDOW_BLOCKS_MAX as u64);
                self.upcoming(window as usize)
            }
        };
        let mut chains = Chains::default();
        for key in candidates {
            // Fresh ones were taken for good: all of them go.
            if chains.bytes >= bytes_max && !(tiers.eager && wanted == Wanted::Upcoming) {
                break;
            }
            if !wants(&key) {
                continue;
            }
            self.add_chain(&mut chains, key, &has);
        }
        chains
    }

    /// Adds a block behind those of its ancestors that have no copy; nothing, should one of them not be there.
    fn add_chain(&self, chains: &mut Chains, key: BlockKey, has: &dyn Fn(&BlockKey) -> bool) {
        let mut path = Vec::new();
        let mut next = Some(key);
        while let Some(key) = next {
            if chains.taken.contains(&key) || has(&key) {
                break;
            }
            let Some(block) = self.sealed(key) else { return };
            next = block.parent().map(|hash| BlockKey { hash, ..key });
            path.push((key, block));
        }
        for (key, block) in path.into_iter().rev() {
            chains.taken.insert(key);
            chains.bytes += block.slot().len();
            chains.blocks.push((key, block));
        }
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

/// Cuts blocks into packs of about `pack_bytes`; a last one of less than half of that waits for more, unless
/// `all`.
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
