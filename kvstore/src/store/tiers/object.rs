//! The object tier: packs of blocks in S3 or a directory, and the directory of what is in which.
//!
//! # Overview
//! [`Objects`] knows every block that a known pack holds. A pack is written once, from blocks in path order, and
//! never changes; blocks go from it by being forgotten here. A pack without live blocks is deleted; one
//! with few is written anew ([`Objects::collect`]).
//!
//! The bucket is the truth: a pack that another node wrote is found by listing, and one that another node
//! deleted is a miss. Only packs that this store wrote are collected by it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use kelvin_kernels::Checksum;
use kelvin_tiering::{
    Attributes, DramSlot, ObjectStats, Order, PackEntry, PackId, PackInfo, PackStore, ReadFailure, Tier,
    Weight, mover::Lane,
};
use tokio::sync::Notify;

use super::{
    LoadFailure,
    copies::{Copies, Held, announce, withdraw},
    reason_of,
    report::{TierCounters, TierReport},
};
use crate::{
    SequenceHash,
    catalog::Catalog,
    insight::Reason,
    store::{BlockKey, Clock, Namespace, meters, table::Keyed},
};

/// A copy in a pack.
#[derive(Clone)]
pub(super) struct ObjectCopy {
    pub(super) pack: PackId,
    pub(super) namespace: Arc<Namespace>,
    pub(super) parent: Option<SequenceHash>,
    pub(super) offset: u64,
    pub(super) bytes: u32,
    pub(super) checksum: Checksum,
}

impl ObjectCopy {
    pub(super) fn entry(&self, hash: SequenceHash) -> PackEntry {
        PackEntry {
            hash: hash.to_bytes(),
            parent: self.parent.map(|parent| parent.to_bytes()),
            offset: self.offset,
            bytes: self.bytes,
            checksum: self.checksum,
        }
    }
}

impl Held for ObjectCopy {
    fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    fn parent(&self) -> Option<SequenceHash> {
        self.parent
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.pack, self.offset) == (other.pack, other.offset)
    }
}

pub(super) struct Pack {
    pub(super) namespace: Arc<Namespace>,
    pub(super) bytes: u64,
    pub(super) blocks: u32,
    pub(super) live: u32,
    /// Whether this store wrote it, and so collects it.
    pub(super) own: bool,
}

/// What the tier keeps beside its copies.
#[derive(Default)]
pub(super) struct Packs {
    pub(super) by_id: HashMap<PackId, Pack>,
    /// Of all copies.
    live_bytes: u64,
}

impl Packs {
    /// A copy came to its pack.
    pub(super) fn add(&mut self, copy: &ObjectCopy) {
        self.live_bytes += u64::from(copy.bytes);
        if let Some(pack) = self.by_id.get_mut(&copy.pack) {
            pack.live += 1;
        }
    }

    /// And went.
    pub(super) fn remove(&mut self, copy: &ObjectCopy) {
        self.live_bytes -= u64::from(copy.bytes);
        if let Some(pack) = self.by_id.get_mut(&copy.pack) {
            pack.live -= 1;
        }
    }
}

/// The tier.
pub(crate) struct Objects {
    packs: PackStore,
    catalog: Arc<Catalog>,
    lane: Lane,
    clock: Arc<dyn Clock>,
    capacity_bytes: u64,
    pack_bytes: u64,
    /// A read that waits longer for its turn is given up.
    turn_deadline: Duration,
    pub(super) copies: Copies<ObjectCopy, Packs>,
    pub(super) counters: TierCounters,
    /// Wakes who looks for other nodes' packs.
    pub(super) discover_wanted: Notify,
}

/// A block to be packed, with its bytes.
pub(super) struct Packing<B> {
    pub(super) key: BlockKey,
    pub(super) parent: Option<SequenceHash>,
    pub(super) checksum: Checksum,
    pub(super) bytes: B,
}

