//! A completion under way: the worker's stream as checked steps, and what must be let go at its end.
//!
//! # States
//! ```text
//!  Streaming ──last message──────────────────────────► End
//!   │     ▲
//!   │     └── first message of another worker ──┐
//!   └── worker lost, silent, or out of line ──► Moving ──nobody left, or moved too often──► failed
//! ```
//! See [`migration`](super::migration) for a move.

use std::{sync::Arc, time::Instant};

use kelvin_proto::{
    trace,
    worker::v1::{FinishReason, GenerateResponse, GeneratedToken, Usage},
};
use tokio::time::timeout;
use tonic::Streaming;
use tracing::Span;

use super::{Failure, Job, Scheduler, migration::Moves, prefill::Prefill};
use crate::{
    fleet::{Flight, Worker},
    metrics::{Outcome, Predicted, Target},
    prefix::Found,
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
    scheduler: Arc<Scheduler>,
    /// Its tokens are the prompt's and, behind them, those generated so far.
    job: Job,
    worker: Arc<Worker>,
    flight: Flight,
    stream: Streaming<GenerateResponse>,
    _prefill: Option<Prefill>,
    first: Option<GenerateResponse>,
    end: Option<Finish>,
    prompt_tokens: u64,
    found: Found,
    generated_tokens: u64,
    usage: Option<Usage>,
    moves: Moves,
    last_step: Instant,
}

impl Generation {
    pub(super) fn new(
        scheduler: Arc<Scheduler>,
        job: Job,
        opened: Opened,
        prefill: Option<Prefill>,
        found: Found,
    ) -> Self {
        Self {
            scheduler,
            prompt_tokens: job.tokens.len() as u64,
            job,
            worker: opened.worker,
            flight: opened.flight,
            stream: opened.stream,
            _prefill: prefill,
            first: Some(opened.first),
            end: None,
            found,
            generated_tokens: 0,
            usage: None,
            moves: Moves::default(),
            last_step: Instant::now(),
        }
    }

    /// The next step. After [`Step::End`] or a failure nothing more may be asked.
    pub(crate) async fn next(&mut self) -> Result<Step, Failure> {
        loop {
            if let Some(finish) = self.end.take() {
                return Ok(Step::End(finish));
            }
            let message = match self.first.take() {
                Some(first) => Ok(first),
                None => self.message().await,
            };
            match message.and_then(|message| self.step(message)) {
                Ok(step) => return Ok(step),
                Err(failure) => self.go_on(failure).await.inspect_err(|failure| self.failed(failure))?,
            }
        }
    }

    async fn message(&mut self) -> Result<GenerateResponse, Failure> {
        let Scheduler { ending, timeouts, .. } = &*self.scheduler;
        let worker = || self.worker.name();
        let message = tokio::select! {
            biased;
            () = ending.cancelled() => return Err(Failure::ShuttingDown),
            message = timeout(timeouts.token, self.stream.message()) => message,
        };
        match message {
            Ok(Ok(Some(message))) => {
                self.stepped();
                Ok(message)
            }
            Ok(Ok(None)) => {
                Err(Failure::Lost { worker: worker(), why: "its stream ended without a last message".into() })
            }
            Ok(Err(status)) => Err(Failure::of(worker(), &status)),
            Err(_) => Err(Failure::Stalled { worker: worker(), after: timeouts.token }),
        }
    }

    fn stepped(&mut self) {
        self.scheduler.metrics.inter_token.observe(self.last_step.elapsed().as_secs_f64());
        self.last_step = Instant::now();
    }

    /// Has another worker go on behind the last token that came.
    async fn go_on(&mut self, failure: Failure) -> Result<(), Failure> {
        if let Failure::Lost { why, .. } = &failure {
            self.worker.lost(why);
        }
        if self.generated_tokens == u64::from(self.job.tokens_max) {
            // What was lost is the last message, and there is no doubt about what it said.
            self.end = Some(Finish::Length);
            return Ok(());
        }
        let request = self.job.request_id.clone();
        tracing::warn!(request, %failure, tokens = self.generated_tokens, "a decode worker failed in mid-stream");
        self.moves.ended(&self.scheduler.metrics, self.usage.take());
        let scheduler = self.scheduler.clone();
        let moving =
            scheduler.move_on(&self.job, self.generated_tokens, self.worker.id(), failure, &mut self.moves);
        let opened = tokio::select! {
            biased;
            () = scheduler.ending.cancelled() => Err(Failure::ShuttingDown),
            opened = moving => opened,
        }?;
        self.stepped();
        (self.worker, self.flight) = (opened.worker, opened.flight);
        (self.stream, self.first) = (opened.stream, Some(opened.first));
        Ok(())
    }

    /// What a message means.
    fn step(&mut self, message: GenerateResponse) -> Result<Step, Failure> {
        let finish = message.finish();
        let broken = |what| Failure::Protocol { worker: self.worker.name(), what };
        if is_empty(&message) {
            return Err(broken(NOTHING));
        }
        let vocab_tokens = self.scheduler.fleet.vocab_tokens();
        if message.tokens.iter().any(|token| token.token >= vocab_tokens) {
            return Err(broken("a token that is not in the vocabulary"));
        }
        if self.generated_tokens + message.tokens.len() as u64 > u64::from(self.job.tokens_max) {
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
        self.job.tokens.extend(message.tokens.iter().map(|token| token.token));
        Ok(Step::Tokens(message.tokens))
    }

    fn failed(&self, failure: &Failure) {
        self.scheduler.metrics.error(failure.kind());
        tracing::warn!(request = self.job.request_id, %failure, "a completion failed after its first token");
    }

    pub(crate) fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
    }

    /// Prompt tokens that the store had when the request came, and that were used. Before the worker's
    /// last message (a stop string ends a completion without it) the store's word alone counts, as it does when
    /// the worker that imported them was lost.
    pub(crate) fn cached_tokens(&self) -> u64 {
        let usage = self.usage.as_ref().filter(|_| self.moves.is_none());
        let imported = usage.map_or(u64::MAX, |usage| usage.imported_tokens);
        self.found.stored_tokens().min(imported)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let metrics = &self.scheduler.metrics;
        self.moves.ended(metrics, self.usage);
        metrics.prompt_tokens.inc_by(self.prompt_tokens);
        // Once: the store's own word may come in the midst of this.
        let cached_tokens = self.cached_tokens();
        metrics.cached_tokens.inc_by(cached_tokens);
        metrics.generated_tokens.inc_by(self.generated_tokens);
        if trace::is_on() {
            let span = Span::current();
            span.record("prompt_tokens", self.prompt_tokens);
            span.record("cached_tokens", cached_tokens);
            span.record("generated_tokens", self.generated_tokens);
        }
        // What a prefill worker made for this request, or a worker that was lost, was imported too, and is no hit.
        let predicted = self.usage.as_ref().map(|usage| Predicted {
            predicted_tokens: self.found.matched_tokens,
            observed_tokens: match self._prefill.is_none() && self.moves.is_none() {
                true => usage.imported_tokens,
                false => cached_tokens,
            },
        });
        metrics.hits.note(Outcome {
            target: Target::Worker,
            model: &self.job.model,
            prompt_tokens: self.prompt_tokens,
            cached_tokens,
            predicted,
            tokens_per_second: self.worker.prefill_tokens_per_second(),
        });
        metrics.seen.used(&self.job.request_id, self.prompt_tokens, cached_tokens, self.generated_tokens);
    }
}
