//! Threads: changes and lookups on overlapping sequences, compared with what must be left in the end.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{check_invariants, check_parents_first, hash};
use crate::SequenceHash;
use crate::index::{HolderSet, RadixIndex, WorkerSet};

const THREADS: u32 = 4;
const STEPS: usize = 30_000;
const DEPTH: usize = 12;

/// A path in a tree in which three out of four blocks have one child only; few blocks, so threads meet.
fn random_path(rng: &mut SmallRng) -> Vec<SequenceHash> {
    let mut number = 0;
    let mut step = |depth| {
        let branches = if depth % 4 == 0 { 2 } else { 1 };
        number = number * 3 + 1 + rng.random_range(0..branches);
        hash(number)
    };
    (0..DEPTH).map(&mut step).collect()
}

/// One holder's life; returns the blocks it holds in the end. Nobody else adds or removes this holder, so
/// it knows at any time what the index must answer about it.
fn hold(index: &RadixIndex<WorkerSet>, holder: u32, seed: u64) -> HashSet<SequenceHash> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut held = HashSet::new();
    for now in 0..STEPS as u64 {
        let path = random_path(&mut rng);
        let blocks = rng.random_range(1..=DEPTH);
        match rng.random_range(0..10) {
            0..3 => {
                index.insert_run(None, &path[..blocks], holder, now).expect("it starts at the root");
                held.extend(&path[..blocks]);
            }
            3 => {
                // One by one behind what is held already, which so can't go away.
                let known = path.iter().take_while(|hash| held.contains(*hash)).count();
                let mut parent = path[..known].last().copied();
                for hash in &path[known..] {
                    index.insert(parent, *hash, holder, now).expect("the parent is held by this thread");
                    held.insert(*hash);
                    parent = Some(*hash);
                }
            }
            4..8 => {
                for hash in path[blocks - 1..].iter().rev() {
                    assert_eq!(index.remove(*hash, holder), held.remove(hash));
                }
            }
            8 => assert_eq!(index.remove(path[blocks - 1], holder), held.remove(&path[blocks - 1])),
            _ => {
                let known = path.iter().take_while(|hash| held.contains(*hash)).count();
                let prefix = index.longest_prefix(&path, Some(now));
                assert!(prefix.len() >= known, "a block is missing that this thread holds");
                for (hash, holders) in path.iter().zip(prefix) {
                    assert_eq!(holders.contains(holder), held.contains(hash));
                }
            }
        }
    }
    held
}

/// Watches the tree until told to stop; returns how often it looked.
fn watch(index: &RadixIndex<WorkerSet>, stop: &AtomicBool) -> usize {
    let mut looks = 0;
    while looks == 0 || !stop.load(Ordering::Relaxed) {
        let snapshot = index.snapshot();
        check_parents_first(snapshot.iter().map(|entry| (entry.hash, entry.parent)));
        let known: HashSet<_> = snapshot.iter().map(|entry| entry.hash).collect();
        assert!(snapshot.iter().all(|entry| entry.parent.is_none_or(|parent| known.contains(&parent))));
        looks += 1;
    }
    looks
}

/// What one seed leaves behind is what the threads know they hold.
fn check(run_blocks_max: usize, seed: u64) {
    let index = RadixIndex::with(run_blocks_max, usize::MAX);
    let stop = AtomicBool::new(false);
    let held: Vec<HashSet<_>> = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&index, &stop));
        let lives: Vec<_> = (0..THREADS)
            .map(|holder| (holder, &index))
            .map(|(holder, index)| scope.spawn(move || hold(index, holder, seed * 100 + u64::from(holder))))
            .collect();
        let lives: Vec<_> = lives.into_iter().map(|life| life.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(watcher.join().unwrap() > 0);
        lives.into_iter().map(|life| life.unwrap()).collect()
    });
    check_invariants(&index);
    let mut expect: HashMap<SequenceHash, WorkerSet> = HashMap::new();
    for (holder, hashes) in (0..).zip(&held) {
        for hash in hashes {
            expect.entry(*hash).or_default().insert(holder);
        }
    }
    let entries = index.snapshot().into_iter().filter(|entry| !entry.holders.is_empty());
    assert_eq!(entries.map(|entry| (entry.hash, entry.holders)).collect::<HashMap<_, _>>(), expect);
    for holder in 0..THREADS {
        assert_eq!(index.remove_holder(holder), held[holder as usize].len());
    }
    check_invariants(&index);
    assert!(index.is_empty());
}

#[test]
fn threads_leave_what_they_hold() {
    for (run_blocks_max, seed) in [(2, 1), (5, 2), (256, 3)] {
        check(run_blocks_max, seed);
    }
}

#[test]
fn splits_of_one_run_may_cross() {
    const BLOCKS: u64 = 200;
    let trunk: Vec<_> = (0..BLOCKS).map(hash).collect();
    for round in 0..60 {
        let index = RadixIndex::<WorkerSet>::new();
        index.insert_run(None, &trunk, 0, 0).unwrap();
        // Each cuts the trunk anywhere, also in the tail of another's cut while that is still moving.
        let branch = |holder: u32| {
            let mut rng = SmallRng::seed_from_u64(round * 100 + u64::from(holder));
            for _ in 0..BLOCKS {
                let at = rng.random_range(0..BLOCKS);
                let leaf = hash(BLOCKS + at);
                index.insert(Some(trunk[at as usize]), leaf, holder, 0).unwrap();
                assert_eq!(index.longest_prefix(&trunk, None).len(), trunk.len());
                if rng.random() {
                    assert!(index.remove(leaf, holder));
                }
            }
        };
        std::thread::scope(|scope| {
            for holder in 1..=THREADS {
                let branch = &branch;
                scope.spawn(move || branch(holder));
            }
        });
        check_invariants(&index);
        assert_eq!(index.longest_prefix(&trunk, None).len(), trunk.len());
    }
}
