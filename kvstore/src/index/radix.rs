//! The tree: lookup, insert and remove. Its parts and its locks are described in the module's docs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::Entry as Slot;
use parking_lot::RwLock;

use super::HolderSet;
use super::places::{Node, Place, Places};
use super::run::Run;
use crate::SequenceHash;

/// Blocks of the longest run. It bounds what a split or a join moves under a lock (about 10 us); a walk
/// along a prefix needs a map lookup every so many blocks.
pub const RUN_BLOCKS_MAX: usize = 256;

/// Of a map entry at a load between 7/16 and 7/8.
const PLACE_BYTES: usize = 48;
/// Of a run without its blocks, with what the allocator adds.
const RUN_BYTES: usize = 256;

/// Which blocks of a namespace are held, and by whom.
pub struct RadixIndex<S> {
    pub(super) places: Places<S>,
    /// Shared: a change. Exclusive: a walk over the tree.
    pub(super) changes: RwLock<()>,
    held: AtomicUsize,
    known: AtomicUsize,
    runs: AtomicUsize,
    run_blocks_max: usize,
    budget_bytes: usize,
}

/// What an insert added.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// Blocks that nobody held before.
    pub blocks: usize,
    /// Blocks that this holder did not hold before; at least `blocks`.
    pub copies: usize,
}

/// Why a block was not inserted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// The block before it is not in the index.
    #[error("insert block {hash}: its parent {parent} is not in the index")]
    NoParent {
        /// The block.
        hash: SequenceHash,
        /// The block before it.
        parent: SequenceHash,
    },
    /// The index has used up its budget.
    #[error("insert block {hash}: the index is full")]
    Full {
        /// The block.
        hash: SequenceHash,
    },
    /// It is in the index behind another block: a sequence hash has one parent, so one of two callers errs.
    #[error("insert block {hash}: it is in the index behind another parent")]
    OtherParent {
        /// The block.
        hash: SequenceHash,
    },
}

impl<S: HolderSet> Default for RadixIndex<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> fmt::Debug for RadixIndex<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RadixIndex")
            .field("held", &self.held)
            .field("runs", &self.runs)
            .finish_non_exhaustive()
    }
}

impl<S: HolderSet> RadixIndex<S> {
    /// An empty index.
    pub fn new() -> Self {
        Self::with_run_blocks_max(RUN_BLOCKS_MAX)
    }

    /// Short runs let tests reach splits and full runs with few blocks.
    pub(super) fn with_run_blocks_max(run_blocks_max: usize) -> Self {
        assert!(0 < run_blocks_max && u32::try_from(run_blocks_max).is_ok());
        Self {
            places: Places::default(),
            changes: RwLock::new(()),
            held: AtomicUsize::new(0),
            known: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
            run_blocks_max,
            budget_bytes: usize::MAX,
        }
    }

    /// An empty index that takes no more memory than that: past it, inserts give [`InsertError::Full`].
    pub fn with_budget(budget_bytes: usize) -> Self {
        Self { budget_bytes, ..Self::new() }
    }

    /// Memory it may take at most.
    pub fn budget_bytes(&self) -> usize {
        self.budget_bytes
    }

    /// Memory it takes now, about.
    pub fn memory_bytes(&self) -> usize {
        let block_bytes = size_of::<SequenceHash>() + size_of::<S>() + size_of::<u64>() + PLACE_BYTES;
        self.known.load(Ordering::Relaxed) * block_bytes + self.runs() * RUN_BYTES
    }

    #[cfg(test)]
    pub(super) fn run_blocks_max(&self) -> usize {
        self.run_blocks_max
    }

    /// Blocks that somebody holds.
    pub fn len(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs, the nodes of the tree.
    pub fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }

    /// Whether anybody holds the block.
    pub fn contains(&self, hash: SequenceHash) -> bool {
        !self.holders(hash).is_empty()
    }

    /// Who holds the block; nobody if it is unknown.
    pub fn holders(&self, hash: SequenceHash) -> S {
        loop {
            let Some(place) = self.place(hash) else { return S::default() };
            let run = place.node.read();
            if run.has(place.offset(), hash) {
                return run.holders[place.offset()];
            }
        }
    }

    /// Holders of each block of the longest held prefix of `hashes`; as many as the prefix has blocks.
    ///
    /// `hashes` is a chain, each the parent of the next; it may begin at any depth. It ends where a block is
    /// unknown, held by nobody, or not the child of the one before. With `now`, the prefix counts as used
    /// then.
    pub fn longest_prefix(&self, hashes: &[SequenceHash], now: Option<u64>) -> Vec<S> {
        let mut prefix = Vec::with_capacity(hashes.len());
        while let Some(hash) = hashes.get(prefix.len()) {
            let Some(place) = self.place(*hash) else { break };
            let run = place.node.read();
            let offset = place.offset();
            if !run.has(offset, *hash) {
                continue;
            }
            if !prefix.is_empty() && run.parent_of(offset) != Some(hashes[prefix.len() - 1]) {
                break;
            }
            let here = run.hashes[offset..].iter().zip(&run.holders[offset..]).zip(&hashes[prefix.len()..]);
            let before = prefix.len();
            prefix.extend(
                here.take_while(|((hash, holders), wanted)| hash == wanted && !holders.is_empty())
                    .map(|((_, holders), _)| *holders),
            );
            let end = offset + prefix.len() - before;
            if let Some(now) = now {
                (offset..end).for_each(|offset| run.touch(offset, now));
            }
            if end < run.len() {
                break;
            }
        }
        prefix
    }

