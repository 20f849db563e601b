//! A block's life as types.
//!
//! ```text
//!   reserve            seal(checksum)              register
//!  ─────────► Mutable ───────────────► Complete ─────────────► Immutable ◄── clones: leases
//!                │ drop                    │ drop                   │ last clone dropped
//!                └─────────────────────────┴────────────────────────┴──────► slot is free
//! ```
//! Only the holder of a [`MutableBlock`] can write; a [`CompleteBlock`] has been checked against its
//! checksum but is not visible yet; an [`ImmutableBlock`] never changes again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use kelvin_kernels::{Checksum, checksum};
use kelvin_tiering::DramSlot;

use super::BlockKey;
use crate::SequenceHash;

/// How much a block is worth keeping, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keep {
    /// Blocks of lower priority go first.
    pub(crate) priority: u8,
    /// By the store's clock; never, if `None`.
    pub(crate) expires_at: Option<Duration>,
}

impl Keep {
    /// As usual.
    pub(crate) const PRIORITY: u8 = 128;
}

impl Default for Keep {
    fn default() -> Self {
        Self { priority: Self::PRIORITY, expires_at: None }
    }
}

/// A block being filled.
#[derive(Debug)]
pub(crate) struct MutableBlock {
    pub(crate) key: BlockKey,
    pub(crate) parent: Option<SequenceHash>,
    pub(crate) slot: DramSlot,
    pub(crate) keep: Keep,
    /// Checksum of all of it, where it was made on the way in and nobody wrote since.
    pub(crate) hashed: Option<Checksum>,
}

impl MutableBlock {
    /// Checks the bytes in the slot against the checksum that their writer gave. A failure returns the block
    /// and what was found.
    pub(crate) fn seal(self, expected: Checksum) -> Result<CompleteBlock, (Box<Self>, Checksum)> {
        let found = self.hashed.unwrap_or_else(|| checksum(self.slot.bytes()));
        if found == expected {
            Ok(CompleteBlock { block: self, checksum: expected })
        } else {
            Err((Box::new(self), found))
        }
    }
}

/// A filled and checked block that nobody can see yet.
#[derive(Debug)]
pub(crate) struct CompleteBlock {
    block: MutableBlock,
    checksum: Checksum,
}

impl CompleteBlock {
    pub(crate) fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// A block whose bytes were checked on their way into the slot.
    pub(crate) fn verified(block: MutableBlock, checksum: Checksum) -> Self {
        Self { block, checksum }
    }

    pub(crate) fn key(&self) -> BlockKey {
        self.block.key
    }

    pub(crate) fn parent(&self) -> Option<SequenceHash> {
        self.block.parent
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.block.slot.len()
    }

    pub(crate) fn register(self) -> ImmutableBlock {
        let Self { block: MutableBlock { key, parent, slot, keep, .. }, checksum } = self;
        ImmutableBlock(Arc::new(Sealed { slot, checksum, used: AtomicU32::new(0), key, parent, keep }))
    }
}

/// What a lease looks at comes first, beside the count of the clones.
#[derive(Debug)]
#[repr(C)]
struct Sealed {
    slot: DramSlot,
    checksum: Checksum,
    /// Epoch of its last use.
    used: AtomicU32,
    key: BlockKey,
    parent: Option<SequenceHash>,
    keep: Keep,
}

/// A sealed block. The store keeps one clone, each read lease another; as long as there is any beside the
/// store's, it is not evicted.
#[derive(Debug, Clone)]
pub(crate) struct ImmutableBlock(Arc<Sealed>);

impl ImmutableBlock {
    pub(crate) fn checksum(&self) -> Checksum {
        self.0.checksum
    }

    pub(crate) fn key(&self) -> BlockKey {
        self.0.key
    }

    pub(crate) fn parent(&self) -> Option<SequenceHash> {
        self.0.parent
    }

    /// Higher stays longer.
    pub(crate) fn priority(&self) -> u8 {
        self.0.keep.priority
    }

    /// When it is over, by the store's clock.
    pub(crate) fn expires_at(&self) -> Option<Duration> {
        self.0.keep.expires_at
    }

    /// Whether both are clones of one block.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn slot(&self) -> &DramSlot {
        &self.0.slot
    }

    /// Whether this is its first use in an epoch; notes it.
    pub(crate) fn use_in(&self, epoch: u32) -> bool {
        let first = self.0.used.load(Ordering::Relaxed) != epoch;
        if first {
            self.0.used.store(epoch, Ordering::Relaxed);
        }
        first
    }

    /// Whether anyone but the store holds it. Of the table's own clone, and under its lock there, a no is
    /// final: no other clone can come to be.
    pub(crate) fn is_leased(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl AsRef<DramSlot> for ImmutableBlock {
    fn as_ref(&self) -> &DramSlot {
        self.slot()
    }
}
