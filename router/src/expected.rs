//! Where a prompt's first token can be expected soonest: a pure function over plain numbers.
//!
//! # Overview
//! [`choose`] prices each worker in microseconds of expected time to first token and takes the cheapest.
//! With `u` the prompt's tokens that have to be computed there:
//!
//! ```text
//! cost = wait + compute + load + crowding
//!
//! wait      queued / rate                prompt tokens that were sent there and have no first token yet
//! compute   u / rate
//! load      sum over places (latency + tokens * us_per_token)
//! crowding  streams * step               each stream makes the batch, and so its steps, longer
//! ```
//! What the worker has in its own memory costs nothing. Behind that the prompt's next tokens may be in other
//! places (DRAM, NVMe, another node, S3), in the order of the prompt; as many of those places are used as
//! make `compute + load` least, so that a slow place is left alone where computing is faster.
//!
//! `rate` and `step` are measured at each worker; `us_per_token` and `latency` of each place too. A worker
//! that was not measured yet counts as the fastest of those that were: were it taken for slow, it would get
//! no prompt, and never be measured.
//!
//! Costs within [`TIE`] of the cheapest are equal: then the worker with the fewest streams is taken, and of
//! those chance takes one. So a prefix that many ask for at once spreads: the queue in front of the worker
//! that has it becomes dearer than to load or compute it elsewhere, and from then on there are two. A session's worker is kept within [`NEAR`] ([`choose_near`]).

use rand::Rng;

use crate::cost::{RATE_DEFAULT, STEP_US_DEFAULT, TIE, measured};

/// How much more than the cheapest a worker may cost that had the session's last request: something of it is there
/// that is not known of, as a block that was not full, or an image.
const NEAR: f64 = 0.25;
/// Candidates that are made room for at once.
const CANDIDATES: usize = 4096;

/// Tokens that are in some place outside of a worker's own memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Held {
    /// How many, behind those of the places before.
    pub tokens: u64,
    /// Microseconds to bring one of them into the worker's memory.
    pub us_per_token: f64,
    /// Microseconds until the first comes.
    pub latency_us: f64,
}

/// A worker that could take a prompt. Measurements are `None` before the first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<'a> {
    /// Whatever the caller knows it by.
    pub worker: usize,
    /// Prompt tokens to compute that were sent there and have no first token yet.
    pub queued_tokens: u64,
    /// Sequences it has, running or waiting.
    pub streams: u32,
    /// Leading tokens of the prompt in its own memory.
    pub own_tokens: u64,
    /// Where tokens are outside of that, in the order of the prompt.
    pub held: &'a [Held],
    /// Tokens of those that count for nothing, since its own memory has them: `own_tokens` where `held` is of the
    /// whole prompt, 0 where it is of what is behind them.
    pub skip_tokens: u64,
    /// Prompt tokens it computes a second.
    pub tokens_per_second: Option<f64>,
    /// Microseconds of its decode steps.
    pub step_us: Option<f64>,
}

/// The parts of a cost, microseconds; see the module.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Expected {
    /// Until the prompts sent before are done.
    pub wait_us: f64,
    /// To compute what is not loaded.
    pub compute_us: f64,
    /// To load the rest.
    pub load_us: f64,
    /// What the worker's streams add.
    pub crowding_us: f64,
    /// Tokens that are loaded.
    pub load_tokens: u64,
    /// Tokens that are computed.
    pub compute_tokens: u64,
}

impl Expected {
    /// What candidates are compared by.
    pub fn cost_us(&self) -> f64 {
        self.wait_us + self.compute_us + self.load_us + self.crowding_us
    }
}

/// A worker, and what is expected there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Of the candidate.
    pub worker: usize,
    /// Why.
    pub expected: Expected,
}

