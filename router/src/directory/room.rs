//! What engines' own hashes take, which the directory's budget covers as well.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::Directory;

/// A part of a directory's budget, until this is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    taken: Arc<AtomicUsize>,
    bytes: usize,
}

impl Directory {
    /// Nothing of its budget yet.
    pub(crate) fn room(&self) -> Room {
        Room { taken: self.beside.clone(), bytes: 0 }
    }

    /// Whether the budget has so many bytes more.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.memory_bytes().saturating_add(bytes) <= self.index.budget_bytes()
    }
}

impl Room {
    /// Makes it `bytes` of `directory`'s budget, whose it is; returns whether that has them. Less is always possible.
    pub(crate) fn set(&mut self, directory: &Directory, bytes: usize) -> bool {
        if bytes > self.bytes {
            // Two at once may each find the other's, and both be refused.
            let more = bytes - self.bytes;
            self.taken.fetch_add(more, Ordering::Relaxed);
            if !directory.has_room(0) {
                self.taken.fetch_sub(more, Ordering::Relaxed);
                return false;
            }
        } else {
            self.taken.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
