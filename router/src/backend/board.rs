//! What a decision reads of each server, side by side: one cache line a server, and nothing in it that is not read.
//!
//! # Overview
//! A decision looks at each of what may be a thousand servers. In a [`Backend`](super::member::Backend), somewhere
//! on the heap, each look misses the cache several times; here it is one line, and the processor sees the next one
//! coming. A line has no neighbour in its cache line: a server's load changes with each request, on any core.
//!
//! A server has a seat as long as anybody has the server, also once it has left: requests under way there still
//! count.
//!
//! # Limits
//! A board has [`SEATS`] seats, for all servers and as many that left with requests under way.

use std::{
    collections::BTreeSet,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::learn::{Published, Terms};
use crate::{directory::WORKERS_MAX, feeds::Mode};

/// See the module.
const SEATS: u16 = 2 * WORKERS_MAX as u16;

/// What a decision needs of a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) queued_tokens: u64,
    pub(crate) streams: u32,
    pub(crate) terms: Terms,
}

/// One server's cache line. What other servers' lines say at the same moment has no order to it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Line {
    pub(super) queued_tokens: AtomicU64,
    pub(super) learnt: Published,
    pub(super) streams: AtomicU32,
    /// Tokens of its blocks by its events; 0 as long as they do not say.
    block_tokens: AtomicU32,
    /// How much its events say.
    mode: AtomicU8,
    pub(super) ready: AtomicBool,
    /// Whether its breaker is worth a look.
    pub(super) suspect: AtomicBool,
}

const _: () = assert!(size_of::<Line>() == 64);

impl Line {
    #[inline]
    pub(super) fn load(&self) -> Load {
        Load {
            queued_tokens: self.queued_tokens.load(Ordering::Relaxed),
            streams: self.streams.load(Ordering::Relaxed),
            terms: self.learnt.terms(),
        }
    }

    /// Whether a request may be sent there now; `None` where its breaker has to say.
    #[inline]
    pub(super) fn is_open(&self) -> Option<bool> {
        if !self.ready.load(Ordering::Acquire) {
            return Some(false);
        }
        if self.suspect.load(Ordering::Acquire) { None } else { Some(true) }
    }

    /// How much its events say of its cache, and in blocks of how many tokens.
    #[inline]
    pub(super) fn known(&self) -> (Mode, u32) {
        (Mode::from_u8(self.mode.load(Ordering::Acquire)), self.block_tokens.load(Ordering::Acquire))
    }

    fn set_known(&self, mode: Mode, block_tokens: u32) {
        self.block_tokens.store(block_tokens, Ordering::Release);
        self.mode.store(mode as u8, Ordering::Release);
    }

    /// As for a server of which nothing is known.
    fn clear(&self) {
        self.ready.store(false, Ordering::Relaxed);
        self.suspect.store(false, Ordering::Relaxed);
        self.set_known(Mode::Fallback, 0);
        self.queued_tokens.store(0, Ordering::Relaxed);
        self.streams.store(0, Ordering::Relaxed);
        self.learnt.clear();
    }
}

/// All lines.
#[derive(Debug)]
pub(crate) struct Board {
    lines: Box<[Line]>,
    free: Mutex<BTreeSet<u16>>,
    /// Goes up behind each change of a [`Line::known`].
    known_changes: AtomicU64,
}

impl Board {
    pub(crate) fn new() -> Arc<Self> {
        Self::of(SEATS)
    }

    fn of(seats: u16) -> Arc<Self> {
        let lines = (0..seats).map(|_| Line::default()).collect();
        Arc::new(Self { lines, free: Mutex::new((0..seats).collect()), known_changes: AtomicU64::new(0) })
    }

    /// A seat for a server; `None` with all taken.
    pub(super) fn seat(self: &Arc<Self>) -> Option<Seat> {
        // The lowest one: those in use stay close together.
        let at = self.free.lock().pop_first()?;
        Some(Seat { board: self.clone(), at })
    }

    /// Is another one once the [`Line::known`] of any line is.
    pub(super) fn known_changes(&self) -> u64 {
        self.known_changes.load(Ordering::Acquire)
    }

    /// The line of a [`Seat::at`].
    #[inline]
    pub(super) fn line(&self, at: u16) -> &Line {
        &self.lines[usize::from(at)]
    }
}

/// A server's place on a board, until this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    board: Arc<Board>,
    at: u16,
}

impl Seat {
    /// On a board of its own: for tests.
    #[cfg(test)]
    pub(super) fn alone() -> Self {
        Board::of(1).seat().expect("it has one")
    }

    pub(super) fn at(&self) -> u16 {
        self.at
    }

    pub(super) fn set_known(&self, mode: Mode, block_tokens: u32) {
        if self.known() != (mode, block_tokens) {
            (**self).set_known(mode, block_tokens);
            self.board.known_changes.fetch_add(1, Ordering::Release);
        }
    }

    pub(super) fn is_on(&self, board: &Arc<Board>) -> bool {
        Arc::ptr_eq(&self.board, board)
    }
}

impl Deref for Seat {
    type Target = Line;

    fn deref(&self) -> &Line {
        self.board.line(self.at)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.clear();
        self.board.known_changes.fetch_add(1, Ordering::Release);
        self.board.free.lock().insert(self.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_clean_when_it_is_taken_again() {
        let board = Board::of(2);
        let seats = [(); 2].map(|()| board.seat().unwrap());
        assert!(board.seat().is_none());
        seats[0].queued_tokens.fetch_add(7, Ordering::Relaxed);
        seats[0].streams.fetch_add(1, Ordering::Relaxed);
        seats[0].ready.store(true, Ordering::Relaxed);
        seats[0].set_known(Mode::Exact, 16);
        assert_eq!((board.line(0).load().queued_tokens, board.line(1).load().queued_tokens), (7, 0));
        drop(seats);
        let seat = board.seat().unwrap();
        assert_eq!((seat.at(), seat.load().queued_tokens, seat.load().streams), (0, 0, 0));
        assert_eq!((seat.known(), seat.ready.load(Ordering::Relaxed)), ((Mode::Fallback, 0), false));
    }
}
