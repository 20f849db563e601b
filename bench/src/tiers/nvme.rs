//! NVMe: whole blocks at random places of one file, by Kelvin's device and by a peer on the same file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::{StreamExt, stream::FuturesUnordered};
use kelvin_kernels::checksum;
use kelvin_tiering::{
    Device, DramPool, DramSlot, NvmeDevice, NvmeFile, NvmeOptions, NvmePath, NvmeSlot, Staging,
};
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};

use super::cpu;
use super::peer::{Load, Moved, Peer};
use super::{Args, median, size, slug};
use crate::report::{Report, number};

/// Before the first block, in the file of the tier.
const LEAD_BYTES: u64 = 1 << 20;
/// What comes first in a turn and does not count: after a rest, and a peer that starts has one, a disk with a
/// quota gives more for a while.
pub(super) const RAMP: Duration = Duration::from_millis(500);
/// Blocks that the file is filled with.
const FILL_BYTES: u64 = 2 << 20;

pub(super) async fn measure(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let home = Home::make(&parent)?;
    let path = NvmePath { path: home.0.clone(), bytes: args.file_bytes() };
    let options = NvmeOptions { paths: vec![path], queue_depth: args.depth(), ..NvmeOptions::default() };
    let device = NvmeDevice::open(&options).context("open the NVMe tier")?;
    let buffers = 2 * args.depth;
    let largest = args.block_bytes().into_iter().max().unwrap_or(0).max(FILL_BYTES);
    let make_pool = if args.huge_pages { DramPool::in_huge_pages } else { DramPool::new };
    let pool = make_pool("bench", buffers * largest + (64 << 20)).context("make a pool")?;
    let file = device.files().remove(0);
    let peer = Peer::find(!args.no_fio);
    fill(&device, &pool, args).await.context("fill the file")?;
    let how = if file.direct { "direct" } else { "buffered" };
    report.line(format!(
        "\nNVMe: {} of {}, {}, {how}; {} operations in flight (and for kelvin as many queued), GB/s, median of {} turns of {} s",
        file.path.display(),
        size(file.bytes),
        file.engine,
        args.depth(),
        args.turns(),
        number(args.turn_time().as_secs_f64()),
    ));
    if peer == Peer::Threads && !args.no_fio {
        report.line("  fio is not here (apt-get install fio): threads that pread and pwrite are the peer");
    }
    report.line(format!(
        "  {:<16}{:>10}{:>10}{:>10}{:>14}{:>20}{:>20}",
        "",
        "kelvin",
        peer.name(),
        "ratio",
        "best/best",
        "CPU-s/GB kelvin",
        format!("CPU-s/GB {}", peer.name())
    ));
    // The peer does as Kelvin can: fio registers its buffers, too.
    let registered = register(&device, &pool, report).await;
    for probe in device.probe(Some(&pool)).await {
        report.line(format!("  the tier's own probe: {probe}"));
    }
    for writes in [false, true] {
        for block_bytes in args.block_bytes() {
            compare(args, (&device, &pool), &file, (peer, registered), (block_bytes, writes), report).await?;
        }
    }
    claims(&device, report);
    drop(device);
    ways(args, &options, &pool, report).await
}

/// A directory for this run alone.
struct Home(std::path::PathBuf);

