//! Text to token ids and back: the only place of the cluster that knows characters.
//!
//! # Overview
//! A [`Vocabulary`] turns text into tokens and a token into bytes, a [`ChatTemplate`] turns messages into
//! text, and a [`TextStream`] turns tokens that arrive one by one into text that can be sent: whole
//! characters only, and nothing that may turn out to be the beginning of a stop string.
//!
//! # Limits
//! A rendered chat template is tokenized with special tokens parsed, as its author meant it. Message
//! content that spells a control token is broken by [`defuse`] first, so that users cannot forge a turn
//! through it. A prompt of `/v1/completions` is taken as it is, control tokens included: whoever calls it
//! writes the whole prompt. User-defined tokens that are not control tokens are always parsed.
//! A line of more than 524,288 characters is refused (see [`stack`]).

mod defuse;
mod detokenizer;
mod gguf;
mod pieces;
mod stack;
mod stops;
mod stream;
mod template;
mod words;

pub(crate) use defuse::{Defused, defuse};
pub(crate) use stream::TextStream;
pub(crate) use template::{ChatMessage, ChatTemplate, TemplateError};

use std::path::{Path, PathBuf};

/// Where the vocabulary and the chat template come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The toy engine's: 256 bytes, begin, end of text.
    Toy,
    /// A GGUF file's own; its weights are not loaded.
    Gguf(PathBuf),
}

/// The model file cannot serve as a vocabulary.
#[derive(Debug, thiserror::Error)]
#[error("load vocabulary of {}: {message}", path.display())]
pub struct VocabularyError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub message: String,
}

/// A text cannot be tokenized.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenizeError {
    /// It is the text.
    #[error("a line has {chars} characters, but at most {chars_max} are allowed")]
    Run {
        /// Of the longest line, with the white space behind it.
        chars: usize,
        /// The limit.
        chars_max: usize,
    },
    /// There is no thread for it.
    #[error("start a thread to tokenize")]
    Thread(#[source] std::io::Error),
    /// The tokenizer panicked.
    #[error("the tokenizer died")]
    Died,
}

/// Tokens of the toy engine: the bytes, then these two.
const TOY_BEGIN: u32 = 256;
const TOY_END: u32 = 257;
const TOY_TOKENS: u32 = 258;
const TOY_TEMPLATE: &str = "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// A model's tokens.
pub(crate) enum Vocabulary {
    Toy,
    Gguf(Box<gguf::GgufVocabulary>),
}

impl Vocabulary {
    /// Reads the vocabulary of `source`; blocks while it reads the file.
    pub(crate) fn load(source: &ModelSource) -> Result<Self, VocabularyError> {
        match source {
            ModelSource::Toy => Ok(Self::Toy),
            ModelSource::Gguf(path) => Ok(Self::Gguf(Box::new(gguf::GgufVocabulary::load(path)?))),
        }
    }

    /// Tokens there are; ids are below it.
    pub(crate) fn len(&self) -> u32 {
        match self {
            Self::Toy => TOY_TOKENS,
            Self::Gguf(gguf) => gguf.len(),
        }
    }

    /// Tokens of a text as a whole prompt: with the begin token where the model wants one, and special
    /// tokens parsed. Blocks for about a microsecond a token, and longer for texts with a very long line, which
    /// take turns.
    pub(crate) fn tokenize(&self, text: &Defused) -> Result<Vec<u32>, TokenizeError> {
        match self {
            Self::Toy => Ok(text.joined().bytes().map(u32::from).collect()),
            Self::Gguf(gguf) => gguf.tokenize(text),
        }
    }

    /// Bytes a token stands for in output, which need not be whole characters; control tokens have none,
    /// nor do ids that are not in the vocabulary.
    pub(crate) fn piece(&self, token: u32) -> Vec<u8> {
        match self {
            Self::Toy => u8::try_from(token).map(|byte| vec![byte]).unwrap_or_default(),
            Self::Gguf(gguf) => gguf.piece(token, false),
        }
    }

    /// Bytes of a token for display, where control tokens have a name.
    pub(crate) fn display(&self, token: u32) -> Vec<u8> {
        match self {
            Self::Toy => match token {
                TOY_BEGIN => b"<|begin|>".to_vec(),
                TOY_END => b"<|end|>".to_vec(),
                _ => self.piece(token),
            },
            Self::Gguf(gguf) => gguf.piece(token, true),
        }
    }

    /// Tokens that end a completion.
    pub(crate) fn end_tokens(&self) -> &[u32] {
        match self {
            Self::Toy => &[TOY_END],
            Self::Gguf(gguf) => gguf.end_tokens(),
        }
    }

    /// Most bytes of text a single token can stand for: a text of more than this many bytes a token does
    /// not fit, and need not be tokenized to know it.
    pub(crate) fn token_bytes_max(&self) -> usize {
        match self {
            Self::Toy => 1,
            Self::Gguf(gguf) => gguf.token_bytes_max(),
        }
    }

    /// Texts that would become control tokens in a prompt.
    pub(crate) fn control_texts(&self) -> &[String] {
        match self {
            Self::Toy => &[],
            Self::Gguf(gguf) => gguf.control_texts(),
        }
    }

    /// The model's chat template; `None` if it has none.
    pub(crate) fn chat_template(&self) -> Option<Result<ChatTemplate, TemplateError>> {
        match self {
            Self::Toy => Some(ChatTemplate::new(TOY_TEMPLATE, "", "")),
            Self::Gguf(gguf) => gguf.chat_template(),
        }
    }
}

impl VocabularyError {
    fn new(path: &Path, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_toy_speaks_bytes() {
        let toy = Vocabulary::Toy;
        assert_eq!(toy.tokenize(&Defused::plain("né")).unwrap(), [110, 0xc3, 0xa9]);
        assert_eq!(toy.piece(0xc3), [0xc3]);
        assert!(toy.piece(TOY_END).is_empty());
        assert_eq!(toy.display(TOY_END), b"<|end|>");
        assert_eq!(toy.end_tokens(), [TOY_END]);
    }

    #[test]
    fn the_toys_template_is_as_agreed_with_its_engine() {
        let template = Vocabulary::Toy.chat_template().unwrap().unwrap();
        let message = |role: &str, content: &str| ChatMessage {
            role: role.into(),
            content: content.into(),
            ..Default::default()
        };
        let text = template.render(&[message("system", "be brief"), message("user", "hi")], &[]).unwrap();
        assert_eq!(text, "<|system|>be brief\n<|user|>hi\n<|assistant|>");
    }
}
