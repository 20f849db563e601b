//! The io_uring engine: one thread a file, with a ring, and staging buffers that the kernel has mapped.
//!
//! # Limits
//! tokio-uring gives no way to stop an operation, and frees the buffers of those that run when its runtime
//! goes. So the thread ends only when every operation has ended.

use std::{
    fs::File,
    io,
    ops::Range,
    rc::Rc,
    sync::{Arc, mpsc as blocking},
    thread::JoinHandle,
};

use io_uring::{IoUring, Probe, opcode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_uring::buf::{
    BoundedBuf, IoBuf, IoBufMut,
    fixed::{FixedBuf, FixedBufRegistry},
};

use super::{
    buffer::Pages,
    carry::{BlockIo, STAGE_BYTES, Span, Stage, carry_out},
    request::Request,
};

/// Staging buffers of a file, at most. Few operations need one at a time, and registered memory counts
/// against RLIMIT_MEMLOCK, often 8 MiB.
const STAGES_MAX: usize = 8;

/// Whether the kernel lets this process have a ring with the operations that are used.
pub(super) fn probe() -> io::Result<()> {
    let ring = IoUring::new(8)?;
    let mut known = Probe::new();
    ring.submitter().register_probe(&mut known)?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::ReadFixed::CODE,
        opcode::WriteFixed::CODE,
        opcode::Fsync::CODE,
    ];
    if needed.into_iter().all(|code| known.is_supported(code)) {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring is too old"))
    }
}

/// Where requests go in. When both senders are gone the thread ends.
pub(super) type Lanes = [mpsc::Sender<Request>; 2];

/// Starts the thread of a file. Returns when its ring runs.
pub(super) fn start(
    file: File,
    name: String,
    direct: bool,
    staged: bool,
    depth: usize,
    queue: usize,
    running: blocking::Sender<()>,
) -> io::Result<(Lanes, JoinHandle<()>)> {
    let (reads, reads_out) = mpsc::channel(queue);
    let (writes, writes_out) = mpsc::channel(queue);
    let (ready, is_ready) = blocking::sync_channel(1);
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let _running = running;
        let entries = u32::try_from(depth * 2).unwrap_or(u32::MAX).next_power_of_two();
        let runtime = match tokio_uring::Runtime::new(tokio_uring::builder().entries(entries)) {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        runtime.block_on(async move {
            let ring = Rc::new(Ring::new(file, direct, staged, depth));
            let _ = ready.send(Ok(()));
            serve(&ring, [reads_out, writes_out], depth).await;
            if let Some(ring) = Rc::into_inner(ring) {
                let _ = ring.file.close().await;
            }
        });
    })?;
    is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("the ring's thread ended")))?;
    Ok(([reads, writes], thread))
}

async fn serve(ring: &Rc<Ring>, [mut reads, mut writes]: [mpsc::Receiver<Request>; 2], depth: usize) {
    let in_flight = Arc::new(Semaphore::new(depth));
    loop {
        let permit = in_flight.clone().acquire_owned().await;
        let request = tokio::select! {
            biased;
            Some(request) = reads.recv() => request,
            Some(request) = writes.recv() => request,
            else => break,
        };
        let ring = ring.clone();
        tokio_uring::spawn(async move {
            carry_out(&*ring, request).await;
            drop((ring, permit));
        });
    }
    let _ = in_flight.acquire_many(u32::try_from(depth).unwrap_or(u32::MAX)).await;
}

struct Ring {
    file: tokio_uring::fs::File,
    direct: bool,
    staged: bool,
    stages: FixedBufRegistry<Pages>,
    stages_count: usize,
    /// A permit a staging buffer.
    free: Arc<Semaphore>,
    /// Whether the kernel has the staging buffers mapped.
    registered: bool,
}

/// A staging buffer, given back when dropped.
struct RingStage {
    pages: FixedBuf,
    _permit: OwnedSemaphorePermit,
}

impl Stage for RingStage {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.pages
    }
}

// SAFETY: a span's memory belongs to its request, which it keeps, stays where it is, and is initialized, as
// it came from a slice.
unsafe impl IoBuf for Span {
    fn stable_ptr(&self) -> *const u8 {
        self.start
    }

    fn bytes_init(&self) -> usize {
        self.bytes
    }

    fn bytes_total(&self) -> usize {
        self.bytes
    }
}

// SAFETY: as above. Only spans of reads are handed to operations that write memory; that memory came from
// `AsMut`.
unsafe impl IoBufMut for Span {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.start
    }

    unsafe fn set_init(&mut self, _bytes: usize) {}
}

impl Ring {
    fn new(file: File, direct: bool, staged: bool, depth: usize) -> Self {
        let stages_count = depth.clamp(1, STAGES_MAX);
        let stages = FixedBufRegistry::new((0..stages_count).map(|_| Pages::new(STAGE_BYTES)));
        let registered = stages
            .register()
            .inspect_err(|error| {
                tracing::warn!(
                    %error,
                    "staging buffers are not registered, which costs some CPU: raise RLIMIT_MEMLOCK"
                );
            })
            .is_ok();
        let file = tokio_uring::fs::File::from_std(file);
        let free = Arc::new(Semaphore::new(stages_count));
        Self { file, direct, staged, stages, stages_count, free, registered }
    }
}

impl BlockIo for Ring {
    type Stage = RingStage;

    fn direct(&self) -> bool {
        self.direct
    }

    fn staged(&self) -> bool {
        self.staged
    }

    async fn stage(&self) -> RingStage {
        let permit = self.free.clone().acquire_owned().await.expect("never closed");
        let mut numbers = 0..self.stages_count;
        let pages = numbers.find_map(|number| self.stages.check_out(number)).expect("a permit a buffer");
        RingStage { pages, _permit: permit }
    }

    async fn read(&self, span: Span, offset: u64) -> io::Result<usize> {
        self.file.read_at(span, offset).await.0
    }

    async fn write(&self, span: Span, offset: u64) -> io::Result<usize> {
        self.file.write_at(span, offset).submit().await.0
    }

    async fn read_stage(
        &self,
        RingStage { pages, _permit }: RingStage,
        range: Range<usize>,
        offset: u64,
    ) -> (RingStage, io::Result<usize>) {
        let slice = pages.slice(range);
        let (result, slice) = if self.registered {
            self.file.read_fixed_at(slice, offset).await
        } else {
            self.file.read_at(slice, offset).await
        };
        (RingStage { pages: slice.into_inner(), _permit }, result)
    }

    async fn write_stage(
        &self,
        RingStage { pages, _permit }: RingStage,
        range: Range<usize>,
        offset: u64,
    ) -> (RingStage, io::Result<usize>) {
        let slice = pages.slice(range);
        let (result, slice) = if self.registered {
            self.file.write_fixed_at(slice, offset).await
        } else {
            self.file.write_at(slice, offset).submit().await
        };
        (RingStage { pages: slice.into_inner(), _permit }, result)
    }

    async fn sync(&self) -> io::Result<()> {
        self.file.sync_data().await
    }
}
