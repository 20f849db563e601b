//! How a request becomes operations of whole pages.
//!
//! # Overview
//! Direct I/O moves whole pages between the file and memory on a page boundary. A block whose memory lies on
//! one (a slot of the DRAM tier does) moves straight, but for a last part of a page; anything else goes
//! through a staging buffer that the kernel knows already. A write of a part of a page reads the page first,
//! except at the end of the place, where only padding follows. Through the page cache everything moves
//! straight.
//!
//! The engines differ in how an operation is made, which is [`BlockIo`].

use std::{future::Future, io, ops::Range, rc::Rc};

use super::{
    header::{PAGE_BYTES, SCRATCH_OFFSET},
    modes::Modes,
    request::{Action, Request},
};

const PAGE: usize = PAGE_BYTES as usize;
/// A staging buffer. Larger pieces would save operations, but these are for parts of pages and odd buffers.
pub(super) const STAGE_BYTES: usize = 512 << 10;

/// Copies of so much wait for their turn: about 6 us, where a turn takes two calls of the kernel.
const TURN_BYTES: usize = 64 << 10;

/// A part of a request's memory, for the kernel to read or write; it keeps the request.
pub(super) struct Span {
    pub(super) start: *mut u8,
    pub(super) bytes: usize,
    _request: Rc<Request>,
}

impl Span {
    fn new(request: &Rc<Request>, range: &Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= request.bytes(), "within the buffer");
        // SAFETY: in bounds of the request's memory.
        let start = unsafe { request.memory().add(range.start) };
        Self { start, bytes: range.len(), _request: request.clone() }
    }
}

/// Memory of an engine that direct I/O takes.
pub(super) trait Stage {
    /// All of it, [`STAGE_BYTES`].
    fn bytes(&mut self) -> &mut [u8];
}

/// The operations of an engine on its file. Each answers how many bytes it moved.
pub(super) trait BlockIo {
    type Stage: Stage;
    /// While it lives, nobody else copies.
    type Turn;

    fn modes(&self) -> &Modes;
    fn stage(&self) -> impl Future<Output = Self::Stage>;
    /// Waits for the turn to copy a large piece, held until the answer is dropped. What was submitted before is on
    /// its way by then: a disk that answers many operations at once would rest while they are copied.
    fn turn(&self) -> impl Future<Output = Self::Turn>;
    fn read(&self, span: Span, offset: u64) -> impl Future<Output = io::Result<usize>>;
    fn write(&self, span: Span, offset: u64) -> impl Future<Output = io::Result<usize>>;
    fn read_stage(
        &self,
        stage: Self::Stage,
        range: Range<usize>,
        offset: u64,
    ) -> impl Future<Output = (Self::Stage, io::Result<usize>)>;
    fn write_stage(
        &self,
        stage: Self::Stage,
        range: Range<usize>,
        offset: u64,
    ) -> impl Future<Output = (Self::Stage, io::Result<usize>)>;
    fn sync(&self) -> impl Future<Output = io::Result<()>>;
}

/// Does what the request asks for, and answers it.
pub(super) async fn carry_out<I: BlockIo>(io: &I, request: Request) {
    let request = Rc::new(request);
    let result = match request.action {
        Action::Read | Action::Write => transfer(io, &request).await,
        Action::Sync => io.sync().await,
        Action::Look => look(io, &request).await,
    };
    // The operations are over, and their spans with them.
    if let Some(request) = Rc::into_inner(request) {
        request.settle(result);
    }
}

async fn transfer<I: BlockIo>(io: &I, request: &Rc<Request>) -> io::Result<()> {
    let bytes = request.bytes();
    if !io.modes().direct() {
        return straight(io, request, 0..bytes).await;
    }
    let aligned =
        (request.memory() as usize).is_multiple_of(PAGE) && request.offset.is_multiple_of(PAGE_BYTES);
    let whole = if aligned && !io.modes().staged(request.action) { bytes / PAGE * PAGE } else { 0 };
    match (whole, bytes - whole) {
        (_, 0) => straight(io, request, 0..bytes).await,
        (0, _) => through_stage(io, request, 0..bytes).await,
        _ => {
            let parts =
                futures::join!(straight(io, request, 0..whole), through_stage(io, request, whole..bytes));
            parts.0.and(parts.1)
        }
    }
}

/// How far a transfer got. A short one goes on from the last whole page.
fn progress(moved: io::Result<usize>, wanted: usize, direct: bool) -> io::Result<usize> {
    let moved = match moved {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(0),
        other => other?.min(wanted),
    };
    let usable = if direct && moved < wanted { moved / PAGE * PAGE } else { moved };
    if usable == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(usable) }
}

async fn straight<I: BlockIo>(io: &I, request: &Rc<Request>, mut range: Range<usize>) -> io::Result<()> {
    while !range.is_empty() {
        let (span, offset) = (Span::new(request, &range), request.offset + range.start as u64);
        let moved = match request.action {
            Action::Read => io.read(span, offset).await,
            _ => io.write(span, offset).await,
        };
        range.start += progress(moved, range.len(), io.modes().direct())?;
    }
    Ok(())
}

async fn through_stage<I: BlockIo>(io: &I, request: &Rc<Request>, mut range: Range<usize>) -> io::Result<()> {
    let mut stage = io.stage().await;
    while !range.is_empty() {
        let at = request.offset + range.start as u64;
        // The piece lies `lead` bytes into its first page.
        let lead = (at % PAGE_BYTES) as usize;
        let piece = range.len().min(STAGE_BYTES - lead);
        let pages = 0..(lead + piece).next_multiple_of(PAGE);
        let first = at - lead as u64;
        let reads = request.action == Action::Read;
        let ends_place = at + piece as u64 == request.place_end;
        let parts = lead != 0 || (!(lead + piece).is_multiple_of(PAGE) && !ends_place);
        if reads || parts {
            let result;
            (stage, result) = whole_stage(io, stage, pages.clone(), first, true).await;
            result?;
        }
        let turn = if piece >= TURN_BYTES { Some(io.turn().await) } else { None };
        if reads {
            request.fill(range.start, &stage.bytes()[lead..lead + piece]);
        } else {
            let bytes = &mut stage.bytes()[..pages.end];
            request.drain(range.start, &mut bytes[lead..lead + piece]);
            if ends_place {
                bytes[lead + piece..].fill(0);
            }
            drop(turn);
            let result;
            (stage, result) = whole_stage(io, stage, pages, first, false).await;
            result?;
        }
        range.start += piece;
    }
    Ok(())
}

async fn whole_stage<I: BlockIo>(
    io: &I,
    mut stage: I::Stage,
    mut range: Range<usize>,
    mut offset: u64,
    read: bool,
) -> (I::Stage, io::Result<()>) {
    while !range.is_empty() {
        let moved;
        (stage, moved) = if read {
            io.read_stage(stage, range.clone(), offset).await
        } else {
            io.write_stage(stage, range.clone(), offset).await
        };
        match progress(moved, range.len(), io.modes().direct()) {
            Ok(bytes) => {
                range.start += bytes;
                offset += bytes as u64;
            }
            Err(error) => return (stage, Err(error)),
        }
    }
    (stage, Ok(()))
}

/// Writes the scratch page, if that works, and reads it.
async fn look<I: BlockIo>(io: &I, request: &Request) -> io::Result<()> {
    let stage = io.stage().await;
    let (stage, written) = whole_stage(io, stage, 0..PAGE, SCRATCH_OFFSET, false).await;
    if written.is_ok() {
        request.could_write();
    }
    whole_stage(io, stage, 0..PAGE, SCRATCH_OFFSET, true).await.1
}
