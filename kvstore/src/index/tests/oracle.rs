//! Oracle: random changes to the index and to a map of parent pointers, compared after each one.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;

use super::{check_invariants, check_maximal, check_parents_first, hash};
use crate::SequenceHash;
use crate::index::{Entry, HolderSet, InsertError, Inserted, RadixIndex, TierSet};

const BLOCKS: usize = 28;
const HOLDERS: u32 = 3;

/// A change. Blocks are numbers below `BLOCKS`.
#[derive(Debug, Clone)]
enum Op {
    /// The block behind its parent.
    Insert {
        block: usize,
        holder: u32,
    },
    /// The last blocks of the path that ends in `tip`.
    InsertRun {
        tip: usize,
        blocks: usize,
        holder: u32,
    },
    /// The block behind another parent than its own.
    Misplace {
        block: usize,
        parent: Option<usize>,
        holder: u32,
    },
    Remove {
        block: usize,
        holder: u32,
    },
    /// The path that ends in `tip`, as a use of it.
    Touch {
        tip: usize,
    },
    RemoveHolder {
        holder: u32,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let (block, holder) = (0..BLOCKS, 0..HOLDERS);
    prop_oneof![
        3 => (block.clone(), holder.clone()).prop_map(|(block, holder)| Op::Insert { block, holder }),
        6 => (block.clone(), 1..BLOCKS, holder.clone())
            .prop_map(|(tip, blocks, holder)| Op::InsertRun { tip, blocks, holder }),
        1 => (block.clone(), proptest::option::of(block.clone()), holder.clone())
            .prop_map(|(block, parent, holder)| Op::Misplace { block, parent, holder }),
        9 => (block.clone(), holder.clone()).prop_map(|(block, holder)| Op::Remove { block, holder }),
        3 => block.prop_map(|tip| Op::Touch { tip }),
        1 => holder.prop_map(|holder| Op::RemoveHolder { holder }),
    ]
}

/// A forest: the parent of each block, which has a lower number. Mostly chains.
fn forest() -> impl Strategy<Value = Vec<Option<usize>>> {
    let parent = |block: usize| match block {
        0 => Just(None).boxed(),
        _ => prop_oneof![1 => Just(None), 9 => Just(Some(block - 1)), 4 => (0..block).prop_map(Some)].boxed(),
    };
    (0..BLOCKS).map(parent).collect::<Vec<_>>()
}

#[derive(Debug, Clone)]
struct Block {
    parent: Option<SequenceHash>,
    holders: TierSet,
    last_use: u64,
}

/// The index as a map of parent pointers.
#[derive(Default)]
struct Model {
    blocks: BTreeMap<SequenceHash, Block>,
}

impl Model {
    fn insert_run(
        &mut self,
        mut parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
        holder: u32,
        now: u64,
    ) -> Result<Inserted, InsertError> {
        let mut total = Inserted::default();
        for hash in hashes.iter().copied() {
            match (self.blocks.get(&hash), parent) {
                (Some(block), _) if block.parent != parent => return Err(InsertError::OtherParent { hash }),
                (None, Some(parent)) if !self.blocks.contains_key(&parent) => {
                    return Err(InsertError::NoParent { hash, parent });
                }
                _ => {}
            }
            let fresh = Block { parent, holders: TierSet::default(), last_use: now };
            let block = self.blocks.entry(hash).or_insert(fresh);
            total.blocks += usize::from(block.holders.is_empty());
            total.copies += usize::from(block.holders.insert(holder));
            parent = Some(hash);
        }
        // What was there before an error need not count as used.
        for hash in hashes {
            let block = self.blocks.get_mut(hash).expect("all are there now");
            block.last_use = block.last_use.max(now);
        }
        Ok(total)
    }

    fn remove(&mut self, hash: SequenceHash, holder: u32) -> bool {
        let removed = self.blocks.get_mut(&hash).is_some_and(|block| block.holders.remove(holder));
        let parents =
            |blocks: &BTreeMap<_, Block>| blocks.values().filter_map(|block| block.parent).collect();
        loop {
            let parents: HashSet<SequenceHash> = parents(&self.blocks);
            let before = self.blocks.len();
            self.blocks.retain(|hash, block| !block.holders.is_empty() || parents.contains(hash));
            if self.blocks.len() == before {
                return removed;
            }
        }
    }

