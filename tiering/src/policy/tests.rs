//! Tests of the policies: cases, and oracles that look at every block for every answer.

mod oracles;
mod order;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::adaptive::Adaptive;
use super::{GhostBoard, Policy, PolicyKind, TailFirstLru, Weight, build};

/// Tail-first LRU as its definition reads, in linear time.
#[derive(Default)]
struct NaiveLru {
    blocks: BTreeMap<u8, Naive>,
    uses: u64,
}

#[derive(Clone)]
struct Naive {
    parent: Option<u8>,
    demoted: bool,
    /// When it was used; of blocks used at one moment the deeper one in the prefix counts as older.
    last_use: (u64, std::cmp::Reverse<usize>),
}

impl NaiveLru {
    fn renew(&mut self, prefix: &[u8]) {
        self.uses += 1;
        for (depth, key) in prefix.iter().enumerate() {
            if let Some(block) = self.blocks.get_mut(key) {
                block.demoted = false;
                block.last_use = (self.uses, std::cmp::Reverse(depth));
            }
        }
    }

    /// Blocks with nothing resident behind them, the oldest first.
    fn tails(&self) -> Vec<u8> {
        let parents: BTreeSet<_> = self.blocks.values().filter_map(|block| block.parent).collect();
        let mut tails: Vec<_> = self.blocks.keys().copied().filter(|key| !parents.contains(key)).collect();
        tails.sort_by_key(|key| (!self.blocks[key].demoted, self.blocks[key].last_use));
        tails
    }
}

impl Policy<u8> for NaiveLru {
    fn insert(&mut self, key: u8, parent: Option<u8>, _: Weight) {
        self.blocks.entry(key).or_insert(Naive {
            parent,
            demoted: false,
            last_use: (0, std::cmp::Reverse(0)),
        });
        self.renew(&[key]);
    }

    fn touch(&mut self, prefix: &[u8]) {
        self.renew(prefix);
    }

    fn remove(&mut self, key: u8) -> bool {
        self.blocks.remove(&key).is_some()
    }

    fn victim(&mut self, may_evict: &mut dyn FnMut(&u8) -> bool) -> Option<u8> {
        for key in self.tails() {
            if may_evict(&key) {
                return Some(key);
            }
            self.renew(&[key]);
        }
        None
    }

    fn demote(&mut self, key: u8) {
        self.uses += 1;
        if let Some(block) = self.blocks.get_mut(&key) {
            block.demoted = true;
            block.last_use = (self.uses, std::cmp::Reverse(0));
        }
    }

    fn upcoming(&self, blocks: usize) -> Vec<u8> {
        let mut copy = Self { blocks: self.blocks.clone(), uses: self.uses };
        let gone = std::iter::from_fn(|| {
            let victim = copy.tails().first().copied()?;
            copy.blocks.remove(&victim);
            Some(victim)
        });
        gone.take(blocks).collect()
    }

    fn set_capacity(&mut self, _: usize) {}

    fn contains(&self, key: &u8) -> bool {
        self.blocks.contains_key(key)
    }

    fn parent(&self, key: &u8) -> Option<u8> {
        self.blocks.get(key)?.parent
    }

    fn len(&self) -> usize {
        self.blocks.len()
    }
}

const KEYS: u8 = 24;
/// What the policies are told; no test keeps to it.
const CAPACITY: usize = 10;

fn weight(key: u8) -> Weight {
    Weight { bytes: 1 + u32::from(key % 3), cost: 1 + u32::from(key % 5) }
}

fn policy(kind: PolicyKind) -> Box<dyn Policy<u8>> {
    build::<u8, RandomState>(kind, CAPACITY)
}

