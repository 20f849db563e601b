//! One request on its way through the decode worker: a job while it waits, a sequence while it runs.
//!
//! # States
//! ```text
//!  Job ──admit──► Importing ──import done──► Evaluating ──stop, length, error──► Final
//!   │                 │                          │
//!   └─────────────────┴── client gone, worker stopping ──► dropped or Final
//! ```
//!
//! # Invariants
//! - `tokens` are all known tokens, the prompt's and the generated ones; the engine holds the first `evaluated`
//!   of them. The last sampled token is known but not evaluated.
//! - Blocks `0..sealed_blocks` are in the store or on their way there; the next one is exported as soon as the
//!   engine holds all of its tokens.

use kelvin_proto::{Reason, Refusal, worker::v1};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::DropGuard;
use tonic::Status;

use crate::{
    grammar::Constraint,
    sampling::{Sampler, SamplingPlan},
};

/// Most blocks of another worker's output that are evaluated token by token: its last one that was not complete, and
/// one on its way to the store.
const REPLAY_BLOCKS: usize = 2;

/// What a client receives.
pub(crate) type Output = mpsc::Sender<Result<v1::GenerateResponse, Status>>;

/// A finished block on its way to the store.
#[derive(Debug)]
pub(crate) struct SealedBlock {
    /// Which block of the sequence.
    pub(crate) index: usize,
    /// Its tokens.
    pub(crate) tokens: Vec<u32>,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
}

/// How a sequence ended, for the last message.
#[derive(Debug)]
pub(crate) struct Final {
    /// Tokens that were not sent yet.
    pub(crate) tokens: Vec<v1::GeneratedToken>,
    /// Why it ended, and what it cost; or the refusal.
    pub(crate) outcome: Result<(v1::FinishReason, v1::Usage), Refusal>,
}

/// What connects a sequence with its asynchronous side. Dropping it means: ended without a last message.
pub(crate) struct Pipes {
    /// Tokens go here.
    pub(crate) output: Output,
    /// Tells the importer to begin.
    pub(crate) start_import: Option<oneshot::Sender<()>>,
    /// Dropped, it tells the importer to end.
    pub(crate) stop_import: Option<DropGuard>,
    /// Finished blocks go here.
    pub(crate) sealed: mpsc::Sender<SealedBlock>,
    /// The end goes here; the last message follows the commit of the sealed blocks.
    pub(crate) finish: oneshot::Sender<Final>,
}

/// A request that was checked.
pub(crate) struct Job {
    /// Its name between the threads.
    pub(crate) key: u64,
    /// Prompt; at least one token.
    pub(crate) prompt: Vec<u32>,
    /// How many of them, the last ones, are output that another worker generated; fewer than all.
    pub(crate) generated_tokens: usize,
    /// Leading prompt tokens that ought to come from the store.
    pub(crate) expected_tokens: usize,
    /// Most tokens to generate; at least one.
    pub(crate) tokens_max: u32,
    /// Tokens that end the completion.
    pub(crate) stop_tokens: Vec<u32>,
    /// How tokens are chosen.
    pub(crate) plan: SamplingPlan,
    /// What the text must be.
    pub(crate) constraint: Option<Constraint>,
    /// Ways out.
    pub(crate) pipes: Pipes,
}

impl Job {
    /// Cells it can come to need.
    pub(crate) fn cells(&self) -> u32 {
        self.prompt.len() as u32 + self.tokens_max
    }

    /// Prompt tokens that this worker will have to evaluate, as far as it knows.
    pub(crate) fn pending_prompt_tokens(&self) -> usize {
        self.prompt.len().saturating_sub(self.expected_tokens)
    }

    /// Ends it before it began.
    pub(crate) fn refuse(self, refusal: Refusal) {
        let _ = self.pipes.finish.send(Final { tokens: Vec::new(), outcome: Err(refusal) });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Blocks come from the store.
    Importing,
    /// The engine evaluates what is known and not yet there.
    Evaluating,
}

/// A request that has a slot.
pub(crate) struct Sequence {
    pub(crate) key: u64,
    /// Its id in the engine.
    pub(crate) id: u32,
    pub(crate) phase: Phase,
    pub(crate) tokens: Vec<u32>,
    /// Tokens that were known from the start: the prompt, and what another worker generated behind it.
    pub(crate) prompt_tokens: usize,
    /// Of those, the ones that are evaluated in a prompt's chunks.
    pub(crate) chunked_tokens: usize,
    expected_tokens: usize,
    pub(crate) evaluated: usize,
    pub(crate) sealed_blocks: usize,
    pub(crate) cells: u32,
    pub(crate) usage: v1::Usage,
    /// Whether finished blocks go to the store.
    seals: bool,
    tokens_max: u32,
    stop_tokens: Vec<u32>,
    sampler: Sampler,
    constraint: Option<Constraint>,
    unsent: Vec<v1::GeneratedToken>,
    pipes: Pipes,
}

impl Sequence {
    /// Gives a job a slot and lets its import begin.
    pub(crate) fn begin(job: Job, id: u32) -> Self {
        let cells = job.cells();
        let Job {
            key,
            prompt,
            generated_tokens,
            expected_tokens,
            tokens_max,
            stop_tokens,
            plan,
            constraint,
            mut pipes,
        } = job;
        let asked_tokens = prompt.len() - generated_tokens;
        let importing = pipes.start_import.take().is_some_and(|start| start.send(()).is_ok());
        Self {
            key,
            id,
            phase: if importing { Phase::Importing } else { Phase::Evaluating },
            prompt_tokens: prompt.len(),
            chunked_tokens: asked_tokens,
            usage: v1::Usage { prompt_tokens: prompt.len() as u64, ..Default::default() },
            sampler: plan.resumed(&prompt[asked_tokens..]),
            tokens: prompt,
            expected_tokens,
            evaluated: 0,
            sealed_blocks: 0,
            cells,
            seals: true,
            tokens_max,
            stop_tokens,
            constraint,
            unsent: Vec::new(),
            pipes,
        }
    }

