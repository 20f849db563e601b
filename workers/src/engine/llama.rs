//! The engine over llama.cpp: runs GGUF files, and moves their KV block by block.
//!
//! # Overview
//! One context with a unified cache (`kv_unified`), flash attention on (V is not transposed, so blocks copy in
//! runs) and f16 KV. Sequence ids `0..slots` belong to the worker; one more, the scratch sequence, exists
//! because llama.cpp saves and restores whole sequences: a block is exported by sharing its cells with the
//! scratch sequence, and imported into the scratch sequence, whose cells are then shared with the target.
//! Sharing changes cell metadata only. The state blob is made and taken apart by [`codec`](super::codec).
//!
//! # Invariants
//! - The model is loaded once a process and path, and lives as long as the process (`&'static`): contexts borrow it,
//!   and an owner thread can't prove to outlive them otherwise. A worker serves one model until it exits.
//! - Contexts are made under a lock, since llama.cpp writes to the model meanwhile.
//! - Recurrent and hybrid models, and caches whose blob does not have the one form the codec knows (sliding
//!   windows, M-RoPE), are refused at start: their prefixes can't be resumed at every block end.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{LazyLock, OnceLock},
};

use kelvin_proto::Fingerprint;
use llama_cpp_2::{
    DecodeError, LlamaStateSeqFlags, LogOptions,
    context::{
        LlamaContext,
        params::{KvCacheType, LlamaContextParams},
    },
    llama_backend::LlamaBackend,
    llama_batch::LlamaBatch,
    model::{LlamaModel, params::LlamaModelParams},
    send_logs_to_tracing,
    token::LlamaToken,
};
use parking_lot::Mutex;

use super::{
    BatchItem, Engine, EngineError, EngineOptions, EngineSpec, LAYOUT, TokenTexts,
    codec::{self, StateShape},
    digest,
};
use crate::Error;

/// The bindings, and the package that holds llama.cpp itself, both pinned in the workspace: the state format is
/// only stable within a build.
const ENGINE_BUILD: &str = "llama-cpp-2 0.1.160, llama-cpp-sys-2 0.1.161";
/// `LLAMA_FLASH_ATTN_TYPE_ENABLED`.
const FLASH_ATTENTION_ON: i32 = 1;
/// llama.cpp's hard limit on sequence ids, less the scratch sequence.
const SLOTS_MAX: u32 = 255;

static BACKEND: OnceLock<Result<LlamaBackend, String>> = OnceLock::new();
static MODELS: LazyLock<Mutex<HashMap<PathBuf, &'static LlamaModel>>> = LazyLock::new(Mutex::default);

/// The engine. See the module.
pub(crate) struct LlamaEngine {
    spec: EngineSpec,
    model: &'static LlamaModel,
    context: LlamaContext<'static>,
    batch: LlamaBatch<'static>,
    shape: StateShape,
    /// Tokens of each sequence, as llama.cpp holds them.
    lens: Vec<u32>,
    /// Where each item of the last batch has its logits.
    rows: Vec<Option<i32>>,
    /// Reused for every export and import.
    blob: Vec<u8>,
}

impl LlamaEngine {
    /// Loads the model, unless this process has it already, and makes a context of it.
    pub(crate) fn load(path: &Path, options: &EngineOptions) -> Result<Self, Error> {
        check_file(path)?;
        let digest = digest::weights_digest(path)
            .map_err(|source| Error::Model { path: path.to_owned(), message: source.to_string() })?;
        let refuse = |message: String| Error::Model { path: path.to_owned(), message };
        let backend = backend().map_err(refuse)?;
        // Held over the making of the context as well: see the invariants.
        let mut models = MODELS.lock();
        let model = match models.get(path) {
            Some(&model) => model,
            None => {
                let loaded = LlamaModel::load_from_file(backend, path, &LlamaModelParams::default())
                    .map_err(|error| {
                        refuse(format!("llama.cpp can't load it ({error}): is it a complete GGUF file?"))
                    })?;
                let model: &'static LlamaModel = Box::leak(Box::new(loaded));
                models.insert(path.to_owned(), model);
                model
            }
        };
        if model.is_recurrent() || model.is_hybrid() {
            return Err(refuse(
                "it has recurrent layers, whose state can't be cut into blocks: use a model with attention \
                 alone"
                    .to_owned(),
            ));
        }
        if options.slots == 0 || options.slots > SLOTS_MAX {
            return Err(Error::Config(format!("slots must be 1 to {SLOTS_MAX}, not {}", options.slots)));
        }
        let (context_tokens_max, cells) = options.sizes(model.n_ctx_train());
        let context = model
            .new_context(backend, context_params(options, cells))
            .map_err(|error| refuse(format!("can't make a context of {cells} cells: {error}")))?;
        drop(models);
        let spec = EngineSpec {
            fingerprint: fingerprint(model, digest),
            model_name: model_name(model, path),
            block_tokens: options.block_tokens,
            block_bytes: 0,
            vocab_tokens: model.n_vocab() as u32,
            context_tokens_max,
            cells: context.n_ctx().min(cells),
            sequences_max: options.slots,
            batch_tokens_max: options.batch_tokens_max(),
        };
        let mut engine = Self {
            batch: LlamaBatch::new(spec.batch_tokens_max as usize, 1),
            lens: vec![0; options.slots as usize],
            rows: Vec::new(),
            blob: Vec::new(),
            shape: StateShape::default(),
            spec,
            model,
            context,
        };
        engine.learn_shape().map_err(|error| refuse(format!("its KV cache is not supported: {error}")))?;
        Ok(engine)
    }

