//! Stores the blocks that a sequence completed, then sends its last message.

use std::time::Duration;

use kelvin_kvstore::{Namespace, Reserved, client::Error};
use kelvin_proto::{kv::v1::BlockStatus, worker::v1};
use tokio::sync::{mpsc, oneshot};

use super::sequence::{Final, Output, SealedBlock};
use crate::span;

/// How long the last message waits for the commit of the last blocks.
const COMMIT_WAIT: Duration = Duration::from_secs(1);
const BATCH_BLOCKS: usize = 16;

/// One sequence's way into the store.
pub(super) struct Committer {
    namespace: Namespace,
    extra: Vec<u8>,
    /// Tokens as far as they are known here: the prompt, then what came with the blocks.
    tokens: Vec<u32>,
    /// Cleared when a block could not be stored: its successors could not be found without it.
    stores: bool,
}

impl Committer {
    /// For a sequence that starts with this prompt.
    pub(super) fn new(namespace: Namespace, prompt: Vec<u32>, extra: Vec<u8>) -> Self {
        Self { namespace, extra, tokens: prompt, stores: true }
    }

    /// Runs until the sequence has ended and its blocks are committed.
    pub(super) async fn run(
        mut self,
        mut sealed: mpsc::Receiver<SealedBlock>,
        mut finish: oneshot::Receiver<Final>,
        output: Output,
    ) {
        let mut commits = std::pin::pin!(self.commit_all(&mut sealed));
        let (end, committed) = tokio::select! {
            () = &mut commits => (finish.await, true),
            end = &mut finish => (end, tokio::time::timeout(COMMIT_WAIT, &mut commits).await.is_ok()),
        };
        if let Ok(end) = end {
            span::decoded(end.outcome.as_ref().ok().map(|(_, usage)| usage));
            // A failed send means that the client is gone.
            let _ = send_end(&output, end).await;
        }
        drop(output);
        if !committed {
            commits.await;
        }
    }

    /// Commits what comes until the scheduler lets the channel go.
    async fn commit_all(&mut self, sealed: &mut mpsc::Receiver<SealedBlock>) {
        let mut batch = Vec::with_capacity(BATCH_BLOCKS);
        while sealed.recv_many(&mut batch, BATCH_BLOCKS).await > 0 {
            let blocks = std::mem::take(&mut batch);
            if !self.stores {
                continue;
            }
            self.stores = self.commit(blocks).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "store blocks; the rest of the sequence stays here");
                false
            });
        }
    }

    /// Reserves, fills and commits a run of blocks. Returns whether the next ones can be stored behind them.
    async fn commit(&mut self, blocks: Vec<SealedBlock>) -> Result<bool, Error> {
        let block_tokens = self.namespace.spec().block_tokens as usize;
        let Some(first) = blocks.first().map(|block| block.index) else { return Ok(true) };
        for block in &blocks {
            let end = (block.index + 1) * block_tokens;
            if end > self.tokens.len() {
                self.tokens.truncate(block.index * block_tokens);
                self.tokens.extend_from_slice(&block.tokens);
            }
        }
        let end = first + blocks.len();
        let hashes = self.namespace.hash_blocks(&self.tokens[..end * block_tokens], &self.extra);
        let parent = first.checked_sub(1).map(|index| hashes[index]);
        let reserved = self.namespace.reserve(parent, &hashes[first..]).await?;
        let mut filled = Vec::with_capacity(blocks.len());
        let mut go_on = true;
        for (block, reserved) in blocks.iter().zip(reserved) {
            match reserved {
                Reserved::Write(mut lease) => {
                    lease.fill(&block.bytes);
                    filled.push(lease);
                }
                Reserved::AlreadyStored | Reserved::Filling => {}
                Reserved::NoSpace | Reserved::NoParent | Reserved::Other(_) => {
                    go_on = false;
                    break;
                }
            }
        }
        if filled.is_empty() {
            return Ok(go_on);
        }
        let statuses = self.namespace.commit(filled).await?;
        Ok(go_on && statuses.iter().all(|&status| is_present(status)))
    }
}

/// Whether a block is in the store after a commit, be it by this one.
pub(crate) fn is_present(status: BlockStatus) -> bool {
    matches!(status, BlockStatus::Stored | BlockStatus::AlreadyStored | BlockStatus::Conflict)
}

async fn send_end(output: &Output, end: Final) -> Result<(), mpsc::error::SendError<()>> {
    let gone = |_| mpsc::error::SendError(());
    if !end.tokens.is_empty() {
        let message = v1::GenerateResponse { tokens: end.tokens, ..Default::default() };
        output.send(Ok(message)).await.map_err(gone)?;
    }
    let last = end.outcome.map(|(finish, usage)| v1::GenerateResponse {
        tokens: Vec::new(),
        finish: finish.into(),
        usage: Some(usage),
    });
    output.send(last.map_err(Into::into)).await.map_err(gone)
}
