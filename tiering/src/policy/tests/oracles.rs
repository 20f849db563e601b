//! The policies as their definitions read, in linear time, against the real ones.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::ranked::PARKED_CALLS;
use super::super::{Policy, PolicyKind, Weight};
use super::{CAPACITY, KEYS, apply, apply_and_compare, forest, op, policy, weight};

/// A policy without the care for tails, leases and demotion.
trait Definition: Default + Send {
    fn enter(&mut self, key: u8);
    fn used(&mut self, key: u8);
    fn gone(&mut self, key: u8);
    /// The next to go, of those that may.
    fn pick(&mut self, tails: &BTreeSet<u8>) -> Option<u8>;
}

/// Puts that care around a definition.
#[derive(Default)]
struct Naive<D> {
    parents: BTreeMap<u8, Option<u8>>,
    demoted: Vec<u8>,
    /// With when they come back.
    parked: Vec<(u8, u64)>,
    calls: u64,
    definition: D,
}

impl<D: Definition> Naive<D> {
    fn tails(&self) -> BTreeSet<u8> {
        let parents: BTreeSet<_> = self.parents.values().flatten().copied().collect();
        self.parents.keys().copied().filter(|key| !parents.contains(key)).collect()
    }

    fn forget(&mut self, key: u8) {
        self.demoted.retain(|other| *other != key);
        self.parked.retain(|(other, _)| *other != key);
    }

    fn used(&mut self, key: u8) {
        self.forget(key);
        self.definition.used(key);
    }
}

impl<D: Definition> Policy<u8> for Naive<D> {
    fn insert(&mut self, key: u8, parent: Option<u8>, _: Weight) {
        if self.contains(&key) {
            self.used(key);
            return;
        }
        self.parents.insert(key, parent);
        self.definition.enter(key);
        self.parked.retain(|(other, _)| Some(*other) != parent);
    }

    fn touch(&mut self, prefix: &[u8]) {
        for key in prefix.iter().rev() {
            if self.contains(key) {
                self.used(*key);
            }
        }
    }

    fn remove(&mut self, key: u8) -> bool {
        let was_resident = self.parents.remove(&key).is_some();
        if was_resident {
            self.forget(key);
            self.definition.gone(key);
        }
        was_resident
    }

    fn demote(&mut self, key: u8) {
        if self.contains(&key) {
            self.forget(key);
            self.demoted.push(key);
        }
    }

    fn victim(&mut self, may_evict: &mut dyn FnMut(&u8) -> bool) -> Option<u8> {
        self.calls += 1;
        let calls = self.calls;
        self.parked.retain(|(_, until)| *until > calls);
        let rested = self.parked.clone();
        loop {
            let mut tails = self.tails();
            tails.retain(|key| self.parked.iter().all(|(parked, _)| parked != key));
            let demoted = self.demoted.iter().copied().find(|key| tails.contains(key));
            tails.retain(|key| !self.demoted.contains(key));
            let Some(key) = demoted.or_else(|| self.definition.pick(&tails)) else { break };
            if may_evict(&key) {
                return Some(key);
            }
            if demoted.is_some() {
                self.used(key);
            }
            self.parked.push((key, calls + PARKED_CALLS));
        }
        for (key, _) in rested {
            if may_evict(&key) {
                return Some(key);
            }
            self.forget(key);
            self.parked.push((key, calls + PARKED_CALLS));
        }
        None
    }

    fn upcoming(&self, _: usize) -> Vec<u8> {
        Vec::new()
    }

    fn set_capacity(&mut self, _: usize) {}

    fn contains(&self, key: &u8) -> bool {
        self.parents.contains_key(key)
    }

    fn parent(&self, key: &u8) -> Option<u8> {
        *self.parents.get(key)?
    }

    fn len(&self) -> usize {
        self.parents.len()
    }
}

/// Uses and last use.
#[derive(Default)]
struct Lfu {
    uses: BTreeMap<u8, (u32, u64)>,
    now: u64,
}

