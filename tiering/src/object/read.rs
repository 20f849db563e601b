//! Reading blocks: ranged GETs whose bytes go straight into the buffers, checked on the way.
//!
//! # Overview
//! A run of neighbouring blocks is one request. Each piece that comes off the wire is copied to where it
//! belongs and hashed in the same pass; a block whose checksum holds is done, whatever happens behind it. What
//! is not done after a fault, a cut or a checksum that fails is asked for again: only that, with jitter,
//! and within the deadline.
//!
//! # Limits
//! A request without a next byte for a third of the deadline is given up, so that one that hangs leaves time
//! for another. A hedge covers the wait for the first byte, and is made only where a turn is free.
//!
//! # Cancellation
//! The buffers belong to the read until it ends; deadlines end it, they don't abandon it, so that every
//! buffer comes back.

use std::{ops::Range, pin::pin, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::{
    StreamExt,
    future::{Either, select},
    stream::BoxStream,
};
use kelvin_kernels::Hasher;
use object_store::{GetOptions, GetResult, GetResultPayload, path::Path};
use tokio::time::{Instant, timeout, timeout_at};

use super::{PackEntry, ReadFailure, Shared, error::Fault, stats::Counters};

/// Parts of the deadline that a request may pass without a byte.
const STALLS: u32 = 3;
/// What is read from a file at a time: it stays in the cache between the read and the copy.
const PIECE_BYTES: usize = 512 << 10;

/// A block and the buffer for it.
pub(super) struct Wanted<B> {
    /// Its place among those asked for.
    pub(super) index: usize,
    pub(super) entry: PackEntry,
    pub(super) buffer: B,
    pub(super) outcome: Option<Result<(), ReadFailure>>,
    /// It failed its checksum once.
    suspect: bool,
}

impl<B: AsMut<[u8]>> Wanted<B> {
    pub(super) fn new(index: usize, entry: PackEntry, mut buffer: B) -> Self {
        let room = buffer.as_mut().len();
        let wrong = if room as u64 != u64::from(entry.bytes) {
            Some(format!("a buffer of {room} bytes for a block of {}", entry.bytes))
        } else if entry.end().is_none() || entry.bytes == 0 {
            Some("the block's place makes no sense".to_owned())
        } else {
            None
        };
        let outcome = wrong.map(|text| Err(ReadFailure::Failed(text)));
        Self { index, entry, buffer, outcome, suspect: false }
    }
}

/// Reads a run, asking again where that may help. The run ascends by offset and has no overlaps.
pub(super) async fn read_run<B>(
    shared: &Shared,
    path: &Path,
    mut run: Vec<Wanted<B>>,
    deadline: Instant,
) -> Vec<Wanted<B>>
where
    B: AsMut<[u8]> + Send,
{
    for tried in 1.. {
        let result = attempt(shared, path, &mut run, deadline).await;
        if run.iter().all(|wanted| wanted.outcome.is_some()) {
            return run;
        }
        let fault = result.err();
        let passing = Fault::Passing("a block fails its checksum".into());
        if shared.reads.again(fault.as_ref().unwrap_or(&passing), tried, deadline).await {
            continue;
        }
        for wanted in run.iter_mut().filter(|wanted| wanted.outcome.is_none()) {
            wanted.outcome = Some(Err(match &fault {
                Some(fault) => fault.clone().into(),
                None => ReadFailure::Damaged,
            }));
        }
        return run;
    }
    unreachable!("the loop above ends by returning")
}

/// One request for all blocks of the run that have no outcome yet.
async fn attempt<B: AsMut<[u8]> + Send>(
    shared: &Shared,
    path: &Path,
    run: &mut [Wanted<B>],
    deadline: Instant,
) -> Result<(), Fault> {
    let mut left = run.iter().filter(|wanted| wanted.outcome.is_none());
    let Some(first) = left.next().map(|wanted| wanted.entry) else { return Ok(()) };
    let last = left.next_back().map_or(first, |wanted| wanted.entry);
    let range = first.offset..last.end().ok_or(Fault::OutOfRange)?;
    let turn = shared.reads.turn(deadline).await?;
    let result = stream(shared, path, range, run, deadline).await;
    turn.end(result.as_ref().err());
    result
}

async fn stream<B: AsMut<[u8]> + Send>(
    shared: &Shared,
    path: &Path,
    range: Range<u64>,
    run: &mut [Wanted<B>],
    deadline: Instant,
) -> Result<(), Fault> {
    let stall = shared.options.read_deadline / STALLS;
    let patience = || deadline.min(Instant::now() + stall);
    let answer = first_byte(shared, path, &range, patience()).await?;
    if answer.range != range {
        return Err(Fault::OutOfRange);
    }
    let mut body = Body::of(answer);
    let mut filler = Filler::new(run, range.start, &shared.counters);
    while filler.goes_on() {
        match timeout_at(patience(), body.next()).await {
            Err(_) => return Err(Fault::Timeout),
            Ok(None) => return Err(Fault::Passing("the body ends early".into())),
            Ok(Some(Err(fault))) => return Err(fault),
            Ok(Some(Ok(piece))) => {
                filler.take(&piece);
                body.recycle(piece);
            }
        }
    }
    Ok(())
}

/// Asks, and asks a second time where the answer takes long.
async fn first_byte(
    shared: &Shared,
    path: &Path,
    range: &Range<u64>,
    patience: Instant,
) -> Result<GetResult, Fault> {
    let ask = || {
        shared.counters.gets.add(1);
        let options = GetOptions::new().with_range(Some(range.clone()));
        shared.place.store.get_opts(path, options)
    };
    let outcome = |result: object_store::Result<GetResult>| result.map_err(|error| Fault::of(&error));
    let mut first = pin!(ask());
    if let Some(after) = shared.options.hedge_after {
        if let Ok(result) = timeout(after, first.as_mut()).await {
            return outcome(result);
        }
        if let Some(_turn) = shared.reads.second() {
            shared.counters.hedges.add(1);
            let second = pin!(ask());
            let (result, other) = match timeout_at(patience, select(first, second)).await {
                Err(_) => return Err(Fault::Timeout),
                Ok(Either::Left((result, other))) => (result, other),
                Ok(Either::Right((result, other))) => {
                    shared.counters.hedges_won.add(u64::from(result.is_ok()));
                    (result, other)
                }
            };
            return match outcome(result) {
                // The other one may still do.
                Err(fault) if fault.is_passing() => match timeout_at(patience, other).await {
                    Ok(result) => outcome(result),
                    Err(_) => Err(fault),
                },
                result => result,
            };
        }
    }
    match timeout_at(patience, first).await {
        Ok(result) => outcome(result),
        Err(_) => Err(Fault::Timeout),
    }
}

/// The bytes of an answer, piece by piece.
enum Body {
    Stream(BoxStream<'static, object_store::Result<Bytes>>),
    File { file: Arc<std::fs::File>, left: Range<u64>, spare: BytesMut },
}

impl Body {
    fn of(answer: GetResult) -> Self {
        match answer.payload {
            GetResultPayload::File(file, _) => {
                Self::File { file: Arc::new(file), left: answer.range, spare: BytesMut::new() }
            }
            GetResultPayload::Stream(stream) => Self::Stream(stream),
        }
    }

    async fn next(&mut self) -> Option<Result<Bytes, Fault>> {
        match self {
            Self::Stream(stream) => Some(stream.next().await?.map_err(|error| Fault::of(&error))),
            Self::File { file, left, spare } => {
                let bytes = left.end.saturating_sub(left.start).min(PIECE_BYTES as u64);
                if bytes == 0 {
                    return None;
                }
                let (file, offset, mut piece) = (file.clone(), left.start, std::mem::take(spare));
                left.start += bytes;
                let read = tokio::task::spawn_blocking(move || {
                    piece.resize(bytes as usize, 0);
                    std::os::unix::fs::FileExt::read_exact_at(&*file, &mut piece, offset).map(|()| piece)
                });
                Some(match read.await {
                    Ok(Ok(piece)) => Ok(piece.freeze()),
                    Ok(Err(error)) => Err(Fault::Passing(error.to_string())),
                    Err(error) => Err(Fault::Passing(error.to_string())),
                })
            }
        }
    }

    /// Gives a piece back for the next.
    fn recycle(&mut self, piece: Bytes) {
        if let Self::File { spare, .. } = self {
            *spare = piece.try_into_mut().unwrap_or_default();
        }
    }
}

/// Puts pieces where they belong.
struct Filler<'a, B> {
    run: &'a mut [Wanted<B>],
    /// The block that is being filled, and how much of it is there.
    current: usize,
    filled: usize,
    hasher: Hasher,
    /// Where in the object the next piece starts.
    position: u64,
    counters: &'a Counters,
}

impl<'a, B: AsMut<[u8]>> Filler<'a, B> {
    fn new(run: &'a mut [Wanted<B>], position: u64, counters: &'a Counters) -> Self {
        Self { run, current: 0, filled: 0, hasher: Hasher::new(), position, counters }
    }

    /// Moves on to the next block without an outcome; false when there is none.
    fn goes_on(&mut self) -> bool {
        while self.run.get(self.current).is_some_and(|wanted| wanted.outcome.is_some()) {
            self.current += 1;
        }
        self.current < self.run.len()
    }

    fn take(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() && self.goes_on() {
            let wanted = &mut self.run[self.current];
            let gap = wanted.entry.offset.saturating_sub(self.position);
            if gap > 0 {
                let skipped = piece.len().min(usize::try_from(gap).unwrap_or(usize::MAX));
                self.counters.bytes_gaps.add(skipped as u64);
                self.position += skipped as u64;
                piece = &piece[skipped..];
                continue;
            }
            let bytes = wanted.entry.bytes as usize;
            let Some(target) = wanted.buffer.as_mut().get_mut(self.filled..bytes) else {
                let text = "the buffer changed its length".to_owned();
                wanted.outcome = Some(Err(ReadFailure::Failed(text)));
                self.begin_next();
                continue;
            };
            let part = piece.len().min(target.len());
            let (now, later) = piece.split_at(part);
            self.hasher.copy(now, &mut target[..part]);
            self.filled += part;
            self.position += part as u64;
            piece = later;
            if self.filled == bytes {
                self.check();
            }
        }
    }

    fn check(&mut self) {
        let wanted = &mut self.run[self.current];
        if self.hasher.finish() == wanted.entry.checksum {
            wanted.outcome = Some(Ok(()));
            self.counters.blocks_read.add(1);
            self.counters.bytes_read.add(u64::from(wanted.entry.bytes));
        } else {
            self.counters.damaged.add(1);
            // The way here may have damaged it: it is read once more.
            if std::mem::replace(&mut wanted.suspect, true) {
                wanted.outcome = Some(Err(ReadFailure::Damaged));
            }
        }
        self.begin_next();
    }

    fn begin_next(&mut self) {
        self.current += 1;
        self.filled = 0;
        self.hasher = Hasher::new();
    }
}
