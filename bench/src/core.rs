//! Workload `core`: the store's core in this process, without its service.
//!
//! Times are processor time of the thread, of the best round: what others do on the machine is mostly not in
//! them. Nor is waiting for a lock; so the scaling on two threads is given by the wall clock as well. A prompt's
//! blocks are matched, leased and given back by one call each. Prompts come in a random order each round.
//!
//! `told` is the first lease on a block since the last time that the order of eviction was asked for, which
//! the policy is told of; further ones are not.

mod metering;

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::ensure;
use kelvin_kernels::{Checksum, checksum, copy_checksummed};
use kelvin_kvstore::SequenceHash;
use kelvin_kvstore::bench_support::{Core, Session};
use kelvin_tiering::{Device, DramPool, DramSlot};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rustix::time::{ClockId, clock_gettime};

use crate::report::{Report, number};

/// Match, acquire, release and put in the store's core, on one thread and two; and what metrics cost
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Run in seconds, with few blocks and the small sizes
    #[arg(long)]
    smoke: bool,

    /// Decides the hashes and the order of prompts
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Blocks in the store [default: 65536; smoke: 6144]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    blocks: Option<u64>,

    /// Blocks of a prompt
    #[arg(long, value_name = "N", default_value_t = 96, value_parser = clap::value_parser!(u64).range(1..=4096))]
    prompt_blocks: u64,

    /// Memory that a put or a copy goes through before it comes by again, in MiB [default: 512; smoke: 64]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    memory_mib: Option<u64>,
}

/// A slot of the smallest size: no payload is touched.
const BLOCK_BYTES: u64 = 4096;
/// Leases held at a time, in prompts.
const HELD: usize = 16;
const MIB: u64 = 1 << 20;

/// What the issue asks for, in ns a block.
const MATCH_NS: f64 = 25.0;
const LEASE_NS: f64 = 80.0;

type Prompts = Vec<Vec<SequenceHash>>;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let blocks = args.blocks.unwrap_or(if args.smoke { 6_144 } else { 65_536 });
    let rounds = if args.smoke { 4 } else { 24 };
    let mut report = Report::new("core", args.seed, "the store's core, in one process");
    let mut rng = SmallRng::seed_from_u64(args.seed);
    leases(&mut report, &mut rng, blocks, args.prompt_blocks, rounds)?;
    let memory = args.memory_mib.unwrap_or(if args.smoke { 64 } else { 512 }) * MIB;
    puts(&mut report, &mut rng, memory, args.smoke)?;
    metering::measure(&mut report, args.seed, args.smoke)?;
    report.finish(args.json.as_deref())
}

/// Processor time of this thread.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Processor time of `work`.
fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(Duration, T)> {
    let start = cpu();
    let result = work()?;
    Ok((cpu() - start, result))
}

fn prompts(rng: &mut SmallRng, blocks: u64, prompt_blocks: u64) -> Prompts {
    let mut prompt = || (0..prompt_blocks).map(|_| SequenceHash::from_bytes(rng.random())).collect();
    (0..(blocks / prompt_blocks).max(2)).map(|_| prompt()).collect()
}

/// Processor time spent in each verb, over so many blocks; in the end of the best round.
#[derive(Default, Clone, Copy)]
struct Spent {
    blocks: usize,
    matching: Duration,
    acquiring: Duration,
    releasing: Duration,
}

impl Spent {
    fn ns(&self, time: Duration) -> f64 {
        time.as_nanos() as f64 / self.blocks as f64
    }

    fn busy(&self) -> Duration {
        self.matching + self.acquiring + self.releasing
    }

    fn add(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.matching += other.matching;
        self.acquiring += other.acquiring;
        self.releasing += other.releasing;
    }

    fn best(rounds: impl Iterator<Item = Self>) -> Self {
        rounds.min_by_key(Self::busy).expect("there are rounds")
    }
}

