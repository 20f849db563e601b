//! The NVMe tier: slots in preallocated files or raw devices, moved by io_uring past the page cache.
//!
//! # Overview
//! Each path is one [`file`] with a header page and a row of [`extents`], cut into slots of one size each.
//! Blocks are striped: each new one goes to the next file that has room. A file has one [`engine`]: a
//! thread with a ring (tokio-uring), or threads where io_uring is forbidden, behind two bounded queues;
//! reads go first. A [`request`] owns buffer and place while it runs; [`carry`] says how it becomes
//! operations of whole pages.
//!
//! # Crash consistency
//! A slot says nothing about what it holds: the catalog does, and is written after the block. After a restart
//! the catalog's slots are claimed before others are given out.
//!
//! # Limits
//! A block is smaller than 4 GiB and fits in an extent.

mod buffer;
mod carry;
mod engine;
mod extents;
mod file;
mod header;
mod health;
mod modes;
mod options;
mod pool;
mod probe;
mod regions;
mod request;
mod ring;
mod slot;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use self::{
    engine::{Engine, Lane},
    extents::Extents,
    file::{BlockFile, Found},
    header::LEAD_BYTES,
    health::Health,
    modes::Modes,
    request::{Action, Request},
    slot::{Space, slot_bytes},
};
pub use self::{
    health::DeviceHealth,
    options::{NvmeEngine, NvmeError, NvmeOptions, NvmePath, Staging},
    probe::{NvmeProbe, NvmeRate},
    slot::{NvmeAddress, NvmeSlot},
};
use crate::{Device, DeviceError, DramPool, Tier, Usage};

const PATHS_MAX: usize = 1024;
const QUEUE_DEPTH_MAX: usize = 1024;

/// The files of the tier as one device. Cloning shares it.
#[derive(Clone)]
pub struct NvmeDevice(Arc<Shared>);

struct Shared {
    files: Vec<Open>,
    space: Arc<Space>,
    /// The file whose turn it is.
    turn: AtomicUsize,
}

/// One file with what moves its blocks. The engine goes before the lock on the file does.
struct Open {
    engine: Engine,
    kind: NvmeEngine,
    modes: Arc<Modes>,
    health: Arc<Health>,
    file: BlockFile,
}

/// What one file is and has done.
#[derive(Debug, Clone)]
pub struct NvmeFile {
    /// Drawn when the file was begun: a new one means that all blocks are gone.
    pub uuid: [u8; 16],
    /// The file or device.
    pub path: PathBuf,
    /// Room for blocks.
    pub bytes: u64,
    /// Whether the page cache is bypassed.
    pub direct: bool,
    /// Whether reads and writes go through staging buffers.
    pub staged: [bool; 2],
    /// Who does the I/O: `Uring` or `Pread`.
    pub engine: NvmeEngine,
    /// Whether it can be used.
    pub health: DeviceHealth,
    /// Blocks or parts of them read since the start.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Blocks or parts of them written since the start.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Reads and writes that failed.
    pub errors: u64,
    /// Operations that wait or run now.
    pub pending: usize,
}

impl NvmeDevice {
    /// Opens the files, making those that are not there.
    pub fn open(options: &NvmeOptions) -> Result<Self, NvmeError> {
        if !(1..=PATHS_MAX).contains(&options.paths.len()) {
            return Err(NvmeError::Paths { found: options.paths.len(), max: PATHS_MAX });
        }
        if !(1..=QUEUE_DEPTH_MAX).contains(&options.queue_depth) {
            return Err(NvmeError::QueueDepth { found: options.queue_depth, max: QUEUE_DEPTH_MAX });
        }
        let kind = choose_engine(options.engine, ring::probe)?;
        let found = options.paths.iter().map(|path| Found::find(path, options.extent_bytes));
        let found = found.collect::<Result<Vec<_>, _>>()?;
        Found::all_differ(&found)?;
        let files = found
            .into_iter()
            .enumerate()
            .map(|(number, found)| Open::new(found, number, kind, options))
            .collect::<Result<Vec<_>, _>>()?;
        let extents = files.iter().map(|open| Extents::new(open.file.extent_bytes, open.file.extents));
        let space = Arc::new(Space { files: extents.map(Mutex::new).collect() });
        Ok(Self(Arc::new(Shared { files, space, turn: AtomicUsize::new(0) })))
    }

    /// What each file is and has done. Also has a bad file looked at, when it is time.
    pub fn files(&self) -> Vec<NvmeFile> {
        self.0.files.iter().map(Open::describe).collect()
    }

