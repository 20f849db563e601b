//! Moves bytes: checksums, and copies that make one on the way.
//!
//! Nothing here allocates, blocks or knows what the bytes mean. Layout conversion and the CUDA kernels join
//! this crate when the tiers that need them do.
#![deny(unsafe_code)]

mod checksum;
mod copy;
mod stream;

pub use checksum::{Checksum, Hasher, checksum};
pub use copy::copy_checksummed;