    /// Evaluates one block and reads the form of its blob, which is then the only one accepted.
    fn learn_shape(&mut self) -> Result<(), EngineError> {
        const CONTEXT: &str = "learn the form of the state";
        let tokens: Vec<u32> = (0..self.spec.block_tokens).map(|i| i % self.spec.vocab_tokens).collect();
        for chunk in tokens.chunks(self.spec.batch_tokens_max as usize) {
            self.evaluate(&[BatchItem { sequence: 0, tokens: chunk, logits: false }])?;
        }
        self.share(0, self.scratch(), 0, self.spec.block_tokens)?;
        let bytes = self.context.state_seq_get_size_ext(self.scratch(), LlamaStateSeqFlags::empty());
        self.read_scratch(bytes)?;
        self.clear_scratch()?;
        self.clear(0);
        let shape =
            StateShape::read(&self.blob).map_err(|source| EngineError::Codec { context: CONTEXT, source })?;
        if !shape.all_elements_are(codec::TYPE_F16) {
            return Err(EngineError::refused(CONTEXT, "its elements are not f16"));
        }
        self.spec.block_bytes = shape.block_bytes(self.spec.block_tokens as usize) as u64;
        self.shape = shape;
        Ok(())
    }

    /// The sequence id that belongs to no one.
    fn scratch(&self) -> i32 {
        self.spec.sequences_max as i32
    }

    /// Makes the cells `start..end` of one sequence belong to another one as well.
    fn share(&mut self, source: i32, target: i32, start: u32, end: u32) -> Result<(), EngineError> {
        self.context
            .kv_cache_seq_cp(source, target, Some(start), Some(end))
            .map_err(|error| EngineError::backend("share cells", error))
    }

    fn clear_scratch(&mut self) -> Result<(), EngineError> {
        self.context
            .kv_cache_seq_rm(self.scratch(), None, None)
            .map_err(|error| EngineError::backend("clear the scratch sequence", error))
    }

    /// Reads the scratch sequence's state, which must have exactly `bytes`, into `self.blob`.
    fn read_scratch(&mut self, bytes: usize) -> Result<(), EngineError> {
        let flags = LlamaStateSeqFlags::empty();
        let found = self.context.state_seq_get_size_ext(self.scratch(), flags);
        if found != bytes {
            return Err(EngineError::backend("read state", format!("it has {found} bytes, not {bytes}")));
        }
        self.blob.resize(bytes, 0);
        // SAFETY: the call writes the state of the scratch sequence and trusts that it fits. It needs `found`
        // bytes: asked for just now, and nothing can change the sequence in between, since this thread
        // owns the context and holds it exclusively. `self.blob` was made that long in the line above.
        let written =
            unsafe { self.context.state_seq_get_data_ext(self.blob.as_mut_ptr(), self.scratch(), flags) };
        if written == bytes {
            Ok(())
        } else {
            Err(EngineError::backend("read state", format!("{written} bytes of {bytes} came")))
        }
    }

