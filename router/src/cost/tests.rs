//! A table: a request, a fleet, and who must get it.

use rand::{SeedableRng, rngs::SmallRng};

use super::*;

fn worker(id: usize, role: Role) -> WorkerFacts {
    WorkerFacts {
        id,
        role,
        streams: 0,
        slots: 8,
        pending_tokens: 0,
        chunk_tokens: 128,
        prefill_tokens_per_second: Some(150.0),
        import_block_us: Some(80.0),
        decode_step_us: Some(12_000.0),
    }
}

fn decode(id: usize) -> WorkerFacts {
    worker(id, Role::Decode)
}

fn prefill(id: usize) -> WorkerFacts {
    worker(id, Role::Prefill)
}

fn request(prompt_tokens: u64, matched_tokens: u64) -> RequestFacts {
    RequestFacts { prompt_tokens, matched_tokens, load_us: 0, block_tokens: 16, preferred: None }
}

fn decision(request: RequestFacts, workers: &[WorkerFacts], seed: u64) -> Decision {
    decide(&request, workers, PrefillPolicy::Auto, &mut SmallRng::seed_from_u64(seed)).unwrap()
}

/// The same decision whatever chance says.
#[track_caller]
fn check(request: RequestFacts, workers: &[WorkerFacts], decode: usize, place: Place) {
    for seed in 0..16 {
        let got = decision(request, workers, seed);
        assert_eq!((got.decode, got.prefill), (decode, place), "seed {seed}: {got:?}");
        assert!(got.cost_us.is_finite() && got.cost_us > 0.0);
    }
}

#[test]
fn a_small_uncached_tail_stays_local() {
    check(request(1_020, 1_008), &[decode(0), prefill(1)], 0, Place::Local);
    check(request(12, 0), &[decode(0), prefill(1)], 0, Place::Local);
}

#[test]
fn a_long_uncached_prompt_goes_to_a_prefill_worker() {
    check(request(1_012, 0), &[decode(0), prefill(1)], 0, Place::Remote(1));
    check(request(2_000, 1_008), &[decode(0), prefill(1)], 0, Place::Remote(1));
}

#[test]
fn what_the_store_has_below_its_memory_is_waited_for() {
    let slow = |load_us| RequestFacts { load_us, ..request(1_025, 1_008) };
    let alone = |load_us| decision(slow(load_us), &[decode(0)], 0).cost_us;
    assert_eq!(alone(500_000), alone(0) + 500_000.0);
    // Where a prefill worker loads it, it comes while the decode worker is at other prompts.
    let busy = WorkerFacts { pending_tokens: 300, ..decode(0) };
    check(slow(2_000_000), &[busy, prefill(1)], 0, Place::Remote(1));
}

#[test]
fn without_a_prefill_worker_everything_is_local() {
    check(request(1_012, 0), &[decode(0)], 0, Place::Local);
}

#[test]
fn behind_a_very_long_prefill_queue_local_is_faster() {
    let busy = WorkerFacts { pending_tokens: 20_000, ..prefill(1) };
    check(request(1_012, 0), &[decode(0), busy], 0, Place::Local);
    check(request(1_012, 0), &[decode(0), busy, prefill(2)], 0, Place::Remote(2));
}

#[test]
fn streams_that_would_stall_make_local_dearer() {
    let queue = WorkerFacts { pending_tokens: 1_500, ..prefill(1) };
    check(request(1_012, 0), &[decode(0), queue], 0, Place::Local);
    let crowded = WorkerFacts { streams: 4, ..decode(0) };
    check(request(1_012, 0), &[crowded, queue], 0, Place::Remote(1));
}

#[test]
fn the_less_loaded_decode_worker_is_chosen() {
    let streams = WorkerFacts { streams: 3, ..decode(0) };
    check(request(20, 0), &[streams, decode(1)], 1, Place::Local);
    let pending = WorkerFacts { pending_tokens: 500, ..decode(0) };
    check(request(20, 0), &[pending, decode(1)], 1, Place::Local);
    let full = WorkerFacts { streams: 8, decode_step_us: Some(1.0), ..decode(0) };
    let slower = WorkerFacts { streams: 4, decode_step_us: Some(10.0), ..decode(1) };
    check(request(20, 0), &[full, slower], 1, Place::Local);
}

#[test]
fn a_faster_worker_is_worth_some_company() {
    let fast = WorkerFacts { streams: 1, prefill_tokens_per_second: Some(1_500.0), ..decode(0) };
    check(request(120, 0), &[fast, decode(1)], 0, Place::Local);
}

