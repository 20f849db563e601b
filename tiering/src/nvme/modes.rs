//! How blocks move between a file and memory, as it was asked for or found best.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{Staging, request::Action};

/// The ways of one file. Those that a probe chooses change while operations run, each of which takes either.
#[derive(Debug)]
pub(super) struct Modes {
    direct: bool,
    wanted: Staging,
    staged_reads: AtomicBool,
    staged_writes: AtomicBool,
}

impl Modes {
    pub(super) fn new(direct: bool, wanted: Staging) -> Self {
        let staged = || AtomicBool::new(wanted == Staging::Always);
        Self { direct, wanted, staged_reads: staged(), staged_writes: staged() }
    }

    /// Whether memory and offsets must be whole pages.
    pub(super) fn direct(&self) -> bool {
        self.direct
    }

    /// Whether an action goes through a staging buffer where it could go straight.
    pub(super) fn staged(&self, action: Action) -> bool {
        match action {
            Action::Read => self.staged_reads.load(Relaxed),
            Action::Write => self.staged_writes.load(Relaxed),
            Action::Sync | Action::Look => false,
        }
    }

    /// Whether a probe may choose: through the page cache there is nothing to stage.
    pub(super) fn open(&self) -> bool {
        self.direct && self.wanted == Staging::Auto
    }

    /// Chooses, unless it was said how it shall be.
    pub(super) fn choose_if_open(&self, action: Action, staged: bool) {
        match action {
            _ if !self.open() => {}
            Action::Read => self.staged_reads.store(staged, Relaxed),
            Action::Write => self.staged_writes.store(staged, Relaxed),
            Action::Sync | Action::Look => {}
        }
    }
}
