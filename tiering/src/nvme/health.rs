//! What one file has done, and whether it still can.
//!
//! # States
//! ```text
//! Healthy ── writes fail in a row ──► ReadOnly ── reads fail in a row ──► Failed
//!    ▲                                   │                                  │
//!    └──────────── a look, every `retry_after`, while somebody asks ────────┘
//! ```
//! A disk at the end of its life refuses writes and still reads: its blocks stay of use. The state follows
//! from two counts of failures in a row; one success of a kind sets its count to zero.

use std::{
    io,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Failures in a row after which a file counts as failed.
const FAILURES_MAX: u32 = 8;

/// Whether a file of the tier can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceHealth {
    /// It can.
    Healthy,
    /// Its blocks can be read; it gives no new places.
    ReadOnly,
    /// It fails everything. Operations are refused at once, and it is tried again every few seconds.
    Failed,
}

/// What an operation did to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

/// Counts of one file.
#[derive(Debug)]
pub(super) struct Health {
    /// Of the file, for the log.
    path: PathBuf,
    read_failures: AtomicU32,
    write_failures: AtomicU32,
    looking: AtomicBool,
    look_at: Mutex<Instant>,
    retry_after: Duration,
    pub(super) counts: Counts,
}

/// Totals since the file was opened.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) reads: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) errors: AtomicU64,
}

impl Health {
    pub(super) fn new(path: PathBuf, retry_after: Duration) -> Self {
        Self {
            path,
            read_failures: AtomicU32::new(0),
            write_failures: AtomicU32::new(0),
            looking: AtomicBool::new(false),
            look_at: Mutex::new(Instant::now()),
            retry_after,
            counts: Counts::default(),
        }
    }

    pub(super) fn get(&self) -> DeviceHealth {
        if self.read_failures.load(Relaxed) >= FAILURES_MAX {
            DeviceHealth::Failed
        } else if self.write_failures.load(Relaxed) >= FAILURES_MAX {
            DeviceHealth::ReadOnly
        } else {
            DeviceHealth::Healthy
        }
    }

    /// Notes how an operation ended. Says so once when that changes the state.
    pub(super) fn note(&self, kind: Kind, bytes: u64, result: &io::Result<()>) {
        let (failures, operations, total) = match kind {
            Kind::Read => (&self.read_failures, &self.counts.reads, &self.counts.read_bytes),
            Kind::Write => (&self.write_failures, &self.counts.writes, &self.counts.written_bytes),
        };
        if result.is_ok() {
            operations.fetch_add(1, Relaxed);
            total.fetch_add(bytes, Relaxed);
            if failures.load(Relaxed) != 0 {
                failures.store(0, Relaxed);
            }
            return;
        }
        self.counts.errors.fetch_add(1, Relaxed);
        // Bounded, so that the count cannot run over.
        let counted = failures.fetch_update(Relaxed, Relaxed, |n| (n < FAILURES_MAX).then_some(n + 1));
        if counted == Ok(FAILURES_MAX - 1) {
            *self.look_at.lock() = Instant::now() + self.retry_after;
            if let Err(error) = result {
                tracing::error!(
                    path = %self.path.display(), ?kind, %error, health = ?self.get(),
                    "storage failed several times in a row"
                );
            }
        }
    }

    /// Whether the caller shall have a look now whether a bad file has recovered. True for one caller at a
    /// time, who must report with [`Self::looked`].
    pub(super) fn wants_look(&self) -> bool {
        self.get() != DeviceHealth::Healthy
            && Instant::now() >= *self.look_at.lock()
            && !self.looking.swap(true, Relaxed)
    }

    /// How the look went, a write and a read of it.
    pub(super) fn looked(&self, write_ok: bool, read_ok: bool) {
        let before = self.get();
        self.write_failures.store(if write_ok { 0 } else { FAILURES_MAX }, Relaxed);
        self.read_failures.store(if read_ok { 0 } else { FAILURES_MAX }, Relaxed);
        *self.look_at.lock() = Instant::now() + self.retry_after;
        self.looking.store(false, Relaxed);
        if self.get() != before {
            let path = self.path.display();
            tracing::warn!(%path, from = ?before, to = ?self.get(), "health of storage changed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eio() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(5))
    }

    #[test]
    fn fails_after_failures_in_a_row_only() {
        let health = Health::new(PathBuf::new(), Duration::ZERO);
        for _ in 0..3 {
            (1..FAILURES_MAX).for_each(|_| health.note(Kind::Read, 1, &eio()));
            health.note(Kind::Read, 1, &Ok(()));
        }
        assert_eq!(health.get(), DeviceHealth::Healthy);
        assert!(!health.wants_look());
        (0..FAILURES_MAX).for_each(|_| health.note(Kind::Write, 1, &eio()));
        assert_eq!(health.get(), DeviceHealth::ReadOnly);
        health.note(Kind::Read, 1, &Ok(()));
        assert_eq!(health.get(), DeviceHealth::ReadOnly, "a read says nothing about writes");
        (0..100).for_each(|_| health.note(Kind::Read, 1, &eio()));
        assert_eq!(health.get(), DeviceHealth::Failed);
    }

    #[test]
    fn one_looks_at_a_time_and_brings_it_back() {
        let health = Health::new(PathBuf::new(), Duration::ZERO);
        (0..FAILURES_MAX).for_each(|_| health.note(Kind::Read, 1, &eio()));
        assert!(health.wants_look());
        assert!(!health.wants_look(), "somebody is looking");
        health.looked(false, false);
        assert_eq!(health.get(), DeviceHealth::Failed);
        assert!(health.wants_look());
        health.looked(false, true);
        assert_eq!(health.get(), DeviceHealth::ReadOnly);
        assert!(health.wants_look());
        health.looked(true, true);
        assert_eq!(health.get(), DeviceHealth::Healthy);
    }

    #[test]
    fn a_failed_file_rests_before_it_is_tried_again() {
        let health = Health::new(PathBuf::new(), Duration::from_secs(1 << 30));
        (0..FAILURES_MAX).for_each(|_| health.note(Kind::Read, 1, &eio()));
        assert!(!health.wants_look());
    }
}
