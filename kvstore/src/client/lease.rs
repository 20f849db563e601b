//! Leases on the client's side: a block's bytes, borrowed for a while.

use std::{fmt, sync::Arc};

use kelvin_kernels::{Checksum, checksum};
use kelvin_proto::kv::v1;
use kelvin_tiering::Arena;

use super::{ChecksumMismatch, Error, keeper::Handle};
use crate::SequenceHash;

/// A lease's name: which session holds it, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LeaseName {
    pub(super) session: u64,
    pub(super) id: u64,
}

/// A block's bytes as this process sees them.
pub(super) enum Memory {
    /// In the store's memory, mapped here.
    Mapped { arena: Arc<Arena>, offset: u64, bytes: usize },
    /// A copy that came, or will go, through gRPC.
    Owned(Vec<u8>),
}

impl Memory {
    /// The range that the store named, checked.
    pub(super) fn mapped(
        arena: &Arc<Arena>,
        location: v1::Location,
        block_bytes: u64,
    ) -> Result<Self, Error> {
        if location.bytes != block_bytes || arena.range(location.offset, location.bytes).is_none() {
            return Err(Error::Protocol(format!(
                "a block of {} bytes at {} in a region of {}",
                location.bytes,
                location.offset,
                arena.bytes()
            )));
        }
        Ok(Self::Mapped { arena: arena.clone(), offset: location.offset, bytes: location.bytes as usize })
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped { arena, offset, bytes } => {
                let start = arena.range(*offset, *bytes as u64).expect("checked when it was made");
                // SAFETY: the range is mapped as long as `arena` lives. While this lease lasts the store gives
                // the range to no writer, and in this process only one `WriteLease` could hold it.
                unsafe { std::slice::from_raw_parts(start.as_ptr(), *bytes) }
            }
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped { arena, offset, bytes } => {
                let start = arena.range(*offset, *bytes as u64).expect("checked when it was made");
                // SAFETY: as above; the reservation is exclusive until it is committed or aborted, which
                // takes this value away.
                unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), *bytes) }
            }
        }
    }
}

/// The right to read one block. Dropping it gives it back (batched, in the background).
pub struct ReadLease {
    pub(super) name: LeaseName,
    pub(super) hash: SequenceHash,
    pub(super) expected: Checksum,
    pub(super) memory: Memory,
    pub(super) keeper: Arc<Handle>,
}

impl ReadLease {
    /// Which block.
    pub fn hash(&self) -> SequenceHash {
        self.hash
    }

    /// The bytes, after checking that they are those committed. Costs one pass over them.
    pub fn verified(&self) -> Result<&[u8], ChecksumMismatch> {
        let bytes = self.memory.bytes();
        let found = checksum(bytes);
        match found == self.expected {
            true => Ok(bytes),
            false => Err(ChecksumMismatch { hash: self.hash, expected: self.expected, found }),
        }
    }
}

impl Drop for ReadLease {
    fn drop(&mut self) {
        self.keeper.give_back(self.name, false);
    }
}

impl fmt::Debug for ReadLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadLease({})", self.hash)
    }
}

/// The right to fill one block. Dropping it uncommitted gives the reservation back.
pub struct WriteLease {
    pub(super) name: LeaseName,
    pub(super) hash: SequenceHash,
    pub(super) memory: Memory,
    pub(super) keeper: Arc<Handle>,
    /// Set once a commit was sent: there is nothing to abort any more.
    pub(super) sent: bool,
}

impl WriteLease {
    /// Which block.
    pub fn hash(&self) -> SequenceHash {
        self.hash
    }

    /// The bytes to fill, all of them; what they hold before is undefined.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    pub(super) fn checksum(&self) -> Checksum {
        checksum(self.memory.bytes())
    }

    /// Bytes that must travel, for a block that is not in the store's memory yet.
    pub(super) fn take_owned(&mut self) -> Option<Vec<u8>> {
        match &mut self.memory {
            Memory::Owned(bytes) => Some(std::mem::take(bytes)),
            Memory::Mapped { .. } => None,
        }
    }
}

impl Drop for WriteLease {
    fn drop(&mut self) {
        if !self.sent {
            self.keeper.give_back(self.name, true);
        }
    }
}

impl fmt::Debug for WriteLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteLease({})", self.hash)
    }
}
