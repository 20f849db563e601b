//! A decision over a board of servers against the same over the servers themselves, in random states.

use std::{collections::BTreeSet, time::Duration};

use rand::{SeedableRng, rngs::SmallRng};

use super::*;
use crate::{
    backend::{
        BackendSpec,
        board::Board,
        member::{Call, Card, Health},
    },
    expected::choose,
};

/// Servers that are ready, full, lost, failing, or not measured; and the requests that they have in work.
fn servers(rng: &mut SmallRng) -> (Pool, Vec<Call>) {
    let board = Board::new();
    let card = Card { id: "m".into(), name: "m".into(), context_tokens_max: None, owned_by: "test".into() };
    let mut pool = Pool::new(card, board.clone());
    let mut calls = Vec::new();
    // Numbers and seats are not in the order of the places.
    for id in (0..rng.random_range(1..24)).rev().map(|id| 3 * id) {
        let unused = board.seat().unwrap();
        let seat = board.seat().unwrap();
        drop(unused);
        let mut spec = BackendSpec::new(format!("http://127.0.0.1:{}", 1 + id));
        spec.role = [BackendRole::Both, BackendRole::Prefill, BackendRole::Decode][rng.random_range(0..3)];
        spec.requests_max = rng.random_range(1..5);
        spec.store = [None, Some("http://a".into()), Some("http://b".into())][rng.random_range(0..3)].clone();
        let backend = Arc::new(Backend::new(id, spec, seat).unwrap());
        if rng.random_bool(0.9) {
            backend.found(Health::Ready, None);
        }
        for _ in 0..if rng.random_bool(0.8) { 0 } else { rng.random_range(1..5) } {
            backend.failed("refused");
        }
        if rng.random_bool(0.8) {
            backend.learn_first_token(rng.random_range(9_800..10_200), 0, Duration::from_secs(1));
        }
        if rng.random_bool(0.8) {
            backend.learn_steps(1, Duration::from_millis(rng.random_range(9..11)));
        }
        for _ in 0..rng.random_range(0..4) {
            calls.push(Call::begin(&backend, 500 * rng.random_range(0..2), 0));
        }
        pool.push(backend);
    }
    (pool, calls)
}

/// Whoever may be chosen, and which error there is if nobody.
fn by_hand(pool: &Pool, shape: Shape<'_>, part: Part, excluded: &[u32]) -> Result<BTreeSet<u32>, Full> {
    let fit = |backend: &Backend| match part {
        Part::Answer => backend.role() != BackendRole::Prefill,
        Part::Prefill => backend.role() == BackendRole::Prefill,
    };
    let away = |backend: &Backend| excluded.contains(&backend.id) || !backend.is_open();
    let asked: Vec<_> =
        pool.backends().iter().enumerate().filter(|(_, one)| fit(one) && !away(one)).collect();
    let roomy = asked.iter().filter(|(_, one)| one.load().streams < one.spec.requests_max);
    let candidates: Vec<_> = roomy
        .map(|(at, one)| {
            let store =
                one.spec.store.as_ref().and_then(|url| pool.stores().iter().position(|known| known == url));
            Candidate {
                worker: one.id as usize,
                queued_tokens: one.load().queued_tokens,
                streams: one.load().streams,
                own_tokens: shape.own[*at],
                held: store.map_or(&[], |store| &shape.stored[store]),
                skip_tokens: shape.own[*at],
                tokens_per_second: one.terms().tokens_per_second,
                step_us: one.terms().step_us,
            }
        })
        .collect();
    if candidates.is_empty() {
        return Err(if asked.is_empty() { Full::Away } else { Full::Busy });
    }
    // The pure function's own test says that it takes any of the cheapest.
    let mut rng = SmallRng::seed_from_u64(0);
    let draws =
        (0..20 * candidates.len()).filter_map(|_| choose(shape.tokens, candidates.iter().copied(), &mut rng));
    Ok(draws.map(|choice| choice.worker as u32).collect())
}

#[test]
fn a_board_says_what_its_servers_say() {
    let (mut placed, mut errors) = (0, 0);
    for seed in 0..1_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (pool, _calls) = servers(&mut rng);
        let own: Vec<u64> = pool.backends().iter().map(|_| 256 * rng.random_range(0..3)).collect();
        let held = |rng: &mut SmallRng| {
            let tokens = 200 * rng.random_range(0..4);
            vec![Held { tokens, us_per_token: 20.0, latency_us: 100.0 }]
        };
        let stored: Vec<_> = pool.stores().iter().map(|_| held(&mut rng)).collect();
        let shape = Shape { tokens: rng.random_range(1..1_000), own: &own, stored: &stored };
        let excluded: Vec<u32> = (0..rng.random_range(0..3)).map(|_| rng.random_range(0..70)).collect();
        for part in [Part::Answer, Part::Prefill] {
            let expected = by_hand(&pool, shape, part, &excluded);
            for _ in 0..8 {
                match place(&pool, shape, part, None, &excluded, &mut rng) {
                    Ok((backend, choice)) => {
                        placed += 1;
                        assert!(std::ptr::eq(
                            &raw const *backend,
                            &raw const *pool.backends()[choice.worker]
                        ));
                        let may = expected.as_ref().is_ok_and(|expected| expected.contains(&backend.id));
                        assert!(may, "seed {seed}, {part:?}: {} is not among {expected:?}", backend.id);
                    }
                    Err(full) => {
                        errors += 1;
                        assert_eq!(expected, Err(full), "seed {seed}, {part:?}");
                    }
                }
            }
        }
    }
    assert!(placed > 1_000 && errors > 100, "{placed} and {errors} are too few to say anything");
}

#[test]
fn a_session_stays_where_it_was_by_identity() {
    let board = Board::new();
    let card = Card { id: "m".into(), name: "m".into(), context_tokens_max: None, owned_by: "test".into() };
    let mut pool = Pool::new(card, board.clone());
    let new = |id| {
        let spec = BackendSpec::new(format!("http://127.0.0.1:{}", 1 + id));
        let backend = Arc::new(Backend::new(id, spec, board.seat().unwrap()).unwrap());
        backend.found(Health::Ready, None);
        backend
    };
    (0..3).for_each(|id| pool.push(new(id)));
    // One token more is little beside the prompt.
    let _call = Call::begin(&pool.backends()[1], 1, 0);
    let shape = Shape { tokens: 100_000, own: &[0; 3], stored: &[] };
    let mut rng = SmallRng::seed_from_u64(1);
    let preferred = pool.backends()[1].clone();
    let (kept, _) = place(&pool, shape, Part::Answer, Some(&preferred), &[], &mut rng).unwrap();
    assert_eq!(kept.id, 1);
    let gone = new(1);
    let (other, _) = place(&pool, shape, Part::Answer, Some(&gone), &[], &mut rng).unwrap();
    assert_ne!(other.id, 1, "its number is another's now");
}
