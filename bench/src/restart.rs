//! Workload `restart`: how long a store takes to know its blocks again.
//!
//! A catalog of blocks is written as a store writes it, then closed in good order, or left as a process
//! that was killed leaves it, with a log to replay. Each is opened and loaded with warm files, and with
//! files that are not in memory. `rebuild` is all of a restart that grows with the blocks: open the catalog,
//! read its records, and from each make an entry in the radix index and one in the table of the tier's
//! copies. The goal is half a second a million blocks.
//!
//! With a trace, [`replay`] shows what a restart means for the hit rate.

mod replay;

use std::collections::HashMap;
use std::fs::File;
use std::hash::BuildHasherDefault;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kelvin_kvstore::catalog::{Catalog, CatalogError, Record};
use kelvin_kvstore::{HashMixer, RadixIndex, SequenceHash, TierSet};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{Advice, fadvise};
use rustix::time::{ClockId, clock_gettime};

use crate::report::{Report, number};

/// Seconds until a store knows a million blocks again, from its catalog
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Run in seconds, at the smallest size
    #[arg(long)]
    smoke: bool,

    /// Decides the blocks
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Sizes in blocks [default: 100000,1000000,4000000; smoke: 100000]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    blocks: Vec<u64>,

    /// Threads that read the catalog
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,

    /// Where the catalogs are put, and deleted again [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Also replay a trace through the whole store, killed in the middle and not, and with packs in S3: JSON lines
    /// of timestamp (ms), input_length and hash_ids, as Mooncake publishes them [smoke: a synthetic one]
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Times the trace's own speed [default: 200; smoke: 2000]
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..))]
    speed: Option<u32>,

    /// What a child of this process does
    #[arg(long, hide = true)]
    replay: Option<String>,
}

/// Seconds a million blocks that a rebuild may take.
const GOAL_S: f64 = 0.5;
const NVME: u32 = 2;
/// Blocks of a sequence, and sequences that grow at the same time.
const SEQUENCE_BLOCKS: usize = 96;
const GROWING: usize = 64;
/// Blocks that are written at once.
const BATCH: usize = 64;
/// One sequence in so many is evicted again while the others are written.
const EVICTED_ONE_IN: u32 = 10;
const FILE: [u8; 16] = [1; 16];

/// A copy as the table of a tier has it.
struct Copy {
    _sequence: u64,
    _checksum: u64,
    _offset: u64,
    _bytes: u32,
    _file: u16,
}

/// What a rebuild makes; one namespace.
#[derive(Default)]
struct Rebuilt {
    index: RadixIndex<TierSet>,
    copies: HashMap<u128, Copy, BuildHasherDefault<HashMixer>>,
}

pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(plan) = &args.replay {
        return replay::serve(plan).await;
    }
    let sizes = match &args.blocks[..] {
        [] if args.smoke => vec![100_000],
        [] => vec![100_000, 1_000_000, 4_000_000],
        sizes => sizes.to_vec(),
    };
    let subject = format!("catalog to index and table, {} reading threads", args.threads);
    let mut report = Report::new("restart", args.seed, &subject);
    for blocks in sizes {
        measure(args, blocks, &mut report).with_context(|| format!("measure {blocks} blocks"))?;
    }
    if args.smoke || args.trace.is_some() {
        let home = home(args)?;
        let trace = (
            args.trace.as_deref(),
            args.seed,
            f64::from(args.speed.unwrap_or(if args.smoke { 2000 } else { 200 })),
        );
        replay::measure(trace, home.path(), &mut report).context("replay the trace")?;
    }
    report.finish(args.json.as_deref())
}

/// A directory for this run alone.
fn home(args: &Args) -> anyhow::Result<tempfile::TempDir> {
    let home = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    home.context("make a directory")
}

