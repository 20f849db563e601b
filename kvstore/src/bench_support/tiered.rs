//! A store with its cold tiers, driven prompt by prompt as an engine drives it.

use std::time::Duration;

use kelvin_kernels::{Checksum, checksum};
use kelvin_proto::Refusal;
use kelvin_tiering::{ObjectStats, Tier};

use super::{Core, Session, TTL, TierOptions};
use crate::{SequenceHash, store::TierTasks};

/// How long a stop copies blocks of DRAM to cold tiers.
const PATIENCE: Duration = Duration::from_secs(120);

/// A store with one session on it.
pub struct Tiered {
    core: Core,
    session: Session,
    tasks: Option<TierTasks>,
    block_bytes: usize,
}

/// What became of a prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Served {
    /// Leading blocks that were leased, with the right bytes.
    pub hit_blocks: usize,
    /// Blocks that were stored after.
    pub stored_blocks: usize,
}

/// What moved between the tiers since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Blocks copied to NVMe, and brought back from it.
    pub nvme_offloaded: u64,
    /// Blocks brought back from NVMe.
    pub nvme_onboarded: u64,
    /// Blocks brought back from packs.
    pub object_onboarded: u64,
    /// Blocks that DRAM dropped before they had a copy.
    pub uncopied: u64,
    /// Copies whose bytes were wrong.
    pub damaged: u64,
    /// Copies that the start found, and records of which it could make nothing.
    pub restored: u64,
    /// Records that the start dropped.
    pub lost: u64,
    /// What the object store was asked.
    pub object: ObjectStats,
}

impl Tiered {
    /// A store with so much DRAM, and one namespace of blocks of `block_bytes`. The error is for people.
    pub async fn start(dram_bytes: u64, tiers: TierOptions, block_bytes: u64) -> Result<Self, String> {
        tiers.check(dram_bytes)?;
        let core = Core::with_tiers(dram_bytes, tiers.clone()).map_err(|error| error.to_string())?;
        let tasks = core.store.start_tiers(&tiers).await.map_err(|error| error.to_string())?;
        let session = core.open(block_bytes).map_err(|error| error.to_string())?;
        Ok(Self { core, session, tasks, block_bytes: block_bytes as usize })
    }

    /// A prompt comes: the longest stored prefix is brought to DRAM and leased, its bytes are compared with what
    /// `content` says they are, and the rest is stored.
    ///
    /// # Panics
    /// When a leased block has other bytes than were stored.
    pub async fn serve(
        &self,
        hashes: &[SequenceHash],
        content: impl Fn(SequenceHash, &mut [u8]),
    ) -> Result<Served, Refusal> {
        let (tenant, session) = (self.core.store.tenant(None)?, &self.session);
        let found = tenant.match_prefix(&session.namespace, hashes).len();
        let held = tenant.onboard(&session.namespace, &hashes[..found]).await;
        let leased = self.core.acquire(session, &hashes[..held.len()])?;
        let leases = leased.ids();
        let mut expected = vec![0; self.block_bytes];
        for (hash, block) in hashes.iter().zip(&held) {
            content(*hash, &mut expected);
            assert!(block.slot().bytes() == expected, "block {hash} has other bytes than were stored");
        }
        drop(held);
        let hit_blocks = leases.len();
        let parent = hit_blocks.checked_sub(1).map(|last| hashes[last]);
        let reserved = tenant.reserve(session.id, parent, &hashes[hit_blocks..], TTL)?;
        let granted = reserved.iter().zip(&hashes[hit_blocks..]).filter(|(block, _)| block.lease != 0);
        let (mine, fresh): (Vec<_>, Vec<_>) = granted.map(|(block, hash)| (block.lease, *hash)).unzip();
        let fill = |at: usize, bytes: &mut [u8]| -> Checksum {
            content(fresh[at], bytes);
            checksum(bytes)
        };
        tenant.fill(session.id, &mine, fill)?;
        tenant.release(session.id, &leases)?;
        Ok(Served { hit_blocks, stored_blocks: mine.len() })
    }

    /// Blocks that some tier has.
    pub fn known_blocks(&self) -> usize {
        self.session.namespace.index.len()
    }

    /// What moved.
    pub fn moved(&self) -> Moved {
        let mut moved = Moved::default();
        let Some(tiers) = self.core.tenant().tiers() else { return moved };
        for report in tiers.reports() {
            let counts = report.counts;
            match report.tier {
                Tier::Nvme => {
                    (moved.nvme_offloaded, moved.nvme_onboarded) = (counts.offloaded, counts.onboarded);
                }
                Tier::Object => moved.object_onboarded = counts.onboarded,
                Tier::Hbm | Tier::Dram => {}
            }
            moved.uncopied += counts.uncopied;
            moved.damaged += counts.damaged;
            moved.restored += counts.restored;
            moved.lost += counts.lost;
        }
        moved.object = tiers.objects().map(|objects| objects.requests()).unwrap_or_default();
        moved
    }

    /// Stops in good order; with copies of DRAM's blocks in the cold tiers.
    pub async fn stop(mut self) {
        if let Some(tasks) = self.tasks.take() {
            tasks.stop(PATIENCE).await;
        }
    }
}
