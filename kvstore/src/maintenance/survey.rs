//! What of the catalog a start would take over, and why not the rest.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};
use std::hash::BuildHasherDefault;

use kelvin_tiering::{NvmeAddress, NvmeSlot};

use super::StoppedStore;
use crate::{
    PassThrough,
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
}

impl StoppedStore {
    /// Goes through the catalog as a start does, with the same slots claimed.
    pub(super) fn survey(&self) -> Result<Survey, CatalogError> {
        let mut survey = Survey::default();
        // By hash: where in `copies`. Hashes of two namespaces are unrelated.
        let mut known: HashMap<u128, usize, BuildHasherDefault<PassThrough>> = HashMap::default();
        let stats = self.catalog.load(THREADS, |records| {
            let slots = self.claim(&records);
            for (record, slot) in records.into_iter().zip(slots) {
                let slot_bytes = slot.as_ref().map(|slot| NvmeSlot::slot_bytes_for(slot.bytes()));
                let useless =
                    |why, sequence| Useless { why, namespace: record.namespace, sequence, slot_bytes };
                let (slot, why) = match (self.namespaces.get(&record.namespace), slot) {
                    (None, _) => (None, "no namespace"),
                    (Some(namespace), _) if namespace.spec.block_bytes != u64::from(record.bytes) => {
                        (None, "other size")
                    }
                    (Some(_), None) => (None, "no slot"),
                    (Some(_), slot) => (slot, "no parent"),
                };
                let orphan = record.parent.is_some_and(|parent| !known.contains_key(&parent.as_u128()));
                let Some(slot) = slot.filter(|_| !orphan) else {
                    survey.useless.push(useless(why, record.sequence));
                    continue;
                };
                let copy = Copy { record, slot };
                match known.entry(record.hash.as_u128()) {
                    Entry::Vacant(entry) => {
                        entry.insert(survey.copies.len());
                        survey.copies.push(copy);
                    }
                    // The later one stands, as at a start.
                    Entry::Occupied(entry) => {
                        let before = std::mem::replace(&mut survey.copies[*entry.get()], copy);
                        survey.useless.push(useless("written twice", before.record.sequence));
                    }
                }
            }
        })?;
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
