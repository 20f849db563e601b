//! Brings the stored blocks of one prompt to the scheduler, in order, waiting for those in the making.

use std::time::Duration;

use kelvin_kvstore::{Namespace, ReadLease, SequenceHash};
use kelvin_proto::kv::v1::BlockStatus;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    scheduler::{BlockBytes, Command},
    sequence::Output,
};
use crate::span;

/// Leases asked for at a time: bounds what one request keeps from being evicted while it waits its turn.
const WINDOW_BLOCKS: usize = 64;

/// One request's import.
pub(super) struct Importer {
    pub(super) key: u64,
    pub(super) namespace: Namespace,
    pub(super) hashes: Vec<SequenceHash>,
    pub(super) wait_blocks: usize,
    pub(super) wait: Duration,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) output: Output,
}

impl BlockBytes for ReadLease {
    fn verified(&self) -> Result<&[u8], String> {
        ReadLease::verified(self).map_err(|error| error.to_string())
    }
}

impl Importer {
    /// Waits for the start, imports, and ends with an `ImportEnd`; or, when the client goes away first, wakes the
    /// scheduler up to notice.
    pub(super) async fn run(self, start: oneshot::Receiver<()>, stop: CancellationToken) {
        let work = async {
            if start.await.is_err() {
                // Nothing to import; what is left to do is to notice that the client goes away.
                std::future::pending::<()>().await;
            }
            self.import().instrument(span::of_import(self.hashes.len())).await;
            let _ = self.commands.send(Command::ImportEnd { key: self.key }).await;
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
            () = self.output.closed() => drop(self.commands.send(Command::Wake).await),
        }
    }

    async fn import(&self) {
        let mut next = 0;
        while next < self.hashes.len() {
            let wait = if next < self.wait_blocks { self.wait } else { Duration::ZERO };
            let end = (next + WINDOW_BLOCKS).min(self.hashes.len());
            let acquired = match self.namespace.acquire(&self.hashes[next..end], wait).await {
                Ok(acquired) => acquired,
                Err(error) => {
                    tracing::debug!(key = self.key, %error, "acquire blocks; evaluating here");
                    return;
                }
            };
            let came = acquired.leases.len();
            for lease in acquired.leases {
                let block = Box::new(lease);
                if self.commands.send(Command::Block { key: self.key, block }).await.is_err() {
                    return;
                }
            }
            next += came;
            let in_the_making = acquired.stopped == Some(BlockStatus::Filling) && next < self.wait_blocks;
            if came == 0 || (acquired.stopped.is_some() && !in_the_making) {
                return;
            }
        }
    }
}