impl Home {
    fn make(parent: &std::path::Path) -> anyhow::Result<Home> {
        let path = parent.join(format!("kelvin-bench-tiers-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Home(path))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes the whole file, so that both sides read and overwrite blocks that are on the disk.
async fn fill(device: &NvmeDevice, pool: &DramPool, args: &Args) -> anyhow::Result<()> {
    let mut bench = Bench::new(device, pool, FILL_BYTES, args)?;
    let places = std::mem::take(&mut bench.free);
    let mut places = places.into_iter();
    let mut running = FuturesUnordered::new();
    loop {
        while let Some(buffer) = bench.buffers.pop() {
            let Some(place) = places.next() else {
                bench.buffers.push(buffer);
                break;
            };
            running.push(device.write(place, 0, buffer));
        }
        let Some((_, buffer, result)) = running.next().await else { break };
        result?;
        bench.buffers.push(buffer);
    }
    device.sync().await?;
    Ok(())
}

async fn compare(
    args: &Args,
    (device, pool): (&NvmeDevice, &DramPool),
    file: &NvmeFile,
    (peer, registered): (Peer, bool),
    (block_bytes, writes): (u64, bool),
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut bench = Bench::new(device, pool, block_bytes, args)?;
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for turn in 0..args.turns() {
        let load = Load {
            path: &file.path,
            offset: LEAD_BYTES,
            bytes: file.bytes,
            block_bytes,
            writes,
            direct: file.direct,
            registered,
            huge_pages: args.huge_pages,
            depth: args.depth(),
            time: args.turn_time(),
            seed: args.seed + turn as u64,
        };
        // Who begins changes, as what a disk gives depends on what came before.
        for step in 0..2 {
            if (turn + step) % 2 == 0 {
                ours.push(bench.run(writes, load.time, false).await?);
            } else {
                theirs.push(tokio::task::block_in_place(|| peer.run(&load))?);
            }
        }
    }
    let rates = |moved: &[Moved]| -> Vec<f64> { moved.iter().map(Moved::rate).collect() };
    let cpu = |moved: &[Moved]| median(moved.iter().map(Moved::cpu).collect());
    let best = |moved: &[Moved]| rates(moved).into_iter().fold(0.0, f64::max);
    let (rate, limit) = (median(rates(&ours)), median(rates(&theirs)));
    let kind = if writes { "write" } else { "read" };
    report.line(format!(
        "  {:<16}{:>10}{:>10}{:>10}{:>14}{:>20}{:>20}",
        format!("{kind} {}", size(block_bytes)),
        number(rate),
        number(limit),
        number(rate / limit),
        number(best(&ours) / best(&theirs)),
        number(cpu(&ours)),
        number(cpu(&theirs))
    ));
    let name = format!("nvme.{kind}_{}", slug(block_bytes));
    report.compared(name.clone(), rate, "GB/s", limit, rate / limit);
    // Less is better.
    report.compared(format!("{name}_cpu"), cpu(&ours), "CPU-s/GB", cpu(&theirs), cpu(&theirs) / cpu(&ours));
    Ok(())
}

/// What a restart does first: every slot that the catalog names is taken.
fn claims(device: &NvmeDevice, report: &mut Report) {
    let slots: Vec<_> = std::iter::from_fn(|| device.allocate(4096)).collect();
    let wanted: Vec<_> = slots.iter().map(|slot| (slot.address(), slot.bytes())).collect();
    drop(slots);
    let start = Instant::now();
    let claimed = device.claim_all(&wanted);
    let us = start.elapsed().as_secs_f64() * 1e6 / wanted.len() as f64;
    assert!(claimed.iter().all(Option::is_some), "free slots can be claimed");
    report.line(format!("\n  slots claimed at a restart: {} at {} us each", wanted.len(), number(us)));
    report.compared("nvme.claim", us, "us", 0.1, 0.1 / us);
}

/// The ways of a block into its slot, with its checksum.
#[derive(Clone, Copy)]
enum Way {
    /// Straight into memory that is registered with the kernel.
    Registered,
    /// Straight, the kernel pinning the pages of each operation.
    Straight,
    /// Through registered buffers, copied.
    Staged,
}

async fn ways(
    args: &Args,
    options: &NvmeOptions,
    pool: &DramPool,
    report: &mut Report,
) -> anyhow::Result<()> {
    const WAYS: [(&str, Way); 3] =
        [("registered", Way::Registered), ("straight", Way::Straight), ("staged", Way::Staged)];
    let heads = WAYS.map(|(name, _)| format!("{name:>12}{:>10}", "CPU-s/GB")).concat();
    report.line(format!("\n  reads as the store does them, with the checksum\n  {:<16}{heads}", ""));
    for block_bytes in args.block_bytes() {
        let (mut row, mut costs) = (format!("  {:<16}", format!("read {}", size(block_bytes))), Vec::new());
        for (_, way) in WAYS {
            let staging = if matches!(way, Way::Staged) { Staging::Always } else { Staging::Never };
            let device = NvmeDevice::open(&NvmeOptions { staging, ..options.clone() })?;
            if matches!(way, Way::Registered) {
                register(&device, pool, report).await;
            }
            let mut bench = Bench::new(&device, pool, block_bytes, args)?;
            let mut moved = Vec::new();
            for _ in 0..args.turns() {
                moved.push(bench.run(false, args.turn_time(), true).await?);
            }
            let cost = median(moved.iter().map(Moved::cpu).collect());
            let rate = median(moved.iter().map(Moved::rate).collect());
            row.push_str(&format!("{:>12}{:>10}", number(rate), number(cost)));
            costs.push(cost);
        }
        report.line(row);
        let name = format!("nvme.checked_read_{}_cpu", slug(block_bytes));
        report.compared(name, costs[0], "CPU-s/GB", costs[2], costs[2] / costs[0]);
    }
    Ok(())
}

async fn register(device: &NvmeDevice, pool: &DramPool, report: &mut Report) -> bool {
    let result = device.register(pool).await;
    if let Err(error) = &result {
        report.line(format!("  the pool is not registered, which costs CPU: {error}"));
    }
    result.is_ok()
}

/// Places of one size over all of a device, and slots of DRAM to move them from and to: as many as the device
/// has in flight, and as many that wait for their turn, so that the way from thread to thread is covered.
struct Bench<'a> {
    device: &'a NvmeDevice,
    block_bytes: u64,
    free: Vec<NvmeSlot>,
    buffers: Vec<DramSlot>,
    random: SmallRng,
}

impl<'a> Bench<'a> {
    fn new(
        device: &'a NvmeDevice,
        pool: &DramPool,
        block_bytes: u64,
        args: &Args,
    ) -> anyhow::Result<Bench<'a>> {
        let depth = args.depth();
        let mut random = SmallRng::seed_from_u64(args.seed);
        let buffers = (0..2 * depth).map(|_| {
            let mut slot = pool.allocate(block_bytes).context("a slot an operation")?;
            random.fill_bytes(slot.bytes_mut());
            Ok(slot)
        });
        let buffers = buffers.collect::<anyhow::Result<_>>()?;
        let free: Vec<_> = std::iter::from_fn(|| device.allocate(block_bytes)).collect();
        ensure!(
            free.len() > 2 * depth,
            "{} blocks of {} are too few: give a larger file",
            free.len(),
            size(block_bytes)
        );
        Ok(Bench { device, block_bytes, free, buffers, random })
    }

    /// Keeps every slot of DRAM busy for a time. A read can be followed by its checksum.
    async fn run(&mut self, writes: bool, time: Duration, hashed: bool) -> anyhow::Result<Moved> {
        let begin = Instant::now();
        let (mut start, mut cpu) = (begin, cpu::process_seconds());
        let (mut operations, mut ramped) = (0, false);
        let mut running = FuturesUnordered::new();
        loop {
            if !ramped && begin.elapsed() >= RAMP {
                (start, cpu, operations, ramped) = (Instant::now(), cpu::process_seconds(), 0, true);
            }
            while begin.elapsed() < RAMP + time
                && let Some(buffer) = self.buffers.pop()
            {
                let place = self.free.swap_remove(self.random.random_range(0..self.free.len()));
                let device = self.device;
                running.push(async move {
                    if writes {
                        return device.write(place, 0, buffer).await;
                    }
                    let (place, buffer, result) = device.read(Arc::new(place), 0, buffer).await;
                    if hashed {
                        std::hint::black_box(checksum(buffer.bytes()));
                    }
                    (Arc::into_inner(place).expect("nobody else has it"), buffer, result)
                });
            }
            let Some((place, buffer, result)) = running.next().await else { break };
            result?;
            self.free.push(place);
            self.buffers.push(buffer);
            operations += 1;
        }
        Ok(Moved {
            bytes: f64::from(operations) * self.block_bytes as f64,
            seconds: start.elapsed().as_secs_f64(),
            cpu_seconds: cpu::process_seconds() - cpu,
        })
    }
}
