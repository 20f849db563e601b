//! Tests of the radix index: cases, an oracle, threads; and what must hold of any tree.

mod cases;
mod concurrent;
mod oracle;

use std::collections::{HashMap, HashSet};

use super::arena::Arena;
use super::places::Places;
use super::{HolderSet, RadixIndex};
use crate::SequenceHash;

/// A hash; most are as spread as real ones, and one of four has a tag in the map that many others have too.
fn hash(number: u64) -> SequenceHash {
    let spread = u128::from(number).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    let spread = spread ^ (spread >> 64);
    let similar = (spread >> 32 << 32) | u128::from(number % 7);
    SequenceHash::from_bytes(if number % 4 == 1 { similar } else { spread }.to_le_bytes())
}

/// Checks the module's invariants, which hold whenever no operation is under way.
fn check_invariants<S: HolderSet>(index: &RadixIndex<S>) {
    let (mut blocks, mut held, mut runs) = (0, 0, 0);
    let mut children = HashMap::new();
    let mut parents = HashMap::new();
    let mut bytes = Places::bytes_min() + Arena::<S>::bytes_min();
    for id in 0..index.arena.made() {
        let run = index.arena.node(id).run.read();
        bytes += run.bytes();
        if run.len() == 0 {
            assert_eq!(run.bytes(), 0, "a run without blocks has memory");
            continue;
        }
        runs += 1;
        blocks += run.len();
        let sets = || run.shares.stretches(0..run.len());
        assert_eq!(sets().map(|(blocks, _)| blocks).sum::<usize>(), run.len());
        held += sets().filter(|(_, set)| !set.is_empty()).map(|(blocks, _)| blocks).sum::<usize>();
        for (at, hash) in run.hashes().iter().enumerate() {
            let seen = index.read(*hash).ok().expect("the map leads to every block");
            assert_eq!((seen.id, seen.at), (id, at), "the map leads to another place");
        }
        assert!(run.len() <= index.run_blocks_max(), "a run is too long");
        assert!(run.room() <= run.len() / 8 + 1, "{} blocks have room for {}", run.len(), run.room());
        assert_eq!(run.kept(), run.len(), "a block stayed without holders and without children");
        for child in index.arena.children(&run) {
            assert_eq!(
                children.insert(child, *run.hashes().last().unwrap()),
                None,
                "a run is the child of two"
            );
        }
        if let Some(parent) = run.parent() {
            parents.insert(id, parent);
        }
    }
    assert_eq!(children, parents, "parents and children disagree");
    assert_eq!(blocks, index.places.len(), "the map and the runs disagree");
    assert_eq!(held, index.len());
    assert_eq!(runs, index.runs());
    assert_eq!(index.is_empty(), blocks == 0);
    bytes += index.places.bytes() + index.arena.bytes();
    assert_eq!(index.memory_bytes(), bytes, "the account is wrong");
}

/// Checks that no run has a single child, which holds of every tree whose runs are never too long to join.
fn check_maximal<S: HolderSet>(index: &RadixIndex<S>) {
    for id in 0..index.arena.made() {
        let run = index.arena.node(id).run.read();
        assert_eq!(index.arena.only_child(&run), None, "a run could be joined with its only child");
    }
}

/// Checks that a list of blocks has each parent, as far as it is in there, before its children.
fn check_parents_first(blocks: impl Iterator<Item = (SequenceHash, Option<SequenceHash>)>) {
    let mut late = HashSet::new();
    for (hash, parent) in blocks {
        assert!(!late.contains(&hash), "a child stands before its parent, or a block twice");
        late.insert(hash);
        late.extend(parent);
    }
}
