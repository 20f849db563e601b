//! What is learnt of an engine's server from its own answers: nothing of it has to be configured.
//!
//! A prompt's time to first token divided by the tokens that had to be computed until then (those of prompts
//! sent before included) is its rate; time between two pieces of a stream is its step. Both are ratios of
//! sums in which an older sample counts [`KEEP`] times the next younger one, so that long prompts, which say
//! more, weigh more. What an engine tells of its cache comes with the end of an answer: a sample that was made with
//! what was expected of the cache is set right then ([`Learnt::correct`]).
//!
//! # Whole answers
//! Of an answer that comes at once only the sum is known:
//!
//! ```text
//! time = tokens / rate + generated * step
//! ```
//! Both terms are the least squares of the last answers, as soon as these differ enough in shape; each answer then
//! counts as a sample of both. Until then what is known of one term says the rest of the other, and as long as
//! nothing is, all of the time counts for the prompt: that is the least that the rate can be.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

/// Weight of what was learnt before, at each new sample.
const KEEP: f64 = 0.9;
/// Fewer tokens than this say more about the network than about the engine.
const TOKENS_MIN: u64 = 32;

/// How much the shapes of answers must differ to be told apart: the squared sine of the angle between their two terms.
const APART: f64 = 0.05;

/// A decayed ratio of sums.
#[derive(Debug, Clone, Copy, Default)]
struct Ratio {
    above: f64,
    below: f64,
}

impl Ratio {
    fn add(&mut self, above: f64, below: f64) {
        self.above = self.above * KEEP + above;
        self.below = self.below * KEEP + below;
    }

    /// Replaces a sample that was added `age` samples ago.
    fn replace(&mut self, age: u64, (above, below): (f64, f64), with: Option<(f64, f64)>) {
        let weight = KEEP.powi(i32::try_from(age).unwrap_or(i32::MAX));
        let (new_above, new_below) = with.unwrap_or_default();
        self.above += (new_above - above) * weight;
        self.below += (new_below - below) * weight;
        // Less than one token is what rounding left.
        if self.above < 1.0 {
            *self = Self::default();
        }
    }

    fn value(self) -> Option<f64> {
        (self.below > 0.0 && self.above > 0.0).then(|| self.above / self.below)
    }
}

/// Decayed sums of the least squares of `z = a * x + b * y`.
#[derive(Debug, Clone, Copy, Default)]
struct Fit {
    xx: f64,
    xy: f64,
    yy: f64,
    xz: f64,
    yz: f64,
}

impl Fit {
    fn add(&mut self, x: f64, y: f64, z: f64) {
        let sums = [&mut self.xx, &mut self.xy, &mut self.yy, &mut self.xz, &mut self.yz];
        for (sum, product) in sums.into_iter().zip([x * x, x * y, y * y, x * z, y * z]) {
            *sum = *sum * KEEP + product;
        }
    }

    /// `a` and `b`; `None` where the samples do not tell them apart.
    fn terms(&self) -> Option<(f64, f64)> {
        let determinant = self.xx * self.yy - self.xy * self.xy;
        if determinant <= APART * self.xx * self.yy {
            return None;
        }
        let a = (self.xz * self.yy - self.yz * self.xy) / determinant;
        let b = (self.yz * self.xx - self.xz * self.xy) / determinant;
        (a > 0.0 && b > 0.0).then_some((a, b))
    }
}

#[derive(Debug, Default)]
struct Sums {
    /// Tokens over seconds.
    rate: Ratio,
    /// Samples of it.
    rates: u64,
    /// The least that it can be, by the last answers before the first sample.
    rate_min: f64,
    /// Seconds of whole answers, by tokens computed and generated.
    whole: Fit,
    /// Microseconds over steps.
    step: Ratio,
    /// Microseconds over tokens.
    load: Ratio,
}

/// What one server's terms are made from.
#[derive(Debug, Default)]
pub(crate) struct Learnt(Mutex<Sums>);

/// The terms where decisions read them: as bits, 0 for none.
#[derive(Debug, Default)]
pub(crate) struct Published {
    rate: AtomicU64,
    step: AtomicU64,
    load: AtomicU64,
}

/// The terms at one moment; `None` before the first sample.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Terms {
    pub(crate) tokens_per_second: Option<f64>,
    pub(crate) step_us: Option<f64>,
    pub(crate) load_us_per_token: Option<f64>,
}

/// A sample of a rate, which may have to be set right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    number: u64,
    tokens: u64,
    seconds: f64,
}

impl Sums {
    fn add_rate(&mut self, tokens: u64, seconds: f64) -> Sample {
        self.rate.add(tokens as f64, seconds);
        self.rates += 1;
        Sample { number: self.rates, tokens, seconds }
    }

