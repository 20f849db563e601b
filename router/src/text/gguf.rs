//! The vocabulary inside a GGUF file.
//!
//! Only the vocabulary and the metadata are loaded (tens of MiB, some 0.1 s), with the library that the
//! workers evaluate the model with: both ends agree on every token.

use std::{
    path::Path,
    sync::{Once, OnceLock},
};

use llama_cpp_2::{
    LogOptions,
    llama_backend::LlamaBackend,
    model::{LlamaModel, params::LlamaModelParams},
    send_logs_to_tracing,
    token::LlamaToken,
    token_type::LlamaTokenAttr,
    vocab::VocabType,
};

use super::{
    ChatTemplate, Defused, TemplateError, TokenizeError, VocabularyError,
    pieces::{Pieces, split},
    stack::{longest_run, with_stack},
    words::{Words, can_cut},
};

/// A GGUF file's tokens.
pub(crate) struct GgufVocabulary {
    model: LlamaModel,
    tokens: u32,
    end_tokens: Vec<u32>,
    control_texts: Vec<String>,
    token_bytes_max: usize,
    /// Text of the begin token, when the tokenizer puts one in front by itself.
    bos_added: Option<String>,
    /// Where a piece of text has the same tokens wherever it stands.
    pieces: Option<Pieces>,
    /// Where a piece's words have, too.
    words: Option<Words>,
}

/// Tokens of pieces that are kept: 16 MiB.
const KEPT_TOKENS_MAX: usize = 4 << 20;

impl GgufVocabulary {
    pub(super) fn load(path: &Path) -> Result<Self, VocabularyError> {
        let fail = |message: String| VocabularyError::new(path, message);
        if !path.is_file() {
            return Err(fail("no such file".into()));
        }
        let params = LlamaModelParams::default().with_vocab_only(true).with_n_gpu_layers(0);
        let model =
            LlamaModel::load_from_file(backend(), path, &params).map_err(|error| fail(error.to_string()))?;
        let vocab = model.vocab();
        let tokens = u32::try_from(vocab.n_tokens()).unwrap_or(0);
        if tokens == 0 {
            return Err(fail("it has no tokens".into()));
        }
        let end_tokens = vocab.tokens().filter(|&token| vocab.is_eog(token)).map(id).collect();
        let special = LlamaTokenAttr::Control | LlamaTokenAttr::Unknown;
        let control_texts = vocab
            .tokens()
            .filter(|&token| vocab.attr(token).intersects(special))
            .filter_map(|token| vocab.text(token)?.to_str().ok().map(str::to_owned))
            .filter(|text| !text.is_empty())
            .collect();
        let token_bytes_max = vocab
            .tokens()
            .map(|token| vocab.token_to_piece(token, true, None).len())
            .max()
            .unwrap_or(1)
            .max(1);
        let bos_added = vocab.should_add_bos().then(|| text_of(&model, vocab.bos()));
        // Other kinds put a space before a piece, or not, by what stands before it.
        let strips = LlamaTokenAttr::LStrip | LlamaTokenAttr::RStrip;
        let alone = matches!(vocab.vocab_type(), VocabType::BPE)
            && !vocab.should_add_eos()
            && !vocab.tokens().any(|token| vocab.attr(token).intersects(strips));
        let pieces = alone.then(|| Pieces::new(KEPT_TOKENS_MAX));
        let pre_tokenizer = model.meta_val_str("tokenizer.ggml.pre").unwrap_or_default();
        let added = vocab
            .tokens()
            .filter(|&token| vocab.attr(token).intersects(special | LlamaTokenAttr::UserDefined))
            .filter_map(|token| Some(vocab.text(token)?.to_bytes()));
        let words = (alone && can_cut(&pre_tokenizer, added)).then(Words::default);
        Ok(Self { tokens, end_tokens, control_texts, token_bytes_max, bos_added, pieces, words, model })
    }

    pub(super) fn len(&self) -> u32 {
        self.tokens
    }

    pub(super) fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    pub(super) fn control_texts(&self) -> &[String] {
        &self.control_texts
    }

    pub(super) fn token_bytes_max(&self) -> usize {
        self.token_bytes_max
    }

    pub(super) fn tokenize(&self, text: &Defused) -> Result<Vec<u32>, TokenizeError> {
        let run_chars = text.runs().iter().map(|run| longest_run(run)).max().unwrap_or(0);
        with_stack(run_chars, || self.tokenize_here(text))
    }

    /// Tokenizes on this thread's stack.
    fn tokenize_here(&self, text: &Defused) -> Vec<u32> {
        let vocab = self.model.vocab();
        let mut tokens = Vec::new();
        for (index, run) in text.runs().iter().enumerate() {
            // A template that writes the begin token itself would have it twice.
            let written = self.bos_added.as_deref().filter(|bos| index == 0 && !bos.is_empty());
            let run = written.and_then(|bos| run.strip_prefix(bos)).unwrap_or(run);
            let kept = self.pieces.as_ref().and_then(|kept| Some((kept, split(run, &self.control_texts)?)));
            let Some((kept, pieces)) = kept else {
                tokens.extend(vocab.tokenize(run.as_bytes(), index == 0, true).into_iter().map(id));
                continue;
            };
            tokens.extend((index == 0 && self.bos_added.is_some()).then(|| id(vocab.bos())));
            for piece in pieces {
                let whole = |text: &str| -> Vec<u32> {
                    vocab.tokenize(text.as_bytes(), false, true).into_iter().map(id).collect()
                };
                kept.append(piece, &mut tokens, |piece, into| match &self.words {
                    Some(words) => words.append(piece, into, whole),
                    None => into.extend(whole(piece)),
                });
            }
        }
        tokens
    }

    /// The library aborts the process on an id that it does not have: ids from outside stop here.
    pub(super) fn piece(&self, token: u32, special: bool) -> Vec<u8> {
        match i32::try_from(token) {
            Ok(known) if token < self.tokens => {
                self.model.vocab().token_to_piece(LlamaToken::new(known), special, None)
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn chat_template(&self) -> Option<Result<ChatTemplate, TemplateError>> {
        let source = self.model.chat_template(None).ok()?.to_string().ok()?;
        let vocab = self.model.vocab();
        Some(ChatTemplate::new(
            &source,
            &text_of(&self.model, vocab.bos()),
            &text_of(&self.model, vocab.eos()),
        ))
    }
}

fn id(token: LlamaToken) -> u32 {
    // Ids that the library hands out are indices.
    token.0.unsigned_abs()
}

fn text_of(model: &LlamaModel, token: LlamaToken) -> String {
    if token.0 < 0 {
        return String::new();
    }
    String::from_utf8_lossy(&model.vocab().token_to_piece(token, true, None)).into_owned()
}

/// The process's one backend, which lives as long as the process. A worker in the same process may have
/// initialized it before; the value is then only a token for calls that ask for one.
fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    static LOGS: Once = Once::new();
    LOGS.call_once(|| send_logs_to_tracing(LogOptions::default()));
    BACKEND.get_or_init(|| LlamaBackend::init().unwrap_or(LlamaBackend {}))
}

#[cfg(test)]
mod tests;