impl Definition for Lfu {
    fn enter(&mut self, key: u8) {
        self.uses.insert(key, (0, 0));
        self.used(key);
    }

    fn used(&mut self, key: u8) {
        self.now += 1;
        let (uses, last_use) = self.uses.get_mut(&key).unwrap();
        *uses += 1;
        *last_use = self.now;
    }

    fn gone(&mut self, key: u8) {
        self.uses.remove(&key);
    }

    fn pick(&mut self, tails: &BTreeSet<u8>) -> Option<u8> {
        tails.iter().copied().min_by_key(|key| self.uses[key])
    }
}

#[derive(Default)]
struct Fifo(Vec<u8>);

impl Definition for Fifo {
    fn enter(&mut self, key: u8) {
        self.0.push(key);
    }

    fn used(&mut self, _: u8) {}

    fn gone(&mut self, key: u8) {
        self.0.retain(|other| *other != key);
    }

    fn pick(&mut self, tails: &BTreeSet<u8>) -> Option<u8> {
        self.0.iter().copied().find(|key| tails.contains(key))
    }
}

/// Worth, last use and uses.
#[derive(Default)]
struct Gdsf {
    worth: BTreeMap<u8, (f64, u64, u32)>,
    floor: f64,
    now: u64,
}

impl Definition for Gdsf {
    fn enter(&mut self, key: u8) {
        self.worth.insert(key, (0.0, 0, 0));
        self.used(key);
    }

    fn used(&mut self, key: u8) {
        self.now += 1;
        let uses = self.worth[&key].2 + 1;
        let saved = f64::from(weight(key).cost) / f64::from(weight(key).bytes);
        self.worth.insert(key, (self.floor + f64::from(uses) * saved, self.now, uses));
    }

    fn gone(&mut self, key: u8) {
        self.floor = self.floor.max(self.worth.remove(&key).unwrap().0);
    }

    fn pick(&mut self, tails: &BTreeSet<u8>) -> Option<u8> {
        let order = |a: &u8, b: &u8| self.worth[a].partial_cmp(&self.worth[b]).unwrap();
        tails.iter().copied().min_by(order)
    }
}

/// Lists, the oldest use first.
#[derive(Default)]
struct Arc {
    once: Vec<u8>,
    again: Vec<u8>,
    once_ghosts: Vec<u8>,
    again_ghosts: Vec<u8>,
    once_target: f64,
}

fn take(list: &mut Vec<u8>, key: u8) -> bool {
    let before = list.len();
    list.retain(|other| *other != key);
    list.len() < before
}

fn remember(list: &mut Vec<u8>, key: u8) {
    list.push(key);
    if list.len() > CAPACITY {
        list.remove(0);
    }
}

impl Definition for Arc {
    fn enter(&mut self, key: u8) {
        let (once, again) = (self.once_ghosts.len() as f64, self.again_ghosts.len() as f64);
        if take(&mut self.once_ghosts, key) {
            self.once_target = (self.once_target + f64::max(1.0, again / once)).min(CAPACITY as f64);
            self.again.push(key);
        } else if take(&mut self.again_ghosts, key) {
            self.once_target = (self.once_target - f64::max(1.0, once / again)).max(0.0);
            self.again.push(key);
        } else {
            self.once.push(key);
        }
    }

    fn used(&mut self, key: u8) {
        let _ = take(&mut self.once, key) || take(&mut self.again, key);
        self.again.push(key);
    }

    fn gone(&mut self, key: u8) {
        if take(&mut self.once, key) {
            remember(&mut self.once_ghosts, key);
        } else if take(&mut self.again, key) {
            remember(&mut self.again_ghosts, key);
        }
    }

    fn pick(&mut self, tails: &BTreeSet<u8>) -> Option<u8> {
        let [once, again] =
            [&self.once, &self.again].map(|list| list.iter().copied().find(|key| tails.contains(key)));
        if self.once.len() as f64 > self.once_target { once.or(again) } else { again.or(once) }
    }
}

