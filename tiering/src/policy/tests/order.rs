//! The order of a tier against what it promises, looked up block by block.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::time::Duration;

use proptest::prelude::*;

use super::super::{Attributes, Order, PolicyKind, Weight, Why};
use super::{KEYS, forest, path, weight};

#[derive(Debug, Clone)]
enum Op {
    Insert {
        key: u8,
        priority: u8,
        /// In seconds from now.
        ttl: Option<u64>,
    },
    Touch {
        tip: u8,
    },
    Remove {
        key: u8,
    },
    Demote {
        key: u8,
    },
    SetPriority {
        key: u8,
        priority: u8,
    },
    SetExpiry {
        key: u8,
        ttl: Option<u64>,
    },
    SetQuota {
        group: u64,
        bytes: Option<u64>,
    },
    Wait {
        seconds: u64,
    },
    Evict {
        leased: BTreeSet<u8>,
        drop: bool,
    },
    EvictOf {
        group: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..KEYS;
    let ttl = || proptest::option::weighted(0.3, 0..20u64);
    let leased = || proptest::collection::btree_set(0..KEYS, 0..8);
    let quota = || proptest::option::weighted(0.8, 0..12u64);
    prop_oneof![
        8 => (key(), 0..3u8, ttl()).prop_map(|(key, priority, ttl)| Op::Insert { key, priority, ttl }),
        3 => key().prop_map(|tip| Op::Touch { tip }),
        2 => key().prop_map(|key| Op::Remove { key }),
        1 => key().prop_map(|key| Op::Demote { key }),
        1 => (key(), 0..3u8).prop_map(|(key, priority)| Op::SetPriority { key, priority }),
        1 => (key(), ttl()).prop_map(|(key, ttl)| Op::SetExpiry { key, ttl }),
        1 => (0..3u64, quota()).prop_map(|(group, bytes)| Op::SetQuota { group, bytes }),
        1 => (1..10u64).prop_map(|seconds| Op::Wait { seconds }),
        5 => (leased(), any::<bool>()).prop_map(|(leased, drop)| Op::Evict { leased, drop }),
        1 => (0..3u64).prop_map(|group| Op::EvictOf { group }),
    ]
}

/// What is resident, and since when a lease stood against expiry.
#[derive(Default)]
struct Model {
    blocks: BTreeMap<u8, Attributes>,
    quotas: BTreeMap<u64, u64>,
    refused: BTreeMap<u8, Duration>,
    now: Duration,
}

/// The group of a block: that of its sequence.
fn group(forest: &[Option<u8>], key: u8) -> u64 {
    u64::from(path(forest, key)[0]) % 3
}

impl Model {
    fn bytes(&self, group: u64) -> u64 {
        let of_group = self.blocks.values().filter(|block| block.group == group);
        of_group.map(|block| u64::from(block.weight.bytes)).sum()
    }

    fn over(&self) -> BTreeSet<u64> {
        self.quotas
            .iter()
            .filter(|(group, quota)| self.bytes(**group) > **quota)
            .map(|(group, _)| *group)
            .collect()
    }

    /// Tails that may go.
    fn free(&self, forest: &[Option<u8>], leased: &BTreeSet<u8>) -> BTreeMap<u8, Attributes> {
        let is_parent = |key: u8| self.blocks.keys().any(|child| forest[usize::from(*child)] == Some(key));
        let free = |(key, _): &(&u8, _)| !leased.contains(*key) && !is_parent(**key);
        self.blocks.iter().filter(free).map(|(key, block)| (*key, *block)).collect()
    }

    /// Whether a block is due, and was not found leased just now.
    fn is_expired(&self, key: u8, block: &Attributes) -> bool {
        let due = block.expires_at.is_some_and(|at| at <= self.now);
        let rests = self.refused.get(&key).is_some_and(|until| *until > self.now);
        due && !rests
    }

    fn check(&self, forest: &[Option<u8>], leased: &BTreeSet<u8>, victim: Option<(u8, Why)>) {
        let free = self.free(forest, leased);
        let expired: Vec<_> = free.iter().filter(|(key, block)| self.is_expired(**key, block)).collect();
        let over = self.over();
        let over: Vec<_> = free.values().filter(|block| over.contains(&block.group)).collect();
        let Some((key, why)) = victim else {
            assert!(free.is_empty(), "{free:?} could have gone");
            return;
        };
        let block = &free[&key];
        let lowest = |priorities: &mut dyn Iterator<Item = u8>| priorities.min();
        match why {
            Why::Expired => assert!(block.expires_at.is_some_and(|at| at <= self.now), "{key} is not due"),
            Why::Quota => {
                assert!(expired.is_empty() && self.over().contains(&block.group), "{expired:?} {over:?}");
                let of_group = |other: &&&Attributes| other.group == block.group;
                let mut priorities = over.iter().filter(of_group).map(|other| other.priority);
                assert_eq!(Some(block.priority), lowest(&mut priorities));
            }
            Why::Policy => {
                assert!(expired.is_empty() && over.is_empty(), "{expired:?} {over:?}");
                let mut priorities = free.values().map(|other| other.priority);
                assert_eq!(Some(block.priority), lowest(&mut priorities));
            }
        }
    }
}

/// Half of the keys have the hash of another.
#[derive(Default)]
struct Colliding(u64);

impl Hasher for Colliding {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = u64::from(byte / 2));
    }
}

