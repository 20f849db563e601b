//! The miss-ratio curve: what a namespace would hit if its tier were smaller or larger.
//!
//! # Overview
//! A block is in a tier of `n` blocks under tail-first LRU if fewer than `n` others were used since its last
//! use: its *distance*. Uses of a prefix count from its end to its start, so distances grow along a prompt, and
//! the blocks that are near enough are the prompt's cached prefix. [`MissRatio`] measures distances on a
//! sample of blocks, those whose hash is below a bound, and scales them up; the bound falls as blocks come in,
//! so that the sample has a fixed size (SHARDS, Waldspurger et al. 2015). What the sample has too much or too
//! little of is taken as uses of the very hottest blocks: a system prompt that all requests begin with is one
//! block in the sample, or none (the paper's SHARDS-adj).
//!
//! # Limits
//! About 70 bytes a sampled block and 3 KiB, taken as blocks come in; a comparison for a block that is not in the
//! sample, O(log samples) for one that is. On a conversation trace the error was at most .010 with 16,384 samples, over eight draws
//! and five sizes, .016 with half as many, and .030 with 2,048.

use std::{
    collections::{BinaryHeap, HashMap},
    hash::BuildHasherDefault,
    num::NonZero,
};

use crate::{HashMixer, SequenceHash};

/// Steps of the histogram in an octave of distances.
const STEPS: usize = 8;
/// Places of uses at first; they double as they are needed.
const PLACES_MIN: usize = 64;
/// Distances up to 2^36 blocks.
const BUCKETS: usize = 36 * STEPS;

/// Reuse distances of one namespace's blocks. It is not shared between threads: its owner has a lock around it.
#[derive(Debug)]
pub struct MissRatio {
    samples_max: usize,
    /// A block is sampled if its hash is below; `None` for all.
    bound: Option<u64>,
    /// Sampled blocks by hash, with their place in `uses`.
    samples: HashMap<u64, u32, BuildHasherDefault<HashMixer>>,
    /// The same, the highest first: it goes when there are too many.
    by_hash: BinaryHeap<u64>,
    uses: Uses,
    /// Blocks asked for.
    asked: f64,
    /// Of these, blocks asked for before, by distance; each sampled one stands for those that are not.
    reused: Vec<f64>,
    /// Blocks asked for the first time.
    new: f64,
    /// Sampled blocks of a request.
    scratch: Vec<u64>,
}

/// Sampled blocks in order of their last use, and a tree of counts over them (Fenwick 1994).
#[derive(Debug)]
struct Uses {
    /// By place.
    blocks: Vec<Option<NonZero<u64>>>,
    counts: Vec<u32>,
    next: usize,
    live: u32,
}

impl Uses {
    fn new(places: usize) -> Self {
        Self { blocks: vec![None; places], counts: vec![0; places + 1], next: 0, live: 0 }
    }

    fn push(&mut self, block: u64) -> u32 {
        let place = self.next;
        self.next += 1;
        self.blocks[place] = NonZero::new(block);
        self.live += 1;
        self.add(place, 1);
        place as u32
    }

    fn remove(&mut self, place: u32) {
        if self.blocks[place as usize].take().is_some() {
            self.live -= 1;
            self.add(place as usize, u32::MAX);
        }
    }

    /// Adds to a count, by wrapping: `u32::MAX` takes one away.
    fn add(&mut self, place: usize, count: u32) {
        let mut at = place + 1;
        while at < self.counts.len() {
            self.counts[at] = self.counts[at].wrapping_add(count);
            at += at & at.wrapping_neg();
        }
    }

    /// Blocks used after the one at a place.
    fn after(&self, place: u32) -> u32 {
        let mut at = place as usize + 1;
        let mut until = 0;
        while at > 0 {
            until += self.counts[at];
            at &= at - 1;
        }
        self.live - until
    }

    fn is_full(&self) -> bool {
        self.next == self.blocks.len()
    }
}

impl Default for MissRatio {
    fn default() -> Self {
        Self::new(Self::SAMPLES)
    }
}

impl MissRatio {
    /// Blocks in the sample by default: 1 MB.
    pub const SAMPLES: usize = 16_384;

    /// Keeps at most `samples_max` blocks (at least 1).
    pub fn new(samples_max: usize) -> Self {
        let samples_max = samples_max.max(1);
        Self {
            samples_max,
            bound: None,
            samples: HashMap::default(),
            by_hash: BinaryHeap::new(),
            uses: Uses::new(PLACES_MIN.min(2 * samples_max + 2)),
            asked: 0.0,
            reused: vec![0.0; BUCKETS],
            new: 0.0,
            scratch: Vec::new(),
        }
    }

