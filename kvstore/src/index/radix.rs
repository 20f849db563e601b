//! The tree and its growth. Its parts and its locks are described in the module's docs.

use std::fmt;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};
use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

use super::HolderSet;
use super::account::Account;
use super::arena::{Arena, NONE, Node};
use super::lookup::common;
use super::places::Places;
use super::run::Run;
use super::shares::Shares;
use super::table::Refused;
use crate::SequenceHash;

/// Blocks of the longest run. It bounds what a split or a join moves under a lock (about 10 us); a walk
/// along a prefix needs a map lookup every so many blocks.
pub const RUN_BLOCKS_MAX: usize = 256;

/// Which blocks of a namespace are held, and by whom.
pub struct RadixIndex<S> {
    pub(super) places: Places,
    pub(super) arena: Arena<S>,
    pub(super) account: Account,
    /// Shared: a change. Exclusive: a walk over the tree.
    changes: ShardedLock<()>,
    pub(super) held: AtomicUsize,
    pub(super) runs: AtomicUsize,
    pub(super) run_blocks_max: usize,
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

impl InsertError {
    /// The block.
    pub fn hash(&self) -> SequenceHash {
        match self {
            Self::NoParent { hash, .. } | Self::Full { hash } | Self::OtherParent { hash } => *hash,
        }
    }
}

/// A block where it stands, with its run locked.
pub(super) struct Seen<'a, S, R> {
    pub(super) id: u32,
    pub(super) node: &'a Node<S>,
    pub(super) run: R,
    /// Of the block in the run.
    pub(super) at: usize,
}

type SeenMut<'a, S> = Seen<'a, S, RwLockWriteGuard<'a, Run<S>>>;

/// The block is nowhere, as long as its shard of the map has had no more inserts.
#[derive(Clone, Copy)]
pub(super) struct Absent {
    inserts: u32,
}

/// What one step of an insert did.
#[derive(Default, Clone, Copy)]
pub(super) struct Step {
    /// Blocks that it got done; none at all when another thread changed the branch meanwhile, or `full`.
    pub(super) blocks: usize,
    pub(super) full: bool,
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
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

impl<S: HolderSet> RadixIndex<S> {
    /// An empty index.
    pub fn new() -> Self {
        Self::with(RUN_BLOCKS_MAX, usize::MAX)
    }

    /// An empty index that never takes more memory than that: past it, inserts give [`InsertError::Full`].
    /// Removals are not refused: one in the midst of a run may take some 100 bytes for a moment.
    pub fn with_budget(budget_bytes: usize) -> Self {
        Self::with(RUN_BLOCKS_MAX, budget_bytes)
    }

    /// Short runs let tests reach splits and full runs with few blocks.
    pub(super) fn with(run_blocks_max: usize, budget_bytes: usize) -> Self {
        assert!(0 < run_blocks_max && u16::try_from(run_blocks_max).is_ok());
        let account = Account::new(budget_bytes);
        account.force(Places::bytes_min() + Arena::<S>::bytes_min());
        Self {
            places: Places::new(),
            arena: Arena::new(),
            account,
            changes: ShardedLock::new(()),
            held: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
            run_blocks_max,
        }
    }

    #[cfg(test)]
    pub(super) fn run_blocks_max(&self) -> usize {
        self.run_blocks_max
    }

    /// Memory it may take at most.
    pub fn budget_bytes(&self) -> usize {
        self.account.budget_bytes()
    }

    /// Memory it takes now, all of it, with what the allocator adds.
    pub fn memory_bytes(&self) -> usize {
        self.account.bytes()
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
        self.read(hash).map(|seen| seen.run.shares.at(seen.at)).unwrap_or_default()
    }

    /// When the run of the block was last used; `None` if it is unknown.
    pub fn last_use(&self, hash: SequenceHash) -> Option<u64> {
        self.read(hash).ok().map(|seen| seen.node.heat.last_use())
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
        let _change = self.change();
        self.insert_sets(parent, hashes, holders, now)
    }

    /// The same for several holders at once, under `changes`.
    pub(super) fn insert_sets(
        &self,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
        holders: S,
        now: u64,
    ) -> Result<Inserted, InsertError> {
        let (mut parent, mut rest, mut total) = (parent, hashes, Inserted::default());
        parent.iter().chain(hashes.iter().take(AHEAD)).for_each(|hash| self.places.prefetch(*hash));
        while let Some(first) = rest.first() {
            let step = match self.write(*first) {
                Ok(seen) => self.hold(seen, parent, rest, holders, now, &mut total)?,
                Err(absent) => self.attach(parent, rest, holders, now, absent, &mut total)?,
            };
            if step.full && step.blocks == 0 {
                return Err(InsertError::Full { hash: *first });
            }
            if step.blocks > 0 {
                parent = Some(rest[step.blocks - 1]);
                rest = &rest[step.blocks..];
            }
        }
        Ok(total)
    }

