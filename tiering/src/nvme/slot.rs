//! A slot of the tier, and where it lies.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;

use super::{
    extents::Extents,
    header::{LEAD_BYTES, PAGE_BYTES},
};

/// Where a slot lies. Stays right over restarts as long as the paths keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NvmeAddress {
    /// Place in [`NvmeDevice::files`](super::NvmeDevice::files).
    pub file: u16,
    /// First byte, in the file.
    pub offset: u64,
}

/// The slots of all files. A lock a file, held for bookkeeping only, one at a time.
pub(super) struct Space {
    pub(super) files: Vec<Mutex<Extents>>,
}

/// Bytes that a block takes on the device: whole pages.
pub(super) fn slot_bytes(block_bytes: u32) -> u64 {
    u64::from(block_bytes).next_multiple_of(PAGE_BYTES)
}

/// A slot, owned: dropping it gives it back. What it holds stays in the file until it is written again.
pub struct NvmeSlot {
    space: Arc<Space>,
    offset: u64,
    bytes: u32,
    file: u16,
}

/// Catalogs of millions of blocks hold them.
const _: () = assert!(size_of::<NvmeSlot>() <= 24);

impl NvmeSlot {
    /// A slot of a file, if it has a free one.
    pub(super) fn allocate(space: &Arc<Space>, file: u16, bytes: u32) -> Option<Self> {
        let offset = space.files[usize::from(file)].lock().allocate(slot_bytes(bytes))?;
        Some(Self { space: space.clone(), offset: LEAD_BYTES + offset, bytes, file })
    }

    /// A slot that was marked as taken.
    pub(super) fn taken(space: &Arc<Space>, address: NvmeAddress, bytes: u32) -> Self {
        Self { space: space.clone(), offset: address.offset, bytes, file: address.file }
    }

    /// Where it lies, for the catalog.
    pub fn address(&self) -> NvmeAddress {
        NvmeAddress { file: self.file, offset: self.offset }
    }

    /// Bytes that were asked for.
    pub fn bytes(&self) -> u64 {
        u64::from(self.bytes)
    }

    /// Bytes that a slot for so many takes on the device; more than any device has where none could.
    pub fn slot_bytes_for(bytes: u64) -> u64 {
        u32::try_from(bytes).map_or(u64::MAX, slot_bytes)
    }

    pub(super) fn is_of(&self, space: &Arc<Space>) -> bool {
        Arc::ptr_eq(&self.space, space)
    }
}

impl Drop for NvmeSlot {
    fn drop(&mut self) {
        let mut extents = self.space.files[usize::from(self.file)].lock();
        extents.free(self.offset - LEAD_BYTES, slot_bytes(self.bytes));
    }
}

impl AsRef<NvmeSlot> for NvmeSlot {
    fn as_ref(&self) -> &NvmeSlot {
        self
    }
}

impl fmt::Debug for NvmeSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NvmeSlot({}:{}+{})", self.file, self.offset, self.bytes)
    }
}
