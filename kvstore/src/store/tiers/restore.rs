//! The restart: what the catalog says is on the devices becomes table, order and index again.
//!
//! Records come in the order in which they became durable, parents first. One whose parent, slot or namespace is
//! not there is dropped and counted: `lost`. Bytes are not read; their checksums are looked at when they are.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use kelvin_kernels::Checksum;
use kelvin_tiering::{Attributes, NvmeAddress, PackEntry, PackId, PackInfo, Tier, Weight};
use tokio_util::sync::CancellationToken;

use super::{
    Tiers,
    nvme::{Nvme, NvmeCopy},
    object::Objects,
    on_clock,
};
use crate::{
    catalog::{CatalogError, NamespaceId, PackRecord, Record},
    store::{BlockKey, Namespace},
};

/// How often a bucket is looked at for packs of other nodes.
const DISCOVER_EVERY: Duration = Duration::from_secs(30);
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
            let mut useless = Vec::new();
            let stats = self.catalog.load(LOAD_THREADS, |records| {
                restored.nvme_blocks += nvme.restore(namespaces, records, now, &mut useless);
            })?;
            restored.lost = useless.len() as u64 + stats.undecodable + stats.absent;
            for some in useless.chunks(4096) {
                self.catalog.remove(some)?;
            }
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

impl Nvme {
    /// Enters records whose slots and parents are there; the others go to `useless`. Returns how many.
    fn restore(
        &self,
        namespaces: &HashMap<NamespaceId, Arc<Namespace>>,
        records: Vec<Record>,
        now: Duration,
        useless: &mut Vec<(NamespaceId, u64)>,
    ) -> u64 {
        let wanted: Vec<(NvmeAddress, u64)> = records
            .iter()
            .map(|record| (NvmeAddress { file: record.file, offset: record.offset }, u64::from(record.bytes)))
            .collect();
        let slots = self.device().claim_all(&wanted);
        let mut entered = 0;
        for (record, slot) in records.into_iter().zip(slots) {
            let id = (record.namespace, record.sequence);
            let (Some(namespace), Some(slot)) = (namespaces.get(&record.namespace), slot) else {
                useless.push(id);
                continue;
            };
            if u64::from(record.bytes) != namespace.spec.block_bytes
                || namespace.index.insert(record.parent, record.hash, Tier::Nvme as u32, 0).is_err()
            {
                useless.push(id);
                continue;
            }
            let key = BlockKey { namespace: namespace.id, hash: record.hash };
            let attributes = Attributes {
                group: namespace.id,
                weight: Weight { bytes: record.bytes, cost: namespace.spec.block_tokens },
                priority: record.priority,
                expires_at: record.expires_at_unix_ms.map(|at| on_clock(at, now)),
            };
            let copy = NvmeCopy {
                slot: Arc::new(slot),
                namespace: namespace.clone(),
                parent: record.parent,
                checksum: record.checksum,
                sequence: record.sequence,
            };
            // A hash recorded twice: the later record is the one that stands.
            if let Some(before) = self.insert(key, copy, attributes) {
                useless.push((record.namespace, before.sequence));
                continue;
            }
            entered += 1;
        }
        entered
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
