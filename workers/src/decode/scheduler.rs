//! Continuous batching: the loop of the decode worker's owner thread.
//!
//! # Overview
//! One turn of the loop: take commands, drop sequences whose client went away, admit waiting jobs, then
//! evaluate one batch: the next token of every running sequence, and up to `chunk_tokens` prompt tokens of those that
//! are still in their prompt (chunks as [`next_chunk`] cuts them, never cut smaller: their shape decides the last
//! bits of the logits). Then sample, stream, and export the blocks that became complete. Blocks from
//! the store are imported between two steps.
//!
//! # Cancellation
//! A dropped response stream is noticed before every step. Nothing else ends a sequence early, but an
//! engine error, which ends those of its batch, and the stop of the worker.
//!
//! # Limits
//! Running sequences: `slots`, as long as the cells suffice for prompt and `tokens_max` of each. Waiting jobs: bounded
//! by permits in front of the command channel. Commands a turn: [`COMMANDS_A_TURN`], so that a burst of
//! imports delays a step of the others by a few milliseconds at most.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use kelvin_proto::{Reason, Refusal};
use tokio::sync::mpsc::{self, error::TryRecvError};

use super::sequence::{Job, Phase, Sequence};
use crate::{
    chunking::next_chunk,
    engine::{BatchItem, Engine},
    load::{LoadMeter, average},
};

const COMMANDS_A_TURN: usize = 32;

/// Bytes of a stored block.
pub(crate) trait BlockBytes: Send {
    /// The bytes, when they are those that were committed; else what is wrong.
    fn verified(&self) -> Result<&[u8], String>;
}

/// What the loop is told.
pub(crate) enum Command {
    /// A new request.
    Submit(Box<Job>),
    /// The next block of a sequence came.
    Block {
        /// Which sequence.
        key: u64,
        /// Its bytes.
        block: Box<dyn BlockBytes>,
    },
    /// No more blocks come for a sequence.
    ImportEnd {
        /// Which sequence.
        key: u64,
    },
    /// A client went away: look for it, should nothing else be going on.
    Wake,
    /// End everything now.
    Stop,
}

/// The loop's state. See the module.
pub(crate) struct Scheduler {
    engine: Box<dyn Engine>,
    chunk_tokens: usize,
    load: Arc<LoadMeter>,
    running: Vec<Sequence>,
    waiting: VecDeque<Box<Job>>,
    free: Vec<u32>,
    cells_reserved: u32,
    /// Whose prompt goes first in the next step, by key.
    turn: Option<u64>,
    stopping: bool,
}

/// One sequence's part of a step.
struct Part {
    running: usize,
    tokens: usize,
    logits: bool,
}

impl Scheduler {
    /// A scheduler over an engine.
    pub(crate) fn new(engine: Box<dyn Engine>, chunk_tokens: u32, load: Arc<LoadMeter>) -> Self {
        let slots = engine.spec().sequences_max;
        Self {
            engine,
            chunk_tokens: chunk_tokens as usize,
            load,
            running: Vec::new(),
            waiting: VecDeque::new(),
            free: (0..slots).rev().collect(),
            cells_reserved: 0,
            turn: None,
            stopping: false,
        }
    }

    /// Runs until the command channel is closed.
    pub(crate) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            if !self.can_step() {
                match commands.blocking_recv() {
                    Some(command) => self.handle(command),
                    None => return,
                }
            }
            for _ in 0..COMMANDS_A_TURN {
                match commands.try_recv() {
                    Ok(command) => self.handle(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) if self.can_step() => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.turn();
        }
    }

    /// One turn without commands: cancel, admit, evaluate.
    pub(crate) fn turn(&mut self) {
        self.drop_cancelled();
        self.admit();
        if self.can_step() {
            self.step();
            self.admit();
        }
        self.publish();
    }