    /// Notes that `holder` has the block `hash`, which follows `parent` (`None`: it begins a sequence), and
    /// that it was used at `now`.
    ///
    /// # Errors
    /// See [`InsertError`]; the index is then as before. A parent need not be held, only known.
    ///
    /// # Panics
    /// If `holder` is out of the set's range.
    pub fn insert(
        &self,
        parent: Option<SequenceHash>,
        hash: SequenceHash,
        holder: u32,
        now: u64,
    ) -> Result<Inserted, InsertError> {
        self.insert_run(parent, &[hash], holder, now)
    }

    /// Like [`insert`](Self::insert) for blocks of which each is the parent of the next.
    ///
    /// # Errors
    /// See [`InsertError`]; the blocks before the one it names are inserted.
    ///
    /// # Panics
    /// If `holder` is out of the set's range.
    pub fn insert_run(
        &self,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
        holder: u32,
        now: u64,
    ) -> Result<Inserted, InsertError> {
        let mut holders = S::default();
        holders.insert(holder);
        let _change = self.changes.read();
        let (mut parent, mut rest, mut total) = (parent, hashes, Inserted::default());
        while let Some(first) = rest.first() {
            let blocks = match self.place(*first) {
                Some(place) => self.hold(&place, parent, rest, holder, now, &mut total)?,
                None if self.memory_bytes() >= self.budget_bytes => {
                    return Err(InsertError::Full { hash: *first });
                }
                None => self.attach(parent, rest, holders, now, &mut total)?,
            };
            // None at all when another thread changed the branch meanwhile: look again.
            if blocks > 0 {
                parent = Some(rest[blocks - 1]);
                rest = &rest[blocks..];
            }
        }
        Ok(total)
    }

    /// Adds the holder to a known block and to those of `hashes` behind it in its run; returns how many.
    fn hold(
        &self,
        place: &Place<S>,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
        holder: u32,
        now: u64,
        total: &mut Inserted,
    ) -> Result<usize, InsertError> {
        let mut run = place.node.write();
        let start = place.offset();
        if !run.has(start, hashes[0]) {
            return Ok(0);
        }
        if run.parent_of(start) != parent {
            return Err(InsertError::OtherParent { hash: hashes[0] });
        }
        let blocks = run.hashes[start..].iter().zip(hashes).take_while(|(here, hash)| here == hash).count();
        for offset in start..start + blocks {
            let holders = &mut run.holders[offset];
            if holders.is_empty() {
                total.blocks += 1;
                self.held.fetch_add(1, Ordering::Relaxed);
            }
            total.copies += usize::from(holders.insert(holder));
            run.touch(offset, now);
        }
        Ok(blocks)
    }

    /// Puts unknown blocks behind `parent`, as many as go into one run; returns how many.
    fn attach(
        &self,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
        holders: S,
        now: u64,
        total: &mut Inserted,
    ) -> Result<usize, InsertError> {
        let hash = hashes[0];
        let blocks = match parent {
            None => self.branch(None, hashes, holders, now),
            Some(parent) => {
                let place = self.place(parent).ok_or(InsertError::NoParent { hash, parent })?;
                let mut run = place.node.write();
                // Checked under the parent's lock, where its children can neither come nor go.
                if !run.has(place.offset(), parent) || self.places.contains_key(&hash) {
                    return Ok(0);
                }
                self.attach_at(&place, &mut run, hashes, holders, now)
            }
        };
        total.blocks += blocks;
        total.copies += blocks;
        Ok(blocks)
    }

    /// Puts unknown blocks behind the one at `place`, whose run is locked.
    fn attach_at(
        &self,
        place: &Place<S>,
        run: &mut Run<S>,
        hashes: &[SequenceHash],
        holders: S,
        now: u64,
    ) -> usize {
        if !run.is_last(place.offset()) {
            self.split(run, place.offset() + 1);
        } else if run.children.is_empty() && run.len() < self.run_blocks_max {
            return self.extend(&place.node, run, hashes, holders, now);
        }
        let blocks = self.branch(Some(run.hashes[place.offset()]), hashes, holders, now);
        if blocks > 0 {
            run.children.push(hashes[0]);
        }
        blocks
    }

    /// Starts a run behind `parent`, whose run is locked.
    fn branch(&self, parent: Option<SequenceHash>, hashes: &[SequenceHash], holders: S, now: u64) -> usize {
        let node: Arc<Node<S>> = Arc::new(RwLock::new(Run::new(parent)));
        // Locked before the map leads others here.
        let blocks = self.extend(&node, &mut node.write(), hashes, holders, now);
        if blocks > 0 {
            self.runs.fetch_add(1, Ordering::Relaxed);
        }
        blocks
    }