/// Matches, leases and releases all prompts once.
fn round(core: &Core, session: &Session, prompts: &[&Vec<SequenceHash>]) -> anyhow::Result<Spent> {
    let mut spent = Spent::default();
    for some in prompts.chunks(HELD) {
        let blocks: usize = some.iter().map(|prompt| prompt.len()).sum();
        let (matching, found) =
            timed(|| Ok(some.iter().map(|prompt| core.longest_prefix(session, prompt)).sum::<usize>()))?;
        let (acquiring, leases) = timed(|| {
            let leases = some.iter().map(|prompt| core.acquire(session, prompt));
            Ok(leases.collect::<Result<Vec<_>, _>>()?)
        })?;
        let ids: Vec<_> = leases.iter().map(|leases| leases.ids()).collect();
        let (releasing, released) = timed(|| {
            let released = ids.iter().map(|ids| core.release(session, ids));
            Ok(released.sum::<Result<usize, _>>()?)
        })?;
        ensure!(found == blocks && released == blocks, "{found} matched, {released} leased of {blocks}");
        black_box(leases);
        spent.add(Spent { blocks, matching, acquiring, releasing });
    }
    Ok(spent)
}

/// Rounds over the prompts, shuffled, on each of `sessions` at once. Of the best one what all threads spent,
/// and of the shortest its wall time.
fn rounds(
    core: &Core,
    sessions: &[Session],
    prompts: &[Vec<&Vec<SequenceHash>>],
    seed: u64,
    count: usize,
) -> anyhow::Result<(Spent, Duration)> {
    let barrier = Barrier::new(sessions.len());
    let one = |at: usize| -> anyhow::Result<Vec<(Spent, Instant, Instant)>> {
        let mut prompts = prompts[at].clone();
        let mut rng = SmallRng::seed_from_u64(seed + at as u64);
        let warm = round(core, &sessions[at], &prompts);
        let mut rounds = Vec::new();
        for _ in 0..count {
            prompts.shuffle(&mut rng);
            barrier.wait();
            let start = Instant::now();
            // An error waits until all have gone through their barriers.
            rounds.push(round(core, &sessions[at], &prompts).map(|spent| (spent, start, Instant::now())));
        }
        warm?;
        rounds.into_iter().collect()
    };
    let threads: Vec<_> = std::thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = (0..sessions.len()).map(|at| scope.spawn(move || one(at))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a measuring thread does not panic")).collect()
    });
    let threads = threads.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let together = (0..count).map(|round| {
        let (mut spent, mut times) = (Spent::default(), Vec::new());
        for thread in &threads {
            let (own, start, end) = thread[round];
            spent.add(own);
            times.push((start, end));
        }
        let start = times.iter().map(|(start, _)| *start).min().expect("a thread");
        let end = times.iter().map(|(_, end)| *end).max().expect("a thread");
        (spent, end - start)
    });
    let together: Vec<_> = together.collect();
    let wall = together.iter().map(|(_, wall)| *wall).min().expect("there are rounds");
    Ok((Spent::best(together.into_iter().map(|(spent, _)| spent)), wall))
}

