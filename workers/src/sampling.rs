//! Which token comes next: parameters, checked before anything runs, and a sampler a sequence.
//!
//! Greedy without penalties or biases is an own argmax (the lowest id wins a tie). Everything else is a chain of
//! llama.cpp's samplers over the logits row: penalties, biases, top-k, min-p, top-p and temperature, and then a
//! draw. Under a grammar only the tokens that it allows go in. Penalties count generated tokens only. Log
//! probabilities are a log-softmax of the raw logits, before any of that.
//!
//! A draw is a function of the seed and of the token's place in the completion, and of no state: a completion
//! that goes on at another worker ([`SamplingPlan::resumed`]) draws what it would have drawn at the first.

use std::hash::{BuildHasher, Hasher, RandomState};

use kelvin_proto::{Refusal, worker::v1};
use llama_cpp_2::{
    sampling::LlamaSampler,
    token::{LlamaToken, data::LlamaTokenData, data_array::LlamaTokenDataArray, logit_bias::LlamaLogitBias},
};
use llguidance::toktrie::SimpleVob;

/// Most alternatives a token can be asked for.
pub(crate) const LOGPROBS_MAX: u32 = 20;
const BIASES_MAX: usize = 1024;

/// Checked sampling parameters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SamplingPlan {
    temperature: f32,
    top_p: f32,
    top_k: u32,
    min_p: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    seed: u64,
    /// By token, so that equal requests give equal chains.
    biases: Vec<(u32, f32)>,
    /// Tokens the penalties look back on.
    window: u32,
    logprobs: Option<u32>,
    vocab_tokens: u32,
}

impl SamplingPlan {
    /// Checks what a request asks for.
    pub(crate) fn check(
        sampling: Option<&v1::Sampling>,
        logprobs: Option<u32>,
        tokens_max: u32,
        vocab_tokens: u32,
    ) -> Result<Self, Refusal> {
        let greedy = v1::Sampling { top_p: 1.0, ..Default::default() };
        let wire = sampling.unwrap_or(&greedy);
        let within = |name: &str, value: f32, min: f32, max: f32| {
            if (min..=max).contains(&value) {
                Ok(value)
            } else {
                Err(Refusal::invalid(format!("{name} must be {min} to {max}, not {value}")))
            }
        };
        let temperature = within("temperature", wire.temperature, 0.0, 2.0)?;
        if wire.top_k > vocab_tokens {
            return Err(Refusal::invalid(format!("top_k must be at most {vocab_tokens}; 0 keeps all")));
        }
        if logprobs.is_some_and(|count| count > LOGPROBS_MAX) {
            return Err(Refusal::invalid(format!("logprobs must be at most {LOGPROBS_MAX}")));
        }
        if wire.logit_bias.len() > BIASES_MAX {
            return Err(Refusal::invalid(format!("logit_bias has more than {BIASES_MAX} entries")));
        }
        let mut biases = Vec::with_capacity(wire.logit_bias.len());
        for (&token, &bias) in &wire.logit_bias {
            if token >= vocab_tokens {
                return Err(Refusal::invalid(format!(
                    "logit_bias names token {token}, but there are {vocab_tokens}"
                )));
            }
            biases.push((token, within("logit_bias", bias, -100.0, 100.0)?));
        }
        biases.sort_unstable_by_key(|&(token, _)| token);
        Ok(Self {
            temperature,
            top_p: within("top_p", wire.top_p, 0.0, 1.0)?,
            top_k: wire.top_k,
            min_p: within("min_p", wire.min_p, 0.0, 1.0)?,
            presence_penalty: within("presence_penalty", wire.presence_penalty, -2.0, 2.0)?,
            frequency_penalty: within("frequency_penalty", wire.frequency_penalty, -2.0, 2.0)?,
            seed: wire.seed.unwrap_or_else(random_seed),
            biases,
            window: tokens_max,
            logprobs,
            vocab_tokens,
        })
    }

    /// A sampler for a sequence that has this output already.
    pub(crate) fn resumed(self, generated: &[u32]) -> Sampler {
        let window = self.window.saturating_add(u32::try_from(generated.len()).unwrap_or(u32::MAX));
        let mut sampler = Self { window, ..self }.sampler();
        if let Some(chain) = &mut sampler.chain {
            generated.iter().for_each(|&token| chain.accept(LlamaToken(token as i32)));
        }
        sampler.position = generated.len() as u64;
        sampler
    }

