//! What of the catalog a start would take over, and why not the rest.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};
use std::hash::BuildHasherDefault;

use kelvin_tiering::{NvmeAddress, NvmeSlot};

use super::StoppedStore;
use crate::{
    HashMixer, SequenceHash,
    catalog::{CatalogError, NamespaceId, Record},
};

/// Threads that read the catalog.
const THREADS: usize = 2;

/// A copy on NVMe that a start would take over.
pub(super) struct Copy {
    pub(super) record: Record,
    pub(super) slot: NvmeSlot,
}

/// A record that a start would drop.
pub(super) struct Useless {
    pub(super) why: &'static str,
    pub(super) namespace: NamespaceId,
    pub(super) sequence: u64,
    /// Of the slot that it names, if there is one that nobody else has.
    pub(super) slot_bytes: Option<u64>,
}

/// By hash, whatever the namespace: hashes of two are unrelated.
type ByHash<T> = HashMap<u128, T, BuildHasherDefault<HashMixer>>;

/// Every record, judged as a start judges it.
#[derive(Default)]
pub(super) struct Survey {
    pub(super) copies: Vec<Copy>,
    pub(super) useless: Vec<Useless>,
    /// Records that cannot be read, and those of files that are not there.
    pub(super) damaged: u64,
    pub(super) absent: u64,
    /// Places where the catalog itself could not be read.
    pub(super) holes: u64,
    /// Where in `copies`.
    known: ByHash<usize>,
    /// By parent: children that came before it, as after it was dropped for damage and written anew.
    waiting: ByHash<Vec<Copy>>,
}

impl Survey {
    /// Blocks that a start would drop, by reason.
    pub(super) fn dropped(&self) -> BTreeMap<&'static str, u64> {
        let mut dropped = BTreeMap::new();
        for useless in &self.useless {
            *dropped.entry(useless.why).or_default() += 1;
        }
        dropped.insert("damaged record", self.damaged);
        dropped.insert("other file", self.absent);
        dropped.insert("damaged catalog", self.holes);
        dropped.retain(|_, blocks| *blocks > 0);
        dropped
    }

    fn drop_record(&mut self, record: &Record, slot: Option<NvmeSlot>, why: &'static str) {
        let slot_bytes = slot.map(|slot| NvmeSlot::slot_bytes_for(slot.bytes()));
        let (namespace, sequence) = (record.namespace, record.sequence);
        self.useless.push(Useless { why, namespace, sequence, slot_bytes });
    }

    /// Takes a copy over, and then those that waited for it; or lets it wait for its parent.
    fn enter(&mut self, copy: Copy) {
        let mut ready = vec![copy];
        while let Some(copy) = ready.pop() {
            let parent = copy.record.parent.map(SequenceHash::as_u128);
            if let Some(parent) = parent.filter(|parent| !self.known.contains_key(parent)) {
                self.waiting.entry(parent).or_default().push(copy);
                continue;
            }
            let hash = copy.record.hash.as_u128();
            match self.known.entry(hash) {
                Entry::Vacant(entry) => {
                    entry.insert(self.copies.len());
                    self.copies.push(copy);
                }
                // The later one stands, as at a start.
                Entry::Occupied(entry) => {
                    let before = std::mem::replace(&mut self.copies[*entry.get()], copy);
                    self.drop_record(&before.record, Some(before.slot), "written twice");
                }
            }
            ready.extend(self.waiting.remove(&hash).unwrap_or_default());
        }
    }
}

impl StoppedStore {
    /// Goes through the catalog as a start does, with the same slots claimed.
    pub(super) fn survey(&self) -> Result<Survey, CatalogError> {
        let mut survey = Survey::default();
        let stats = self.catalog.load(THREADS, |records| {
            let slots = self.claim(&records);
            for (record, slot) in records.into_iter().zip(slots) {
                let size = self.namespaces.get(&record.namespace).map(|found| found.spec.block_bytes);
                match (size, slot) {
                    (None, slot) => survey.drop_record(&record, slot, "no namespace"),
                    (Some(size), slot) if size != u64::from(record.bytes) => {
                        survey.drop_record(&record, slot, "other size");
                    }
                    (Some(_), None) => survey.drop_record(&record, None, "no slot"),
                    (Some(_), Some(slot)) => survey.enter(Copy { record, slot }),
                }
            }
        })?;
        for Copy { record, slot } in std::mem::take(&mut survey.waiting).into_values().flatten() {
            survey.drop_record(&record, Some(slot), "no parent");
        }
        (survey.damaged, survey.absent, survey.holes) = (stats.undecodable, stats.absent, stats.damaged);
        Ok(survey)
    }

    fn claim(&self, records: &[Record]) -> Vec<Option<NvmeSlot>> {
        let Some(device) = &self.device else { return records.iter().map(|_| None).collect() };
        let address = |record: &Record| NvmeAddress { file: record.file, offset: record.offset };
        let wanted: Vec<_> =
            records.iter().map(|record| (address(record), u64::from(record.bytes))).collect();
        device.claim_all(&wanted)
    }
}
