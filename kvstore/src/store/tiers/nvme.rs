//! The NVMe tier: copies of blocks on flash, and the catalog that finds them again.
//!
//! # Overview
//! [`Nvme`] owns a device, the copies on it (by block: slot, checksum, parent), and their records in the catalog.
//! Reading them back is in [`read`](super::read).
//!
//! # Crash consistency
//! A copy is written whole, then its record, then it is entered in the table and in the namespace's index:
//! what the index shows can be found again after a crash. A copy goes the other way round: out of the index,
//! then its record, then its slot is free. A crash in between leaves a slot without a record, which the next
//! start finds free, or a record whose slot has other bytes, which its checksum tells.
//!
//! A copy is entered only when its parent has one: what a crash leaves can be matched from its start.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use kelvin_kernels::Checksum;
use kelvin_tiering::{Attributes, Device, NvmeFile, NvmeSlot, Order, Tier, Usage, Weight, mover::Lane};

use super::{
    attach::BlockBytes,
    copies::{Copies, Held, announce, withdraw},
    flash::Flash,
    reason_of,
    report::{TierCounters, TierReport},
    unix_ms_of,
};
use crate::{
    SequenceHash,
    catalog::{Catalog, Record},
    insight::Reason,
    store::{BlockKey, Clock, ImmutableBlock, Namespace, meters, table::Keyed},
};

/// Writes of one batch under way at a time.
const WRITES_AHEAD: usize = 32;
/// A block on its way out of DRAM.
pub(super) struct Outgoing {
    pub(super) key: BlockKey,
    pub(super) namespace: Arc<Namespace>,
    pub(super) block: ImmutableBlock,
}

/// A copy on the device.
#[derive(Clone)]
pub(super) struct NvmeCopy {
    pub(super) slot: Arc<NvmeSlot>,
    pub(super) namespace: Arc<Namespace>,
    pub(super) parent: Option<SequenceHash>,
    pub(super) checksum: Checksum,
    pub(super) sequence: u64,
}

impl Held for NvmeCopy {
    fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    fn parent(&self) -> Option<SequenceHash> {
        self.parent
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.slot, &other.slot)
    }
}

/// What the tier keeps beside its copies.
#[derive(Default)]
pub(super) struct Slots {
    /// Kept away from use since their bytes came back wrong.
    pub(super) quarantine: Vec<Arc<NvmeSlot>>,
}

/// The tier.
pub(crate) struct Nvme {
    device: Flash,
    catalog: Arc<Catalog>,
    lane: Lane,
    clock: Arc<dyn Clock>,
    /// A read that takes longer is given up.
    pub(super) read_deadline: Duration,
    pub(super) copies: Copies<NvmeCopy, Slots>,
    pub(super) counters: TierCounters,
}

impl Nvme {
    pub(super) fn new(
        device: Flash,
        catalog: Arc<Catalog>,
        lane: Lane,
        order: Order<BlockKey, Keyed>,
        clock: Arc<dyn Clock>,
        read_deadline: Duration,
    ) -> Self {
        let copies = Copies::new(order, Slots::default());
        Self { device, catalog, lane, clock, read_deadline, copies, counters: TierCounters::default() }
    }

    /// Its files and devices, each with the bytes of the slots in use.
    pub(crate) fn files(&self) -> Vec<(NvmeFile, u64)> {
        let mut used: HashMap<u16, u64> = HashMap::new();
        for copy in self.copies.lock().by_key.values() {
            *used.entry(copy.slot.address().file).or_default() += NvmeSlot::slot_bytes_for(copy.slot.bytes());
        }
        let files = self.device.device().files().into_iter().zip(0..);
        files.map(|(file, at)| (file, used.get(&at).copied().unwrap_or(0))).collect()
    }

    /// The same without the slots, which takes a walk through all copies.
    pub(crate) fn states(&self) -> Vec<NvmeFile> {
        self.device.device().files()
    }

    pub(super) fn device(&self) -> &Flash {
        &self.device
    }

    pub(super) fn lane(&self) -> &Lane {
        &self.lane
    }