    /// Appends unknown blocks to a locked run while it has room; stops at one that became known meanwhile.
    fn extend(
        &self,
        node: &Arc<Node<S>>,
        run: &mut Run<S>,
        hashes: &[SequenceHash],
        holders: S,
        now: u64,
    ) -> usize {
        let before = run.len();
        let blocks_max = hashes.len().min(self.run_blocks_max - before);
        run.reserve(blocks_max);
        for hash in &hashes[..blocks_max] {
            let Slot::Vacant(slot) = self.places.entry(*hash) else { break };
            drop(slot.insert(Place::new(node, run.len())));
            run.push(*hash, holders, now);
        }
        let blocks = run.len() - before;
        self.held.fetch_add(blocks, Ordering::Relaxed);
        self.known.fetch_add(blocks, Ordering::Relaxed);
        blocks
    }

    /// Cuts a locked run before `at`.
    fn split(&self, run: &mut Run<S>, at: usize) {
        let node = Arc::new(RwLock::new(run.split_off(at)));
        // Locked until the map leads to all of it: else a removal there and this would cross.
        let tail = node.write();
        self.lead(&node, &tail.hashes, 0);
        self.runs.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes `holder` from the block; whether it held it. Blocks that are left with neither holders nor
    /// children go, ancestors too.
    pub fn remove(&self, hash: SequenceHash, holder: u32) -> bool {
        let _change = self.changes.read();
        loop {
            let Some(place) = self.place(hash) else { return false };
            let mut run = place.node.write();
            if !run.has(place.offset(), hash) {
                continue;
            }
            if !run.holders[place.offset()].remove(holder) {
                return false;
            }
            if run.holders[place.offset()].is_empty() {
                self.held.fetch_sub(1, Ordering::Relaxed);
                drop(run);
                self.trim(hash);
            }
            return true;
        }
    }

    /// Takes out the block, and then its ancestors, as long as they have neither holders nor children.
    ///
    /// Starts without locks. Whoever makes a block bare trims it, so it may be left alone here as soon as it
    /// is bare no more.
    fn trim(&self, hash: SequenceHash) {
        let mut bare = Some(hash);
        while let Some(hash) = bare {
            let Some(place) = self.place(hash) else { return };
            let mut run = place.node.write();
            if !run.has(place.offset(), hash) {
                continue;
            }
            let kept = run.kept();
            if kept > place.offset() {
                return;
            }
            match (run.parent, run.first()) {
                (Some(parent), Some(first)) if kept == 0 => {
                    // The run goes as a whole, for which its parent's lock comes first.
                    drop(run);
                    bare = self.prune(parent, first).unwrap_or(bare);
                }
                _ => {
                    self.cut(&mut run, kept);
                    return;
                }
            }
        }
    }

    /// Takes out the run that begins with `first` behind `parent`, if all of it is bare, and returns the
    /// parent if that is bare now. `None` if the tree is not like that (any more): look again.
    fn prune(&self, parent: SequenceHash, first: SequenceHash) -> Option<Option<SequenceHash>> {
        let place = self.place(parent)?;
        let mut run = place.node.write();
        let child_slot = run.children.iter().position(|child| *child == first)?;
        // As a child of this run it is another run, and stays where it is while this one is locked.
        let child = self.place(first)?;
        let mut child = child.node.write();
        if run.hashes.last() != Some(&parent) || child.kept() > 0 {
            return None;
        }
        self.cut(&mut child, 0);
        drop(child);
        run.children.swap_remove(child_slot);
        if run.children.len() == 1 {
            self.join(&place.node, &mut run);
        }
        Some((run.kept() < run.len()).then_some(parent))
    }

    /// Takes blocks from the end of a locked run.
    fn cut(&self, run: &mut Run<S>, kept: usize) {
        for hash in &run.hashes[kept..] {
            self.places.remove(hash);
        }
        self.known.fetch_sub(run.len() - kept, Ordering::Relaxed);
        run.truncate(kept);
        if kept == 0 {
            self.runs.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Joins a locked run with its only child if they fit in one.
    fn join(&self, node: &Arc<Node<S>>, run: &mut Run<S>) {
        let Some(place) = self.place(run.children[0]) else { return };
        let mut child = place.node.write();
        if run.len() + child.len() <= self.run_blocks_max {
            let before = run.len();
            self.lead(node, &child.hashes, before);
            run.join(&mut child);
            self.runs.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Lets the map lead to known blocks that stand in `node` from `offset` on.
    fn lead(&self, node: &Arc<Node<S>>, hashes: &[SequenceHash], offset: usize) {
        for (offset, hash) in (offset..).zip(hashes) {
            self.places.insert(*hash, Place::new(node, offset));
        }
    }

    /// Where the block stands, or stood a moment ago.
    pub(super) fn place(&self, hash: SequenceHash) -> Option<Place<S>> {
        self.places.get(&hash).map(|place| place.clone())
    }
}
