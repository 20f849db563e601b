//! Policies by name.

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::str::FromStr;

use super::{Policy, TailFirstLru};

/// A policy that can be asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// [`TailFirstLru`].
    Lru,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Lru];

    /// As it is written in configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
        }
    }
}

impl Default for PolicyKind {
    fn default() -> Self {
        Self::Lru
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
        PolicyKind::Lru => Box::new(TailFirstLru::<K, H>::new()),
    };
    policy.set_capacity(capacity_blocks);
    policy
}
