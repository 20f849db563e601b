//! The NVMe tier: copies of blocks on flash, and the catalog that finds them again.
//!
//! # Overview
//! [`Nvme`] owns a device, the table of what it holds (by block: slot, checksum, parent), the order in which
//! copies go, and their records in the catalog.
//!
//! # Crash consistency
//! A copy is written whole, then its record, then it is entered in the table and in the namespace's index:
//! what the index shows can be found again after a crash. A copy goes the other way round: out of the index,
//! then its record, then its slot is free. A crash in between leaves a slot without a record, which the next
//! start finds free, or a record whose slot has other bytes, which its checksum tells.
//!
//! A copy is entered only when its parent has one: what a crash leaves can be matched from its start.
//!
//! # Locking
//! The table's lock is held to look things up and to note what went, never across I/O. It is taken after a
//! tenant's lock and before an index's or an event log's.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use kelvin_kernels::{Checksum, checksum};
use kelvin_tiering::{
    Attributes, Device, DramSlot, NvmeFile, NvmeSlot, Order, Tier, Usage, Weight, Why, mover::Lane,
};
use parking_lot::Mutex;

use super::{
    LoadFailure,
    attach::BlockBytes,
    flash::Flash,
    reason_of,
    report::{TierCounters, TierReport},
    unix_ms_of,
};
use crate::{
    SequenceHash,
    catalog::{Catalog, Record},
    insight::Reason,
    store::{
        BlockKey, Clock, ImmutableBlock, Keep, Namespace,
        events::{Event, EventKind},
        table::Keyed,
    },
};

/// Writes of one batch under way at a time.
const WRITES_AHEAD: usize = 32;
/// Slots kept away from use since their bytes came back wrong.
const QUARANTINE_MAX: usize = 64;
/// A read that takes longer than this is given up.
pub(super) const READ_DEADLINE: Duration = Duration::from_secs(5);

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

struct Table {
    copies: HashMap<BlockKey, NvmeCopy, Keyed>,
    order: Order<BlockKey, Keyed>,
    quarantine: Vec<Arc<NvmeSlot>>,
}

/// The tier.
pub(crate) struct Nvme {
    device: Flash,
    catalog: Arc<Catalog>,
    lane: Lane,
    clock: Arc<dyn Clock>,
    table: Mutex<Table>,
    pub(super) counters: TierCounters,
}

impl Nvme {
    pub(super) fn new(
        device: Flash,
        catalog: Arc<Catalog>,
        lane: Lane,
        order: Order<BlockKey, Keyed>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let table = Table { copies: HashMap::default(), order, quarantine: Vec::new() };
        Self { device, catalog, lane, clock, table: Mutex::new(table), counters: TierCounters::default() }
    }

    /// Its files and devices, each with the bytes of the slots in use.
    pub(crate) fn files(&self) -> Vec<(NvmeFile, u64)> {
        let mut used: HashMap<u16, u64> = HashMap::new();
        for copy in self.table.lock().copies.values() {
            *used.entry(copy.slot.address().file).or_default() += NvmeSlot::slot_bytes_for(copy.slot.bytes());
        }
        let files = self.device.device().files().into_iter().zip(0..);
        files.map(|(file, at)| (file, used.get(&at).copied().unwrap_or(0))).collect()
    }

    pub(super) fn device(&self) -> &Flash {
        &self.device
    }

    pub(super) fn lane(&self) -> &Lane {
        &self.lane
    }

    /// The copy of a block.
    pub(super) fn copy(&self, key: &BlockKey) -> Option<NvmeCopy> {
        self.table.lock().copies.get(key).cloned()
    }

    pub(super) fn contains(&self, key: &BlockKey) -> bool {
        self.table.lock().copies.contains_key(key)
    }

    /// Notes the use of a prefix.
    pub(super) fn touch(&self, prefix: &[BlockKey]) {
        self.table.lock().order.touch(prefix);
    }

    /// Makes copies the first to go, the first of these first.
    pub(super) fn demote(&self, keys: &[BlockKey]) {
        let mut table = self.table.lock();
        keys.iter().for_each(|key| table.order.demote(*key));
    }

