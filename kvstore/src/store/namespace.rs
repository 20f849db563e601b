//! What equal-shaped blocks share: the hash key, the radix index, the event log.

use std::sync::Arc;

use crossbeam::utils::CachePadded;
use kelvin_proto::NamespaceSpec;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{BlockKey, counters::Counter, events::EventLog, pins::Pins, striped::Striped, tiers_of};
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
    pub(crate) changed: CachePadded<Notify>,
    pub(crate) pins: Pins,
    /// Why blocks went; the tenant's namespaces share it.
    pub(crate) gone: Arc<Explainer>,
    /// What it would hit at other capacities. Who finds it busy passes it over: it is a sample anyway.
    pub(crate) curve: CachePadded<Mutex<MissRatio>>,
    /// When the curve may watch.
    pub(crate) bursts: Bursts,
    matches: Striped<Matches>,
}

/// What matches came to.
#[derive(Debug, Default)]
struct Matches {
    asked: Counter,
    hits: Counter,
    /// Those, by the hottest tier that had the block.
    tiers: [Counter; 4],
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
            changed: CachePadded::new(Notify::new()),
            pins: Pins::default(),
            gone,
            curve: CachePadded::new(Mutex::new(MissRatio::new(CURVE_SAMPLES_MAX))),
            bursts: Bursts::default(),
            matches: Striped::default(),
        }
    }

    /// Counts a match: what was asked for, and in which tiers the leading run of it was found.
    pub(crate) fn count_match(&self, asked: usize, found: &[TierSet]) {
        let matches = self.matches.mine();
        matches.asked.add(asked as u64);
        matches.hits.add(found.len() as u64);
        let mut hits = [0; 4];
        // Neighbours are mostly in the same tiers.
        for run in found.chunk_by(|one, next| one == next) {
            if let Some(tier) = tiers_of(run[0]).next() {
                hits[tier as usize] += run.len() as u64;
            }
        }
        for (counter, hits) in matches.tiers.iter().zip(hits).filter(|(_, hits)| *hits > 0) {
            counter.add(hits);
        }
    }

    /// Blocks that matches asked for.
    pub(crate) fn match_blocks(&self) -> u64 {
        self.matches.sum(|matches| matches.asked.get())
    }

    /// Those that they found.
    pub(crate) fn hit_blocks(&self) -> u64 {
        self.matches.sum(|matches| matches.hits.get())
    }

    /// Those whose hottest tier was this one.
    pub(crate) fn tier_hits(&self, tier: usize) -> u64 {
        self.matches.sum(|matches| matches.tiers[tier].get())
    }

    /// Of what is kept to be shown.
    pub(crate) fn metrics_memory_bytes(&self) -> usize {
        size_of::<Self>() + self.matches.memory_bytes() + self.curve.lock().memory_bytes()
    }

    /// Whether a copy may make room for others.
    pub(crate) fn may_drop(&self, key: &BlockKey) -> bool {
        !self.pins.hold(&key.hash)
    }

    /// Blocks of the longest stored prefix.
    pub(crate) fn longest_prefix(&self, hashes: &[SequenceHash], now: u64) -> usize {
        let blocks = self.index.longest_prefix(hashes, Some(now)).len();
        let matches = self.matches.mine();
        matches.asked.add(hashes.len() as u64);
        matches.hits.add(blocks as u64);
        blocks
    }
}