    /// Whether the client went away.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.pipes.output.is_closed()
    }

    /// Goes on with evaluation; blocks that still arrive are not wanted. Output of another worker that no block
    /// brought is evaluated token by token, as it was there, for the same bits; unless it is long.
    pub(crate) fn end_import(&mut self, block_tokens: usize) {
        self.phase = Phase::Evaluating;
        let first = self.evaluated.max(self.chunked_tokens);
        if self.prompt_tokens - first > REPLAY_BLOCKS * block_tokens {
            self.chunked_tokens = self.prompt_tokens;
        }
        self.pipes.stop_import = None;
    }

    /// Prompt tokens not yet in the engine.
    pub(crate) fn missing_prompt_tokens(&self) -> usize {
        self.prompt_tokens.saturating_sub(self.evaluated)
    }

    /// Prompt tokens that this worker will have to evaluate, as far as it knows: while blocks come, not those
    /// that ought to come.
    pub(crate) fn pending_prompt_tokens(&self) -> usize {
        match self.phase {
            Phase::Importing => self.prompt_tokens.saturating_sub(self.evaluated.max(self.expected_tokens)),
            Phase::Evaluating => self.missing_prompt_tokens(),
        }
    }

    /// Chooses the next token from the logits behind the last known one. Returns the finish reason when this
    /// ends the sequence; fails when no token can be chosen.
    pub(crate) fn sample(&mut self, logits: &[f32]) -> Result<Option<v1::FinishReason>, Refusal> {
        let allowed = self.constraint.as_mut().map(Constraint::allowed).transpose()?;
        let generated = self
            .sampler
            .sample_among(logits, allowed.as_ref())
            .ok_or_else(|| Refusal::new(Reason::EngineFailed, "the engine's logits are no numbers"))?;
        let token = generated.token;
        let ends = self.constraint.as_ref().is_some_and(|constraint| constraint.is_end(token));
        if ends || self.stop_tokens.contains(&token) {
            return Ok(Some(v1::FinishReason::Stop));
        }
        let complete = self.constraint.as_mut().map(|constraint| constraint.accept(token)).transpose()?;
        self.tokens.push(token);
        self.unsent.push(generated);
        self.usage.generated_tokens += 1;
        if complete == Some(true) {
            return Ok(Some(v1::FinishReason::Stop));
        }
        let full = self.usage.generated_tokens == u64::from(self.tokens_max);
        Ok(full.then_some(v1::FinishReason::Length))
    }

    /// Sends what was generated, unless the client is slow: then it goes with the next message.
    pub(crate) fn flush(&mut self) {
        if self.unsent.is_empty() {
            return;
        }
        if let Ok(permit) = self.pipes.output.try_reserve() {
            let tokens = std::mem::take(&mut self.unsent);
            permit.send(Ok(v1::GenerateResponse { tokens, ..Default::default() }));
        }
    }

    /// Exports the blocks that are complete in the engine and not yet sealed, as long as the committer takes
    /// them; the rest is tried again after the next step.
    pub(crate) fn seal(
        &mut self,
        block_tokens: usize,
        block_bytes: usize,
        mut export: impl FnMut(usize, &mut [u8]) -> bool,
    ) {
        while self.seals && (self.sealed_blocks + 1) * block_tokens <= self.evaluated {
            let Ok(permit) = self.pipes.sealed.try_reserve() else { return };
            let index = self.sealed_blocks;
            let mut bytes = vec![0; block_bytes];
            if !export(index, &mut bytes) {
                // Without this block its successors can't be found: store no more of this sequence.
                self.seals = false;
                return;
            }
            let tokens = self.tokens[index * block_tokens..][..block_tokens].to_vec();
            permit.send(SealedBlock { index, tokens, bytes });
            self.sealed_blocks += 1;
        }
    }

    /// Hands the end over to the asynchronous side, which sends it once the sealed blocks are committed.
    pub(crate) fn finish(self, outcome: Result<v1::FinishReason, Refusal>) {
        let usage = self.usage;
        // The receiver is gone only when the runtime is being torn down.
        let _ = self
            .pipes
            .finish
            .send(Final { tokens: self.unsent, outcome: outcome.map(|finish| (finish, usage)) });
    }
}
