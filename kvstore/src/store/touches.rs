//! The uses of blocks on their way to the eviction policies.
//!
//! # Overview
//! A policy belongs to the structural lock, which reading must not wait for. So a reader leaves the run of
//! keys it leased in a bounded queue, and whoever next needs the order of eviction (to find a victim, to enter
//! a block, a few times a second in any case) tells the policies first.
//!
//! Uses count by *epoch*, the time from one such moment to the next: a block that is used twice in one epoch
//! is queued once, since the order of eviction is asked for at its end only. So a hot prompt that is read over
//! and over, while nothing comes or goes, costs the policies nothing.
//!
//! # Limits
//! A full queue is emptied by who finds it full, if the structural lock is free; else the oldest run in it is
//! dropped: that use is not seen. Policies that count uses see at most one an epoch and block.

use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam::queue::ArrayQueue;

use super::tenant::BlockKey;

/// With 32 bytes a key at most 2 MiB.
const RUNS_MAX: usize = 256;
pub(super) const RUN_KEYS_MAX: usize = 256;

pub(super) type Run = Box<[BlockKey]>;

/// Runs of blocks of one namespace, each the start of a sequence or a part of it.
pub(super) struct Touches {
    runs: ArrayQueue<Run>,
    epoch: AtomicU32,
}

impl Default for Touches {
    fn default() -> Self {
        Self { runs: ArrayQueue::new(RUNS_MAX), epoch: AtomicU32::new(1) }
    }
}

impl Touches {
    /// The number of this epoch; blocks begin with zero, which none has.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Begins the next epoch.
    pub(super) fn turn(&self) {
        let next = self.epoch().wrapping_add(1).max(1);
        self.epoch.store(next, Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Queues a run, or gives it back when the queue is full.
    pub(super) fn push(&self, run: Run) -> Result<(), Run> {
        self.runs.push(run)
    }

    /// Queues a run in place of the oldest.
    pub(super) fn push_over(&self, run: Run) {
        self.runs.force_push(run);
    }

    pub(super) fn pop(&self) -> Option<Run> {
        self.runs.pop()
    }
}
