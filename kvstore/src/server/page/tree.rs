//! The tree of prefixes for the page: the branches that take most, with what is behind each.
//!
//! The walk holds nothing up (see [`RadixIndex::outline`](crate::RadixIndex::outline)) and is cut at
//! [`RUNS_MAX`] runs, some 20 MB for the moment it takes; the caller lets one walk at a time go on.

use std::time::Duration;

use serde_json::{Value, json};

use super::Names;
use crate::{OUTLINE_HOLDERS, SequenceHash, store::Namespace};

/// Runs that one walk looks at.
const RUNS_MAX: usize = 200_000;
/// Branches that are told, of those that take most.
const SHOWN: usize = 800;
const DEPTH_MAX: usize = 64;

/// The tree of a namespace, or `from` and what is behind it.
pub(super) fn tree(namespace: &Namespace, from: Option<SequenceHash>, names: &Names, now: Duration) -> Value {
    let outline = namespace.index.outline(from, RUNS_MAX);
    let branches = &outline.branches;
    let mut depths = Vec::with_capacity(branches.len());
    for branch in branches {
        depths.push(branch.parent.map_or(0, |parent| depths[parent] + 1usize));
    }
    let mut totals: Vec<[usize; OUTLINE_HOLDERS]> = branches.iter().map(|branch| branch.copies).collect();
    let mut behind = vec![0usize; branches.len()];
    for at in (0..branches.len()).rev() {
        if let Some(parent) = branches[at].parent {
            let more = totals[at];
            totals[parent].iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            behind[parent] += behind[at] + 1;
        }
    }
    let size = |at: usize| totals[at].iter().sum::<usize>();
    let mut order: Vec<usize> = (0..branches.len()).filter(|at| depths[*at] < DEPTH_MAX).collect();
    // A parent is as large as its child and stands before it: whoever is told, so is their parent.
    order.sort_by_key(|at| (std::cmp::Reverse(size(*at)), *at));
    order.truncate(SHOWN);
    order.sort_unstable();
    let mut places = vec![None; branches.len()];
    let tiers = |copies: &[usize; OUTLINE_HOLDERS]| json!({"dram": copies[1], "nvme": copies[2], "object": copies[3]});
    let now_ms = now.as_millis() as u64;
    let told = order.iter().enumerate().map(|(place, &at)| {
        places[at] = Some(place);
        let branch = &branches[at];
        json!({
            "parent": branch.parent.and_then(|parent| places[parent]),
            "first": branch.first.to_string(),
            "last": branch.last.to_string(),
            "name": names.of(branch.first).or_else(|| names.of(branch.last)),
            "blocks": branch.blocks,
            "own": tiers(&branch.copies),
            "total": tiers(&totals[at]),
            "behind": behind[at],
            "uses": branch.uses,
            "idle_ms": now_ms.saturating_sub(branch.last_use),
            "pinned": namespace.pins.hold(&branch.last),
        })
    });
    let told: Vec<_> = told.collect();
    json!({
        "namespace": namespace.id.to_string(),
        "tenant": "",
        "model": namespace.spec.model,
        "block_bytes": namespace.spec.block_bytes,
        "block_tokens": namespace.spec.block_tokens,
        "branches": branches.len(),
        "shown": told.len(),
        "is_cut": outline.is_cut,
        "nodes": told,
    })
}
