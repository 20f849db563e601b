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

use std::sync::Arc;

use kelvin_kernels::{Checksum, checksum};
use kelvin_tiering::DramSlot;

use super::BlockKey;
use crate::SequenceHash;

/// A block being filled.
#[derive(Debug)]
pub(crate) struct MutableBlock {
    pub(crate) key: BlockKey,
    pub(crate) parent: Option<SequenceHash>,
    pub(crate) slot: DramSlot,
}

impl MutableBlock {
    /// Checks the bytes in the slot against the checksum that their writer gave. A failure returns the block
    /// and what was found.
    pub(crate) fn seal(self, expected: Checksum) -> Result<CompleteBlock, (Box<Self>, Checksum)> {
        let found = checksum(self.slot.bytes());
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
    /// A block whose bytes were checked on their way into the slot.
    #[allow(dead_code, reason = "for colder tiers")]
    pub(crate) fn verified(block: MutableBlock, checksum: Checksum) -> Self {
        Self { block, checksum }
    }

    pub(crate) fn key(&self) -> BlockKey {
        self.block.key
    }

    pub(crate) fn parent(&self) -> Option<SequenceHash> {
        self.block.parent
    }

    pub(crate) fn register(self) -> ImmutableBlock {
        ImmutableBlock(Arc::new(Sealed { block: self.block, checksum: self.checksum }))
    }
}

#[derive(Debug)]
struct Sealed {
    block: MutableBlock,
    checksum: Checksum,
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
        self.0.block.key
    }

    pub(crate) fn parent(&self) -> Option<SequenceHash> {
        self.0.block.parent
    }

    /// Whether both are clones of one block.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn slot(&self) -> &DramSlot {
        &self.0.block.slot
    }

    /// Whether anyone but the store holds it. Exact under the tenant's lock, which all cloning takes.
    pub(crate) fn is_leased(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl AsRef<DramSlot> for ImmutableBlock {
    fn as_ref(&self) -> &DramSlot {
        self.slot()
    }
}
