//! Answers in OpenAI's shapes: whole, and in chunks.

use serde::Serialize;

use super::{
    ask::Kind,
    completion::{Counts, Delta},
    logprobs::{ChatLogprobs, TextLogprobs, TokenLog},
};
use crate::scheduler::Finish;

/// What all answers to one request have in common.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) kind: Kind,
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
    /// A stream ends with a chunk of counts.
    pub(super) include_usage: bool,
}

#[derive(Serialize)]
struct Envelope<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    /// Absent, null in a chunk before the last, or the counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize, Clone, Copy)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
}

#[derive(Serialize, Clone, Copy)]
struct PromptDetails {
    cached_tokens: u64,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: u32,
    message: ChatMessage<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct ChatMessage<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatChunkChoice<'a> {
    index: u32,
    delta: ChatDelta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize, Default)]
struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Serialize)]
struct TextChoice<'a> {
    text: &'a str,
    index: u32,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
}

impl From<Counts> for Usage {
    fn from(counts: Counts) -> Self {
        Self {
            prompt_tokens: counts.prompt_tokens,
            completion_tokens: counts.completion_tokens,
            total_tokens: counts.prompt_tokens + counts.completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: counts.cached_tokens },
        }
    }
}

impl Reply {
    /// The whole answer.
    pub(super) fn whole(
        &self,
        text: &str,
        logs: Option<Vec<TokenLog>>,
        finish: Finish,
        counts: Counts,
    ) -> String {
        let usage = Some(Some(counts.into()));
        match self.kind {
            Kind::Chat => {
                let message = ChatMessage { role: "assistant", content: text, refusal: None };
                let (logprobs, finish_reason) = (logs.map(Into::into), finish.name());
                self.json(
                    "chat.completion",
                    &[ChatChoice { index: 0, message, logprobs, finish_reason }],
                    usage,
                )
            }
            Kind::Text => self.json("text_completion", &[text_choice(text, logs, Some(finish))], usage),
        }
    }

    /// The chunk that comes before any text.
    pub(super) fn opening(&self) -> Option<String> {
        let delta = ChatDelta { role: Some("assistant"), content: Some("") };
        (self.kind == Kind::Chat).then(|| self.chat_chunk(delta, None, None))
    }

    /// A chunk of text.
    pub(super) fn delta(&self, delta: Delta) -> String {
        match self.kind {
            Kind::Chat => {
                self.chat_chunk(ChatDelta { role: None, content: Some(&delta.text) }, delta.logs, None)
            }
            Kind::Text => self.text_chunk(text_choice(&delta.text, delta.logs, None)),
        }
    }

    /// The chunk that says how it ended.
    pub(super) fn closing(&self, finish: Finish) -> String {
        match self.kind {
            Kind::Chat => self.chat_chunk(ChatDelta::default(), None, Some(finish)),
            Kind::Text => self.text_chunk(text_choice("", None, Some(finish))),
        }
    }

    /// The chunk of counts, if it was asked for.
    pub(super) fn usage(&self, counts: Counts) -> Option<String> {
        let usage = Some(Some(counts.into()));
        self.include_usage.then(|| match self.kind {
            Kind::Chat => self.json::<ChatChunkChoice<'_>>("chat.completion.chunk", &[], usage),
            Kind::Text => self.json::<TextChoice<'_>>("text_completion", &[], usage),
        })
    }

    fn chat_chunk(
        &self,
        delta: ChatDelta<'_>,
        logs: Option<Vec<TokenLog>>,
        finish: Option<Finish>,
    ) -> String {
        let (logprobs, finish_reason) = (logs.map(Into::into), finish.map(Finish::name));
        let choice = ChatChunkChoice { index: 0, delta, logprobs, finish_reason };
        self.json("chat.completion.chunk", &[choice], self.include_usage.then_some(None))
    }

    fn text_chunk(&self, choice: TextChoice<'_>) -> String {
        self.json("text_completion", &[choice], self.include_usage.then_some(None))
    }

    fn json<C: Serialize>(
        &self,
        object: &'static str,
        choices: &[C],
        usage: Option<Option<Usage>>,
    ) -> String {
        let envelope =
            Envelope { id: &self.id, object, created: self.created, model: &self.model, choices, usage };
        // Strings, finite numbers and lists of them: this cannot fail.
        serde_json::to_string(&envelope).unwrap_or_default()
    }
}

fn text_choice(text: &str, logs: Option<Vec<TokenLog>>, finish: Option<Finish>) -> TextChoice<'_> {
    let (logprobs, finish_reason) = (logs.map(Into::into), finish.map(Finish::name));
    TextChoice { text, index: 0, logprobs, finish_reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(kind: Kind, include_usage: bool) -> Reply {
        Reply { kind, id: "id-1".into(), created: 7, model: "toy".into(), include_usage }
    }

    const COUNTS: Counts = Counts { prompt_tokens: 20, completion_tokens: 2, cached_tokens: 16 };
    const USAGE: &str = r#""usage":{"prompt_tokens":20,"completion_tokens":2,"total_tokens":22,"prompt_tokens_details":{"cached_tokens":16}}"#;

    #[test]
    fn chat_shapes() {
        let chat = reply(Kind::Chat, true);
        let head = r#""created":7,"model":"toy","choices":"#;
        assert_eq!(
            chat.whole("hi", None, Finish::Length, COUNTS),
            format!(
                r#"{{"id":"id-1","object":"chat.completion",{head}[{{"index":0,"message":{{"role":"assistant","content":"hi","refusal":null}},"logprobs":null,"finish_reason":"length"}}],{USAGE}}}"#
            )
        );
        let chunk = format!(r#"{{"id":"id-1","object":"chat.completion.chunk",{head}"#);
        assert_eq!(
            chat.opening().unwrap(),
            format!(
                r#"{chunk}[{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}],"usage":null}}"#
            )
        );
        assert_eq!(
            chat.closing(Finish::Stop),
            format!(
                r#"{chunk}[{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"stop"}}],"usage":null}}"#
            )
        );
        assert_eq!(chat.usage(COUNTS).unwrap(), format!("{chunk}[],{USAGE}}}"));
    }

    #[test]
    fn text_shapes() {
        let text = reply(Kind::Text, false);
        let head = r#"{"id":"id-1","object":"text_completion","created":7,"model":"toy","choices":"#;
        assert_eq!(text.opening(), None);
        assert_eq!(
            text.delta(Delta { text: "a".into(), logs: None }),
            format!(r#"{head}[{{"text":"a","index":0,"logprobs":null,"finish_reason":null}}]}}"#)
        );
        assert_eq!(text.usage(COUNTS), None);
        assert_eq!(
            text.whole("ab", None, Finish::Stop, COUNTS),
            format!(r#"{head}[{{"text":"ab","index":0,"logprobs":null,"finish_reason":"stop"}}],{USAGE}}}"#)
        );
    }
}