/// What a prompt of so many tokens costs at a worker.
pub fn expected(prompt_tokens: u64, candidate: &Candidate<'_>) -> Expected {
    let rate = measured(candidate.tokens_per_second, RATE_DEFAULT);
    let compute_us = |tokens: u64| tokens as f64 * 1e6 / rate;
    // The last token is computed in any case: its successor is sampled from it.
    let mut rest = prompt_tokens.saturating_sub(candidate.own_tokens).max(1);
    let mut best = Expected { compute_us: compute_us(rest), compute_tokens: rest, ..Expected::default() };
    let (mut load_us, mut load_tokens) = (0.0, 0);
    let mut skip = candidate.skip_tokens;
    for held in candidate.held {
        let skipped = held.tokens.min(skip);
        skip -= skipped;
        let tokens = (held.tokens - skipped).min(rest - 1);
        if tokens == 0 {
            continue;
        }
        load_us += positive(held.latency_us) + tokens as f64 * positive(held.us_per_token);
        load_tokens += tokens;
        rest -= tokens;
        if compute_us(rest) + load_us < best.compute_us + best.load_us {
            best = Expected {
                compute_us: compute_us(rest),
                compute_tokens: rest,
                load_us,
                load_tokens,
                ..Expected::default()
            };
        }
    }
    Expected {
        wait_us: compute_us(candidate.queued_tokens),
        crowding_us: f64::from(candidate.streams) * measured(candidate.step_us, STEP_US_DEFAULT),
        ..best
    }
}

/// The worker where the first token can be expected soonest; `None` without candidates. `rng` decides
/// between equals.
pub fn choose<'a>(
    prompt_tokens: u64,
    candidates: impl IntoIterator<Item = Candidate<'a>>,
    rng: &mut impl Rng,
) -> Option<Choice> {
    choose_near(prompt_tokens, candidates, None, rng)
}

/// The same, but the `preferred` worker as long as it costs at most [`NEAR`] more than the cheapest.
pub fn choose_near<'a>(
    prompt_tokens: u64,
    candidates: impl IntoIterator<Item = Candidate<'a>>,
    preferred: Option<usize>,
    rng: &mut impl Rng,
) -> Option<Choice> {
    let given = candidates.into_iter();
    let mut candidates = Vec::with_capacity(given.size_hint().1.unwrap_or(0).min(CANDIDATES));
    let known = |value: Option<f64>| value.filter(|value| value.is_finite() && *value > 0.0);
    let (mut fastest, mut shortest) = (None, None);
    for candidate in given {
        let candidate = Candidate {
            tokens_per_second: known(candidate.tokens_per_second),
            step_us: known(candidate.step_us),
            ..candidate
        };
        let (rate, step) = (candidate.tokens_per_second, candidate.step_us);
        fastest = rate.map(|rate| fastest.map_or(rate, |most: f64| most.max(rate))).or(fastest);
        shortest = step.map(|step| shortest.map_or(step, |least: f64| least.min(step))).or(shortest);
        candidates.push(candidate);
    }
    let mut least_us = f64::INFINITY;
    let mut preferred_us = None;
    let mut costs = Vec::with_capacity(candidates.len());
    for candidate in &mut candidates {
        candidate.tokens_per_second = candidate.tokens_per_second.or(fastest);
        candidate.step_us = candidate.step_us.or(shortest);
        let cost_us = expected(prompt_tokens, candidate).cost_us();
        least_us = least_us.min(cost_us);
        if preferred == Some(candidate.worker) {
            preferred_us = Some(cost_us);
        }
        costs.push(cost_us);
    }
    let near = preferred_us.is_some_and(|cost_us| cost_us <= least_us * (1.0 + NEAR));
    let limit_us = least_us * (1.0 + TIE);
    // One pass: of those that are equal so far, each has the same chance to be the one.
    let (mut fewest, mut equals, mut choice) = (u32::MAX, 0, None);
    for (candidate, cost_us) in candidates.iter().zip(&costs) {
        let is_it = match near {
            true => preferred == Some(candidate.worker),
            false => *cost_us <= limit_us && candidate.streams <= fewest,
        };
        if !is_it {
            continue;
        }
        if candidate.streams < fewest {
            (fewest, equals) = (candidate.streams, 0);
        }
        equals += 1;
        if rng.random_range(0..equals) == 0 {
            choice = Some(candidate);
        }
    }
    let choice = choice?;
    Some(Choice { worker: choice.worker, expected: expected(prompt_tokens, choice) })
}

/// A time that makes no sense counts as none that can be waited for.
fn positive(us: f64) -> f64 {
    if us.is_finite() && us >= 0.0 { us } else { f64::MAX.sqrt() }
}

#[cfg(test)]
mod tests;