    /// Sets the scratch sequence to what `self.blob` holds.
    fn write_scratch(&mut self) -> Result<(), EngineError> {
        let scratch = self.scratch();
        let expected = self.shape.blob_bytes(self.spec.block_tokens as usize);
        if self.blob.len() != expected {
            let found = self.blob.len();
            return Err(EngineError::backend("write state", format!("{found} bytes, not {expected}")));
        }
        // SAFETY: the call needs a well-formed state. `self.blob` was written by `codec::encode` a moment ago,
        // in the form this very context gave at start: counts, types and row sizes come from that form,
        // and only the rows themselves, which are numbers to llama.cpp, from the block. Its length was
        // checked above; llama.cpp checks every read against it.
        let done =
            unsafe { self.context.state_seq_set_data_ext(&self.blob, scratch, LlamaStateSeqFlags::empty()) };
        if done { Ok(()) } else { Err(EngineError::Full { tokens: self.spec.block_tokens }) }
    }

    fn decode(&mut self, batch: &[BatchItem<'_>]) -> Result<(), EngineError> {
        let tokens = super::check_batch(&self.spec, batch, |sequence| self.len(sequence))?;
        let used: u32 = self.lens.iter().sum();
        if used + tokens > self.spec.cells {
            return Err(EngineError::Full { tokens });
        }
        self.batch.clear();
        for item in batch {
            let len = self.lens[item.sequence as usize];
            let last = item.tokens.len() - 1;
            for (index, &token) in item.tokens.iter().enumerate() {
                let position = (len as usize + index) as i32;
                let logits = item.logits && index == last;
                self.batch
                    .add(LlamaToken(token as i32), position, &[item.sequence as i32], logits)
                    .map_err(|error| EngineError::backend("fill batch", error))?;
            }
            self.rows.push(item.logits.then(|| self.batch.n_tokens() - 1));
        }
        self.context.decode(&mut self.batch).map_err(|error| match error {
            DecodeError::NoKvCacheSlot => EngineError::Full { tokens },
            error => EngineError::backend("evaluate batch", error),
        })?;
        for item in batch {
            self.lens[item.sequence as usize] += item.tokens.len() as u32;
        }
        Ok(())
    }
}

impl Engine for LlamaEngine {
    fn spec(&self) -> &EngineSpec {
        &self.spec
    }

    fn token_texts(&self) -> TokenTexts {
        let vocab = self.model.vocab();
        let mut texts = TokenTexts::default();
        for (id, token) in (0..self.spec.vocab_tokens).zip(vocab.tokens()) {
            texts.pieces.push(vocab.token_to_piece(token, false, None));
            if vocab.is_eog(token) {
                texts.ends.push(id);
            }
        }
        texts
    }

    fn evaluate(&mut self, batch: &[BatchItem<'_>]) -> Result<(), EngineError> {
        self.rows.clear();
        let result = self.decode(batch);
        if result.is_err() {
            self.rows.clear();
            batch.iter().for_each(|item| self.clear(item.sequence));
        }
        result
    }

    fn logits(&self, item: usize) -> &[f32] {
        self.context.get_logits_ith(self.rows[item].expect("logits were asked for"))
    }

    fn len(&self, sequence: u32) -> u32 {
        self.lens[sequence as usize]
    }

    fn export_block(
        &mut self,
        sequence: u32,
        block_index: u32,
        target: &mut [u8],
    ) -> Result<(), EngineError> {
        super::check_export(&self.spec, self.len(sequence), block_index, target)?;
        let tokens = self.spec.block_tokens;
        let first = block_index * tokens;
        self.share(sequence as i32, self.scratch(), first, first + tokens)?;
        let read = self.read_scratch(self.shape.blob_bytes(tokens as usize));
        self.clear_scratch()?;
        read?;
        codec::decode(&self.shape, &self.blob, first, tokens, target)
            .map_err(|source| EngineError::Codec { context: "export block", source })
    }

    fn import_block(&mut self, sequence: u32, source: &[u8]) -> Result<(), EngineError> {
        let first = self.len(sequence);
        super::check_import(&self.spec, first, source)?;
        let tokens = self.spec.block_tokens;
        codec::encode(&self.shape, source, first, tokens, &mut self.blob)
            .map_err(|source| EngineError::Codec { context: "import block", source })?;
        self.write_scratch()?;
        let end = first + tokens;
        let span = (
            self.context.kv_cache_seq_pos_min(self.scratch()),
            self.context.kv_cache_seq_pos_max(self.scratch()),
        );
        let shared = if span == (first as i32, end as i32 - 1) {
            self.share(self.scratch(), sequence as i32, first, end)
        } else {
            Err(EngineError::backend("import block", format!("positions {span:?} came out of the state")))
        };
        self.clear_scratch()?;
        shared?;
        self.lens[sequence as usize] = end;
        Ok(())
    }

    fn truncate(&mut self, sequence: u32, tokens: u32) -> Result<(), EngineError> {
        if tokens >= self.len(sequence) {
            return Ok(());
        }
        self.context
            .kv_cache_seq_rm(sequence as i32, Some(tokens), None)
            .map_err(|error| EngineError::backend("truncate sequence", error))?;
        self.lens[sequence as usize] = tokens;
        Ok(())
    }

    fn clear(&mut self, sequence: u32) {
        // Removing a whole sequence can't fail, says llama.cpp; a hybrid model could, and is refused.
        if let Err(error) = self.context.kv_cache_seq_rm(sequence as i32, None, None) {
            tracing::error!(sequence, %error, "clear sequence");
        }
        self.lens[sequence as usize] = 0;
    }
}

/// Starts llama.cpp once a process, with its log going to `tracing`.
fn backend() -> Result<&'static LlamaBackend, String> {
    let backend = BACKEND.get_or_init(|| {
        send_logs_to_tracing(LogOptions::default());
        LlamaBackend::init().map_err(|error| format!("llama.cpp does not start: {error}"))
    });
    backend.as_ref().map_err(Clone::clone)
}

fn context_params(options: &EngineOptions, cells: u32) -> LlamaContextParams {
    let batch = options.batch_tokens_max();
    LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(cells))
        .with_n_batch(batch)
        .with_n_ubatch(batch)
        .with_n_seq_max(options.slots + 1)
        .with_kv_unified(true)
        .with_swa_full(true)
        .with_flash_attention_policy(FLASH_ATTENTION_ON)
        .with_type_k(KvCacheType::F16)
        .with_type_v(KvCacheType::F16)
        .with_n_threads(options.threads as i32)
        .with_n_threads_batch(options.threads as i32)
        .with_no_perf(true)
}

