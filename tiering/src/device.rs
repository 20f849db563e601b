//! One trait for the storage of every tier.
//!
//! A device gives out places of a wanted size and moves bytes in and out of them. Buffers and places go
//! in by value and come back with the result, because an operation that was given up half way may still be
//! running in the kernel: whoever holds a buffer knows that nobody else writes it.
//!
//! A full device answers `None`: that is the moment to evict, not an error.

use std::{future::Future, io};

/// Where a copy of a block lives, hottest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// GPU memory (G1).
    Hbm,
    /// Host memory (G2).
    Dram,
    /// Local flash (G3).
    Nvme,
    /// Object store (G4).
    Object,
}

/// How full a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes it can hold.
    pub capacity_bytes: u64,
    /// Bytes in places given out.
    pub used_bytes: u64,
    /// Places given out.
    pub places: u64,
}

/// Why an operation on a device failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The operation leaves its place.
    #[error("{bytes} bytes at {offset} leave a place of {place_bytes} bytes")]
    OutOfBounds {
        /// First byte.
        offset: u64,
        /// How many.
        bytes: u64,
        /// What the place has.
        place_bytes: u64,
    },
    /// The device failed again and again, and rests before it is tried again.
    #[error("storage is out of service after repeated failures")]
    Unavailable,
    /// The device failed.
    #[error("{action}: {source}")]
    Io {
        /// A verb phrase.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Storage of one tier.
pub trait Device: Send + Sync + 'static {
    /// A piece of the device that belongs to its holder; dropping it gives it back.
    type Place: Send + Sync + 'static;

    /// Which tier it is.
    fn tier(&self) -> Tier;

    /// A place for `bytes`, or `None` while none is free.
    fn allocate(&self, bytes: u64) -> Option<Self::Place>;

    /// Writes all of `source` at `offset` of the place.
    fn write<B: AsRef<[u8]> + Send + 'static>(
        &self,
        place: Self::Place,
        offset: u64,
        source: B,
    ) -> impl Future<Output = (Self::Place, B, Result<(), DeviceError>)> + Send;

    /// Fills all of `target` from `offset` of the place.
    fn read<P, B>(
        &self,
        place: P,
        offset: u64,
        target: B,
    ) -> impl Future<Output = (P, B, Result<(), DeviceError>)> + Send
    where
        P: AsRef<Self::Place> + Send + 'static,
        B: AsMut<[u8]> + Send + 'static;

    /// How full it is.
    fn usage(&self) -> Usage;
}
