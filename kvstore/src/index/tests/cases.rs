//! Cases: what single changes make of a tree. A block's name is a letter, its hash that of its whole path.

use super::{check_invariants, check_maximal, hash};
use crate::SequenceHash;
use crate::index::{
    Entry, HolderSet, InsertError, Inserted, Loaded, RUN_BLOCKS_MAX, RadixIndex, Subtree, TierSet, WorkerSet,
};

/// Hashes of the blocks along a path.
fn path(names: &str) -> Vec<SequenceHash> {
    let mut number = 0u64;
    let step = |name| {
        number = number * 32 + u64::from(name - b'a') + 1;
        hash(number)
    };
    names.bytes().map(step).collect()
}

fn tip(names: &str) -> SequenceHash {
    *path(names).last().unwrap()
}

/// Runs a script of `+path` (insert the whole path), `-path` (remove its last block) and `=path` (look it
/// up), each by holder 0 at a tick of its own.
fn play(index: &RadixIndex<TierSet>, script: &str) {
    for (now, step) in (1..).zip(script.split_whitespace()) {
        let (verb, names) = step.split_at(1);
        match verb {
            "+" => drop(index.insert_run(None, &path(names), 0, now).unwrap()),
            "-" => assert!(index.remove(tip(names), 0)),
            "=" => assert_eq!(index.longest_prefix(&path(names), Some(now)).len(), names.len()),
            _ => panic!("unknown step {step}"),
        }
        check_invariants(index);
    }
}

/// Length of each run, by the letters of `names` at which a run starts: `ab/c` reads as runs `ab` and `c`.
fn runs_along(index: &RadixIndex<TierSet>, names: &str) -> String {
    let mut text = String::new();
    for (at, hash) in path(names).into_iter().enumerate() {
        if at > 0 && index.read(hash).ok().unwrap().at == 0 {
            text.push('/');
        }
        text.push_str(&names[at..=at]);
    }
    text
}

#[test]
fn runs_are_split_at_branches_and_joined_again() {
    for (script, along, expect, runs) in [
        ("+abcd", "abcd", "abcd", 1),
        ("+ab +abcd", "abcd", "abcd", 1),
        ("+abcd +ab", "abcd", "abcd", 1),
        ("+abcd +abxy", "abcd", "ab/cd", 3),
        ("+abcd +abxy", "abxy", "ab/xy", 3),
        ("+abcd +x", "abcd", "abcd", 2),
        ("+abcd +abxy +abz", "abz", "ab/z", 4),
        ("+abcd +abxy +aq", "abcd", "a/b/cd", 5),
        ("+abcd +abx -abx", "abcd", "abcd", 1),
        ("+abcd +abxy -abx -abxy", "abcd", "abcd", 1),
        ("+abcd +abxy +aq -aq", "abcd", "ab/cd", 3),
        ("+abcd +abxy +abz -abz", "abcd", "ab/cd", 3),
        ("+abcd -abcd", "abc", "abc", 1),
        ("+abcd -abc -abcd", "ab", "ab", 1),
        ("+abcd -abc", "abcd", "abcd", 1),
        ("+abcd +abxy -ab -abcd -abc -abxy -abx", "a", "a", 1),
    ] {
        let index = RadixIndex::new();
        play(&index, script);
        assert_eq!(runs_along(&index, along), expect, "{script}");
        assert_eq!(index.runs(), runs, "{script}");
        check_maximal(&index);
    }
}

#[test]
fn a_prefix_ends_where_a_block_is_not_held() {
    for (script, query, blocks) in [
        ("", "abc", 0),
        ("+abc", "", 0),
        ("+abc", "abc", 3),
        ("+abc", "abcd", 3),
        ("+abc", "ab", 2),
        ("+abc", "xbc", 0),
        ("+abcd +abxy", "abxyz", 4),
        ("+abcd -ab", "abcd", 1),
        ("+abcd -ab +ab", "abcd", 4),
        ("+abcd -abcd", "abcd", 3),
        ("+abcd -a", "abcd", 0),
    ] {
        let index = RadixIndex::new();
        play(&index, script);
        assert_eq!(index.longest_prefix(&path(query), None).len(), blocks, "{script}: {query}");
    }
}

#[test]
fn a_prefix_may_begin_anywhere_but_must_be_a_chain() {
    let index = RadixIndex::new();
    play(&index, "+abcd +abxy");
    assert_eq!(index.longest_prefix(&path("abxy")[1..], None).len(), 3);
    let (c, y) = (tip("abc"), tip("abxy"));
    assert_eq!(
        index.longest_prefix(&[c, y], None).len(),
        1,
        "both are held, but one is not behind the other"
    );
}

#[test]
fn the_last_block_of_the_last_holder_empties_the_index() {
    let index = RadixIndex::new();
    play(&index, "+abcd +abxy -a -ab -abc -abcd -abx");
    assert_eq!((index.len(), index.runs()), (1, 1), "one held block and its ancestors");
    assert!(index.contains(tip("abxy")) && !index.contains(tip("ab")));
    play(&index, "-abxy");
    assert!(index.is_empty());
    assert_eq!(index.runs(), 0);
}

