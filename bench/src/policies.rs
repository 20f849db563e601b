//! Workload `policies`: what each eviction policy hits on a trace, and what an operation of it costs.
//!
//! The store's own order of eviction replays the trace by its virtual clock, with one policy after the other
//! and at five sizes. A hit is the tokens of the longest cached prefix, over the tokens of the prompts, in the
//! second half of the trace; the blocks of the running request stay. On the conversation trace of Mooncake the
//! rates stand beside those of an independent simulator. That one's FIFO drops blocks from the middle of
//! sequences, which no policy here does; so it is replayed as it is defined there too, as `fifo, any block`.

mod curve;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasherDefault;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kelvin_kernels::copy_checksummed;
use kelvin_kvstore::HashMixer;
use kelvin_tiering::{Attributes, GhostBoard, GhostRate, Order, Policy, PolicyKind, Weight, build_policy};

use crate::report::{Report, number};
use crate::trace::{Request, Trace};

/// Hit rates of all eviction policies on a trace, and nanoseconds an operation
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Run in seconds, on a synthetic trace unless another is named
    #[arg(long)]
    smoke: bool,

    /// Trace to replay: JSON lines of timestamp (ms), input_length and hash_ids, as Mooncake publishes them
    #[arg(long, value_name = "FILE", required_unless_present = "smoke")]
    trace: Option<PathBuf>,

    /// Decides the synthetic trace
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Sizes in percent of the unique blocks.
const SIZES: [usize; 5] = [2, 5, 10, 20, 40];
/// Rates may differ by this from those of the simulator, and from the best of them.
const TOLERANCE: f64 = 0.005;
/// The conversation trace.
pub(crate) const CONVERSATIONS: (usize, usize) = (12_031, 182_790);
/// What an independent simulator measured there.
const SIMULATED: [(&str, [f64; 5]); 5] = [
    ("lru", [0.079, 0.204, 0.294, 0.367, 0.385]),
    ("arc", [0.113, 0.227, 0.310, 0.326, 0.384]),
    ("s3fifo", [0.118, 0.200, 0.234, 0.294, 0.384]),
    ("gdsf", [0.086, 0.219, 0.306, 0.359, 0.384]),
    (FIFO_ANY, [0.077, 0.179, 0.256, 0.325, 0.365]),
];
/// Of the best of those, at each size.
const SIMULATED_BEST: [f64; 5] = [0.118, 0.227, 0.310, 0.367, 0.385];
const SIMULATED_OPTIMUM: [f64; 5] = [0.331, 0.398, 0.398, 0.398, 0.398];
const FIFO_ANY: &str = "fifo, any block";

type Hasher = BuildHasherDefault<HashMixer>;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let trace = match &args.trace {
        Some(path) => Trace::load(path)?,
        None => Trace::synthetic(args.seed, 1500),
    };
    let last = trace.requests.last().map_or(Duration::ZERO, |request| request.at);
    let source = args.trace.as_deref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy());
    let subject = format!(
        "{}, {} requests in {:.0} s, {} unique blocks",
        source.unwrap_or("synthetic trace".into()),
        trace.requests.len(),
        last.as_secs_f64(),
        trace.unique_blocks
    );
    let mut report = Report::new("policies", args.seed, &subject);
    hits(&trace, &mut report);
    let curve = curve::compare(&trace, &mut report);
    costs(args.smoke, &mut report);
    report.finish(args.json.as_deref())?;
    // After the figures were shown.
    curve
}

fn hits(trace: &Trace, report: &mut Report) {
    let is_known = (trace.requests.len(), trace.unique_blocks) == CONVERSATIONS;
    report.line("hit tokens / prompt tokens, second half, by size in % of the unique blocks");
    report.line(row("policy", SIZES.map(|size| format!("{size} %"))));
    let mut missed = Vec::new();
    for kind in PolicyKind::ALL {
        let replayed = SIZES.map(|size| replay(trace, kind, capacity(trace, size)));
        let rates = replayed.each_ref().map(|(rate, _)| *rate);
        note(report, kind.name(), rates, is_known, &mut missed);
        if kind == PolicyKind::default() {
            for (size, (_, ghosts)) in SIZES.into_iter().zip(replayed) {
                ghosts.into_iter().for_each(|ghost| {
                    let name = format!("ghost.{}_{size}", ghost.kind);
                    report.figure(name, ghost.hit_rate, "of blocks used");
                });
            }
        }
    }
    let plain = SIZES.map(|size| replay_any_fifo(trace, capacity(trace, size)));
    note(report, FIFO_ANY, plain, is_known, &mut missed);
    if is_known {
        report.line(row("simulated: best", SIMULATED_BEST.map(rate)));
        report.line(row("simulated: optimum", SIMULATED_OPTIMUM.map(rate)));
        report.line(match &missed[..] {
            [] => format!("all as simulated within {TOLERANCE}, default and adaptive at least as good as the best less that"),
            missed => format!("missed by more than {TOLERANCE}: {}", missed.join("; ")),
        });
    }
    report.line(format!("default: {}", PolicyKind::default()));
}

