//! A completion under way: the worker's stream as checked steps, and what must be let go at its end.

use std::{sync::Arc, time::Instant};

use kelvin_proto::worker::v1::{FinishReason, GenerateResponse, GeneratedToken, Usage};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::{Failure, Job, Scheduler, Timeouts, prefill::Prefill};
use crate::{
    fleet::{Flight, Worker},
    metrics::Metrics,
};

/// Why the worker ended a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    Stop,
    Length,
}

/// What comes next of a completion.
#[derive(Debug)]
pub(crate) enum Step {
    /// At least one token.
    Tokens(Vec<GeneratedToken>),
    /// The worker is done.
    End(Finish),
}

/// What is wrong with an empty message.
pub(super) const NOTHING: &str = "a message without a token that is not the last one";

/// Whether a message says nothing at all: who may send one may do so for ever.
pub(super) fn is_empty(message: &GenerateResponse) -> bool {
    message.tokens.is_empty() && message.usage.is_none() && message.finish() == FinishReason::Unspecified
}

/// A decode worker's open stream with its first message.
pub(super) struct Opened {
    pub(super) worker: Arc<Worker>,
    pub(super) flight: Flight,
    pub(super) stream: Streaming<GenerateResponse>,
    pub(super) first: GenerateResponse,
}

/// A completion under way. Dropping it cancels the work on all workers, and counts its tokens.
pub(crate) struct Generation {
    request_id: String,
    worker: Arc<Worker>,
    _flight: Flight,
    stream: Streaming<GenerateResponse>,
    _prefill: Option<Prefill>,
    first: Option<GenerateResponse>,
    end: Option<Finish>,
    timeouts: Timeouts,
    ending: CancellationToken,
    metrics: Arc<Metrics>,
    vocab_tokens: u32,
    tokens_max: u64,
    prompt_tokens: u64,
    matched_tokens: u64,
    generated_tokens: u64,
    usage: Option<Usage>,
    last_step: Instant,
}

impl Generation {
    pub(super) fn new(
        scheduler: &Scheduler,
        job: Job,
        opened: Opened,
        prefill: Option<Prefill>,
        matched_tokens: u64,
    ) -> Self {
        Self {
            request_id: job.request_id,
            worker: opened.worker,
            _flight: opened.flight,
            stream: opened.stream,
            _prefill: prefill,
            first: Some(opened.first),
            end: None,
            timeouts: scheduler.timeouts.clone(),
            ending: scheduler.ending.clone(),
            metrics: scheduler.metrics.clone(),
            vocab_tokens: scheduler.fleet.vocab_tokens(),
            tokens_max: job.tokens_max.into(),
            prompt_tokens: job.tokens.len() as u64,
            matched_tokens,
            generated_tokens: 0,
            usage: None,
            last_step: Instant::now(),
        }
    }

    /// The next step. After [`Step::End`] or a failure nothing more may be asked.
    pub(crate) async fn next(&mut self) -> Result<Step, Failure> {
        if let Some(finish) = self.end.take() {
            return Ok(Step::End(finish));
        }
        let message = match self.first.take() {
            Some(first) => first,
            None => self.message().await.inspect_err(|failure| self.failed(failure))?,
        };
        self.step(message).inspect_err(|failure| self.failed(failure))
    }

    async fn message(&mut self) -> Result<GenerateResponse, Failure> {
        let worker = || self.worker.name();
        let message = tokio::select! {
            biased;
            () = self.ending.cancelled() => return Err(Failure::ShuttingDown),
            message = timeout(self.timeouts.token, self.stream.message()) => message,
        };
        match message {
            Ok(Ok(Some(message))) => {
                self.metrics.inter_token.observe(self.last_step.elapsed().as_secs_f64());
                self.last_step = Instant::now();
                Ok(message)
            }
            Ok(Ok(None)) => {
                Err(Failure::Lost { worker: worker(), why: "its stream ended without a last message".into() })
            }
            Ok(Err(status)) => Err(Failure::of(worker(), &status)),
            Err(_) => Err(Failure::Stalled { worker: worker(), after: self.timeouts.token }),
        }
    }

    /// What a message means.
    fn step(&mut self, message: GenerateResponse) -> Result<Step, Failure> {
        let finish = message.finish();
        let broken = |what| Failure::Protocol { worker: self.worker.name(), what };
        if is_empty(&message) {
            return Err(broken(NOTHING));
        }
        if message.tokens.iter().any(|token| token.token >= self.vocab_tokens) {
            return Err(broken("a token that is not in the vocabulary"));
        }
        if self.generated_tokens + message.tokens.len() as u64 > self.tokens_max {
            return Err(broken("more tokens than were asked for"));
        }
        if message.usage.is_some() || finish != FinishReason::Unspecified {
            self.end = Some(match finish {
                FinishReason::Stop => Finish::Stop,
                FinishReason::Length => Finish::Length,
                FinishReason::Unspecified => return Err(broken("a last message without a reason")),
            });
            self.usage = message.usage;
        }
        if message.tokens.is_empty() {
            return self.end.take().map(Step::End).ok_or_else(|| broken(NOTHING));
        }
        self.generated_tokens += message.tokens.len() as u64;
        Ok(Step::Tokens(message.tokens))
    }

    fn failed(&self, failure: &Failure) {
        self.metrics.error(failure.kind());
        tracing::warn!(request = self.request_id, %failure, "a completion failed after its first token");
        if let Failure::Lost { why, .. } = failure {
            self.worker.lost(why);
        }
    }

    pub(crate) fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
    }

    /// Prompt tokens that the store had when the request came, and that were used. Before the worker's
    /// last message (a stop string ends a completion without it) the store's word alone counts.
    pub(crate) fn cached_tokens(&self) -> u64 {
        let imported = self.usage.as_ref().map_or(u64::MAX, |usage| usage.imported_tokens);
        self.matched_tokens.min(imported)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.metrics.prompt_tokens.inc_by(self.prompt_tokens);
        self.metrics.cached_tokens.inc_by(self.cached_tokens());
        self.metrics.generated_tokens.inc_by(self.generated_tokens);
        let cached = self.cached_tokens();
        self.metrics.seen.used(&self.request_id, self.prompt_tokens, cached, self.generated_tokens);
    }
}