fn leases(
    report: &mut Report,
    rng: &mut SmallRng,
    blocks: u64,
    prompt_blocks: u64,
    count: usize,
) -> anyhow::Result<()> {
    let prompts = prompts(rng, blocks, prompt_blocks);
    let core = Core::new((prompts.len() as u64 * prompt_blocks + 1024) * BLOCK_BYTES)?;
    let open = || core.open(BLOCK_BYTES).map_err(|refusal| anyhow::anyhow!(refusal.message));
    let sessions = [open()?, open()?];
    let (storing, stored) = timed(|| {
        let stored = prompts.iter().map(|prompt| core.store(&sessions[0], prompt, |_, _| Checksum(0)));
        Ok(stored.sum::<Result<usize, _>>()?)
    })?;
    ensure!(stored as u64 == prompts.len() as u64 * prompt_blocks, "{stored} blocks were stored");
    let copied = core.copied_bytes();
    let seed = rng.random::<u32>().into();
    let all: Vec<&Vec<SequenceHash>> = prompts.iter().collect();
    let halves: Vec<Vec<_>> = all.chunks(all.len().div_ceil(2)).map(<[_]>::to_vec).collect();

    let (one, one_wall) = rounds(&core, &sessions[..1], std::slice::from_ref(&all), seed, count)?;
    let mut told = Vec::new();
    core.reap();
    for _ in 0..count {
        let spent = round(&core, &sessions[0], &all)?;
        let (telling, ()) = timed(|| {
            core.reap();
            Ok(())
        })?;
        told.push(Spent { acquiring: spent.acquiring + telling, ..spent });
    }
    let told = Spent::best(told.into_iter());
    let (disjoint, disjoint_wall) = rounds(&core, &sessions, &halves, seed, count)?;
    let (shared, shared_wall) = rounds(&core, &sessions, &[all.clone(), all.clone()], seed, count)?;

    report.line(format!("\n  {stored} blocks, {prompt_blocks} a prompt; ns a block, best of {count} rounds"));
    report.line(format!("  {:<26}{:>10}{:>10}{:>10}{:>16}", "", "match", "acquire", "release", "scaling"));
    let rows = [
        ("one_thread", one, one_wall),
        ("one_thread_told", told, Duration::ZERO),
        ("two_threads_disjoint", disjoint, disjoint_wall),
        ("two_threads_shared", shared, shared_wall),
    ];
    let per_block = |spent: &Spent, wall: Duration| wall.as_secs_f64() / spent.blocks as f64;
    for (name, spent, wall) in rows {
        let scaling = match name.starts_with("two") {
            true => {
                let by_cpu = 2.0 * one.ns(one.busy()) / spent.ns(spent.busy());
                let by_wall = per_block(&one, one_wall) / per_block(&spent, wall);
                report.compared(format!("{name}.scaling_wall"), by_wall, "x", 1.9, by_wall / 1.9);
                report.compared(format!("{name}.scaling_cpu"), by_cpu, "x", 1.9, by_cpu / 1.9);
                format!("{} / {}", number(by_cpu), number(by_wall))
            }
            false => String::new(),
        };
        let verbs = [
            ("match", spent.matching, MATCH_NS),
            ("acquire", spent.acquiring, LEASE_NS),
            ("release", spent.releasing, LEASE_NS),
        ];
        let mut cells = String::new();
        for (verb, time, limit) in verbs {
            let value = spent.ns(time);
            cells += &format!("{:>10}", number(value));
            report.compared(format!("{name}.{verb}"), value, "ns", limit, limit / value);
        }
        report.line(format!("  {:<26}{cells}{scaling:>16}", name.replace('_', " ")));
    }
    report.line(format!("  targets{:>29}{:>10}{:>10}{:>16}", MATCH_NS, LEASE_NS, LEASE_NS, "1.9"));
    report.line("  scaling: by processor time / by the wall clock");
    let store_ns = storing.as_nanos() as f64 / stored as f64;
    report.line(format!("  reserve and commit: {} ns a block", number(store_ns)));
    report.figure("store", store_ns, "ns");
    let copied = core.copied_bytes() - copied;
    report.line(format!("  bytes copied by all these leases: {copied}"));
    report.figure("lease_copied", copied as f64, "bytes");
    ensure!(copied == 0 && core.leases() == (0, 0), "a lease copied, or was lost");
    Ok(())
}

