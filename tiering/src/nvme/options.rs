//! What the NVMe tier is made of, and why it could not be had.

use std::{fmt, io, path::PathBuf, str::FromStr, time::Duration};

/// One file or device of the tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmePath {
    /// A directory (the file `kelvin.blocks` is made in it; the directory itself too, when its parent is
    /// there), a file, or a block device.
    pub path: PathBuf,
    /// Room for blocks. The file is 1 MiB longer.
    pub bytes: u64,
}

/// How the tier is opened.
#[derive(Debug, Clone)]
pub struct NvmeOptions {
    /// Files and devices; blocks are striped over them.
    pub paths: Vec<NvmePath>,
    /// Operations in flight on a file. As many again wait in a queue for reads and in one for writes.
    pub queue_depth: usize,
    /// Past the page cache. Where the file system refuses that, the cache is used, with a warning.
    pub direct: bool,
    /// Who does the I/O.
    pub engine: NvmeEngine,
    /// Bytes of an extent, a multiple of 4096 that divides each path's bytes; the largest block that fits.
    /// 0 derives it: what an existing file has, or a 32nd of the room between 16 and 64 MiB.
    pub extent_bytes: u64,
    /// How long a failed file rests before it is tried again.
    pub retry_after: Duration,
    /// Whether blocks move through staging buffers.
    pub staging: Staging,
}

/// Whether blocks move through staging buffers that lie in huge pages, with a copy, where they could move
/// straight to and from the caller's memory. Some disks (virtio without indirect descriptors, for one) take so
/// few pieces of memory at a time that a block in scattered 4 KiB pages fills their queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Staging {
    /// Straight, until a probe has found staging faster on the device.
    #[default]
    Auto,
    /// Through staging buffers.
    Always,
    /// Straight.
    Never,
}

impl Default for NvmeOptions {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            queue_depth: 32,
            direct: true,
            engine: NvmeEngine::Auto,
            extent_bytes: 0,
            retry_after: Duration::from_secs(5),
            staging: Staging::Auto,
        }
    }
}

/// Who does the I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NvmeEngine {
    /// io_uring, or threads where the kernel or a sandbox forbids it.
    #[default]
    Auto,
    /// io_uring: one thread a file.
    Uring,
    /// `pread` and `pwrite` on threads, one an operation in flight.
    Pread,
}

impl fmt::Display for NvmeEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Pread => "pread",
        })
    }
}

impl FromStr for NvmeEngine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "pread" => Ok(Self::Pread),
            _ => Err(format!("{text:?} is no engine: auto, uring or pread")),
        }
    }
}

/// Why the tier could not be opened. Each says what to change.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// Nothing to open, or too much.
    #[error("an NVMe tier has 1 to {max} paths, not {found}")]
    Paths {
        /// Paths given.
        found: usize,
        /// Most there can be.
        max: usize,
    },
    /// A queue without places, or one beyond reason.
    #[error("queue depth {found} is not within 1 to {max}")]
    QueueDepth {
        /// What was given.
        found: usize,
        /// Most there can be.
        max: usize,
    },
    /// A size that is not made of whole pages or extents.
    #[error(
        "{}: {bytes} bytes do not divide into {unit_bytes}: give {} or {}",
        path.display(),
        bytes - bytes % unit_bytes,
        (bytes - bytes % unit_bytes).saturating_add(*unit_bytes)
    )]
    DoesNotDivide {
        /// Which path.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// What should divide them.
        unit_bytes: u64,
    },
    /// An extent size that cannot be used.
    #[error("extents of {bytes} bytes: give a multiple of 4096, or 0 to derive it")]
    ExtentBytes {
        /// What was given.
        bytes: u64,
    },
    /// No extent fits.
    #[error("{}: {bytes} bytes hold no extent of {extent_bytes}: give at least that many", path.display())]
    TooSmall {
        /// Which path.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// What it should hold.
        extent_bytes: u64,
    },
    /// More than the file system or device has.
    #[error("{}: {bytes} bytes are wanted, there is room for {room_bytes}: give at most that", path.display())]
    TooBig {
        /// Which path.
        path: PathBuf,
        /// What was wanted.
        bytes: u64,
        /// What can be had.
        room_bytes: u64,
    },
    /// Two paths lead to one file.
    #[error("{} and {} are the same file: give each path its own", first.display(), second.display())]
    Overlap {
        /// One path.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Somebody else has it open, or has mounted the device.
    #[error("{} is in use: stop the other process (or unmount it), or give another path", path.display())]
    InUse {
        /// Which path.
        path: PathBuf,
    },
    /// Neither a directory nor a file nor a block device.
    #[error("{} is no directory, file or block device: give one", path.display())]
    Unsuitable {
        /// Which path.
        path: PathBuf,
    },
    /// It holds something that is not ours to overwrite.
    #[error("{} holds something that Kelvin did not write: delete it, or give another path", path.display())]
    Foreign {
        /// Which path.
        path: PathBuf,
    },
    /// A format of another version.
    #[error("{} has format {found}, this version reads 1: delete it, or run the version that made it", path.display())]
    Version {
        /// Which path.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// An existing file is cut otherwise.
    #[error(
        "{} has extents of {found} bytes, not {wanted}: give 0 or {found}, or delete it",
        path.display()
    )]
    OtherExtents {
        /// Which path.
        path: PathBuf,
        /// What it has.
        found: u64,
        /// What was given.
        wanted: u64,
    },
    /// io_uring was asked for and cannot be had.
    #[error("io_uring cannot be used here ({source}): choose the engine auto or pread")]
    NoUring {
        /// The cause.
        source: io::Error,
    },
    /// The system refused.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// Which path.
        path: PathBuf,
        /// A verb phrase.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}
