//! The leases of a session against a map that has an entry a lease.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use crate::store::{
    LeaseId,
    lease::{Leases, Right},
};

#[derive(Debug, Clone)]
enum Op {
    Grant { count: usize, ttl: u64 },
    End(Vec<LeaseId>),
    Renew { id: LeaseId, ttl: u64 },
    RenewAll { ttl: u64 },
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    // Ids that were not granted yet, or are long over, among them.
    let id = || 1..60u64;
    prop_oneof![
        3 => (0..9usize, 1..50u64).prop_map(|(count, ttl)| Op::Grant { count, ttl }),
        3 => prop::collection::vec(id(), 0..9).prop_map(Op::End),
        2 => (id(), 0..4usize).prop_map(|(id, count)| Op::End((id..).take(count).collect())),
        2 => (id(), 1..50u64).prop_map(|(id, ttl)| Op::Renew { id, ttl }),
        1 => (1..50u64).prop_map(|ttl| Op::RenewAll { ttl }),
        2 => (0..20u64).prop_map(Op::Pass),
    ]
}

proptest! {
    #[test]
    fn grants_are_leases(ops in prop::collection::vec(op(), 1..60)) {
        let (mut leases, mut oracle) = (Leases::default(), BTreeMap::<LeaseId, u64>::new());
        let (mut now, mut next) = (0, 1);
        for op in ops {
            match op {
                Op::Grant { count, ttl } => {
                    let rights = (0..count).map(|_| Some(Right::Write(None))).collect();
                    leases.grant(next, rights, Duration::from_secs(now), Duration::from_secs(now + ttl));
                    oracle.extend((next..).take(count).map(|id| (id, now + ttl)));
                    next += count as u64 + 1;
                }
                Op::End(ids) => {
                    let (mut ended, mut expected) = (vec![], vec![]);
                    leases.end(&ids, |_| true, |at, _| ended.push(at));
                    for (at, id) in ids.iter().enumerate() {
                        if oracle.remove(id).is_some() {
                            expected.push(at);
                        }
                    }
                    prop_assert_eq!(ended, expected);
                }
                Op::Renew { id, ttl } => {
                    let known = leases.renew(id, Duration::from_secs(now + ttl));
                    prop_assert_eq!(known, oracle.contains_key(&id));
                    oracle.entry(id).and_modify(|at| *at = (now + ttl).max(*at));
                }
                Op::RenewAll { ttl } => {
                    leases.renew_all(Duration::from_secs(now + ttl));
                    oracle.values_mut().for_each(|at| *at = (now + ttl).max(*at));
                }
                Op::Pass(seconds) => {
                    now += seconds;
                    let mut expired: Vec<_> =
                        leases.take_expired(Duration::from_secs(now)).into_iter().map(|(id, _)| id).collect();
                    expired.sort_unstable();
                    let expected: Vec<_> = oracle.extract_if(.., |_, at| *at <= now).map(|(id, _)| id).collect();
                    prop_assert_eq!(expired, expected);
                }
            }
            prop_assert_eq!(leases.counts(), (0, oracle.len()));
            let due = oracle.values().min().map_or(Duration::MAX, |at| Duration::from_secs(*at));
            prop_assert!(leases.due() <= due);
        }
        prop_assert_eq!(leases.take_all().count(), oracle.len());
    }
}