    /// Adds the holders to a known block and to those of `hashes` behind it in its run.
    fn hold(
        &self,
        mut seen: SeenMut<'_, S>,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
        holders: S,
        now: u64,
        total: &mut Inserted,
    ) -> Result<Step, InsertError> {
        let run = &mut *seen.run;
        if run.parent_of(seen.at) != parent {
            return Err(InsertError::OtherParent { hash: hashes[0] });
        }
        let blocks = common(&run.hashes()[seen.at..], hashes);
        let range = seen.at..seen.at + blocks;
        let mut added = Inserted::default();
        for (blocks, known) in run.shares.stretches(range.clone()) {
            added.blocks += if known.is_empty() { blocks } else { 0 };
            added.copies += blocks * (known.union(holders).count() - known.count());
        }
        if added.copies > 0 {
            let shares = run.shares.changed(run.len(), range, |known| known.union(holders));
            let (before, after) = (run.shares.bytes(), shares.bytes());
            if after > before && !self.account.take(after - before) {
                return Ok(Step { blocks: 0, full: true });
            }
            self.account.give(before.saturating_sub(after));
            run.shares = shares;
            self.held.fetch_add(added.blocks, Ordering::Relaxed);
            total.blocks += added.blocks;
            total.copies += added.copies;
        }
        // Where a branch follows in the midst of the run, what is behind it is not used: see `attach_at`.
        if seen.at + blocks == run.len() || blocks == hashes.len() {
            seen.node.heat.touch(now);
        }
        Ok(Step { blocks, full: false })
    }

    /// Puts unknown blocks behind `parent`, as many as go into one run.
    fn attach(
        &self,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
        holders: S,
        now: u64,
        absent: Absent,
        total: &mut Inserted,
    ) -> Result<Step, InsertError> {
        let step = match parent {
            None => self.branch(None, hashes, holders, now, absent).1,
            Some(parent) => {
                let Ok(mut seen) = self.write_end(parent) else {
                    return Err(InsertError::NoParent { hash: hashes[0], parent });
                };
                self.attach_at(&mut seen, hashes, holders, now, absent)
            }
        };
        total.blocks += step.blocks;
        total.copies += step.blocks * holders.count();
        Ok(step)
    }

    /// Puts unknown blocks behind a known one.
    fn attach_at(
        &self,
        seen: &mut SeenMut<'_, S>,
        hashes: &[SequenceHash],
        holders: S,
        now: u64,
        absent: Absent,
    ) -> Step {
        let run = &mut *seen.run;
        if !run.is_last(seen.at) {
            if !self.split(seen.id, seen.node, run, seen.at + 1) {
                return Step { blocks: 0, full: true };
            }
            seen.node.heat.touch(now);
        } else if run.first_child == NONE && run.len() < self.run_blocks_max {
            let step = self.extend(seen.id, run, hashes, holders, Some(absent));
            if step.blocks > 0 {
                seen.node.heat.touch(now);
            }
            return step;
        }
        let (child, step) = self.branch(Some(run.hashes()[seen.at]), hashes, holders, now, absent);
        if step.blocks > 0 {
            self.arena.link(run, child);
        } else {
            self.join(seen.id, run);
        }
        step
    }

    /// Starts a run behind `parent`, whose run is locked.
    fn branch(
        &self,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
        holders: S,
        now: u64,
        absent: Absent,
    ) -> (u32, Step) {
        let full = (NONE, Step { blocks: 0, full: true });
        let Some(id) = self.arena.take(&self.account) else { return full };
        let room = hashes.len().min(self.run_blocks_max);
        if !self.account.take(Run::<S>::words_bytes(parent.is_some(), room)) {
            self.arena.give(id);
            return full;
        }
        let node = self.arena.node(id);
        // Locked before the map leads others here.
        let mut run = node.run.write();
        *run = Run::new(parent, room);
        let step = self.extend(id, &mut run, hashes, holders, Some(absent));
        if step.blocks == 0 {
            self.account.give(run.bytes());
            *run = Run::default();
            drop(run);
            self.arena.give(id);
        } else {
            node.heat.touch(now);
            self.runs.fetch_add(1, Ordering::Relaxed);
        }
        (id, step)
    }

