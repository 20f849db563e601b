//! What carries out requests on one file: bounded queues in front of a ring or of threads.

use std::{
    fs::File,
    io,
    sync::{Arc, mpsc as blocking},
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::{NvmeEngine, modes::Modes, pool, request::Request, ring};
use crate::DramPool;

/// How long the end of a device waits for operations that run: a disk that hangs must not hang the process.
const END_WAIT: Duration = Duration::from_secs(5);

/// The two queues of a file. Reads go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Read = 0,
    Write = 1,
}

enum Lanes {
    Ring(ring::Lanes),
    Pool(pool::Lanes),
}

/// The engine of one file. It ends when dropped.
pub(super) struct Engine {
    lanes: Option<Lanes>,
    threads: Vec<JoinHandle<()>>,
    /// Disconnected when every thread has ended.
    ended: Mutex<blocking::Receiver<()>>,
    /// A permit a place in a queue, held by a request from entering it until it is answered.
    places: [Arc<Semaphore>; 2],
    places_each: usize,
}

impl Engine {
    /// `kind` is `Uring` or `Pread`.
    pub(super) fn start(
        kind: NvmeEngine,
        file: File,
        number: usize,
        modes: Arc<Modes>,
        depth: usize,
    ) -> io::Result<Self> {
        let places_each = depth * 2;
        let name = format!("nvme{number}");
        let (running, ended) = blocking::channel();
        let (lanes, threads) = match kind {
            NvmeEngine::Pread => {
                let (lanes, threads) = pool::start(file, &name, modes, depth, places_each, running)?;
                (Lanes::Pool(lanes), threads)
            }
            NvmeEngine::Uring | NvmeEngine::Auto => {
                let (lanes, thread) = ring::start(file, name, modes, depth, places_each, running)?;
                (Lanes::Ring(lanes), vec![thread])
            }
        };
        let places = std::array::from_fn(|_| Arc::new(Semaphore::new(places_each)));
        Ok(Self { lanes: Some(lanes), threads, ended: Mutex::new(ended), places, places_each })
    }

    /// A place in a queue, as soon as one is free.
    pub(super) async fn place(&self, lane: Lane) -> OwnedSemaphorePermit {
        self.places[lane as usize].clone().acquire_owned().await.expect("never closed")
    }

    /// A place in a queue, if one is free.
    pub(super) fn try_place(&self, lane: Lane) -> Result<OwnedSemaphorePermit, TryAcquireError> {
        self.places[lane as usize].clone().try_acquire_owned()
    }

    /// Requests that wait or run.
    pub(super) fn pending(&self) -> usize {
        let free: usize = self.places.iter().map(|places| places.available_permits()).sum();
        2 * self.places_each - free
    }

    /// Hands over a request. Its permit makes sure that there is room; should the engine be gone, it is
    /// dropped, which answers it.
    pub(super) fn send(&self, lane: Lane, request: Request) {
        match &self.lanes {
            Some(Lanes::Ring(lanes)) => drop(lanes.requests[lane as usize].try_send(request)),
            Some(Lanes::Pool(lanes)) => drop(lanes[lane as usize].try_send(request)),
            None => drop(request),
        }
    }
}

impl Engine {
    /// Has the kernel keep a pool's memory mapped, where the engine has a use for that.
    pub(super) async fn register(&self, pool: &DramPool) -> io::Result<()> {
        match &self.lanes {
            Some(Lanes::Ring(lanes)) => lanes.register(pool.clone()).await,
            _ => Ok(()),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.lanes = None;
        // The last owner may be something that a request brought along.
        let here = std::thread::current().id();
        if self.threads.iter().any(|thread| thread.thread().id() == here) {
            return;
        }
        if let Err(blocking::RecvTimeoutError::Timeout) = self.ended.get_mut().recv_timeout(END_WAIT) {
            tracing::error!("operations on storage do not end: their thread is left behind");
        }
    }
}
