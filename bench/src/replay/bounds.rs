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
    let (mut ideal, mut pooled, mut all) = (0, 0, 0);
    for job in 0..workload.jobs().len() as u32 {
        let prompt_tokens = workload.request(job).prompt_tokens;
        let keys = workload.keys(job);
        // The last token is computed in any case.
        let useful = &keys[..keys.len().min(((prompt_tokens - 1) / ENGINE_BLOCK_TOKENS) as usize)];
        ideal += useful.iter().take_while(|key| seen.contains(*key)).count() as u64;
        let (matched, _) = pool.matched(useful);
        pooled += matched as u64;
        all += prompt_tokens;
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
        seen.extend(keys);
    }
    let share = |blocks: u64| (blocks * ENGINE_BLOCK_TOKENS) as f64 / all.max(1) as f64;
    Bounds { ideal: share(ideal), pooled: share(pooled) }
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
    }
}
