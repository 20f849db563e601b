//! The block checksum: XXH3-64, seed 0, over a block's bytes.
//!
//! Chosen for speed: it reads memory at 26 to 30 GB/s a core, as fast as summing words, against 4.5 GB/s
//! for BLAKE3. It finds damage, not forgery: identity is the sequence hash's business.

use std::fmt;

use xxhash_rust::xxh3::Xxh3;

/// XXH3-64 of a block's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checksum(pub u64);

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Checksum of bytes that are all there.
pub fn checksum(bytes: &[u8]) -> Checksum {
    Checksum(xxhash_rust::xxh3::xxh3_64(bytes))
}

/// Checksum of bytes that come in pieces.
#[derive(Clone, Default)]
pub struct Hasher(Xxh3);

impl Hasher {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Checksum of everything added so far.
    pub fn finish(&self) -> Checksum {
        Checksum(self.0.digest())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hasher({})", self.finish())
    }
}