    fn add_steps(&mut self, seconds: f64, steps: u64) {
        self.step.add(seconds.max(0.0) * 1e6, steps as f64);
    }

    /// What of `seconds` the tokens took that were computed beside those that were loaded; `None` if nobody knows.
    fn computing(&self, tokens: u64) -> Option<f64> {
        match self.rate.value() {
            Some(rate) => Some(tokens as f64 / rate),
            // So few that loading was the most of it.
            None if tokens < TOKENS_MIN => Some(0.0),
            None => None,
        }
    }

    fn add_load(&mut self, seconds: f64, loaded: u64) {
        if seconds > 0.0 {
            self.load.add(seconds * 1e6, loaded as f64);
        }
    }
}

impl Learnt {
    /// The first token came `took` after a prompt was sent behind which `tokens` had to be computed, and
    /// `loaded` of them were to be loaded instead.
    pub(crate) fn first_token(
        &self,
        tokens: u64,
        loaded: u64,
        took: Duration,
        published: &Published,
    ) -> Option<Sample> {
        let mut sums = self.0.lock();
        let seconds = took.as_secs_f64();
        let mut sample = None;
        if loaded >= TOKENS_MIN {
            if let Some(computing) = sums.computing(tokens) {
                sums.add_load(seconds - computing, loaded);
            }
        } else if tokens >= TOKENS_MIN && seconds > 0.0 {
            sample = Some(sums.add_rate(tokens, seconds));
        }
        published.set(&sums);
        sample
    }

    /// Of a sample so many tokens were computed indeed.
    pub(crate) fn correct(&self, sample: Sample, tokens: u64, published: &Published) {
        let mut sums = self.0.lock();
        let with = (tokens >= TOKENS_MIN).then_some((tokens as f64, sample.seconds));
        let age = sums.rates - sample.number;
        sums.rate.replace(age, (sample.tokens as f64, sample.seconds), with);
        published.set(&sums);
    }

    /// A whole answer came `took` after its prompt was sent, of which `tokens` were computed and `loaded` loaded.
    pub(crate) fn whole(
        &self,
        tokens: u64,
        loaded: u64,
        generated: u64,
        took: Duration,
        published: &Published,
    ) {
        let mut sums = self.0.lock();
        let seconds = took.as_secs_f64();
        let known = (sums.rate.value(), sums.step.value());
        let generating = known.1.map(|step_us| generated as f64 * step_us / 1e6);
        if loaded >= TOKENS_MIN {
            if let (Some(computing), Some(generating)) = (sums.computing(tokens), generating) {
                sums.add_load(seconds - computing - generating, loaded);
            }
        } else if tokens < TOKENS_MIN {
            let computing = sums.computing(tokens).unwrap_or(0.0);
            sums.add_steps(seconds - computing, generated);
        } else if seconds > 0.0 {
            sums.whole.add(tokens as f64, generated as f64, seconds);
            match (sums.whole.terms(), known.0, generating) {
                (Some((token_s, step_s)), ..) => {
                    sums.add_rate(tokens, tokens as f64 * token_s);
                    sums.add_steps(generated as f64 * step_s, generated);
                }
                (None, Some(rate), _) => sums.add_steps(seconds - tokens as f64 / rate, generated),
                (None, None, Some(generating)) if generating < seconds => {
                    sums.add_rate(tokens, seconds - generating);
                }
                (None, None, _) => sums.rate_min = (sums.rate_min * KEEP).max(tokens as f64 / seconds),
            }
        }
        published.set(&sums);
    }

    /// A stream took so long for so many steps.
    pub(crate) fn steps(&self, steps: u64, took: Duration, published: &Published) {
        if steps > 0 {
            let mut sums = self.0.lock();
            sums.step.add(took.as_secs_f64() * 1e6, steps as f64);
            published.set(&sums);
        }
    }
}

impl Published {
    fn set(&self, sums: &Sums) {
        let rate = sums.rate.value().unwrap_or(sums.rate_min);
        let (step, load) = (sums.step.value().unwrap_or(0.0), sums.load.value().unwrap_or(0.0));
        for (bits, value) in [(&self.rate, rate), (&self.step, step), (&self.load, load)] {
            bits.store(value.to_bits(), Ordering::Relaxed);
        }
    }

    pub(crate) fn clear(&self) {
        self.set(&Sums::default());
    }

