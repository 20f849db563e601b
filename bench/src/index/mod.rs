//! Workload `index`: the radix index alone, at several sizes.
//!
//! Rates are blocks a second of processor time, and a write is counted when the call returns: there is no
//! queue behind it that is still to be drained. Bytes are those of the whole index, its map included, as the
//! allocator hands them out. Cold lookups ask for random prompts among all of them; hot ones for the same
//! few. The clock's own time is part of each lookup, and printed. Behind the index come the decisions of a router that has
//! such an index of a thousand backends, and what it takes to know what a store has of a prompt.

mod decisions;
mod following;
mod forest;

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kelvin_kvstore::{HashMixer, RadixIndex, SequenceHash, TierSet};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::time::{ClockId, clock_gettime};

use self::forest::{Forest, LONG, Log, SHORT};
use crate::counting::Count;
use crate::report::{Report, number};

/// Writes, lookups and memory of the radix index, flat from small to large
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Run in seconds, at the smallest size
    #[arg(long)]
    smoke: bool,

    /// Decides the hashes and the order of lookups
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Sizes in blocks [default: 100000,1000000,10000000; smoke: 100000]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    blocks: Vec<u64>,
}

/// Blocks of an event, as engines report what they stored.
const EVENT_BLOCKS: usize = 16;
/// Sequences that a catalog's records interleave.
const WIDTH: usize = 64;
/// Small sizes are written several times, for so many blocks in all, and the best counts.
const BEST_OF_BLOCKS: u64 = 3_000_000;
/// Prompts of the hot lookups.
const HOT: u64 = 64;
const DRAM: u32 = 1;

/// Figures of one size, in the order of the table.
struct Row {
    name: &'static str,
    unit: &'static str,
    value: f64,
    /// What bounds it, measured in the same run.
    limit: Option<f64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let sizes = match &args.blocks[..] {
        [] if args.smoke => vec![100_000],
        [] => vec![100_000, 1_000_000, 10_000_000],
        sizes => sizes.to_vec(),
    };
    let mut report = Report::new("index", args.seed, "radix index, one holder a block");
    report.line(format!("clock: {} ns a reading, in each lookup\n", clock_ns()));
    let columns: Vec<Vec<Row>> = sizes.iter().map(|blocks| measure(args.seed, *blocks)).collect();
    let heads: String = sizes.iter().map(|blocks| format!("{:>14}", format!("{blocks} bl."))).collect();
    report.line(format!("  {:<32}{heads}", ""));
    for (at, row) in columns[0].iter().enumerate() {
        let cells: String = columns.iter().map(|rows| format!("{:>14}", number(rows[at].value))).collect();
        report
            .line(format!("  {:<32}{cells}", format!("{} {}", row.name.replace(['.', '_'], " "), row.unit)));
        for (blocks, rows) in sizes.iter().zip(&columns) {
            let Row { name, unit, value, limit } = rows[at];
            let name = format!("{blocks}.{name}");
            match limit {
                Some(limit) => report.compared(name, value, unit, limit, value / limit),
                None => report.figure(name, value, unit),
            }
        }
    }
    let known = if args.smoke { 100_000 } else { 1_000_000 };
    decisions::measure(args.seed, known, &mut report);
    following::measure(args.seed, if args.smoke { 200 } else { 20_000 }, &mut report)?;
    report.finish(args.json.as_deref())
}

/// Processor time of this thread: what others do on the machine is not in it.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Million a second of processor time.
fn rate(count: usize, work: impl FnOnce()) -> f64 {
    let start = cpu();
    work();
    count as f64 / (cpu() - start).as_secs_f64() / 1e6
}

fn clock_ns() -> u64 {
    let mut histogram = Histogram::<u64>::new(3).expect("three digits are allowed");
    (0..10_000).for_each(|_| record(&mut histogram, Instant::now().elapsed()));
    histogram.value_at_quantile(0.5)
}

/// In nanoseconds; the histogram grows as it needs to.
fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.record(time.as_nanos() as u64).expect("it resizes itself");
}

