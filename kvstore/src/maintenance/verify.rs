//! Reading every copy of a stopped store, and checking it.

use futures::StreamExt;
use kelvin_kernels::checksum;
use kelvin_proto::kv::v1::{DamagedBlock, Tier as WireTier, VerifyResponse};
use kelvin_tiering::{Device, PackEntry, PackStore, ReadFailure, Tier};

use super::{MaintenanceError, StoppedStore, hex, pack_info, survey::Copy};
use crate::catalog::PackRecord;

/// Copies that are read at the same time.
const READS: usize = 8;
/// Bytes of a pack that are read at once.
const RUN_BYTES: u64 = 32 << 20;
/// Damaged blocks in one message.
const DAMAGED_MAX: usize = 256;
/// Copies between two messages.
const SAY_EVERY: u64 = 256;

/// How one copy was found.
enum Verdict {
    Sound,
    Damaged,
    Unreadable,
}

/// The message under way, and who hears it.
struct Teller<F> {
    so_far: VerifyResponse,
    say: F,
}

impl<F: FnMut(VerifyResponse)> Teller<F> {
    fn count(&mut self, bytes: u32, verdict: &Verdict, damaged: impl FnOnce() -> DamagedBlock) {
        self.so_far.checked_blocks += 1;
        self.so_far.checked_bytes += u64::from(bytes);
        match verdict {
            Verdict::Sound => {}
            Verdict::Unreadable => self.so_far.unreadable_blocks += 1,
            Verdict::Damaged => {
                self.so_far.damaged_blocks += 1;
                self.so_far.damaged.push(damaged());
            }
        }
        let due = self.so_far.checked_blocks.is_multiple_of(SAY_EVERY);
        if due || self.so_far.damaged.len() == DAMAGED_MAX {
            let damaged = std::mem::take(&mut self.so_far.damaged);
            (self.say)(VerifyResponse { damaged, ..self.so_far.clone() });
        }
    }
}

impl StoppedStore {
    /// Reads every copy in `tiers` (none: in all) and checks it; `progress` hears of it now and then, and at last
    /// with `done`.
    ///
    /// Records of damaged copies on NVMe are deleted, unless the store was opened to look. A damaged block in a
    /// pack is only told of: a pack never changes, and a store that meets the block drops it.
    pub async fn verify(
        &self,
        tiers: &[Tier],
        progress: impl FnMut(VerifyResponse),
    ) -> Result<VerifyResponse, MaintenanceError> {
        let wanted = |tier| tiers.is_empty() || tiers.contains(&tier);
        let mut copies = match wanted(Tier::Nvme) {
            true => self.survey()?.copies,
            false => Vec::new(),
        };
        let mut packs = Vec::new();
        if wanted(Tier::Object) && self.packs.is_some() {
            for id in self.namespaces.keys() {
                packs.extend(self.catalog.packs(id)?.0);
            }
        }
        let in_packs: usize = packs.iter().map(|pack| pack.entries.len()).sum();
        let total_blocks = (copies.len() + in_packs) as u64;
        let mut teller =
            Teller { so_far: VerifyResponse { total_blocks, ..Default::default() }, say: progress };
        // In the order of the device: long strides are slow on some.
        copies.sort_unstable_by_key(|copy| (copy.record.file, copy.record.offset));
        let damaged = self.verify_copies(copies, &mut teller).await;
        for some in damaged.chunks(4096).filter(|_| self.changes()) {
            self.catalog.remove(some)?;
        }
        for pack in &packs {
            if let Some(store) = &self.packs {
                verify_pack(store, pack, &mut teller).await;
            }
        }
        teller.so_far.done = true;
        (teller.say)(teller.so_far.clone());
        Ok(teller.so_far)
    }

    async fn verify_copies(
        &self,
        copies: Vec<Copy>,
        teller: &mut Teller<impl FnMut(VerifyResponse)>,
    ) -> Vec<([u8; 16], u64)> {
        let Some(device) = &self.device else { return Vec::new() };
        let mut damaged = Vec::new();
        let reads = futures::stream::iter(copies).map(|Copy { record, slot }| async move {
            let buffer = vec![0u8; record.bytes as usize];
            let (_, buffer, result) = device.read(slot, 0, buffer).await;
            let verdict = match result {
                Err(error) => {
                    tracing::warn!(%error, block = %record.hash, "a copy could not be read");
                    Verdict::Unreadable
                }
                Ok(()) if checksum(&buffer) == record.checksum => Verdict::Sound,
                Ok(()) => Verdict::Damaged,
            };
            (record, verdict)
        });
        let mut reads = std::pin::pin!(reads.buffer_unordered(READS));
        while let Some((record, verdict)) = reads.next().await {
            if matches!(verdict, Verdict::Damaged) {
                damaged.push((record.namespace, record.sequence));
            }
            teller.count(record.bytes, &verdict, || DamagedBlock {
                hash: record.hash.to_bytes().to_vec().into(),
                tier: WireTier::Nvme.into(),
                namespace: hex(&record.namespace),
            });
        }
        damaged
    }
}

async fn verify_pack(
    store: &PackStore,
    record: &PackRecord,
    teller: &mut Teller<impl FnMut(VerifyResponse)>,
) {
    let pack = pack_info(record);
    for run in runs(&pack.entries) {
        let wanted = run.iter().map(|entry| (*entry, vec![0u8; entry.bytes as usize])).collect();
        let answers = store.get(pack.namespace, pack.id, wanted).await;
        for (entry, (_, result)) in run.iter().zip(answers) {
            let verdict = match result {
                Ok(()) => Verdict::Sound,
                Err(ReadFailure::Damaged) => Verdict::Damaged,
                Err(failure) => {
                    tracing::warn!(%failure, pack = %pack.id, "a block of a pack could not be read");
                    Verdict::Unreadable
                }
            };
            teller.count(entry.bytes, &verdict, || DamagedBlock {
                hash: entry.hash.to_vec().into(),
                tier: WireTier::Object.into(),
                namespace: hex(&pack.namespace),
            });
        }
    }
}

/// Cuts a pack into runs that fit in memory; a larger block is a run of its own.
fn runs(entries: &[PackEntry]) -> Vec<&[PackEntry]> {
    let (mut runs, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, entry) in entries.iter().enumerate() {
        if at > start && bytes + u64::from(entry.bytes) > RUN_BYTES {
            runs.push(&entries[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += u64::from(entry.bytes);
    }
    if start < entries.len() {
        runs.push(&entries[start..]);
    }
    runs
}

#[cfg(test)]
mod tests {
    use kelvin_kernels::Checksum;

    use super::*;

    #[test]
    fn a_pack_is_read_in_runs_that_fit() {
        let entry = |mib: u32| PackEntry {
            hash: [0; 16],
            parent: None,
            offset: 0,
            bytes: mib << 20,
            checksum: Checksum(0),
        };
        let lengths = |mib: &[u32]| -> Vec<usize> {
            let entries: Vec<_> = mib.iter().map(|mib| entry(*mib)).collect();
            runs(&entries).iter().map(|run| run.len()).collect()
        };
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(lengths(&[16, 16, 1, 40, 1]), [2, 1, 1, 1]);
    }
}