/// Queues, the front first. A block of the main queue has its uses and the round in which it is at the front.
#[derive(Default)]
struct S3Fifo {
    small: Vec<u8>,
    main: Vec<u8>,
    uses: BTreeMap<u8, (u8, u64)>,
    ghosts: Vec<u8>,
    round: u64,
    /// Blocks of the main queue that came in in this round.
    of_next_round: BTreeSet<u8>,
}

impl S3Fifo {
    fn move_to_main(&mut self, key: u8, uses: u8) {
        self.main.push(key);
        self.of_next_round.insert(key);
        self.uses.insert(key, (uses, self.round + 1));
    }
}

impl Definition for S3Fifo {
    fn enter(&mut self, key: u8) {
        if take(&mut self.ghosts, key) {
            self.move_to_main(key, 0);
        } else {
            self.small.push(key);
        }
    }

    fn used(&mut self, key: u8) {
        if take(&mut self.small, key) {
            self.move_to_main(key, 0);
        } else {
            let (uses, _) = self.uses.get_mut(&key).unwrap();
            *uses = 3.min(*uses + 1);
        }
    }

    fn gone(&mut self, key: u8) {
        if take(&mut self.small, key) {
            remember(&mut self.ghosts, key);
        } else {
            take(&mut self.main, key);
            self.uses.remove(&key);
            self.of_next_round.remove(&key);
        }
    }

    fn pick(&mut self, tails: &BTreeSet<u8>) -> Option<u8> {
        let first = |list: &[u8]| list.iter().copied().find(|key| tails.contains(key));
        loop {
            let from_small = first(&self.small);
            if from_small.is_some() && (self.small.len() > CAPACITY / 10 || first(&self.main).is_none()) {
                return from_small;
            }
            let key = first(&self.main)?;
            if self.of_next_round.contains(&key) {
                self.round += 1;
                self.of_next_round.clear();
            }
            let (uses, round) = self.uses[&key];
            let uses = u64::from(uses).saturating_sub(self.round - round) as u8;
            if uses == 0 {
                return Some(key);
            }
            take(&mut self.main, key);
            self.move_to_main(key, uses - 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn lfu_is_as_defined(forest in forest(), ops in proptest::collection::vec(op(), 1..150)) {
        apply_and_compare(PolicyKind::Lfu, &mut Naive::<Lfu>::default(), &forest, &ops);
    }

    #[test]
    fn fifo_is_as_defined(forest in forest(), ops in proptest::collection::vec(op(), 1..150)) {
        apply_and_compare(PolicyKind::Fifo, &mut Naive::<Fifo>::default(), &forest, &ops);
    }

    #[test]
    fn gdsf_is_as_defined(forest in forest(), ops in proptest::collection::vec(op(), 1..150)) {
        apply_and_compare(PolicyKind::Gdsf, &mut Naive::<Gdsf>::default(), &forest, &ops);
    }

    #[test]
    fn arc_is_as_defined(forest in forest(), ops in proptest::collection::vec(op(), 1..150)) {
        apply_and_compare(PolicyKind::Arc, &mut Naive::<Arc>::default(), &forest, &ops);
    }

    #[test]
    fn s3fifo_is_as_defined(forest in forest(), ops in proptest::collection::vec(op(), 1..150)) {
        apply_and_compare(PolicyKind::S3Fifo, &mut Naive::<S3Fifo>::default(), &forest, &ops);
    }

    /// What `upcoming` finds by walking all ages is what `victim` finds by its cursor.
    #[test]
    fn density_drops_the_lowest_index(
        forest in forest(),
        ops in proptest::collection::vec((op(), 0..200usize), 1..150),
    ) {
        let mut density = policy(PolicyKind::Density);
        for (op, strangers) in &ops {
            // Time passes.
            density.touch(&vec![KEYS; *strangers]);
            apply(density.as_mut(), &forest, op);
            // What was refused comes back.
            for _ in 0..=PARKED_CALLS {
                density.victim(&mut |_| true);
            }
            assert_eq!(density.upcoming(1).first().copied(), density.victim(&mut |_| true));
        }
    }
}
