//! What equal-shaped blocks share: the hash key, the radix index, the event log.

use crossbeam::utils::CachePadded;
use kelvin_proto::NamespaceSpec;
use tokio::sync::Notify;

use super::{counters::Counter, events::EventLog};
use crate::{
    NamespaceKey, SequenceHash,
    index::{RadixIndex, TierSet},
};

/// Blocks of one tenant, model, layout, dtype, block size and shard.
pub(crate) struct Namespace {
    pub(crate) id: u64,
    pub(crate) spec: NamespaceSpec,
    pub(crate) key: NamespaceKey,
    pub(crate) index: RadixIndex<TierSet>,
    pub(crate) events: EventLog,
    /// Wakes those who wait for a block being filled, at every commit and abort.
    pub(crate) changed: Notify,
    // Written by every match, so apart from what every match reads.
    pub(crate) match_blocks: CachePadded<Counter>,
    pub(crate) hit_blocks: CachePadded<Counter>,
}

impl Namespace {
    pub(crate) fn new(id: u64, spec: NamespaceSpec, key: NamespaceKey) -> Self {
        Self {
            id,
            spec,
            key,
            index: RadixIndex::new(),
            events: EventLog::new(),
            changed: Notify::new(),
            match_blocks: CachePadded::default(),
            hit_blocks: CachePadded::default(),
        }
    }

    /// Blocks of the longest stored prefix.
    pub(crate) fn longest_prefix(&self, hashes: &[SequenceHash], now: u64) -> usize {
        let blocks = self.index.longest_prefix(hashes, Some(now)).len();
        self.match_blocks.add(hashes.len() as u64);
        self.hit_blocks.add(blocks as u64);
        blocks
    }
}
