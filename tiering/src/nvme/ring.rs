//! The io_uring engine: one thread a file, with a ring, and staging buffers that the kernel has mapped.
//!
//! # Limits
//! tokio-uring gives no way to stop an operation, and frees the buffers of those that run when its runtime
//! goes. So the thread ends only when every operation has ended.

use std::{
    cell::RefCell,
    fs::File,
    io,
    ops::Range,
    rc::Rc,
    sync::{Arc, mpsc as blocking},
    thread::JoinHandle,
};

use io_uring::{IoUring, Probe, opcode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_uring::buf::{BoundedBuf, IoBuf, IoBufMut, fixed::FixedBuf};

use super::{
    carry::{BlockIo, Span, Stage, carry_out},
    modes::Modes,
    regions::Regions,
    request::Request,
};
use crate::DramPool;

/// Staging buffers of a file, at most. Four in flight keep a disk busy, and registered memory counts against
/// RLIMIT_MEMLOCK, often 8 MiB.
const STAGES_MAX: usize = 16;

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

/// Where requests go in, and where pools are registered. When the senders are gone the thread ends.
pub(super) struct Lanes {
    pub(super) requests: [mpsc::Sender<Request>; 2],
    registrations: mpsc::Sender<Registration>,
}

/// A pool to register, and who waits for that.
type Registration = (DramPool, oneshot::Sender<io::Result<()>>);

impl Lanes {
    /// Has the kernel keep a pool's memory mapped.
    pub(super) async fn register(&self, pool: DramPool) -> io::Result<()> {
        let stopped = || io::Error::other("the engine stopped");
        let (reply, answer) = oneshot::channel();
        self.registrations.send((pool, reply)).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

struct Receivers {
    requests: [mpsc::Receiver<Request>; 2],
    registrations: mpsc::Receiver<Registration>,
}

/// Starts the thread of a file. Returns when its ring runs.
pub(super) fn start(
    file: File,
    name: String,
    modes: Arc<Modes>,
    depth: usize,
    queue: usize,
    running: blocking::Sender<()>,
) -> io::Result<(Lanes, JoinHandle<()>)> {
    let (reads, reads_out) = mpsc::channel(queue);
    let (writes, writes_out) = mpsc::channel(queue);
    let (registrations, registrations_out) = mpsc::channel(1);
    let receivers = Receivers { requests: [reads_out, writes_out], registrations: registrations_out };
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
            let ring = match Ring::new(file, modes, depth) {
                Ok(ring) => Rc::new(ring),
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            serve(&ring, receivers, depth).await;
            if let Some(ring) = Rc::into_inner(ring) {
                let _ = ring.file.close().await;
            }
        });
    })?;
    is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("the ring's thread ended")))?;
    Ok((Lanes { requests: [reads, writes], registrations }, thread))
}

async fn serve(ring: &Rc<Ring>, mut receivers: Receivers, depth: usize) {
    let in_flight = Arc::new(Semaphore::new(depth));
    let others = u32::try_from(depth - 1).unwrap_or(u32::MAX);
    let mut pools = Vec::new();
    loop {
        let permit = in_flight.clone().acquire_owned().await.expect("never closed");
        let [reads, writes] = &mut receivers.requests;
        let request = tokio::select! {
            biased;
            Some((pool, reply)) = receivers.registrations.recv() => {
                let _none_runs = in_flight.acquire_many(others).await;
                let _ = reply.send(ring.register(&mut pools, pool));
                continue;
            }
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
    let _none_runs = in_flight.acquire_many(others + 1).await;
}

struct Ring {
    file: tokio_uring::fs::File,
    modes: Arc<Modes>,
    /// A permit a staging buffer.
    free: Arc<Semaphore>,
    stages: usize,
    /// The turn to copy.
    copying: Arc<Semaphore>,
    regions: RefCell<Regions>,
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
    fn new(file: File, modes: Arc<Modes>, depth: usize) -> io::Result<Self> {
        let stages = depth.clamp(1, STAGES_MAX);
        let regions = Regions::new(stages, &[])?;
        if !regions.registered {
            tracing::warn!("staging buffers are not registered, which costs some CPU: raise RLIMIT_MEMLOCK");
        }
        let file = tokio_uring::fs::File::from_std(file);
        let free = Arc::new(Semaphore::new(stages));
        let copying = Arc::new(Semaphore::new(1));
        Ok(Self { file, modes, free, stages, copying, regions: RefCell::new(regions) })
    }

    fn registered(&self) -> bool {
        self.regions.borrow().registered
    }

    /// Registers one more pool, or leaves all as it was. No operation runs.
    fn register(&self, pools: &mut Vec<DramPool>, pool: DramPool) -> io::Result<()> {
        let mut regions = self.regions.borrow_mut();
        regions.unregister();
        pools.push(pool);
        let result = Regions::new(self.stages, pools).map(|new| *regions = new);
        if result.is_err() {
            pools.pop();
            *regions = Regions::new(self.stages, pools).or_else(|_| {
                pools.clear();
                Regions::new(self.stages, pools)
            })?;
        }
        result
    }
}

impl BlockIo for Ring {
    type Stage = RingStage;
    type Turn = OwnedSemaphorePermit;

    fn modes(&self) -> &Modes {
        &self.modes
    }

    async fn stage(&self) -> RingStage {
        let permit = self.free.clone().acquire_owned().await.expect("never closed");
        let pages = self.regions.borrow().stage().expect("a permit a buffer");
        RingStage { pages, _permit: permit }
    }

    async fn turn(&self) -> OwnedSemaphorePermit {
        let permit = self.copying.clone().acquire_owned().await.expect("never closed");
        // The runtime submits when it has nothing else to do: with this to wait for, that is now.
        let _ = tokio_uring::no_op().await;
        permit
    }

    async fn read(&self, span: Span, offset: u64) -> io::Result<usize> {
        let fixed = self.regions.borrow().fix(span);
        match fixed {
            Ok(span) => self.file.read_fixed_at(span, offset).await.0,
            Err(span) => self.file.read_at(span, offset).await.0,
        }
    }

    async fn write(&self, span: Span, offset: u64) -> io::Result<usize> {
        let fixed = self.regions.borrow().fix(span);
        match fixed {
            Ok(span) => self.file.write_fixed_at(span, offset).await.0,
            Err(span) => self.file.write_at(span, offset).submit().await.0,
        }
    }

    async fn read_stage(
        &self,
        RingStage { pages, _permit }: RingStage,
        range: Range<usize>,
        offset: u64,
    ) -> (RingStage, io::Result<usize>) {
        let slice = pages.slice(range);
        let (result, slice) = if self.registered() {
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
        let (result, slice) = if self.registered() {
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
