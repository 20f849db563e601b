//! Policies by name.

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::str::FromStr;

use super::adaptive::Adaptive;
use super::arc::Arc;
use super::density::HitDensity;
use super::frequency::{Fifo, Gdsf, Lfu};
use super::ranked::Ranked;
use super::s3fifo::S3Fifo;
use super::{Policy, TailFirstLru};

/// A policy that can be asked for by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyKind {
    /// The block that is expected to earn the fewest hits for the place and time it takes.
    #[default]
    Density,
    /// [`TailFirstLru`]: least recently used.
    Lru,
    /// Least frequently used.
    Lfu,
    /// A list of blocks used once and one of those used again, and a border that moves with regret.
    Arc,
    /// A small queue on probation, and a main one.
    S3Fifo,
    /// Greedy dual size frequency: the least `uses x cost / bytes`, aged.
    Gdsf,
    /// First in, first out.
    Fifo,
    /// Of the others, the one that would have hit most lately.
    Adaptive,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Density,
        Self::Lru,
        Self::Lfu,
        Self::Arc,
        Self::S3Fifo,
        Self::Gdsf,
        Self::Fifo,
        Self::Adaptive,
    ];

    /// Those that [`Adaptive`](Self::Adaptive) chooses from.
    pub const FIXED: [Self; 7] =
        [Self::Density, Self::Lru, Self::Lfu, Self::Arc, Self::S3Fifo, Self::Gdsf, Self::Fifo];

    /// As it is written in configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Density => "density",
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::Arc => "arc",
            Self::S3Fifo => "s3fifo",
            Self::Gdsf => "gdsf",
            Self::Fifo => "fifo",
            Self::Adaptive => "adaptive",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// There is no policy of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no policy is called {name:?}; there are {}", PolicyKind::ALL.map(PolicyKind::name).join(", "))]
pub struct UnknownPolicy {
    name: String,
}

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        let same = |kind: &Self| kind.name() == name;
        Self::ALL.into_iter().find(same).ok_or_else(|| UnknownPolicy { name: name.to_owned() })
    }
}

/// A policy for a tier with room for `capacity_blocks`. `H` hashes the keys.
pub fn build<K, H>(kind: PolicyKind, capacity_blocks: usize) -> Box<dyn Policy<K>>
where
    K: Copy + Eq + Hash + Send + 'static,
    H: BuildHasher + Default + Send + 'static,
{
    let mut policy: Box<dyn Policy<K>> = match kind {
        PolicyKind::Density => Box::new(Ranked::<K, HitDensity<K, H>, H>::new(HitDensity::new())),
        PolicyKind::Lru => Box::new(TailFirstLru::<K, H>::new()),
        PolicyKind::Lfu => Box::new(Ranked::<K, Lfu, H>::new(Lfu)),
        PolicyKind::Arc => Box::new(Ranked::<K, Arc<K, H>, H>::new(Arc::new())),
        PolicyKind::S3Fifo => Box::new(Ranked::<K, S3Fifo<K, H>, H>::new(S3Fifo::new())),
        PolicyKind::Gdsf => Box::new(Ranked::<K, Gdsf, H>::new(Gdsf::new())),
        PolicyKind::Fifo => Box::new(Ranked::<K, Fifo, H>::new(Fifo::new())),
        PolicyKind::Adaptive => Box::new(Adaptive::<K, H>::new()),
    };
    policy.set_capacity(capacity_blocks);
    policy
}
