//! Run: the node of the tree, blocks that follow each other without a branch.

use std::sync::atomic::{AtomicU64, Ordering};

use super::HolderSet;
use crate::SequenceHash;

/// Blocks side by side in arrays: 16 bytes of hash, the holder set, 8 bytes of last use each.
pub(super) struct Run<S> {
    /// Block before the first.
    pub(super) parent: Option<SequenceHash>,
    pub(super) hashes: Vec<SequenceHash>,
    pub(super) holders: Vec<S>,
    last_use: Vec<AtomicU64>,
    /// First blocks of the runs behind the last block.
    pub(super) children: Vec<SequenceHash>,
}

impl<S: HolderSet> Run<S> {
    pub(super) fn new(parent: Option<SequenceHash>) -> Self {
        Self { parent, hashes: vec![], holders: vec![], last_use: vec![], children: vec![] }
    }

    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    pub(super) fn first(&self) -> Option<SequenceHash> {
        self.hashes.first().copied()
    }

    /// Whether the block stands there: not so for a place that went stale.
    pub(super) fn has(&self, offset: usize, hash: SequenceHash) -> bool {
        self.hashes.get(offset) == Some(&hash)
    }

    pub(super) fn is_last(&self, offset: usize) -> bool {
        offset + 1 == self.len()
    }

    /// The block before the one at `offset`.
    pub(super) fn parent_of(&self, offset: usize) -> Option<SequenceHash> {
        if offset == 0 { self.parent } else { Some(self.hashes[offset - 1]) }
    }

    pub(super) fn last_use(&self, offset: usize) -> u64 {
        self.last_use[offset].load(Ordering::Relaxed)
    }

    /// Notes a use. Of two lookups at once the earlier tick may stay, which no order by age can tell.
    pub(super) fn touch(&self, offset: usize, now: u64) {
        let last_use = &self.last_use[offset];
        if last_use.load(Ordering::Relaxed) < now {
            last_use.store(now, Ordering::Relaxed);
        }
    }

    /// Makes room for `blocks` more, with little to spare: most runs never grow again.
    pub(super) fn reserve(&mut self, blocks: usize) {
        if self.hashes.capacity() - self.len() < blocks {
            let more = blocks.max(self.len() / 4);
            self.hashes.reserve_exact(more);
            self.holders.reserve_exact(more);
            self.last_use.reserve_exact(more);
        }
    }

    pub(super) fn push(&mut self, hash: SequenceHash, holders: S, now: u64) {
        self.hashes.push(hash);
        self.holders.push(holders);
        self.last_use.push(AtomicU64::new(now));
    }

    /// Cuts before `at`; the tail keeps the children, and is from now on this run's only child.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        debug_assert!(0 < at && at < self.len());
        let tail = Self {
            parent: Some(self.hashes[at - 1]),
            hashes: self.hashes.split_off(at),
            holders: self.holders.split_off(at),
            last_use: self.last_use.split_off(at),
            children: std::mem::take(&mut self.children),
        };
        self.children.extend(tail.first());
        self.shrink();
        tail
    }

    /// Takes over all blocks of its only child, which is left empty.
    pub(super) fn join(&mut self, child: &mut Self) {
        debug_assert!(self.children.len() == 1 && child.parent == self.hashes.last().copied());
        self.reserve(child.len());
        self.hashes.append(&mut child.hashes);
        self.holders.append(&mut child.holders);
        self.last_use.append(&mut child.last_use);
        self.children = std::mem::take(&mut child.children);
    }

    /// Blocks that stay when those at the end that have neither holder nor child go.
    pub(super) fn kept(&self) -> usize {
        if !self.children.is_empty() {
            return self.len();
        }
        self.holders.iter().rposition(|holders| !holders.is_empty()).map_or(0, |last| last + 1)
    }

    pub(super) fn truncate(&mut self, blocks: usize) {
        self.hashes.truncate(blocks);
        self.holders.truncate(blocks);
        self.last_use.truncate(blocks);
        self.shrink();
    }

    /// Gives memory back when more than half of it stands empty.
    fn shrink(&mut self) {
        if self.hashes.capacity() > 2 * self.len() {
            self.hashes.shrink_to_fit();
            self.holders.shrink_to_fit();
            self.last_use.shrink_to_fit();
        }
    }
}