fn run<H: BuildHasher + Default + Send + 'static>(kind: PolicyKind, forest: &[Option<u8>], ops: &[Op]) {
    let mut order = Order::<u8, H>::new(kind, 10);
    order.watch_ghosts();
    let mut model = Model::default();
    for op in ops {
        match op {
            Op::Insert { key, priority, ttl } => {
                let attributes = Attributes {
                    group: group(forest, *key),
                    weight: weight(*key),
                    priority: *priority,
                    expires_at: ttl.map(|ttl| model.now + Duration::from_secs(ttl)),
                };
                order.insert(*key, forest[usize::from(*key)], attributes);
                model.blocks.entry(*key).or_insert(attributes);
            }
            Op::Touch { tip } => order.touch(&path(forest, *tip)),
            Op::Remove { key } => {
                assert_eq!(order.remove(*key), model.blocks.remove(key).is_some());
                model.refused.remove(key);
            }
            Op::Demote { key } => order.demote(*key),
            Op::SetPriority { key, priority } => {
                order.set_priority(*key, *priority);
                model.blocks.entry(*key).and_modify(|block| block.priority = *priority);
            }
            Op::SetExpiry { key, ttl } => {
                let expires_at = ttl.map(|ttl| model.now + Duration::from_secs(ttl));
                order.set_expiry(*key, expires_at);
                model.blocks.entry(*key).and_modify(|block| block.expires_at = expires_at);
                model.refused.remove(key);
            }
            Op::SetQuota { group, bytes: Some(bytes) } => {
                order.set_quota(*group, *bytes);
                model.quotas.insert(*group, *bytes);
            }
            Op::SetQuota { group, bytes: None } => {
                order.clear_quota(*group);
                model.quotas.remove(group);
            }
            Op::Wait { seconds } => model.now += Duration::from_secs(*seconds),
            Op::Evict { leased, drop } => {
                let mut refused = BTreeSet::new();
                let victim = order.victim(model.now, &mut |key| {
                    let may = !leased.contains(key);
                    if !may {
                        refused.insert(*key);
                    }
                    may
                });
                model.check(forest, leased, victim);
                for key in refused {
                    if model.is_expired(key, &model.blocks[&key]) {
                        model.refused.insert(key, model.now + Duration::from_secs(1));
                    }
                }
                if let (Some((key, _)), true) = (victim, drop) {
                    assert!(order.remove(key));
                    model.blocks.remove(&key);
                }
            }
            Op::EvictOf { group } => {
                let free = model.free(forest, &BTreeSet::new());
                let of_group = free.values().filter(|block| block.group == *group);
                let lowest = of_group.map(|block| block.priority).min();
                let victim = order.victim_of(*group, &mut |_| true);
                if model.quotas.contains_key(group) {
                    assert_eq!(victim.map(|key| free[&key].priority), lowest);
                } else {
                    assert_eq!(victim, None);
                }
            }
        }
        assert_eq!(order.len(), model.blocks.len());
        assert_eq!(order.bytes(), (0..3).map(|group| model.bytes(group)).sum::<u64>());
        for group in 0..3 {
            assert_eq!(order.group_bytes(group), model.bytes(group));
            assert_eq!(order.over_quota(group, 0), model.over().contains(&group));
        }
        for key in 0..KEYS {
            assert_eq!(order.attributes(&key), model.blocks.get(&key));
        }
        let upcoming = order.upcoming(usize::MAX, &mut |_| true);
        assert_eq!(upcoming.iter().collect::<BTreeSet<_>>().len(), order.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn expiry_then_quota_then_priority_and_closure_always(
        forest in forest(),
        ops in proptest::collection::vec(op(), 1..120),
        kind in 0..PolicyKind::ALL.len(),
    ) {
        run::<RandomState>(PolicyKind::ALL[kind], &forest, &ops);
        run::<BuildHasherDefault<Colliding>>(PolicyKind::ALL[kind], &forest, &ops);
    }
}

#[test]
fn upcoming_goes_class_by_class_and_is_filtered() {
    let mut order = Order::<u8, RandomState>::new(PolicyKind::Lru, 10);
    for (key, priority) in [(1, 1), (2, 0), (3, 0), (4, 1)] {
        order.insert(key, None, Attributes { priority, ..Attributes::default() });
    }
    assert_eq!(order.upcoming(3, &mut |_| true), [2, 3, 1]);
    assert_eq!(order.upcoming(3, &mut |key| *key != 3), [2, 1], "a filter does not look further");
    order.demote(3);
    assert_eq!(order.upcoming(10, &mut |_| true), [3, 2, 1, 4]);
}

#[test]
fn ghosts_are_silent_until_asked_for() {
    let mut order = Order::<u8, RandomState>::new(PolicyKind::default(), 10);
    assert!(order.ghost_rates().is_empty());
    order.watch_ghosts();
    (0..200).for_each(|key| {
        order.insert(key, None, Attributes { weight: Weight::default(), ..Attributes::default() })
    });
    let kinds: Vec<_> = order.ghost_rates().iter().map(|rate| rate.kind).collect();
    assert_eq!(kinds, PolicyKind::FIXED);
}
