//! The engine: what executes a model, and the few things a worker asks of it.
//!
//! Two implementations: [`llama`] runs GGUF files, [`toy`] is deterministic arithmetic for tests.
//!
//! # Invariants
//! - One engine lives on one owner thread, where it was made: it is not `Sync`, and nothing here is `Send`.
//! - A sequence holds positions `0..len` without a gap. [`Engine::evaluate`] and [`Engine::import_block`]
//!   append, [`Engine::truncate`] cuts the tail; there is no other way to change it.
//! - A block is the raw KV of `block_tokens` tokens and nothing else: no framing, no positions, no sequence
//!   ids. Equal KV gives equal bytes, whatever else the engine holds.
//! - A failed call never leaves a sequence half changed: `evaluate` clears every sequence of its batch,
//!   `import_block` leaves the sequence as it was.

pub(crate) mod codec;
mod digest;
#[allow(unsafe_code)] // the state calls of llama.cpp
pub(crate) mod llama;
pub(crate) mod owner;
pub(crate) mod toy;

use std::time::{Duration, Instant};

use kelvin_proto::{Fingerprint, NamespaceSpec, Shard};

use crate::{Error, ModelSource};

/// Order of the bytes in a block of every engine here: for each layer the K rows of the block's tokens in
/// position order, then their V rows.
pub(crate) const LAYOUT: &str = "layer-kv-token";

/// What an engine is; fixed once it was made.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineSpec {
    /// What its blocks depend on.
    pub fingerprint: Fingerprint,
    /// Public name of the model.
    pub model_name: String,
    /// Tokens a block.
    pub block_tokens: u32,
    /// Bytes a block.
    pub block_bytes: u64,
    /// Token ids are below this.
    pub vocab_tokens: u32,
    /// Longest sequence, tokens.
    pub context_tokens_max: u32,
    /// Tokens that all sequences together can hold.
    pub cells: u32,
    /// Sequence ids are below this.
    pub sequences_max: u32,
    /// Most tokens of one [`Engine::evaluate`], over all its items.
    pub batch_tokens_max: u32,
}

impl EngineSpec {
    /// The namespace that holds this engine's blocks.
    pub fn namespace(&self) -> NamespaceSpec {
        NamespaceSpec {
            model: self.model_name.clone(),
            fingerprint: self.fingerprint.clone(),
            shard: Shard::default(),
            block_tokens: self.block_tokens,
            block_bytes: self.block_bytes,
        }
    }
}

/// What tokens stand for in text, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenTexts {
    /// Bytes of each token, which need not be whole characters; none for a control token.
    pub pieces: Vec<Vec<u8>>,
    /// Tokens that end a text.
    pub ends: Vec<u32>,
}

/// How an engine is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Tokens a block; must divide `chunk_tokens`.
    pub block_tokens: u32,
    /// Most prompt tokens of one step.
    pub chunk_tokens: u32,
    /// Sequences at a time.
    pub slots: u32,
    /// Longest sequence, tokens; 0 for what the model was trained on. Never more than that.
    pub context_tokens: u32,
    /// Tokens that all sequences together can hold; `None` for `slots` times the longest sequence.
    pub cells: Option<u32>,
    /// Compute threads.
    pub threads: u32,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { block_tokens: 16, chunk_tokens: 128, slots: 4, context_tokens: 2048, cells: None, threads: 1 }
    }
}

impl EngineOptions {
    /// Longest sequence and cells, given what the model was trained on.
    pub(crate) fn sizes(&self, trained_tokens: u32) -> (u32, u32) {
        let wanted = if self.context_tokens == 0 { trained_tokens } else { self.context_tokens };
        let context = wanted.min(trained_tokens);
        let cells = self.cells.unwrap_or_else(|| context.saturating_mul(self.slots));
        (context.min(cells), cells)
    }

    /// Every running sequence's next token beside one prompt chunk.
    pub(crate) fn batch_tokens_max(&self) -> u32 {
        self.chunk_tokens + self.slots
    }
}

/// Tokens to append to one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchItem<'a> {
    /// Which sequence; at most once in a batch.
    pub sequence: u32,
    /// Tokens behind its present end; at least one.
    pub tokens: &'a [u32],
    /// Whether the logits of the last of them are wanted.
    pub logits: bool,
}

/// Executes a model.
///
/// Sequence ids out of range are a bug of the caller and panic; everything that depends on bytes, tokens or
/// room is an error.
pub trait Engine {
    /// What it is.
    fn spec(&self) -> &EngineSpec;

    /// What its tokens stand for in text. Reads the whole vocabulary.
    fn token_texts(&self) -> TokenTexts;