fn measure(seed: u64, blocks: u64) -> Vec<Row> {
    let forest = Forest::new(seed, LONG, blocks);
    let log = forest.log(EVENT_BLOCKS);
    let mut rows = Vec::new();
    let mut row = |name, unit, value, limit| rows.push(Row { name, unit, value, limit });

    let tries = (BEST_OF_BLOCKS / blocks).clamp(1, 5);
    let flat = best(tries, || flat_map(&log));
    let fresh = || rate(log.blocks(), || write(&RadixIndex::<TierSet>::new(), &log));
    let again = best(tries - 1, fresh);
    let count = Count::start();
    let index = RadixIndex::<TierSet>::new();
    let write = rate(log.blocks(), || write(&index, &log)).max(again);
    let bytes = count.bytes();
    row("write.events", "M/s/core", write, Some(flat));
    row("write.flat_map", "M/s/core", flat, None);
    row("write.two_threads", "M/s/core", two_threads(&log), Some(write));
    row("bytes.block", "B", bytes as f64 / index.len() as f64, Some(size_of::<SequenceHash>() as f64));
    row("bytes.counted", "of all", index.memory_bytes() as f64 / bytes as f64, None);
    row("runs.blocks", "mean", index.len() as f64 / index.runs() as f64, None);

    let read_us = dependent_read_us(bytes.unsigned_abs(), seed);
    row("memory.dependent_read", "us", read_us, None);
    for (names, prompts) in
        [(["cold.p50", "cold.p99", "cold.mean"], forest.prompts()), (["hot.p50", "hot.p99", "hot.mean"], HOT)]
    {
        let histogram = lookups(&index, &forest, seed, prompts);
        row(names[0], "us", histogram.value_at_quantile(0.50) as f64 / 1e3, Some(3.0 * read_us));
        row(names[1], "us", histogram.value_at_quantile(0.99) as f64 / 1e3, None);
        row(names[2], "us", histogram.mean() / 1e3, None);
    }
    row("holders.random", "M/s/core", holders(&index, &log, seed), None);

    row("remove.tail_first", "M/s/core", remove(&index, &log.hashes[log.blocks() / 2..]), None);
    row("bytes.block_after_half", "B", count.bytes() as f64 / index.len() as f64, None);
    remove(&index, &log.hashes[..log.blocks() / 2]);
    row("bytes.left_after_all", "share", count.bytes() as f64 / bytes as f64, None);
    assert_eq!(index.len(), 0, "everything was removed");
    drop((index, count));

    let single = RadixIndex::<TierSet>::new();
    let chain = forest.log(usize::MAX).interleaved(WIDTH);
    row(
        "write.one_at_a_time",
        "M/s/core",
        rate(chain.len(), || {
            for (parent, hash) in &chain {
                single.insert(*parent, *hash, DRAM, 1).expect("its parent is there");
            }
        }),
        None,
    );
    drop(single);
    let loaded = RadixIndex::<TierSet>::new();
    let holders = TierSet::from_bits(1 << DRAM);
    let count = Count::start();
    row(
        "load",
        "M/s/core",
        rate(chain.len(), || {
            let chain = chain.iter().map(|(parent, hash)| (*parent, *hash, holders));
            loaded.load(chain, 1, |hash, error| panic!("{hash}: {error}"));
        }),
        None,
    );
    row("bytes.block_loaded", "B", count.bytes() as f64 / loaded.len() as f64, None);
    drop((loaded, chain, log, count));

    let short = Forest::new(seed, SHORT, blocks).log(EVENT_BLOCKS);
    let count = Count::start();
    let index = RadixIndex::<TierSet>::new();
    self::write(&index, &short);
    row("bytes.block_short_runs", "B", count.bytes() as f64 / index.len() as f64, None);
    rows
}

fn best(tries: u64, mut measure: impl FnMut() -> f64) -> f64 {
    (0..tries).map(|_| measure()).fold(0.0, f64::max)
}

