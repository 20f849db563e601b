//! The object tier: packs of blocks in S3 or a directory, and the directory of what is in which.
//!
//! # Overview
//! [`Objects`] knows every block that a known pack holds. A pack is written once, from blocks in path order, and
//! never changes; blocks go from it by being forgotten here. A pack without live blocks is deleted; one
//! with few is written anew ([`Objects::collect`]).
//!
//! The bucket is the truth: a pack that another node wrote is found by listing, and one that another node
//! deleted is a miss. Only packs that this store wrote are collected by it.
//!
//! # Locking
//! As for the NVMe tier: one lock for the table, never held across a request.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use kelvin_kernels::Checksum;
use kelvin_tiering::{
    Attributes, BreakerState, DramSlot, ObjectStats, Order, PackEntry, PackId, PackInfo, PackStore,
    ReadFailure, Tier, Weight, Why, mover::Lane,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    LoadFailure, reason_of,
    report::{TierCounters, TierReport},
    scrub::Verified,
};
use crate::{
    SequenceHash,
    catalog::Catalog,
    insight::Reason,
    store::{
        BlockKey, Clock, Keep, Namespace,
        events::{Event, EventKind},
        table::Keyed,
    },
};

/// A pack of which less than this is live is written anew.
const LIVE_RATIO_MIN: f64 = 0.5;

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
    fn entry(&self, hash: SequenceHash) -> PackEntry {
        PackEntry {
            hash: hash.to_bytes(),
            parent: self.parent.map(|parent| parent.to_bytes()),
            offset: self.offset,
            bytes: self.bytes,
            checksum: self.checksum,
        }
    }
}

struct Pack {
    namespace: Arc<Namespace>,
    bytes: u64,
    blocks: u32,
    live: u32,
    /// Whether this store wrote it, and so collects it.
    own: bool,
}

struct Table {
    copies: HashMap<BlockKey, ObjectCopy, Keyed>,
    packs: HashMap<PackId, Pack>,
    order: Order<BlockKey, Keyed>,
    bytes: u64,
}

