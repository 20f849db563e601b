//! Eviction policies: which block goes first when a tier is full.
//!
//! # Overview
//! A [`Policy`] knows the blocks of one tier by key, what was used when, and which block stands behind
//! which. It owns no bytes and reads no clock; its owner tells it what came, was used and went, and asks for
//! a victim. It is not shared between threads: its owner has a lock of its own around it.
//!
//! A tier keeps an [`Order`]: what has expired goes first, then what is over its group's quota, then the
//! lowest priority, and within that the policy chooses.
//!
//! # Invariants
//! **Closure**: no victim has a resident child. A block whose parent is gone can't be matched, and it would
//! hold its place for nothing.

mod adaptive;
mod arc;
mod density;
mod frequency;
mod ghost;
mod kind;
mod lru;
mod order;
mod ranked;
mod remembered;
mod s3fifo;
#[cfg(test)]
mod tests;
mod upcoming;

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::hint::black_box;

pub use ghost::{GhostBoard, GhostRate};
pub use kind::{PolicyKind, UnknownPolicy, build};
pub use lru::TailFirstLru;
pub use order::{Attributes, Order, Why};

/// What a block takes, and what it saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Bytes of its slot.
    pub bytes: u32,
    /// What making it again costs, in any unit that is the same for all blocks of a tier (tokens,
    /// microseconds).
    pub cost: u32,
}

impl Default for Weight {
    /// All blocks alike.
    fn default() -> Self {
        Self { bytes: 1, cost: 1 }
    }
}

/// Keys of one [`glance`]: their blocks stay in the nearest cache until it is their turn.
const GLANCE_KEYS: usize = 64;

/// Looks at something of blocks that are about to be used, each of which is mostly not in a cache: the reads of
/// this pass wait for memory side by side, where a pass that changes blocks would wait for each in turn.
fn glance<K: Eq + Hash, B, H: BuildHasher>(
    blocks: &HashMap<K, B, H>,
    keys: &[K],
    look: impl Fn(&B) -> usize,
) {
    black_box(keys.iter().filter_map(|key| blocks.get(key)).fold(0, |sum, block| sum ^ look(block)));
}

/// Chooses which block a full tier drops. Never one that has a resident child.
pub trait Policy<K: Copy + Eq + Hash>: Send {
    /// A block came in behind `parent` (`None`: it begins a sequence), which need not be resident. That is
    /// a use of the block. Of one that is resident already, the parent it came with stays. Parents must not
    /// go in circles.
    fn insert(&mut self, key: K, parent: Option<K>, weight: Weight);

    /// A prefix was matched, the start of the sequence first. Keys that are not resident are passed over.
    fn touch(&mut self, prefix: &[K]);

    /// A block went; whether it was resident.
    fn remove(&mut self, key: K) -> bool;

    /// A block is not expected to be used again: it goes before all that were not demoted, until its next
    /// use.
    fn demote(&mut self, key: K);

    /// The block to drop next, of those that `may_evict` agrees to; it stays until [`remove`](Self::remove).
    ///
    /// `may_evict` refuses blocks in use (leased). It is asked at most once for a block a call.
    fn victim(&mut self, may_evict: &mut dyn FnMut(&K) -> bool) -> Option<K>;

    /// The next victims, were no block used meanwhile and none refused: at most `blocks`, in their order.
    /// What a policy learns between two victims may change it.
    fn upcoming(&self, blocks: usize) -> Vec<K>;

    /// How many blocks the tier has room for: for policies that divide it.
    fn set_capacity(&mut self, blocks: usize);

    /// Sets memory aside for so many blocks.
    fn reserve(&mut self, _blocks: usize) {}

    /// Whether a block is resident.
    fn contains(&self, key: &K) -> bool;

    /// What a resident block came in behind.
    fn parent(&self, key: &K) -> Option<K>;

    /// What all policies would have hit lately, if this one compares them.
    fn ghost_rates(&self) -> Vec<GhostRate> {
        Vec::new()
    }

    /// Resident blocks.
    fn len(&self) -> usize;

    /// Whether no block is resident.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
