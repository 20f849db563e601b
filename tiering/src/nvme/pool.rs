//! The engine for where io_uring is forbidden: `pread` and `pwrite` on threads, one an operation in flight.

use std::{
    cell::RefCell,
    fs::File,
    future::Future,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    pin::pin,
    sync::{Arc, mpsc as blocking},
    task::{Context, Poll, Waker},
    thread::JoinHandle,
};

use crossbeam::channel::{Receiver, RecvError, Sender, bounded};

use super::{
    buffer::Pages,
    carry::{BlockIo, STAGE_BYTES, Span, Stage, carry_out},
    modes::Modes,
    request::Request,
};

/// Threads of a file, at most: beyond that more of them only wait for one another.
const THREADS_MAX: usize = 32;

/// Where requests go in. When both senders are gone the threads end.
pub(super) type Lanes = [Sender<Request>; 2];

/// Starts the threads of a file.
pub(super) fn start(
    file: File,
    name: &str,
    modes: Arc<Modes>,
    depth: usize,
    queue: usize,
    running: blocking::Sender<()>,
) -> io::Result<(Lanes, Vec<JoinHandle<()>>)> {
    let (reads, reads_out) = bounded(queue);
    let (writes, writes_out) = bounded(queue);
    let file = Arc::new(file);
    let threads = (0..depth.clamp(1, THREADS_MAX))
        .map(|number| {
            let lanes = [reads_out.clone(), writes_out.clone()];
            let (file, modes, running) = (file.clone(), modes.clone(), running.clone());
            std::thread::Builder::new().name(format!("{name}.{number}")).spawn(move || {
                let _running = running;
                let io = Threaded { file, modes, stage: RefCell::new(None) };
                while let Ok(request) = next(&lanes) {
                    at_once(carry_out(&&io, request));
                }
            })
        })
        .collect::<io::Result<_>>()?;
    Ok(([reads, writes], threads))
}

/// The next request, reads first.
fn next([reads, writes]: &[Receiver<Request>; 2]) -> Result<Request, RecvError> {
    crossbeam::channel::select_biased! {
        recv(reads) -> request => request.or_else(|_| writes.recv()),
        recv(writes) -> request => request.or_else(|_| reads.recv()),
    }
}

/// The output of a future that never waits.
fn at_once<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("the operations of this engine block"),
    }
}

struct Threaded {
    file: Arc<File>,
    modes: Arc<Modes>,
    /// This thread's staging buffer, made when first needed.
    stage: RefCell<Option<Pages>>,
}

/// A staging buffer on loan.
struct ThreadStage<'a> {
    pages: Option<Pages>,
    home: &'a RefCell<Option<Pages>>,
}

impl ThreadStage<'_> {
    fn pages(&mut self) -> &mut [u8] {
        self.pages.as_mut().expect("on loan").as_mut_slice()
    }
}

impl Stage for ThreadStage<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        self.pages()
    }
}

impl Drop for ThreadStage<'_> {
    fn drop(&mut self) {
        *self.home.borrow_mut() = self.pages.take();
    }
}

impl<'a> BlockIo for &'a Threaded {
    type Stage = ThreadStage<'a>;
    type Turn = ();

    fn modes(&self) -> &Modes {
        &self.modes
    }

    async fn stage(&self) -> ThreadStage<'a> {
        let pages = self.stage.borrow_mut().take().unwrap_or_else(|| Pages::row(1, STAGE_BYTES).remove(0));
        ThreadStage { pages: Some(pages), home: &self.stage }
    }

    async fn turn(&self) {}

    async fn read(&self, span: Span, offset: u64) -> io::Result<usize> {
        // SAFETY: the span is of a read, whose memory is writable, initialized and nobody else's.
        let target = unsafe { std::slice::from_raw_parts_mut(span.start, span.bytes) };
        self.file.read_at(target, offset)
    }

    async fn write(&self, span: Span, offset: u64) -> io::Result<usize> {
        // SAFETY: the span's memory is initialized and nobody writes it.
        let source = unsafe { std::slice::from_raw_parts(span.start, span.bytes) };
        self.file.write_at(source, offset)
    }

    async fn read_stage(
        &self,
        mut stage: ThreadStage<'a>,
        range: Range<usize>,
        offset: u64,
    ) -> (ThreadStage<'a>, io::Result<usize>) {
        let result = self.file.read_at(&mut stage.pages()[range], offset);
        (stage, result)
    }

    async fn write_stage(
        &self,
        mut stage: ThreadStage<'a>,
        range: Range<usize>,
        offset: u64,
    ) -> (ThreadStage<'a>, io::Result<usize>) {
        let result = self.file.write_at(&stage.pages()[range], offset);
        (stage, result)
    }

    async fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
