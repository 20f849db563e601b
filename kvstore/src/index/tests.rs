//! Tests of the radix index: cases, an oracle, threads; and what must hold of any tree.

mod cases;
mod concurrent;
mod oracle;

use std::collections::{HashMap, HashSet};

use super::{HolderSet, RadixIndex};
use crate::SequenceHash;

/// A hash that is as spread as a real one.
fn hash(number: u64) -> SequenceHash {
    let spread = u128::from(number).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    SequenceHash::from_bytes((spread ^ (spread >> 64)).to_le_bytes())
}

/// Checks the module's invariants, which hold whenever no operation is under way.
fn check_invariants<S: HolderSet>(index: &RadixIndex<S>) {
    let mut blocks = 0;
    let mut held = 0;
    let mut runs = 0;
    let mut children = HashMap::new();
    let mut parents = HashMap::new();
    let places: Vec<_> = index.places.iter().map(|place| (*place.key(), place.value().clone())).collect();
    for (hash, place) in &places {
        let run = place.node.read();
        assert!(run.has(place.offset(), *hash), "the map leads to another place");
        if place.offset() > 0 {
            continue;
        }
        runs += 1;
        blocks += run.len();
        held += run.holders.iter().filter(|holders| !holders.is_empty()).count();
        assert!(run.len() <= index.run_blocks_max(), "a run is too long");
        assert_eq!(run.holders.len(), run.len());
        assert_eq!(run.kept(), run.len(), "a block stayed without holders and without children");
        let last = *run.hashes.last().unwrap();
        for child in &run.children {
            assert_eq!(children.insert(*child, last), None, "a run is the child of two");
        }
        if let Some(parent) = run.parent {
            parents.insert(*hash, parent);
        }
    }
    assert_eq!(children, parents, "parents and children disagree");
    assert_eq!(blocks, places.len(), "the map and the runs disagree");
    assert_eq!(held, index.len());
    assert_eq!(runs, index.runs());
    assert_eq!(index.is_empty(), places.is_empty());
}

/// Checks that no run has a single child, which holds of every tree whose runs are never too long to join.
fn check_maximal<S: HolderSet>(index: &RadixIndex<S>) {
    for place in &index.places {
        assert_ne!(place.node.read().children.len(), 1, "a run could be joined with its only child");
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
