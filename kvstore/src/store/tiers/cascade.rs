//! From NVMe into packs, and the housekeeping of both.
//!
//! What NVMe will drop next is packed with its ancestors that no pack has, in path order, so that a prefix lies in
//! few packs and comes back in few requests. Reading for it waits behind everything else on NVMe's lane.

use std::{collections::HashSet, sync::Arc, time::Duration};

use kelvin_tiering::Device;
use tokio_util::sync::CancellationToken;

use super::{
    Tiers,
    nvme::{Nvme, NvmeCopy},
    object::{Objects, Packing},
    offload::packs,
};
use crate::store::BlockKey;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Everything written is made to survive a power failure this often.
const SYNC_EVERY: Duration = Duration::from_millis(100);
const COLLECT_EVERY: Duration = Duration::from_secs(30);
const FILL_PERCENT: u64 = 70;
const WINDOW_PERCENT: u64 = 20;
const WINDOW_BLOCKS_MAX: usize = 8192;

/// Packs what NVMe will drop next, until `stop`.
pub(crate) async fn run(tiers: Arc<Tiers>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        while tiers.cascade_once(false).await > 0 {
            if stop.is_cancelled() {
                return;
            }
        }
    }
}

/// Syncs what was written, and collects dead packs, until `stop`.
pub(crate) async fn keep_house(tiers: Arc<Tiers>, stop: CancellationToken) {
    let mut synced = 0;
    let mut next_collection = tokio::time::Instant::now() + COLLECT_EVERY;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(SYNC_EVERY) => {}
        }
        if let Some(nvme) = &tiers.nvme {
            let written = nvme.counters.offloaded.get();
            if written != synced {
                nvme.sync().await;
                synced = written;
            }
        }
        if tokio::time::Instant::now() >= next_collection {
            tiers.collect().await;
            next_collection = tokio::time::Instant::now() + COLLECT_EVERY;
        }
    }
    if let Some(nvme) = &tiers.nvme {
        nvme.sync().await;
    }
}

impl Tiers {
    /// Packs one lot; how many blocks got a copy. With `all`, of everything on NVMe.
    pub(super) async fn cascade_once(&self, all: bool) -> u64 {
        let (Some(nvme), Some(object)) = (&self.nvme, &self.object) else { return 0 };
        let _one = self.cascading.lock().await;
        let chains = chains(nvme, object, all);
        let mut copied = 0;
        for group in by_namespace(chains) {
            let namespace = group[0].1.namespace.clone();
            for pack in packs(group, |(_, copy)| copy.slot.bytes(), object.pack_bytes(), all) {
                let mut packing = Vec::with_capacity(pack.len());
                for (key, copy) in pack {
                    // What stands behind a block that could not be read has no parent in a pack: it waits.
                    let Some(bytes) = nvme.read_quietly(&key, &copy).await else { break };
                    packing.push(Packing { key, parent: copy.parent, checksum: copy.checksum, bytes });
                }
                let count = packing.len() as u64;
                if count > 0 && object.store(&namespace, packing).await {
                    copied += count;
                }
            }
        }
        copied
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
        nvme.keys()
    } else {
        let usage = nvme.device().usage();
        if usage.used_bytes * 100 < usage.capacity_bytes * FILL_PERCENT {
            return Vec::new();
        }
        let window = (usage.places * WINDOW_PERCENT / 100 + 1).min(WINDOW_BLOCKS_MAX as u64);
        nvme.upcoming(window as usize)
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
            if taken.contains(&key) || object.contains(&key) {
                break true;
            }
            let Some(copy) = nvme.copy(&key) else { break false };
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

impl Nvme {
    /// The bytes of a copy, checked, behind everything else that waits for the device.
    pub(super) async fn read_quietly(&self, key: &BlockKey, copy: &NvmeCopy) -> Option<Vec<u8>> {
        let bytes = copy.slot.bytes();
        // A place among the writes: those wait for reads.
        let permit = self.lane().write(bytes).await?;
        let read = self.device().read(copy.slot.clone(), 0, vec![0; bytes as usize]);
        let (_, bytes, result) = tokio::time::timeout(super::nvme::READ_DEADLINE, read).await.ok()?;
        if let Err(error) = result {
            tracing::warn!(block = %key.hash, %error, "a block could not be read from NVMe");
            return None;
        }
        let mut permit = permit;
        permit.give_back();
        drop(permit);
        let found = kelvin_kernels::checksum(&bytes);
        if found != copy.checksum {
            self.quarantine(key, copy, found);
            return None;
        }
        Some(bytes)
    }
}
