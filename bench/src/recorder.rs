//! Distributions of what many requests took.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::client::{Completed, Failure};

/// A day in microseconds; what is more counts as that.
const HIGHEST: u64 = 86_400_000_000;

/// Distributions in microseconds or tokens, three digits exact.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    pub(crate) first_us: Histogram<u64>,
    pub(crate) gap_us: Histogram<u64>,
    pub(crate) total_us: Histogram<u64>,
    pub(crate) cached_tokens: Histogram<u64>,
    pub(crate) prompt_tokens: Histogram<u64>,
    pub(crate) completion_tokens: u64,
    pub(crate) requests: u64,
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Recorder {
    pub(crate) fn new() -> Recorder {
        let histogram = || Histogram::new_with_bounds(1, HIGHEST, 3).expect("the bounds are possible");
        Recorder {
            first_us: histogram(),
            gap_us: histogram(),
            total_us: histogram(),
            cached_tokens: histogram(),
            prompt_tokens: histogram(),
            completion_tokens: 0,
            requests: 0,
            errors: BTreeMap::new(),
        }
    }

    /// Takes one outcome. `late` is how long the request was sent after it was due: it counts, since a user
    /// would have waited for it too.
    pub(crate) fn record(&mut self, outcome: &Result<Completed, Failure>, late: Duration) {
        self.requests += 1;
        match outcome {
            Ok(completed) => {
                self.first_us.saturating_record(micros(completed.first + late));
                self.total_us.saturating_record(micros(completed.total + late));
                for gap in &completed.gaps {
                    self.gap_us.saturating_record(micros(*gap));
                }
                self.cached_tokens.saturating_record(completed.usage.cached_tokens);
                self.prompt_tokens.saturating_record(completed.usage.prompt_tokens);
                self.completion_tokens += completed.usage.completion_tokens;
            }
            Err(failure) => *self.errors.entry(failure.to_string()).or_default() += 1,
        }
    }

    pub(crate) fn errors_total(&self) -> u64 {
        self.errors.values().sum()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Usage;

    #[test]
    fn lateness_counts_and_errors_are_told_apart() {
        let mut recorder = Recorder::new();
        let completed = Completed {
            first: Duration::from_millis(2),
            gaps: vec![Duration::from_millis(1); 3],
            total: Duration::from_millis(5),
            text: String::new(),
            usage: Usage { prompt_tokens: 10, cached_tokens: 4, completion_tokens: 4 },
        };
        recorder.record(&Ok(completed), Duration::from_millis(10));
        recorder.record(&Err(Failure::Cut), Duration::ZERO);
        recorder.record(&Err(Failure::Cut), Duration::ZERO);
        recorder.record(&Err(Failure::Silent), Duration::ZERO);
        assert!(recorder.first_us.max().abs_diff(12_000) <= 12);
        assert!(recorder.total_us.max().abs_diff(15_000) <= 15);
        assert_eq!((recorder.gap_us.len(), recorder.requests, recorder.completion_tokens), (3, 4, 4));
        assert_eq!((recorder.errors.len(), recorder.errors_total()), (2, 3));
    }
}
