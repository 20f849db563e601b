//! The prefill worker: fills the store with the blocks of prompts, one prompt after another.
//!
//! # Overview
//! A bounded queue feeds one driver task; the engine lives on its owner thread and runs the driver's calls. For
//! a prompt: lease what is stored, reserve all the rest (from then on decode workers can wait for it; the first
//! message says so), then chunk by chunk evaluate and export straight into the reservations' memory. A
//! chunk's commit runs while the next one is being evaluated. Blocks that another worker is filling are
//! waited for and imported.
//!
//! # Cancellation
//! A dropped response stream is noticed before every engine call and while waiting. A call runs to its end:
//! one chunk at most. What is not committed by then is aborted by dropping the reservations.
//!
//! # Limits
//! `queue_max` waiting requests, one more is refused. No space in the store: what could be reserved is filled, then
//! the call ends early and well. No store: the call is refused as retryable, since there is nothing to fill.

mod fill;
mod plan;

use std::{sync::Arc, time::Duration};

use kelvin_kvstore::Namespace;
use kelvin_proto::{Reason, Refusal, worker::v1};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{Instrument, Span};

use self::fill::Fill;
use crate::{
    chunking::prompt_blocks,
    engine::{EngineSpec, owner::EngineCalls},
    load::LoadMeter,
    span,
};

/// Room for messages of one request. Progress is left out when a client is slow; the first and the last
/// message always have a place.
const MESSAGES: usize = 32;
/// How long to wait for one block that another worker is filling.
const FILLING_WAIT: Duration = Duration::from_secs(10);

type Output = mpsc::Sender<Result<v1::PrefillResponse, Status>>;

/// A request that was checked.
#[derive(Debug)]
pub(crate) struct PrefillJob {
    /// For the log.
    pub(crate) request_id: String,
    /// Fits the context.
    pub(crate) prompt: Vec<u32>,
    /// What else decides the KV.
    pub(crate) extra: Vec<u8>,
}

/// The worker's front. See the module.
pub(crate) struct PrefillWorker {
    jobs: mpsc::Sender<Queued>,
    load: Arc<LoadMeter>,
}

struct Queued {
    job: PrefillJob,
    output: Output,
    ticket: Ticket,
    /// From its arrival on.
    span: Span,
    /// Its time in the queue.
    waiting: Span,
}

impl PrefillWorker {
    /// The front, and the driver that must be run.
    pub(crate) fn new(
        calls: EngineCalls,
        spec: EngineSpec,
        namespace: Namespace,
        chunk_tokens: u32,
        queue_max: u32,
        load: Arc<LoadMeter>,
    ) -> (Self, Driver) {
        // The one in work is not in the queue.
        let (jobs, queue) = mpsc::channel(queue_max.max(1) as usize);
        let driver = Driver { calls, spec, namespace, chunk_tokens, queue, load: load.clone() };
        (Self { jobs, load }, driver)
    }

    /// Takes a request in. Dropping the receiver cancels it.
    pub(crate) fn prefill(
        &self,
        job: PrefillJob,
        span: Span,
    ) -> Result<mpsc::Receiver<Result<v1::PrefillResponse, Status>>, Refusal> {
        let (output, messages) = mpsc::channel(MESSAGES);
        let ticket = Ticket::new(self.load.clone(), job.prompt.len() as u64);
        let waiting = span.in_scope(span::of_queue);
        self.jobs.try_send(Queued { job, output, ticket, span, waiting }).map_err(|error| match error {
            TrySendError::Full(_) => {
                Refusal::new(Reason::Exhausted, "the queue of this worker is full: try again or use another")
            }
            TrySendError::Closed(_) => Refusal::new(Reason::Unavailable, "the worker is shutting down"),
        })?;
        Ok(messages)
    }
}

/// Works the queue off.
pub(crate) struct Driver {
    calls: EngineCalls,
    spec: EngineSpec,
    namespace: Namespace,
    chunk_tokens: u32,
    queue: mpsc::Receiver<Queued>,
    load: Arc<LoadMeter>,
}

impl Driver {
    /// Runs until `stop`; then the one in work and those that wait are refused.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let queued = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                queued = self.queue.recv() => queued,
            };
            let Some(Queued { job, output, mut ticket, span, waiting }) = queued else { return };
            ticket.begin();
            drop(waiting);
            if output.is_closed() {
                continue;
            }
            tracing::debug!(request_id = job.request_id, prompt = job.prompt.len(), "prefill");
            let mut fill = self.fill(&job, &output, &mut ticket, &stop);
            let result = fill.run().instrument(span.clone()).await;
            let evaluated = fill.evaluated();
            span::prefilled(&span, &result);
            // Blocks of this prompt are in the store; the engine starts the next one empty.
            let cleared = self.calls.call(|engine| engine.clear(0)).await;
            if evaluated.0 > 0 {
                tracing::debug!(
                    request_id = job.request_id,
                    tokens = evaluated.0,
                    us = evaluated.1,
                    "filled"
                );
            }
            let last = result.map_err(Status::from).and_then(|last| match cleared {
                Ok(()) => Ok(last),
                Err(error) => Err(Refusal::new(Reason::EngineFailed, error.to_string()).into()),
            });
            // There is room for it; a failure means that the client is gone.
            let _ = output.try_send(last);
            ticket.finish();
        }
        self.queue.close();
        while let Some(Queued { output, .. }) = self.queue.recv().await {
            let _ = output.try_send(Err(stopped().into()));
        }
    }

    fn fill<'a>(
        &'a self,
        job: &'a PrefillJob,
        output: &'a Output,
        ticket: &'a mut Ticket,
        stop: &'a CancellationToken,
    ) -> Fill<'a> {
        let mut hashes = self.namespace.hash_blocks(&job.prompt, &job.extra);
        hashes.truncate(prompt_blocks(job.prompt.len(), self.spec.block_tokens as usize));
        Fill::new(self, job, hashes, output, ticket, stop)
    }
}

fn stopped() -> Refusal {
    Refusal::new(Reason::Unavailable, "the worker is shutting down")
}

/// A request's share of the load figures; gives back what is left of it when dropped.
struct Ticket {
    load: Arc<LoadMeter>,
    pending_tokens: u64,
    running: bool,
}

impl Ticket {
    fn new(load: Arc<LoadMeter>, tokens: u64) -> Self {
        load.update(|load| {
            load.waiting += 1;
            load.pending_prompt_tokens += tokens;
        });
        Self { load, pending_tokens: tokens, running: false }
    }

    fn begin(&mut self) {
        self.running = true;
        self.load.update(|load| {
            load.waiting -= 1;
            load.running += 1;
        });
    }

    /// So many prompt tokens need no more evaluation.
    fn settle(&mut self, tokens: u64) {
        let tokens = tokens.min(self.pending_tokens);
        self.pending_tokens -= tokens;
        self.load.update(|load| load.pending_prompt_tokens -= tokens);
    }

    fn finish(self) {
        self.load.update(|load| load.finished += 1);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.load.update(|load| {
            load.pending_prompt_tokens -= self.pending_tokens;
            if self.running {
                load.running -= 1;
            } else {
                load.waiting -= 1;
            }
        });
    }
}
