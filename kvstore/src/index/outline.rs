//! Outline: the shape of the tree with sizes and heat, a node a branch, without holding anything up.
//!
//! Unlike the walks of [`walk`](super::walk) it is not one moment: a run is locked for reading while it is
//! looked at and no longer, so changes go on meanwhile. A run that is moved then may be missed or, having been
//! taken up again for other blocks, is recognized by its parent and passed over.

use std::collections::VecDeque;

use super::{HolderSet, RadixIndex};
use crate::SequenceHash;

/// Tiers, or other holders with the lowest numbers, whose copies are counted.
pub const OUTLINE_HOLDERS: usize = 4;

/// Blocks side by side that no other sequence branches off from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Branch {
    /// Position of the branch before it, which is lower; `None` where the outline begins.
    pub parent: Option<usize>,
    /// Its first block.
    pub first: SequenceHash,
    /// Its last block.
    pub last: SequenceHash,
    /// Its blocks, held or not.
    pub blocks: usize,
    /// Of them, those that each holder has.
    pub copies: [usize; OUTLINE_HOLDERS],
    /// When it was last used.
    pub last_use: u64,
    /// How often it was used.
    pub uses: u32,
}

/// The branches, those nearer to the start first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// A parent before its children.
    pub branches: Vec<Branch>,
    /// Whether the walk ended before all was seen.
    pub is_cut: bool,
}

impl<S: HolderSet> RadixIndex<S> {
    /// The tree, or `start` and what is behind it, by branches; at most `runs_max` runs are looked at. Runs that
    /// only follow each other since a run has a longest length are one branch.
    pub fn outline(&self, start: Option<SequenceHash>, runs_max: usize) -> Outline {
        let mut outline = Outline::default();
        // A run, the block to begin with, the branch before it, and the block that it must follow.
        let mut pending: VecDeque<(u32, usize, Option<usize>, Option<SequenceHash>)> = VecDeque::new();
        match start {
            Some(start) => {
                if let Ok(seen) = self.read(start) {
                    pending.push_back((seen.id, seen.at, None, None));
                }
            }
            None => {
                let roots = (0..self.arena.made()).filter(|id| {
                    let run = self.arena.node(*id).run.read();
                    run.len() > 0 && !run.is_headed()
                });
                pending.extend(roots.take(runs_max.saturating_add(1)).map(|id| (id, 0, None, None)));
            }
        }
        let mut seen_runs = 0;
        while let Some((id, at, parent, follows)) = pending.pop_front() {
            if seen_runs == runs_max {
                outline.is_cut = true;
                break;
            }
            seen_runs += 1;
            let node = self.arena.node(id);
            let run = node.run.read();
            let is_other = (parent.is_some() || start.is_none()) && run.parent() != follows;
            if at >= run.len() || is_other {
                continue;
            }
            let mut copies = [0; OUTLINE_HOLDERS];
            for (blocks, holders) in run.shares.stretches(at..run.len()) {
                for (holder, copies) in copies.iter_mut().enumerate() {
                    *copies += if holders.contains(holder as u32) { blocks } else { 0 };
                }
            }
            let last = run.hashes()[run.len() - 1];
            let position = outline.branches.len();
            outline.branches.push(Branch {
                parent,
                first: run.hashes()[at],
                last,
                blocks: run.len() - at,
                copies,
                last_use: node.heat.last_use(),
                uses: node.heat.uses(),
            });
            pending.extend(self.arena.children(&run).map(|child| (child, 0, Some(position), Some(last))));
        }
        outline.join();
        outline
    }
}

impl Outline {
    /// Joins what alone follows a branch and is as warm as it.
    fn join(&mut self) {
        let mut children = vec![0usize; self.branches.len()];
        self.branches.iter().filter_map(|branch| branch.parent).for_each(|parent| children[parent] += 1);
        // Where each branch went, those before it first.
        let mut places: Vec<usize> = Vec::with_capacity(self.branches.len());
        let mut joined: Vec<Branch> = Vec::with_capacity(self.branches.len());
        for branch in &self.branches {
            let above = branch.parent.map(|parent| (places[parent], children[parent]));
            if let Some((above, 1)) = above
                && joined[above].uses == branch.uses
            {
                let longer: &mut Branch = &mut joined[above];
                longer.last = branch.last;
                longer.blocks += branch.blocks;
                longer.copies.iter_mut().zip(branch.copies).for_each(|(sum, more)| *sum += more);
                longer.last_use = longer.last_use.max(branch.last_use);
                places.push(above);
            } else {
                places.push(joined.len());
                joined.push(Branch { parent: above.map(|(above, _)| above), ..*branch });
            }
        }
        self.branches = joined;
    }
}