/// A row of rates, and what is simulated or aimed at beside it.
fn note(report: &mut Report, name: &str, rates: [f64; 5], is_known: bool, missed: &mut Vec<String>) {
    report.line(row(name, rates.map(rate)));
    let simulated = SIMULATED.iter().find(|(simulated, _)| *simulated == name).map(|(_, rates)| *rates);
    let is_aimed_high = name == PolicyKind::default().name() || name == PolicyKind::Adaptive.name();
    let limits = simulated.or(is_aimed_high.then_some(SIMULATED_BEST)).filter(|_| is_known);
    let figure = |size| format!("hit.{}_{size}", name.replace(", ", "_").replace(' ', "_"));
    let Some(limits) = limits else {
        for (size, rate) in SIZES.into_iter().zip(rates) {
            report.figure(figure(size), rate, "of prompt tokens");
        }
        return;
    };
    if simulated.is_some() {
        report.line(row("  simulated", limits.map(rate)));
    }
    for ((size, value), limit) in SIZES.into_iter().zip(rates).zip(limits) {
        report.compared(figure(size), value, "of prompt tokens", limit, value / limit);
        let is_off =
            if simulated.is_some() { (value - limit).abs() > TOLERANCE } else { value < limit - TOLERANCE };
        if is_off {
            missed.push(format!("{name} at {size} %"));
        }
    }
}

fn rate(rate: f64) -> String {
    format!("{rate:.4}")
}

fn row(name: &str, columns: [String; 5]) -> String {
    columns.iter().fold(format!("  {name:<20}"), |row, column| row + &format!("{column:>9}"))
}

fn capacity(trace: &Trace, size: usize) -> usize {
    (trace.unique_blocks * size / 100).max(1)
}

/// Adds up hits over the second half of a trace.
struct Score {
    skip: usize,
    hit_tokens: u64,
    prompt_tokens: u64,
}

impl Score {
    fn new(trace: &Trace) -> Self {
        Self { skip: trace.requests.len() / 2, hit_tokens: 0, prompt_tokens: 0 }
    }

    fn note(&mut self, request: &Request, hit_blocks: usize) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        self.hit_tokens += request.tokens(hit_blocks);
        self.prompt_tokens += request.prompt_tokens;
    }

    fn rate(&self) -> f64 {
        self.hit_tokens as f64 / self.prompt_tokens.max(1) as f64
    }
}

/// The rate, and what the ghosts say in the end.
fn replay(trace: &Trace, kind: PolicyKind, capacity: usize) -> (f64, Vec<GhostRate>) {
    let mut order = Order::<u64, Hasher>::new(kind, capacity);
    if kind == PolicyKind::default() {
        order.watch_ghosts();
    }
    let mut score = Score::new(trace);
    for request in &trace.requests {
        let blocks = &request.blocks;
        let hit_blocks = blocks.iter().take_while(|block| order.contains(block)).count();
        score.note(request, hit_blocks);
        order.touch(&blocks[..hit_blocks]);
        let running: HashSet<u64, Hasher> = blocks.iter().copied().collect();
        for (block, parent) in
            blocks.iter().zip(std::iter::once(None).chain(blocks.iter().map(Some))).skip(hit_blocks)
        {
            while order.len() >= capacity {
                let Some((victim, _)) = order.victim(request.at, &mut |key| !running.contains(key)) else {
                    break;
                };
                order.remove(victim);
            }
            if order.len() >= capacity {
                // The request alone fills the tier.
                break;
            }
            order.insert(*block, parent.copied(), Attributes::default());
        }
    }
    (score.rate(), order.ghost_rates())
}

/// FIFO as the simulator has it: the oldest block, whatever stands behind it.
fn replay_any_fifo(trace: &Trace, capacity: usize) -> f64 {
    let mut queue = VecDeque::new();
    let mut cached: HashSet<u64, Hasher> = HashSet::default();
    let mut score = Score::new(trace);
    for request in &trace.requests {
        score.note(request, request.blocks.iter().take_while(|block| cached.contains(*block)).count());
        let running: HashSet<u64, Hasher> = request.blocks.iter().copied().collect();
        for block in &request.blocks {
            if cached.contains(block) {
                continue;
            }
            while cached.len() >= capacity {
                let Some(place) = queue.iter().position(|key| !running.contains(key)) else { break };
                let victim = queue.remove(place).expect("found above");
                cached.remove(&victim);
            }
            if cached.len() < capacity && cached.insert(*block) {
                queue.push_back(*block);
            }
        }
    }
    score.rate()
}

/// Blocks of a sequence in the measurement of costs.
const SEQUENCE_BLOCKS: usize = 16;

