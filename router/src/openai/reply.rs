//! Answers in OpenAI's shapes: whole, and in chunks.

use std::borrow::Cow;

use serde::Serialize;

use super::{
    ask::Kind,
    calls::CallDelta,
    completion::{Counts, Delta, Ending},
    logprobs::{ChatLogprobs, TextLogprobs, TokenLog},
};

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
struct ChatChoice {
    index: u32,
    message: ChatMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct ChatMessage {
    role: &'static str,
    content: Option<String>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Serialize)]
struct ToolCall {
    id: String,
    r#type: &'static str,
    function: Called,
}

#[derive(Serialize)]
struct Called {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

#[derive(Serialize)]
struct CallChunk {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: Called,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallChunk; 1]>,
}

/// A choice that came to its end.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) text: String,
    pub(super) calls: Vec<CallDelta>,
    pub(super) logs: Option<Vec<TokenLog>>,
    pub(super) ending: Ending,
}

#[derive(Serialize)]
struct TextChoice<'a> {
    text: Cow<'a, str>,
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
    /// The whole answer, with its choices in order.
    pub(super) fn whole(&self, choices: Vec<Whole>, counts: Counts) -> String {
        let usage = Some(Some(counts.into()));
        let choices = (0..).zip(choices);
        match self.kind {
            Kind::Chat => {
                let choices: Vec<_> = choices.map(|(index, whole)| self.chat_choice(index, whole)).collect();
                self.json("chat.completion", &choices, usage)
            }
            Kind::Text => {
                let choice = |(index, whole): (u32, Whole)| TextChoice {
                    text: whole.text.into(),
                    index,
                    logprobs: whole.logs.map(Into::into),
                    finish_reason: Some(whole.ending.name()),
                };
                self.json("text_completion", &choices.map(choice).collect::<Vec<_>>(), usage)
            }
        }
    }

    fn chat_choice(&self, index: u32, whole: Whole) -> ChatChoice {
        let call = |call: CallDelta| ToolCall {
            id: self.call_id(index, call.index),
            r#type: "function",
            function: Called { name: call.name, arguments: call.arguments },
        };
        let tool_calls: Vec<_> = whole.calls.into_iter().map(call).collect();
        let content = (tool_calls.is_empty() || !whole.text.is_empty()).then_some(whole.text);
        let message = ChatMessage { role: "assistant", content, refusal: None, tool_calls };
        ChatChoice {
            index,
            message,
            logprobs: whole.logs.map(Into::into),
            finish_reason: whole.ending.name(),
        }
    }

    /// Unlike those of other answers.
    fn call_id(&self, choice: u32, call: u32) -> String {
        let unique = self.id.rsplit('-').next().unwrap_or_default();
        format!("call_{unique}{choice:x}{call:02x}")
    }

    /// The chunk of a choice that comes before any text.
    pub(super) fn opening(&self, index: u32) -> Option<String> {
        let delta = ChatDelta { role: Some("assistant"), content: Some(""), ..Default::default() };
        (self.kind == Kind::Chat).then(|| self.chat_chunk(index, delta, None, None))
    }

    /// The chunks of text and calls.
    pub(super) fn delta(&self, index: u32, delta: Delta) -> Vec<String> {
        let Delta { text, calls, mut logs } = delta;
        if self.kind == Kind::Text {
            return vec![self.text_chunk(index, &text, logs, None)];
        }
        let mut chunks = Vec::new();
        if !text.is_empty() || calls.is_empty() {
            let delta = ChatDelta { content: Some(&text), ..Default::default() };
            chunks.push(self.chat_chunk(index, delta, logs.take(), None));
        }
        for call in calls {
            let begins = call.name.is_some();
            let chunk = CallChunk {
                index: call.index,
                id: begins.then(|| self.call_id(index, call.index)),
                r#type: begins.then_some("function"),
                function: Called { name: call.name, arguments: call.arguments },
            };
            let delta = ChatDelta { tool_calls: Some([chunk]), ..Default::default() };
            chunks.push(self.chat_chunk(index, delta, logs.take(), None));
        }
        chunks
    }

    /// The chunk that says how a choice ended.
    pub(super) fn closing(&self, index: u32, ending: Ending) -> String {
        match self.kind {
            Kind::Chat => self.chat_chunk(index, ChatDelta::default(), None, Some(ending)),
            Kind::Text => self.text_chunk(index, "", None, Some(ending)),
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
        index: u32,
        delta: ChatDelta<'_>,
        logs: Option<Vec<TokenLog>>,
        ending: Option<Ending>,
    ) -> String {
        let (logprobs, finish_reason) = (logs.map(Into::into), ending.map(Ending::name));
        let choice = ChatChunkChoice { index, delta, logprobs, finish_reason };
        self.json("chat.completion.chunk", &[choice], self.include_usage.then_some(None))
    }

    fn text_chunk(
        &self,
        index: u32,
        text: &str,
        logs: Option<Vec<TokenLog>>,
        ending: Option<Ending>,
    ) -> String {
        let (logprobs, finish_reason) = (logs.map(Into::into), ending.map(Ending::name));
        let choice = TextChoice { text: text.into(), index, logprobs, finish_reason };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(kind: Kind, include_usage: bool) -> Reply {
        Reply { kind, id: "id-1".into(), created: 7, model: "toy".into(), include_usage }
    }

    fn whole(text: &str, ending: Ending) -> Whole {
        Whole { text: text.into(), calls: Vec::new(), logs: None, ending }
    }

    #[test]
    fn calls_have_ids_and_come_in_pieces() {
        let chat = reply(Kind::Chat, false);
        let call = |name: Option<&str>, arguments: &str| CallDelta {
            index: 0,
            name: name.map(str::to_owned),
            arguments: arguments.into(),
        };
        let calls = vec![call(Some("f"), "{}")];
        let json = chat.whole(vec![Whole { calls, ..whole("", Ending::ToolCalls) }], COUNTS);
        let expected = r#""message":{"role":"assistant","content":null,"refusal":null,"tool_calls":[{"id":"call_1000","type":"function","function":{"name":"f","arguments":"{}"}}]},"logprobs":null,"finish_reason":"tool_calls""#;
        assert!(json.contains(expected), "{json}");
        let first = chat.delta(1, Delta { calls: vec![call(Some("f"), "{")], ..Default::default() });
        let expected = r#"[{"index":1,"delta":{"tool_calls":[{"index":0,"id":"call_1100","type":"function","function":{"name":"f","arguments":"{"}}]},"logprobs":null,"finish_reason":null}]"#;
        assert!(first.len() == 1 && first[0].contains(expected), "{first:?}");
        let next = chat.delta(1, Delta { calls: vec![call(None, "}")], ..Default::default() });
        assert!(
            next[0].contains(r#""delta":{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}"#),
            "{next:?}"
        );
    }

    const COUNTS: Counts = Counts { prompt_tokens: 20, completion_tokens: 2, cached_tokens: 16 };
    const USAGE: &str = r#""usage":{"prompt_tokens":20,"completion_tokens":2,"total_tokens":22,"prompt_tokens_details":{"cached_tokens":16}}"#;

    #[test]
    fn chat_shapes() {
        let chat = reply(Kind::Chat, true);
        let head = r#""created":7,"model":"toy","choices":"#;
        assert_eq!(
            chat.whole(vec![whole("hi", Ending::Length)], COUNTS),
            format!(
                r#"{{"id":"id-1","object":"chat.completion",{head}[{{"index":0,"message":{{"role":"assistant","content":"hi","refusal":null}},"logprobs":null,"finish_reason":"length"}}],{USAGE}}}"#
            )
        );
        let chunk = format!(r#"{{"id":"id-1","object":"chat.completion.chunk",{head}"#);
        assert_eq!(
            chat.opening(0).unwrap(),
            format!(
                r#"{chunk}[{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}],"usage":null}}"#
            )
        );
        assert_eq!(
            chat.closing(0, Ending::Stop),
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
        assert_eq!(text.opening(0), None);
        assert_eq!(
            text.delta(0, Delta { text: "a".into(), ..Default::default() }),
            [format!(r#"{head}[{{"text":"a","index":0,"logprobs":null,"finish_reason":null}}]}}"#)]
        );
        assert_eq!(text.usage(COUNTS), None);
        assert_eq!(
            text.whole(vec![whole("ab", Ending::Stop)], COUNTS),
            format!(r#"{head}[{{"text":"ab","index":0,"logprobs":null,"finish_reason":"stop"}}],{USAGE}}}"#)
        );
    }
}