    /// A sampler for one sequence.
    pub(crate) fn sampler(self) -> Sampler {
        let vocab = self.vocab_tokens as i32;
        let mut chain = Vec::new();
        let has_penalties = self.presence_penalty != 0.0 || self.frequency_penalty != 0.0;
        if has_penalties {
            let (window, frequency, presence) =
                (self.window as i32, self.frequency_penalty, self.presence_penalty);
            chain.push(LlamaSampler::penalties(vocab, window, 1.0, frequency, presence));
        }
        if !self.biases.is_empty() {
            let biases: Vec<LlamaLogitBias> = self
                .biases
                .iter()
                .map(|&(token, bias)| LlamaLogitBias::new(LlamaToken(token as i32), bias))
                .collect();
            chain.push(LlamaSampler::logit_bias(vocab, &biases));
        }
        if self.temperature > 0.0 {
            if self.top_k > 0 {
                chain.push(LlamaSampler::top_k(self.top_k as i32));
            }
            if self.min_p > 0.0 {
                chain.push(LlamaSampler::min_p(self.min_p, 1));
            }
            if self.top_p < 1.0 {
                chain.push(LlamaSampler::top_p(self.top_p, 1));
            }
            chain.push(LlamaSampler::temp(self.temperature));
        } else if !chain.is_empty() {
            chain.push(LlamaSampler::greedy());
        }
        let chain = (!chain.is_empty()).then(|| LlamaSampler::chain_simple(chain));
        let seed = (self.temperature > 0.0).then_some(self.seed);
        Sampler { chain, seed, position: 0, candidates: Vec::new(), logprobs: self.logprobs }
    }
}

/// The draw of a place in a completion: uniform in [0, 1), by SplitMix64's finalizer.
fn uniform(seed: u64, position: u64) -> f64 {
    let mix = |mut x: u64| {
        x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    (mix(mix(seed) ^ position) >> 11) as f64 / (1u64 << 53) as f64
}

/// The candidate on which `uniform` falls when each has a share of [0, 1) by its logit; `None` when the logits are
/// no numbers.
fn draw_among(candidates: &[LlamaTokenData], uniform: f64) -> Option<LlamaToken> {
    let largest = candidates.iter().map(LlamaTokenData::logit).fold(f32::NEG_INFINITY, f32::max);
    let share = |candidate: &LlamaTokenData| f64::from(candidate.logit() - largest).exp();
    let sum: f64 = candidates.iter().map(share).sum();
    if !sum.is_finite() || sum <= 0.0 {
        return None;
    }
    let mut left = uniform * sum;
    let mut last = None;
    for candidate in candidates {
        let share = share(candidate);
        if share > 0.0 {
            last = Some(candidate.id());
            left -= share;
            if left < 0.0 {
                break;
            }
        }
    }
    last
}

fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Chooses the tokens of one sequence.
pub(crate) struct Sampler {
    chain: Option<LlamaSampler>,
    /// What draws are made of; `None` for greedy.
    seed: Option<u64>,
    /// Tokens chosen so far.
    position: u64,
    candidates: Vec<LlamaTokenData>,
    logprobs: Option<u32>,
}

impl Sampler {
    /// Chooses a token; `None` when the logits are no numbers.
    #[cfg(test)]
    pub(crate) fn sample(&mut self, logits: &[f32]) -> Option<v1::GeneratedToken> {
        self.sample_among(logits, None)
    }

    /// Chooses one of the tokens in `allowed`, or of all; `None` when their logits are no numbers.
    pub(crate) fn sample_among(
        &mut self,
        logits: &[f32],
        allowed: Option<&SimpleVob>,
    ) -> Option<v1::GeneratedToken> {
        let is_allowed =
            |id: usize| allowed.is_none_or(|allowed| id < allowed.len() && allowed.is_allowed(id as u32));
        let best = argmax_among(logits, is_allowed)?;
        let token = match &mut self.chain {
            None => best,
            Some(chain) => {
                let mut candidates = std::mem::take(&mut self.candidates);
                candidates.clear();
                let ids = (0..logits.len()).filter(|&id| is_allowed(id));
                candidates.extend(ids.map(|id| LlamaTokenData::new(LlamaToken(id as i32), logits[id], 0.0)));
                let mut array = LlamaTokenDataArray::new(candidates, false);
                array.apply_sampler(chain);
                let chosen = match self.seed {
                    Some(seed) => draw_among(&array.data, uniform(seed, self.position))?,
                    None => array.selected_token()?,
                };
                chain.accept(chosen);
                self.candidates = array.data;
                u32::try_from(chosen.0).ok()?
            }
        };
        self.position += 1;
        Some(match self.logprobs {
            None => v1::GeneratedToken { token, logprob: None, top: Vec::new() },
            Some(count) => with_logprobs(token, logits, count as usize),
        })
    }
}

/// Id of the largest logit, the lowest one of equals; `None` when the largest is not a finite number.
pub(crate) fn argmax(logits: &[f32]) -> Option<u32> {
    argmax_among(logits, |_| true)
}

fn argmax_among(logits: &[f32], is_allowed: impl Fn(usize) -> bool) -> Option<u32> {
    let mut best = 0;
    let mut largest = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > largest && is_allowed(id) {
            (best, largest) = (id, logit);
        }
    }
    largest.is_finite().then_some(best as u32)
}