    #[inline]
    pub(crate) fn terms(&self) -> Terms {
        let value = |bits: &AtomicU64| {
            Some(f64::from_bits(bits.load(Ordering::Relaxed))).filter(|value| *value > 0.0)
        };
        Terms {
            tokens_per_second: value(&self.rate),
            step_us: value(&self.step),
            load_us_per_token: value(&self.load),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value / expected - 1.0).abs() < 0.05)
    }

    #[test]
    fn rates_follow_what_happens() {
        let (learnt, published) = (Learnt::default(), Published::default());
        let first_token = |tokens, ms| {
            learnt.first_token(tokens, 0, Duration::from_millis(ms), &published);
        };
        assert_eq!(published.terms(), Terms::default());
        first_token(8, 1_000);
        assert_eq!(published.terms(), Terms::default(), "too few tokens to say anything");
        first_token(1_000, 1_000);
        assert!(near(published.terms().tokens_per_second, 1000.0));
        (0..60).for_each(|_| first_token(1_000, 500));
        assert!(near(published.terms().tokens_per_second, 2000.0), "{:?}", published.terms());
        learnt.steps(10, Duration::from_millis(100), &published);
        assert!(near(published.terms().step_us, 10_000.0));
    }

    #[test]
    fn loading_is_what_computing_does_not_explain() {
        let (learnt, published) = (Learnt::default(), Published::default());
        learnt.first_token(1000, 0, Duration::from_secs(1), &published);
        learnt.first_token(100, 1000, Duration::from_millis(300), &published);
        assert!(near(published.terms().load_us_per_token, 200.0), "{:?}", published.terms());
        assert!(near(published.terms().tokens_per_second, 1000.0));
    }

    #[test]
    fn loading_is_learnt_before_a_rate_is() {
        let (learnt, published) = (Learnt::default(), Published::default());
        learnt.first_token(100, 1000, Duration::from_millis(300), &published);
        assert_eq!(published.terms(), Terms::default(), "nobody knows what of it was computing");
        learnt.first_token(1, 1000, Duration::from_millis(200), &published);
        assert!(near(published.terms().load_us_per_token, 200.0), "{:?}", published.terms());
    }

    #[test]
    fn a_sample_is_set_right_by_what_was_reused() {
        let (learnt, published) = (Learnt::default(), Published::default());
        let rate = || published.terms().tokens_per_second;
        let first = learnt.first_token(10_000, 0, Duration::from_millis(50), &published).unwrap();
        assert!(near(rate(), 200_000.0));
        learnt.first_token(1_000, 0, Duration::from_millis(100), &published);
        learnt.correct(first, 500, &published);
        assert!(near(rate(), 10_000.0), "{:?}", rate());
        // With nothing computed it says nothing.
        let (learnt, published) = (Learnt::default(), Published::default());
        let all = learnt.first_token(10_000, 0, Duration::from_millis(50), &published).unwrap();
        learnt.correct(all, 1, &published);
        assert_eq!(published.terms(), Terms::default());
    }

    #[test]
    fn whole_answers_teach_both_terms() {
        let (learnt, published) = (Learnt::default(), Published::default());
        // 10,000 tokens a second and 10 ms a step.
        let whole = |tokens: u64, generated: u64| {
            let took = Duration::from_micros(tokens * 100 + generated * 10_000);
            learnt.whole(tokens, 0, generated, took, &published);
        };
        whole(2_000, 100);
        let terms = published.terms();
        assert!(near(terms.tokens_per_second, 2_000.0 / 1.2), "the least it can be: {terms:?}");
        assert_eq!(terms.step_us, None);
        whole(2_000, 100);
        assert_eq!(published.terms(), terms, "the same shape tells nothing more");
        whole(500, 200);
        whole(8_000, 20);
        let terms = published.terms();
        assert!(near(terms.tokens_per_second, 10_000.0) && near(terms.step_us, 10_000.0), "{terms:?}");
        learnt.whole(100, 1_000, 10, Duration::from_millis(310), &published);
        assert!(near(published.terms().load_us_per_token, 200.0), "{:?}", published.terms());
    }

    #[test]
    fn what_is_known_of_one_term_says_the_rest_of_the_other() {
        let (learnt, published) = (Learnt::default(), Published::default());
        learnt.steps(10, Duration::from_millis(100), &published);
        learnt.whole(1_000, 0, 100, Duration::from_millis(1_100), &published);
        assert!(near(published.terms().tokens_per_second, 10_000.0), "{:?}", published.terms());
        let (learnt, published) = (Learnt::default(), Published::default());
        learnt.first_token(1_000, 0, Duration::from_millis(100), &published);
        learnt.whole(1_000, 0, 100, Duration::from_millis(1_100), &published);
        assert!(near(published.terms().step_us, 10_000.0), "{:?}", published.terms());
    }
}
