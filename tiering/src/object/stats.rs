//! What the object tier did, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use super::BreakerState;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What the object tier did since it was opened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct ObjectStats {
            $($(#[$doc])* pub $name: u64,)*
            /// Reads under way or waiting for their turn.
            pub reads_queued: u64,
            /// Writes under way or waiting for their turn.
            pub writes_queued: u64,
            /// Whether reads go through.
            pub read_breaker: BreakerState,
            /// Whether writes go through.
            pub write_breaker: BreakerState,
            /// How often either breaker opened.
            pub breaker_opens: u64,
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> ObjectStats {
                ObjectStats { $($name: self.$name.get(),)* ..ObjectStats::default() }
            }
        }
    };
}

counters! {
    /// GET requests.
    gets,
    /// PUT requests.
    puts,
    /// LIST requests; a long list takes one a thousand names.
    lists,
    /// DELETE requests.
    deletes,
    /// Blocks read and verified.
    blocks_read,
    /// Blocks written.
    blocks_written,
    /// Bytes of those blocks.
    bytes_read,
    /// Bytes of those blocks.
    bytes_written,
    /// Bytes that came with blocks but belong to none that was wanted.
    bytes_gaps,
    /// Requests that failed, each try counted.
    errors,
    /// Tries after the first.
    retries,
    /// Second requests for a first byte that took long.
    hedges,
    /// Those that answered first.
    hedges_won,
    /// Requests that ended for lack of time.
    timeouts,
    /// Requests not made, because a breaker was open.
    refusals,
    /// Times that a block failed its checksum.
    damaged,
    /// Packs asked for that were not there.
    missing,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        // Statistics order nothing.
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
