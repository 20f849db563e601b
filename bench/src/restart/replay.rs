//! A trace through the whole store, with and without a kill -9 in its middle, and with packs in S3.
//!
//! The store runs in a process of its own: this executable once more, told by a hidden flag. It serves the
//! requests in the order of the trace at many times its speed, compares every block that it finds with what was
//! stored, and says after each request what it found. The parent listens, kills and counts.
//!
//! Blocks are small, so that the trace fits a disk; packs and reads of them are scaled with them, as if blocks
//! had 512 KiB.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use kelvin_kvstore::SequenceHash;
use kelvin_kvstore::bench_support::{Moved, NvmeSpace, ObjectSpace, Offload, Served, TierOptions, Tiered};
use kelvin_tiering::testing::{S3Sim, S3SimOptions};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::report::{Report, number};
use crate::trace::Trace;

const BLOCK_BYTES: u64 = 8 << 10;
/// The blocks stand for such of 512 KiB, in packs of 32 MiB.
const PACK_BYTES: u64 = (32 << 20) / (512 << 10) * BLOCK_BYTES;
/// Tiers in percent of the trace's unique blocks: DRAM and NVMe where NVMe is the last tier ...
const DRAM_PERCENT: u64 = 5;
const NVME_PERCENT: u64 = 20;
/// ... and where packs are.
const DRAM_ABOVE_PACKS_PERCENT: u64 = 2;
const NVME_ABOVE_PACKS_PERCENT: u64 = 5;
/// What the store takes at least.
const DRAM_BYTES_MIN: u64 = 4 << 20;
const NVME_BYTES_MIN: u64 = 64 << 20;
/// At most so many S3 requests a block.
const REQUESTS_GOAL: f64 = 0.1;
/// Conversations of a synthetic trace.
const CONVERSATIONS: usize = 400;

/// What a child does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    trace: Option<PathBuf>,
    seed: u64,
    /// Times the trace's own speed.
    speed: f64,
    dir: PathBuf,
    dram_bytes: u64,
    /// 0 for no NVMe.
    nvme_bytes: u64,
    /// URL and endpoint.
    object: Option<(String, String)>,
    eager: bool,
    /// The first request.
    from: usize,
}

/// What a child says, a line each.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Started { known: usize, lost: u64 },
    Served { request: usize, hits: usize, known: usize },
    Done(Box<Totals>),
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Totals {
    offloaded: u64,
    onboarded: u64,
    uncopied: u64,
    damaged: u64,
    packed: u64,
    unpacked: u64,
    puts: u64,
    gets: u64,
}

impl From<Moved> for Totals {
    fn from(moved: Moved) -> Self {
        Self {
            offloaded: moved.nvme_offloaded,
            onboarded: moved.nvme_onboarded,
            uncopied: moved.uncopied,
            damaged: moved.damaged,
            packed: moved.object.blocks_written,
            unpacked: moved.object.blocks_read,
            puts: moved.object.puts,
            gets: moved.object.gets,
        }
    }
}

fn load(trace: Option<&Path>, seed: u64) -> anyhow::Result<Trace> {
    match trace {
        Some(path) => Trace::load(path),
        None => Ok(Trace::synthetic(seed, CONVERSATIONS)),
    }
}

