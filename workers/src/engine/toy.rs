//! A toy engine: deterministic arithmetic in place of a model, for tests and simulation.
//!
//! # Overview
//! Vocabulary: 0..=255 are the bytes, 256 begins a text, 257 ends it. The KV of a token is a function of the
//! whole prefix: `kv[i] = expand(mix(state[i-1], token[i]))`, `state[i] = fold(state[i-1], kv[i])`. The
//! logits are a function of the last state. A state depends on every KV byte before it, and an import takes its states from
//! the imported bytes: one wrong byte changes everything that follows, so a test that compares tokens
//! catches it. Batch shape changes nothing.
//!
//! Greedy text is printable ASCII and never ends by itself; the end token wins only by a logit bias.

use std::time::Duration;

use kelvin_proto::Fingerprint;

use super::{BatchItem, Engine, EngineError, EngineOptions, EngineSpec, LAYOUT, TokenTexts};

/// Tokens of the toy vocabulary.
pub const TOY_VOCAB_TOKENS: u32 = 258;
/// Toy token that ends a text.
pub const TOY_END_TOKEN: u32 = 257;

const CONTEXT_TOKENS: u32 = 1 << 20;
const SEED: u64 = 0x6b65_6c76_696e_2031;

/// What a toy engine costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToyOptions {
    /// Public name of the model; part of the fingerprint.
    pub name: String,
    /// KV bytes of one token; at least 8, rounded up to a multiple of 8.
    pub token_bytes: u32,
    /// Time a prompt token takes (tokens of an item that has more than one).
    pub prompt_token_time: Duration,
    /// Time a step takes beside its prompt tokens.
    pub step_time: Duration,
}

impl Default for ToyOptions {
    fn default() -> Self {
        Self {
            name: "toy".to_owned(),
            token_bytes: 256,
            prompt_token_time: Duration::ZERO,
            step_time: Duration::ZERO,
        }
    }
}

/// The engine. See the module.
pub(crate) struct ToyEngine {
    spec: EngineSpec,
    options: ToyOptions,
    words: usize,
    sequences: Vec<Sequence>,
    logits: Vec<Option<Vec<f32>>>,
}

#[derive(Default, Clone)]
struct Sequence {
    /// `words` a token.
    kv: Vec<u64>,
    /// State after each token.
    states: Vec<u64>,
}

impl ToyEngine {
    /// A toy engine with room for `options.slots` sequences.
    pub(crate) fn new(toy: ToyOptions, options: &EngineOptions) -> Self {
        let words = (toy.token_bytes as usize).div_ceil(8).max(1);
        let (context_tokens_max, cells) = options.sizes(CONTEXT_TOKENS);
        let attributes =
            [("token_bytes", (words * 8).to_string()), ("vocab_tokens", TOY_VOCAB_TOKENS.to_string())];
        let spec = EngineSpec {
            fingerprint: Fingerprint {
                model_digest: blake3::hash(toy.name.as_bytes()).to_hex().to_string(),
                engine: "toy".to_owned(),
                engine_build: "1".to_owned(),
                layout: LAYOUT.to_owned(),
                dtype: "u64".to_owned(),
                attributes: attributes.map(|(name, value)| (name.to_owned(), value)).into(),
            },
            model_name: toy.name.clone(),
            block_tokens: options.block_tokens,
            block_bytes: u64::from(options.block_tokens) * words as u64 * 8,
            vocab_tokens: TOY_VOCAB_TOKENS,
            context_tokens_max,
            cells,
            sequences_max: options.slots,
            batch_tokens_max: options.batch_tokens_max(),
        };
        let sequences = vec![Sequence::default(); options.slots as usize];
        Self { spec, options: toy, words, sequences, logits: Vec::new() }
    }

    fn used_cells(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.states.len()).sum()
    }
}

impl Engine for ToyEngine {
    fn spec(&self) -> &EngineSpec {
        &self.spec
    }