/// Tells a missing or unreadable file from a bad one, before llama.cpp only says that it failed.
fn check_file(path: &Path) -> Result<(), Error> {
    let refuse = |message: String| Error::Model { path: path.to_owned(), message };
    let metadata = std::fs::metadata(path)
        .map_err(|error| refuse(format!("{error}: give the path of a readable GGUF file")))?;
    if !metadata.is_file() {
        return Err(refuse("it is not a file: give the path of a GGUF file".to_owned()));
    }
    let mut magic = [0; 4];
    std::fs::File::open(path)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic))
        .map_err(|error| refuse(format!("{error}: give the path of a readable GGUF file")))?;
    if &magic != b"GGUF" {
        return Err(refuse("it does not begin with GGUF: convert the model to GGUF first".to_owned()));
    }
    Ok(())
}

/// `general.name` in lower case with dashes for spaces, else the file's stem.
fn model_name(model: &LlamaModel, path: &Path) -> String {
    let named = model.meta_val_str("general.name").unwrap_or_default();
    let name = named.trim().to_lowercase().split_whitespace().collect::<Vec<_>>().join("-");
    let stem = || path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    if name.is_empty() { stem().unwrap_or_else(|| "model".to_owned()) } else { name }
}

fn fingerprint(model: &LlamaModel, model_digest: String) -> Fingerprint {
    let meta = |key: &str| model.meta_val_str(key).ok();
    let architecture = meta("general.architecture").unwrap_or_else(|| "unknown".to_owned());
    let own = |key: &str| meta(&format!("{architecture}.{key}")).unwrap_or_else(|| "default".to_owned());
    let heads = model.n_head().max(1);
    let head_dim = meta(&format!("{architecture}.attention.key_length"))
        .unwrap_or_else(|| (model.n_embd() as u32 / heads).to_string());
    let attributes = [
        ("architecture", architecture.clone()),
        ("flash_attention", "on".to_owned()),
        ("layers", model.n_layer().to_string()),
        ("kv_heads", model.n_head_kv().to_string()),
        ("head_dim", head_dim),
        ("context_train", model.n_ctx_train().to_string()),
        ("rope.freq_base", own("rope.freq_base")),
        ("rope.scaling.type", own("rope.scaling.type")),
        ("rope.scaling.factor", own("rope.scaling.factor")),
    ];
    Fingerprint {
        model_digest,
        engine: "llama.cpp".to_owned(),
        engine_build: ENGINE_BUILD.to_owned(),
        layout: LAYOUT.to_owned(),
        dtype: "f16".to_owned(),
        attributes: attributes.map(|(name, value)| (name.to_owned(), value)).into(),
    }
}

#[cfg(test)]
mod tests;
