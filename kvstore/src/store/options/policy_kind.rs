//! Policies by name.

use std::{fmt, str::FromStr};

/// A policy that can be asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// Least recently used, ends of sequences first.
    Lru,
    /// Least often used.
    Lfu,
    /// Recency and frequency, balanced by ghosts.
    Arc,
    /// Three first-in-first-out queues.
    S3Fifo,
    /// By size and by what it costs to make again.
    Gdsf,
    /// Whichever of the others does best on a sample.
    Adaptive,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Lru, Self::Lfu, Self::Arc, Self::S3Fifo, Self::Gdsf, Self::Adaptive];

    /// As it is written in configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::Arc => "arc",
            Self::S3Fifo => "s3-fifo",
            Self::Gdsf => "gdsf",
            Self::Adaptive => "adaptive",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for PolicyKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            format!("no policy is called {name:?}; there are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}
