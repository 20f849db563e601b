//! Log probabilities, kept until the text of their tokens goes out.

use std::collections::{BTreeMap, VecDeque};

use kelvin_proto::worker::v1::GeneratedToken;
use serde::Serialize;

use crate::text::Vocabulary;

/// One token's entry in the chat shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct TokenLog {
    #[serde(flatten)]
    token: Alternative,
    top_logprobs: Vec<Alternative>,
    /// Where its text begins in the completion's, in characters.
    #[serde(skip)]
    offset: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Alternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// The chat shape of several tokens.
#[derive(Debug, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<TokenLog>,
    refusal: Option<()>,
}

/// The text shape of several tokens.
#[derive(Debug, Serialize)]
pub(super) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    text_offset: Vec<usize>,
}

impl Alternative {
    fn new(vocabulary: &Vocabulary, token: u32, logprob: f32) -> Self {
        let bytes = vocabulary.display(token);
        // JSON has no minus infinity; this is what a token that cannot come is given.
        let logprob = if logprob.is_finite() { logprob } else { -9999.0 };
        Self { token: String::from_utf8_lossy(&bytes).into_owned(), logprob, bytes }
    }

    /// Its name in the text shape, where keys must tell half characters apart.
    fn name(&self) -> String {
        match std::str::from_utf8(&self.bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => {
                self.bytes.iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}"))
            }
        }
    }
}

/// Entries whose text has not gone out yet.
#[derive(Debug, Default)]
pub(super) struct LogQueue {
    held: VecDeque<TokenLog>,
}

impl LogQueue {
    /// Takes a token whose text begins at character `offset` of the completion's.
    pub(super) fn push(&mut self, vocabulary: &Vocabulary, token: &GeneratedToken, offset: usize) {
        let alternative = |token: u32, logprob: f32| Alternative::new(vocabulary, token, logprob);
        self.held.push_back(TokenLog {
            token: alternative(token.token, token.logprob.unwrap_or(f32::NEG_INFINITY)),
            top_logprobs: token.top.iter().map(|top| alternative(top.token, top.logprob)).collect(),
            offset,
        });
    }

    /// Entries of tokens whose text begins before character `sent`.
    pub(super) fn release(&mut self, sent: usize) -> Vec<TokenLog> {
        let count = self.held.iter().take_while(|log| log.offset < sent).count();
        self.held.drain(..count).collect()
    }

    /// All that is left.
    pub(super) fn finish(&mut self) -> Vec<TokenLog> {
        self.held.drain(..).collect()
    }
}

impl From<Vec<TokenLog>> for ChatLogprobs {
    fn from(content: Vec<TokenLog>) -> Self {
        Self { content, refusal: None }
    }
}

impl From<Vec<TokenLog>> for TextLogprobs {
    fn from(logs: Vec<TokenLog>) -> Self {
        let top = |log: &TokenLog| {
            log.top_logprobs.iter().chain([&log.token]).map(|one| (one.name(), one.logprob)).collect()
        };
        Self {
            tokens: logs.iter().map(|log| log.token.name()).collect(),
            token_logprobs: logs.iter().map(|log| log.token.logprob).collect(),
            top_logprobs: logs.iter().map(top).collect(),
            text_offset: logs.iter().map(|log| log.offset).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use kelvin_proto::worker::v1::TokenLogprob;

    use super::*;

    #[test]
    fn entries_wait_for_their_text() {
        let mut queue = LogQueue::default();
        let token = |token: u32| GeneratedToken { token, logprob: Some(-0.5), top: vec![] };
        for (offset, byte) in "abc".bytes().enumerate() {
            queue.push(&Vocabulary::Toy, &token(byte.into()), offset);
        }
        assert_eq!(queue.release(0).len(), 0);
        let out = queue.release(2);
        assert_eq!(out.iter().map(|log| log.token.token.as_str()).collect::<String>(), "ab");
        assert_eq!(queue.finish().len(), 1);
    }

    #[test]
    fn half_characters_have_bytes() {
        let mut queue = LogQueue::default();
        let top = vec![TokenLogprob { token: 97, logprob: f32::NEG_INFINITY }];
        queue.push(&Vocabulary::Toy, &GeneratedToken { token: 0xc3, logprob: Some(-1.0), top }, 4);
        let logs = queue.finish();
        let chat = serde_json::to_value(ChatLogprobs::from(logs.clone())).unwrap();
        assert_eq!(chat["content"][0]["bytes"], serde_json::json!([0xc3]));
        assert_eq!(chat["content"][0]["top_logprobs"][0]["logprob"], -9999.0);
        let text = serde_json::to_value(TextLogprobs::from(logs)).unwrap();
        assert_eq!(text["tokens"][0], "bytes:\\xc3");
        assert_eq!(text["top_logprobs"][0]["bytes:\\xc3"], -1.0);
        assert_eq!(text["text_offset"][0], 4);
    }
}