    fn token_texts(&self) -> TokenTexts {
        let bytes = (0..=u8::MAX).map(|byte| vec![byte]);
        let pieces = bytes.chain([Vec::new(), Vec::new()]).collect();
        TokenTexts { pieces, ends: vec![TOY_END_TOKEN] }
    }

    fn evaluate(&mut self, batch: &[BatchItem<'_>]) -> Result<(), EngineError> {
        let checked = super::check_batch(&self.spec, batch, |sequence| self.len(sequence));
        let result = checked.and_then(|tokens| {
            let room = self.spec.cells as usize - self.used_cells();
            if tokens as usize > room { Err(EngineError::Full { tokens }) } else { Ok(()) }
        });
        self.logits.clear();
        if let Err(error) = result {
            batch.iter().for_each(|item| self.clear(item.sequence));
            return Err(error);
        }
        let prompt: usize = batch.iter().map(|item| item.tokens.len()).filter(|&tokens| tokens > 1).sum();
        let time = self.options.step_time + self.options.prompt_token_time * prompt as u32;
        if !time.is_zero() {
            std::thread::sleep(time);
        }
        for item in batch {
            let sequence = &mut self.sequences[item.sequence as usize];
            item.tokens.iter().for_each(|&token| sequence.push(token, self.words));
            self.logits.push(item.logits.then(|| logits_of(sequence.state())));
        }
        Ok(())
    }

    fn logits(&self, item: usize) -> &[f32] {
        self.logits[item].as_deref().expect("logits were asked for")
    }

    fn len(&self, sequence: u32) -> u32 {
        self.sequences[sequence as usize].states.len() as u32
    }

    fn export_block(
        &mut self,
        sequence: u32,
        block_index: u32,
        target: &mut [u8],
    ) -> Result<(), EngineError> {
        super::check_export(&self.spec, self.len(sequence), block_index, target)?;
        let block_words = self.spec.block_tokens as usize * self.words;
        let source = &self.sequences[sequence as usize].kv[block_index as usize * block_words..];
        for (bytes, word) in target.chunks_exact_mut(8).zip(source) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Ok(())
    }

    fn import_block(&mut self, sequence: u32, source: &[u8]) -> Result<(), EngineError> {
        super::check_import(&self.spec, self.len(sequence), source)?;
        let tokens = self.spec.block_tokens;
        if self.used_cells() + tokens as usize > self.spec.cells as usize {
            return Err(EngineError::Full { tokens });
        }
        let sequence = &mut self.sequences[sequence as usize];
        for token_bytes in source.chunks_exact(self.words * 8) {
            let words = token_bytes.chunks_exact(8).map(|word| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(word);
                u64::from_le_bytes(bytes)
            });
            let state = words.clone().fold(sequence.state(), fold);
            sequence.kv.extend(words);
            sequence.states.push(state);
        }
        Ok(())
    }

    fn truncate(&mut self, sequence: u32, tokens: u32) -> Result<(), EngineError> {
        let words = self.words;
        let sequence = &mut self.sequences[sequence as usize];
        sequence.states.truncate(tokens as usize);
        sequence.kv.truncate(tokens as usize * words);
        Ok(())
    }

    fn clear(&mut self, sequence: u32) {
        self.sequences[sequence as usize] = Sequence::default();
    }
}

impl Sequence {
    fn state(&self) -> u64 {
        self.states.last().copied().unwrap_or(SEED)
    }

    fn push(&mut self, token: u32, words: usize) {
        let source = mix(self.state() ^ u64::from(token).wrapping_mul(0xff51_afd7_ed55_8ccd));
        let mut state = self.state();
        for index in 0..words as u64 {
            let word = mix(source.wrapping_add(index));
            self.kv.push(word);
            state = fold(state, word);
        }
        self.states.push(state);
    }
}