    /// Whether each file can be used. Also has a bad file looked at, when it is time.
    pub fn health(&self) -> impl Iterator<Item = DeviceHealth> + '_ {
        self.0.files.iter().map(Open::health)
    }

    /// The same of the file that a slot is in.
    pub fn health_at(&self, slot: &NvmeSlot) -> DeviceHealth {
        self.0.files[usize::from(slot.address().file)].health()
    }

    /// Largest block that fits somewhere.
    pub fn block_bytes_max(&self) -> u64 {
        let extents = self.0.files.iter().map(|open| open.file.extent_bytes);
        extents.max().unwrap_or(0).min(u64::from(u32::MAX))
    }

    /// The extent that a slot lies in (its number over all files) and how many slots of it are out. An empty
    /// extent can take slots of another size.
    pub fn extent_of(&self, slot: &NvmeSlot) -> (u64, u32) {
        let address = slot.address();
        let (number, used) =
            self.0.space.files[usize::from(address.file)].lock().extent_at(address.offset - LEAD_BYTES);
        (u64::from(address.file) << 32 | u64::from(number), used)
    }

    /// Takes a certain slot, at a restart. `None` when it does not exist or is taken.
    pub fn claim(&self, address: NvmeAddress, bytes: u64) -> Option<NvmeSlot> {
        self.claim_all(&[(address, bytes)]).pop()?
    }

    /// Takes certain slots, at a restart, answering in their order.
    pub fn claim_all(&self, wanted: &[(NvmeAddress, u64)]) -> Vec<Option<NvmeSlot>> {
        let mut files: Vec<_> = self.0.space.files.iter().map(Mutex::lock).collect();
        let mut claim = |&(address, bytes): &(NvmeAddress, u64)| {
            let extents = files.get_mut(usize::from(address.file))?;
            let (bytes, offset) = (u32::try_from(bytes).ok()?, address.offset.checked_sub(LEAD_BYTES)?);
            extents.claim(offset, slot_bytes(bytes)).then(|| NvmeSlot::taken(&self.0.space, address, bytes))
        };
        wanted.iter().map(&mut claim).collect()
    }

    /// Brings to the medium whatever was written before. The first failure is the answer; every file is tried.
    pub async fn sync(&self) -> Result<(), DeviceError> {
        let syncs = self.0.files.iter().map(|open| async {
            let (request, answer) = Request::sync(&open.health, open.engine.place(Lane::Write).await);
            open.engine.send(Lane::Write, request);
            answer.await.unwrap_or_else(|_| Err(stopped("sync blocks")))
        });
        futures::future::join_all(syncs).await.into_iter().collect()
    }

    /// Registers a DRAM pool with the kernel for blocks to move to and from its slots, which saves about half of
    /// the CPU that an operation takes. All of the pool's memory is taken and pinned at once, and the pool
    /// lives as long as the device. An error (often RLIMIT_MEMLOCK) leaves everything working as before.
    pub async fn register(&self, pool: &DramPool) -> Result<(), DeviceError> {
        let registrations = self.0.files.iter().map(|open| open.engine.register(pool));
        let results = futures::future::join_all(registrations).await;
        let result: std::io::Result<()> = results.into_iter().collect();
        result.map_err(|source| DeviceError::Io { action: "register the memory", source })
    }

    /// The file of a place, and the operation's range in it: from the first byte to the end of the place.
    fn locate(&self, slot: &NvmeSlot, offset: u64, bytes: usize) -> Result<(&Open, (u64, u64)), DeviceError> {
        assert!(slot.is_of(&self.0.space), "a slot of this device");
        let (address, place_bytes) = (slot.address(), slot.bytes());
        match offset.checked_add(bytes as u64) {
            Some(end) if end <= place_bytes => {}
            _ => return Err(DeviceError::OutOfBounds { offset, bytes: bytes as u64, place_bytes }),
        }
        let open = &self.0.files[usize::from(address.file)];
        Ok((open, (address.offset + offset, address.offset + place_bytes)))
    }
}

/// Decodes any bytes as a header page. For fuzzing.
pub fn decode_any(bytes: &[u8]) {
    let mut page = [0; header::PAGE_BYTES as usize];
    let count = bytes.len().min(page.len());
    page[..count].copy_from_slice(&bytes[..count]);
    if let Ok(header) = header::Header::decode(&page) {
        assert_eq!(header::Header::decode(&header.encode()), Ok(header));
    }
}

fn stopped(action: &'static str) -> DeviceError {
    DeviceError::Io { action, source: std::io::Error::other("the engine stopped") }
}

/// `Uring` or `Pread`, after a look at what the kernel allows.
fn choose_engine(
    wanted: NvmeEngine,
    probe: impl FnOnce() -> std::io::Result<()>,
) -> Result<NvmeEngine, NvmeError> {
    if wanted == NvmeEngine::Pread {
        return Ok(wanted);
    }
    match (wanted, probe()) {
        (_, Ok(())) => Ok(NvmeEngine::Uring),
        (NvmeEngine::Uring, Err(source)) => Err(NvmeError::NoUring { source }),
        (_, Err(error)) => {
            tracing::warn!(%error, "no io_uring here: blocks move by pread and pwrite, which costs more CPU");
            Ok(NvmeEngine::Pread)
        }
    }
}