    /// A prompt was asked for, the start of the sequence first, whether it was a hit or not. Returns how many of its
    /// blocks are sampled.
    pub fn observe(&mut self, hashes: &[SequenceHash]) -> usize {
        self.asked += hashes.len() as f64;
        let mut sampled = std::mem::take(&mut self.scratch);
        sampled.clear();
        let in_sample = |block: &u64| self.bound.is_none_or(|bound| *block < bound);
        // 0 stands for a free place.
        let upper = |hash: &SequenceHash| ((hash.as_u128() >> 64) as u64).max(1);
        sampled.extend(hashes.iter().map(upper).filter(in_sample));
        let stands_for = 1.0 / self.share();
        for block in &sampled {
            match self.samples.get(block) {
                None => self.new += stands_for,
                Some(place) => {
                    let distance = f64::from(self.uses.after(*place)) * stands_for;
                    self.reused[bucket(distance)] += stands_for;
                }
            }
        }
        sampled.iter().rev().for_each(|block| self.renew(*block));
        self.scratch = sampled;
        self.scratch.len()
    }

    /// Gives what was seen so far less weight: `keep` of it, 0 to 1. An owner that calls this now and then sees
    /// what is rather than what was.
    pub fn fade(&mut self, keep: f64) {
        let keep = keep.clamp(0.0, 1.0);
        self.asked *= keep;
        self.new *= keep;
        self.reused.iter_mut().for_each(|count| *count *= keep);
    }

    /// Share of blocks that a tier of `capacity_blocks` would have had; 0 while nothing was asked for.
    pub fn hit_ratio(&self, capacity_blocks: u64) -> f64 {
        if self.asked < 1.0 {
            return 0.0;
        }
        let capacity = capacity_blocks as f64;
        let near = |(bucket, count): (usize, &f64)| {
            let (from, to) = (distance(bucket), distance(bucket + 1));
            count * ((capacity - from) / (to - from)).clamp(0.0, 1.0)
        };
        let hits: f64 = self.reused.iter().enumerate().map(near).sum();
        ((hits + self.correction()) / self.asked).clamp(0.0, 1.0)
    }

    /// Points of the curve: capacities in blocks, in steps of half an octave from 16, and the share of blocks
    /// that a tier of that size would have had. It ends where more room would not help.
    pub fn curve(&self) -> Vec<(u64, f64)> {
        let farthest = self.reused.iter().rposition(|count| *count > 0.0).unwrap_or(0);
        let until = distance(farthest + 1);
        let capacities = (8..).map(|step| (2f64.powf(f64::from(step) / 2.0)).round() as u64);
        let mut curve: Vec<_> = Vec::new();
        for capacity in capacities {
            curve.push((capacity, self.hit_ratio(capacity)));
            if capacity as f64 >= until {
                return curve;
            }
        }
        curve
    }

    /// Blocks in the sample.
    pub fn samples(&self) -> usize {
        self.samples.len()
    }

    /// Blocks asked for, faded.
    pub fn asked_blocks(&self) -> f64 {
        self.asked
    }

    /// Share of blocks that are sampled.
    fn share(&self) -> f64 {
        self.bound.map_or(1.0, |bound| bound.max(1) as f64 / 2f64.powi(64))
    }

    /// Uses that the sample lacks.
    fn correction(&self) -> f64 {
        self.asked - self.new - self.reused.iter().sum::<f64>()
    }

    /// Notes a use of a sampled block.
    fn renew(&mut self, block: u64) {
        if self.bound.is_some_and(|bound| block >= bound) {
            // The bound fell within the request.
            return;
        }
        if self.uses.is_full() {
            self.compact();
        }
        let place = self.uses.push(block);
        match self.samples.insert(block, place) {
            Some(before) => self.uses.remove(before),
            None => self.by_hash.push(block),
        }
        if self.samples.len() > self.samples_max
            && let Some(highest) = self.by_hash.pop()
            && let Some(place) = self.samples.remove(&highest)
        {
            self.uses.remove(place);
            self.bound = Some(highest);
        }
    }

    /// Closes the gaps between places, and makes more of them as long as few are gaps.
    fn compact(&mut self) {
        let places = (4 * self.samples.len()).max(PLACES_MIN).min(2 * self.samples_max + 2);
        let blocks = std::mem::replace(&mut self.uses, Uses::new(places)).blocks;
        for block in blocks.into_iter().flatten() {
            let place = self.uses.push(block.get());
            self.samples.insert(block.get(), place);
        }
    }

    /// Memory it takes, with what the maps add, about.
    pub fn memory_bytes(&self) -> usize {
        let places = self.uses.blocks.capacity() * size_of::<Option<NonZero<u64>>>()
            + self.uses.counts.capacity() * size_of::<u32>();
        // A byte for each entry besides, and an eighth of them free.
        let samples = self.samples.capacity() * (size_of::<(u64, u32)>() + 1) * 8 / 7;
        let by_hash = self.by_hash.capacity() * size_of::<u64>();
        size_of::<Self>()
            + places
            + samples
            + by_hash
            + BUCKETS * size_of::<f64>()
            + self.scratch.capacity() * 8
    }
}

/// The lowest distance of a bucket.
fn distance(bucket: usize) -> f64 {
    if bucket == 0 { 0.0 } else { 2f64.powf(bucket as f64 / STEPS as f64) }
}

