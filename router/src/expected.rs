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
//! that has it becomes dearer than to load or compute it elsewhere, and from then on there are two. A session's worker
//! is kept as long as it costs at most [`NEAR`] more than the cheapest.

use rand::Rng;

use crate::cost::{RATE_DEFAULT, STEP_US_DEFAULT, TIE, measured};

/// How much more than the cheapest a worker may cost that had the session's last request: something of it is there
/// that is not known of, as a block that was not full, or an image.
const NEAR: f64 = 0.25;

/// Candidates near the cheapest that are made room for at once.
const NEAR_CANDIDATES: usize = 32;

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
    #[inline]
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
    expected_at(prompt_tokens, candidate, rate, measured(candidate.step_us, STEP_US_DEFAULT))
}

/// The same with the two measurements as they are to be used.
fn expected_at(prompt_tokens: u64, candidate: &Candidate<'_>, rate: f64, step_us: f64) -> Expected {
    let us_per_token = 1e6 / rate;
    let compute_us = |tokens: u64| float(tokens) * us_per_token;
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
        crowding_us: f64::from(candidate.streams) * step_us,
        ..best
    }
}

/// What [`Expected::cost_us`] of the same is.
// A thousand are priced for each prompt. Most have nothing outside of their own memory, and then it is a handful of
// instructions.
#[inline]
fn cost_at(prompt_tokens: u64, candidate: &Candidate<'_>, rate: f64, step_us: f64) -> f64 {
    if !candidate.held.is_empty() {
        return expected_at(prompt_tokens, candidate, rate, step_us).cost_us();
    }
    let us_per_token = 1e6 / rate;
    let rest = prompt_tokens.saturating_sub(candidate.own_tokens).max(1);
    let wait_us = float(candidate.queued_tokens) * us_per_token;
    wait_us + float(rest) * us_per_token + f64::from(candidate.streams) * step_us
}

/// Whether a measurement says something. Compared as a number: of those above zero, the order is the same.
#[inline]
fn is_known(value: f64) -> bool {
    value.to_bits().wrapping_sub(1) < f64::INFINITY.to_bits() - 1
}

/// A number of tokens. To convert signed numbers is one instruction; to lose those above 2^63 is no matter.
#[inline]
fn float(tokens: u64) -> f64 {
    tokens.min(i64::MAX as u64) as i64 as f64
}

/// The worker where the first token can be expected soonest; `None` without candidates. `rng` decides
/// between equals.
pub fn choose<'a>(
    prompt_tokens: u64,
    candidates: impl IntoIterator<Item = Candidate<'a>>,
    rng: &mut impl Rng,
) -> Option<Choice> {
    let mut round = Round::new(prompt_tokens, None);
    candidates.into_iter().for_each(|candidate| round.offer(candidate));
    round.choose(rng)
}

/// One pass over candidates. Nearly all of a thousand are dearer than one before, and nothing is kept of these.
#[derive(Debug)]
pub(crate) struct Round<'a> {
    prompt_tokens: u64,
    preferred: Option<usize>,
    offered: u32,
    /// Tokens a second of the fastest, and the shortest step's microseconds, of those that were measured.
    fastest: f64,
    shortest: f64,
    least_us: f64,
    preferred_cost: Option<(f64, Candidate<'a>)>,
    /// Those that were not dearer than the cheapest until then: number, cost, candidate.
    near: Vec<(u32, f64, Candidate<'a>)>,
    unmeasured: Vec<(u32, Candidate<'a>)>,
}

impl<'a> Round<'a> {
    /// Without candidates. The `preferred` worker is taken as long as it costs at most [`NEAR`] more than the cheapest.
    pub(crate) fn new(prompt_tokens: u64, preferred: Option<usize>) -> Self {
        Self {
            prompt_tokens,
            preferred,
            offered: 0,
            fastest: 0.0,
            shortest: f64::INFINITY,
            least_us: f64::INFINITY,
            preferred_cost: None,
            near: Vec::with_capacity(NEAR_CANDIDATES),
            unmeasured: Vec::new(),
        }
    }

    /// One candidate more.
    #[inline(always)]
    pub(crate) fn offer(&mut self, candidate: Candidate<'a>) {
        self.offered += 1;
        let (rate, step_us) = (candidate.tokens_per_second.unwrap_or(0.0), candidate.step_us.unwrap_or(0.0));
        let (has_rate, has_step) = (is_known(rate), is_known(step_us));
        if has_rate && rate > self.fastest {
            self.fastest = rate;
        }
        if has_step && step_us < self.shortest {
            self.shortest = step_us;
        }
        if has_rate && has_step {
            self.price(self.offered, &candidate, rate, step_us);
        } else {
            self.unmeasured.push((self.offered, candidate));
        }
    }

    /// The best of those offered; `None` without any. `rng` decides between equals.
    pub(crate) fn choose(mut self, rng: &mut impl Rng) -> Option<Choice> {
        for (number, candidate) in std::mem::take(&mut self.unmeasured) {
            let known = |value: Option<f64>, best: f64, default: f64| {
                let best = if is_known(best) { best } else { default };
                value.filter(|value| is_known(*value)).unwrap_or(best)
            };
            let rate = known(candidate.tokens_per_second, self.fastest, RATE_DEFAULT);
            let step_us = known(candidate.step_us, self.shortest, STEP_US_DEFAULT);
            let candidate = Candidate { tokens_per_second: Some(rate), step_us: Some(step_us), ..candidate };
            self.price(number, &candidate, rate, step_us);
        }
        let prompt_tokens = self.prompt_tokens;
        let choice = self.choice(rng)?;
        Some(Choice { worker: choice.worker, expected: expected(prompt_tokens, &choice) })
    }

    #[inline(always)]
    fn price(&mut self, number: u32, candidate: &Candidate<'a>, rate: f64, step_us: f64) {
        let cost_us = cost_at(self.prompt_tokens, candidate, rate, step_us);
        if self.preferred == Some(candidate.worker) {
            self.preferred_cost = Some((cost_us, *candidate));
        }
        if cost_us <= self.least_us * (1.0 + TIE) {
            self.keep(number, cost_us, candidate);
        }
    }

    #[cold]
    fn keep(&mut self, number: u32, cost_us: f64, candidate: &Candidate<'a>) {
        self.near.push((number, cost_us, *candidate));
        self.least_us = self.least_us.min(cost_us);
    }

    fn choice(mut self, rng: &mut impl Rng) -> Option<Candidate<'a>> {
        let near_us = self.least_us * (1.0 + NEAR);
        if let Some((_, preferred)) = self.preferred_cost.filter(|(cost_us, _)| *cost_us <= near_us) {
            return Some(preferred);
        }
        // Those that were not measured came last.
        self.near.sort_unstable_by_key(|(number, ..)| *number);
        let limit_us = self.least_us * (1.0 + TIE);
        // One pass: of those that are equal so far, each has the same chance to be the one.
        let (mut fewest, mut equals, mut choice) = (u32::MAX, 0, None);
        for (_, cost_us, candidate) in self.near {
            if cost_us > limit_us || candidate.streams > fewest {
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
        choice
    }
}

/// A time that makes no sense counts as none that can be waited for.
fn positive(us: f64) -> f64 {
    if us.is_finite() && us >= 0.0 { us } else { f64::MAX.sqrt() }
}

#[cfg(test)]
mod tests;