impl Open {
    fn new(found: Found, number: usize, kind: NvmeEngine, options: &NvmeOptions) -> Result<Self, NvmeError> {
        let file = found.open(options.extent_bytes, options.direct)?;
        let io = |action| {
            let path = file.path.clone();
            move |source| NvmeError::Io { path, action, source }
        };
        let copy = file.file.try_clone().map_err(io("duplicate the descriptor"))?;
        let modes = Arc::new(Modes::new(file.direct, options.staging));
        let engine = Engine::start(kind, copy, number, modes.clone(), options.queue_depth)
            .map_err(io("start its engine"))?;
        let health = Arc::new(Health::new(file.path.clone(), options.retry_after));
        Ok(Self { engine, kind, modes, health, file })
    }

    fn describe(&self) -> NvmeFile {
        self.look_if_bad();
        let counts = &self.health.counts;
        NvmeFile {
            uuid: self.file.uuid,
            path: self.file.path.clone(),
            bytes: self.file.extent_bytes * u64::from(self.file.extents),
            direct: self.file.direct,
            staged: [Action::Read, Action::Write].map(|action| self.modes.staged(action)),
            engine: self.kind,
            health: self.health.get(),
            reads: counts.reads.load(Relaxed),
            read_bytes: counts.read_bytes.load(Relaxed),
            writes: counts.writes.load(Relaxed),
            written_bytes: counts.written_bytes.load(Relaxed),
            errors: counts.errors.load(Relaxed),
            pending: self.engine.pending(),
        }
    }

    /// The health now. Has a bad file looked at, when it is time.
    fn health(&self) -> DeviceHealth {
        let health = self.health.get();
        if health != DeviceHealth::Healthy {
            self.look_if_bad();
        }
        health
    }

    fn look_if_bad(&self) {
        if !self.health.wants_look() {
            return;
        }
        match self.engine.try_place(Lane::Read) {
            Ok(place) => self.engine.send(Lane::Read, Request::look(self.health.clone(), place)),
            Err(_) => self.health.looked(false, false),
        }
    }
}

impl Device for NvmeDevice {
    type Place = NvmeSlot;

    fn tier(&self) -> Tier {
        Tier::Nvme
    }

    fn allocate(&self, bytes: u64) -> Option<NvmeSlot> {
        let bytes = u32::try_from(bytes).ok().filter(|&bytes| bytes > 0)?;
        let count = self.0.files.len();
        let turn = self.0.turn.fetch_add(1, Relaxed);
        let numbers = (0..count).map(|step| turn.wrapping_add(step) % count);
        let mut healthy = numbers.filter(|&number| self.0.files[number].health() == DeviceHealth::Healthy);
        healthy.find_map(|number| NvmeSlot::allocate(&self.0.space, number as u16, bytes))
    }

    async fn write<B: AsRef<[u8]> + Send + 'static>(
        &self,
        place: NvmeSlot,
        offset: u64,
        source: B,
    ) -> (NvmeSlot, B, Result<(), DeviceError>) {
        let bytes = source.as_ref().len();
        let (open, range) = match self.locate(&place, offset, bytes) {
            Ok(located) => located,
            Err(error) => return (place, source, Err(error)),
        };
        if bytes == 0 {
            return (place, source, Ok(()));
        }
        if open.health() != DeviceHealth::Healthy {
            return (place, source, Err(DeviceError::Unavailable));
        }
        let queued = open.engine.place(Lane::Write).await;
        let (request, answer) = Request::write(range, place, source, (&open.health, queued));
        open.engine.send(Lane::Write, request);
        answer.await.expect("every request is answered")
    }

    async fn read<P, B>(&self, place: P, offset: u64, mut target: B) -> (P, B, Result<(), DeviceError>)
    where
        P: AsRef<NvmeSlot> + Send + 'static,
        B: AsMut<[u8]> + Send + 'static,
    {
        let bytes = target.as_mut().len();
        let (open, range) = match self.locate(place.as_ref(), offset, bytes) {
            Ok(located) => located,
            Err(error) => return (place, target, Err(error)),
        };
        if bytes == 0 {
            return (place, target, Ok(()));
        }
        if open.health() == DeviceHealth::Failed {
            return (place, target, Err(DeviceError::Unavailable));
        }
        let queued = open.engine.place(Lane::Read).await;
        let (request, answer) = Request::read(range, place, target, (&open.health, queued));
        open.engine.send(Lane::Read, request);
        answer.await.expect("every request is answered")
    }

    fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for extents in &self.0.space.files {
            let extents = extents.lock();
            let (used_bytes, places) = extents.used();
            usage.capacity_bytes += extents.capacity_bytes();
            usage.used_bytes += used_bytes;
            usage.places += places;
        }
        usage
    }
}

impl fmt::Debug for NvmeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NvmeDevice({:?})", self.usage())
    }
}
