//! What a cold tier counts and tells.

use kelvin_tiering::{Tier, Why, mover::LaneStats};

use crate::store::{Distribution, counters::Counter, meters::Transfers};

/// Counts of one tier.
#[derive(Debug, Default)]
pub(super) struct TierCounters {
    /// Copies that went to make room, since their time was over, or over a quota.
    pub(super) evicted_policy: Counter,
    pub(super) evicted_expired: Counter,
    pub(super) evicted_quota: Counter,
    /// Copies whose bytes were wrong.
    pub(super) damaged: Counter,
    /// Reads that took too long.
    pub(super) timeouts: Counter,
    /// Writes turned away since too many waited.
    pub(super) refused: Counter,
    /// Failures other than of one transfer, which the lane counts.
    pub(super) errors: Counter,
    /// Blocks brought to DRAM.
    pub(super) onboarded: Counter,
    /// Blocks that got a copy here.
    pub(super) offloaded: Counter,
    /// Blocks not stored, since they were not seen often enough.
    pub(super) not_admitted: Counter,
    /// Blocks that DRAM dropped before they had a copy.
    pub(super) uncopied: Counter,
    /// Copies the last start found.
    pub(super) restored: Counter,
    /// Records the last start dropped: no slot, no parent, or another device.
    pub(super) lost: Counter,
    /// Copies that the scrubber looked at.
    pub(super) scrubbed: Counter,
    /// Transfers to DRAM; a pack's blocks count as one.
    pub(super) to_dram: Transfers,
    /// Transfers from DRAM.
    pub(super) from_dram: Transfers,
    /// Transfers from NVMe, of packs.
    pub(super) from_nvme: Transfers,
}

impl TierCounters {
    pub(super) fn evicted(&self, why: Why) {
        match why {
            Why::Policy => self.evicted_policy.add(1),
            Why::Expired => self.evicted_expired.add(1),
            Why::Quota => self.evicted_quota.add(1),
        }
    }

    pub(super) fn snapshot(&self) -> TierCounts {
        TierCounts {
            evicted_policy: self.evicted_policy.get(),
            evicted_expired: self.evicted_expired.get(),
            evicted_quota: self.evicted_quota.get(),
            damaged: self.damaged.get(),
            timeouts: self.timeouts.get(),
            refused: self.refused.get(),
            errors: self.errors.get(),
            onboarded: self.onboarded.get(),
            offloaded: self.offloaded.get(),
            not_admitted: self.not_admitted.get(),
            uncopied: self.uncopied.get(),
            restored: self.restored.get(),
            lost: self.lost.get(),
            scrubbed: self.scrubbed.get(),
        }
    }
}

/// What went along an edge between two tiers, so far.
#[derive(Debug, Clone)]
pub(crate) struct Moved {
    pub(crate) from: Tier,
    pub(crate) to: Tier,
    /// Bytes of a transfer.
    pub(crate) bytes: Distribution,
    /// Nanoseconds of one, from when it began to wait for its turn.
    pub(crate) times: Distribution,
}

impl Moved {
    fn new(from: Tier, to: Tier, transfers: &Transfers) -> Self {
        Self { from, to, bytes: transfers.bytes.read(), times: transfers.times.read() }
    }
}

impl TierCounters {
    /// The edges of `tier`, whose counters these are.
    pub(super) fn moved(&self, tier: Tier) -> Vec<Moved> {
        let mut edges =
            vec![Moved::new(Tier::Dram, tier, &self.from_dram), Moved::new(tier, Tier::Dram, &self.to_dram)];
        if tier == Tier::Object {
            edges.push(Moved::new(Tier::Nvme, tier, &self.from_nvme));
        }
        edges
    }
}

/// The counts at one moment; see [`TierCounters`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TierCounts {
    pub(crate) evicted_policy: u64,
    pub(crate) evicted_expired: u64,
    pub(crate) evicted_quota: u64,
    pub(crate) damaged: u64,
    pub(crate) timeouts: u64,
    pub(crate) refused: u64,
    pub(crate) errors: u64,
    pub(crate) onboarded: u64,
    pub(crate) offloaded: u64,
    pub(crate) not_admitted: u64,
    pub(crate) uncopied: u64,
    pub(crate) restored: u64,
    pub(crate) lost: u64,
    pub(crate) scrubbed: u64,
}

/// A cold tier at one moment.
#[derive(Debug, Clone)]
pub(crate) struct TierReport {
    pub(crate) tier: Tier,
    pub(crate) capacity_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) blocks: u64,
    /// Slots kept away from use since their bytes came back wrong.
    pub(crate) quarantined: u64,
    pub(crate) lane: LaneStats,
    pub(crate) healthy: bool,
    pub(crate) counts: TierCounts,
}
