//! A batch of commits against the same commits one by one.

use proptest::prelude::*;

use super::*;

/// Reservations in runs, each behind a block of an earlier one or at the start of a sequence; the commits of
/// some of them in some order, some with wrong checksums, some twice.
#[derive(Debug, Clone)]
struct Plan {
    runs: Vec<(Option<prop::sample::Index>, u8)>,
    commits: Vec<(prop::sample::Index, bool)>,
    in_order: bool,
    at_once: usize,
}

fn plan() -> impl Strategy<Value = Plan> {
    let runs = prop::collection::vec((any::<Option<prop::sample::Index>>(), 1u8..9), 1..5);
    let commits = prop::collection::vec((any::<prop::sample::Index>(), prop::bool::weighted(0.1)), 1..40);
    (runs, commits, any::<bool>(), 1usize..50).prop_map(|(runs, commits, in_order, at_once)| Plan {
        runs,
        commits,
        in_order,
        at_once,
    })
}

/// What the commits answer, what is there after them, and what was told of it.
fn run(plan: &Plan, at_once: usize) -> (Vec<BlockStatus>, Vec<BlockStatus>, usize, Vec<Event>) {
    let bench = bench(64);
    let session = bench.open();
    let mut leases = Vec::new();
    for (parent, blocks) in &plan.runs {
        let first = leases.len() as u8;
        let parent = parent.filter(|_| first > 0).map(|parent| parent.index(leases.len()) as u8);
        let run: Vec<u8> = (first..first + blocks).collect();
        for (reserved, n) in bench.reserve(session, parent, &run).iter().zip(run) {
            assert_eq!(reserved.status, Reserved);
            leases.push((reserved.lease, bench.fill(session, reserved.lease, n)));
        }
    }
    let mut commits: Vec<_> = plan.commits.iter().map(|(at, bad)| (at.index(leases.len()), *bad)).collect();
    if plan.in_order {
        commits = (0..leases.len()).map(|at| (at, commits.contains(&(at, true)))).collect();
    }
    let wrong = |bad| if bad { 1 } else { 0 };
    let commits: Vec<_> =
        commits.iter().map(|(at, bad)| (leases[*at].0, Checksum(leases[*at].1.0 ^ wrong(*bad)))).collect();
    let parts = commits.chunks(at_once);
    let answers = parts.flat_map(|part| bench.tenant().commit(session, part).unwrap()).collect();
    let there = (0..leases.len() as u8).flat_map(|n| bench.statuses(session, &[n])).collect();
    let namespace = bench.tenant().namespace_of(session).unwrap();
    let events = namespace.events.read(0, usize::MAX).unwrap().events;
    (answers, there, namespace.index.len(), events)
}

proptest! {
    #[test]
    fn a_batch_is_its_commits_one_by_one(plan in plan()) {
        prop_assert_eq!(run(&plan, plan.at_once), run(&plan, 1));
    }
}

#[test]
fn a_wrong_block_in_a_batch_takes_those_behind_it_along() {
    let bench = bench(64);
    let session = bench.open();
    let reserved = bench.reserve(session, None, &[1, 2, 3, 4, 5]);
    let commit = |at: usize, sum: Checksum| (reserved[at].lease, sum);
    let mut batch: Vec<_> =
        (0..5).map(|at| commit(at, bench.fill(session, reserved[at].lease, at as u8))).collect();
    batch[2].1 = Checksum(batch[2].1.0 ^ 1);
    batch.push(batch[0]);
    let statuses = bench.tenant().commit(session, &batch).unwrap();
    assert_eq!(statuses, [Stored, Stored, ChecksumMismatch, NoParent, NoParent, StaleLease]);
    assert_eq!(bench.statuses(session, &[1, 2, 3]), [Leased, Leased, Missing]);
    assert_eq!(bench.tenant().namespace_of(session).unwrap().index.len(), 2);
    assert_eq!(bench.leases(), (0, 0));
}