#[test]
fn holders_are_counted_apart() {
    let index = RadixIndex::<WorkerSet>::new();
    let abc = path("abc");
    assert_eq!(index.insert_run(None, &abc, 63, 1), Ok(Inserted { blocks: 3, copies: 3 }));
    assert_eq!(index.insert_run(None, &abc[..2], 5, 1), Ok(Inserted { blocks: 0, copies: 2 }));
    assert_eq!(index.insert(Some(abc[1]), abc[2], 63, 1), Ok(Inserted { blocks: 0, copies: 0 }));
    let sets = index.longest_prefix(&abc, None);
    assert_eq!(
        sets.iter().map(|set| set.iter().collect()).collect::<Vec<Vec<_>>>(),
        [vec![5, 63], vec![5, 63], vec![63]]
    );
    assert!(!index.remove(abc[2], 5), "it never held that one");
    assert!(index.remove(abc[2], 63));
    assert_eq!(index.longest_prefix(&abc, None).len(), 2);
    assert_eq!(index.remove_holder(63), 2);
    assert_eq!(index.remove_holder(5), 2);
    assert!(index.is_empty());
}

#[test]
fn a_block_needs_its_one_parent() {
    let index = RadixIndex::<TierSet>::new();
    let abc = path("abc");
    let missing = InsertError::NoParent { hash: abc[1], parent: abc[0] };
    assert_eq!(index.insert(Some(abc[0]), abc[1], 0, 1), Err(missing));
    play(&index, "+abc");
    for wrong in [None, Some(abc[0]), Some(abc[2]), Some(tip("x"))] {
        let other = InsertError::OtherParent { hash: abc[2] };
        assert_eq!(index.insert(wrong, abc[2], 1, 1), Err(other), "{wrong:?}");
    }
    let twice = [tip("x"), tip("xy"), tip("x")];
    assert_eq!(index.insert_run(None, &twice, 0, 1), Err(InsertError::OtherParent { hash: twice[0] }));
    assert_eq!(index.longest_prefix(&twice, None).len(), 2, "what was before the error is there");
    check_invariants(&index);
}

#[test]
#[should_panic(expected = "holder 8 is not below 8")]
fn a_holder_must_be_in_range() {
    let _ = RadixIndex::<TierSet>::new().insert(None, tip("a"), 8, 1);
}

#[test]
fn eviction_goes_from_the_tails_and_by_age() {
    for (script, order) in [
        ("+abc", "abc ab a"),
        ("+abc +ax", "abc ab ax a"),
        ("+abc +ax =abc", "ax abc ab a"),
        ("+abc +ax =abc =ax", "abc ab ax a"),
        // The run of b and c was used as a whole.
        ("+abc +ax =ax =ab", "ax abc ab a"),
        ("+ab +xy =ab", "xy x ab a"),
        ("+abc -ab", "abc a"),
    ] {
        let index = RadixIndex::new();
        play(&index, script);
        let expect: Vec<_> = order.split_whitespace().map(tip).collect();
        assert_eq!(index.eviction_order(0), expect, "{script}");
        assert_eq!(index.eviction_order(1), [], "{script}");
    }
}

#[test]
fn subtrees_are_sized_and_listed() {
    let index = RadixIndex::new();
    play(&index, "+abcd +abxy +q =abx -abc");
    assert_eq!(index.subtree(tip("ab")), Subtree { blocks: 4, copies: 4, last_use: 4, uses: 3 });
    assert_eq!(index.subtree(tip("abc")), Subtree { blocks: 1, copies: 1, last_use: 1, uses: 1 });
    assert_eq!(index.subtree(tip("zz")), Subtree::default());
    let mut behind = index.descendants(tip("ab"));
    behind.sort();
    let mut expect = [tip("abcd"), tip("abx"), tip("abxy")];
    expect.sort();
    assert_eq!(behind, expect);
    let snapshot = index.snapshot();
    assert_eq!(snapshot.len(), 7);
    let structure = Entry { hash: tip("abc"), parent: Some(tip("ab")), holders: TierSet::default() };
    assert!(snapshot.contains(&structure), "a block that is there for those behind it");
}

#[test]
fn a_load_takes_siblings_in_turns_and_refuses_orphans() {
    let index = RadixIndex::<TierSet>::new();
    let both = TierSet::from_bits(0b101);
    let (one, two, lost) = (path("abcd"), path("abxy"), path("klm"));
    let chain = |path: &[SequenceHash], at: usize| (at.checked_sub(1).map(|at| path[at]), path[at], both);
    let mut blocks: Vec<_> = (0..2).map(|at| chain(&one, at)).collect();
    blocks.extend((2..4).flat_map(|at| [chain(&one, at), chain(&two, at)]));
    blocks.extend((1..3).map(|at| chain(&lost, at)));
    let mut refused = vec![];
    let loaded = index.load(blocks, 9, |hash, error| refused.push((hash, error)));
    assert_eq!(loaded, Loaded { blocks: 6, copies: 12, refused: 2 });
    let orphan = |at: usize| (lost[at], InsertError::NoParent { hash: lost[at], parent: lost[at - 1] });
    assert_eq!(refused, [orphan(1), orphan(2)]);
    assert_eq!(index.longest_prefix(&one, None), [both; 4]);
    assert_eq!(index.longest_prefix(&two, None), [both; 4]);
    check_invariants(&index);
}