fn fold(state: u64, word: u64) -> u64 {
    (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// The finalizer of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn logits_of(state: u64) -> Vec<f32> {
    let logit = |token: u32| {
        let noise = (mix(state ^ (u64::from(token) << 32)) >> 40) as f32 / (1u64 << 24) as f32;
        let base = match token {
            0x20..=0x7e => 4.0,
            TOY_END_TOKEN => -8.0,
            _ => 0.0,
        };
        base + 4.0 * noise
    };
    (0..TOY_VOCAB_TOKENS).map(logit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::BatchItem;

    fn engine() -> ToyEngine {
        let options = EngineOptions { block_tokens: 4, slots: 2, context_tokens: 64, ..Default::default() };
        ToyEngine::new(ToyOptions { token_bytes: 16, ..Default::default() }, &options)
    }

    fn evaluate(engine: &mut ToyEngine, sequence: u32, tokens: &[u32]) -> Vec<f32> {
        engine.evaluate(&[BatchItem { sequence, tokens, logits: true }]).unwrap();
        engine.logits(0).to_vec()
    }

    #[test]
    fn batch_shape_changes_nothing() {
        let mut engine = engine();
        let whole = evaluate(&mut engine, 0, &[1, 2, 3, 4, 5]);
        evaluate(&mut engine, 1, &[1, 2]);
        assert_eq!(whole, evaluate(&mut engine, 1, &[3, 4, 5]));
        assert_ne!(whole, evaluate(&mut engine, 1, &[6]));
    }

    #[test]
    fn an_imported_prefix_goes_on_as_the_exporter_and_one_wrong_byte_does_not() {
        let mut engine = engine();
        evaluate(&mut engine, 0, &[1, 2, 3, 4]);
        let mut block = vec![0; engine.spec().block_bytes as usize];
        engine.export_block(0, 0, &mut block).unwrap();
        let expected = evaluate(&mut engine, 0, &[5]);
        engine.import_block(1, &block).unwrap();
        assert_eq!(expected, evaluate(&mut engine, 1, &[5]));
        for byte in 0..block.len() {
            engine.clear(1);
            block[byte] ^= 1;
            engine.import_block(1, &block).unwrap();
            assert_ne!(expected, evaluate(&mut engine, 1, &[5]), "byte {byte} does not count");
            block[byte] ^= 1;
        }
    }

    #[test]
    fn truncation_goes_back_to_the_prefix() {
        let mut engine = engine();
        let expected = evaluate(&mut engine, 0, &[1, 2, 3]);
        evaluate(&mut engine, 0, &[4]);
        engine.truncate(0, 2).unwrap();
        assert_eq!(engine.len(0), 2);
        assert_eq!(expected, evaluate(&mut engine, 0, &[3]));
    }

    #[test]
    fn limits_are_errors_and_clear_the_batch() {
        let mut engine = engine();
        evaluate(&mut engine, 0, &[1]);
        let error = engine.evaluate(&[BatchItem { sequence: 0, tokens: &[258], logits: false }]).unwrap_err();
        assert!(error.to_string().contains("token 258 is not in the vocabulary"), "{error}");
        assert_eq!(engine.len(0), 0);
        let long = [7; 65];
        assert!(engine.evaluate(&[BatchItem { sequence: 0, tokens: &long, logits: false }]).is_err());
        let item = BatchItem { sequence: 1, tokens: &[1], logits: false };
        let error = engine.evaluate(&[item, item]).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
        assert!(engine.import_block(0, &[0; 3]).unwrap_err().to_string().contains("3 bytes, not 64"));
        assert!(engine.export_block(0, 0, &mut [0; 64]).is_err(), "a block that is not there");
    }

    #[test]
    fn greedy_text_is_printable() {
        let mut engine = engine();
        let mut token = 65;
        for _ in 0..40 {
            let logits = evaluate(&mut engine, 0, &[token]);
            token = crate::sampling::argmax(&logits).unwrap();
            assert!((0x20..=0x7e).contains(&token), "{token}");
        }
    }
}
