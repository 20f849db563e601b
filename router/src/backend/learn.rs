//! What is learnt of an engine's server from its own answers: nothing of it has to be configured.
//!
//! A prompt's time to first token divided by the tokens that had to be computed until then (those of prompts
//! sent before included) is its rate; time between two pieces of a stream is its step. Both are ratios of
//! sums in which an older sample counts [`KEEP`] times the next younger one, so that long prompts, which say
//! more, weigh more.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

/// Weight of what was learnt before, at each new sample.
const KEEP: f64 = 0.9;
/// Fewer tokens than this say more about the network than about the engine.
const TOKENS_MIN: u64 = 32;

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

    fn value(self) -> Option<f64> {
        (self.below > 0.0 && self.above > 0.0).then(|| self.above / self.below)
    }
}

#[derive(Debug, Default)]
struct Sums {
    /// Tokens over seconds.
    rate: Ratio,
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

impl Learnt {
    /// The first token came `took` after a prompt was sent behind which `tokens` had to be computed, and
    /// `loaded` of them were to be loaded instead.
    pub(crate) fn first_token(&self, tokens: u64, loaded: u64, took: Duration, published: &Published) {
        let mut sums = self.0.lock();
        let seconds = took.as_secs_f64();
        if loaded >= TOKENS_MIN
            && let Some(rate) = sums.rate.value()
        {
            let loading = seconds - tokens as f64 / rate;
            if loading > 0.0 {
                sums.load.add(loading * 1e6, loaded as f64);
            }
        } else if tokens >= TOKENS_MIN && seconds > 0.0 {
            sums.rate.add(tokens as f64, seconds);
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
        for (bits, ratio) in [(&self.rate, sums.rate), (&self.step, sums.step), (&self.load, sums.load)] {
            bits.store(ratio.value().unwrap_or(0.0).to_bits(), Ordering::Relaxed);
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
        let first_token = |tokens, ms| learnt.first_token(tokens, 0, Duration::from_millis(ms), &published);
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
}