fn with_logprobs(token: u32, logits: &[f32], count: usize) -> v1::GeneratedToken {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    let normalizer = f64::from(largest) + sum.ln();
    let logprob = |id: usize| (f64::from(logits[id]) - normalizer) as f32;
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    let count = count.min(ids.len());
    let order = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    if count > 0 && count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
    }
    ids.truncate(count);
    ids.sort_unstable_by(order);
    let top = ids.into_iter().map(|id| v1::TokenLogprob { token: id as u32, logprob: logprob(id) }).collect();
    v1::GeneratedToken { token, logprob: Some(logprob(token as usize)), top }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(change: impl FnOnce(&mut v1::Sampling)) -> v1::Sampling {
        let mut sampling = v1::Sampling { temperature: 1.0, top_p: 1.0, seed: Some(7), ..Default::default() };
        change(&mut sampling);
        sampling
    }

    fn sampler(change: impl FnOnce(&mut v1::Sampling)) -> Sampler {
        SamplingPlan::check(Some(&wire(change)), None, 100, 4).unwrap().sampler()
    }

    fn draw(sampler: &mut Sampler, logits: &[f32], count: usize) -> Vec<u32> {
        (0..count).map(|_| sampler.sample(logits).unwrap().token).collect()
    }

    const LOGITS: [f32; 4] = [0.5, 2.0, 1.5, -1.0];

    #[test]
    fn greedy_takes_the_largest_and_the_lowest_of_equals() {
        let mut greedy = SamplingPlan::check(None, None, 1, 4).unwrap().sampler();
        assert_eq!(greedy.sample(&LOGITS).unwrap().token, 1);
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), None);
        assert_eq!(greedy.sample(&[f32::NAN; 4]), None);
    }

    #[test]
    fn a_seed_repeats_and_another_does_not() {
        let drawn = |seed| draw(&mut sampler(|s| s.seed = Some(seed)), &LOGITS, 40);
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert_ne!(drawn(u64::MAX), drawn(1));
        assert!(drawn(1).iter().collect::<std::collections::HashSet<_>>().len() > 1, "it is not greedy");
    }

    #[test]
    fn a_completion_goes_on_elsewhere_as_it_would_have_here() {
        let plans: [fn(&mut v1::Sampling); 3] = [
            |_| (),
            |s| (s.presence_penalty, s.frequency_penalty) = (0.5, 0.3),
            |s| (s.temperature, s.frequency_penalty) = (0.0, 0.4),
        ];
        for change in plans {
            let plan = SamplingPlan::check(Some(&wire(change)), None, 100, 4).unwrap();
            let whole = draw(&mut plan.clone().sampler(), &LOGITS, 40);
            for generated in [1, 2, 7, 39] {
                let mut resumed = plan.clone().resumed(&whole[..generated]);
                assert_eq!(draw(&mut resumed, &LOGITS, 40 - generated), whole[generated..]);
            }
        }
    }

    #[test]
    fn draws_are_as_likely_as_their_logits_say() {
        let drawn = draw(&mut sampler(|_| ()), &LOGITS, 20_000);
        let sum: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
        for (token, logit) in LOGITS.iter().enumerate() {
            let count = drawn.iter().filter(|&&drawn| drawn == token as u32).count();
            let expected = 20_000.0 * logit.exp() / sum;
            assert!((count as f32 - expected).abs() < 5.0 * expected.sqrt(), "{token}: {count}, {expected}");
        }
    }

    #[test]
    fn filters_keep_only_what_they_say() {
        assert!(draw(&mut sampler(|s| s.top_k = 1), &LOGITS, 30).iter().all(|&token| token == 1));
        assert!(draw(&mut sampler(|s| s.top_p = 0.1), &LOGITS, 30).iter().all(|&token| token == 1));
        assert!(draw(&mut sampler(|s| s.top_p = 0.0), &LOGITS, 30).iter().all(|&token| token == 1));
        assert!(draw(&mut sampler(|s| s.min_p = 0.9), &LOGITS, 30).iter().all(|&token| token == 1));
        let two = draw(&mut sampler(|s| s.top_k = 2), &LOGITS, 200);
        assert!(two.iter().all(|token| [1, 2].contains(token)) && two.contains(&2), "{two:?}");
    }

    #[test]
    fn biases_and_penalties_also_work_greedily() {
        let mut biased = sampler(|s| {
            s.temperature = 0.0;
            s.logit_bias.insert(3, 100.0);
        });
        assert_eq!(draw(&mut biased, &LOGITS, 2), [3, 3]);
        let mut penalized = sampler(|s| {
            s.temperature = 0.0;
            s.frequency_penalty = 1.0;
        });
        assert_eq!(
            draw(&mut penalized, &LOGITS, 3),
            [1, 2, 1],
            "2.0, then 1.0 against 1.5, then 1.0 and 0.5"
        );
    }

    #[test]
    fn logprobs_are_a_log_softmax_best_first() {
        let mut sampler = SamplingPlan::check(None, Some(2), 1, 4).unwrap().sampler();
        let token = sampler.sample(&LOGITS).unwrap();
        let sum: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
        assert!((token.logprob.unwrap() - (2.0 - sum.ln())).abs() < 1e-6);
        assert_eq!(token.top.iter().map(|top| top.token).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(token.top[0].logprob, token.logprob.unwrap());
        let all = SamplingPlan::check(None, Some(20), 1, 4).unwrap().sampler().sample(&LOGITS).unwrap();
        let total: f32 = all.top.iter().map(|top| top.logprob.exp()).sum();
        assert!((total - 1.0).abs() < 1e-6 && all.top.len() == 4);
        let none = SamplingPlan::check(None, Some(0), 1, 4).unwrap().sampler().sample(&LOGITS).unwrap();
        assert!(none.logprob.is_some() && none.top.is_empty());
    }

    #[test]
    fn bad_parameters_say_what_to_change() {
        let check = |change: fn(&mut v1::Sampling), expected: &str| {
            let error = SamplingPlan::check(Some(&wire(change)), None, 1, 4).unwrap_err();
            assert!(error.message.contains(expected), "{}", error.message);
        };
        check(|s| s.temperature = 2.5, "temperature must be 0 to 2, not 2.5");
        check(|s| s.temperature = f32::NAN, "temperature must be");
        check(|s| s.top_p = 1.1, "top_p must be 0 to 1");
        check(|s| s.top_k = 5, "top_k must be at most 4");
        check(|s| s.min_p = -0.1, "min_p must be");
        check(|s| s.presence_penalty = 3.0, "presence_penalty must be");
        check(|s| s.frequency_penalty = f32::INFINITY, "frequency_penalty must be");
        check(|s| s.logit_bias = [(4, 1.0)].into(), "token 4");
        check(|s| s.logit_bias = [(1, 101.0)].into(), "logit_bias must be -100 to 100");
        assert!(SamplingPlan::check(None, Some(21), 1, 4).is_err());
    }
}
