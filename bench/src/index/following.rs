//! What a router's request takes to know what the store has of its prompt: a lookup in the index that follows the store,
//! and a `Match` to the same store, in turns, each from the prompt's tokens on.
//!
//! Store and router are in one process, on loopback: what a network adds to a `Match` is not in it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use kelvin_kvstore::server::{Listening, ServerConfig, serve};
use kelvin_kvstore::{Client, ClientOptions, Namespace, Reserved};
use kelvin_router::bench_support::Following;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::record;
use crate::namespace::spec;
use crate::report::{Report, number};

const PROMPTS: usize = 64;
const PROMPT_TOKENS: usize = 2_048;
const BLOCK_TOKENS: u32 = 16;
/// Most time until the index has what the store has.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures so many of both, in a runtime of its own.
pub(super) fn measure(seed: u64, lookups: u32, report: &mut Report) -> anyhow::Result<()> {
    std::thread::scope(|scope| scope.spawn(|| run(seed, lookups, report)).join().expect("it does not panic"))
}

fn run(seed: u64, lookups: u32, report: &mut Report) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start a runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let config = ServerConfig::new(64 << 20);
        let (ready, listening) = tokio::sync::oneshot::channel();
        let store = tokio::spawn(serve(config, |listening| drop(ready.send(listening)), stop.clone()));
        let listening: Listening = listening.await.context("the store does not listen")?;
        let measured = lookup(&listening, seed, lookups, report).await;
        stop.cancel();
        store.await??;
        measured
    })
}

async fn lookup(listening: &Listening, seed: u64, lookups: u32, report: &mut Report) -> anyhow::Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let prompt = |rng: &mut SmallRng| (0..PROMPT_TOKENS).map(|_| rng.random()).collect::<Vec<u32>>();
    let prompts: Vec<_> = (0..PROMPTS).map(|_| prompt(&mut rng)).collect();
    let namespace = open(listening).await?;
    for prompt in &prompts {
        fill(&namespace, prompt).await?;
    }
    let blocks = PROMPT_TOKENS / BLOCK_TOKENS as usize;
    let following = Following::start(namespace, 256 << 20);
    let known = async {
        while following.blocks() < PROMPTS * blocks {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, known).await.context("the index does not come to what the store has")?;
    let mut times = [(); 2].map(|()| Histogram::<u64>::new(3).expect("three digits are allowed"));
    for _ in 0..lookups {
        let prompt = &prompts[rng.random_range(0..PROMPTS)];
        let start = Instant::now();
        let indexed = following.indexed(prompt);
        record(&mut times[0], start.elapsed());
        let start = Instant::now();
        let matched = following.matched(prompt).await?;
        record(&mut times[1], start.elapsed());
        ensure!(indexed == Some(blocks) && matched == blocks, "{indexed:?} and {matched} of {blocks} blocks");
    }
    let us = |at: usize, quantile: f64| times[at].value_at_quantile(quantile) as f64 / 1e3;
    report.line(format!(
        "\nwhat the store has of a prompt of {PROMPT_TOKENS} tokens, its hashes included, {} blocks stored",
        PROMPTS * blocks
    ));
    for (at, name, what) in
        [(0, "followed", "in the index that follows it"), (1, "match", "by a Match on loopback")]
    {
        let (p50, p99) = (us(at, 0.5), us(at, 0.99));
        report.line(format!("  {what}: p50 {} us, p99 {} us", number(p50), number(p99)));
        report.figure(format!("lookup.{name}.p50"), p50, "us");
        report.figure(format!("lookup.{name}.p99"), p99, "us");
    }
    Ok(())
}

async fn open(listening: &Listening) -> anyhow::Result<Namespace> {
    // As a router does.
    let endpoint = format!("http://{}", listening.grpc);
    let options = ClientOptions { shared_memory: false, ..ClientOptions::new(endpoint, "bench") };
    let spec = spec("lookup", BLOCK_TOKENS, 1_024);
    Ok(Client::connect(options).await?.open(spec).await?)
}

async fn fill(namespace: &Namespace, prompt: &[u32]) -> anyhow::Result<()> {
    let mut filled = Vec::new();
    for block in namespace.reserve(None, &namespace.hash_blocks(prompt, &[])).await? {
        let Reserved::Write(lease) = block else { anyhow::bail!("not reserved: {block:?}") };
        filled.push(lease);
    }
    namespace.commit(filled).await?;
    Ok(())
}
