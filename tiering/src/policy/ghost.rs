//! What each policy would have hit: all of them on a small tier of ghosts, beside the real one.
//!
//! # Overview
//! A [`GhostBoard`] follows the uses of some of a tier's blocks, those whose hash is below a bound, in tiers that
//! are smaller by the same ratio, one a policy. Blocks are sampled and not sequences, since sequences share
//! their heads; a sampled block stands behind the nearest sampled one before it, as far as that is known.
//!
//! # Limits
//! A look at the hash for a block that is not sampled; an operation of each policy for one that is. The sample is
//! as large as it takes for ghost tiers of [`GHOST_BLOCKS`], and at most one block of [`SAMPLE_MIN`]; but with ghost tiers
//! of less than [`GHOST_BLOCKS_MIN`], where chance decides whose heads are in the sample, a larger one is taken.

use std::fmt;
use std::hash::{BuildHasher, Hash};

use super::{Policy, PolicyKind, Weight, build};

/// A ghost tier holds so many blocks, if the real one holds [`SAMPLE_MIN`] times as many.
const GHOST_BLOCKS: usize = 1024;
/// At most one block of so many is sampled.
const SAMPLE_MIN: usize = 16;
/// Fewer blocks than this say little: a small tier is followed with all of its blocks.
const GHOST_BLOCKS_MIN: usize = 256;
/// Rates fade each time that so many sampled blocks were used,
const FADE_USES: u32 = 256;
/// and keep this: half of a rate is from the last 5,800 uses.
const FADE: f64 = 0.97;
/// Rates mean something when so many sampled blocks were used: ghost tiers are full then, and have learned.
const WARM_USES: f64 = 4096.0;

/// What a policy would have hit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GhostRate {
    /// The policy.
    pub kind: PolicyKind,
    /// Share of used blocks that it would have had, lately.
    pub hit_rate: f64,
}

/// Runs policies on a sample of a tier's blocks. `H` hashes the keys.
pub struct GhostBoard<K, H> {
    hasher: H,
    /// A block is sampled if its hash is below.
    bound: u32,
    ghost_blocks: usize,
    ghosts: Vec<Ghost<K>>,
    /// Used lately, faded.
    uses: f64,
    since_fade: u32,
    /// The last block used, and the last sampled one of its sequence.
    last: Option<(K, Option<K>)>,
}

struct Ghost<K> {
    kind: PolicyKind,
    policy: Box<dyn Policy<K>>,
    /// As `GhostBoard::uses`.
    hits: f64,
}

impl<K, H> fmt::Debug for GhostBoard<K, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GhostBoard").field("ghost_blocks", &self.ghost_blocks).finish_non_exhaustive()
    }
}

impl<K, H> GhostBoard<K, H>
where
    K: Copy + Eq + Hash + Send + 'static,
    H: BuildHasher + Default + Send + 'static,
{
    /// Ghosts of `kinds` for a tier with room for `capacity_blocks`.
    pub fn new(kinds: &[PolicyKind], capacity_blocks: usize) -> Self {
        let ghost = |kind: &PolicyKind| Ghost { kind: *kind, policy: build::<K, H>(*kind, 0), hits: 0.0 };
        let mut board = Self {
            hasher: H::default(),
            bound: 0,
            ghost_blocks: 0,
            ghosts: kinds.iter().map(ghost).collect(),
            uses: 0.0,
            since_fade: 0,
            last: None,
        };
        board.set_capacity(capacity_blocks);
        board
    }

    /// The tier has another size now. What is known stays.
    pub fn set_capacity(&mut self, blocks: usize) {
        let most = SAMPLE_MIN.min(blocks / GHOST_BLOCKS_MIN);
        let sample = (blocks / GHOST_BLOCKS).max(most).max(1);
        self.bound = u32::MAX / u32::try_from(sample).unwrap_or(u32::MAX);
        self.ghost_blocks = (blocks / sample).max(1);
        for ghost in &mut self.ghosts {
            ghost.policy.set_capacity(self.ghost_blocks);
        }
    }

    /// A prefix was matched, the start of the sequence first. Returns how many of its blocks are sampled.
    pub fn touch(&mut self, prefix: &[K]) -> usize {
        let (mut above, mut sampled) = (None, 0);
        for key in prefix {
            if self.is_sampled(key) {
                self.note(*key, above, Weight::default());
                above = Some(*key);
                sampled += 1;
            }
        }
        self.last = prefix.last().map(|last| (*last, above));
        sampled
    }

    /// A block came in behind `parent`. Returns whether it is sampled.
    pub fn insert(&mut self, key: K, parent: Option<K>, weight: Weight) -> bool {
        let above = self.last.filter(|(last, _)| Some(*last) == parent).and_then(|(_, above)| above);
        let is_sampled = self.is_sampled(&key);
        if is_sampled {
            self.note(key, above, weight);
        }
        self.last = Some((key, if is_sampled { Some(key) } else { above }));
        is_sampled
    }

    /// What each policy would have hit lately.
    pub fn rates(&self) -> Vec<GhostRate> {
        let rate =
            |ghost: &Ghost<K>| GhostRate { kind: ghost.kind, hit_rate: ghost.hits / self.uses.max(1.0) };
        self.ghosts.iter().map(rate).collect()
    }

    /// Whether so much was seen that the rates mean something.
    pub fn is_warm(&self) -> bool {
        self.uses >= WARM_USES
    }

    fn is_sampled(&self, key: &K) -> bool {
        // Bits that hash maps don't look at, so that sampled keys spread in these.
        let hash = self.hasher.hash_one(key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((hash >> 20) as u32) < self.bound
    }

    fn note(&mut self, key: K, above: Option<K>, weight: Weight) {
        for ghost in &mut self.ghosts {
            if ghost.policy.contains(&key) {
                ghost.hits += 1.0;
                ghost.policy.touch(&[key]);
                continue;
            }
            while ghost.policy.len() >= self.ghost_blocks {
                let Some(victim) = ghost.policy.victim(&mut |key| Some(*key) != above) else { break };
                ghost.policy.remove(victim);
            }
            ghost.policy.insert(key, above, weight);
        }
        self.uses += 1.0;
        self.since_fade += 1;
        if self.since_fade == FADE_USES {
            self.since_fade = 0;
            self.uses *= FADE;
            self.ghosts.iter_mut().for_each(|ghost| ghost.hits *= FADE);
        }
    }
}
