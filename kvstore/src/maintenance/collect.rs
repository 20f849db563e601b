//! Dropping what a stopped store keeps and no start would take over, and collecting packs.

use std::collections::{HashMap, HashSet};

use kelvin_proto::kv::v1::CollectResponse;
use kelvin_tiering::{ObjectError, PackId, PackInfo, PackStore};

use super::{MaintenanceError, StoppedStore, pack_info, pack_record};
use crate::catalog::{Access, NamespaceId};

/// A pack of which less than this is live is written anew, in percent; as a running store has it.
const LIVE_PERCENT_MIN: u32 = 50;
/// Records deleted at once.
const BATCH: usize = 4096;

/// A pack of the catalog, and what of it counts.
struct Judged {
    pack: PackInfo,
    /// Blocks that can be found from the start of their sequence, and in no younger pack.
    live: Vec<[u8; 16]>,
}

impl StoppedStore {
    pub(super) fn changes(&self) -> bool {
        self.catalog.access() != Access::Read
    }

    /// Deletes records that no start would take over, packs that hold nothing that can be found, and the records
    /// of packs that are gone; writes packs anew of which less than `live_percent_min` (0: half) is live.
    ///
    /// Only packs in the catalog are touched: others in the bucket are other nodes'. Opened to look, it says
    /// what would be done.
    pub async fn collect(&self, live_percent_min: u32) -> Result<CollectResponse, MaintenanceError> {
        let mut done = CollectResponse::default();
        let useless = self.survey()?.useless;
        let keys: Vec<_> = useless.iter().map(|useless| (useless.namespace, useless.sequence)).collect();
        for some in keys.chunks(BATCH).filter(|_| self.changes()) {
            self.catalog.remove(some)?;
        }
        done.records_removed = keys.len() as u64;
        for bytes in useless.iter().filter_map(|useless| useless.slot_bytes) {
            done.slots_freed += 1;
            done.slot_bytes_freed += bytes;
        }
        if let Some(store) = &self.packs {
            let least = if live_percent_min == 0 { LIVE_PERCENT_MIN } else { live_percent_min.min(100) };
            for namespace in self.namespaces.keys() {
                self.collect_packs(store, namespace, least, &mut done).await?;
            }
        }
        if self.changes() {
            self.catalog.sync()?;
        }
        Ok(done)
    }

    async fn collect_packs(
        &self,
        store: &PackStore,
        namespace: &NamespaceId,
        live_percent_min: u32,
        done: &mut CollectResponse,
    ) -> Result<(), MaintenanceError> {
        let (records, _) = self.catalog.packs(namespace)?;
        if records.is_empty() {
            return Ok(());
        }
        let listed: HashSet<PackId> = store.list(*namespace).await?.into_iter().collect();
        let (there, gone): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| listed.contains(&PackId(record.id)));
        for record in gone {
            done.records_removed += 1;
            if self.changes() {
                self.catalog.remove_pack(namespace, &record.id)?;
            }
        }
        let own: Vec<PackInfo> = there.iter().map(pack_info).collect();
        let known: HashSet<PackId> = own.iter().map(|pack| pack.id).collect();
        // Other nodes' packs may hold the parents of these blocks.
        let mut others = Vec::new();
        for pack in listed.difference(&known) {
            match store.footer(*namespace, *pack).await {
                Ok(info) => others.push(info),
                Err(ObjectError::Missing { .. } | ObjectError::Damaged { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for Judged { pack, live } in judge(own, &others) {
            if live.len() as u64 * 100 >= u64::from(live_percent_min) * pack.entries.len() as u64
                && !live.is_empty()
            {
                continue;
            }
            let live_bytes: u64 = pack
                .entries
                .iter()
                .filter(|entry| live.contains(&entry.hash))
                .map(|entry| u64::from(entry.bytes))
                .sum();
            let mut freed = pack.bytes.saturating_sub(live_bytes);
            if self.changes() {
                if !live.is_empty() {
                    let fresh = store.rewrite(&pack, &live).await?;
                    freed = pack.bytes.saturating_sub(fresh.bytes);
                    self.catalog.put_pack(&pack_record(&fresh))?;
                }
                // The new one is known, on the disk too, before the old one goes.
                self.catalog.sync()?;
                store.delete(*namespace, pack.id).await?;
                self.catalog.remove_pack(namespace, &pack.id.0)?;
            }
            done.pack_bytes_freed += freed;
            match live.is_empty() {
                true => done.packs_deleted += 1,
                false => done.packs_rewritten += 1,
            }
        }
        Ok(())
    }
}

/// What counts of each pack: blocks whose whole sequence before them is in some pack, each in the youngest pack
/// that has it.
fn judge(own: Vec<PackInfo>, others: &[PackInfo]) -> Vec<Judged> {
    let mut parents = HashMap::new();
    let mut youngest: HashMap<[u8; 16], PackId> = HashMap::new();
    for pack in own.iter().chain(others) {
        for entry in &pack.entries {
            parents.insert(entry.hash, entry.parent);
        }
    }
    for pack in &own {
        for entry in &pack.entries {
            let youngest = youngest.entry(entry.hash).or_insert(pack.id);
            *youngest = (*youngest).max(pack.id);
        }
    }
    let mut judgements: HashMap<[u8; 16], bool> = HashMap::new();
    own.into_iter()
        .map(|pack| {
            let hashes = pack.entries.iter().map(|entry| entry.hash);
            let live =
                hashes.filter(|hash| youngest[hash] == pack.id && found(*hash, &parents, &mut judgements));
            let live = live.collect();
            Judged { pack, live }
        })
        .collect()
}

/// Whether the way from `hash` to the start of its sequence is there; judgements are kept.
fn found(
    hash: [u8; 16],
    parents: &HashMap<[u8; 16], Option<[u8; 16]>>,
    judgements: &mut HashMap<[u8; 16], bool>,
) -> bool {
    let (mut way, mut at) = (Vec::new(), hash);
    let verdict = loop {
        if let Some(known) = judgements.get(&at) {
            break *known;
        }
        match parents.get(&at) {
            None => break false,
            Some(None) => {
                way.push(at);
                break true;
            }
            Some(Some(parent)) => {
                way.push(at);
                // Footers of other nodes may say anything, a circle too.
                if way.len() > parents.len() {
                    break false;
                }
                at = *parent;
            }
        }
    };
    judgements.extend(way.into_iter().map(|hash| (hash, verdict)));
    verdict
}