#[derive(Debug, Clone)]
enum Op {
    Insert {
        key: u8,
    },
    /// The first blocks of the path that ends in `tip`.
    Touch {
        tip: u8,
        blocks: usize,
    },
    Remove {
        key: u8,
    },
    Demote {
        key: u8,
    },
    /// What goes next.
    Upcoming {
        blocks: usize,
    },
    /// Asks for a victim while some blocks are leased, and drops it or not.
    Evict {
        leased: BTreeSet<u8>,
        drop: bool,
    },
    /// Drops victims until there are none.
    EvictAll {
        leased: BTreeSet<u8>,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let leased = || proptest::collection::btree_set(0..KEYS, 0..12);
    prop_oneof![
        8 => (0..KEYS).prop_map(|key| Op::Insert { key }),
        3 => (0..KEYS, 0..12usize).prop_map(|(tip, blocks)| Op::Touch { tip, blocks }),
        2 => (0..KEYS).prop_map(|key| Op::Remove { key }),
        1 => (0..KEYS).prop_map(|key| Op::Demote { key }),
        1 => (0..40usize).prop_map(|blocks| Op::Upcoming { blocks }),
        5 => (leased(), any::<bool>()).prop_map(|(leased, drop)| Op::Evict { leased, drop }),
        1 => leased().prop_map(|leased| Op::EvictAll { leased }),
    ]
}

/// A forest: the parent of each block, which has a lower number.
fn forest() -> impl Strategy<Value = Vec<Option<u8>>> {
    let parent = |key: u8| match key {
        0 => Just(None).boxed(),
        _ => prop_oneof![1 => Just(None), 6 => Just(Some(key - 1)), 4 => (0..key).prop_map(Some)].boxed(),
    };
    (0..KEYS).map(parent).collect::<Vec<_>>()
}

fn path(forest: &[Option<u8>], tip: u8) -> Vec<u8> {
    let mut path: Vec<_> = std::iter::successors(Some(tip), |key| forest[usize::from(*key)]).collect();
    path.reverse();
    path
}

/// Asks for a victim and notes who was asked about.
fn ask(policy: &mut dyn Policy<u8>, leased: &BTreeSet<u8>) -> (Option<u8>, Vec<u8>) {
    let mut asked = vec![];
    let victim = policy.victim(&mut |key| {
        asked.push(*key);
        !leased.contains(key)
    });
    (victim, asked)
}

/// Does it, and returns all that could be seen of it.
fn apply(policy: &mut dyn Policy<u8>, forest: &[Option<u8>], op: &Op) -> Vec<(Option<u8>, Vec<u8>)> {
    match op {
        Op::Insert { key } => policy.insert(*key, forest[usize::from(*key)], weight(*key)),
        Op::Touch { tip, blocks } => {
            let path = path(forest, *tip);
            policy.touch(&path[..(*blocks).min(path.len())]);
        }
        Op::Demote { key } => policy.demote(*key),
        Op::Upcoming { blocks } => return vec![(None, policy.upcoming(*blocks))],
        Op::Remove { key } => return vec![(policy.remove(*key).then_some(*key), vec![])],
        Op::Evict { leased, drop } => {
            let answer = ask(policy, leased);
            if let (Some(victim), true) = (answer.0, drop) {
                assert!(policy.remove(victim));
            }
            return vec![answer];
        }
        Op::EvictAll { leased } => {
            let mut answers = vec![];
            loop {
                answers.push(ask(policy, leased));
                match answers.last() {
                    Some((Some(victim), _)) => assert!(policy.remove(*victim)),
                    _ => return answers,
                }
            }
        }
    }
    vec![]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_those_of_the_definition(
        forest in forest(),
        ops in proptest::collection::vec(op(), 1..100),
    ) {
        let mut lru = TailFirstLru::<u8>::new();
        let mut naive = NaiveLru::default();
        for op in &ops {
            assert_eq!(apply(&mut lru, &forest, op), apply(&mut naive, &forest, op), "{op:?}");
            assert_eq!(lru.len(), naive.len());
            assert_eq!(lru.is_empty(), naive.is_empty());
        }
        let all = Op::EvictAll { leased: BTreeSet::new() };
        assert_eq!(apply(&mut lru, &forest, &all), apply(&mut naive, &forest, &all));
        assert!(lru.is_empty(), "a block can't be evicted any more");
    }
}

/// Compares a policy with an oracle that answers all but `upcoming`.
fn apply_and_compare(kind: PolicyKind, naive: &mut dyn Policy<u8>, forest: &[Option<u8>], ops: &[Op]) {
    let mut real = policy(kind);
    for op in ops {
        match op {
            Op::Upcoming { .. } => check_upcoming(real.as_ref(), forest),
            _ => assert_eq!(apply(real.as_mut(), forest, op), apply(naive, forest, op), "{kind}: {op:?}"),
        }
        assert_eq!(real.len(), naive.len());
        for key in 0..KEYS {
            assert_eq!(real.contains(&key), naive.contains(&key));
            assert_eq!(real.parent(&key), naive.parent(&key));
        }
    }
    let all = Op::EvictAll { leased: BTreeSet::new() };
    assert_eq!(apply(real.as_mut(), forest, &all), apply(naive, forest, &all));
    assert!(real.is_empty(), "a block can't be evicted any more");
}

/// All that is resident comes up, children before their parents.
fn check_upcoming(policy: &dyn Policy<u8>, forest: &[Option<u8>]) {
    let all = policy.upcoming(usize::MAX);
    let place: BTreeMap<_, _> = all.iter().enumerate().map(|(place, key)| (*key, place)).collect();
    assert_eq!((all.len(), place.len()), (policy.len(), policy.len()), "{all:?}");
    for (key, at) in &place {
        assert!(policy.contains(key));
        let above = forest[usize::from(*key)].and_then(|parent| place.get(&parent));
        assert!(above.is_none_or(|above| above > at), "{key} comes after its parent: {all:?}");
    }
    for blocks in 0..all.len() {
        assert_eq!(policy.upcoming(blocks), all[..blocks]);
    }
}

/// Asserts closure for whatever a policy gives away.
fn check_victims(policy: &dyn Policy<u8>, forest: &[Option<u8>], victim: Option<u8>, leased: &BTreeSet<u8>) {
    let child =
        |key: u8| (0..KEYS).find(|child| forest[usize::from(*child)] == Some(key) && policy.contains(child));
    match victim {
        Some(victim) => {
            assert!(policy.contains(&victim) && !leased.contains(&victim));
            assert_eq!(child(victim), None, "{victim} has a resident child");
        }
        None => {
            let free =
                (0..KEYS).find(|key| policy.contains(key) && !leased.contains(key) && child(*key).is_none());
            assert_eq!(free, None, "could have gone");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_victim_has_a_resident_child(
        forest in forest(),
        ops in proptest::collection::vec((op(), 0..PolicyKind::FIXED.len() * 8), 1..150),
    ) {
        for kind in PolicyKind::ALL {
            let mut real = Adaptive::<u8, RandomState>::among(&[kind]);
            real.set_capacity(CAPACITY);
            for (op, change) in &ops {
                if let (PolicyKind::Adaptive, Some(to)) = (kind, PolicyKind::FIXED.get(*change)) {
                    real.change(*to);
                }
                match op {
                    Op::Evict { leased, drop } => {
                        let victim = ask(&mut real, leased).0;
                        check_victims(&real, &forest, victim, leased);
                        if let (Some(victim), true) = (victim, drop) {
                            assert!(real.remove(victim));
                        }
                    }
                    Op::Upcoming { .. } => check_upcoming(&real, &forest),
                    _ => drop(apply(&mut real, &forest, op)),
                }
            }
            let all = Op::EvictAll { leased: BTreeSet::new() };
            apply(&mut real, &forest, &all);
            assert!(real.is_empty(), "{kind}");
        }
    }

    /// One that is asked about twice in a call costs its owner twice.
    #[test]
    fn a_block_is_asked_about_once_a_call(
        forest in forest(),
        ops in proptest::collection::vec(op(), 1..150),
    ) {
        for kind in PolicyKind::ALL {
            let mut real = policy(kind);
            for op in &ops {
                let leased = match op {
                    Op::Evict { leased, .. } => leased.clone(),
                    _ => (0..KEYS).collect(),
                };
                let mut asked = ask(real.as_mut(), &leased).1;
                let count = asked.len();
                asked.sort_unstable();
                asked.dedup();
                assert_eq!(asked.len(), count, "{kind}");
                apply(real.as_mut(), &forest, op);
            }
        }
    }
}

#[test]
fn policies_have_names() {
    for kind in PolicyKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    let unknown = "mru".parse::<PolicyKind>().unwrap_err().to_string();
    assert!(unknown.contains("\"mru\"") && unknown.contains("density, lru"), "{unknown}");
}

#[test]
fn the_adaptive_policy_hands_over_to_what_hits_more() {
    const CAPACITY: u64 = 20_000;
    let mut policy = Adaptive::<u64, std::hash::BuildHasherDefault<std::hash::DefaultHasher>>::among(&[
        PolicyKind::Lru,
        PolicyKind::Lfu,
    ]);
    policy.set_capacity(CAPACITY as usize);
    // Some blocks are used three times in a row now and then, and between more comes in than the tier holds.
    for round in 1..40 {
        let often = (0..3).flat_map(|_| 0..3000);
        for key in often.chain(round * 40_000..(round + 1) * 40_000) {
            if policy.contains(&key) {
                policy.touch(&[key]);
                continue;
            }
            while policy.len() >= CAPACITY as usize {
                let victim = policy.victim(&mut |_| true).unwrap();
                assert!(policy.remove(victim));
            }
            policy.insert(key, None, Weight::default());
        }
    }
    let rates = policy.ghost_rates();
    assert_eq!(policy.kind(), PolicyKind::Lfu, "{rates:?}");
    // Of 49,000 uses a round LRU hits 6,000 and LFU 9,000. One block in 32 is looked at.
    assert!(
        (rates[0].hit_rate - 0.122).abs() < 0.03 && (rates[1].hit_rate - 0.184).abs() < 0.03,
        "{rates:?}"
    );
}

#[test]
fn ghosts_are_a_sample_that_tells_the_rate_of_the_whole() {
    check_ghost(8192, 12, 0.05);
}

#[test]
fn a_small_tier_is_followed_as_a_whole() {
    check_ghost(256, 17, 0.02);
}

/// Uses of keys that are products of two uniform numbers of 15 bits without their last `shift` bits: small ones are
/// frequent.
fn check_ghost(capacity: usize, shift: u32, tolerance: f64) {
    let mut board = GhostBoard::<u64, RandomState>::new(&[PolicyKind::Lru], capacity);
    assert!(!board.is_warm());
    let mut real = build::<u64, RandomState>(PolicyKind::Lru, capacity);
    let (mut random, mut hits, mut uses) = (1u64, 0, 0);
    for step in 0..200_000u64 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = (((random >> 33) & 0x7fff) * ((random >> 48) & 0x7fff)) >> shift;
        let is_hit = real.contains(&key);
        if step >= 150_000 {
            hits += u32::from(is_hit);
            uses += 1;
        }
        if is_hit {
            board.touch(&[key]);
            real.touch(&[key]);
            continue;
        }
        if real.len() == capacity {
            let victim = real.victim(&mut |_| true).unwrap();
            real.remove(victim);
        }
        board.insert(key, None, Weight::default());
        real.insert(key, None, Weight::default());
    }
    let (rate, exact) = (board.rates()[0].hit_rate, f64::from(hits) / f64::from(uses));
    assert!(board.is_warm() && (rate - exact).abs() < tolerance, "{rate} {exact}");
}

/// Plays a script of `+key<parent`, `+key`, `-key` and `=keys` (touch), then drops victims until there are
/// none but those in `leased`, and returns their order.
fn victims(script: &str, leased: &str) -> String {
    let mut lru = TailFirstLru::<u8>::new();
    for step in script.split_whitespace() {
        match step.as_bytes() {
            [b'+', key] => lru.insert(*key, None, Weight::default()),
            [b'+', key, b'<', parent] => lru.insert(*key, Some(*parent), Weight::default()),
            [b'-', key] => assert!(lru.remove(*key)),
            [b'=', prefix @ ..] => lru.touch(prefix),
            _ => panic!("unknown step {step}"),
        }
    }
    let mut order = String::new();
    while let Some(victim) = lru.victim(&mut |key| !leased.as_bytes().contains(key)) {
        assert!(lru.remove(victim));
        order.push(char::from(victim));
    }
    order
}

#[test]
fn tails_go_first_and_the_oldest_of_them() {
    for (script, leased, order) in [
        ("", "", ""),
        ("+a +b +c", "", "abc"),
        ("+a +b +c =a", "", "bca"),
        ("+a +b<a +c<b", "", "cba"),
        ("+a +b<a +c<b +x", "", "cbax"),
        ("+a +b<a +x =ab", "", "xba"),
        ("+a +b<a +c<a =ac", "", "bca"),
        ("+a +b<a +c<a =abz", "", "cba"),
        ("+a +b +c", "b", "ac"),
        ("+a +b<a +c<b", "c", ""),
        ("+a +b<a +c<b", "b", "c"),
        ("+a +b<a -a", "", "b"),
        ("+a +b<a -a +x +a", "", "bxa"),
        ("+b<a +x +a", "", "bxa"),
        ("+a +b<a -b +x", "", "ax"),
        ("+a +b +a", "", "ba"),
    ] {
        assert_eq!(victims(script, leased), order, "{script}, leased {leased}");
    }
}

#[test]
fn a_refused_tail_is_not_asked_about_for_every_victim() {
    const LEASED: u32 = 1000;
    let mut lru = TailFirstLru::<u32>::new();
    (0..2 * LEASED).for_each(|key| lru.insert(key, None, Weight::default()));
    let mut asked = 0;
    for expect in LEASED..2 * LEASED {
        let victim = lru.victim(&mut |key| {
            asked += 1;
            *key >= LEASED
        });
        assert_eq!(victim, Some(expect));
        assert!(lru.remove(expect));
    }
    assert_eq!(asked, 2 * LEASED, "each leased block once, and each victim once");
}