    /// How much a copy is worth.
    pub(super) fn keep(&self, key: &BlockKey) -> Keep {
        let table = self.table.lock();
        table.order.attributes(key).map_or_else(Keep::default, |attributes| Keep {
            priority: attributes.priority,
            expires_at: attributes.expires_at,
        })
    }

    /// The name of its order.
    pub(super) fn policy(&self) -> &'static str {
        self.table.lock().order.kind().name()
    }

    /// The copies that go next, for the tier below.
    pub(super) fn upcoming(&self, count: usize) -> Vec<BlockKey> {
        self.table.lock().order.upcoming(count, &mut |_| true)
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
        let bytes = outgoing.block.slot().len();
        let Some(permit) = self.lane.write(bytes).await else {
            self.counters.refused.add(1);
            return None;
        };
        let (slot, _, result) = self.device.write(slot, 0, BlockBytes(outgoing.block.clone())).await;
        match result {
            Ok(()) => {
                permit.done();
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
            if above.is_some_and(|above| !arrived.contains(&above) && !self.contains(&above)) {
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
            if let Some(before) = self.insert(key, copy, attributes) {
                // Its slot must not be used again while its record stands.
                self.forget(&before);
            }
            let (parent, tick) = (block.parent(), self.clock.now().as_millis() as u64);
            if namespace.index.insert(parent, key.hash, Tier::Nvme as u32, tick).is_err() {
                self.take(&key);
                continue;
            }
            namespace.events.push(Event {
                kind: EventKind::Stored,
                hash: key.hash,
                parent,
                tier: Tier::Nvme,
            });
            entered += 1;
        }
        entered
    }

    /// Enters a copy in table and order; returns the one that it had before.
    fn insert(&self, key: BlockKey, copy: NvmeCopy, attributes: Attributes) -> Option<NvmeCopy> {
        let parent = copy.parent.map(|hash| BlockKey { hash, ..key });
        let mut table = self.table.lock();
        table.order.insert(key, parent, attributes);
        table.copies.insert(key, copy)
    }

    /// Enters a copy in the table alone, at a restart.
    pub(super) fn insert_unordered(&self, key: BlockKey, copy: NvmeCopy) -> Option<NvmeCopy> {
        self.table.lock().copies.insert(key, copy)
    }

    /// Puts copies of an earlier start in order, parents first, unless they went meanwhile.
    pub(super) fn put_in_order(&self, blocks: &[(BlockKey, Attributes)]) {
        let Table { copies, order, .. } = &mut *self.table.lock();
        for (key, attributes) in blocks {
            if let Some(copy) = copies.get(key)
                && !order.contains(key)
            {
                order.insert(*key, copy.parent.map(|hash| BlockKey { hash, ..*key }), *attributes);
            }
        }
    }

    /// A slot; copies make room for it in their order.
    fn room(&self, bytes: u64, now: Duration) -> Option<NvmeSlot> {
        // Bounded: a device of many sizes may have to empty an extent, but a device that gives nothing back
        // must not be emptied for it.
        for _ in 0..4096 {
            if let Some(slot) = self.device.allocate(bytes) {
                return Some(slot);
            }
            let (victim, why) = {
                let Table { copies, order, .. } = &mut *self.table.lock();
                order
                    .victim(now, &mut |key| copies.get(key).is_none_or(|copy| copy.namespace.may_drop(key)))?
            };
            self.counters.evicted(why);
            self.drop_copy(&victim, why);
        }
        None
    }

    /// Takes a copy out, everywhere; for `why` it is remembered.
    pub(super) fn drop_copy(&self, key: &BlockKey, why: Why) -> bool {
        let Some(copy) = self.take(key) else { return false };
        let namespace = &copy.namespace;
        namespace.index.remove(key.hash, Tier::Nvme as u32);
        namespace.events.push(Event {
            kind: EventKind::Removed,
            hash: key.hash,
            parent: copy.parent,
            tier: Tier::Nvme,
        });
        namespace.note_gone(key.hash, reason_of(why), Some(Tier::Nvme), self.clock.now());
        true
    }

    /// Like [`drop_copy`](Self::drop_copy), unless the copy stands before another.
    pub(super) fn drop_tail(&self, key: &BlockKey, why: Why) -> bool {
        let is_tail = self.table.lock().order.is_tail(key);
        is_tail && self.drop_copy(key, why)
    }

    /// Takes a copy out of table and catalog; its slot is free once nobody reads it.
    fn take(&self, key: &BlockKey) -> Option<NvmeCopy> {
        let copy = {
            let mut table = self.table.lock();
            table.order.remove(*key);
            table.copies.remove(key)?
        };
        self.forget(&copy);
        Some(copy)
    }

    /// Removes the record of a copy, before its slot can be used again: the copy in hand holds it.
    fn forget(&self, copy: &NvmeCopy) {
        if let Err(error) = self.catalog.remove(&[(copy.namespace.persistent, copy.sequence)]) {
            tracing::warn!(%error, "a record could not be removed: its checksum will tell");
            self.counters.errors.add(1);
        }
    }

    /// Reads a copy into a slot of DRAM and checks it.
    pub(super) async fn load(
        &self,
        key: &BlockKey,
        copy: &NvmeCopy,
        target: DramSlot,
    ) -> Result<DramSlot, LoadFailure> {
        let bytes = target.len();
        let permit = self.lane.read(bytes).await.ok_or(LoadFailure::Busy)?;
        let read = self.device.read(copy.slot.clone(), 0, target);
        let Ok((_, target, result)) = tokio::time::timeout(READ_DEADLINE, read).await else {
            self.counters.timeouts.add(1);
            return Err(LoadFailure::Late);
        };
        if let Err(error) = result {
            tracing::warn!(block = %key.hash, %error, "a block could not be read from NVMe");
            self.drop_copy(key, Why::Policy);
            return Err(LoadFailure::Failed);
        }
        permit.done();
        let found = checksum(target.bytes());
        if found != copy.checksum {
            self.quarantine(key, copy, found);
            return Err(LoadFailure::Damaged);
        }
        Ok(target)
    }

    /// Drops a copy whose bytes are wrong, and keeps its slot from being used again for now.
    pub(super) fn quarantine(&self, key: &BlockKey, copy: &NvmeCopy, found: Checksum) {
        let at = copy.slot.address();
        tracing::error!(block = %key.hash, expected = %copy.checksum, %found, file = at.file, offset = at.offset,
            "damaged block on NVMe dropped");
        self.counters.damaged.add(1);
        {
            let mut table = self.table.lock();
            if table.quarantine.len() < QUARANTINE_MAX {
                table.quarantine.push(copy.slot.clone());
            }
        }
        if self.copy(key).is_some_and(|present| Arc::ptr_eq(&present.slot, &copy.slot)) {
            self.drop_copy(key, Why::Policy);
        }
        copy.namespace.gone.note(key.hash, Reason::Quarantined, Some(Tier::Nvme), self.clock.now());
    }

    /// Makes everything entered so far survive a power failure.
    pub(super) async fn sync(&self) {
        if let Err(error) = self.device.sync().await {
            tracing::warn!(%error, "NVMe data could not be synced");
            self.counters.errors.add(1);
            return;
        }
        if let Err(error) = self.catalog.sync() {
            tracing::warn!(%error, "the catalog could not be synced");
            self.counters.errors.add(1);
        }
    }

    /// Keys of copies, some at a time, for the scrubber: those after `cursor` in no order that means anything.
    pub(super) fn keys(&self) -> Vec<BlockKey> {
        self.table.lock().copies.keys().copied().collect()
    }

    pub(super) fn set_quota(&self, group: u64, bytes: u64) {
        self.table.lock().order.set_quota(group, bytes);
    }

    pub(super) fn report(&self) -> TierReport {
        let Usage { capacity_bytes, used_bytes, .. } = self.device.usage();
        let (blocks, quarantined) = {
            let table = self.table.lock();
            (table.copies.len() as u64, table.quarantine.len() as u64)
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
