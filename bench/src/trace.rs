//! Traces of requests: which blocks a prompt has, and when it came.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;

/// Tokens of a block; the last one of a request may have fewer.
pub(crate) const BLOCK_TOKENS: u64 = 512;

/// One prompt.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Since the start of the trace.
    pub(crate) at: Duration,
    pub(crate) prompt_tokens: u64,
    /// Tokens of the answer, at least one.
    pub(crate) output_tokens: u64,
    /// Its blocks, each named by a hash of it and of all before it.
    pub(crate) blocks: Vec<u64>,
}

impl Request {
    /// Tokens in its first `blocks`.
    pub(crate) fn tokens(&self, blocks: usize) -> u64 {
        (BLOCK_TOKENS * blocks as u64).min(self.prompt_tokens)
    }
}

/// Requests in order of time.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) requests: Vec<Request>,
    pub(crate) unique_blocks: usize,
}

/// A line of a file in the format of Mooncake's traces.
#[derive(Deserialize)]
struct Line {
    /// Milliseconds.
    timestamp: u64,
    input_length: u64,
    /// Of a trace of prompts alone: none.
    #[serde(default)]
    output_length: u64,
    hash_ids: Vec<u64>,
}

impl Trace {
    /// Reads JSON lines of `timestamp` (ms), `input_length` and `hash_ids`, where an id names 512 tokens and
    /// all before them.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut requests = Vec::new();
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let context = || format!("read line {} of {}", number + 1, path.display());
            let line: Line = serde_json::from_str(&line.with_context(context)?).with_context(context)?;
            let fits = line.hash_ids.len() as u64 == line.input_length.div_ceil(BLOCK_TOKENS);
            ensure!(fits, "{}: {} tokens in {} blocks", context(), line.input_length, line.hash_ids.len());
            ensure!(line.input_length > 0, "{}: an empty prompt", context());
            requests.push(Request {
                at: Duration::from_millis(line.timestamp),
                prompt_tokens: line.input_length,
                output_tokens: line.output_length.max(1),
                blocks: line.hash_ids.into_iter().map(spread).collect(),
            });
        }
        ensure!(!requests.is_empty(), "{} has no requests", path.display());
        Ok(Self::new(requests))
    }

    /// Conversations with a common system prompt: users think for a minute or so and may go on.
    pub(crate) fn synthetic(seed: u64, conversations: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut requests = Vec::new();
        let mut next_block = 1;
        for number in 0..conversations {
            // The rest of each turn's last block is filled in the next turn, so that block is another one.
            let mut at = Duration::from_millis(number as u64 * 500);
            let mut whole = vec![spread(0)];
            let goes_on = if rng.random_bool(0.3) { 0.85 } else { 0.15 };
            loop {
                let mut append = |count: u64, blocks: &mut Vec<u64>| {
                    blocks.extend((next_block..next_block + count).map(spread));
                    next_block += count;
                };
                append(rng.random_range(1..12), &mut whole);
                let mut blocks = whole.clone();
                append(1, &mut blocks);
                let prompt_tokens = whole.len() as u64 * BLOCK_TOKENS + rng.random_range(1..BLOCK_TOKENS);
                let output_tokens = 50 + spread(next_block) % 400;
                requests.push(Request { at, prompt_tokens, output_tokens, blocks });
                if !rng.random_bool(goes_on) {
                    break;
                }
                at += Duration::from_secs(rng.random_range(20..150));
            }
        }
        requests.sort_by_key(|request| request.at);
        Self::new(requests)
    }

    pub(crate) fn new(requests: Vec<Request>) -> Self {
        let blocks = requests.iter().flat_map(|request| &request.blocks);
        let unique_blocks = blocks.collect::<HashSet<_>>().len();
        Self { requests, unique_blocks }
    }
}

/// A number that is spread over all bits, as hashes are (the last steps of SplitMix64).
pub(crate) fn spread(id: u64) -> u64 {
    let id = id.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    id ^ (id >> 31)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_trace_is_read_and_checked() {
        let load = |text: &str| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            Trace::load(file.path())
        };
        let trace = load(
            "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 5, \"hash_ids\": [0, 1]}\n\
             {\"timestamp\": 1500, \"input_length\": 1024, \"output_length\": 5, \"hash_ids\": [0, 2]}\n",
        )
        .unwrap();
        assert_eq!((trace.requests.len(), trace.unique_blocks), (2, 3));
        assert_eq!(trace.requests[0].blocks[0], trace.requests[1].blocks[0]);
        assert_eq!(trace.requests[1].at, Duration::from_millis(1500));
        assert_eq!((trace.requests[0].tokens(1), trace.requests[0].tokens(2)), (512, 600));
        assert!(load("").is_err());
        assert!(load("{\"timestamp\": 0, \"input_length\": 600, \"hash_ids\": [0]}\n").is_err());
        assert!(format!("{:#}", load("{}\n").unwrap_err()).contains("line 1"));
    }

    #[test]
    fn a_synthetic_trace_comes_back_to_its_prefixes() {
        let trace = Trace::synthetic(7, 200);
        assert!(trace.requests.is_sorted_by_key(|request| request.at));
        let mut seen: HashSet<u64> = HashSet::new();
        let mut hits = 0;
        for request in &trace.requests {
            assert_eq!(request.blocks.len() as u64, request.prompt_tokens.div_ceil(BLOCK_TOKENS));
            hits += request.blocks.iter().take_while(|block| seen.contains(*block)).count();
            seen.extend(request.blocks.iter().copied());
        }
        let uses: usize = trace.requests.iter().map(|request| request.blocks.len()).sum();
        assert_eq!(trace.unique_blocks, seen.len());
        assert!(hits * 5 > uses, "{hits} of {uses} are reused");
    }
}
