//! DRAM: a put, which copies and makes the checksum in one pass, beside memcpy.

use std::time::{Duration, Instant};

use anyhow::Context;
use kelvin_kernels::copy_checksummed;
use kelvin_tiering::{Device, DramPool, DramSlot};
use rand::{RngCore, SeedableRng, rngs::SmallRng};

use super::{Args, cpu, median, size, slug};
use crate::report::{Report, number};

/// Slots of a turn: more than any cache holds, so that both sides come from memory.
const SET_BYTES: u64 = 256 << 20;
const SET_BYTES_SMOKE: u64 = 64 << 20;

/// Either side is run at least so long a turn, many times what the CPU clock is fine to.
const TURN: Duration = Duration::from_millis(300);
const TURN_SMOKE: Duration = Duration::from_millis(50);

type Copy = fn(&[u8], &mut [u8]);

const PUT: Copy = |block, slot| {
    std::hint::black_box(copy_checksummed(block, slot));
};
const MEMCPY: Copy = |block, slot| slot.copy_from_slice(block);

pub(super) fn measure(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    report.line(format!(
        "\nDRAM: a block copied into its slot, one thread, GB a CPU-second, median of {} turns\n  {:<16}{:>10}{:>10}{:>10}{:>14}{:>20}",
        args.turns(),
        "",
        "put",
        "memcpy",
        "ratio",
        "best/best",
        "CPU-s/GB put",
    ));
    for block_bytes in args.block_bytes() {
        one_size(args, block_bytes, report)?;
    }
    Ok(())
}

fn one_size(args: &Args, block_bytes: u64, report: &mut Report) -> anyhow::Result<()> {
    let (set_bytes, turn) = if args.smoke { (SET_BYTES_SMOKE, TURN_SMOKE) } else { (SET_BYTES, TURN) };
    let pool = DramPool::new("bench", set_bytes).context("make a pool")?;
    let mut slots: Vec<DramSlot> = std::iter::from_fn(|| pool.allocate(block_bytes)).collect();
    let mut source = vec![0; set_bytes as usize];
    SmallRng::seed_from_u64(args.seed).fill_bytes(&mut source);
    let mut pass = |copy: Copy| {
        for (slot, block) in slots.iter_mut().zip(source.chunks_exact(block_bytes as usize)) {
            copy(block, slot.bytes_mut());
        }
        slots.len() as f64 * block_bytes as f64
    };
    // The first pass takes the pages.
    pass(MEMCPY);
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..args.turns() {
        for (copy, rates) in [PUT, MEMCPY].into_iter().zip(&mut rates) {
            let (start, cpu, mut bytes) = (Instant::now(), cpu::thread_seconds(), 0.0);
            while start.elapsed() < turn {
                bytes += pass(copy);
            }
            rates.push(bytes / (cpu::thread_seconds() - cpu) / 1e9);
        }
    }
    let best = rates.clone().map(|rates| rates.into_iter().fold(0.0, f64::max));
    let [put, memcpy] = rates.map(median);
    report.line(format!(
        "  {:<16}{:>10}{:>10}{:>10}{:>14}{:>20}",
        size(block_bytes),
        number(put),
        number(memcpy),
        number(put / memcpy),
        number(best[0] / best[1]),
        number(1.0 / put)
    ));
    report.compared(format!("dram.put_{}", slug(block_bytes)), put, "GB/CPU-s", memcpy, put / memcpy);
    Ok(())
}
