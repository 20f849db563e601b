//! A table: a prompt, workers, and where it must go.

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;

/// 10,000 tokens a second: 100 us each.
fn idle(worker: usize) -> Candidate<'static> {
    Candidate {
        worker,
        queued_tokens: 0,
        streams: 0,
        own_tokens: 0,
        held: &[],
        skip_tokens: 0,
        tokens_per_second: Some(10_000.0),
        step_us: Some(10_000.0),
    }
}

const DRAM: Held = Held { tokens: 900, us_per_token: 2.0, latency_us: 0.0 };
const S3: Held = Held { tokens: 100, us_per_token: 60.0, latency_us: 30_000.0 };

/// The same whatever chance says.
#[track_caller]
fn check(prompt_tokens: u64, candidates: &[Candidate<'_>], worker: usize) {
    for seed in 0..16 {
        let choice =
            choose(prompt_tokens, candidates.iter().copied(), &mut SmallRng::seed_from_u64(seed)).unwrap();
        assert_eq!(choice.worker, worker, "seed {seed}: {choice:?}");
    }
}

#[test]
fn the_parts_are_as_the_formula_says() {
    let candidate = Candidate { queued_tokens: 500, streams: 3, own_tokens: 50, held: &[DRAM], ..idle(0) };
    let got = expected(1_000, &candidate);
    let by_hand = Expected {
        wait_us: 50_000.0,
        compute_us: 5_000.0,
        load_us: 1_800.0,
        crowding_us: 30_000.0,
        load_tokens: 900,
        compute_tokens: 50,
    };
    assert_eq!(got, by_hand);
    assert_eq!(got.cost_us(), 86_800.0);
}

#[test]
fn who_has_the_prefix_gets_the_prompt_until_its_queue_is_longer() {
    let holder = Candidate { own_tokens: 800, ..idle(0) };
    check(1_000, &[holder, idle(1)], 0);
    check(1_000, &[Candidate { queued_tokens: 700, ..holder }, idle(1)], 0);
    check(1_000, &[Candidate { queued_tokens: 900, ..holder }, idle(1)], 1);
}

#[test]
fn what_the_store_has_frees_the_prompt_from_its_worker() {
    let holder = Candidate { own_tokens: 900, queued_tokens: 100, ..idle(0) };
    check(1_000, &[holder, idle(1)], 0);
    check(1_000, &[holder, Candidate { held: &[DRAM], ..idle(1) }], 1);
}

#[test]
fn a_slow_place_is_left_alone_where_computing_is_faster() {
    let both = expected(1_100, &Candidate { held: &[DRAM, S3], ..idle(0) });
    assert_eq!((both.load_tokens, both.compute_tokens), (900, 200));
    let more = Held { tokens: 10_000, ..S3 };
    let both = expected(11_000, &Candidate { held: &[DRAM, more], ..idle(0) });
    assert_eq!((both.load_tokens, both.compute_tokens), (10_900, 100));
    // Behind the slow place there is so much in a fast one that it pays to pass through.
    let far = Held { tokens: 5_000, ..DRAM };
    let all = expected(6_000, &Candidate { held: &[S3, far], ..idle(0) });
    assert_eq!((all.load_tokens, all.compute_tokens), (5_100, 900));
}

#[test]
fn what_is_in_its_own_memory_is_not_loaded() {
    let behind = Candidate { own_tokens: 300, held: &[DRAM, S3], skip_tokens: 300, ..idle(0) };
    let got = expected(1_000, &behind);
    assert_eq!((got.load_tokens, got.compute_tokens, got.load_us), (600, 100, 1_200.0));
    let all = Candidate { own_tokens: 950, skip_tokens: 950, ..behind };
    assert_eq!(expected(1_000, &all).load_tokens, 0);
}

#[test]
fn the_last_token_is_computed_in_any_case() {
    let whole = Held { tokens: 5_000, ..DRAM };
    let got = expected(1_000, &Candidate { held: &[whole], ..idle(0) });
    assert_eq!((got.load_tokens, got.compute_tokens), (999, 1));
    let got = expected(1_000, &Candidate { own_tokens: 1_000, held: &[whole], ..idle(0) });
    assert_eq!((got.load_tokens, got.compute_tokens), (0, 1));
}

#[test]
fn streams_crowd_and_equals_share() {
    check(1_000, &[Candidate { streams: 2, ..idle(0) }, idle(1)], 1);
    let nearly = Candidate { tokens_per_second: Some(10_050.0), ..idle(2) };
    let workers = [idle(0), idle(1), nearly];
    let mut chosen = [0; 3];
    let mut rng = SmallRng::seed_from_u64(1);
    for _ in 0..300 {
        chosen[choose(1_000, workers, &mut rng).unwrap().worker] += 1;
    }
    assert!(chosen.iter().all(|count| *count > 60), "{chosen:?}");
}

#[test]
fn a_worker_that_was_never_measured_is_tried() {
    let new = Candidate { tokens_per_second: None, step_us: None, ..idle(1) };
    let odd = Candidate { tokens_per_second: Some(f64::NAN), step_us: Some(-1.0), ..idle(1) };
    for new in [new, odd] {
        check(1_000, &[Candidate { streams: 1, ..idle(0) }, new], 1);
        check(1_000, &[Candidate { queued_tokens: 100, ..idle(0) }, new], 1);
        check(1_000, &[idle(0), Candidate { queued_tokens: 100, ..new }], 0);
    }
}

#[test]
fn numbers_that_make_no_sense_are_only_dear() {
    let odd = Held { tokens: u64::MAX, us_per_token: f64::NAN, latency_us: -1.0 };
    let worker = Candidate {
        queued_tokens: u64::MAX,
        streams: u32::MAX,
        own_tokens: u64::MAX,
        held: &[odd, odd],
        tokens_per_second: Some(0.0),
        step_us: Some(f64::NAN),
        ..idle(0)
    };
    check(u64::MAX, &[worker, idle(1)], 1);
    check(10, &[worker, idle(1)], 1);
    let got = expected(1_000, &Candidate { held: &[odd], ..idle(0) });
    assert_eq!((got.load_tokens, got.compute_tokens), (0, 1_000));
    assert!(choose(0, [worker], &mut SmallRng::seed_from_u64(1)).unwrap().expected.cost_us().is_finite());
    assert_eq!(choose(10, [], &mut SmallRng::seed_from_u64(1)), None);
}

/// Those that may be chosen, by the module's words: every cost, the least, those near it with the fewest streams; or the
/// preferred one, if it is near.
fn eligible(prompt_tokens: u64, candidates: &[Candidate<'_>], preferred: Option<usize>) -> Vec<usize> {
    let known = |value: Option<f64>| value.filter(|value| value.is_finite() && *value > 0.0);
    let rates = candidates.iter().filter_map(|candidate| known(candidate.tokens_per_second));
    let steps = candidates.iter().filter_map(|candidate| known(candidate.step_us));
    let (fastest, shortest) = (rates.reduce(f64::max), steps.reduce(f64::min));
    let cost = |candidate: &Candidate<'_>| {
        let tokens_per_second = known(candidate.tokens_per_second).or(fastest);
        let step_us = known(candidate.step_us).or(shortest);
        expected(prompt_tokens, &Candidate { tokens_per_second, step_us, ..*candidate }).cost_us()
    };
    let least = candidates.iter().map(cost).fold(f64::INFINITY, f64::min);
    let near = |candidate: &&Candidate<'_>, by: f64| cost(candidate) <= least * (1.0 + by);
    let kept = candidates.iter().filter(|candidate| preferred == Some(candidate.worker));
    if let Some(kept) = kept.clone().find(|candidate| near(candidate, NEAR)) {
        return vec![kept.worker];
    }
    let equal = candidates.iter().filter(|candidate| near(candidate, TIE));
    let fewest = equal.clone().map(|candidate| candidate.streams).min();
    equal.filter(|candidate| Some(candidate.streams) == fewest).map(|candidate| candidate.worker).collect()
}

#[test]
fn any_of_the_cheapest_is_chosen_and_no_other() {
    let held = [&[][..], &[DRAM], &[S3, DRAM], &[DRAM, S3, DRAM]];
    let mut several = 0;
    for seed in 0..2_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        // Few values, so that many are equal.
        let prompt_tokens = rng.random_range(0..2_000);
        let candidates: Vec<_> = (0..rng.random_range(1..40))
            .map(|worker| Candidate {
                worker,
                queued_tokens: 500 * rng.random_range(0..3),
                streams: rng.random_range(0..3),
                own_tokens: 400 * rng.random_range(0..4),
                held: held[rng.random_range(0..held.len())],
                skip_tokens: 400 * rng.random_range(0..2),
                tokens_per_second: [None, Some(f64::NAN), Some(9_900.0), Some(10_000.0)]
                    [rng.random_range(0..4)],
                step_us: [None, Some(-1.0), Some(100.0), Some(9_950.0)][rng.random_range(0..4)],
            })
            .collect();
        let preferred = rng.random_bool(0.3).then(|| rng.random_range(0..40));
        let eligible = eligible(prompt_tokens, &candidates, preferred);
        let mut chosen = vec![0; candidates.len()];
        for _ in 0..60 * eligible.len() {
            let mut round = Round::new(prompt_tokens, preferred);
            candidates.iter().for_each(|candidate| round.offer(*candidate));
            let choice = round.choose(&mut rng).unwrap();
            chosen[choice.worker] += 1;
        }
        several += usize::from(eligible.len() > 1);
        for (worker, count) in chosen.into_iter().enumerate() {
            assert_eq!(
                count > 0,
                eligible.contains(&worker),
                "seed {seed}, worker {worker} of {eligible:?}: {candidates:?}"
            );
            assert!(count == 0 || count > 20, "seed {seed}: {count} of 60 expected for worker {worker}");
        }
    }
    assert!(several > 200, "{several} of 2,000 have equals");
}
