//! The scrubber: reads copies nobody asked for, so that damage is found before it is needed.
//!
//! It goes through the tier once in a while, a little at a time and behind everything else on the lane. A copy
//! that comes back wrong is quarantined as if a client had met it.

use std::{sync::Arc, time::Duration};

use kelvin_tiering::PackId;
use tokio_util::sync::CancellationToken;

use super::{LoadFailure, Objects, Tiers};

/// Bytes a second that the scrubber reads: a terabyte in a day and a half.
const BYTES_PER_SECOND: u64 = 8 << 20;
/// Pause between two rounds, and before the first.
const REST: Duration = Duration::from_secs(60);

/// What a round of verifying found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Verified {
    /// Copies looked at.
    pub(crate) blocks: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Copies that could not be read.
    pub(crate) unreadable: u64,
    /// Copies whose bytes were wrong.
    pub(crate) damaged: u64,
}

/// Scrubs until `stop`.
pub(crate) async fn run(tiers: Arc<Tiers>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REST) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            found = tiers.verify_nvme(Some(BYTES_PER_SECOND), |_| {}) => {
                if found.damaged > 0 {
                    tracing::warn!(?found, "scrubbing found damaged blocks");
                }
            }
        }
    }
}

impl Tiers {
    /// Reads every copy on NVMe and checks it, at most so many bytes a second; `progress` hears of each.
    pub(crate) async fn verify_nvme(
        &self,
        bytes_per_second: Option<u64>,
        mut progress: impl FnMut(Verified) + Send,
    ) -> Verified {
        let mut found = Verified::default();
        let Some(nvme) = &self.nvme else { return found };
        for key in nvme.copies.keys() {
            let Some(copy) = nvme.copies.get(&key) else { continue };
            let bytes = copy.slot.bytes();
            match nvme.read_quietly(&key, &copy).await {
                Ok(_) => {}
                Err(LoadFailure::Damaged) => found.damaged += 1,
                Err(_) => found.unreadable += 1,
            }
            nvme.counters.scrubbed.add(1);
            found.blocks += 1;
            found.bytes += bytes;
            progress(found);
            if let Some(rate) = bytes_per_second {
                tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)).await;
            }
        }
        found
    }

    /// Reads every block of every known pack and checks it.
    pub(crate) async fn verify_packs(&self, mut progress: impl FnMut(Verified) + Send) -> Verified {
        let mut found = Verified::default();
        let Some(object) = &self.object else { return found };
        for pack in object.pack_ids() {
            let part = object.verify(pack).await;
            found.blocks += part.blocks;
            found.bytes += part.bytes;
            found.unreadable += part.unreadable;
            found.damaged += part.damaged;
            progress(found);
        }
        found
    }
}

impl Objects {
    /// Every pack that is known.
    pub(super) fn pack_ids(&self) -> Vec<PackId> {
        self.copies.lock().more.by_id.keys().copied().collect()
    }

    /// Reads the live blocks of a pack and checks them.
    pub(super) async fn verify(&self, pack: PackId) -> Verified {
        let mut found = Verified::default();
        let wanted = self.copies_in(pack);
        let Some(namespace) = wanted.first().map(|(_, copy)| copy.namespace.persistent) else { return found };
        let buffers = wanted.iter().map(|(key, copy)| (copy.entry(key.hash), vec![0u8; copy.bytes as usize]));
        let answers = self.packs().get(namespace, pack, buffers.collect()).await;
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
}
