//! What a router's decision takes among many backends: from a prompt's tokens to the one that gets it.
//!
//! Prompts are those of the index's forest, 96 blocks of 16 tokens behind 64 beginnings, and each is in the memory
//! of one backend or a few; so each beginning is in many. A decision hashes the prompt, looks up who has how much of
//! it, prices every backend, takes one, and counts the request there. With it are 512 others in work.
//!
//! Beside a decision's time stands what it took of the processor: where only the former's tail is long, others on the
//! machine made it so. And beside both stand the times of a loop that reads a little memory and does nothing else for as
//! long: its tail is the machine's own, interrupts and a hypervisor's pages, which count as processor time of whomever
//! they hit.

use std::hint::black_box;
use std::time::Instant;

use hdrhistogram::Histogram;
use kelvin_kvstore::SequenceHash;
use kelvin_router::bench_support::Decisions;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::forest::{LONG, mix};
use super::{cpu, record};
use crate::report::{Report, number};

const BACKENDS: u32 = 1_000;
const BLOCK_TOKENS: u32 = 16;
/// What a decision may take.
const LIMIT_US: f64 = 50.0;
/// A router's own default.
const BUDGET_BYTES: usize = 256 << 20;
const DECISIONS: u64 = 20_000;
const APPLICATIONS: u64 = 64;
/// Of the index, a decision touches about so many pages that are in no cache.
const PLACES: usize = 32;

/// Measures with about `blocks` blocks known.
pub(super) fn measure(seed: u64, blocks: u64, report: &mut Report) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut decisions = Decisions::new(BACKENDS, BLOCK_TOKENS, BUDGET_BYTES, &mut rng);
    let prompts = fill(&mut decisions, seed, blocks, &mut rng);
    let mut times = [(); 3].map(|()| Histogram::<u64>::new(3).expect("three digits are allowed"));
    let mut tokens = Vec::new();
    for _ in 0..DECISIONS / 10 {
        prompt(seed, rng.random_range(0..prompts), &mut tokens);
        let start = Instant::now();
        let hashes = decisions.hash(&tokens);
        record(&mut times[0], start.elapsed());
        assert_eq!(hashes.len() as u64, LONG.application + LONG.session + LONG.turn);
    }
    for _ in 0..DECISIONS {
        prompt(seed, rng.random_range(0..prompts), &mut tokens);
        let (start_cpu, start) = (cpu(), Instant::now());
        let backend = decisions.decide(&tokens, &mut rng);
        let took = start.elapsed();
        record(&mut times[1], took);
        record(&mut times[2], cpu() - start_cpu);
        assert!(backend.is_some(), "they are all ready");
    }
    let us = |at: usize, quantile: f64| times[at].value_at_quantile(quantile) as f64 / 1e3;
    let (p50, p99) = (us(1, 0.5), us(1, 0.99));
    report.line(format!(
        "\na router's decision: {BACKENDS} backends, {} blocks known in {:.0} MiB, prompts of 96 blocks",
        decisions.blocks(),
        decisions.memory_bytes() as f64 / f64::from(1 << 20),
    ));
    report.line(format!(
        "  p50 {} us, p99 {} us (limit {LIMIT_US} us); of it hashing p50 {} us",
        number(p50),
        number(p99),
        number(us(0, 0.5)),
    ));
    report.line(format!(
        "  processor time p50 {} us, p99 {} us, p99.9 {} us, two readings of its clock included; p99.9 {} us by the wall",
        number(us(2, 0.5)),
        number(us(2, 0.99)),
        number(us(2, 0.999)),
        number(us(1, 0.999)),
    ));
    let idle = idle((p50 * 1e3) as u64, decisions.memory_bytes());
    let idle_us = |quantile: f64| number(idle.value_at_quantile(quantile) as f64 / 1e3);
    report.line(format!(
        "  a loop as long that reads {PLACES} places of as much memory: p50 {} us, p99 {} us, p99.9 {} us",
        idle_us(0.5),
        idle_us(0.99),
        idle_us(0.999)
    ));
    report.compared(format!("{blocks}.decision.p50"), p50, "us", LIMIT_US, p50 / LIMIT_US);
    report.compared(format!("{blocks}.decision.p99"), p99, "us", LIMIT_US, p99 / LIMIT_US);
    report.figure(format!("{blocks}.decision.cpu.p50"), us(2, 0.5), "us");
    report.figure(format!("{blocks}.decision.cpu.p99"), us(2, 0.99), "us");
    report.figure(format!("{blocks}.decision.hash.p50"), us(0, 0.5), "us");
    report.figure(format!("{blocks}.decision.refused"), decisions.refused() as f64, "runs");
}

/// Times of a loop that takes about so many nanoseconds: it reads in [`PLACES`] places of so much memory, and then
/// computes in registers.
fn idle(ns: u64, bytes: usize) -> Histogram<u64> {
    let memory: Vec<u64> = (0..bytes as u64 / 8).collect();
    let mut at = 0;
    let mut spin = |steps: u64| {
        let start = Instant::now();
        for _ in 0..PLACES {
            at = mix(at ^ memory[at as usize % memory.len()]);
        }
        at = (0..steps).fold(at, |sum, step| mix(sum ^ step));
        start.elapsed()
    };
    let mut median = |steps: u64| {
        let mut times: Vec<u64> = (0..1_001).map(|_| spin(steps).as_nanos() as u64).collect();
        times.sort_unstable();
        times[times.len() / 2]
    };
    const STEPS: u64 = 10_000;
    let (least, more) = (median(0), median(STEPS));
    let steps = STEPS * ns.saturating_sub(least) / more.saturating_sub(least).max(1);
    let mut times = Histogram::<u64>::new(3).expect("three digits are allowed");
    (0..DECISIONS).for_each(|_| record(&mut times, spin(steps)));
    black_box(at);
    times
}

/// Has backends store prompts until so many blocks are known; returns how many prompts.
fn fill(decisions: &mut Decisions, seed: u64, blocks: u64, rng: &mut SmallRng) -> u64 {
    let mut tokens = Vec::new();
    for number in 0.. {
        if decisions.blocks() as u64 >= blocks || decisions.refused() > 0 {
            return number;
        }
        prompt(seed, number, &mut tokens);
        let hashes: Vec<SequenceHash> = decisions.hash(&tokens);
        for _ in 0..rng.random_range(1..=3) {
            decisions.store(rng.random_range(0..BACKENDS), None, &hashes);
        }
    }
    unreachable!("numbers do not end")
}

/// A prompt's tokens.
fn prompt(seed: u64, number: u64, into: &mut Vec<u32>) {
    let session = number / LONG.turns;
    into.clear();
    let parts =
        [(0, session % APPLICATIONS, LONG.application), (1, session, LONG.session), (2, number, LONG.turn)];
    for (part, of, blocks) in parts {
        let tokens = 0..blocks * u64::from(BLOCK_TOKENS);
        into.extend(tokens.map(|at| mix(seed ^ mix(part << 60 ^ of << 20 ^ at)) as u32 >> 8));
    }
}