    /// Appends unknown blocks to a locked run while it has room; stops at one that may be known. The first
    /// is known to be `absent`.
    pub(super) fn extend(
        &self,
        id: u32,
        run: &mut Run<S>,
        hashes: &[SequenceHash],
        holders: S,
        absent: Option<Absent>,
    ) -> Step {
        let before = run.len();
        let wanted = hashes.len().min(self.run_blocks_max - before);
        let shares = run.shares.joined(before, &Shares::One(holders), wanted);
        let grown = shares.bytes().saturating_sub(run.shares.bytes());
        if !self.account.take(grown) {
            return Step { blocks: 0, full: true };
        }
        let mut full = wanted > run.room() && !self.grow(run, wanted);
        let blocks_max = wanted.min(run.room());
        let hashes = &hashes[..blocks_max];
        let mut absent_at = absent.map(|absent| absent.inserts);
        for (at, hash) in hashes.iter().enumerate() {
            if let Some(ahead) = hashes.get(at + AHEAD) {
                self.places.prefetch(*ahead);
            }
            match self.places.insert(*hash, id, absent_at.take(), &self.account) {
                Ok(()) => run.push(*hash),
                Err(refused) => {
                    full |= refused == Refused::Full;
                    break;
                }
            }
        }
        let blocks = run.len() - before;
        if blocks > 0 {
            let old = run.bytes() + grown;
            run.shares = if blocks == wanted {
                shares
            } else {
                run.shrink();
                run.shares.joined(before, &Shares::One(holders), blocks)
            };
            self.account.settle(old, run.bytes());
        } else {
            self.account.give(grown);
        }
        self.held.fetch_add(if holders.is_empty() { 0 } else { blocks }, Ordering::Relaxed);
        Step { blocks, full }
    }

    /// Gives a run room for more blocks; whether the budget has it.
    pub(super) fn grow(&self, run: &mut Run<S>, more: usize) -> bool {
        let (headed, room) = (run.is_headed(), run.room_for(more, self.run_blocks_max));
        let before = Run::<S>::words_bytes(headed, run.len() + run.room());
        let taken = self.account.take(Run::<S>::words_bytes(headed, room).saturating_sub(before));
        if taken {
            run.resize(room);
        }
        taken
    }

    /// Cuts a locked run before `at`; whether the budget has the memory.
    fn split(&self, id: u32, node: &Node<S>, run: &mut Run<S>, at: usize) -> bool {
        let Some(tail_id) = self.arena.take(&self.account) else { return false };
        let shares_bytes = run.shares.bytes();
        if !self.account.take(Run::<S>::words_bytes(true, run.len() - at) + shares_bytes) {
            self.arena.give(tail_id);
            return false;
        }
        let before = run.bytes() + Run::<S>::words_bytes(true, run.len() - at) + shares_bytes;
        let tail_node = self.arena.node(tail_id);
        // Locked until the map leads to all of it: else a removal there and this would cross.
        let mut tail = tail_node.run.write();
        *tail = run.split_off(at);
        self.account.settle(before, run.bytes() + tail.bytes());
        tail_node.heat.copy_from(&node.heat);
        tail.hashes().iter().for_each(|hash| self.places.prefetch(*hash));
        tail.hashes().iter().for_each(|hash| self.places.lead(*hash, id, tail_id));
        self.arena.link(run, tail_id);
        self.runs.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// To be kept while something changes. The lock guards no data that a panic could leave half done.
    pub(super) fn change(&self) -> ShardedLockReadGuard<'_, ()> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be kept while nothing may change.
    pub(super) fn stand_still(&self) -> ShardedLockWriteGuard<'_, ()> {
        self.changes.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block, with its run locked for reading.
    pub(super) fn read(
        &self,
        hash: SequenceHash,
    ) -> Result<Seen<'_, S, RwLockReadGuard<'_, Run<S>>>, Absent> {
        self.find(hash, |id, node| {
            let run = node.run.read();
            let at = run.find(hash)?;
            Some(Seen { id, node, run, at })
        })
    }

    /// The block, with its run locked for writing.
    pub(super) fn write(&self, hash: SequenceHash) -> Result<SeenMut<'_, S>, Absent> {
        self.find(hash, |id, node| {
            let run = node.run.write();
            let at = run.find(hash)?;
            Some(Seen { id, node, run, at })
        })
    }

    /// The same for a block that is probably the last of its run.
    pub(super) fn write_end(&self, hash: SequenceHash) -> Result<SeenMut<'_, S>, Absent> {
        self.find(hash, |id, node| {
            let run = node.run.write();
            let at = run.ends_with(hash).or_else(|| run.find(hash))?;
            Some(Seen { id, node, run, at })
        })
    }

    /// The first answer of `look` about the nodes where the block may stand. To be called without locks.
    fn find<'a, R>(
        &'a self,
        hash: SequenceHash,
        mut look: impl FnMut(u32, &'a Node<S>) -> Option<R>,
    ) -> Result<R, Absent> {
        let mut skip = 0;
        let mut version = None;
        loop {
            let candidates = self.places.candidates(hash, skip);
            for id in candidates.nodes() {
                if let Some(seen) = look(*id, self.arena.node(*id)) {
                    return Ok(seen);
                }
            }
            let first = *version.get_or_insert(candidates.version);
            if candidates.more && candidates.version == first {
                skip += candidates.nodes().len();
                continue;
            }
            // Nowhere, unless it was moved meanwhile.
            let nowhere = skip == 0 && candidates.nodes().is_empty();
            if nowhere || self.places.version(hash) == first {
                return Err(Absent { inserts: candidates.inserts });
            }
            (skip, version) = (0, None);
        }
    }
}

/// How many hashes ahead of its turn a map entry is asked for: far enough that memory answers in time.
const AHEAD: usize = 16;