/// The tier.
pub(crate) struct Objects {
    packs: PackStore,
    catalog: Arc<Catalog>,
    lane: Lane,
    clock: Arc<dyn Clock>,
    capacity_bytes: u64,
    pack_bytes: u64,
    table: Mutex<Table>,
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
        capacity_bytes: u64,
        pack_bytes: u64,
        order: Order<BlockKey, Keyed>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let table = Table { copies: HashMap::default(), packs: HashMap::new(), order, bytes: 0 };
        let counters = TierCounters::default();
        Self {
            packs,
            catalog,
            lane,
            clock,
            capacity_bytes,
            pack_bytes,
            table: Mutex::new(table),
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

    pub(super) fn copy(&self, key: &BlockKey) -> Option<ObjectCopy> {
        self.table.lock().copies.get(key).cloned()
    }

    pub(super) fn contains(&self, key: &BlockKey) -> bool {
        self.table.lock().copies.contains_key(key)
    }

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

    /// What the object store was asked.
    pub(crate) fn requests(&self) -> ObjectStats {
        self.packs.stats()
    }

    pub(super) fn set_quota(&self, group: u64, bytes: u64) {
        self.table.lock().order.set_quota(group, bytes);
    }

    /// Writes one pack of one namespace's blocks, parents before children; whether it arrived.
    pub(super) async fn store<B>(&self, namespace: &Arc<Namespace>, blocks: Vec<Packing<B>>) -> bool
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
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
    fn record(&self, info: &PackInfo) {
        if let Err(error) = self.catalog.put_pack(&super::pack_record(info)) {
            tracing::warn!(%error, pack = %info.id, "the catalog takes no pack: a restart lists it again");
            self.counters.errors.add(1);
        }
    }

    /// Shows the blocks of a pack; those without a parent in the index are left out. Returns how many are shown.
    pub(super) fn enter(&self, namespace: &Arc<Namespace>, info: &PackInfo, own: bool) -> usize {
        let mut shown = 0;
        let mut shown_bytes = 0;
        for entry in &info.entries {
            let hash = SequenceHash::from_bytes(entry.hash);
            let parent = entry.parent.map(SequenceHash::from_bytes);
            let key = BlockKey { namespace: namespace.id, hash };
            if self.contains(&key) {
                continue;
            }
            if namespace.index.insert(parent, hash, Tier::Object as u32, self.tick()).is_err() {
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
                let mut table = self.table.lock();
                let above = parent.map(|hash| BlockKey { hash, ..key });
                table.order.insert(key, above, attributes);
                table.copies.insert(key, copy);
                table.bytes += u64::from(entry.bytes);
            }
            namespace.events.push(Event { kind: EventKind::Stored, hash, parent, tier: Tier::Object });
            shown += 1;
            shown_bytes += u64::from(entry.bytes);
        }
        let blocks = info.entries.len() as u32;
        let mut table = self.table.lock();
        let pack = Pack { namespace: namespace.clone(), bytes: info.bytes, blocks, live: 0, own };
        table.packs.entry(info.id).or_insert(pack).live += shown;
        drop(table);
        tracing::debug!(pack = %info.id, shown, shown_bytes, "pack known");
        shown as usize
    }

    /// The clock for the index.
    fn tick(&self) -> u64 {
        self.clock.now().as_millis() as u64
    }

    /// Whether a pack is known.
    pub(super) fn knows(&self, pack: &PackId) -> bool {
        self.table.lock().packs.contains_key(pack)
    }

    /// The known packs of a namespace.
    pub(super) fn packs_of(&self, namespace: &Namespace) -> HashSet<PackId> {
        let table = self.table.lock();
        let of_namespace = table.packs.iter().filter(|(_, pack)| pack.namespace.id == namespace.id);
        of_namespace.map(|(id, _)| *id).collect()
    }

    /// Forgets packs of a namespace that are not in the bucket any more.
    pub(super) fn forget_packs(&self, namespace: &Namespace, gone: &HashSet<PackId>) {
        if gone.is_empty() {
            return;
        }
        let keys: Vec<BlockKey> = {
            let table = self.table.lock();
            let lost = table.copies.iter().filter(|(_, copy)| gone.contains(&copy.pack));
            lost.map(|(key, _)| *key).collect()
        };
        tracing::warn!(packs = gone.len(), blocks = keys.len(), "packs are gone from the object store");
        self.counters.lost.add(keys.len() as u64);
        for key in keys {
            self.drop_copy(&key, Why::Policy);
        }
        for id in gone {
            self.table.lock().packs.remove(id);
            if let Err(error) = self.catalog.remove_pack(&namespace.persistent, &id.0) {
                tracing::warn!(%error, "the catalog could not forget a pack");
            }
        }
    }

    /// Drops copies while the tier has more than it may.
    fn shrink(&self) {
        if self.capacity_bytes == 0 {
            return;
        }
        loop {
            let victim = {
                let mut table = self.table.lock();
                if table.bytes <= self.capacity_bytes {
                    return;
                }
                let Table { copies, order, .. } = &mut *table;
                order.victim(self.clock.now(), &mut |key| {
                    copies.get(key).is_none_or(|copy| copy.namespace.may_drop(key))
                })
            };
            let Some((victim, why)) = victim else { return };
            self.counters.evicted(why);
            self.drop_copy(&victim, why);
        }
    }

    /// Forgets a copy, everywhere.
    pub(super) fn drop_copy(&self, key: &BlockKey, why: Why) -> bool {
        let copy = {
            let mut table = self.table.lock();
            let Some(copy) = table.copies.remove(key) else { return false };
            table.order.remove(*key);
            table.bytes -= u64::from(copy.bytes);
            if let Some(pack) = table.packs.get_mut(&copy.pack) {
                pack.live -= 1;
            }
            copy
        };
        let namespace = &copy.namespace;
        namespace.index.remove(key.hash, Tier::Object as u32);
        namespace.events.push(Event {
            kind: EventKind::Removed,
            hash: key.hash,
            parent: copy.parent,
            tier: Tier::Object,
        });
        namespace.note_gone(key.hash, reason_of(why), Some(Tier::Object), self.clock.now());
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
        let bytes = wanted.iter().map(|(_, copy, _)| u64::from(copy.bytes)).sum();
        let Some(permit) = self.lane.read(bytes).await else {
            return wanted.into_iter().map(|(key, copy, _)| (key, copy, Err(LoadFailure::Busy))).collect();
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
    fn failed(&self, key: &BlockKey, copy: &ObjectCopy, failure: ReadFailure) -> LoadFailure {
        match failure {
            ReadFailure::Damaged => {
                tracing::error!(block = %key.hash, pack = %copy.pack, "damaged block in a pack dropped");
                self.counters.damaged.add(1);
                self.drop_copy(key, Why::Policy);
                copy.namespace.gone.note(key.hash, Reason::Quarantined, Some(Tier::Object), self.clock.now());
                LoadFailure::Damaged
            }
            ReadFailure::Missing => {
                self.drop_copy(key, Why::Policy);
                LoadFailure::Gone
            }
            ReadFailure::Timeout => {
                self.counters.timeouts.add(1);
                LoadFailure::Late
            }
            ReadFailure::Unavailable => LoadFailure::Busy,
            ReadFailure::Failed(_) => LoadFailure::Failed,
        }
    }

    /// Deletes dead packs of this store, and writes those anew of which little is live. Returns packs deleted,
    /// packs rewritten.
    pub(super) async fn collect(&self) -> (u64, u64) {
        let candidates: Vec<(PackId, Arc<Namespace>, bool)> = {
            let table = self.table.lock();
            let worth =
                |pack: &Pack| pack.own && f64::from(pack.live) < LIVE_RATIO_MIN * f64::from(pack.blocks);
            let worth = table.packs.iter().filter(|(_, pack)| worth(pack));
            worth.map(|(id, pack)| (*id, pack.namespace.clone(), pack.live > 0)).collect()
        };
        let (mut deleted, mut rewritten) = (0, 0);
        for (id, namespace, live) in candidates {
            if live {
                if !self.rewrite(id, &namespace).await {
                    continue;
                }
                rewritten += 1;
            }
            match self.packs.delete(namespace.persistent, id).await {
                Ok(()) => {
                    self.table.lock().packs.remove(&id);
                    if let Err(error) = self.catalog.remove_pack(&namespace.persistent, &id.0) {
                        tracing::warn!(%error, "the catalog could not forget a pack");
                        self.counters.errors.add(1);
                    }
                    deleted += 1;
                }
                Err(error) => tracing::warn!(%error, pack = %id, "a dead pack could not be deleted"),
            }
        }
        (deleted, rewritten)
    }

    /// Moves the live blocks of a pack into a new one.
    async fn rewrite(&self, id: PackId, namespace: &Arc<Namespace>) -> bool {
        let persistent = namespace.persistent;
        let Ok(info) = self.packs.footer(persistent, id).await else { return false };
        let keys: Vec<BlockKey> = info
            .entries
            .iter()
            .map(|entry| BlockKey { namespace: namespace.id, hash: SequenceHash::from_bytes(entry.hash) })
            .filter(|key| self.copy(key).is_some_and(|copy| copy.pack == id))
            .collect();
        let live: Vec<[u8; 16]> = keys.iter().map(|key| key.hash.to_bytes()).collect();
        let fresh = match self.packs.rewrite(&info, &live).await {
            Ok(fresh) => fresh,
            Err(error) => {
                tracing::warn!(%error, pack = %id, "a pack could not be written anew");
                return false;
            }
        };
        self.record(&fresh);
        let mut table = self.table.lock();
        let mut moved = 0;
        for entry in &fresh.entries {
            let key = BlockKey { namespace: namespace.id, hash: SequenceHash::from_bytes(entry.hash) };
            if let Some(copy) = table.copies.get_mut(&key)
                && copy.pack == id
            {
                (copy.pack, copy.offset) = (fresh.id, entry.offset);
                moved += 1;
            }
        }
        let blocks = fresh.entries.len() as u32;
        let pack = Pack { namespace: namespace.clone(), bytes: fresh.bytes, blocks, live: moved, own: true };
        table.packs.insert(fresh.id, pack);
        true
    }

    /// Every pack that is known.
    pub(super) fn pack_ids(&self) -> Vec<PackId> {
        self.table.lock().packs.keys().copied().collect()
    }

    /// Reads the live blocks of a pack and checks them.
    pub(super) async fn verify(&self, pack: PackId) -> Verified {
        let mut found = Verified::default();
        let wanted: Vec<(BlockKey, ObjectCopy)> = {
            let table = self.table.lock();
            let of_pack = table.copies.iter().filter(|(_, copy)| copy.pack == pack);
            of_pack.map(|(key, copy)| (*key, copy.clone())).collect()
        };
        let Some(namespace) = wanted.first().map(|(_, copy)| copy.namespace.persistent) else { return found };
        let buffers = wanted.iter().map(|(key, copy)| (copy.entry(key.hash), vec![0u8; copy.bytes as usize]));
        let answers = self.packs.get(namespace, pack, buffers.collect()).await;
        for ((key, copy), (_, result)) in wanted.iter().zip(answers) {
            found.blocks += 1;
            found.bytes += u64::from(copy.bytes);
            match result.map_err(|failure| self.failed(key, copy, failure)) {
                Ok(()) => {}
                Err(LoadFailure::Damaged) => found.damaged += 1,
                Err(_) => found.unreadable += 1,
            }
        }
        self.counters.scrubbed.add(found.blocks);
        found
    }

    /// Whether requests are made at the moment, or the breaker is open.
    pub(super) fn answers(&self) -> bool {
        self.packs.stats().read_breaker != BreakerState::Open
    }

    /// Packs, their bytes, and those of live blocks.
    pub(crate) fn survey(&self) -> (u64, u64, u64) {
        let table = self.table.lock();
        (table.packs.len() as u64, table.packs.values().map(|pack| pack.bytes).sum(), table.bytes)
    }

    pub(super) fn report(&self) -> TierReport {
        let (_, stored_bytes, _) = self.survey();
        let blocks = self.table.lock().copies.len() as u64;
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
