use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn directory() -> Directory {
    Directory::new(&[7; 16], 64 << 20)
}

fn scope() -> Scope {
    Scope::new("m", b"")
}

fn prefixes(directory: &Directory, hashes: &[SequenceHash]) -> BTreeMap<u32, u32> {
    let mut found = Vec::new();
    directory.prefixes(hashes, |worker, blocks| found.push((worker, blocks)));
    let map: BTreeMap<_, _> = found.iter().copied().collect();
    assert_eq!(map.len(), found.len(), "a worker is named once");
    map
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn hashes_chain_and_tell_apart_what_must_not_meet() {
    let directory = directory();
    let tokens: Vec<u32> = (0..40).collect();
    let hashes = directory.hash_tokens(&scope(), &tokens, 16);
    assert_eq!(hashes.len(), 2, "whole blocks alone");
    let first = directory.hash_block(&scope(), None, &tokens[..16], &[]);
    assert_eq!(first, hashes[0]);
    assert_eq!(directory.hash_block(&scope(), Some(first), &tokens[16..32], &[]), hashes[1]);
    for other in [
        directory.hash_tokens(&Scope::new("n", b""), &tokens, 16)[0],
        directory.hash_tokens(&Scope::new("m", b"salt"), &tokens, 16)[0],
        directory.hash_tokens(&scope(), &tokens, 8)[0],
        Directory::new(&[8; 16], 1 << 20).hash_tokens(&scope(), &tokens, 16)[0],
    ] {
        assert_ne!(other, hashes[0]);
    }
    let text = "x".repeat(600);
    let hashes = directory.hash_text(&scope(), &text);
    assert_eq!(hashes.len(), 2);
    assert_eq!(directory.hash_text(&scope(), &(text[..300].to_owned() + "y"))[0], hashes[0]);
}

#[test]
fn blocks_are_told_apart_by_each_token_and_byte() {
    let directory = directory();
    let hash = |block: &[u32], extra: &[u8]| directory.hash_block(&scope(), None, block, extra);
    let below = (1 << 24) - 1;
    let blocks: [(&[u32], &[u8]); 8] = [
        (&[1, 2], b""),
        (&[2, 1], b""),
        (&[0x0201, 0], b""),
        (&[1, 2 << 24], b""),
        (&[1, 2], b"x"),
        (&[1, below], b""),
        (&[1, below + 1], b""),
        (&[1, u32::MAX], b""),
    ];
    let hashes: BTreeSet<_> = blocks.iter().map(|(block, extra)| hash(block, extra)).collect();
    assert_eq!(hashes.len(), blocks.len());
    // Those that fit the buffer and those that do not.
    let (fits, long) =
        ((BUFFER_BYTES - SequenceHash::BYTES) / size_of::<u32>(), (0..999).collect::<Vec<u32>>());
    for size in [fits, fits + 1] {
        let (mut block, before) = (long[..size].to_vec(), hash(&long[..size], &[]));
        block[size - 1] += 1;
        assert_ne!(hash(&block, &[]), before);
        assert_eq!(hash(&long[..size], &[]), before);
    }
}

#[test]
fn what_is_assumed_ends_unless_it_is_assumed_again() {
    let directory = directory();
    let hashes = directory.hash_tokens(&scope(), &(0..64).collect::<Vec<_>>(), 16);
    directory.assume(3, &hashes, s(0));
    directory.assume(5, &hashes[..2], s(0));
    assert_eq!(prefixes(&directory, &hashes), BTreeMap::from([(3, 4), (5, 2)]));
    directory.assume(3, &hashes[..2], s(100));
    directory.expire(s(0) + TTL);
    assert_eq!(prefixes(&directory, &hashes), BTreeMap::from([(3, 2)]));
    directory.expire(s(100) + TTL);
    assert_eq!(directory.len(), 0);
}

#[test]
fn a_budget_is_kept_and_what_did_not_fit_is_counted() {
    let directory = Directory::new(&[7; 16], 100_000);
    for first in 0..10_000u32 {
        let hashes = directory.hash_tokens(&scope(), &[first; 32], 16);
        directory.stored(0, None, &hashes);
    }
    assert!(directory.memory_bytes() <= 100_000, "{}", directory.memory_bytes());
    assert!(directory.refused() > 0);
    assert!(!directory.stored(WORKERS_MAX, None, &directory.hash_tokens(&scope(), &[1; 16], 16)));
}

#[test]
fn what_is_believed_longest_makes_room() {
    let directory = Directory::new(&[7; 16], 1_000_000);
    for first in 0..10_000u32 {
        let hashes = directory.hash_tokens(&scope(), &[first; 320], 16);
        directory.assume(0, &hashes, s(1));
        if first % 1000 == 0 {
            assert_eq!(prefixes(&directory, &hashes), BTreeMap::from([(0, 20)]), "{first}");
        }
    }
    assert!(directory.memory_bytes() <= 1_000_000, "{}", directory.memory_bytes());
    directory.expire(s(1) + TTL);
    assert_eq!(directory.len(), 0, "nothing stays without a time");
}

#[derive(Debug, Clone)]
enum Step {
    Stored(u32, usize, usize),
    Removed(u32, usize, usize),
    Leave(u32),
    Assume(u32, usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let worker = prop_oneof![0..4u32, 1020..1024u32];
    prop_oneof![
        4 => (worker.clone(), 0..3usize, 1..7usize).prop_map(|(w, p, n)| Step::Stored(w, p, n)),
        3 => (worker.clone(), 0..3usize, 0..6usize).prop_map(|(w, p, n)| Step::Removed(w, p, n)),
        1 => worker.clone().prop_map(Step::Leave),
        2 => (worker, 0..3usize, 1..7usize).prop_map(|(w, p, n)| Step::Assume(w, p, n)),
    ]
}

proptest! {
    /// Beside a model that keeps a set of workers a block.
    #[test]
    fn it_knows_who_has_what(steps in prop::collection::vec(step(), 0..60)) {
        let directory = directory();
        let prompts: Vec<Vec<SequenceHash>> = (0..3u32)
            .map(|number| {
                // The first two blocks are common.
                let tokens: Vec<u32> = (0..96).map(|at| if at < 32 { at } else { at + number * 1000 }).collect();
                directory.hash_tokens(&scope(), &tokens, 16)
            })
            .collect();
        let mut model: BTreeMap<SequenceHash, BTreeSet<u32>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Stored(worker, prompt, blocks) | Step::Assume(worker, prompt, blocks) => {
                    let blocks = &prompts[prompt][..blocks.min(6)];
                    match step {
                        Step::Stored(..) => prop_assert!(directory.stored(worker, None, blocks)),
                        _ => directory.assume(worker, blocks, s(0)),
                    }
                    for hash in blocks {
                        model.entry(*hash).or_default().insert(worker);
                    }
                }
                Step::Removed(worker, prompt, block) => {
                    directory.removed(worker, prompts[prompt][block]);
                    model.entry(prompts[prompt][block]).or_default().remove(&worker);
                }
                Step::Leave(worker) => {
                    directory.leave(worker);
                    for holders in model.values_mut() {
                        holders.remove(&worker);
                    }
                }
            }
            for prompt in &prompts {
                let mut expected = BTreeMap::new();
                for worker in (0..4).chain(1020..1024) {
                    let blocks = prompt.iter().take_while(|hash| model.get(hash).is_some_and(|holders| holders.contains(&worker)));
                    let blocks = blocks.count() as u32;
                    if blocks > 0 {
                        expected.insert(worker, blocks);
                    }
                }
                prop_assert_eq!(prefixes(&directory, prompt), expected);
            }
        }
        for worker in (0..4).chain(1020..1024) {
            directory.leave(worker);
        }
        prop_assert_eq!(directory.len(), 0);
    }
}