#[test]
fn equal_workers_share() {
    let workers = [decode(0), decode(1), decode(2)];
    let mut chosen = [0; 3];
    for seed in 0..300 {
        chosen[decision(request(20, 0), &workers, seed).decode] += 1;
    }
    assert!(chosen.iter().all(|&count| count > 60), "{chosen:?}");
}

#[test]
fn rates_that_make_no_sense_count_as_unmeasured() {
    let odd = WorkerFacts {
        prefill_tokens_per_second: Some(0.0),
        import_block_us: Some(f64::NAN),
        decode_step_us: Some(-1.0),
        ..decode(0)
    };
    check(request(1_012, 512), &[odd], 0, Place::Local);
    let unmeasured =
        WorkerFacts { prefill_tokens_per_second: None, import_block_us: None, decode_step_us: None, ..odd };
    assert_eq!(decision(request(99, 0), &[odd], 1), decision(request(99, 0), &[unmeasured], 1));
}

#[test]
fn who_was_not_measured_yet_gets_its_share() {
    let fast = WorkerFacts { prefill_tokens_per_second: Some(5_000.0), ..decode(0) };
    let unmeasured = WorkerFacts {
        prefill_tokens_per_second: None,
        import_block_us: None,
        decode_step_us: None,
        ..decode(1)
    };
    let mut chosen = [0; 2];
    for seed in 0..200 {
        chosen[decision(request(500, 112), &[fast, unmeasured], seed).decode] += 1;
    }
    assert!(chosen.iter().all(|&count| count > 60), "{chosen:?}");
    check(request(500, 0), &[WorkerFacts { streams: 1, ..fast }, unmeasured], 1, Place::Local);
    // A prefill worker counts as the other prefill worker rather than as a decode worker.
    let unmeasured = WorkerFacts { prefill_tokens_per_second: None, ..prefill(3) };
    let slow = WorkerFacts { prefill_tokens_per_second: Some(50.0), ..prefill(2) };
    check(request(1_012, 0), &[fast, slow, unmeasured], 0, Place::Local);
    let fast = WorkerFacts { prefill_tokens_per_second: Some(50_000.0), pending_tokens: 90_000, ..slow };
    check(request(1_012, 0), &[decode(0), fast, unmeasured], 0, Place::Remote(3));
}

#[test]
fn a_conversation_stays_as_long_as_it_costs_little() {
    let turn = |preferred| RequestFacts { preferred: Some(preferred), ..request(120, 96) };
    check(turn(0), &[decode(0), decode(1)], 0, Place::Local);
    check(turn(1), &[decode(0), decode(1)], 1, Place::Local);
    let busy = WorkerFacts { streams: 1, ..decode(1) };
    check(turn(1), &[decode(0), busy], 0, Place::Local);
    check(turn(7), &[decode(0)], 0, Place::Local);
    // With a long prompt a prefill worker helps the same decode worker.
    let long = RequestFacts { preferred: Some(1), ..request(1_012, 0) };
    check(long, &[decode(0), decode(1), prefill(2)], 1, Place::Remote(2));
}

#[test]
fn the_largest_numbers_are_only_dear() {
    let full = WorkerFacts {
        streams: u32::MAX,
        slots: u32::MAX,
        pending_tokens: u64::MAX,
        chunk_tokens: u32::MAX,
        ..decode(0)
    };
    check(request(1_012, 0), &[full, decode(1)], 1, Place::Local);
    let crowded = WorkerFacts { slots: 0, chunk_tokens: 0, ..full };
    check(request(u64::MAX, 0), &[crowded], 0, Place::Local);
    let prefill = WorkerFacts { streams: u32::MAX, pending_tokens: u64::MAX, ..prefill(2) };
    check(request(1_012, 0), &[decode(1), prefill], 1, Place::Local);
}

#[test]
fn a_policy_rules_ways_out() {
    let decide_by = |policy, prompt, workers: &[WorkerFacts]| {
        decide(&request(prompt, 0), workers, policy, &mut SmallRng::seed_from_u64(1)).unwrap().prefill
    };
    assert_eq!(decide_by(PrefillPolicy::Local, 1_012, &[decode(0), prefill(1)]), Place::Local);
    assert_eq!(decide_by(PrefillPolicy::Remote, 20, &[decode(0), prefill(1)]), Place::Remote(1));
    assert_eq!(
        decide_by(PrefillPolicy::Remote, 16, &[decode(0), prefill(1)]),
        Place::Local,
        "no whole block to fill"
    );
    assert_eq!(decide_by(PrefillPolicy::Remote, 20, &[decode(0)]), Place::Local);
}

#[test]
fn without_a_decode_worker_there_is_no_way() {
    let got = decide(&request(9, 0), &[prefill(1)], PrefillPolicy::Auto, &mut SmallRng::seed_from_u64(1));
    assert_eq!(got, Err(NoDecodeWorker));
}
