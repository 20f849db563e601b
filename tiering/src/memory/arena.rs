//! A memory file (memfd) mapped into this process, and maybe into others.
//!
//! # Invariants
//! The file is sealed against shrinking and growing before anyone else sees it, so that no holder of the
//! descriptor can take pages away under a mapping (which would be a SIGBUS here).
//!
//! # Sharing
//! Rust's aliasing rules end at the process. What keeps two processes from writing one range is the lease
//! protocol above: a range is written by the one holder of its reservation, then only read. A process that
//! breaks the protocol is found by the checksum, not prevented; it can harm only its own tenant, whose
//! memory file is its own.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags},
};

/// Why memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel refused.
    #[error("{action} of {bytes} bytes: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// How much of it.
        bytes: u64,
        /// The kernel's word.
        source: Errno,
    },
    /// Too few huge pages are free.
    #[error(
        "{bytes} bytes in huge pages: {source}; set {} more aside (sysctl vm.nr_hugepages), or do without them",
        bytes / HUGE_PAGE_BYTES
    )]
    HugePages {
        /// How much was wanted.
        bytes: u64,
        /// The kernel's word.
        source: Errno,
    },
    /// A memory file could be shrunk under a mapping.
    #[error("memory file is not sealed against shrinking")]
    NotSealed,
    /// A memory file is smaller than its owner said.
    #[error("memory file has {found} bytes where {expected} were announced")]
    TooSmall {
        /// Bytes announced.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
}

/// A huge page of a memory file.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// A mapped memory file.
#[derive(Debug)]
pub struct Arena {
    file: OwnedFd,
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain memory owned by this value until drop; access goes through raw pointers whose
// users (slots, leases) guarantee exclusiveness or immutability of their ranges, from any thread.
unsafe impl Send for Arena {}
// SAFETY: as above; `Arena` itself hands out pointers only, never references.
unsafe impl Sync for Arena {}

impl Arena {
    /// Makes a memory file of `bytes`, sealed in size, and maps it. Pages are taken when first touched.
    pub fn create(name: &str, bytes: u64) -> Result<Self, MemoryError> {
        let system = |action| move |source| MemoryError::System { action, bytes, source };
        let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(system("create memory file"))?;
        rustix::fs::ftruncate(&file, bytes).map_err(system("size memory file"))?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(system("seal memory file"))?;
        Self::map(file, bytes)
    }

    /// The same in huge pages (2 MiB) of those that the operator set aside, all of which are taken at once.
    /// `bytes` is rounded up to whole ones.
    pub fn create_in_huge_pages(name: &str, bytes: u64) -> Result<Self, MemoryError> {
        let bytes = bytes.checked_next_multiple_of(HUGE_PAGE_BYTES).unwrap_or(u64::MAX);
        let refused = |source| MemoryError::HugePages { bytes, source };
        let flags =
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let file = rustix::fs::memfd_create(name, flags).map_err(refused)?;
        rustix::fs::ftruncate(&file, bytes).map_err(refused)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(refused)?;
        // The mapping sets the pages aside for the file, so that none lacks later.
        Self::map(file, bytes).map_err(|error| match error {
            MemoryError::System { source: source @ Errno::NOMEM, .. } => refused(source),
            other => other,
        })
    }

    /// Maps a memory file that another process made.
    pub fn map(file: OwnedFd, bytes: u64) -> Result<Self, MemoryError> {
        let system = |action| move |source| MemoryError::System { action, bytes, source };
        let seals =
            rustix::fs::fcntl_get_seals(&file).map_err(system("read the seals of the memory file"))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(MemoryError::NotSealed);
        }
        let found = rustix::fs::fstat(&file).map_err(system("stat memory file"))?.st_size as u64;
        if found < bytes || bytes == 0 {
            return Err(MemoryError::TooSmall { expected: bytes, found });
        }
        let length = usize::try_from(bytes).map_err(|_| MemoryError::System {
            action: "map memory file",
            bytes,
            source: Errno::NOMEM,
        })?;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice aliases nothing of ours; the
        // length was checked against the file, whose size is sealed.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }
        .map_err(system("map memory file"))?;
        // Fewer page faults and TLB misses where the kernel gives huge pages to shared memory; where it does
        // not, nothing is lost.
        // SAFETY: the range is the mapping just made, and this advice does not change its contents.
        let _ = unsafe { rustix::mm::madvise(base, length, Advice::LinuxHugepage) };
        let base = NonNull::new(base.cast()).expect("mmap does not return null");
        Ok(Self { file, base, bytes: length })
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// The file, to hand to another process.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Start of a range, or `None` when it does not lie inside.
    pub fn range(&self, offset: u64, bytes: u64) -> Option<NonNull<u8>> {
        let end = offset.checked_add(bytes)?;
        if end > self.bytes as u64 {
            return None;
        }
        // SAFETY: offset is within the mapping, by the check above.
        Some(unsafe { self.base.add(offset as usize) })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` with this address and length, and every slot or lease that
        // points into it keeps the arena alive.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_see_the_same_bytes() {
        let ours = Arena::create("test", 8192).unwrap();
        let theirs = Arena::map(ours.file().try_clone_to_owned().unwrap(), 8192).unwrap();
        // SAFETY: both ranges are in bounds and nobody else uses them.
        unsafe {
            ours.range(5000, 1).unwrap().write(7);
            assert_eq!(theirs.range(5000, 1).unwrap().read(), 7);
        }
    }

    #[test]
    fn ranges_are_checked() {
        let arena = Arena::create("test", 4096).unwrap();
        assert!(arena.range(0, 4096).is_some());
        for (offset, bytes) in [(1, 4096), (4097, 0), (u64::MAX, 2)] {
            assert!(arena.range(offset, bytes).is_none(), "{offset}+{bytes}");
        }
    }

    #[test]
    fn the_size_cannot_be_changed_by_a_holder_of_the_file() {
        let arena = Arena::create("test", 4096).unwrap();
        assert_eq!(rustix::fs::ftruncate(arena.file(), 0), Err(Errno::PERM));
    }

    #[test]
    fn a_file_that_could_be_shrunk_is_not_mapped() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        assert!(matches!(Arena::map(file, 4096), Err(MemoryError::NotSealed)));
    }

    #[test]
    fn a_file_smaller_than_announced_is_refused() {
        let arena = Arena::create("test", 4096).unwrap();
        let copy = arena.file().try_clone_to_owned().unwrap();
        assert!(matches!(Arena::map(copy, 8192), Err(MemoryError::TooSmall { expected: 8192, found: 4096 })));
    }
}
