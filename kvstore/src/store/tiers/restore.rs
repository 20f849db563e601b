//! The restart: what the catalog says is on the devices becomes table, order and index again.
//!
//! Index and table are back before the store serves. The order in which copies go, which costs more than both, is
//! filled while it does: until then a full device takes no new copies.
//!
//! Records come in the order in which they became durable, parents first. One whose parent, slot or namespace is
//! not there is dropped and counted: `lost`. Bytes are not read; their checksums are looked at when they are.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use kelvin_kernels::Checksum;
use kelvin_tiering::{Attributes, NvmeAddress, NvmeSlot, PackEntry, PackId, PackInfo, Tier, Weight};
use tokio_util::sync::CancellationToken;

use super::{
    Tiers,
    nvme::{Nvme, NvmeCopy},
    object::Objects,
    on_clock,
};
use crate::{
    catalog::{CatalogError, NamespaceId, PackRecord, Record},
    index::{HolderSet, TierSet},
    insight::Reason,
    store::{BlockKey, Namespace},
};

/// How often a bucket is looked at for packs of other nodes.
const DISCOVER_EVERY: Duration = Duration::from_secs(30);
/// Copies that are put in order under one lock: about a millisecond.
const ORDER_CHUNK: usize = 1024;
/// Threads that read the catalog.
const LOAD_THREADS: usize = 2;

/// What a restart brought back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Restored {
    /// Copies on NVMe.
    pub(crate) nvme_blocks: u64,
    /// Records without a slot, a parent or a namespace.
    pub(crate) lost: u64,
    /// Copies in packs.
    pub(crate) object_blocks: u64,
    /// Milliseconds it took.
    pub(crate) took_ms: u64,
}

impl Tiers {
    /// Brings back what the catalog knows, for the namespaces given.
    pub(crate) fn restore(
        &self,
        namespaces: &HashMap<NamespaceId, Arc<Namespace>>,
        now: Duration,
    ) -> Result<Restored, CatalogError> {
        let began = Instant::now();
        let mut restored = Restored::default();
        if let Some(nvme) = &self.nvme {
            let mut restart =
                Restart { namespaces, now, entered: Vec::new(), orphans: Vec::new(), useless: Vec::new() };
            let stats = self.catalog.load(LOAD_THREADS, |records| nvme.restore(&mut restart, records))?;
            nvme.adopt_orphans(&mut restart);
            let Restart { entered, useless, .. } = restart;
            restored.nvme_blocks = entered.len() as u64;
            restored.lost = useless.len() as u64 + stats.undecodable + stats.absent;
            for some in useless.chunks(4096) {
                self.catalog.remove(some)?;
            }
            *self.unordered.lock() = entered;
            nvme.counters.restored.add(restored.nvme_blocks);
            nvme.counters.lost.add(restored.lost);
        }
        if let Some(object) = &self.object {
            for (id, namespace) in namespaces {
                let (packs, skipped) = self.catalog.packs(id)?;
                restored.lost += skipped;
                let known: Vec<PackInfo> = packs.into_iter().map(pack_info).collect();
                restored.object_blocks += object.enter_all(namespace, &known, true) as u64;
            }
            object.counters.restored.add(restored.object_blocks);
        }
        restored.took_ms = began.elapsed().as_millis() as u64;
        Ok(restored)
    }

    /// Fills the order of what a restart brought back, a little at a time.
    pub(crate) async fn fill_order(self: Arc<Self>) {
        let unordered = std::mem::take(&mut *self.unordered.lock());
        let Some(nvme) = &self.nvme else { return };
        for some in unordered.chunks(ORDER_CHUNK) {
            nvme.put_in_order(some);
            tokio::task::yield_now().await;
        }
        self.cascade_wanted.stir();
    }

    /// Looks for packs of other nodes, and for own ones that the catalog lost, until `stop`.
    pub(crate) async fn discover(
        self: Arc<Self>,
        namespaces: impl Fn() -> Vec<Arc<Namespace>> + Send + 'static,
        stop: CancellationToken,
    ) {
        let Some(object) = &self.object else { return };
        loop {
            for namespace in namespaces() {
                let found = tokio::select! {
                    () = stop.cancelled() => return,
                    found = object.discover(&namespace) => found,
                };
                if found > 0 {
                    tracing::info!(
                        model = namespace.spec.model,
                        blocks = found,
                        "packs found in the object store"
                    );
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = object.discover_wanted.notified() => {}
                () = tokio::time::sleep(DISCOVER_EVERY) => {}
            }
        }
    }
}

/// A restart on its way.
struct Restart<'a> {
    namespaces: &'a HashMap<NamespaceId, Arc<Namespace>>,
    now: Duration,
    /// What is back, parents first.
    entered: Vec<(BlockKey, Attributes)>,
    /// Records whose parents may yet come: one that was damaged and stored anew has a later record than its
    /// children.
    orphans: Vec<(Record, NvmeSlot)>,
    /// Records of nothing that can be used.
    useless: Vec<(NamespaceId, u64)>,
}

impl Restart<'_> {
    /// A record of a block that is not there, or that nothing leads to.
    fn lose(&mut self, record: &Record) {
        self.useless.push((record.namespace, record.sequence));
        if let Some(namespace) = self.namespaces.get(&record.namespace) {
            namespace.note_gone(record.hash, Reason::LostAtRestart, Some(Tier::Nvme), self.now);
        }
    }
}