    /// Writes copies, parents before children, and enters those that arrived. Returns how many.
    pub(super) async fn store(&self, batch: Vec<Outgoing>) -> usize {
        let now = self.clock.now();
        let mut placed = Vec::with_capacity(batch.len());
        for outgoing in batch {
            let bytes = outgoing.block.slot().len();
            match self.room(bytes, now) {
                Some(slot) => placed.push((outgoing, slot)),
                // Those behind it would have no parent here.
                None => break,
            }
        }
        let writes = placed.into_iter().map(|(outgoing, slot)| self.write(outgoing, slot));
        let written: Vec<_> = stream::iter(writes).buffered(WRITES_AHEAD).collect().await;
        self.enter(written.into_iter().flatten().collect())
    }

    async fn write(&self, outgoing: Outgoing, slot: NvmeSlot) -> Option<(Outgoing, NvmeSlot)> {
        let (bytes, began) = (outgoing.block.slot().len(), meters::begin());
        let Some(permit) = self.lane.write(bytes).await else {
            self.counters.refused.add(1);
            return None;
        };
        let (slot, _, result) = self.device.write(slot, 0, BlockBytes(outgoing.block.clone())).await;
        match result {
            Ok(()) => {
                permit.done();
                self.counters.from_dram.note(bytes, began);
                Some((outgoing, slot))
            }
            Err(error) => {
                drop(permit);
                tracing::warn!(block = %outgoing.key.hash, %error, "a block could not be written to NVMe");
                None
            }
        }
    }

    /// Records what was written, then shows it.
    fn enter(&self, written: Vec<(Outgoing, NvmeSlot)>) -> usize {
        let mut arrived: HashSet<BlockKey> = HashSet::new();
        let mut entering = Vec::with_capacity(written.len());
        let mut sequence = self.catalog.next_sequence(written.len() as u64);
        let mut records = Vec::with_capacity(written.len());
        for (outgoing, slot) in written {
            let (key, parent) = (outgoing.key, outgoing.block.parent());
            let above = parent.map(|hash| BlockKey { hash, ..key });
            if above.is_some_and(|above| !arrived.contains(&above) && !self.copies.contains(&above)) {
                continue;
            }
            arrived.insert(key);
            records.push(Record {
                namespace: outgoing.namespace.persistent,
                sequence,
                hash: key.hash,
                parent,
                file: slot.address().file,
                offset: slot.address().offset,
                bytes: outgoing.block.slot().len() as u32,
                checksum: outgoing.block.checksum(),
                priority: outgoing.block.priority(),
                expires_at_unix_ms: outgoing.block.expires_at().map(|at| unix_ms_of(at, self.clock.now())),
            });
            entering.push((outgoing, slot, sequence));
            sequence += 1;
        }
        if let Err(error) = self.catalog.append(&records) {
            tracing::error!(%error, blocks = records.len(), "the catalog takes no records: copies dropped");
            self.counters.errors.add(1);
            return 0;
        }
        let mut entered = 0;
        for (outgoing, slot, sequence) in entering {
            let Outgoing { key, namespace, block } = outgoing;
            let copy = NvmeCopy {
                slot: Arc::new(slot),
                namespace: namespace.clone(),
                parent: block.parent(),
                checksum: block.checksum(),
                sequence,
            };
            let attributes = Attributes {
                group: key.namespace,
                weight: Weight { bytes: block.slot().len() as u32, cost: namespace.spec.block_tokens },
                priority: block.priority(),
                expires_at: block.expires_at(),
            };
            let before = self.copies.lock().insert(key, copy.clone(), attributes);
            if let Some(before) = before {
                // Its slot must not be used again while its record stands.
                self.forget(&before);
            }
            let (parent, tick) = (block.parent(), self.clock.now().as_millis() as u64);
            if namespace.index.insert(parent, key.hash, Tier::Nvme as u32, tick).is_err() {
                self.take(&key, &copy);
                continue;
            }
            announce(Tier::Nvme, &key, &copy);
            entered += 1;
        }
        entered
    }

