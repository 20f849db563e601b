//! Tokens of words that come again and again, as a language's do.
//!
//! Many vocabularies' pre-tokenizers ([`SPLITTING`]) end a word at a space between two letters, and what comes then is
//! tokenized by itself. So a text may be cut before each such space, and the tokens of a part are the same wherever
//! it stands: they are kept, and a part that is known costs a look instead of a tokenizer's run.
//!
//! # Limits
//! [`WORDS_MAX`] parts of at most [`WORD_BYTES_MAX`] bytes are kept, some 10 MiB; one more, and all begins anew: those
//! in use are soon back.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use dashmap::DashMap;

const WORDS_MAX: usize = 65_536;
/// Longer parts are no words.
const WORD_BYTES_MAX: usize = 64;

/// Pre-tokenizers, by their names in GGUF files (`tokenizer.ggml.pre`), none of whose words go on behind a letter with
/// a space and another letter, according to their regular expressions in llama.cpp's `llama-vocab.cpp`.
const SPLITTING: [&str; 14] = [
    "deepseek-r1-qwen",
    "falcon3",
    "gpt-2",
    "gpt-4o",
    "llama-bpe",
    "llama-v3",
    "llama3",
    "llama4",
    "phi-2",
    "pixtral",
    "qwen2",
    "refact",
    "smollm",
    "starcoder",
];

/// Whether texts of such a vocabulary can be cut; `added` are the texts that it finds before it looks at words.
pub(super) fn can_cut<'a>(pre_tokenizer: &str, mut added: impl Iterator<Item = &'a [u8]>) -> bool {
    let spans_a_cut =
        |text: &[u8]| text.windows(2).any(|pair| pair[0].is_ascii_alphabetic() && pair[1] == b' ');
    SPLITTING.contains(&pre_tokenizer) && !added.any(spans_a_cut)
}

/// Parts of `text`, cut before each space between two ASCII letters.
pub(super) fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let cut = rest.as_bytes().windows(3).position(|around| {
            around[1] == b' ' && around[0].is_ascii_alphabetic() && around[2].is_ascii_alphabetic()
        });
        let part;
        (part, rest) = rest.split_at(cut.map_or(rest.len(), |before| before + 1));
        Some(part)
    })
}

/// Tokens of parts.
#[derive(Debug, Default)]
pub(super) struct Words {
    kept: DashMap<Box<str>, Box<[u32]>>,
    count: AtomicUsize,
}

impl Words {
    /// Appends the tokens of `text`; `tokenize` makes those of a part that are not kept.
    pub(super) fn append(&self, text: &str, into: &mut Vec<u32>, tokenize: impl Fn(&str) -> Vec<u32>) {
        for part in parts(text) {
            if part.len() > WORD_BYTES_MAX {
                into.extend(tokenize(part));
                continue;
            }
            if let Some(tokens) = self.kept.get(part) {
                into.extend_from_slice(&tokens);
                continue;
            }
            let tokens = tokenize(part);
            into.extend_from_slice(&tokens);
            if self.count.fetch_add(1, Relaxed) >= WORDS_MAX {
                self.kept.clear();
                self.count.store(1, Relaxed);
            }
            self.kept.insert(part.into(), tokens.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_begin_with_the_space_between_letters() {
        let all: Vec<&str> = parts("it's a bit: 3 of  them, é so\n on").collect();
        assert_eq!(all, ["it's", " a", " bit: 3 of  them, é so\n on"]);
        assert_eq!(parts("").count(), 0);
    }

    #[test]
    fn texts_are_cut_only_where_that_changes_nothing() {
        let none = || std::iter::empty();
        assert!(can_cut("smollm", none()) && can_cut("qwen2", [&b"<|im_end|>"[..], b" a"].into_iter()));
        assert!(!can_cut("superbpe", none()), "its words have spaces");
        assert!(!can_cut("gpt-2", [&b"of the"[..]].into_iter()));
        assert!(!can_cut("gpt-2", [&b"x "[..]].into_iter()));
    }

    #[test]
    fn what_is_kept_is_not_made_again_and_bounded() {
        let words = Words::default();
        let made = AtomicUsize::new(0);
        let tokenize = |text: &str| {
            made.fetch_add(1, Relaxed);
            text.bytes().map(u32::from).collect()
        };
        let ask = |text: &str| {
            let mut tokens = Vec::new();
            words.append(text, &mut tokens, tokenize);
            assert_eq!(tokens, text.bytes().map(u32::from).collect::<Vec<_>>());
            made.swap(0, Relaxed)
        };
        assert_eq!((ask("a b a b a"), ask("a b")), (3, 0));
        assert_eq!((ask(&"x".repeat(65)), ask(&"x".repeat(65))), (1, 1), "no word");
        for word in 0..=WORDS_MAX {
            ask(&format!("w{word}"));
        }
        assert!(words.kept.len() <= WORDS_MAX);
        assert_eq!(ask("a b"), 2, "it began anew");
    }

    proptest! {
        #[test]
        fn parts_are_the_text(text in "[ab é\n.]{0,40}") {
            prop_assert_eq!(parts(&text).collect::<String>(), text);
        }
    }
}
