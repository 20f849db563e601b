//! How blocks come in and go: adoption after commit, and eviction when a slot is wanted.

use std::collections::HashMap;

use kelvin_kernels::checksum;
use kelvin_tiering::{Device, DramSlot, Tier};

use super::{
    LeaseId, Namespace, SessionId, Tenant,
    block::CompleteBlock,
    events::{Event, EventKind},
    state::{Entry, State},
    tenant::BlockKey,
};

/// The holder, in the index, that stands for a copy in DRAM.
const DRAM: u32 = Tier::Dram as u32;

impl Tenant {
    /// Makes a complete block visible, or keeps it until its parent is. False when its parent is gone: a
    /// block that nobody can reach is not worth its slot.
    pub(super) fn adopt(&self, state: &mut State, namespace: &Namespace, block: CompleteBlock) -> bool {
        let first = block.key();
        let mut ready = vec![block];
        while let Some(block) = ready.pop() {
            let (key, parent) = (block.key(), block.parent());
            if let Some(above) = parent.map(|hash| BlockKey { hash, ..key })
                && matches!(state.blocks.get(&above), Some(Entry::Filling { .. }))
            {
                state.orphans.entry(above).or_default().push(block);
                continue;
            }
            if namespace.index.insert(parent, key.hash, DRAM, self.tick()).is_err() {
                state.forget_filling(key, parent);
                continue;
            }
            state.release_parent(key, parent);
            state.insert_sealed(key, block.register());
            let (kind, hash) = (EventKind::Stored, key.hash);
            namespace.events.push(Event { kind, hash, parent, tier: Tier::Dram });
            ready.extend(state.orphans.remove(&key).unwrap_or_default());
        }
        state.blocks.contains_key(&first)
    }

    /// A slot. Should none be free, the least recently used blocks of the same slot size make room; only when
    /// this size has nothing to give, a whole chunk of another size does.
    pub(super) fn allocate(&self, state: &mut State, bytes: u64) -> Option<DramSlot> {
        let slot_bytes = DramSlot::slot_bytes_for(bytes);
        loop {
            if let Some(slot) = self.pool.allocate(bytes) {
                return Some(slot);
            }
            if let Some(victim) = state.victim(slot_bytes) {
                self.evict(state, victim);
            } else if !self.evict_chunk(state, slot_bytes) {
                return None;
            }
        }
    }

    /// Empties the chunk of another slot size that costs the fewest blocks. Looks at every block, which is
    /// rare enough: the chunk then has room for many.
    fn evict_chunk(&self, state: &mut State, slot_bytes: u64) -> bool {
        let mut chunks: HashMap<u32, (u32, Vec<BlockKey>)> = HashMap::new();
        for (key, block) in state.evictable_others(slot_bytes) {
            let (chunk, used) = self.pool.chunk_of(block.slot());
            chunks.entry(chunk).or_insert((used, Vec::new())).1.push(key);
        }
        let whole = chunks.into_values().filter(|(used, keys)| *used as usize == keys.len());
        let Some((_, keys)) = whole.min_by_key(|(used, _)| *used) else { return false };
        for key in keys {
            self.evict(state, key);
        }
        true
    }

    fn evict(&self, state: &mut State, key: BlockKey) {
        self.unpublish(state, key);
        self.counters.evictions.add(1);
    }

    /// Takes a sealed block away from everyone who does not hold it already.
    fn unpublish(&self, state: &mut State, key: BlockKey) {
        let Some(block) = state.remove_sealed(key) else { return };
        if let Some(namespace) = state.namespaces.get(&key.namespace) {
            namespace.index.remove(key.hash, DRAM);
            let (kind, hash, parent) = (EventKind::Removed, key.hash, block.parent());
            namespace.events.push(Event { kind, hash, parent, tier: Tier::Dram });
        }
    }

    /// Looks at blocks that a reader found damaged, and drops those that are.
    pub(crate) fn drop_damaged(&self, session: SessionId, leases: &[LeaseId]) {
        for &lease in leases {
            let Some(block) = self.leased(session, lease) else { continue };
            let found = checksum(block.slot().bytes());
            if found == block.checksum() {
                continue;
            }
            let key = block.key();
            tracing::error!(block = %key.hash, expected = %block.checksum(), %found, "damaged block dropped");
            self.counters.damaged_blocks.add(1);
            let mut state = self.lock();
            if matches!(state.blocks.get(&key), Some(Entry::Sealed(present)) if present.is_same(&block)) {
                self.unpublish(&mut state, key);
            }
        }
    }
}