    /// Does what a command says.
    pub(crate) fn handle(&mut self, command: Command) {
        match command {
            Command::Submit(job) => {
                self.waiting.push_back(job);
                if self.stopping {
                    self.stop();
                }
            }
            Command::Block { key, block } => self.import(key, &*block),
            Command::ImportEnd { key } => {
                let block_tokens = self.engine.spec().block_tokens as usize;
                if let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.key == key) {
                    sequence.end_import(block_tokens);
                }
            }
            Command::Wake => {}
            Command::Stop => self.stop(),
        }
    }

    fn can_step(&self) -> bool {
        self.running.iter().any(|sequence| sequence.phase == Phase::Evaluating)
    }

    fn stop(&mut self) {
        self.stopping = true;
        let refusal = || Refusal::new(Reason::Unavailable, "the worker is shutting down");
        while let Some(job) = self.waiting.pop_front() {
            job.refuse(refusal());
        }
        while !self.running.is_empty() {
            self.remove(0).finish(Err(refusal()));
        }
    }

    fn drop_cancelled(&mut self) {
        self.waiting.retain(|job| !job.pipes.output.is_closed());
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].is_cancelled() {
                let sequence = self.remove(index);
                tracing::debug!(key = sequence.key, "cancelled");
            } else {
                index += 1;
            }
        }
    }

    fn admit(&mut self) {
        while let Some(job) = self.waiting.front() {
            let cells = job.cells();
            if self.free.is_empty() || self.cells_reserved + cells > self.engine.spec().cells {
                return;
            }
            if let (Some(job), Some(id)) = (self.waiting.pop_front(), self.free.pop()) {
                self.cells_reserved += cells;
                self.running.push(Sequence::begin(*job, id));
            }
        }
    }

    /// Takes a sequence out of the engine and of the books.
    fn remove(&mut self, index: usize) -> Sequence {
        let sequence = self.running.remove(index);
        self.engine.clear(sequence.id);
        self.cells_reserved -= sequence.cells;
        self.free.push(sequence.id);
        sequence
    }

    /// Appends a block to its sequence; a bad one ends the import, and the rest is evaluated here.
    fn import(&mut self, key: u64, block: &dyn BlockBytes) {
        let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.key == key) else { return };
        if sequence.phase != Phase::Importing {
            return;
        }
        let started = Instant::now();
        let imported = block.verified().and_then(|bytes| {
            self.engine.import_block(sequence.id, bytes).map_err(|error| error.to_string())
        });
        let micros = started.elapsed().as_micros() as u64;
        match imported {
            Ok(()) => {
                let tokens = self.engine.spec().block_tokens;
                sequence.evaluated += tokens as usize;
                sequence.sealed_blocks += 1;
                sequence.usage.imported_tokens += u64::from(tokens);
                sequence.usage.import_us += micros;
                self.load.update(|load| average(&mut load.import_block_us, micros as f64));
            }
            Err(error) => {
                tracing::warn!(key, error, "import block; evaluating the rest here");
                sequence.end_import(self.engine.spec().block_tokens as usize);
            }
        }
    }

    /// Evaluates one batch and deals with what it gave.
    fn step(&mut self) {
        let parts = self.parts();
        let items: Vec<BatchItem<'_>> = parts
            .iter()
            .map(|part| {
                let sequence = &self.running[part.running];
                let tokens = &sequence.tokens[sequence.evaluated..][..part.tokens];
                BatchItem { sequence: sequence.id, tokens, logits: part.logits }
            })
            .collect();
        let started = Instant::now();
        let evaluated = self.engine.evaluate(&items);
        let elapsed = started.elapsed();
        let mut ended = Vec::new();
        match evaluated {
            Err(error) => {
                tracing::error!(%error, sequences = parts.len(), "evaluate batch");
                let refusal = Refusal::new(Reason::EngineFailed, error.to_string());
                ended.extend(parts.iter().map(|part| (part.running, Err(refusal.clone()))));
            }
            Ok(()) => {
                self.measure(&parts, elapsed);
                for (item, part) in parts.iter().enumerate() {
                    let sequence = &mut self.running[part.running];
                    sequence.evaluated += part.tokens;
                    if !part.logits {
                        continue;
                    }
                    match sequence.sample(self.engine.logits(item)) {
                        Ok(None) => {}
                        Ok(Some(finish)) => ended.push((part.running, Ok(finish))),
                        Err(refusal) => ended.push((part.running, Err(refusal))),
                    }
                }
                self.stream_and_seal();
            }
        }
        // From the back, so that the indices in front stay right.
        ended.sort_unstable_by_key(|&(index, _)| std::cmp::Reverse(index));
        for (index, outcome) in ended {
            self.remove(index).finish(outcome);
            self.load.update(|load| load.finished += 1);
        }
    }

    /// What goes into the next step: single tokens of all that generate, and whole prompt chunks within the
    /// budget, taking turns.
    fn parts(&mut self) -> Vec<Part> {
        let block_tokens = self.engine.spec().block_tokens as usize;
        let count = self.running.len();
        let mut budget = self.chunk_tokens;
        let mut parts = Vec::with_capacity(count);
        let mut skipped = None;
        let first = self.running.iter().position(|sequence| Some(sequence.key) == self.turn).unwrap_or(0);
        for running in (0..count).map(|offset| (first + offset) % count) {
            let sequence = &self.running[running];
            if sequence.phase != Phase::Evaluating {
                continue;
            }
            let known = sequence.tokens.len();
            let prompt = sequence.chunked_tokens;
            let tokens = next_chunk(sequence.evaluated, known, prompt, block_tokens, self.chunk_tokens);
            if sequence.evaluated < prompt {
                if tokens > budget {
                    skipped.get_or_insert(sequence.key);
                    continue;
                }
                budget -= tokens;
            }
            parts.push(Part { running, tokens, logits: sequence.evaluated + tokens == known });
        }
        self.turn = skipped;
        parts
    }

    fn measure(&mut self, parts: &[Part], elapsed: Duration) {
        let mut prompt_tokens = 0;
        for part in parts {
            let sequence = &mut self.running[part.running];
            let tokens = sequence.missing_prompt_tokens().min(part.tokens);
            if tokens > 0 {
                sequence.usage.evaluated_tokens += tokens as u64;
                sequence.usage.evaluate_us += elapsed.as_micros() as u64;
            }
            prompt_tokens += tokens;
        }
        let block_tokens = self.engine.spec().block_tokens as usize;
        self.load.update(|load| {
            let micros = elapsed.as_secs_f64() * 1e6;
            if prompt_tokens == 0 {
                average(&mut load.decode_step_us, micros);
            } else if prompt_tokens >= 2 * block_tokens {
                // Tails are too short to say how fast prompts go. Decode tokens beside a chunk cost about
                // a step's worth.
                let beside = if parts.len() > 1 { load.decode_step_us } else { 0.0 };
                let alone = (micros - beside).max(micros / 2.0).max(1.0);
                average(&mut load.prefill_tokens_per_second, prompt_tokens as f64 * 1e6 / alone);
            }
        });
    }

    /// Sends new tokens first, since clients wait for them, then exports blocks that are complete.
    fn stream_and_seal(&mut self) {
        self.running.iter_mut().for_each(Sequence::flush);
        let Self { engine, running, .. } = self;
        let (block_tokens, block_bytes) =
            (engine.spec().block_tokens as usize, engine.spec().block_bytes as usize);
        for sequence in running.iter_mut().filter(|sequence| sequence.phase == Phase::Evaluating) {
            let id = sequence.id;
            sequence.seal(block_tokens, block_bytes, |index, bytes| {
                let exported = engine.export_block(id, index as u32, bytes);
                exported.inspect_err(|error| tracing::warn!(%error, "export block")).is_ok()
            });
        }
    }

    fn publish(&self) {
        let running = self.running.iter().map(Sequence::pending_prompt_tokens).sum::<usize>();
        let waiting = self.waiting.iter().map(|job| job.pending_prompt_tokens()).sum::<usize>();
        self.load.update(|load| {
            load.running = self.running.len() as u32;
            load.waiting = self.waiting.len() as u32;
            load.pending_prompt_tokens = (running + waiting) as u64;
        });
    }
}

#[cfg(test)]
mod tests;
