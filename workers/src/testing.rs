//! For tests of this and of other crates: a reference that generates on one engine, and the test model.

use std::path::PathBuf;

use crate::{
    Error, ModelSource,
    chunking::{next_chunk, prompt_blocks},
    engine::{self, BatchItem, Engine, EngineError, EngineOptions},
    sampling::argmax,
};

/// The GGUF file of tests with a real model: `KELVIN_TEST_MODEL`, else the one that the build fetches.
pub fn test_model() -> PathBuf {
    std::env::var_os("KELVIN_TEST_MODEL").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        home.join(".cache/kelvin/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    })
}

/// What one engine alone answers, with the chunking of the workers: prompt chunks of `chunk_tokens` up to
/// the last whole block before the prompt's end, the tail in one batch, then token by token, greedily.
///
/// It keeps its KV from turn to turn as the store does: whole blocks of the common prefix are reused, the
/// rest is evaluated again. So its tokens must equal those that come through prefill, store and decode.
pub struct Reference {
    engine: Box<dyn Engine>,
    chunk_tokens: usize,
    /// Tokens whose KV the engine holds.
    evaluated: Vec<u32>,
}

/// One turn of a [`Reference`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Generated tokens, without a stop token.
    pub tokens: Vec<u32>,
    /// Prompt tokens whose KV was there from turns before.
    pub reused_tokens: usize,
}

impl Reference {
    /// A reference with an engine of its own, on the calling thread.
    pub fn new(source: &ModelSource, options: &EngineOptions) -> Result<Self, Error> {
        let engine = engine::open(source, &EngineOptions { slots: 1, ..*options })?;
        Ok(Self { engine, chunk_tokens: options.chunk_tokens as usize, evaluated: Vec::new() })
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        self.engine.clear(0);
        self.evaluated.clear();
    }

    /// Generates up to `tokens_max` tokens, or until one of `stop_tokens`.
    pub fn turn(
        &mut self,
        prompt: &[u32],
        tokens_max: usize,
        stop_tokens: &[u32],
    ) -> Result<Turn, EngineError> {
        let block_tokens = self.engine.spec().block_tokens as usize;
        let common = self.evaluated.iter().zip(prompt).take_while(|(old, new)| old == new).count();
        let reused_blocks = (common / block_tokens).min(prompt_blocks(prompt.len(), block_tokens));
        let reused_tokens = reused_blocks * block_tokens;
        self.engine.truncate(0, reused_tokens as u32)?;
        let mut known = prompt.to_vec();
        let mut evaluated = reused_tokens;
        let mut tokens = Vec::new();
        while tokens.len() < tokens_max {
            let chunk = next_chunk(evaluated, known.len(), prompt.len(), block_tokens, self.chunk_tokens);
            let end = evaluated + chunk;
            let logits = end == known.len();
            self.engine.evaluate(&[BatchItem { sequence: 0, tokens: &known[evaluated..end], logits }])?;
            evaluated = end;
            if logits {
                let Some(token) = argmax(self.engine.logits(0)) else {
                    return Err(EngineError::backend("sample", "the logits are no numbers"));
                };
                if stop_tokens.contains(&token) {
                    break;
                }
                tokens.push(token);
                known.push(token);
            }
        }
        known.truncate(evaluated);
        self.evaluated = known;
        Ok(Turn { tokens, reused_tokens })
    }
}
