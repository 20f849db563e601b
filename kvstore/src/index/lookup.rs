//! Lookup: how far a prompt's prefix is covered.
//!
//! A prompt goes through several runs, and each costs three cache misses one after the other: the map's
//! entry, the node, its hashes. In an index larger than the caches that is most of a lookup's time. So a
//! [`Guide`] asks the map about some blocks of the prompt at once, then for all their nodes, then for all
//! their hashes, and the walk that follows finds what it needs in the cache.

use super::arena::NONE;
use super::run::Run;
use super::{HolderSet, RadixIndex};
use crate::SequenceHash;

/// Blocks between those that the guide asks about: about a run.
const STRIDE: usize = 32;
/// Of these, so many at a time.
const SAMPLES: usize = 8;

/// Nodes where some blocks of a prompt may stand; they are hints.
struct Guide {
    /// The block in the prompt, and the node; [`NONE`] if the map knows none.
    samples: [(usize, u32); SAMPLES],
    count: usize,
}

impl Guide {
    /// Where the block at `at` may stand: in the run of the next one that was asked about.
    fn node(&self, at: usize) -> Option<(usize, u32)> {
        let next = self.samples[..self.count].iter().find(|(sample, _)| *sample >= at);
        next.copied().filter(|(_, id)| *id != NONE)
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
        let mut guide = Guide { samples: [(0, NONE); SAMPLES], count: 0 };
        while let Some(hash) = hashes.get(prefix.len()) {
            let before = prefix.len();
            if before % (STRIDE * SAMPLES) == 0 || guide.samples[SAMPLES - 1].0 < before {
                guide = self.guide(hashes, before);
                if before == 0 {
                    if guide.samples[0].1 == NONE {
                        break;
                    }
                    prefix.reserve_exact(hashes.len());
                }
            }
            let guided = guide.node(before).and_then(|(sample, id)| {
                let node = self.arena.node(id);
                let run = node.run.read();
                let at = if sample == before { run.find(*hash)? } else { run.begins_with(*hash)? };
                Some((node, run, at))
            });
            let seen = guided.or_else(|| self.read(*hash).ok().map(|seen| (seen.node, seen.run, seen.at)));
            let Some((node, run, start)) = seen else { break };
            if before > 0 && run.parent_of(start) != Some(hashes[before - 1]) {
                break;
            }
            let end = start + common(&run.hashes()[start..], &hashes[before..]);
            let held = run.shares.stretches(start..end).take_while(|(_, holders)| !holders.is_empty());
            held.for_each(|(blocks, holders)| prefix.resize(prefix.len() + blocks, holders));
            if let Some(now) = now.filter(|_| prefix.len() > before) {
                node.heat.touch(now);
            }
            if start + prefix.len() - before < run.len() {
                break;
            }
        }
        prefix
    }

    /// Asks about every so many blocks from `start` on, and the last.
    fn guide(&self, hashes: &[SequenceHash], start: usize) -> Guide {
        let mut guide = Guide { samples: [(usize::MAX, NONE); SAMPLES], count: 0 };
        let last = hashes.len() - 1;
        let samples = (start..last).step_by(STRIDE).take(SAMPLES - 1).chain([last]);
        for (slot, sample) in guide.samples.iter_mut().zip(samples) {
            self.places.prefetch(hashes[sample]);
            *slot = (sample, NONE);
            guide.count += 1;
        }
        let samples = &mut guide.samples[..guide.count];
        for (at, id) in samples.iter_mut() {
            let Some(found) = self.places.candidates(hashes[*at], 0).nodes().first().copied() else { break };
            self.arena.prefetch(found);
            *id = found;
        }
        let mut before = NONE;
        for (_, id) in samples.iter().filter(|(_, id)| *id != NONE) {
            // Whoever changes it has it in a cache already.
            if let (true, Some(run)) = (*id != before, self.arena.node(*id).run.try_read()) {
                Run::prefetch(&run);
            }
            before = *id;
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