fn measure(args: &Args, blocks: u64, report: &mut Report) -> anyhow::Result<()> {
    let home = home(args)?;
    let dir = home.path();
    let (left, append) = write(dir, args.seed, blocks)?;
    let micros = |time: Duration, count: u64| time.as_secs_f64() * 1e6 / count as f64;
    report.line(format!("\n{left} blocks ({blocks} written, the rest evicted)"));
    report.line(format!("  append {} us a block, in batches of {BATCH}", number(micros(append, blocks))));
    report.figure(format!("{blocks}.append"), micros(append, blocks), "us");
    let heads = ["open ms", "load us", "rebuild s/M", "open", "load", "rebuild"];
    let heads: String = heads.iter().map(|head| format!("{head:>12}")).collect();
    report.line(format!("  {:<20}{heads}  (the last three: processor time)", ""));
    // The one that was killed comes first: opening it moves its log into tables.
    for (name, clean, cold) in
        [("killed", false, false), ("clean", true, false), ("clean, cold files", true, true)]
    {
        if clean {
            let (catalog, _) = Catalog::open(dir)?;
            catalog.mark_clean(true)?;
        }
        if cold {
            forget(&dir.join("catalog"))?;
        }
        let start = (Instant::now(), cpu());
        let (catalog, opened) = Catalog::open(dir)?;
        let (open, open_cpu) = (start.0.elapsed(), cpu() - start.1);
        ensure!(opened.clean == clean, "the catalog was not left as meant");
        let rebuilt = rebuild(&catalog, args.threads)?;
        let (whole, whole_cpu) = (start.0.elapsed(), cpu() - start.1);
        ensure!(rebuilt.index.len() as u64 == left, "{} of {left} blocks came back", rebuilt.index.len());
        ensure!(rebuilt.copies.len() as u64 == left, "{} of {left} copies came back", rebuilt.copies.len());
        drop(rebuilt);
        if cold {
            forget(&dir.join("catalog"))?;
        }
        let start = (Instant::now(), cpu());
        catalog.load(usize::from(args.threads), drop)?;
        let (load, load_cpu) = (start.0.elapsed(), cpu() - start.1);
        let million = |time: Duration| time.as_secs_f64() / (left as f64 / 1e6);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let row = [ms(open), micros(load, left), million(whole)];
        let row = row.into_iter().chain([ms(open_cpu), micros(load_cpu, left), million(whole_cpu)]);
        let cells: String = row.map(|value| format!("{:>12}", number(value))).collect();
        report.line(format!("  {name:<20}{cells}"));
        let name = format!("{blocks}.{}", name.replace(", ", "_").replace(' ', "_"));
        report.figure(format!("{name}.open"), ms(open), "ms");
        report.figure(format!("{name}.load"), micros(load, left), "us");
        report.compared(format!("{name}.rebuild"), million(whole), "s", GOAL_S, GOAL_S / million(whole));
        report.figure(format!("{name}.open_cpu"), ms(open_cpu), "ms");
        report.figure(format!("{name}.load_cpu"), micros(load_cpu, left), "us");
        report.figure(format!("{name}.rebuild_cpu"), million(whole_cpu), "s");
    }
    Ok(())
}

/// Writes a catalog and leaves it as a killed process does; the blocks in it, and the time of all appends.
fn write(dir: &Path, seed: u64, blocks: u64) -> anyhow::Result<(u64, Duration)> {
    let (catalog, _) = Catalog::open(dir)?;
    catalog.set_files(&[FILE])?;
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut growing: Vec<Vec<Record>> = vec![Vec::new(); GROWING];
    let (mut left, mut append) = (0, Duration::ZERO);
    let mut batch = Vec::with_capacity(BATCH);
    for at in 0..blocks {
        let sequence = &mut growing[at as usize % GROWING];
        let record = Record {
            namespace: [7; 16],
            sequence: catalog.next_sequence(1),
            hash: SequenceHash::from_bytes(rng.random()),
            parent: sequence.last().map(|record| record.hash),
            file: 0,
            offset: at << 19,
            bytes: 1 << 19,
            checksum: kelvin_kernels::Checksum(rng.random()),
            priority: 0,
            expires_at_unix_ms: None,
        };
        sequence.push(record);
        batch.push(record);
        let whole = (sequence.len() == SEQUENCE_BLOCKS).then(|| std::mem::take(sequence));
        if batch.len() == BATCH || at + 1 == blocks || whole.is_some() {
            let start = Instant::now();
            patiently(|| catalog.append(&batch))?;
            append += start.elapsed();
            left += batch.len() as u64;
            batch.clear();
        }
        if let Some(whole) = whole.filter(|_| rng.random_ratio(1, EVICTED_ONE_IN)) {
            let keys: Vec<_> = whole.iter().map(|record| (record.namespace, record.sequence)).collect();
            catalog.remove(&keys)?;
            left -= keys.len() as u64;
        }
    }
    catalog.sync()?;
    Ok((left, append))
}

/// Writes faster than any tier are refused when RocksDB falls behind; a store would leave the blocks out.
fn patiently(mut write: impl FnMut() -> Result<(), CatalogError>) -> Result<(), CatalogError> {
    loop {
        match write() {
            Err(error) if error.is_busy() => std::thread::sleep(Duration::from_millis(1)),
            result => return result,
        }
    }
}

fn rebuild(catalog: &Catalog, threads: u16) -> anyhow::Result<Rebuilt> {
    let found = catalog.set_files(&[FILE])?;
    ensure!(found.kept == 1, "the file is known");
    let mut rebuilt = Rebuilt::default();
    rebuilt.copies.reserve(catalog.stats().records as usize);
    let holders = TierSet::from_bits(1 << NVME);
    let mut refused = 0;
    catalog.load(usize::from(threads), |chunk| {
        let entries = chunk.iter().map(|record| (record.parent, record.hash, holders));
        rebuilt.index.load(entries, 1, |_, _| refused += 1);
        for record in &chunk {
            let copy = Copy {
                _sequence: record.sequence,
                _checksum: record.checksum.0,
                _offset: record.offset,
                _bytes: record.bytes,
                _file: record.file,
            };
            rebuilt.copies.insert(record.hash.as_u128(), copy);
        }
    })?;
    ensure!(refused == 0, "{refused} blocks came without their parents");
    Ok(rebuilt)
}

/// Processor time of the process, RocksDB's threads included.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Takes a directory's files out of memory.
fn forget(dir: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let file = File::open(entry?.path())?;
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}