/// Two threads write every other event group of whole sequences: million a second of the time of both.
fn two_threads(log: &Log) -> f64 {
    let index = RadixIndex::<TierSet>::new();
    let events: Vec<_> = log.events().collect();
    let threads: Vec<_> = (0..2)
        .map(|thread| {
            let (index, events) = (&index, &events);
            move || {
                let start = cpu();
                // A sequence starts where the parent is not the last block of the event before.
                let (mut mine, mut before) = (0, None);
                for (now, (parent, hashes)) in (0..).zip(events) {
                    if *parent != before {
                        mine += 1;
                    }
                    before = hashes.last().copied();
                    // What the two share is known to both by then, or is waited for.
                    while mine % 2 == thread && index.insert_run(*parent, hashes, DRAM, now).is_err() {
                        std::hint::spin_loop();
                    }
                }
                cpu() - start
            }
        })
        .collect();
    let time: Duration = std::thread::scope(|scope| {
        let threads: Vec<_> = threads.into_iter().map(|thread| scope.spawn(thread)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).sum()
    });
    assert_eq!(index.len(), log.blocks(), "the two wrote all of it");
    log.blocks() as f64 / time.as_secs_f64() / 1e6
}

/// Time of a read whose address the read before it gave, in so much memory: what a cache miss costs. A cold
/// lookup has three, of the map, the node and its hashes, however well those of its runs overlap.
fn dependent_read_us(bytes: usize, seed: u64) -> f64 {
    const READS: usize = 200_000;
    // One cycle through all lines (Sattolo's shuffle).
    let lines = (bytes / 64).max(2);
    let mut next: Vec<[u64; 8]> = (0..lines as u64).map(|line| [line; 8]).collect();
    let mut rng = SmallRng::seed_from_u64(seed);
    (1..lines).rev().for_each(|at| next.swap(at, rng.random_range(0..at)));
    let start = cpu();
    let end = (0..READS).fold(0, |line, _| next[line as usize][0]);
    black_box(end);
    (cpu() - start).as_secs_f64() * 1e6 / READS as f64
}

fn write(index: &RadixIndex<TierSet>, log: &Log) {
    for (now, (parent, hashes)) in (0..).zip(log.events()) {
        index.insert_run(parent, hashes, DRAM, now).expect("its parent is there");
    }
}

/// What a map alone would do, which could tell no prefix from any other set: million writes a second.
fn flat_map(log: &Log) -> f64 {
    let mut map: HashMap<u128, (u64, u8), BuildHasherDefault<HashMixer>> = HashMap::default();
    let rate = rate(log.blocks(), || {
        for (now, hash) in (0..).zip(&log.hashes) {
            map.insert(hash.as_u128(), (now, 1));
        }
    });
    black_box(map.len());
    rate
}

/// Times lookups of random prompts below `prompts`, whose hashes are in the cache: the caller just made them.
fn lookups(index: &RadixIndex<TierSet>, forest: &Forest, seed: u64, prompts: u64) -> Histogram<u64> {
    const LOOKUPS: u64 = 100_000;
    let mut histogram = Histogram::new(3).expect("three digits are allowed");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut prompt = Vec::new();
    for now in 0..LOOKUPS {
        forest.prompt(rng.random_range(0..prompts.min(forest.prompts())), &mut prompt);
        let start = Instant::now();
        let prefix = index.longest_prefix(&prompt, Some(now));
        record(&mut histogram, start.elapsed());
        assert_eq!(prefix.len(), prompt.len(), "a whole prompt is held");
    }
    histogram
}

/// Million single blocks a second, anywhere in the index.
fn holders(index: &RadixIndex<TierSet>, log: &Log, seed: u64) -> f64 {
    const LOOKUPS: usize = 200_000;
    let mut rng = SmallRng::seed_from_u64(seed);
    rate(LOOKUPS, || {
        for _ in 0..LOOKUPS {
            black_box(index.holders(log.hashes[rng.random_range(0..log.blocks())]));
        }
    })
}

/// Takes blocks out, the last stored first: million a second.
fn remove(index: &RadixIndex<TierSet>, hashes: &[SequenceHash]) -> f64 {
    rate(hashes.len(), || {
        for hash in hashes.iter().rev() {
            assert!(index.remove(*hash, DRAM), "it was stored");
        }
    })
}
