//! Walks over the tree: snapshot, subtrees, eviction order. Each sees one moment of it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

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

/// A block and all behind it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Subtree {
    /// Blocks of it that somebody holds.
    pub blocks: usize,
    /// Their copies: a block counts once a holder.
    pub copies: usize,
    /// The latest use of any of these; 0 without any.
    pub last_use: u64,
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
        self.walk(None).into_iter().map(|visit| visit.entry).collect()
    }

    /// The blocks from the start of the sequence to `hash`, with it; none if it is unknown. Not one moment:
    /// none either if a block before it goes meanwhile, which needs `hash` to go first.
    pub fn path(&self, hash: SequenceHash) -> Vec<SequenceHash> {
        let mut path = Vec::new();
        let mut next = Some(hash);
        while let Some(hash) = next {
            let Some(place) = self.place(hash) else { return Vec::new() };
            let run = place.node.read();
            if run.has(place.offset(), hash) {
                path.extend(run.hashes[..=place.offset()].iter().rev());
                next = run.parent;
            }
        }
        path.reverse();
        path
    }

    /// Held blocks behind `hash`, without it, a parent before its children.
    pub fn descendants(&self, hash: SequenceHash) -> Vec<SequenceHash> {
        let visits = self.walk(Some(hash));
        let behind = visits.iter().skip(1).filter(|visit| !visit.entry.holders.is_empty());
        behind.map(|visit| visit.entry.hash).collect()
    }

    /// Size and heat of the block `hash` and all behind it.
    pub fn subtree(&self, hash: SequenceHash) -> Subtree {
        let visits = self.walk(Some(hash));
        let held = visits.iter().filter(|visit| !visit.entry.holders.is_empty());
        held.fold(Subtree::default(), |sum, visit| Subtree {
            blocks: sum.blocks + 1,
            copies: sum.copies + visit.entry.holders.iter().count(),
            last_use: sum.last_use.max(visit.last_use),
        })
    }

    /// All blocks of `holder` in the order in which it may drop them: one goes when nothing of this holder's
    /// is left behind it, and of those that may go the least recently used goes first (at equal age, the
    /// lower hash).
    pub fn eviction_order(&self, holder: u32) -> Vec<SequenceHash> {
        let visits = self.walk(None);
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
        let visits = self.walk(None);
        let held = visits.iter().rev().filter(|visit| visit.entry.holders.contains(holder));
        held.filter(|visit| self.remove(visit.entry.hash, holder)).count()
    }

    /// The tree behind `start` with it, or the whole of it; a parent before its children.
    fn walk(&self, start: Option<SequenceHash>) -> Vec<Visit<S>> {
        let _still = self.changes.write();
        let mut pending: Vec<(SequenceHash, Option<usize>)> = match start {
            Some(start) => vec![(start, None)],
            None => self.roots().into_iter().map(|root| (root, None)).collect(),
        };
        let mut visits = Vec::new();
        while let Some((hash, mut above)) = pending.pop() {
            let Some(place) = self.place(hash) else { continue };
            let run = place.node.read();
            for offset in place.offset()..run.len() {
                visits.push(Visit {
                    entry: Entry {
                        hash: run.hashes[offset],
                        parent: run.parent_of(offset),
                        holders: run.holders[offset],
                    },
                    last_use: run.last_use(offset),
                    above,
                });
                above = Some(visits.len() - 1);
            }
            pending.extend(run.children.iter().map(|child| (*child, above)));
        }
        visits
    }

    /// First blocks of all sequences. Under `changes` nobody waits for a shard of the map with a run
    /// locked, so runs may be locked here while it is read.
    fn roots(&self) -> Vec<SequenceHash> {
        let starts = self.places.iter().filter(|place| place.offset() == 0);
        starts.filter(|place| place.node.read().parent.is_none()).map(|place| *place.key()).collect()
    }
}
