//! Copies on their way to a colder tier: a batch a node at a time, as the store's task makes them.
//!
//! The store looks again after each batch. Here it is looked at all nodes at once, and again when a small part of
//! what was looked at can have been dropped.

use std::collections::VecDeque;

use super::store::{Outgoing, Source, Store};

/// It is looked again when one in so many of the blocks that were looked at has gone.
const LOOKS_A_WINDOW: u64 = 4;
/// Bytes of a batch, as in the store.
const BATCH_BYTES: f64 = (64 << 20) as f64;

/// See the module.
#[derive(Debug)]
pub(crate) struct Offload {
    to: Source,
    batch_blocks: u32,
    nodes: Vec<Node>,
    /// When so many blocks have come into the tier before it.
    look_at: u64,
}

/// Of one node.
#[derive(Clone, Debug, Default)]
struct Node {
    wanted: VecDeque<Outgoing>,
    under_way: u32,
}

impl Offload {
    pub(crate) fn new(to: Source, nodes: usize, block_bytes: f64) -> Self {
        let batch_blocks = (BATCH_BYTES / block_bytes).max(1.0) as u32;
        Self { to, batch_blocks, nodes: vec![Node::default(); nodes], look_at: 0 }
    }

    pub(crate) fn to(&self) -> Source {
        self.to
    }

    /// Looks which blocks go next, if it is time; whether it did.
    pub(crate) fn look(&mut self, store: &Store) -> bool {
        let came = store.came(self.to);
        if came < self.look_at {
            return false;
        }
        self.look_at = came + (store.window(self.to) as u64 / LOOKS_A_WINDOW).max(1);
        self.nodes.iter_mut().for_each(|node| node.wanted.clear());
        for outgoing in store.near_eviction(self.to) {
            self.nodes[usize::from(outgoing.node)].wanted.push_back(outgoing);
        }
        true
    }

    /// The next batch of a node, once the one before is done.
    pub(crate) fn batch(&mut self, node: u16, store: &Store) -> Vec<Outgoing> {
        let Node { wanted, under_way } = &mut self.nodes[usize::from(node)];
        let mut batch = Vec::new();
        if *under_way > 0 {
            return batch;
        }
        while (batch.len() as u32) < self.batch_blocks
            && let Some(outgoing) = wanted.pop_front()
        {
            if store.wants(&outgoing) {
                batch.push(outgoing);
            }
        }
        *under_way = batch.len() as u32;
        batch
    }

    /// A block of a batch is copied, or was turned away.
    pub(crate) fn done(&mut self, node: u16) {
        self.nodes[usize::from(node)].under_way -= 1;
    }
}