    /// Enters a copy in the table alone, at a restart.
    pub(super) fn insert_unordered(&self, key: BlockKey, copy: NvmeCopy) -> Option<NvmeCopy> {
        self.copies.lock().by_key.insert(key, copy)
    }

    /// Puts copies of an earlier start in order, parents first, unless they went meanwhile.
    pub(super) fn put_in_order(&self, blocks: &[(BlockKey, Attributes)]) {
        let table = &mut *self.copies.lock();
        for (key, attributes) in blocks {
            if let Some(copy) = table.by_key.get(key)
                && !table.order.contains(key)
            {
                table.order.insert(*key, copy.parent.map(|hash| BlockKey { hash, ..*key }), *attributes);
            }
        }
    }

    /// A slot; copies make room for it in their order.
    fn room(&self, bytes: u64, now: Duration) -> Option<NvmeSlot> {
        // Bounded: a device of many sizes may have to empty an extent, but a device that gives nothing back
        // must not be emptied for it. A copy in a file that takes no writes frees nothing, but what stands before
        // it, perhaps elsewhere, can go only after it.
        for _ in 0..4096 {
            if let Some(slot) = self.device.allocate(bytes) {
                return Some(slot);
            }
            if !self.device.takes_writes() {
                return None;
            }
            let (victim, why) = self.copies.lock().victim(now)?;
            self.counters.evicted(why);
            self.drop_copy(&victim, reason_of(why));
        }
        None
    }

    /// Takes the copy of a block out, everywhere; whether there was one.
    pub(super) fn drop_copy(&self, key: &BlockKey, why: Reason) -> bool {
        self.copies.get(key).is_some_and(|copy| self.drop_this(key, &copy, why))
    }

    /// The same, unless the block has got another copy.
    pub(super) fn drop_this(&self, key: &BlockKey, copy: &NvmeCopy, why: Reason) -> bool {
        let taken = self.take(key, copy);
        if taken {
            withdraw(Tier::Nvme, key, copy, why, self.clock.now());
        }
        taken
    }

    /// Like [`drop_copy`](Self::drop_copy), unless the copy stands before another.
    pub(super) fn drop_tail(&self, key: &BlockKey, why: Reason) -> bool {
        let is_tail = self.copies.lock().order.is_tail(key);
        is_tail && self.drop_copy(key, why)
    }

    /// Takes a copy out of table and catalog; its slot is free once nobody reads it.
    fn take(&self, key: &BlockKey, copy: &NvmeCopy) -> bool {
        let taken = self.copies.lock().remove(key, Some(copy));
        if let Some(copy) = &taken {
            self.forget(copy);
        }
        taken.is_some()
    }

    /// Removes the record of a copy, before its slot can be used again: the copy in hand holds it.
    fn forget(&self, copy: &NvmeCopy) {
        if let Err(error) = self.catalog.remove(&[(copy.namespace.persistent, copy.sequence)]) {
            tracing::warn!(%error, "a record could not be removed: its checksum will tell");
            self.counters.errors.add(1);
        }
    }

    /// Makes everything entered so far survive a power failure; whether it does.
    pub(super) async fn sync(&self) -> bool {
        let fails = |what: &str, error: &dyn std::fmt::Display| {
            tracing::warn!(%error, "{what} could not be synced");
            self.counters.errors.add(1);
        };
        if let Err(error) = self.device.sync().await {
            fails("NVMe data", &error);
            return false;
        }
        if let Err(error) = self.catalog.sync() {
            fails("the catalog", &error);
            return false;
        }
        true
    }

    pub(super) fn report(&self) -> TierReport {
        let Usage { capacity_bytes, used_bytes, .. } = self.device.usage();
        let (blocks, quarantined) = {
            let table = self.copies.lock();
            (table.by_key.len() as u64, table.more.quarantine.len() as u64)
        };
        let lane = self.lane.stats();
        TierReport {
            tier: Tier::Nvme,
            capacity_bytes,
            used_bytes,
            blocks,
            quarantined,
            lane,
            healthy: self.device.is_healthy(),
            counts: self.counters.snapshot(),
        }
    }
}