    /// Evaluates all items in one step. On an error every sequence of the batch is cleared.
    fn evaluate(&mut self, batch: &[BatchItem<'_>]) -> Result<(), EngineError>;

    /// Logits of the last token of an item that asked for them; valid until the next `evaluate`.
    ///
    /// # Panics
    /// When the item did not ask.
    fn logits(&self, item: usize) -> &[f32];

    /// Tokens in a sequence.
    fn len(&self, sequence: u32) -> u32;

    /// Whether a sequence has no tokens.
    fn is_empty(&self, sequence: u32) -> bool {
        self.len(sequence) == 0
    }

    /// Gathers one block of a sequence into `target`, which has `block_bytes`.
    fn export_block(&mut self, sequence: u32, block_index: u32, target: &mut [u8])
    -> Result<(), EngineError>;

    /// Scatters one block behind the present, block-aligned end of a sequence.
    fn import_block(&mut self, sequence: u32, source: &[u8]) -> Result<(), EngineError>;

    /// Cuts a sequence down to its first `tokens`; no-op when it is not longer.
    fn truncate(&mut self, sequence: u32, tokens: u32) -> Result<(), EngineError>;

    /// Empties a sequence.
    fn clear(&mut self, sequence: u32);
}

/// Why an engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Not enough free cells.
    #[error("evaluate batch: no room for {tokens} more tokens")]
    Full {
        /// Tokens asked for.
        tokens: u32,
    },
    /// The call does not fit the engine's state or limits.
    #[error("{context}: {message}")]
    Refused {
        /// What was being done.
        context: &'static str,
        /// What did not fit.
        message: String,
    },
    /// A state blob or a block does not have the expected form.
    #[error("{context}")]
    Codec {
        /// What was being done.
        context: &'static str,
        /// What is wrong with the bytes.
        source: codec::CodecError,
    },
    /// The library below failed.
    #[error("{context}: {message}")]
    Backend {
        /// What was being done.
        context: &'static str,
        /// What it said.
        message: String,
    },
}

impl EngineError {
    pub(crate) fn refused(context: &'static str, message: impl Into<String>) -> Self {
        Self::Refused { context, message: message.into() }
    }

    pub(crate) fn backend(context: &'static str, error: impl std::fmt::Display) -> Self {
        Self::Backend { context, message: error.to_string() }
    }

    /// Whether the same call can succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

/// Checks a batch against an engine's spec and lengths, and counts its tokens.
pub(crate) fn check_batch(
    spec: &EngineSpec,
    batch: &[BatchItem<'_>],
    len: impl Fn(u32) -> u32,
) -> Result<u32, EngineError> {
    const CONTEXT: &str = "evaluate batch";
    let mut seen = vec![false; spec.sequences_max as usize];
    let mut total = 0usize;
    for item in batch {
        let taken = &mut seen[item.sequence as usize];
        if std::mem::replace(taken, true) {
            return Err(EngineError::refused(CONTEXT, format!("sequence {} is in it twice", item.sequence)));
        }
        if item.tokens.is_empty() {
            return Err(EngineError::refused(
                CONTEXT,
                format!("sequence {} brings no tokens", item.sequence),
            ));
        }
        let end = len(item.sequence) as usize + item.tokens.len();
        if end > spec.context_tokens_max as usize {
            let max = spec.context_tokens_max;
            return Err(EngineError::refused(
                CONTEXT,
                format!("{end} tokens in a sequence of at most {max}"),
            ));
        }
        if let Some(token) = item.tokens.iter().find(|&&token| token >= spec.vocab_tokens) {
            return Err(EngineError::refused(CONTEXT, format!("token {token} is not in the vocabulary")));
        }
        total += item.tokens.len();
    }
    match u32::try_from(total) {
        Ok(total) if (1..=spec.batch_tokens_max).contains(&total) => Ok(total),
        _ => {
            Err(EngineError::refused(CONTEXT, format!("{total} tokens, not 1 to {}", spec.batch_tokens_max)))
        }
    }
}

/// Checks a block to import against the length of its sequence.
pub(crate) fn check_import(spec: &EngineSpec, len: u32, source: &[u8]) -> Result<(), EngineError> {
    const CONTEXT: &str = "import block";
    if source.len() as u64 != spec.block_bytes {
        let (found, wanted) = (source.len(), spec.block_bytes);
        return Err(EngineError::refused(CONTEXT, format!("it has {found} bytes, not {wanted}")));
    }
    if !len.is_multiple_of(spec.block_tokens) {
        return Err(EngineError::refused(CONTEXT, format!("{len} tokens are not whole blocks")));
    }
    if len + spec.block_tokens > spec.context_tokens_max {
        return Err(EngineError::refused(CONTEXT, format!("the sequence is full with {len} tokens")));
    }
    Ok(())
}

/// Checks a block to export against the length of its sequence.
pub(crate) fn check_export(
    spec: &EngineSpec,
    len: u32,
    block_index: u32,
    target: &[u8],
) -> Result<(), EngineError> {
    const CONTEXT: &str = "export block";
    if target.len() as u64 != spec.block_bytes {
        let (found, wanted) = (target.len(), spec.block_bytes);
        return Err(EngineError::refused(CONTEXT, format!("target has {found} bytes, not {wanted}")));
    }
    if block_index >= len / spec.block_tokens {
        return Err(EngineError::refused(
            CONTEXT,
            format!("block {block_index} of a sequence of {len} tokens"),
        ));
    }
    Ok(())
}

/// Makes the engine of a model on the calling thread, which will own it.
pub fn open(source: &ModelSource, options: &EngineOptions) -> Result<Box<dyn Engine>, Error> {
    Ok(match source {
        ModelSource::Toy(toy) => Box::new(toy::ToyEngine::new(toy.clone(), options)),
        ModelSource::Gguf(path) => Box::new(llama::LlamaEngine::load(path, options)?),
    })
}

/// Evaluates a prompt of `chunk_tokens` twice (the first time touches the weights) and returns tokens a
/// second of the second time.
pub(crate) fn warm_up(engine: &mut dyn Engine, chunk_tokens: u32) -> Result<f64, EngineError> {
    let spec = engine.spec();
    let count = chunk_tokens.min(spec.context_tokens_max).min(spec.cells).min(spec.batch_tokens_max);
    let tokens: Vec<u32> = (0..count).map(|i| i % spec.vocab_tokens).collect();
    let mut elapsed = Duration::ZERO;
    for _ in 0..2 {
        let started = Instant::now();
        engine.evaluate(&[BatchItem { sequence: 0, tokens: &tokens, logits: true }])?;
        elapsed = started.elapsed();
        engine.clear(0);
    }
    Ok(f64::from(count) / elapsed.as_secs_f64().max(1e-6))
}