/// Nanoseconds an operation, in a tier of some size.
fn costs(smoke: bool, report: &mut Report) {
    let sequences = if smoke { 500 } else { 20_000 };
    let blocks = sequences * SEQUENCE_BLOCKS;
    report.line(format!("ns a block in a tier of {blocks} blocks, sequences of {SEQUENCE_BLOCKS}"));
    report.line(format!("  {:<20}{:>9}{:>9}{:>9}", "policy", "touch", "insert", "victim"));
    // Half as many again go in and push others out; every second one is touched before.
    let path = |sequence: usize| -> Vec<u64> {
        let key = |depth: usize| {
            ((sequence * SEQUENCE_BLOCKS + depth + 1) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        };
        (0..SEQUENCE_BLOCKS).map(key).collect()
    };
    let paths: Vec<_> = (0..sequences + sequences / 2).map(path).collect();
    for kind in PolicyKind::ALL {
        let mut policy = build_policy::<u64, Hasher>(kind, blocks);
        let cost = cost(policy.as_mut(), &paths, sequences);
        let columns = cost.map(|ns| format!("{:>9}", number(ns)));
        report.line(format!("  {:<20}{}", kind.name(), columns.concat()));
        for (name, ns) in ["touch", "insert", "victim"].into_iter().zip(cost) {
            report.figure(format!("cost.{kind}_{name}"), ns, "ns");
        }
    }
    for blocks in [SMALL_TIER_BLOCKS, blocks] {
        ghost_cost(blocks, &paths, report);
    }
}

fn insert(policy: &mut dyn Policy<u64>, path: &[u64]) {
    let mut parent = None;
    for key in path {
        policy.insert(*key, parent, Weight::default());
        parent = Some(*key);
    }
}

fn nanos(since: Instant, count: usize) -> f64 {
    since.elapsed().as_nanos() as f64 / count.max(1) as f64
}

fn cost(policy: &mut dyn Policy<u64>, paths: &[Vec<u64>], sequences: usize) -> [f64; 3] {
    let start = Instant::now();
    paths[..sequences].iter().for_each(|path| insert(policy, path));
    let insert_ns = nanos(start, sequences * SEQUENCE_BLOCKS);
    let start = Instant::now();
    paths[..sequences].iter().step_by(2).for_each(|path| policy.touch(path));
    let touch_ns = nanos(start, sequences.div_ceil(2) * SEQUENCE_BLOCKS);
    let mut victims = Duration::ZERO;
    let mut count = 0;
    for path in &paths[sequences..] {
        let start = Instant::now();
        for _ in 0..SEQUENCE_BLOCKS {
            let victim = policy.victim(&mut |_| true).expect("nothing is leased");
            policy.remove(black_box(victim));
        }
        victims += start.elapsed();
        count += SEQUENCE_BLOCKS;
        insert(policy, path);
    }
    [touch_ns, insert_ns, victims.as_nanos() as f64 / count.max(1) as f64]
}

/// Bytes of a small block, whose put is the least that a block's use costs a store.
const PUT_BYTES: usize = 64 << 10;
/// In a tier of so few blocks the largest share of them is sampled.
const SMALL_TIER_BLOCKS: usize = 8192;

fn ghost_cost(blocks: usize, paths: &[Vec<u64>], report: &mut Report) {
    let mut board = GhostBoard::<u64, Hasher>::new(&PolicyKind::FIXED, blocks);
    let observe = |board: &mut GhostBoard<u64, Hasher>| {
        let start = Instant::now();
        for path in paths {
            board.touch(path);
        }
        nanos(start, paths.len() * SEQUENCE_BLOCKS)
    };
    // The first time fills the ghosts.
    observe(&mut board);
    let ghosts_ns = observe(&mut board);
    let source: Vec<Vec<u8>> = (0..64).map(|fill| vec![fill; PUT_BYTES]).collect();
    let mut targets = source.clone();
    let mut puts = HashMap::new();
    let start = Instant::now();
    for (number, (source, target)) in source.iter().zip(&mut targets).enumerate() {
        puts.insert(number, copy_checksummed(source, target));
    }
    let put_ns = nanos(start, puts.len());
    let share = 100.0 * ghosts_ns / put_ns;
    report.line(format!(
        "ghosts of {} policies, tier of {blocks} blocks: {} ns a block used, {} % of a put of 64 KiB ({} us)",
        PolicyKind::FIXED.len(),
        number(ghosts_ns),
        number(share),
        number(put_ns / 1e3)
    ));
    report.compared(format!("cost.ghosts_{blocks}"), ghosts_ns, "ns", put_ns, put_ns / ghosts_ns);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_for_all_hits_what_was_seen_before_and_a_small_one_less() {
        let trace = Trace::synthetic(3, 150);
        let whole = |kind| replay(&trace, kind, trace.unique_blocks).0;
        let expected = replay_any_fifo(&trace, trace.unique_blocks);
        assert!(expected > 0.1);
        for kind in PolicyKind::ALL {
            assert_eq!(whole(kind), expected, "{kind}");
            assert!(replay(&trace, kind, capacity(&trace, 2)).0 < expected, "{kind}");
        }
    }

    #[test]
    fn a_request_that_fills_the_tier_alone_is_replayed() {
        let trace = Trace::synthetic(3, 20);
        for kind in PolicyKind::ALL {
            replay(&trace, kind, 2);
        }
        replay_any_fifo(&trace, 2);
    }
}
