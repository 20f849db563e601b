//! What no router can exceed: reuse where every request finds all that was kept before it.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use kelvin_kvstore::HashMixer;

use super::cache::DeviceCache;
use super::workload::{ENGINE_BLOCK_TOKENS, Workload};

/// Shares of the prompt tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bounds {
    /// Nothing is ever dropped.
    pub(crate) ideal: f64,
    /// All engines' memory is one, least recently used blocks go first.
    pub(crate) pooled: f64,
}

/// One request after the other, each done before the next.
pub(crate) fn bounds(workload: &Workload<'_>, pool_blocks: usize) -> Bounds {
    let mut seen: HashSet<u64, BuildHasherDefault<HashMixer>> = HashSet::default();
    let mut pool = DeviceCache::new(pool_blocks);
    let (mut ideal, mut pooled) = (Share::default(), Share::default());
    for job in 0..workload.jobs().len() as u32 {
        let prompt_tokens = workload.request(job).prompt_tokens;
        let keys = workload.keys(job);
        // The last token is computed in any case.
        let useful = &keys[..keys.len().min(((prompt_tokens - 1) / ENGINE_BLOCK_TOKENS) as usize)];
        let (matched, _) = pool.matched(useful);
        pooled.add(matched, prompt_tokens);
        let mut slots: Vec<_> = keys[..matched].iter().filter_map(|key| pool.take(*key)).collect();
        for key in &keys[matched..] {
            // A prompt that exceeds the pool keeps its beginning.
            let slot = match pool.matched(std::slice::from_ref(key)) {
                (1, _) => pool.take(*key),
                _ => pool.allocate().inspect(|slot| {
                    pool.register(*slot, *key);
                }),
            };
            slots.extend(slot);
        }
        pool.release(&slots);
        pool.take_evicted();
        // The copies of a trace share nothing, and of each the same is found.
        if workload.is_first_copy(job) {
            ideal.add(useful.iter().take_while(|key| seen.contains(*key)).count(), prompt_tokens);
            seen.extend(keys);
        }
    }
    Bounds { ideal: ideal.share(), pooled: pooled.share() }
}

/// Blocks that were found, of so many tokens.
#[derive(Default)]
struct Share {
    blocks: u64,
    tokens: u64,
}

impl Share {
    fn add(&mut self, blocks: usize, tokens: u64) {
        self.blocks += blocks as u64;
        self.tokens += tokens;
    }

    fn share(&self) -> f64 {
        (self.blocks * ENGINE_BLOCK_TOKENS) as f64 / self.tokens.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;

    #[test]
    fn a_large_pool_is_ideal_and_a_small_one_is_not() {
        let trace = Trace::synthetic(3, 60);
        let workload = Workload::new(&trace, 1.0, 1, 1).unwrap();
        let large = bounds(&workload, trace.unique_blocks * 8);
        assert!(large.ideal > 0.1 && large.ideal < 1.0);
        assert_eq!(large.pooled, large.ideal);
        let small = bounds(&workload, 200);
        assert_eq!(small.ideal, large.ideal);
        assert!(small.pooled < large.ideal);
        let copies = Workload::new(&trace, 1.0, 3, 1).unwrap();
        assert_eq!(bounds(&copies, trace.unique_blocks * 24), large);
    }
}