/// The child's side: serves the requests from one on, and says what it finds.
pub(super) async fn serve(plan: &str) -> anyhow::Result<()> {
    let plan: Plan = serde_json::from_str(plan).context("read the plan")?;
    let trace = load(plan.trace.as_deref(), plan.seed)?;
    let [data, nvme] = ["data", "nvme"].map(|name| plan.dir.join(name));
    for dir in [&data, &nvme] {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let object = plan.object.clone().map(|(url, endpoint)| ObjectSpace {
        url,
        endpoint: Some(endpoint),
        bytes: None,
        pack_bytes: Some(PACK_BYTES),
    });
    let options = TierOptions {
        data: Some(data),
        nvme: match plan.nvme_bytes {
            0 => Vec::new(),
            bytes => vec![NvmeSpace { path: nvme, bytes }],
        },
        object,
        offload: if plan.eager { Offload::Eager } else { Offload::NearEviction },
        ..TierOptions::default()
    };
    let store =
        Tiered::start(plan.dram_bytes, options, BLOCK_BYTES).await.map_err(|error| anyhow::anyhow!(error))?;
    let mut out = std::io::stdout().lock();
    let mut say = |word: Word| -> anyhow::Result<()> {
        serde_json::to_writer(&mut out, &word)?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    };
    say(Word::Started { known: store.known_blocks(), lost: store.moved().lost })?;
    let requests = &trace.requests[plan.from.min(trace.requests.len())..];
    let (begin, first) = (Instant::now(), requests.first().map_or(Duration::ZERO, |request| request.at));
    for (request, at) in requests.iter().zip(plan.from..) {
        let due = (request.at - first).div_f64(plan.speed);
        tokio::time::sleep(due.saturating_sub(begin.elapsed())).await;
        let hashes: Vec<SequenceHash> = request.blocks.iter().map(|block| hash(*block)).collect();
        let Served { hit_blocks, .. } = store.serve(&hashes, content).await?;
        say(Word::Served { request: at, hits: hit_blocks, known: store.known_blocks() })?;
    }
    let moved = store.moved();
    store.stop().await;
    say(Word::Done(Box::new(moved.into())))
}

/// The numbers of a trace are spread over 64 bits; a hash has 128.
fn hash(block: u64) -> SequenceHash {
    let mut bytes = [0; 16];
    SmallRng::seed_from_u64(block).fill_bytes(&mut bytes);
    SequenceHash::from_bytes(bytes)
}

/// What a block holds.
fn content(hash: SequenceHash, bytes: &mut [u8]) {
    SmallRng::seed_from_u64(hash.as_u128() as u64).fill_bytes(bytes);
}

/// A run, as its parent saw it.
#[derive(Debug, Default)]
struct Run {
    /// Hits of each request.
    hits: Vec<usize>,
    /// Distinct blocks before the kill, and after the start that follows.
    before: usize,
    after: usize,
    lost: u64,
    totals: Totals,
}

impl Run {
    /// Hit tokens over prompt tokens from a request on.
    fn rate(&self, trace: &Trace, from: usize) -> f64 {
        let mut sums = (0, 0);
        for (request, hits) in trace.requests.iter().zip(&self.hits).skip(from) {
            sums = (sums.0 + request.tokens(*hits), sums.1 + request.prompt_tokens);
        }
        sums.0 as f64 / (sums.1 as f64).max(1.0)
    }
}

/// Ends the child with the parent.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the trace, with a kill -9 after one of the requests where that is wanted.
fn run(plan: &Plan, requests: usize, kill_after: Option<usize>) -> anyhow::Result<Run> {
    let mut run = Run { hits: vec![0; requests], ..Run::default() };
    let mut plan = plan.clone();
    let mut kill_after = kill_after;
    loop {
        let mut child = Command::new(std::env::current_exe().context("find this executable")?)
            .args(["restart", "--replay", &serde_json::to_string(&plan)?])
            .env("AWS_ACCESS_KEY_ID", S3SimOptions::default().credentials.key_id)
            .env("AWS_SECRET_ACCESS_KEY", S3SimOptions::default().credentials.secret)
            .env("AWS_REGION", "us-east-1")
            .stdout(Stdio::piped())
            .spawn()
            .context("start a store")?;
        let said = child.stdout.take().context("its output is piped")?;
        let mut child = Ended(child);
        let mut next = None;
        for line in BufReader::new(said).lines() {
            match serde_json::from_str(&line?).context("read what the store says")? {
                Word::Started { known, lost } if plan.from > 0 => (run.after, run.lost) = (known, lost),
                Word::Started { .. } => {}
                Word::Served { request, hits, known } => {
                    *run.hits.get_mut(request).context("a request of the trace")? = hits;
                    next = Some(request + 1);
                    if kill_after == Some(request) {
                        child.0.kill().context("kill the store")?;
                        run.before = known;
                        // What it said before it died is still read.
                        kill_after = None;
                        plan.from = request + 1;
                    }
                }
                Word::Done(totals) => {
                    run.totals = *totals;
                    ensure!(child.0.wait()?.success(), "the store failed");
                    return Ok(run);
                }
            }
        }
        // Without a last word it was killed, or failed.
        ensure!(
            kill_after.is_none() && plan.from > 0,
            "the store ended before the trace: {}",
            child.0.wait()?
        );
        if next.is_some_and(|next| next < plan.from) {
            bail!("the store fell behind itself");
        }
        plan.from = next.context("it served something")?;
    }
}

/// Measures, and adds to the report.
pub(super) fn measure(
    (trace_file, seed, speed): (Option<&Path>, u64, f64),
    dir: &Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    let trace = load(trace_file, seed)?;
    let requests = trace.requests.len();
    let share = |percent: u64| trace.unique_blocks as u64 * percent / 100 * BLOCK_BYTES;
    let nvme = |percent| share(percent).next_multiple_of(1 << 20).max(NVME_BYTES_MIN);
    let plan = |name: &str, dram: u64, nvme_percent| Plan {
        trace: trace_file.map(Path::to_owned),
        seed,
        speed,
        dir: dir.join(name),
        dram_bytes: share(dram).max(DRAM_BYTES_MIN),
        nvme_bytes: nvme(nvme_percent),
        object: None,
        eager: false,
        from: 0,
    };
    let half = requests / 2;
    report.line(format!(
        "\na trace through the store at {speed} times its speed: {requests} requests, {} unique blocks; DRAM for {DRAM_PERCENT} % \
         of them, NVMe for {NVME_PERCENT} %\nhit tokens / prompt tokens in the second half; kill -9 in the middle\n  {:<18}{:>12}{:>12}{:>14}{:>14}{:>12}",
        trace.unique_blocks, "offload", "no kill", "killed", "blocks before", "after", "not written",
    ));
    for (name, eager) in [("near-eviction", false), ("eager", true)] {
        let plan = |kind: &str| Plan { eager, ..plan(&format!("{name}-{kind}"), DRAM_PERCENT, NVME_PERCENT) };
        let whole = run(&plan("whole"), requests, None)?;
        let killed = run(&plan("killed"), requests, Some(half - 1))?;
        ensure!(whole.totals.damaged + killed.totals.damaged == 0, "blocks came back damaged");
        let (rate, after) = (whole.rate(&trace, half), killed.rate(&trace, half));
        report.line(format!(
            "  {name:<18}{rate:>12.4}{after:>12.4}{:>14}{:>14}{:>12}",
            killed.before,
            killed.after,
            killed.before.saturating_sub(killed.after)
        ));
        report.compared(format!("trace.{name}.killed"), after, "hit rate", rate, after / rate);
        report.figure(format!("trace.{name}.known_before"), killed.before as f64, "blocks");
        report.figure(format!("trace.{name}.known_after"), killed.after as f64, "blocks");
    }
    packs(&trace, &plan("packs", DRAM_ABOVE_PACKS_PERCENT, NVME_ABOVE_PACKS_PERCENT), report)
}

/// The same with packs below NVMe, in an S3 server here.
fn packs(trace: &Trace, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let options = S3SimOptions::default();
    let url = format!("s3://{}/packs", options.bucket);
    let sim = S3Sim::start(options).context("start the S3 server")?;
    // A short trace fits the least NVMe there can be: then packs take what DRAM drops.
    let fits = trace.unique_blocks as u64 * BLOCK_BYTES <= plan.nvme_bytes;
    let nvme_bytes = if fits { 0 } else { plan.nvme_bytes };
    let plan = Plan { object: Some((url, sim.endpoint())), nvme_bytes, ..plan.clone() };
    let run = run(&plan, trace.requests.len(), None)?;
    let totals = &run.totals;
    ensure!(totals.damaged == 0, "blocks came back damaged");
    ensure!(totals.packed > 0, "no block went to a pack: the trace is too small for these tiers");
    let a_block = |requests: u64, blocks: u64| requests as f64 / (blocks.max(1)) as f64;
    let (puts, gets) = (a_block(totals.puts, totals.packed), a_block(totals.gets, totals.unpacked));
    let mut line = format!(
        "\nthe same with packs in S3 below: DRAM for {DRAM_ABOVE_PACKS_PERCENT} %, NVMe for {NVME_ABOVE_PACKS_PERCENT} %\n  hit rate in the second half {:.4}\n",
        run.rate(trace, trace.requests.len() / 2)
    );
    let _ = write!(
        line,
        "  {} blocks written with {} PUTs, {} a block; {} read with {} GETs, {} a block (goal {REQUESTS_GOAL})\n  \
         {} blocks to NVMe, {} back; {} dropped before they had a copy",
        totals.packed,
        totals.puts,
        number(puts),
        totals.unpacked,
        totals.gets,
        number(gets),
        totals.offloaded,
        totals.onboarded,
        totals.uncopied
    );
    report.line(line);
    report.compared("trace.puts_a_block", puts, "requests", REQUESTS_GOAL, REQUESTS_GOAL / puts);
    report.compared("trace.gets_a_block", gets, "requests", REQUESTS_GOAL, REQUESTS_GOAL / gets.max(1e-9));
    Ok(())
}
