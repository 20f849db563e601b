//! The miss-ratio curve of a store that saw the trace, against exact replays of it.
//!
//! A store is asked for every prompt, as a router asks it, and its curve is read at five sizes. Beside it the trace
//! is replayed block by block in a tier of each size, by tail-first LRU, which the curve is of. Both count all of
//! the trace. So that the choice of the sample can be judged, curves of smaller samples are shown too.

use std::collections::HashSet;

use anyhow::ensure;
use kelvin_kvstore::SequenceHash;
use kelvin_kvstore::bench_support::{CURVE_SAMPLES_MAX, Core};
use kelvin_kvstore::insight::MissRatio;
use kelvin_tiering::{PolicyKind, Weight, build_policy};

use super::{Hasher, SIZES, capacity, rate, row};
use crate::report::Report;
use crate::trace::{Trace, spread};

/// Most difference that the curve may have from the truth.
const TOLERANCE: f64 = 0.02;
/// Of a store's block here; no payload is stored.
const BLOCK_BYTES: u64 = 4096;

/// A block's hash, all of whose bits look random.
fn hash(block: u64) -> SequenceHash {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&spread(block).to_le_bytes());
    bytes[8..].copy_from_slice(&spread(!block).to_le_bytes());
    SequenceHash::from_bytes(bytes)
}

pub(super) fn compare(trace: &Trace, report: &mut Report) -> anyhow::Result<()> {
    let core = Core::new(16 << 20)?;
    let session = core.open(BLOCK_BYTES).map_err(|refusal| anyhow::anyhow!(refusal.message))?;
    let samples = [CURVE_SAMPLES_MAX / 2, CURVE_SAMPLES_MAX / 4];
    let mut smaller = samples.map(MissRatio::new);
    for request in &trace.requests {
        let hashes: Vec<SequenceHash> = request.blocks.iter().copied().map(hash).collect();
        core.look_up(&session, &hashes);
        for curve in &mut smaller {
            curve.observe(&hashes);
        }
    }
    let sizes = SIZES.map(|size| capacity(trace, size));
    let exact = sizes.map(|blocks| replay(trace, blocks));
    let live = sizes.map(|blocks| core.estimated_hit_ratio(&session, blocks as u64));
    report.line("hit blocks / blocks asked for, all of the trace: the live miss-ratio curve and the truth");
    report.line(row("replayed exactly", exact.map(rate)));
    report.line(row("live curve", live.map(rate)));
    report.line(row("  difference", differences(exact, live).map(rate)));
    for (count, curve) in samples.into_iter().zip(&smaller) {
        let estimated = sizes.map(|blocks| curve.hit_ratio(blocks as u64));
        report.line(row(&format!("  of {count} samples"), differences(exact, estimated).map(rate)));
    }
    for (at, size) in SIZES.into_iter().enumerate() {
        let ratio = live[at] / exact[at].max(f64::MIN_POSITIVE);
        report.compared(format!("curve.live_{size}"), live[at], "of blocks", exact[at], ratio);
    }
    let worst = differences(exact, live).into_iter().map(f64::abs).fold(0.0, f64::max);
    report.line(format!(
        "the curve of {CURVE_SAMPLES_MAX} samples is off by {worst:.4} at most; it may be by {TOLERANCE}"
    ));
    report.compared("curve.error_max", worst, "of blocks", TOLERANCE, TOLERANCE / worst.max(1e-9));
    ensure!(worst <= TOLERANCE, "the miss-ratio curve is off by {worst:.4}, more than {TOLERANCE}");
    Ok(())
}

fn differences(exact: [f64; 5], estimated: [f64; 5]) -> [f64; 5] {
    std::array::from_fn(|at| estimated[at] - exact[at])
}

/// Share of the blocks asked for that a tier of that size has.
fn replay(trace: &Trace, capacity: usize) -> f64 {
    let mut lru = build_policy::<u64, Hasher>(PolicyKind::Lru, capacity);
    let (mut hits, mut asked) = (0, 0);
    for request in &trace.requests {
        let blocks = &request.blocks;
        let hit = blocks.iter().take_while(|block| lru.contains(block)).count();
        hits += hit;
        asked += blocks.len();
        lru.touch(&blocks[..hit]);
        let running: HashSet<u64, Hasher> = blocks.iter().copied().collect();
        for at in hit..blocks.len() {
            while lru.len() >= capacity {
                let Some(victim) = lru.victim(&mut |block| !running.contains(block)) else { break };
                lru.remove(victim);
            }
            if lru.len() >= capacity {
                // The request alone fills the tier.
                break;
            }
            lru.insert(blocks[at], at.checked_sub(1).map(|above| blocks[above]), Weight::default());
        }
    }
    hits as f64 / asked.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_live_curve_is_close_to_the_truth() {
        let mut report = Report::new("policies", 1, "a test");
        compare(&Trace::synthetic(5, 400), &mut report).unwrap();
    }
}