    fn remove_holder(&mut self, holder: u32) -> usize {
        let hashes: Vec<_> = self.blocks.keys().copied().collect();
        hashes.into_iter().filter(|hash| self.remove(*hash, holder)).count()
    }

    fn holders(&self, hash: SequenceHash) -> TierSet {
        self.blocks.get(&hash).map(|block| block.holders).unwrap_or_default()
    }

    fn longest_prefix(&mut self, hashes: &[SequenceHash], now: Option<u64>) -> Vec<TierSet> {
        let mut prefix = vec![];
        for (at, hash) in hashes.iter().enumerate() {
            let Some(block) = self.blocks.get_mut(hash) else { break };
            if block.holders.is_empty() || (at > 0 && block.parent != Some(hashes[at - 1])) {
                break;
            }
            block.last_use = block.last_use.max(now.unwrap_or(0));
            prefix.push(block.holders);
        }
        prefix
    }

    /// Blocks above one, nearest first.
    fn ancestors(&self, hash: SequenceHash) -> impl Iterator<Item = SequenceHash> {
        std::iter::successors(self.blocks[&hash].parent, |hash| self.blocks[hash].parent)
    }

    fn path(&self, hash: SequenceHash) -> Vec<SequenceHash> {
        if !self.blocks.contains_key(&hash) {
            return vec![];
        }
        let mut path: Vec<_> = std::iter::once(hash).chain(self.ancestors(hash)).collect();
        path.reverse();
        path
    }

    fn descendants(&self, hash: SequenceHash) -> BTreeSet<SequenceHash> {
        let held = self.blocks.iter().filter(|(_, block)| !block.holders.is_empty());
        held.map(|(below, _)| *below)
            .filter(|below| self.ancestors(*below).any(|above| above == hash))
            .collect()
    }

    /// Blocks of the subtree that are held.
    fn subtree(&self, hash: SequenceHash) -> BTreeSet<SequenceHash> {
        let mut held = self.descendants(hash);
        held.extend(Some(hash).filter(|hash| !self.holders(*hash).is_empty()));
        held
    }