impl Nvme {
    /// Enters records whose slots and parents are there, in index and table; the order comes later.
    fn restore(&self, restart: &mut Restart<'_>, records: Vec<Record>) {
        let wanted: Vec<(NvmeAddress, u64)> = records
            .iter()
            .map(|record| (NvmeAddress { file: record.file, offset: record.offset }, u64::from(record.bytes)))
            .collect();
        let slots = self.device().claim_all(&wanted);
        let mut usable = Vec::with_capacity(records.len());
        for (record, slot) in records.into_iter().zip(slots) {
            let fits = |namespace: &Arc<Namespace>| namespace.spec.block_bytes == u64::from(record.bytes);
            match slot {
                Some(slot) if restart.namespaces.get(&record.namespace).is_some_and(fits) => {
                    usable.push((record, slot));
                }
                _ => restart.lose(&record),
            }
        }
        self.enter_records(restart, usable);
    }

    /// Enters records of one or several namespaces, a namespace's together; those without a parent become orphans.
    fn enter_records(&self, restart: &mut Restart<'_>, mut records: Vec<(Record, NvmeSlot)>) {
        let mut holders = TierSet::default();
        holders.insert(Tier::Nvme as u32);
        while let Some((first, _)) = records.first() {
            let id = first.namespace;
            let count = records.iter().take_while(|(record, _)| record.namespace == id).count();
            let rest = records.split_off(count);
            let of_one = std::mem::replace(&mut records, rest);
            let namespace = &restart.namespaces[&id];
            let blocks = of_one.iter().map(|(record, _)| (record.parent, record.hash, holders));
            let mut refused = HashSet::new();
            namespace.index.load(blocks, 0, |hash, _| {
                refused.insert(hash);
            });
            for (record, slot) in of_one {
                if refused.contains(&record.hash) {
                    restart.orphans.push((record, slot));
                    continue;
                }
                let key = BlockKey { namespace: namespace.id, hash: record.hash };
                let attributes = Attributes {
                    group: namespace.id,
                    weight: Weight { bytes: record.bytes, cost: namespace.spec.block_tokens },
                    priority: record.priority,
                    expires_at: record.expires_at_unix_ms.map(|at| on_clock(at, restart.now)),
                };
                let copy = NvmeCopy {
                    slot: Arc::new(slot),
                    namespace: namespace.clone(),
                    parent: record.parent,
                    checksum: record.checksum,
                    sequence: record.sequence,
                };
                // A hash recorded twice: the later record is the one that stands.
                match self.insert_unordered(key, copy) {
                    None => restart.entered.push((key, attributes)),
                    Some(before) => restart.useless.push((id, before.sequence)),
                }
            }
        }
    }

    /// Enters orphans as long as one finds its parent; the others are of no use.
    fn adopt_orphans(&self, restart: &mut Restart<'_>) {
        loop {
            let orphans = std::mem::take(&mut restart.orphans);
            let before = orphans.len();
            self.enter_records(restart, orphans);
            if restart.orphans.is_empty() || restart.orphans.len() == before {
                break;
            }
        }
        for (record, _) in std::mem::take(&mut restart.orphans) {
            restart.lose(&record);
        }
    }
}

impl Objects {
    /// Shows the blocks of packs; a pack whose parents stand in one further on comes again behind it.
    pub(super) fn enter_all(&self, namespace: &Arc<Namespace>, packs: &[PackInfo], own: bool) -> usize {
        let mut shown = 0;
        loop {
            let now: usize = packs.iter().map(|pack| self.enter(namespace, pack, own)).sum();
            shown += now;
            if now == 0 {
                return shown;
            }
        }
    }

    /// Enters the packs of the bucket that are not known; how many blocks that are.
    async fn discover(&self, namespace: &Arc<Namespace>) -> usize {
        // Before the listing: a pack that is written meanwhile is in neither, and stays.
        let known = self.packs_of(namespace);
        let listed = match self.packs().list(namespace.persistent).await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::debug!(%error, "the object store could not be listed");
                return 0;
            }
        };
        let there: HashSet<PackId> = listed.iter().copied().collect();
        self.forget_packs(namespace, &known.difference(&there).copied().collect());
        let mut found = Vec::new();
        for pack in listed.into_iter().filter(|pack| !self.knows(pack)) {
            match self.packs().footer(namespace.persistent, pack).await {
                Ok(info) => found.push(info),
                Err(error) => tracing::warn!(%error, %pack, "a pack could not be read: it is left out"),
            }
        }
        self.enter_all(namespace, &found, false)
    }
}

/// A pack as the object tier knows it.
fn pack_info(record: PackRecord) -> PackInfo {
    let entries = record.entries.into_iter().map(|entry| PackEntry {
        hash: entry.hash.to_bytes(),
        parent: entry.parent.map(|parent| parent.to_bytes()),
        offset: entry.offset,
        bytes: entry.bytes,
        checksum: Checksum(entry.checksum.0),
    });
    PackInfo {
        id: PackId(record.id),
        namespace: record.namespace,
        bytes: record.bytes,
        entries: entries.collect(),
    }
}
