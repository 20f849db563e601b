//! What equal-shaped blocks share: the hash key, the radix index, the event log.

use std::sync::Arc;

use crossbeam::utils::CachePadded;
use kelvin_proto::NamespaceSpec;
use tokio::sync::Notify;

use super::{counters::Counter, events::EventLog, pins::Pins};
use crate::{
    NamespaceKey, SequenceHash,
    catalog::NamespaceId,
    index::{RadixIndex, TierSet},
    insight::Explainer,
};

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
    // Written by every match, so apart from what every match reads.
    pub(crate) match_blocks: CachePadded<Counter>,
    pub(crate) hit_blocks: CachePadded<Counter>,
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
