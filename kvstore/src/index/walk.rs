//! Walks over the tree: snapshot, subtrees, eviction order. Each sees one moment of it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::arena::Node;
use super::run::Run;
use super::{HolderSet, RadixIndex};
use crate::SequenceHash;

/// A block of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<S> {
    /// The block.
    pub hash: SequenceHash,
    /// The block before it; `None` at the start of a sequence.
    pub parent: Option<SequenceHash>,
    /// Who holds it; nobody if it is there only because blocks behind it are.
    pub holders: S,
}

/// A block and all behind it. Their bytes are `copies` times those of a block.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Subtree {
    /// Blocks of it that somebody holds.
    pub blocks: usize,
    /// Their copies: a block counts once a holder.
    pub copies: usize,
    /// The latest use of any of their runs; 0 without any.
    pub last_use: u64,
    /// Uses of the run of `hash` itself: whoever looks up a block behind it passes it.
    pub uses: u32,
}

/// A block as a walk met it.
struct Visit<S> {
    entry: Entry<S>,
    last_use: u64,
    /// Position of its parent in the walk; `None` where the walk began.
    above: Option<usize>,
}

impl<S: HolderSet> RadixIndex<S> {
    /// All blocks of the tree, a parent before its children.
    ///
    /// Inserted in this order elsewhere (a block without holders under some holder, which is removed in the
    /// end) they give the same tree.
    pub fn snapshot(&self) -> Vec<Entry<S>> {
        self.visits(None).into_iter().map(|visit| visit.entry).collect()
    }

    /// The blocks from the start of the sequence to `hash`, with it; none if it is unknown. Not one moment:
    /// none either if a block before it goes meanwhile, which needs `hash` to go first.
    pub fn path(&self, hash: SequenceHash) -> Vec<SequenceHash> {
        let mut path = Vec::new();
        let mut next = Some(hash);
        while let Some(hash) = next {
            let Ok(seen) = self.read(hash) else { return Vec::new() };
            path.extend(seen.run.hashes()[..=seen.at].iter().rev());
            next = seen.run.parent();
        }
        path.reverse();
        path
    }

    /// Held blocks behind `hash`, without it, a parent before its children.
    pub fn descendants(&self, hash: SequenceHash) -> Vec<SequenceHash> {
        let visits = self.visits(Some(hash));
        let behind = visits.iter().skip(1).filter(|visit| !visit.entry.holders.is_empty());
        behind.map(|visit| visit.entry.hash).collect()
    }

    /// Size and heat of the block `hash` and all behind it.
    pub fn subtree(&self, hash: SequenceHash) -> Subtree {
        let mut sum = Subtree::default();
        self.walk(Some(hash), |run, node, start, above| {
            let held = run.shares.stretches(start..run.len()).filter(|(_, holders)| !holders.is_empty());
            for (blocks, holders) in held {
                sum.blocks += blocks;
                sum.copies += blocks * holders.count();
                sum.last_use = sum.last_use.max(node.heat.last_use());
            }
            if above.is_none() {
                sum.uses = node.heat.uses();
            }
            Some(0)
        });
        sum
    }

    /// All blocks of `holder` in the order in which it may drop them: one goes when nothing of this holder's
    /// is left behind it, and of those that may go the least recently used goes first (by the last use of its
    /// run; at equal age, the lower hash).
    pub fn eviction_order(&self, holder: u32) -> Vec<SequenceHash> {
        let visits = self.visits(None);
        let held = |at: usize| visits[at].entry.holders.contains(holder);
        // The nearest block above that is the holder's too, and how many name a block so.
        let mut above: Vec<Option<usize>> = Vec::with_capacity(visits.len());
        let mut below = vec![0usize; visits.len()];
        for (at, visit) in visits.iter().enumerate() {
            let nearest =
                visit.above.and_then(|parent| if held(parent) { Some(parent) } else { above[parent] });
            above.push(nearest);
            if let (Some(nearest), true) = (nearest, held(at)) {
                below[nearest] += 1;
            }
        }
        let candidate = |at: usize| Reverse((visits[at].last_use, visits[at].entry.hash, at));
        let mut candidates: BinaryHeap<_> =
            (0..visits.len()).filter(|at| held(*at) && below[*at] == 0).map(candidate).collect();
        let mut order = Vec::new();
        while let Some(Reverse((_, hash, at))) = candidates.pop() {
            order.push(hash);
            if let Some(parent) = above[at] {
                below[parent] -= 1;
                if below[parent] == 0 {
                    candidates.push(candidate(parent));
                }
            }
        }
        order
    }

    /// Takes `holder` from all its blocks, those behind first; returns how many it held. Blocks that it is
    /// given meanwhile may stay.
    pub fn remove_holder(&self, holder: u32) -> usize {
        let visits = self.visits(None);
        let held = visits.iter().rev().filter(|visit| visit.entry.holders.contains(holder));
        held.filter(|visit| self.remove(visit.entry.hash, holder)).count()
    }

    /// The blocks behind `start` with it, or all; a parent before its children.
    fn visits(&self, start: Option<SequenceHash>) -> Vec<Visit<S>> {
        let mut visits = Vec::new();
        self.walk(start, |run, node, start, mut above| {
            let holders = run.shares.stretches(start..run.len());
            let holders = holders.flat_map(|(blocks, holders)| std::iter::repeat_n(holders, blocks));
            for (offset, holders) in (start..).zip(holders) {
                let entry = Entry { hash: run.hashes()[offset], parent: run.parent_of(offset), holders };
                visits.push(Visit { entry, last_use: node.heat.last_use(), above });
                above = Some(visits.len() - 1);
            }
            above
        });
        visits
    }

    /// Visits the run of `start` from there on and all runs behind it, or all runs; a parent before its
    /// children. What a visit returns, the visits of its children are given.
    fn walk(
        &self,
        start: Option<SequenceHash>,
        mut visit: impl FnMut(&Run<S>, &Node<S>, usize, Option<usize>) -> Option<usize>,
    ) {
        let _still = self.stand_still();
        let mut pending: Vec<(u32, usize, Option<usize>)> = match start {
            Some(start) => self.read(start).map(|seen| (seen.id, seen.at, None)).into_iter().collect(),
            None => (0..self.arena.made()).filter(|id| self.is_root(*id)).map(|id| (id, 0, None)).collect(),
        };
        while let Some((id, start, above)) = pending.pop() {
            let node = self.arena.node(id);
            let run = node.run.read();
            let above = visit(&run, node, start, above);
            pending.extend(self.arena.children(&run).map(|child| (child, 0, above)));
        }
    }

    fn is_root(&self, id: u32) -> bool {
        let run = self.arena.node(id).run.read();
        run.len() > 0 && !run.is_headed()
    }
}
