//! Memory that a ring's kernel side keeps mapped: its staging buffers, and the DRAM pools that blocks move to
//! and from. An operation on such memory needs no page to be looked up and pinned, which is about half of
//! what a read of a block costs.
//!
//! # Invariants
//! A pool that is registered lives as long as the registration: another mapping at its addresses would be
//! taken for it.

use std::{io, ops::RangeFull, rc::Rc};

use tokio_uring::buf::{
    BoundedBuf, BoundedBufMut, IoBuf, IoBufMut, Slice,
    fixed::{FixedBuf, FixedBufRegistry},
};

use super::{
    buffer::Pages,
    carry::{STAGE_BYTES, Span},
};
use crate::DramPool;

/// What the kernel takes as one buffer, at most. A multiple of a pool's chunk, so that no slot lies across.
const PIECE_BYTES_MAX: u64 = 1 << 30;
/// Buffers of a ring, at most, by the kernel's and tokio-uring's word.
const BUFFERS_MAX: usize = 1024;

/// A buffer as the kernel sees it.
enum Memory {
    Stage(Pages),
    Piece { start: *mut u8, bytes: usize, _pool: DramPool },
}

impl Memory {
    fn range(&self) -> (*mut u8, usize) {
        match self {
            Self::Stage(pages) => (pages.as_ptr(), pages.len()),
            Self::Piece { start, bytes, .. } => (*start, *bytes),
        }
    }
}

// SAFETY: neither kind of memory moves with the value or goes before it, and both are initialized.
unsafe impl IoBuf for Memory {
    fn stable_ptr(&self) -> *const u8 {
        self.range().0
    }

    fn bytes_init(&self) -> usize {
        self.range().1
    }

    fn bytes_total(&self) -> usize {
        self.range().1
    }
}

// SAFETY: as above. Through a piece only the memory of a span is written, which is its request's own.
unsafe impl IoBufMut for Memory {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.range().0
    }

    unsafe fn set_init(&mut self, _bytes: usize) {}
}

/// A registered piece of a pool.
struct Piece {
    start: usize,
    bytes: usize,
    /// Held for its number; several operations use parts of it at once.
    buffer: Rc<FixedBuf>,
}

/// The buffers of one ring.
pub(super) struct Regions {
    buffers: FixedBufRegistry<Memory>,
    stages: usize,
    /// By address.
    pieces: Vec<Piece>,
    /// Whether the kernel has the buffers mapped.
    pub(super) registered: bool,
}

impl Regions {
    /// Staging buffers, and the pools. Within the ring's runtime; no operation may run.
    pub(super) fn new(stages: usize, pools: &[DramPool]) -> io::Result<Self> {
        let mut memory: Vec<_> = Pages::row(stages, STAGE_BYTES).into_iter().map(Memory::Stage).collect();
        for pool in pools {
            let bytes = pool.arena().bytes();
            for offset in (0..bytes).step_by(PIECE_BYTES_MAX as usize) {
                let length = (bytes - offset).min(PIECE_BYTES_MAX);
                let start = pool.arena().range(offset, length).expect("within the arena").as_ptr();
                memory.push(Memory::Piece { start, bytes: length as usize, _pool: pool.clone() });
            }
        }
        if memory.len() > BUFFERS_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "more memory than a ring can have mapped",
            ));
        }
        let ranges: Vec<_> = memory.iter().map(Memory::range).collect();
        let buffers = FixedBufRegistry::new(memory);
        let registration = buffers.register();
        let registered = registration.is_ok();
        if !pools.is_empty() {
            registration?;
        }
        let pieces = ranges.into_iter().enumerate().skip(stages).map(|(number, (start, bytes))| {
            let buffer = buffers.check_out(number).expect("checked out once");
            Piece { start: start as usize, bytes, buffer: Rc::new(buffer) }
        });
        let mut pieces: Vec<_> = pieces.collect();
        pieces.sort_by_key(|piece| piece.start);
        Ok(Self { buffers, stages, pieces, registered })
    }

    /// Undoes the registration.
    pub(super) fn unregister(&mut self) {
        self.pieces.clear();
        if self.registered {
            let _ = self.buffers.unregister();
            self.registered = false;
        }
    }

    /// A staging buffer that nobody uses.
    pub(super) fn stage(&self) -> Option<FixedBuf> {
        (0..self.stages).find_map(|number| self.buffers.check_out(number))
    }

    /// The span as a part of a piece that it lies in; else the span again.
    pub(super) fn fix(&self, span: Span) -> Result<FixedSpan, Span> {
        let start = span.start as usize;
        let after = self.pieces.partition_point(|piece| piece.start <= start);
        match after.checked_sub(1).map(|at| &self.pieces[at]) {
            Some(piece) if start + span.bytes <= piece.start + piece.bytes => {
                Ok(FixedSpan { span, piece: piece.buffer.clone() })
            }
            _ => Err(span),
        }
    }
}

/// A span that lies in a registered piece.
pub(super) struct FixedSpan {
    span: Span,
    piece: Rc<FixedBuf>,
}

/// The runtime asks a buffer of a single operation for its start, its size and its number alone.
const WHOLE: &str = "a span is used whole";

impl BoundedBuf for FixedSpan {
    type Buf = FixedBuf;
    type Bounds = RangeFull;

    fn slice(self, _range: impl std::ops::RangeBounds<usize>) -> Slice<FixedBuf> {
        unreachable!("{WHOLE}")
    }

    fn slice_full(self) -> Slice<FixedBuf> {
        unreachable!("{WHOLE}")
    }

    fn get_buf(&self) -> &FixedBuf {
        &self.piece
    }

    fn bounds(&self) -> RangeFull {
        ..
    }

    fn from_buf_bounds(_buffer: FixedBuf, _bounds: RangeFull) -> Self {
        unreachable!("{WHOLE}")
    }

    fn stable_ptr(&self) -> *const u8 {
        self.span.start
    }

    fn bytes_init(&self) -> usize {
        self.span.bytes
    }

    fn bytes_total(&self) -> usize {
        self.span.bytes
    }
}

impl BoundedBufMut for FixedSpan {
    type BufMut = FixedBuf;

    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.span.start
    }

    unsafe fn set_init(&mut self, _bytes: usize) {}
}
