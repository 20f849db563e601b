//! The decode worker: imports what the store has of a prompt, evaluates the rest, streams tokens, and stores
//! the blocks that came to be.
//!
//! # Overview
//! The owner thread of the engine runs the [`scheduler`]. Every request has two tasks beside it: the [`importer`]
//! waits for blocks at the store and hands their leases over; the [`committer`] stores blocks that the
//! scheduler exported, then sends the last message, so that a client which asks its next turn at
//! once finds them.
//!
//! Blocks evaluated here are exported into an own buffer rather than straight into a reservation: their hashes
//! are known only when they are complete, and the engine must not wait for the store. That is one copy of a
//! block's bytes every `block_tokens` steps, some 10⁻⁴ of what the steps cost.
//!
//! # Limits
//! Requests in the worker: slots + `queue_max`, by permits; one more is refused. Commands to the scheduler:
//! [`COMMANDS`] (importers wait). Sealed blocks of a sequence on their way: [`SEALED`] (the scheduler tries again
//! after the next step). Messages to a slow client: [`MESSAGES`], then tokens gather in the next one.
//!
//! The store being away is a miss: nothing is imported, nothing is stored, the answer is the same.

mod committer;
mod importer;
pub(crate) mod scheduler;
pub(crate) mod sequence;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kelvin_kvstore::Namespace;
use kelvin_proto::{Reason, Refusal, worker::v1};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;
use tracing::{Instrument, Span};

use self::{
    committer::Committer,
    importer::Importer,
    scheduler::Command,
    sequence::{Job, Pipes},
};
pub(crate) use committer::is_present;

use crate::{chunking::prompt_blocks, grammar::Constraint, sampling::SamplingPlan};

const COMMANDS: usize = 64;
const SEALED: usize = 64;
const MESSAGES: usize = 32;

/// A request that was checked.
#[derive(Debug)]
pub(crate) struct GenerateJob {
    /// For the log.
    pub(crate) request_id: String,
    /// At least one token, with room for one more behind.
    pub(crate) prompt: Vec<u32>,
    /// How many of them, the last ones, are output that another worker generated.
    pub(crate) generated_tokens: usize,
    /// What else decides the KV.
    pub(crate) extra: Vec<u8>,
    /// At least one; prompt and these fit the context.
    pub(crate) tokens_max: u32,
    /// Tokens that end the completion.
    pub(crate) stop_tokens: Vec<u32>,
    /// How tokens are chosen.
    pub(crate) plan: SamplingPlan,
    /// What the text must be.
    pub(crate) constraint: Option<Constraint>,
    /// Leading blocks worth waiting for.
    pub(crate) wait_blocks: usize,
    /// How long to wait for one of them.
    pub(crate) wait: Duration,
}

impl GenerateJob {
    /// The output that is there already.
    pub(crate) fn generated(&self) -> &[u32] {
        &self.prompt[self.prompt.len() - self.generated_tokens..]
    }
}

/// The commands' channel; its receiver goes to the scheduler.
pub(crate) fn commands() -> (mpsc::Sender<Command>, mpsc::Receiver<Command>) {
    mpsc::channel(COMMANDS)
}

/// The worker's front. See the module.
pub(crate) struct DecodeWorker {
    commands: mpsc::Sender<Command>,
    namespace: Namespace,
    permits: Arc<Semaphore>,
    keys: AtomicU64,
    tasks: TaskTracker,
}

impl DecodeWorker {
    /// A front for a running scheduler.
    pub(crate) fn new(
        commands: mpsc::Sender<Command>,
        namespace: Namespace,
        slots: u32,
        queue_max: u32,
        tasks: TaskTracker,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(slots as usize + queue_max as usize));
        Self { commands, namespace, permits, keys: AtomicU64::new(1), tasks }
    }

    /// Takes a request in. Dropping the receiver cancels it.
    pub(crate) async fn generate(
        &self,
        job: GenerateJob,
        span: Span,
    ) -> Result<mpsc::Receiver<Result<v1::GenerateResponse, Status>>, Refusal> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| {
            Refusal::new(Reason::Exhausted, "the queue of this worker is full: try again or use another")
        })?;
        let key = self.keys.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(key, request_id = job.request_id, prompt = job.prompt.len(), "generate");
        let block_tokens = self.namespace.spec().block_tokens as usize;
        let blocks = prompt_blocks(job.prompt.len(), block_tokens);

        let (output, messages) = mpsc::channel(MESSAGES);
        let (sealed, sealed_blocks) = mpsc::channel(SEALED);
        let (finish, finished) = oneshot::channel();
        let (start_import, start) = oneshot::channel();
        let stop = CancellationToken::new();
        let mut hashes = self.namespace.hash_blocks(&job.prompt, &job.extra);
        hashes.truncate(blocks);
        let importer = Importer {
            key,
            namespace: self.namespace.clone(),
            hashes,
            wait_blocks: job.wait_blocks,
            wait: job.wait,
            commands: self.commands.clone(),
            output: output.clone(),
        };
        let committer = Committer::new(self.namespace.clone(), job.prompt.clone(), job.extra.clone());
        let pipes = Pipes {
            output: output.clone(),
            // Without blocks to import there is nothing to wait for.
            start_import: (blocks > 0).then_some(start_import),
            stop_import: Some(stop.clone().drop_guard()),
            sealed,
            finish,
        };
        self.tasks.spawn(importer.run(start, stop).instrument(span.clone()));
        let commits = async move {
            committer.run(sealed_blocks, finished, output).await;
            // The place in the bounded queue: held until the last block is stored and the last message taken.
            drop(permit);
        };
        // This task is the request's last, so its span ends with it.
        self.tasks.spawn(commits.instrument(span));
        let GenerateJob {
            prompt,
            generated_tokens,
            tokens_max,
            stop_tokens,
            plan,
            constraint,
            wait_blocks,
            ..
        } = job;
        let expected_tokens = wait_blocks.min(blocks) * block_tokens;
        let job = Job {
            key,
            prompt,
            generated_tokens,
            expected_tokens,
            tokens_max,
            stop_tokens,
            plan,
            constraint,
            pipes,
        };
        let gone = |_| Refusal::new(Reason::Internal, "the engine of this worker ended");
        self.commands.send(Command::Submit(Box::new(job))).await.map_err(gone)?;
        Ok(messages)
    }

    /// Ends every request now.
    pub(crate) async fn stop(&self) {
        // A closed channel means that the engine ended, and with it every request.
        let _ = self.commands.send(Command::Stop).await;
    }
}