impl Objects {
    pub(super) fn new(
        packs: PackStore,
        catalog: Arc<Catalog>,
        lane: Lane,
        (capacity_bytes, pack_bytes): (u64, u64),
        order: Order<BlockKey, Keyed>,
        clock: Arc<dyn Clock>,
        turn_deadline: Duration,
    ) -> Self {
        let copies = Copies::new(order, Packs::default());
        let counters = TierCounters::default();
        Self {
            packs,
            catalog,
            lane,
            clock,
            capacity_bytes,
            pack_bytes,
            turn_deadline,
            copies,
            counters,
            discover_wanted: Notify::new(),
        }
    }

    pub(super) fn packs(&self) -> &PackStore {
        &self.packs
    }

    /// Bytes that a pack should have, about.
    pub(super) fn pack_bytes(&self) -> u64 {
        self.pack_bytes
    }

    pub(super) fn lane(&self) -> &Lane {
        &self.lane
    }

    /// What the object store was asked.
    pub(crate) fn requests(&self) -> ObjectStats {
        self.packs.stats()
    }

    /// Writes one pack of one namespace's blocks, which come from `source`, parents before children; whether it
    /// arrived.
    pub(super) async fn store<B>(
        &self,
        source: Tier,
        namespace: &Arc<Namespace>,
        blocks: Vec<Packing<B>>,
    ) -> bool
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        let began = meters::begin();
        let bytes = blocks.iter().map(|block| block.bytes.as_ref().len() as u64).sum();
        let Some(permit) = self.lane.write(bytes).await else {
            self.counters.refused.add(blocks.len() as u64);
            return false;
        };
        let count = blocks.len() as u64;
        let entries = blocks.into_iter().map(|block| {
            let entry = PackEntry {
                hash: block.key.hash.to_bytes(),
                parent: block.parent.map(|parent| parent.to_bytes()),
                offset: 0,
                bytes: block.bytes.as_ref().len() as u32,
                checksum: block.checksum,
            };
            (entry, block.bytes)
        });
        match self.packs.put(namespace.persistent, entries.collect()).await {
            Ok(info) => {
                permit.done();
                self.record(&info);
                self.enter(namespace, &info, true);
                self.counters.offloaded.add(count);
                let edge = match source {
                    Tier::Nvme => &self.counters.from_nvme,
                    _ => &self.counters.from_dram,
                };
                edge.note(bytes, began);
                self.shrink();
                true
            }
            Err(error) => {
                drop(permit);
                tracing::warn!(%error, blocks = count, "a pack could not be written");
                false
            }
        }
    }

    /// Notes a pack of this store in the catalog. The bucket has it already: a failure costs a restart a request.
    pub(super) fn record(&self, info: &PackInfo) {
        if let Err(error) = self.catalog.put_pack(&super::pack_record(info)) {
            tracing::warn!(%error, pack = %info.id, "the catalog takes no pack: a restart lists it again");
            self.counters.errors.add(1);
        }
    }

    /// Shows the blocks of a pack; those without a parent in the index, or that are no blocks of the namespace,
    /// are left out. Returns how many are shown.
    pub(super) fn enter(&self, namespace: &Arc<Namespace>, info: &PackInfo, own: bool) -> usize {
        {
            let mut table = self.copies.lock();
            let blocks = info.entries.len() as u32;
            let pack = Pack { namespace: namespace.clone(), bytes: info.bytes, blocks, live: 0, own };
            // A listing may have come across an own pack before it was entered as one.
            table.more.by_id.entry(info.id).or_insert(pack).own |= own;
        }
        let mut shown = 0;
        for entry in &info.entries {
            let key = BlockKey { namespace: namespace.id, hash: SequenceHash::from_bytes(entry.hash) };
            // Another node may have written anything.
            let fits = u64::from(entry.bytes) == namespace.spec.block_bytes;
            if !fits || self.copies.contains(&key) {
                continue;
            }
            let parent = entry.parent.map(SequenceHash::from_bytes);
            if namespace.index.insert(parent, key.hash, Tier::Object as u32, self.tick()).is_err() {
                continue;
            }
            let copy = ObjectCopy {
                pack: info.id,
                namespace: namespace.clone(),
                parent,
                offset: entry.offset,
                bytes: entry.bytes,
                checksum: entry.checksum,
            };
            let attributes = Attributes {
                group: key.namespace,
                weight: Weight { bytes: entry.bytes, cost: namespace.spec.block_tokens },
                priority: 0,
                expires_at: None,
            };
            {
                let mut table = self.copies.lock();
                table.more.add(&copy);
                if let Some(before) = table.insert(key, copy.clone(), attributes) {
                    table.more.remove(&before);
                }
            }
            announce(Tier::Object, &key, &copy);
            shown += 1;
        }
        tracing::debug!(pack = %info.id, shown, "pack known");
        shown
    }

    /// The clock for the index.
    fn tick(&self) -> u64 {
        self.clock.now().as_millis() as u64
    }

    /// Whether a pack is known.
    pub(super) fn knows(&self, pack: &PackId) -> bool {
        self.copies.lock().more.by_id.contains_key(pack)
    }

    /// The known packs of a namespace.
    pub(super) fn packs_of(&self, namespace: &Namespace) -> HashSet<PackId> {
        let table = self.copies.lock();
        let of_namespace = table.more.by_id.iter().filter(|(_, pack)| pack.namespace.id == namespace.id);
        of_namespace.map(|(id, _)| *id).collect()
    }

    /// Forgets packs of a namespace that are not in the bucket any more.
    pub(super) fn forget_packs(&self, namespace: &Namespace, gone: &HashSet<PackId>) {
        if gone.is_empty() {
            return;
        }
        let lost = gone.iter().map(|id| self.forget_pack(namespace, *id)).sum();
        tracing::warn!(packs = gone.len(), blocks = lost, "packs are gone from the object store");
        self.counters.lost.add(lost);
    }

    /// Forgets a pack that is gone; how many copies were in it still.
    pub(super) fn forget_pack(&self, namespace: &Namespace, id: PackId) -> u64 {
        let lost = self.copies_in(id);
        for (key, copy) in &lost {
            self.drop_this(key, copy, Reason::TierFailed);
        }
        self.copies.lock().more.by_id.remove(&id);
        if let Err(error) = self.catalog.remove_pack(&namespace.persistent, &id.0) {
            tracing::warn!(%error, "the catalog could not forget a pack");
            self.counters.errors.add(1);
        }
        lost.len() as u64
    }

    /// The copies in a pack.
    pub(super) fn copies_in(&self, pack: PackId) -> Vec<(BlockKey, ObjectCopy)> {
        let table = self.copies.lock();
        let of_pack = table.by_key.iter().filter(|(_, copy)| copy.pack == pack);
        of_pack.map(|(key, copy)| (*key, copy.clone())).collect()
    }

    /// Drops copies while the tier has more than it may.
    fn shrink(&self) {
        if self.capacity_bytes == 0 {
            return;
        }
        loop {
            let victim = {
                let mut table = self.copies.lock();
                if table.more.live_bytes <= self.capacity_bytes {
                    return;
                }
                table.victim(self.clock.now())
            };
            let Some((victim, why)) = victim else { return };
            self.counters.evicted(why);
            self.drop_copy(&victim, reason_of(why));
        }
    }

    /// Forgets the copy of a block, everywhere; whether there was one.
    pub(super) fn drop_copy(&self, key: &BlockKey, why: Reason) -> bool {
        self.copies.get(key).is_some_and(|copy| self.drop_this(key, &copy, why))
    }

    /// The same, unless the block has got another copy.
    fn drop_this(&self, key: &BlockKey, copy: &ObjectCopy, why: Reason) -> bool {
        {
            let mut table = self.copies.lock();
            let Some(copy) = table.remove(key, Some(copy)) else { return false };
            table.more.remove(&copy);
        }
        withdraw(Tier::Object, key, copy, why, self.clock.now());
        true
    }

    /// Reads blocks of one pack into slots of DRAM, checked; in the order of `wanted`.
    pub(super) async fn load(
        &self,
        pack: PackId,
        wanted: Vec<(BlockKey, ObjectCopy, DramSlot)>,
    ) -> Vec<(BlockKey, ObjectCopy, Result<DramSlot, LoadFailure>)> {
        let Some(namespace) = wanted.first().map(|(_, copy, _)| copy.namespace.clone()) else {
            return Vec::new();
        };
        let began = meters::begin();
        let bytes = wanted.iter().map(|(_, copy, _)| u64::from(copy.bytes)).sum();
        // As long as a read may take: with a slow store each turn ahead takes that long.
        let permit = match tokio::time::timeout(self.turn_deadline, self.lane.read(bytes)).await {
            Ok(Some(permit)) => permit,
            turned_away => {
                let why = if turned_away.is_ok() { LoadFailure::Busy } else { LoadFailure::Late };
                self.counters.timeouts.add(u64::from(turned_away.is_err()));
                return wanted.into_iter().map(|(key, copy, _)| (key, copy, Err(why))).collect();
            }
        };
        let (asked, slots): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .map(|(key, copy, slot)| {
                let entry = copy.entry(key.hash);
                ((key, copy), (entry, slot))
            })
            .unzip();
        let answers = self.packs.get(namespace.persistent, pack, slots).await;
        if answers.iter().all(|(_, result)| result.is_ok()) {
            permit.done();
            self.counters.to_dram.note(bytes, began);
        } else {
            drop(permit);
        }
        let mut read = Vec::with_capacity(answers.len());
        for ((key, copy), (slot, result)) in asked.into_iter().zip(answers) {
            let result = match result {
                Ok(()) => Ok(slot),
                Err(failure) => Err(self.failed(&key, &copy, failure)),
            };
            read.push((key, copy, result));
        }
        read
    }

    /// What a failed read means: a copy that is wrong or gone is forgotten, one that could not be reached stays.
    pub(super) fn failed(&self, key: &BlockKey, copy: &ObjectCopy, failure: ReadFailure) -> LoadFailure {
        match failure {
            ReadFailure::Damaged => {
                tracing::error!(block = %key.hash, pack = %copy.pack, "damaged block in a pack dropped");
                self.counters.damaged.add(1);
                self.drop_this(key, copy, Reason::Quarantined);
                LoadFailure::Damaged
            }
            ReadFailure::Missing => {
                // Unless it was written anew meanwhile, and the old pack deleted.
                if self.drop_this(key, copy, Reason::TierFailed) {
                    tracing::warn!(block = %key.hash, pack = %copy.pack, "a pack, or its end, is gone");
                    self.counters.lost.add(1);
                }
                LoadFailure::Gone
            }
            ReadFailure::Timeout => {
                self.counters.timeouts.add(1);
                LoadFailure::Late
            }
            // The way there, not the block: that may be whole, and is asked for again by the next call.
            ReadFailure::Unavailable | ReadFailure::Failed(_) => LoadFailure::Busy,
        }
    }

    /// Whether requests are made at the moment, or the breaker is open.
    pub(super) fn answers(&self) -> bool {
        self.packs.answers()
    }

    /// Packs, their bytes, and those of live blocks.
    pub(crate) fn survey(&self) -> (u64, u64, u64) {
        let packs = &self.copies.lock().more;
        (packs.by_id.len() as u64, packs.by_id.values().map(|pack| pack.bytes).sum(), packs.live_bytes)
    }

    pub(super) fn report(&self) -> TierReport {
        let (_, stored_bytes, _) = self.survey();
        let blocks = self.copies.len();
        TierReport {
            tier: Tier::Object,
            capacity_bytes: self.capacity_bytes,
            used_bytes: stored_bytes,
            blocks,
            quarantined: 0,
            lane: self.lane.stats(),
            healthy: self.answers(),
            counts: self.counters.snapshot(),
        }
    }
}
