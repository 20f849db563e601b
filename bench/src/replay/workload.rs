//! The requests of a replay: a trace, sped up and enlarged.

use anyhow::ensure;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::clock::Nanos;
use crate::trace::{BLOCK_TOKENS, Request, Trace, spread};

/// Tokens of a block of the engine.
pub(crate) const ENGINE_BLOCK_TOKENS: u64 = 64;

/// The copies of an enlarged trace begin within this time of each other, so that they don't all arrive at
/// the same moments.
const COPIES_APART: Nanos = 60_000_000_000;

/// A request of the replay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) at: Nanos,
    /// In the trace.
    request: u32,
    copy: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Workload<'a> {
    trace: &'a Trace,
    /// In order of time.
    jobs: Vec<Job>,
}

impl<'a> Workload<'a> {
    /// `scale` copies of the trace with prompts of their own, `speed` times as fast as it was recorded.
    pub(crate) fn new(trace: &'a Trace, speed: f64, scale: u32, seed: u64) -> anyhow::Result<Self> {
        ensure!(speed.is_finite() && speed > 0.0, "a speed of {speed} is none");
        ensure!(scale > 0, "a trace 0 times as large has no requests");
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut jobs = Vec::with_capacity(trace.requests.len() * scale as usize);
        for copy in 0..scale {
            let late = if copy == 0 { 0 } else { rng.random_range(0..COPIES_APART) };
            jobs.extend(trace.requests.iter().enumerate().map(|(number, request)| Job {
                at: ((request.at.as_nanos() as u64 + late) as f64 / speed) as Nanos,
                request: number as u32,
                copy,
            }));
        }
        jobs.sort_by_key(|job| job.at);
        Ok(Self { trace, jobs })
    }

    pub(crate) fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    /// There are no more blocks than these.
    pub(crate) fn blocks_max(&self) -> usize {
        let copies = self.jobs.len() / self.trace.requests.len().max(1);
        self.trace.unique_blocks * (BLOCK_TOKENS / ENGINE_BLOCK_TOKENS) as usize * copies
    }

    /// Whether it is of the trace as it was recorded, not of a copy.
    pub(crate) fn is_first_copy(&self, job: u32) -> bool {
        self.jobs[job as usize].copy == 0
    }

    pub(crate) fn request(&self, job: u32) -> &'a Request {
        &self.trace.requests[self.jobs[job as usize].request as usize]
    }

    /// Keys of the whole blocks of a prompt, each for itself and all before it.
    pub(crate) fn keys(&self, job: u32) -> Vec<u64> {
        let request = self.request(job);
        let salt = u64::from(self.jobs[job as usize].copy) << 32;
        let parts = BLOCK_TOKENS / ENGINE_BLOCK_TOKENS;
        let whole = request.prompt_tokens / ENGINE_BLOCK_TOKENS;
        let key = |block: u64| {
            let id = request.blocks[(block / parts) as usize];
            spread(id ^ salt ^ ((block % parts) << 56))
        };
        (0..whole).map(key).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_trace_is_cut_into_blocks_of_the_engine() {
        let trace = Trace::synthetic(1, 30);
        let workload = Workload::new(&trace, 1.0, 1, 7).unwrap();
        let mut all = HashSet::new();
        for job in 0..workload.jobs().len() as u32 {
            let (request, keys) = (workload.request(job), workload.keys(job));
            assert_eq!(keys.len() as u64, request.prompt_tokens / 64);
            assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
            assert_eq!(keys[..8], workload.keys(0)[..8], "the system prompt");
            all.extend(keys);
        }
        assert!(all.len() <= trace.unique_blocks * 8);
    }

    #[test]
    fn copies_share_nothing_and_speed_is_time() {
        let trace = Trace::synthetic(1, 10);
        let count = trace.requests.len();
        let workload = Workload::new(&trace, 2.0, 3, 7).unwrap();
        assert_eq!(workload.jobs().len(), 3 * count);
        assert!(workload.jobs().is_sorted_by_key(|job| job.at));
        let first: Vec<_> =
            (0..3 * count as u32).filter(|job| workload.jobs()[*job as usize].copy == 0).collect();
        for (job, request) in first.iter().zip(&trace.requests) {
            assert_eq!(workload.jobs()[*job as usize].at * 2, request.at.as_nanos() as u64);
        }
        let keys = |copy| -> HashSet<u64> {
            let jobs = (0..3 * count as u32).filter(|job| workload.jobs()[*job as usize].copy == copy);
            jobs.flat_map(|job| workload.keys(job)).collect()
        };
        assert!(keys(0).is_disjoint(&keys(1)) && keys(1).is_disjoint(&keys(2)));
        assert_eq!(keys(0).len(), keys(1).len());
    }

    #[test]
    fn nonsense_is_refused() {
        let trace = Trace::synthetic(1, 3);
        for (speed, scale) in [(0.0, 1), (f64::NAN, 1), (-1.0, 1), (1.0, 0)] {
            assert!(Workload::new(&trace, speed, scale, 1).is_err(), "{speed} {scale}");
        }
    }
}
