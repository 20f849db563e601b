//! From NVMe into packs, and the housekeeping of both.
//!
//! What NVMe will drop next is packed with its ancestors that no pack has, in path order, so that a prefix lies in
//! few packs and comes back in few requests. Reading for it waits behind everything else on NVMe's lane. As for
//! DRAM, nobody looks while nothing happens.

use std::{collections::HashSet, sync::Arc, time::Duration};

use kelvin_tiering::{Device, Tier};
use tokio_util::sync::CancellationToken;

use super::{
    Tiers,
    nvme::{Nvme, NvmeCopy},
    object::{Objects, Packing},
    offload::{Batch, Rests, packs},
};
use crate::store::BlockKey;

/// The task rests so long between two looks.
const REST: Duration = Duration::from_millis(100);
/// Everything written is made to survive a power failure this often.
const SYNC_EVERY: Duration = Duration::from_millis(100);
/// What could not be synced is tried again after.
const SYNC_AGAIN: Duration = Duration::from_secs(1);
const COLLECT_EVERY: Duration = Duration::from_secs(30);
const FILL_PERCENT: u64 = 70;
const WINDOW_PERCENT: u64 = 20;
const WINDOW_BLOCKS_MAX: usize = 8192;

/// Packs what NVMe will drop next, until `stop`, which ends a pack on its way too.
pub(crate) async fn run(tiers: Arc<Tiers>, stop: CancellationToken) {
    let looks = async {
        let mut rests = Rests::default();
        loop {
            tiers.cascade_wanted.wait().await;
            let last = loop {
                let batch = tiers.cascade_once(false).await;
                if batch.copied == 0 {
                    break batch;
                }
            };
            let failures = rests.after(last);
            if failures > 0 {
                tiers.cascade_wanted.stir();
            }
            tokio::time::sleep(REST * 2u32.pow(failures)).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = looks => {}
    }
}

/// Syncs what was written, and collects dead packs, until `stop`.
pub(crate) async fn keep_house(tiers: Arc<Tiers>, stop: CancellationToken) {
    let mut synced = 0;
    let now = tokio::time::Instant::now();
    let (mut next_sync, mut next_collection) = (now, now + COLLECT_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(SYNC_EVERY) => {}
        }
        let now = tokio::time::Instant::now();
        if let Some(nvme) = &tiers.nvme {
            let written = nvme.counters.offloaded.get();
            if written != synced && now >= next_sync {
                match nvme.sync().await {
                    true => synced = written,
                    false => next_sync = now + SYNC_AGAIN,
                }
            }
        }
        if now >= next_collection {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tiers.collect() => {}
            }
            next_collection = tokio::time::Instant::now() + COLLECT_EVERY;
        }
    }
    if let Some(nvme) = &tiers.nvme {
        nvme.sync().await;
    }
}

impl Tiers {
    /// Packs one lot. With `all`, of everything on NVMe.
    pub(super) async fn cascade_once(&self, all: bool) -> Batch {
        let mut batch = Batch::default();
        let (Some(nvme), Some(object)) = (&self.nvme, &self.object) else { return batch };
        let _one = self.cascading.lock().await;
        if !nvme.device().reads() || !self.takes(Tier::Object) {
            return Batch::REFUSED;
        }
        let chains = chains(nvme, object, all);
        for group in by_namespace(chains) {
            let namespace = group[0].1.namespace.clone();
            for pack in packs(group, |(_, copy)| copy.slot.bytes(), object.pack_bytes(), all) {
                batch.wanted += pack.len() as u64;
                let mut packing = Vec::with_capacity(pack.len());
                for (key, copy) in pack {
                    // What stands behind a block that could not be read has no parent in a pack: it waits.
                    let Ok(bytes) = nvme.read_quietly(&key, &copy).await else { break };
                    packing.push(Packing { key, parent: copy.parent, checksum: copy.checksum, bytes });
                }
                let count = packing.len() as u64;
                if count > 0 && object.store(Tier::Nvme, &namespace, packing).await {
                    batch.copied += count;
                }
            }
        }
        batch
    }

    /// Deletes dead packs and rewrites sparse ones; how many of each.
    pub(crate) async fn collect(&self) -> (u64, u64) {
        match &self.object {
            Some(object) => object.collect().await,
            None => (0, 0),
        }
    }
}

/// Blocks that no pack has, of those that NVMe drops next, each behind its ancestors.
fn chains(nvme: &Nvme, object: &Objects, all: bool) -> Vec<(BlockKey, NvmeCopy)> {
    let candidates = if all {
        nvme.copies.keys()
    } else {
        let usage = nvme.device().usage();
        if usage.used_bytes * 100 < usage.capacity_bytes * FILL_PERCENT {
            return Vec::new();
        }
        let window = (usage.places * WINDOW_PERCENT / 100 + 1).min(WINDOW_BLOCKS_MAX as u64);
        nvme.copies.upcoming(window as usize)
    };
    let mut chains = Vec::new();
    let mut taken = HashSet::new();
    let mut bytes = 0;
    for key in candidates {
        if bytes >= 2 * object.pack_bytes() {
            break;
        }
        let mut path = Vec::new();
        let mut next = Some(key);
        let rooted = loop {
            let Some(key) = next else { break true };
            if taken.contains(&key) || object.copies.contains(&key) {
                break true;
            }
            let Some(copy) = nvme.copies.get(&key) else { break false };
            next = copy.parent.map(|hash| BlockKey { hash, ..key });
            path.push((key, copy));
        };
        if !rooted {
            continue;
        }
        for (key, copy) in path.into_iter().rev() {
            taken.insert(key);
            bytes += copy.slot.bytes();
            chains.push((key, copy));
        }
    }
    chains
}

fn by_namespace(chains: Vec<(BlockKey, NvmeCopy)>) -> Vec<Vec<(BlockKey, NvmeCopy)>> {
    let mut groups: Vec<Vec<(BlockKey, NvmeCopy)>> = Vec::new();
    for (key, copy) in chains {
        match groups.iter_mut().find(|group| group[0].0.namespace == key.namespace) {
            Some(group) => group.push((key, copy)),
            None => groups.push(vec![(key, copy)]),
        }
    }
    groups
}
