//! Run: the node of the tree, blocks that follow each other without a branch.

use super::HolderSet;
use super::account::allocated;
use super::arena::NONE;
use super::prefetch::prefetch_slice;
use super::shares::Shares;
use crate::SequenceHash;

/// Blocks side by side: 16 bytes of hash each, in one piece of memory with the hash of the parent.
pub(super) struct Run<S> {
    /// The block before the first, if there is one; then the blocks; then room.
    words: Box<[SequenceHash]>,
    blocks: u16,
    headed: bool,
    /// The first of the runs behind the last block; [`NONE`] without any.
    pub(super) first_child: u32,
    pub(super) shares: Shares<S>,
}

impl<S: HolderSet> Default for Run<S> {
    fn default() -> Self {
        Self {
            words: Box::default(),
            blocks: 0,
            headed: false,
            first_child: NONE,
            shares: Shares::One(S::default()),
        }
    }
}

impl<S: HolderSet> Run<S> {
    /// Without blocks, with room for `blocks`.
    pub(super) fn new(parent: Option<SequenceHash>, blocks: usize) -> Self {
        let mut run = Self { headed: parent.is_some(), ..Self::default() };
        run.words = words(parent.as_slice(), usize::from(run.headed) + blocks);
        run
    }

    /// Memory of a run with room for `blocks`.
    pub(super) fn words_bytes(headed: bool, blocks: usize) -> usize {
        allocated::<SequenceHash>(usize::from(headed) + blocks)
    }

    /// Memory beside that in place.
    pub(super) fn bytes(&self) -> usize {
        allocated::<SequenceHash>(self.words.len()) + self.shares.bytes()
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.blocks)
    }

    /// Whether the first block has another before it.
    pub(super) fn is_headed(&self) -> bool {
        self.headed
    }

    pub(super) fn parent(&self) -> Option<SequenceHash> {
        if self.headed { self.words.first().copied() } else { None }
    }

    pub(super) fn hashes(&self) -> &[SequenceHash] {
        let start = usize::from(self.headed && self.blocks > 0);
        &self.words[start..start + self.len()]
    }

    /// Where the block stands; `None` if it does not.
    pub(super) fn find(&self, hash: SequenceHash) -> Option<usize> {
        let hashes = self.hashes();
        // Lookups begin at the first block, and changes happen at the last.
        match (hashes.first(), hashes.last()) {
            (Some(first), _) if *first == hash => Some(0),
            (_, Some(last)) if *last == hash => Some(hashes.len() - 1),
            _ => hashes.iter().position(|other| *other == hash),
        }
    }

    /// 0 if it is the first block.
    pub(super) fn begins_with(&self, hash: SequenceHash) -> Option<usize> {
        (self.hashes().first() == Some(&hash)).then_some(0)
    }

    /// Where it stands if it is the last block.
    pub(super) fn ends_with(&self, hash: SequenceHash) -> Option<usize> {
        (self.hashes().last() == Some(&hash)).then(|| self.len() - 1)
    }

    /// The blocks are about to be compared: those of a long run at its beginning, for which the processor
    /// finds the rest.
    pub(super) fn prefetch(&self) {
        prefetch_slice(self.hashes(), 1024);
    }

    pub(super) fn is_last(&self, offset: usize) -> bool {
        offset + 1 == self.len()
    }

    /// The block before the one at `offset`.
    pub(super) fn parent_of(&self, offset: usize) -> Option<SequenceHash> {
        if offset == 0 { self.parent() } else { Some(self.hashes()[offset - 1]) }
    }

    /// Blocks that go in before it has to grow.
    pub(super) fn room(&self) -> usize {
        self.words.len() - usize::from(self.headed) - self.len()
    }

    /// Room of the size to grow to for `more` blocks: an eighth is spare, so that single blocks are cheap.
    pub(super) fn room_for(&self, more: usize, blocks_max: usize) -> usize {
        let least = self.len() + more;
        // A run that gets many at once mostly gets no more after them.
        let spare = if more > 1 { 0 } else { (least / 8).max(1) };
        (least + spare).min(blocks_max.max(least))
    }

    /// Grows or shrinks to room for `blocks`.
    pub(super) fn resize(&mut self, blocks: usize) {
        let used = usize::from(self.headed) + self.len();
        let size = usize::from(self.headed) + blocks;
        let mut grown = std::mem::take(&mut self.words).into_vec();
        if size > grown.len() {
            grown.reserve_exact(size - grown.len());
            grown.resize(size, ZERO);
        } else {
            grown.truncate(size.max(used));
        }
        self.words = grown.into_boxed_slice();
    }

    /// Appends a block, for which there is room.
    pub(super) fn push(&mut self, hash: SequenceHash) {
        self.words[usize::from(self.headed) + usize::from(self.blocks)] = hash;
        self.blocks += 1;
    }

    /// Cuts before `at`; the tail has the children, and is from now on to be this run's only child.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        debug_assert!(0 < at && at < self.len());
        let (head, tail) = self.hashes().split_at(at);
        let mut split = Self::new(head.last().copied(), tail.len());
        tail.iter().for_each(|hash| split.push(*hash));
        split.shares = self.shares.part(at..self.len());
        split.first_child = std::mem::replace(&mut self.first_child, NONE);
        self.truncate(at);
        split
    }

    /// Takes over the blocks of its only child, for which there is room.
    pub(super) fn join(&mut self, child: &Self) {
        debug_assert!(child.parent() == self.hashes().last().copied());
        self.shares = self.shares.joined(self.len(), &child.shares, child.len());
        child.hashes().iter().for_each(|hash| self.push(*hash));
        self.first_child = child.first_child;
    }

    /// Blocks that stay when those at the end that have neither holder nor child go.
    pub(super) fn kept(&self) -> usize {
        if self.first_child == NONE { self.shares.held(self.len()) } else { self.len() }
    }

    /// Drops blocks at the end, and the memory they took.
    pub(super) fn truncate(&mut self, blocks: usize) {
        if blocks == 0 {
            *self = Self::default();
            return;
        }
        self.shares = self.shares.part(0..blocks);
        self.blocks = blocks as u16;
        self.shrink();
    }

    /// Returns memory unless little stands empty: tails come and go block by block.
    pub(super) fn shrink(&mut self) {
        if self.room() > self.len() / 8 + 1 {
            self.resize(self.len());
        }
    }
}

const ZERO: SequenceHash = SequenceHash::ZERO;

fn words(first: &[SequenceHash], size: usize) -> Box<[SequenceHash]> {
    let mut words = Vec::with_capacity(size);
    words.extend_from_slice(first);
    words.resize(size, ZERO);
    words.into_boxed_slice()
}
