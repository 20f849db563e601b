//! What equal-shaped blocks share: the hash key, the radix index, the event log.

use std::sync::Arc;

use crossbeam::utils::CachePadded;
use kelvin_proto::NamespaceSpec;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{BlockKey, counters::Counter, events::EventLog, pins::Pins, tiers_of};
use crate::{
    NamespaceKey, SequenceHash,
    catalog::NamespaceId,
    index::{RadixIndex, TierSet},
    insight::{Bursts, Explainer, MissRatio},
};

/// Blocks that the miss-ratio curve follows, some 60 bytes each once there are so many. Its error stays below 0.02
/// with them; with half as many it does not always.
pub(crate) const CURVE_SAMPLES_MAX: usize = 8192;

/// Blocks of one tenant, model, layout, dtype, block size and shard.
pub(crate) struct Namespace {
    /// The first bytes of `persistent`, as clients know it.
    pub(crate) id: u64,
    /// The same after every start of a store with the same secret, and on every node.
    pub(crate) persistent: NamespaceId,
    pub(crate) spec: NamespaceSpec,
    pub(crate) key: NamespaceKey,
    pub(crate) index: RadixIndex<TierSet>,
    pub(crate) events: EventLog,
    /// Wakes those who wait for a block being filled, at every commit and abort.
    pub(crate) changed: Notify,
    pub(crate) pins: Pins,
    /// Why blocks went; the tenant's namespaces share it.
    pub(crate) gone: Arc<Explainer>,
    /// What it would hit at other capacities. Who finds it busy passes it over: it is a sample anyway.
    pub(crate) curve: CachePadded<Mutex<MissRatio>>,
    /// When the curve may watch.
    pub(crate) bursts: Bursts,
    // Written by every match, so apart from what every match reads.
    pub(crate) match_blocks: CachePadded<Counter>,
    pub(crate) hit_blocks: CachePadded<Counter>,
    /// Those, by the hottest tier that had the block.
    pub(crate) tier_hits: CachePadded<[Counter; 4]>,
}

impl Namespace {
    pub(crate) fn new(
        persistent: NamespaceId,
        spec: NamespaceSpec,
        key: NamespaceKey,
        gone: Arc<Explainer>,
    ) -> Self {
        let id = u64::from_le_bytes(persistent[..8].try_into().expect("8 of 16 bytes"));
        Self {
            id,
            persistent,
            spec,
            key,
            index: RadixIndex::new(),
            events: EventLog::new(),
            changed: Notify::new(),
            pins: Pins::default(),
            gone,
            curve: CachePadded::new(Mutex::new(MissRatio::new(CURVE_SAMPLES_MAX))),
            bursts: Bursts::default(),
            match_blocks: CachePadded::default(),
            hit_blocks: CachePadded::default(),
            tier_hits: CachePadded::default(),
        }
    }

    /// Counts a match: what was asked for, and in which tiers the leading run of it was found.
    pub(crate) fn count_match(&self, asked: usize, found: &[TierSet]) {
        self.match_blocks.add(asked as u64);
        self.hit_blocks.add(found.len() as u64);
        let mut hits = [0; 4];
        // Neighbours are mostly in the same tiers.
        for run in found.chunk_by(|one, next| one == next) {
            if let Some(tier) = tiers_of(run[0]).next() {
                hits[tier as usize] += run.len() as u64;
            }
        }
        for (counter, hits) in self.tier_hits.iter().zip(hits).filter(|(_, hits)| *hits > 0) {
            counter.add(hits);
        }
    }

    /// Whether a copy may make room for others.
    pub(crate) fn may_drop(&self, key: &BlockKey) -> bool {
        !self.pins.hold(&key.hash)
    }

    /// Blocks of the longest stored prefix.
    pub(crate) fn longest_prefix(&self, hashes: &[SequenceHash], now: u64) -> usize {
        let blocks = self.index.longest_prefix(hashes, Some(now)).len();
        self.match_blocks.add(hashes.len() as u64);
        self.hit_blocks.add(blocks as u64);
        blocks
    }
}
