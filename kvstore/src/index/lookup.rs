//! Lookup: how far a prompt's prefix is covered.
//!
//! A prompt goes through several runs, and each costs three cache misses one after the other: the map's
//! entry, the node, its hashes. In an index larger than the caches that is most of a lookup's time. So a
//! [`Guide`] asks the map about some blocks of the prompt at once, then for all their nodes, then for all
//! their hashes, and the walk that follows finds what it needs in the cache.

use std::ops::ControlFlow;

use super::{HolderSet, RadixIndex};
use crate::SequenceHash;

/// Blocks between those that the guide asks about: about a run.
const STRIDE: usize = 32;
/// Of these, so many at a time.
const SAMPLES: usize = 8;

/// A smaller index is in the cache, and the walk needs no guide.
const CACHED_BYTES: usize = 4 << 20;

/// Nodes where some blocks of a prompt may stand; they are hints.
#[derive(Default)]
struct Guide {
    /// The block in the prompt, and the node if the map knows one.
    samples: [(usize, Option<u32>); SAMPLES],
    count: usize,
}

impl Guide {
    /// Whether it says something about the block.
    fn reaches(&self, at: usize) -> bool {
        self.samples[..self.count].last().is_some_and(|(sample, _)| at <= *sample)
    }

    /// Where the block may stand: in the run of the next one that was asked about. Whether it is that one.
    fn node(&self, at: usize) -> Option<(u32, bool)> {
        let (sample, id) = self.samples[..self.count].iter().find(|(sample, _)| at <= *sample)?;
        id.map(|id| (id, *sample == at))
    }
}

impl<S: HolderSet> RadixIndex<S> {
    /// Holders of each block of the longest held prefix of `hashes`; as many as the prefix has blocks.
    ///
    /// `hashes` is a chain, each the parent of the next; it may begin at any depth. It ends where a block is
    /// unknown, held by nobody, or not the child of the one before. With `now`, the prefix counts as used
    /// then.
    pub fn longest_prefix(&self, hashes: &[SequenceHash], now: Option<u64>) -> Vec<S> {
        let mut prefix = Vec::new();
        self.walk_prefix(hashes, now, |blocks, holders| {
            if prefix.is_empty() {
                prefix.reserve_exact(hashes.len());
            }
            prefix.resize(prefix.len() + blocks, holders);
            ControlFlow::Continue(())
        });
        prefix
    }

    /// The same prefix by stretches of blocks with the same holders, until `visit` breaks; neighbours may be equal.
    /// A run is locked meanwhile: `visit` may not call the index.
    pub fn walk_prefix(
        &self,
        hashes: &[SequenceHash],
        now: Option<u64>,
        mut visit: impl FnMut(usize, S) -> ControlFlow<()>,
    ) {
        let mut walked = 0;
        let mut guide = Guide::default();
        let cached = self.memory_bytes() < CACHED_BYTES;
        while let Some(hash) = hashes.get(walked) {
            let before = walked;
            if !cached && !guide.reaches(before) {
                guide = self.guide(hashes, before);
            }
            let guided = guide.node(before).and_then(|(id, certain)| {
                let node = self.arena.node(id);
                let run = node.run.read();
                let start = if certain { run.find(*hash)? } else { run.begins_with(*hash)? };
                Some((node, run, start))
            });
            let found = guided.or_else(|| self.read(*hash).ok().map(|seen| (seen.node, seen.run, seen.at)));
            let Some((node, run, start)) = found else { break };
            if before > 0 && run.parent_of(start) != Some(hashes[before - 1]) {
                break;
            }
            let end = start + common(&run.hashes()[start..], &hashes[before..]);
            let mut enough = false;
            for (blocks, holders) in run.shares.stretches(start..end) {
                if holders.is_empty() {
                    break;
                }
                walked += blocks;
                enough = visit(blocks, holders).is_break();
                if enough {
                    break;
                }
            }
            if let Some(now) = now.filter(|_| walked > before) {
                node.heat.touch(now);
            }
            if enough || start + walked - before < run.len() {
                break;
            }
        }
    }

    /// Asks about every so many blocks from `start` on.
    fn guide(&self, hashes: &[SequenceHash], start: usize) -> Guide {
        let mut guide = Guide::default();
        let last = (hashes.len() - 1).min(start + STRIDE * (SAMPLES - 1));
        for (slot, sample) in guide.samples.iter_mut().zip((start..last).step_by(STRIDE).chain([last])) {
            self.places.prefetch(hashes[sample]);
            *slot = (sample, None);
            guide.count += 1;
        }
        let samples = &mut guide.samples[..guide.count];
        for (sample, id) in samples.iter_mut() {
            *id = self.places.first(hashes[*sample]);
            match *id {
                Some(id) => self.arena.prefetch(id),
                // The prefix does not reach that far.
                None => break,
            }
        }
        // The walk comes to the first run at once.
        let mut before = samples.first().and_then(|(_, id)| *id);
        for id in samples.iter().filter_map(|(_, id)| *id) {
            // Whoever changes it has it in a cache already.
            if let (true, Some(run)) = (before != Some(id), self.arena.node(id).run.try_read()) {
                run.prefetch();
            }
            before = Some(id);
        }
        guide
    }
}

/// Blocks at the beginning of both.
pub(super) fn common(one: &[SequenceHash], other: &[SequenceHash]) -> usize {
    let blocks = one.len().min(other.len());
    let (one, other) = (&one[..blocks], &other[..blocks]);
    // Mostly all are equal, which this finds several at a time.
    let unequal = |(one, other): (&SequenceHash, &SequenceHash)| one.as_u128() ^ other.as_u128();
    if one.iter().zip(other).map(unequal).fold(0, |sum, bits| sum | bits) == 0 {
        return blocks;
    }
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}
