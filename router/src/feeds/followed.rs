//! One namespace of a store, followed by its block events: a snapshot, then what changes.
//!
//! # States
//! ```text
//! nothing ──snapshot──► known ──events──► known
//!    ▲                    │ the stream breaks, or the store is away
//!    │ another start of   ▼
//!    └─ the store ──── away ──the same start──► known, from the last cursor on
//! ```
//! Where the store says that something was lost, a new snapshot follows, and takes the place of what was known when it
//! is whole.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
};

use kelvin_kvstore::client::Error;
use kelvin_proto::kv::v1;
use tonic::Streaming;

use super::holdings::Holdings;
use crate::metrics::Metrics;

/// See the module.
pub(crate) struct Followed {
    pub(crate) holdings: Holdings,
    /// How far it was followed, and of which start of the store.
    cursor: AtomicU64,
    incarnation: AtomicU64,
}

impl Followed {
    /// Of at most so many bytes; twice that while a snapshot is read.
    pub(crate) fn new(budget_bytes: usize) -> Self {
        Self {
            holdings: Holdings::new(budget_bytes),
            cursor: AtomicU64::new(0),
            incarnation: AtomicU64::new(0),
        }
    }

    /// Whether something found no place, and a new snapshot may find one.
    pub(crate) fn can_be_whole(&self) -> bool {
        self.holdings.can_be_whole()
    }

    /// The next stream begins with a snapshot. What is known stays until that is whole.
    pub(crate) fn begin_anew(&self) {
        self.cursor.store(0, Ordering::Relaxed);
    }

    /// Applies what the store says; returns why it says no more. `incarnation` is the store's present one, and `watch`
    /// opens its stream from a cursor of an incarnation on. Whoever drops this calls [`Holdings::away`].
    pub(crate) async fn run<W>(
        &self,
        incarnation: u64,
        metrics: &Metrics,
        watch: impl FnOnce(u64, u64) -> W,
    ) -> String
    where
        W: Future<Output = Result<Streaming<v1::WatchResponse>, Error>>,
    {
        let (cursor, known) = (self.cursor.load(Ordering::Relaxed), self.incarnation.load(Ordering::Relaxed));
        let mut stream = match watch(cursor, known).await {
            Ok(stream) => stream,
            Err(error) => return error.to_string(),
        };
        if cursor > 0 && known == incarnation {
            self.holdings.resumed();
        }
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return "its events ended".into(),
                Err(status) => return status.message().to_owned(),
            };
            let applied = self.holdings.apply(&message);
            for (kind, count) in [
                ("store_stored", applied.stored),
                ("store_removed", applied.removed),
                ("store_lost", applied.lost + message.lost),
                ("store_snapshots", applied.snapshots),
            ] {
                metrics.feed(kind, count);
            }
            // A snapshot of which a part is missing is no place to go on from.
            let cursor = if self.holdings.is_in_snapshot() { 0 } else { message.cursor };
            self.cursor.store(cursor, Ordering::Relaxed);
            self.incarnation.store(message.incarnation, Ordering::Relaxed);
        }
    }
}