#[test]
fn a_full_index_says_so_and_serves_on() {
    let index = RadixIndex::<TierSet>::with_budget(256 << 10);
    let mut stored = 0u64;
    let full = loop {
        match index.insert_run(None, &[hash(stored * 2), hash(stored * 2 + 1)], 0, 1) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(index.memory_bytes() <= index.budget_bytes(), "{}", index.memory_bytes());
        assert!(stored < 1 << 20, "it never got full");
    };
    assert!(matches!(full, InsertError::Full { .. }), "{full}");
    assert!(index.contains(hash(0)));
    let held = index.len();
    assert!(held as u64 >= 2 * stored);
    assert_eq!(index.remove_holder(0), held);
    index.insert(None, hash(1 << 40), 0, 1).expect("there is room again");
    check_invariants(&index);
}

#[test]
fn memory_is_returned_when_blocks_go() {
    let index = RadixIndex::<TierSet>::new();
    let empty = index.memory_bytes();
    let sequences: Vec<Vec<_>> =
        (0..500u64).map(|sequence| (0..40).map(|at| hash(sequence * 64 + at)).collect()).collect();
    for sequence in &sequences {
        index.insert_run(None, sequence, 0, 1).unwrap();
    }
    let full = index.memory_bytes() - empty;
    assert!(full < 20_000 * 32, "{} bytes a block", full / 20_000);
    for sequence in &sequences {
        sequence[4..].iter().rev().for_each(|hash| assert!(index.remove(*hash, 0)));
    }
    check_invariants(&index);
    let tenth = index.memory_bytes() - empty;
    assert!(tenth < full / 4, "{tenth} of {full} bytes for a tenth of the blocks");
    assert_eq!(index.remove_holder(0), 2000);
    check_invariants(&index);
    let nodes = (500 + 512) * 64 + 10_000;
    assert!(index.memory_bytes() - empty < nodes, "{} bytes are left", index.memory_bytes() - empty);
}

#[test]
fn long_sequences_take_several_runs() {
    let index = RadixIndex::<TierSet>::new();
    let hashes: Vec<_> = (0..1000).map(hash).collect();
    index.insert_run(None, &hashes[..700], 0, 1).unwrap();
    for at in 700..1000 {
        index.insert(Some(hashes[at - 1]), hashes[at], 0, 1).unwrap();
    }
    assert_eq!(index.runs(), 1000usize.div_ceil(RUN_BLOCKS_MAX));
    assert_eq!(index.longest_prefix(&hashes, Some(2)).len(), 1000);
    check_invariants(&index);
    assert_eq!(index.remove_holder(0), 1000);
    check_invariants(&index);
}

/// First and last block of each branch with its parent, by letters.
fn outlined(index: &RadixIndex<TierSet>, from: Option<SequenceHash>, runs_max: usize) -> (String, bool) {
    let names: std::collections::HashMap<_, _> =
        ["abcd", "abxy", "pq"].iter().flat_map(|names| path(names).into_iter().zip(names.chars())).collect();
    let outline = index.outline(from, runs_max);
    let branches = outline.branches.iter().map(|branch| {
        assert_eq!(branch.copies, [branch.blocks, 0, 0, 0]);
        let above = branch.parent.map_or(String::new(), |parent| format!("{parent}>"));
        format!("{above}{}{}{}", names[&branch.first], names[&branch.last], branch.blocks)
    });
    let mut branches: Vec<_> = branches.collect();
    // Children and roots have no order.
    branches.sort();
    (branches.join(" "), outline.is_cut)
}

#[test]
fn an_outline_has_a_branch_a_run_from_anywhere() {
    let index = RadixIndex::new();
    play(&index, "+abcd +abxy");
    assert_eq!(outlined(&index, None, 100), ("0>cd2 0>xy2 ab2".into(), false));
    assert_eq!(outlined(&index, Some(tip("ab")), 100), ("0>cd2 0>xy2 bb1".into(), false));
    assert_eq!(outlined(&index, Some(tip("abcd")), 100), ("dd1".into(), false));
    assert_eq!(outlined(&index, Some(tip("z")), 100), (String::new(), false));
    assert_eq!(outlined(&index, None, 1), ("ab2".into(), true));
    play(&index, "+pq");
    assert_eq!(outlined(&index, None, 100), ("0>cd2 0>xy2 ab2 pq2".into(), false));
}

#[test]
fn an_outline_joins_runs_that_are_only_too_long() {
    let index = RadixIndex::<TierSet>::with(4, usize::MAX);
    let long: Vec<_> = (0..11).map(hash).collect();
    index.insert_run(None, &long, 0, 1).unwrap();
    assert!(index.runs() > 2);
    let outline = index.outline(None, 100);
    assert_eq!(outline.branches.len(), 1, "{outline:?}");
    let branch = outline.branches[0];
    assert_eq!((branch.first, branch.last, branch.blocks), (long[0], long[10], 11));
}
