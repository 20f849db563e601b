//! What the store counts, for `Stats` and `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};

use super::room::Removal;
use crate::insight::Reason;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Leases that their TTL ended, not their owner.
    pub(crate) leases_expired: Counter,
    pub(crate) evictions: Counter,
    pub(crate) conflicts: Counter,
    /// Commits whose bytes did not have the checksum given.
    pub(crate) checksum_failures: Counter,
    /// Blocks dropped since a reader found them damaged.
    pub(crate) damaged_blocks: Counter,
    /// Reservations that found no slot.
    pub(crate) no_space: Counter,
    /// Payload through gRPC, which the store copies.
    pub(crate) grpc_read_bytes: Counter,
    pub(crate) grpc_written_bytes: Counter,
    /// Payload over the data port, from and into slots.
    pub(crate) tcp_read_bytes: Counter,
    pub(crate) tcp_written_bytes: Counter,
    /// Payload that other processes read and filled in place.
    pub(crate) shm_leased_bytes: Counter,
    pub(crate) shm_committed_bytes: Counter,
    /// Payload bytes that the store itself copied, by whatever way.
    pub(crate) copied_bytes: Counter,
    /// Blocks that a match did not find, by the code of the reason of the first of them.
    pub(crate) misses: [Counter; Reason::ALL.len()],
    /// Their tokens.
    pub(crate) miss_tokens: [Counter; Reason::ALL.len()],
    /// Tokens asked for by a match while somebody was filling their blocks.
    pub(crate) filling_tokens: Counter,
    /// Blocks that left DRAM, by why.
    pub(crate) removals: [Counter; Removal::ALL.len()],
}
