//! Opens one file or device of the tier: found or made, locked, preallocated, its header read or written.
//!
//! # Crash consistency
//! The header is written and synced before the first block. A file whose header does not read as ours is
//! left alone; one that is ours but damaged is begun anew under a new uuid, which tells the catalog that
//! its blocks are gone. Nothing else of the file is believed: what a slot holds is what the catalog says
//! and the block's checksum confirms.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FallocateFlags, FlockOperation, OFlags},
    io::Errno,
};

use super::{
    NvmeError, NvmePath,
    buffer::Pages,
    header::{Header, HeaderFault, LEAD_BYTES, PAGE_BYTES},
};

/// How long a lock is waited for, and between two tries.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// The file that is made in a directory.
const FILE_NAME: &str = "kelvin.blocks";
const EXTENT_BYTES_MIN: u64 = 16 << 20;
const EXTENT_BYTES_MAX: u64 = 64 << 20;

/// A file that is ours until it is dropped.
#[derive(Debug)]
pub(super) struct BlockFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) uuid: [u8; 16],
    pub(super) extent_bytes: u64,
    pub(super) extents: u32,
    pub(super) direct: bool,
}

/// A path that was found or made, with the file behind it.
#[derive(Debug)]
pub(super) struct Found {
    file: File,
    path: PathBuf,
    bytes: u64,
    device: bool,
    /// Device and inode, or the number of the block device itself.
    identity: (u64, u64),
    /// Made just now; taken away again should the opening fail.
    fresh: bool,
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> NvmeError {
    let path = path.to_owned();
    move |source| NvmeError::Io { path, action, source }
}

impl Found {
    /// Looks where the path leads. Makes the directory and the file when they are not there.
    pub(super) fn find(wanted: &NvmePath, extent_bytes: u64) -> Result<Self, NvmeError> {
        check_size(wanted, extent_bytes)?;
        let mut path = wanted.path.clone();
        let kind = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir(&path).map_err(io_error(&path, "make the directory"))?;
                std::fs::metadata(&path).map_err(io_error(&path, "look at it"))?.file_type()
            }
            Err(error) => return Err(io_error(&path, "look at it")(error)),
        };
        let device = kind.is_block_device();
        if kind.is_dir() {
            path.push(FILE_NAME);
        } else if !device && !kind.is_file() {
            return Err(NvmeError::Unsuitable { path });
        }
        let fresh = !path.exists();
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        if device {
            // The kernel refuses a device that is mounted, or whose whole or part is open this way.
            options.custom_flags(OFlags::EXCL.bits() as i32);
        } else {
            options.create(true).truncate(false);
        }
        let file = options.open(&path).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => NvmeError::InUse { path: path.clone() },
            _ => io_error(&path, "open")(error),
        })?;
        let metadata = file.metadata().map_err(io_error(&path, "look at it"))?;
        let identity = if device { (metadata.rdev(), 0) } else { (metadata.dev(), metadata.ino()) };
        Ok(Self { file, path, bytes: wanted.bytes, device, identity, fresh })
    }

    /// Refuses two paths to one file.
    pub(super) fn all_differ(found: &[Self]) -> Result<(), NvmeError> {
        for (i, second) in found.iter().enumerate() {
            if let Some(first) = found[..i].iter().find(|first| first.identity == second.identity) {
                return Err(NvmeError::Overlap { first: first.path.clone(), second: second.path.clone() });
            }
        }
        Ok(())
    }

    /// Takes the lock. A process that was killed has it for a moment longer: until the kernel is done with what
    /// its ring had under way.
    fn lock(&self) -> Result<(), Errno> {
        let begun = Instant::now();
        loop {
            match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCK_PATIENCE => thread::sleep(LOCK_PAUSE),
                locked => return locked,
            }
        }
    }

    /// Locks, sizes and labels the file.
    pub(super) fn open(mut self, extent_bytes: u64, direct: bool) -> Result<BlockFile, NvmeError> {
        self.lock().map_err(|error| match error {
            Errno::WOULDBLOCK => {
                // Whoever holds it may have made it a moment ago.
                self.fresh = false;
                NvmeError::InUse { path: self.path.clone() }
            }
            _ => io_error(&self.path, "lock")(error.into()),
        })?;
        let old = self.read_header()?;
        let header = self.plan(old, extent_bytes)?;
        self.reserve(LEAD_BYTES + header.room_bytes)?;
        if old != Some(header) {
            let written = self.file.write_all_at(&header.encode(), 0).and_then(|()| self.file.sync_all());
            written.map_err(io_error(&self.path, "write the header"))?;
        }
        let direct = direct && self.go_direct();
        let extents = u32::try_from(header.room_bytes / header.extent_bytes).unwrap_or(u32::MAX);
        self.fresh = false;
        Ok(BlockFile {
            file: self.file.try_clone().map_err(io_error(&self.path, "duplicate the descriptor"))?,
            path: self.path.clone(),
            uuid: header.uuid,
            extent_bytes: header.extent_bytes,
            extents,
            direct,
        })
    }

    fn read_header(&self) -> Result<Option<Header>, NvmeError> {
        let mut page = [0; PAGE_BYTES as usize];
        let mut filled = 0;
        while filled < page.len() {
            match self.file.read_at(&mut page[filled..], filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error(&self.path, "read the header")(error)),
            }
        }
        let path = self.path.clone();
        match Header::decode(&page) {
            Ok(header) => Ok(Some(header)),
            Err(HeaderFault::Blank) => Ok(None),
            Err(HeaderFault::Damaged) => {
                tracing::warn!(path = %path.display(), "damaged header: the file is begun anew");
                Ok(None)
            }
            Err(HeaderFault::Foreign) => Err(NvmeError::Foreign { path }),
            Err(HeaderFault::Version(found)) => Err(NvmeError::Version { path, found }),
        }
    }

    /// The header that the file shall have. A file keeps its uuid and extent size when its room changes.
    fn plan(&self, old: Option<Header>, extent_bytes: u64) -> Result<Header, NvmeError> {
        let extent_bytes = match (old, extent_bytes) {
            (Some(old), 0) => old.extent_bytes,
            (Some(old), wanted) if old.extent_bytes != wanted => {
                let path = self.path.clone();
                return Err(NvmeError::OtherExtents { path, found: old.extent_bytes, wanted });
            }
            (None, 0) => derived_extent_bytes(self.bytes),
            (_, wanted) => wanted,
        };
        if self.bytes < extent_bytes {
            return Err(NvmeError::TooSmall { path: self.path.clone(), bytes: self.bytes, extent_bytes });
        }
        let mut uuid = [0; 16];
        match old {
            Some(old) => uuid = old.uuid,
            None => {
                rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())
                    .map_err(|error| io_error(&self.path, "draw a uuid")(error.into()))?;
            }
        }
        Ok(Header { uuid, extent_bytes, room_bytes: self.bytes - self.bytes % extent_bytes })
    }

    /// Makes the file `bytes` long with all its room on the disk, so that a write later never finds it full.
    fn reserve(&mut self, bytes: u64) -> Result<(), NvmeError> {
        let too_big = |room: u64| NvmeError::TooBig {
            path: self.path.clone(),
            bytes: self.bytes,
            room_bytes: room.saturating_sub(LEAD_BYTES) / PAGE_BYTES * PAGE_BYTES,
        };
        if self.device {
            let room = self.file.seek(SeekFrom::End(0)).map_err(io_error(&self.path, "measure"))?;
            return if room < bytes { Err(too_big(room)) } else { Ok(()) };
        }
        let metadata = self.file.metadata().map_err(io_error(&self.path, "look at it"))?;
        let disk = rustix::fs::fstatvfs(&self.file)
            .map_err(|error| io_error(&self.path, "ask for free space")(error.into()))?;
        let room = (metadata.blocks() * 512).saturating_add(disk.f_bavail.saturating_mul(disk.f_frsize));
        if room < bytes {
            return Err(too_big(room));
        }
        if metadata.len() > bytes {
            self.file.set_len(bytes).map_err(io_error(&self.path, "shorten"))?;
        }
        loop {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::NOSPC) => return Err(too_big(room.min(bytes - PAGE_BYTES))),
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    tracing::warn!(
                        path = %self.path.display(),
                        "this file system cannot preallocate: writes fail should others fill it"
                    );
                    return self.file.set_len(bytes).map_err(io_error(&self.path, "lengthen"));
                }
                Err(error) => return Err(io_error(&self.path, "preallocate")(error.into())),
            }
        }
    }

    /// Goes past the page cache, if a page can then be read.
    fn go_direct(&self) -> bool {
        let attempt = || -> io::Result<()> {
            let flags = rustix::fs::fcntl_getfl(&self.file)?;
            rustix::fs::fcntl_setfl(&self.file, flags | OFlags::DIRECT)?;
            let mut page = Pages::new(PAGE_BYTES as usize);
            let read = self.file.read_exact_at(page.as_mut_slice(), 0);
            if read.is_err() {
                rustix::fs::fcntl_setfl(&self.file, flags)?;
            }
            read
        };
        attempt()
            .inspect_err(|error| {
                tracing::warn!(
                    path = %self.path.display(), %error,
                    "no direct I/O here: blocks go through the page cache, which costs memory and a copy"
                );
            })
            .is_ok()
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        if self.fresh && !self.device {
            // What could not be opened leaves nothing behind that takes room.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for BlockFile {
    fn drop(&mut self) {
        // Whatever other descriptors of this opening are left.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

fn check_size(wanted: &NvmePath, extent_bytes: u64) -> Result<(), NvmeError> {
    let (path, bytes) = (wanted.path.clone(), wanted.bytes);
    if !extent_bytes.is_multiple_of(PAGE_BYTES) {
        return Err(NvmeError::ExtentBytes { bytes: extent_bytes });
    }
    if bytes < extent_bytes.max(PAGE_BYTES) {
        return Err(NvmeError::TooSmall { path, bytes, extent_bytes: extent_bytes.max(PAGE_BYTES) });
    }
    let unit_bytes = extent_bytes.max(PAGE_BYTES);
    if !bytes.is_multiple_of(unit_bytes) {
        return Err(NvmeError::DoesNotDivide { path, bytes, unit_bytes });
    }
    if bytes > i64::MAX as u64 - LEAD_BYTES {
        return Err(NvmeError::TooBig { path, bytes, room_bytes: i64::MAX as u64 - LEAD_BYTES });
    }
    Ok(())
}

/// About a 32nd of the room, so that several block sizes find room beside each other.
fn derived_extent_bytes(room_bytes: u64) -> u64 {
    (room_bytes / 32).next_power_of_two().clamp(EXTENT_BYTES_MIN, EXTENT_BYTES_MAX).min(room_bytes)
}
