//! Eviction policies: which block goes first when a tier is full.
//!
//! # Overview
//! A [`Policy`] knows the blocks of one tier by key, what was used when, and which block stands behind
//! which. It owns no bytes and reads no clock; its owner tells it what came, was used and went, and asks for
//! a victim. It is not shared between threads: its owner has a lock of its own around it.

mod lru;
#[cfg(test)]
mod tests;

use std::hash::Hash;

pub use lru::TailFirstLru;

/// Chooses which block a full tier drops.
pub trait Policy<K: Copy + Eq + Hash>: Send {
    /// A block came in behind `parent` (`None`: it begins a sequence), which need not be resident. That is
    /// a use of the block. Of one that is resident already, the parent it came with stays. Parents must not
    /// go in circles.
    fn insert(&mut self, key: K, parent: Option<K>);

    /// A prefix was matched, the start of the sequence first. Keys that are not resident are passed over.
    fn touch(&mut self, prefix: &[K]);

    /// A block went; whether it was resident.
    fn remove(&mut self, key: K) -> bool;

    /// The block to drop next, of those that `may_evict` agrees to; it stays until [`remove`](Self::remove).
    ///
    /// `may_evict` refuses blocks in use (leased). It is asked at most once for a block a call.
    fn victim(&mut self, may_evict: &mut dyn FnMut(&K) -> bool) -> Option<K>;

    /// Resident blocks.
    fn len(&self) -> usize;

    /// Whether no block is resident.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
