//! Removal: blocks that nobody needs any more go, runs that a branch divided are joined again.

use std::sync::atomic::Ordering;

use super::arena::NONE;
use super::run::Run;
use super::{HolderSet, RadixIndex};
use crate::SequenceHash;

impl<S: HolderSet> RadixIndex<S> {
    /// Takes `holder` from the block; whether it held it. Blocks that are left with neither holders nor
    /// children go, ancestors too.
    pub fn remove(&self, hash: SequenceHash, holder: u32) -> bool {
        let _change = self.change();
        let Ok(mut seen) = self.write_end(hash) else { return false };
        let run = &mut *seen.run;
        let mut left = run.shares.at(seen.at);
        if !left.remove(holder) {
            return false;
        }
        if left.is_empty() {
            self.held.fetch_sub(1, Ordering::Relaxed);
            let kept = run.shares.held(seen.at);
            if run.first_child == NONE && run.is_last(seen.at) && kept > 0 {
                self.cut(seen.id, run, kept);
                return true;
            }
        }
        let shares = run.shares.changed(run.len(), seen.at..seen.at + 1, |_| left);
        self.account.settle(run.shares.bytes(), shares.bytes());
        run.shares = shares;
        drop(seen);
        if left.is_empty() {
            self.trim(hash);
        }
        true
    }

    /// Takes out the block, and then its ancestors, as long as they have neither holders nor children.
    ///
    /// Starts without locks. Whoever makes a block bare trims it, so it may be left alone here as soon as it
    /// is bare no more.
    fn trim(&self, hash: SequenceHash) {
        let mut bare = Some(hash);
        while let Some(hash) = bare {
            let Ok(mut seen) = self.write(hash) else { return };
            let (id, kept) = (seen.id, seen.run.kept());
            if kept > seen.at {
                return;
            }
            match seen.run.parent() {
                Some(parent) if kept == 0 => {
                    // The run goes as a whole, for which its parent's lock comes first.
                    drop(seen);
                    match self.prune(parent, id) {
                        Some(above) => bare = above,
                        None => std::thread::yield_now(),
                    }
                }
                _ => {
                    self.cut(id, &mut seen.run, kept);
                    drop(seen);
                    if kept == 0 {
                        self.arena.give(id);
                    }
                    return;
                }
            }
        }
    }

    /// Takes out the run in node `id` behind `parent`, if all of it is bare, and returns the parent if that
    /// is bare now. `None` if the tree is not like that (any more), or the run in use: look again.
    fn prune(&self, parent: SequenceHash, id: u32) -> Option<Option<SequenceHash>> {
        let mut above = self.write_end(parent).ok()?;
        let node = self.arena.node(id);
        // It may be any run by now, for which it is not this one's turn to wait.
        let mut child = node.run.try_write()?;
        if !above.run.is_last(above.at)
            || child.len() == 0
            || child.parent() != Some(parent)
            || child.kept() > 0
        {
            return None;
        }
        self.cut(id, &mut child, 0);
        drop(child);
        self.arena.unlink(&mut above.run, id);
        self.arena.give(id);
        self.join(above.id, &mut above.run);
        Some((above.run.kept() < above.run.len()).then_some(parent))
    }

    /// Takes blocks from the end of a locked run.
    fn cut(&self, id: u32, run: &mut Run<S>, kept: usize) {
        for hash in &run.hashes()[kept..] {
            self.places.remove(*hash, id, &self.account);
        }
        let before = run.bytes();
        run.truncate(kept);
        self.account.settle(before, run.bytes());
        if kept == 0 {
            self.runs.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Joins a locked run with its only child if they fit in one, and in the budget.
    pub(super) fn join(&self, id: u32, run: &mut Run<S>) {
        let Some(child_id) = self.arena.only_child(run) else { return };
        let child_node = self.arena.node(child_id);
        let mut child = child_node.run.write();
        let blocks = run.len() + child.len();
        if blocks > self.run_blocks_max || (run.room() < child.len() && !self.grow(run, child.len())) {
            return;
        }
        let before = run.bytes() + child.bytes();
        child.hashes().iter().for_each(|hash| self.places.prefetch(*hash));
        child.hashes().iter().for_each(|hash| self.places.lead(*hash, child_id, id));
        run.join(&child);
        *child = Run::default();
        drop(child);
        self.account.settle(before, run.bytes());
        self.arena.node(id).heat.merge(&child_node.heat);
        self.arena.give(child_id);
        self.runs.fetch_sub(1, Ordering::Relaxed);
    }
}