/// Gigabytes a second.
fn speed(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

fn puts(report: &mut Report, rng: &mut SmallRng, memory: u64, smoke: bool) -> anyhow::Result<()> {
    let sizes: &[(u64, u64)] = match smoke {
        true => &[(64 << 10, 1), (2 * MIB, 16)],
        false => &[(64 << 10, 1), (64 << 10, 16), (512 << 10, 1), (2 * MIB, 1), (2 * MIB, 16), (8 * MIB, 1)],
    };
    // A slot fits into a chunk of the memory.
    let sizes = sizes.iter().filter(|(bytes, _)| bytes * 32 <= memory);
    let passes = if smoke { 2 } else { 6 };
    // What is put was somewhere before: in memory too large for the caches.
    let mut source = vec![0; memory as usize / 2];
    rng.fill(&mut source[..]);
    report.line(format!(
        "\n  GB/s a thread, best of {passes} passes through {} MiB of shared memory",
        memory / MIB
    ));
    report.line(format!(
        "  {:<26}{:>10}{:>10}{:>10}{:>10}{:>14}",
        "", "memcpy", "fused", "put", "ratio", "put + check"
    ));
    for &(bytes, batch) in sizes {
        let row = put(rng, &source, memory, bytes, batch, passes)?;
        let name = format!("put.{}_KiB_by_{batch}", bytes >> 10);
        let label = format!("{} KiB, {batch} a call", bytes >> 10);
        let ratio = row.put / row.memcpy;
        report.line(format!(
            "  {label:<26}{:>10}{:>10}{:>10}{:>10}{:>14}",
            number(row.memcpy),
            number(row.fused),
            number(row.put),
            number(ratio),
            number(row.checked),
        ));
        report.compared(&name, row.put, "GB/s", row.memcpy, ratio);
        report.compared(format!("{name}.fused"), row.fused, "GB/s", row.memcpy, row.fused / row.memcpy);
        report.compared(format!("{name}.checked"), row.checked, "GB/s", row.memcpy, row.checked / row.memcpy);
    }
    report.line("  put: reserve (which evicts), copy and checksum in one pass, commit; target 0.9 of memcpy");
    report.line("  put + check: as for another process, whose bytes are checked once more at commit");
    Ok(())
}

struct Puts {
    memcpy: f64,
    fused: f64,
    put: f64,
    checked: f64,
}

/// One size, `batch` blocks a call. The ways take turns, so that each has the same neighbours.
fn put(
    rng: &mut SmallRng,
    source: &[u8],
    memory: u64,
    bytes: u64,
    batch: u64,
    passes: usize,
) -> anyhow::Result<Puts> {
    let core = Core::new(memory)?;
    let session = core.open(bytes).map_err(|refusal| anyhow::anyhow!(refusal.message))?;
    let pool = DramPool::new("bench", memory)?;
    let mut slots: Vec<DramSlot> = std::iter::from_fn(|| pool.allocate(bytes)).collect();
    let blocks: Vec<&[u8]> = source.chunks_exact(bytes as usize).collect();
    let calls = slots.len() / batch as usize;
    let mut best = [Duration::MAX; 4];
    // The first pass is for the pages' sake.
    for pass in 0..=passes {
        let mut times = [Duration::ZERO; 4];
        for call in 0..calls {
            // Each way a quarter further on, so that none finds in a cache what another just used.
            let first = |way: usize| (call + way * calls / 4) % calls * batch as usize;
            let block =
                |way: usize, at: usize| blocks[(first(way) + way * blocks.len() / 4 + at) % blocks.len()];
            let (memcpy, ()) = timed(|| {
                for (at, slot) in slots[first(0)..][..batch as usize].iter_mut().enumerate() {
                    slot.bytes_mut().copy_from_slice(block(0, at));
                }
                Ok(())
            })?;
            let (fused, ()) = timed(|| {
                for (at, slot) in slots[first(1)..][..batch as usize].iter_mut().enumerate() {
                    black_box(copy_checksummed(block(1, at), slot.bytes_mut()));
                }
                Ok(())
            })?;
            let hashes = |rng: &mut SmallRng| -> Vec<SequenceHash> {
                (0..batch).map(|_| SequenceHash::from_bytes(rng.random())).collect()
            };
            let fresh = hashes(rng);
            let (put, stored) = timed(|| Ok(core.put(&session, &fresh, |at| block(2, at))?))?;
            ensure!(stored as u64 == batch, "{stored} of {batch} blocks were stored");
            let fresh = hashes(rng);
            let (checked, _) = timed(|| {
                Ok(core.store(&session, &fresh, |at, target| {
                    copy_checksummed(block(3, at), target);
                    checksum(target)
                })?)
            })?;
            for (sum, time) in times.iter_mut().zip([memcpy, fused, put, checked]) {
                *sum += time;
            }
        }
        if pass > 0 {
            best.iter_mut().zip(times).for_each(|(best, time)| *best = time.min(*best));
        }
    }
    let total = calls as u64 * batch * bytes;
    let [memcpy, fused, put, checked] = best.map(|time| speed(total, time));
    Ok(Puts { memcpy, fused, put, checked })
}
