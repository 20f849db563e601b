//! The figures of a replay.

use super::simulation::{Replayed, Served};

/// See the module. Times in milliseconds, shares of the prompt tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    /// Of prompt tokens that were not computed.
    pub(crate) reuse: f64,
    /// Those of them that were in the engine's memory.
    pub(crate) own_reuse: f64,
    pub(crate) ttft_mean: f64,
    pub(crate) ttft_p50: f64,
    pub(crate) ttft_p95: f64,
    pub(crate) ttft_p99: f64,
    /// Mean time between tokens.
    pub(crate) itl_mean: f64,
    pub(crate) preemptions: u64,
}

impl Summary {
    pub(crate) fn of(replayed: &Replayed) -> Self {
        let served = &replayed.served;
        let sum = |of: fn(&Served) -> u64| served.iter().map(of).sum::<u64>() as f64;
        let prompt_tokens = sum(|served| served.prompt_tokens).max(1.0);
        let own = sum(|served| served.device_tokens);
        let ms = |nanos: u64| nanos as f64 / 1e6;
        let first = |served: &Served| served.first_token_at.expect("it was served");
        let mut ttft: Vec<f64> = served.iter().map(|served| ms(first(served) - served.arrived_at)).collect();
        ttft.sort_unstable_by(f64::total_cmp);
        let quantile = |share: f64| {
            let rank = (ttft.len() as f64 * share).ceil() as usize;
            ttft.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        let decoding: f64 =
            served.iter().map(|served| ms(served.done_at.expect("it was served") - first(served))).sum();
        Self {
            reuse: (own + sum(|served| served.loaded_tokens)) / prompt_tokens,
            own_reuse: own / prompt_tokens,
            ttft_mean: ttft.iter().sum::<f64>() / ttft.len().max(1) as f64,
            ttft_p50: quantile(0.50),
            ttft_p95: quantile(0.95),
            ttft_p99: quantile(0.99),
            itl_mean: decoding / sum(|served| served.output_tokens - 1).max(1.0),
            preemptions: replayed.preemptions,
        }
    }
}