    /// By the last uses that the index knows, which are those of runs.
    fn eviction_order(&self, holder: u32, last_use: impl Fn(SequenceHash) -> u64) -> Vec<SequenceHash> {
        let held = |hash: &SequenceHash| self.blocks[hash].holders.contains(holder);
        let mut left: BTreeSet<_> = self.blocks.keys().copied().filter(held).collect();
        let mut order = vec![];
        while !left.is_empty() {
            let above: HashSet<_> = left.iter().flat_map(|hash| self.ancestors(*hash)).collect();
            let free = left.iter().copied().filter(|hash| !above.contains(hash));
            let next = free.min_by_key(|hash| (last_use(*hash), *hash)).unwrap();
            left.remove(&next);
            order.push(next);
        }
        order
    }
}

fn path(forest: &[Option<usize>], tip: usize) -> Vec<SequenceHash> {
    let mut path: Vec<_> = std::iter::successors(Some(tip), |block| forest[*block]).map(block_hash).collect();
    path.reverse();
    path
}

fn block_hash(block: usize) -> SequenceHash {
    hash(block as u64)
}

/// Does it to both and compares the answers.
fn apply(index: &RadixIndex<TierSet>, model: &mut Model, forest: &[Option<usize>], op: &Op, now: u64) {
    match *op {
        Op::Insert { block, holder } => {
            let (parent, hash) = (forest[block].map(block_hash), block_hash(block));
            let expect = model.insert_run(parent, &[hash], holder, now);
            assert_eq!(index.insert(parent, hash, holder, now), expect);
        }
        Op::InsertRun { tip, blocks, holder } => {
            let path = path(forest, tip);
            let start = path.len().saturating_sub(blocks);
            let parent = start.checked_sub(1).map(|at| path[at]);
            let expect = model.insert_run(parent, &path[start..], holder, now);
            assert_eq!(index.insert_run(parent, &path[start..], holder, now), expect);
        }
        Op::Misplace { block, parent, holder } => {
            let (parent, hash) = (parent.map(block_hash), block_hash(block));
            let expect = model.insert_run(parent, &[hash], holder, now);
            assert_eq!(index.insert(parent, hash, holder, now), expect);
        }
        Op::Remove { block, holder } => {
            let hash = block_hash(block);
            assert_eq!(index.remove(hash, holder), model.remove(hash, holder));
        }
        Op::Touch { tip } => {
            let path = path(forest, tip);
            assert_eq!(index.longest_prefix(&path, Some(now)), model.longest_prefix(&path, Some(now)));
        }
        Op::RemoveHolder { holder } => assert_eq!(index.remove_holder(holder), model.remove_holder(holder)),
    }
}

/// Compares every answer.
fn compare(index: &RadixIndex<TierSet>, model: &mut Model, forest: &[Option<usize>], now: u64) {
    let held = model.blocks.values().filter(|block| !block.holders.is_empty()).count();
    assert_eq!(index.len(), held);
    assert_eq!(index.is_empty(), held == 0);
    for block in 0..BLOCKS {
        let hash = block_hash(block);
        assert_eq!(index.holders(hash), model.holders(hash));
        assert_eq!(index.contains(hash), !model.holders(hash).is_empty());
        let subtree = model.subtree(hash);
        let copies: usize = subtree.iter().map(|hash| model.holders(*hash).iter().count()).sum();
        let found = index.subtree(hash);
        assert_eq!((found.blocks, found.copies), (subtree.len(), copies));
        let last_use = subtree.iter().map(|hash| index.last_use(*hash).unwrap()).max();
        assert_eq!(found.last_use, last_use.unwrap_or(0));
        // A run is as young as the youngest of its blocks.
        let block_use = model.blocks.get(&hash).map(|block| block.last_use);
        assert!(index.last_use(hash) >= block_use && index.last_use(hash) <= block_use.and(Some(now)));
        let path = path(forest, block);
        assert_eq!(index.path(hash), model.path(hash));
        for start in [0, path.len() / 2] {
            assert_eq!(
                index.longest_prefix(&path[start..], None),
                model.longest_prefix(&path[start..], None)
            );
        }
        let descendants = index.descendants(hash);
        assert_eq!(descendants.iter().copied().collect::<BTreeSet<_>>(), model.descendants(hash));
        check_parents_first(descendants.iter().map(|hash| (*hash, model.blocks[hash].parent)));
    }
    for holder in 0..HOLDERS {
        assert_eq!(
            index.eviction_order(holder),
            model.eviction_order(holder, |hash| index.last_use(hash).unwrap())
        );
    }
    let mut snapshot = index.snapshot();
    check_parents_first(snapshot.iter().map(|entry| (entry.hash, entry.parent)));
    snapshot.sort_by_key(|entry| entry.hash);
    let entry =
        |(hash, block): (&_, &Block)| Entry { hash: *hash, parent: block.parent, holders: block.holders };
    assert_eq!(snapshot, model.blocks.iter().map(entry).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_those_of_parent_pointers(
        forest in forest(),
        run_blocks_max in prop_oneof![1..6usize, Just(BLOCKS)],
        ops in proptest::collection::vec(op(), 1..60),
    ) {
        let index = RadixIndex::with(run_blocks_max, usize::MAX);
        let mut model = Model::default();
        for (at, op) in ops.iter().enumerate() {
            // Several changes a tick, so that ages tie; some are late, as between threads.
            let now = at as u64 / 3 + at as u64 % 2;
            apply(&index, &mut model, &forest, op, now);
            check_invariants(&index);
            if run_blocks_max == BLOCKS {
                check_maximal(&index);
            }
            compare(&index, &mut model, &forest, at as u64);
        }
    }
}
