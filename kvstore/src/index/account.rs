//! Account: the memory an index takes, and the budget it must keep.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes in use, and how many there may be.
#[derive(Debug)]
pub(super) struct Account {
    bytes: AtomicUsize,
    budget_bytes: usize,
}

impl Account {
    pub(super) fn new(budget_bytes: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), budget_bytes }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn budget_bytes(&self) -> usize {
        self.budget_bytes
    }

    /// Takes that much if the budget has it.
    #[must_use]
    pub(super) fn take(&self, bytes: usize) -> bool {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = bytes <= self.budget_bytes.saturating_sub(before);
        if !fits {
            self.give(bytes);
        }
        fits
    }

    /// Takes that much, whatever the budget says: for removals, which are never refused.
    pub(super) fn force(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// After something of `before` bytes became one of `after`, which was taken.
    pub(super) fn settle(&self, before: usize, after: usize) {
        if after >= before { self.force(after - before) } else { self.give(before - after) }
    }
}

/// What an allocation of `count` items costs, with what the allocator adds: 8 bytes, in steps of 16, 32 at
/// least (glibc's rule).
pub(super) fn allocated<T>(count: usize) -> usize {
    match count * size_of::<T>() {
        0 => 0,
        bytes => (bytes + 8).next_multiple_of(16).max(32),
    }
}