fn bucket(distance: f64) -> usize {
    if distance < 1.0 {
        return 0;
    }
    ((distance.log2() * STEPS as f64) as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use kelvin_tiering::{Policy, TailFirstLru, Weight};
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::store::CURVE_SAMPLES_MAX;

    /// Conversations behind one system prompt: users come back after others had their say, some never.
    fn trace(seed: u64, conversations: usize) -> Vec<Vec<SequenceHash>> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut fresh = {
            let mut rng = SmallRng::seed_from_u64(!seed);
            move || SequenceHash::from_bytes(rng.random())
        };
        let head = fresh();
        let mut requests = Vec::new();
        for number in 0..conversations {
            let mut at = number as f64;
            let mut prompt = vec![head];
            let goes_on = if rng.random_bool(0.25) { 0.85 } else { 0.15 };
            loop {
                prompt.extend((0..rng.random_range(1..20)).map(|_| fresh()));
                requests.push((at, prompt.clone()));
                if !rng.random_bool(goes_on) {
                    break;
                }
                at += 10f64.powf(rng.random_range(0.5..3.0));
            }
        }
        requests.sort_by(|a, b| a.0.total_cmp(&b.0));
        requests.into_iter().map(|(_, prompt)| prompt).collect()
    }

    /// What a tier hits, block by block.
    fn replay(trace: &[Vec<SequenceHash>], capacity: usize) -> f64 {
        let mut lru = TailFirstLru::<SequenceHash>::new();
        let (mut hits, mut asked) = (0, 0);
        for prompt in trace {
            let hit = prompt.iter().take_while(|hash| lru.contains(hash)).count();
            hits += hit;
            asked += prompt.len();
            lru.touch(&prompt[..hit]);
            for at in hit..prompt.len() {
                while lru.len() >= capacity {
                    let victim = lru.victim(&mut |_| true).unwrap();
                    lru.remove(victim);
                }
                lru.insert(prompt[at], at.checked_sub(1).map(|above| prompt[above]), Weight::default());
            }
        }
        hits as f64 / asked as f64
    }

    #[test]
    fn a_small_sample_tells_what_tiers_of_five_sizes_hit() {
        let trace = trace(1, 8000);
        let unique: std::collections::HashSet<_> = trace.iter().flatten().collect();
        assert!(unique.len() > 4 * MissRatio::SAMPLES, "{}", unique.len());
        let capacities = [2, 5, 10, 20, 40].map(|size| unique.len() * size / 100);
        let exact = capacities.map(|capacity| replay(&trace, capacity));
        assert!(exact[4] - exact[0] > 0.1, "{exact:?}");
        // The default, and what each namespace of a store has.
        for samples in [MissRatio::SAMPLES, CURVE_SAMPLES_MAX] {
            let mut curve = MissRatio::new(samples);
            for prompt in &trace {
                curve.observe(prompt);
            }
            assert_eq!(curve.samples(), samples);
            let estimated = capacities.map(|capacity| curve.hit_ratio(capacity as u64));
            let wrong = exact.iter().zip(estimated).any(|(exact, estimate)| (exact - estimate).abs() > 0.02);
            assert!(!wrong, "exact {exact:?}, of {samples} samples {estimated:?}");
            assert!(curve.memory_bytes() < 80 * samples, "{} bytes", curve.memory_bytes());
        }
    }

    #[test]
    fn memory_is_taken_as_blocks_come_in() {
        let mut curve = MissRatio::new(MissRatio::SAMPLES);
        assert!(curve.memory_bytes() < 8192, "{}", curve.memory_bytes());
        for prompt in trace(2, 20) {
            curve.observe(&prompt);
        }
        assert!(curve.memory_bytes() < 64 << 10, "{}", curve.memory_bytes());
    }

    #[test]
    fn a_curve_rises_and_ends() {
        let mut curve = MissRatio::new(1000);
        assert_eq!((curve.hit_ratio(10), curve.curve().len()), (0.0, 1));
        for prompt in trace(4, 300) {
            curve.observe(&prompt);
        }
        let points = curve.curve();
        assert!(points.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{points:?}");
        assert_eq!(points.last().unwrap().1, curve.hit_ratio(u64::MAX));
        let before = curve.hit_ratio(1000);
        curve.fade(0.5);
        assert!((curve.hit_ratio(1000) - before).abs() < 1e-9, "all fades alike");
        curve.fade(0.0);
        assert_eq!(curve.hit_ratio(1000), 0.0);
    }

    proptest! {
        /// While all blocks are in the sample, distances are those of a stack.
        #[test]
        fn distances_are_those_of_a_stack(
            uses in proptest::collection::vec(0..40u8, 1..400),
            samples_max in 40..60usize,
        ) {
            let mut curve = MissRatio::new(samples_max);
            let mut stack: Vec<u8> = Vec::new();
            let mut reused = vec![0.0; BUCKETS];
            for key in uses {
                if let Some(depth) = stack.iter().rev().position(|other| *other == key) {
                    reused[bucket(depth as f64)] += 1.0;
                    stack.retain(|other| *other != key);
                }
                stack.push(key);
                curve.observe(&[SequenceHash::from_bytes([key; 16])]);
            }
            prop_assert_eq!(&curve.reused, &reused);
            prop_assert_eq!(curve.new, stack.len() as f64);
            prop_assert_eq!(curve.correction(), 0.0);
        }
    }
}
