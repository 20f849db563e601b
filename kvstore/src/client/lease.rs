//! Leases on the client's side: a block's bytes, borrowed for a while.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use kelvin_kernels::{Checksum, checksum, copy_checksummed};
use kelvin_proto::kv::v1::{self, Tier};

use super::{
    ChecksumMismatch, Error,
    keeper::{Handle, Return},
};
use crate::{
    SequenceHash,
    transport::{Attached, Buffer},
};

/// A lease's name: which session holds it, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LeaseName {
    pub(super) session: u64,
    pub(super) id: u64,
}

/// A block's bytes as this process sees them.
pub(super) enum Memory {
    /// In the store's memory, mapped here. Holding the socket keeps the store from using the range for
    /// anything else, even after the lease has ended there.
    Mapped { attached: Arc<Attached>, offset: u64, bytes: usize },
    /// A copy that came, or will go, over the network.
    Owned(Buffer),
}

impl Memory {
    /// The range that the store named, checked.
    pub(super) fn mapped(
        attached: &Arc<Attached>,
        location: v1::Location,
        block_bytes: u64,
    ) -> Result<Self, Error> {
        let arena = &attached.arena;
        if location.bytes != block_bytes || arena.range(location.offset, location.bytes).is_none() {
            return Err(Error::Protocol(format!(
                "a block of {} bytes at {} in a region of {}",
                location.bytes,
                location.offset,
                arena.bytes()
            )));
        }
        let attached = attached.clone();
        Ok(Self::Mapped { attached, offset: location.offset, bytes: location.bytes as usize })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped { attached, offset, bytes } => {
                let start = attached.arena.range(*offset, *bytes as u64).expect("checked when it was made");
                // SAFETY: the range is mapped as long as `attached` lives. While it does, its socket is open,
                // and until that closes the store gives the range to no writer, whatever becomes of the
                // lease. In this process only one `WriteLease` holds it.
                unsafe { std::slice::from_raw_parts(start.as_ptr(), *bytes) }
            }
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped { attached, offset, bytes } => {
                let start = attached.arena.range(*offset, *bytes as u64).expect("checked when it was made");
                // SAFETY: as above. The store gave the range to this reservation alone, and reads it only to
                // make the checksum of a commit, which takes this value away.
                unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), *bytes) }
            }
        }
    }
}

/// The right to read one block. Dropping it gives it back (batched, in the background).
pub struct ReadLease {
    pub(super) name: LeaseName,
    pub(super) hash: SequenceHash,
    pub(super) tier: Tier,
    pub(super) expected: Checksum,
    pub(super) memory: Memory,
    pub(super) keeper: Arc<Handle>,
    /// Set when the bytes were found wrong: the store is told.
    pub(super) damaged: AtomicBool,
    /// Whether the checksum was made and found right on the way here.
    pub(super) checked: bool,
}

impl ReadLease {
    /// Which block.
    pub fn hash(&self) -> SequenceHash {
        self.hash
    }

    /// Where the block was when it was leased.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The bytes, after checking that they are those committed. Costs one pass over them, unless they were
    /// checked on their way over the network.
    pub fn verified(&self) -> Result<&[u8], ChecksumMismatch> {
        let bytes = self.memory.bytes();
        if self.checked {
            return Ok(bytes);
        }
        let found = checksum(bytes);
        match found == self.expected {
            true => Ok(bytes),
            false => {
                self.damaged.store(true, Ordering::Relaxed);
                Err(ChecksumMismatch { hash: self.hash, expected: self.expected, found })
            }
        }
    }
}

impl Drop for ReadLease {
    fn drop(&mut self) {
        let damaged = *self.damaged.get_mut();
        self.keeper.give_back(self.name, if damaged { Return::Damaged } else { Return::Release });
    }
}

impl fmt::Debug for ReadLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadLease({})", self.hash)
    }
}

/// The right to read one block, of which only parts are read: see [`Namespace::read_parts`]. Dropping it gives it
/// back.
///
/// [`Namespace::read_parts`]: super::Namespace::read_parts
#[derive(Debug)]
pub struct PartLease(pub(super) ReadLease);

impl PartLease {
    /// Which block.
    pub fn hash(&self) -> SequenceHash {
        self.0.hash
    }

    /// Where the block was when it was leased.
    pub fn tier(&self) -> Tier {
        self.0.tier
    }
}

/// The right to fill one block. Dropping it uncommitted gives the reservation back.
pub struct WriteLease {
    pub(super) name: LeaseName,
    pub(super) hash: SequenceHash,
    pub(super) memory: Memory,
    pub(super) keeper: Arc<Handle>,
    /// Checksum of the bytes, as long as nothing else was written.
    pub(super) known: Option<Checksum>,
    /// Set once a commit was answered: there is nothing to abort any more.
    pub(super) done: bool,
}

impl WriteLease {
    /// Which block.
    pub fn hash(&self) -> SequenceHash {
        self.hash
    }

    /// The bytes to fill, all of them; what they hold before is undefined.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.known = None;
        self.memory.bytes_mut()
    }

    /// Fills the whole block with a copy of `source`, making the checksum on the way.
    ///
    /// # Panics
    /// When `source` is not as long as the block.
    pub fn fill(&mut self, source: &[u8]) {
        self.known = Some(copy_checksummed(source, self.memory.bytes_mut()));
    }

    pub(super) fn checksum(&self) -> Checksum {
        self.known.unwrap_or_else(|| checksum(self.memory.bytes()))
    }

    /// The store answered a commit.
    pub(super) fn finish(&mut self) {
        self.done = true;
        self.keeper.forget(self.name);
    }

    /// Bytes that must travel, for a block that is not in the store's memory yet.
    pub(super) fn take_owned(&mut self) -> Option<Buffer> {
        match &mut self.memory {
            Memory::Owned(bytes) => Some(std::mem::take(bytes)),
            Memory::Mapped { .. } => None,
        }
    }
}

impl Drop for WriteLease {
    fn drop(&mut self) {
        if !self.done {
            self.keeper.give_back(self.name, Return::Abort);
        }
    }
}

impl fmt::Debug for WriteLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteLease({})", self.hash)
    }
}
