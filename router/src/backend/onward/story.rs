//! What a stream has told its client: enough to have another server go on behind it, and to make what that one says
//! look like more of the same.
//!
//! # Overview
//! Only whole events are told: an event that breaks off with its server was never there. As long as one server speaks,
//! its events go through byte for byte. Another one's are told as the first one's: with the answer's id and time, without
//! a second opening, and with the usage of the whole answer.

use std::borrow::Cow;

use axum::{body::Bytes, http::StatusCode};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, value::RawValue};

use crate::backend::usage::Usage;

/// Most bytes of an event that is not whole yet, and of a text to go on behind.
const BYTES_MAX: usize = 1 << 20;

/// Why nobody can go on behind what was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) enum Bound {
    /// More than one completion.
    Several,
    /// What is no part of the answer's text: calls of tools, reasoning.
    NotText,
    /// An event that makes no sense.
    Unreadable,
    /// More than is kept.
    TooLong,
    /// All streams together have more than is kept.
    Memory,
    /// The text must be something that its beginning decides of: a schema, a grammar, a forced call.
    Constrained,
    /// A prompt behind which no text can be written: tokens, several, an image's place.
    Prompt,
    /// A text that ends where the engine wants, which it has not yet: how much is left nobody knows.
    Length,
}

impl Bound {
    pub(in crate::backend) const ALL: [Self; 8] = [
        Self::Several,
        Self::NotText,
        Self::Unreadable,
        Self::TooLong,
        Self::Memory,
        Self::Constrained,
        Self::Prompt,
        Self::Length,
    ];

    /// Its name in metrics.
    pub(in crate::backend) fn name(self) -> &'static str {
        match self {
            Self::Several => "several",
            Self::NotText => "not_text",
            Self::Unreadable => "unreadable",
            Self::TooLong => "too_long",
            Self::Memory => "memory",
            Self::Constrained => "constrained",
            Self::Prompt => "prompt",
            Self::Length => "length",
        }
    }
}

/// What is told of a piece.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::backend) struct Told {
    pub(in crate::backend) events: Bytes,
    /// The server says that it failed; and the events that say so.
    pub(in crate::backend) failure: Option<(StatusCode, Bytes)>,
    /// What it says that it used.
    pub(in crate::backend) usage: Option<Usage>,
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::backend) struct Story {
    /// An event that is not whole yet.
    rest: Vec<u8>,
    text: String,
    /// Events with text: as many tokens, about. Exactly where the engine tells their ids.
    tokens: u64,
    /// The ids, as long as all of them were told.
    ids: Vec<u32>,
    /// Whether a completion began, and whether one came to its end.
    has_begun: bool,
    is_finished: bool,
    /// Whether the request was refused, in an event.
    is_refused: bool,
    /// Of the answer: its id and its time, in JSON.
    head: Option<(String, String)>,
    bound: Option<Bound>,
    /// Another server speaks, behind what was told.
    behind: Option<Behind>,
}

/// How another server's events are told.
#[derive(Debug)]
struct Behind {
    tokens: u64,
    tells_usage: bool,
    /// Whether the answer's opening was told.
    has_begun: bool,
    /// White space that was told and that this server was not shown: it is not told twice.
    seam: String,
    /// Bytes of the present event's text that are such.
    cut: usize,
}

impl Behind {
    /// Notes how much of a text was told before.
    fn cut(&mut self, said: &str) {
        let mut same = self.seam.bytes().zip(said.bytes()).take_while(|(told, said)| told == said).count();
        while !said.is_char_boundary(same) {
            same -= 1;
        }
        self.cut = same;
        if same < said.len() {
            self.seam.clear();
        } else {
            self.seam.drain(..same);
        }
    }
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    created: Option<&'a RawValue>,
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    usage: Option<Usage>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    text: Option<Text<'a>>,
    #[serde(borrow)]
    finish_reason: Option<&'a RawValue>,
    token_ids: Option<Vec<u32>>,
}

/// Borrowed where it can be.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Text<'a>>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow)]
    function_call: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
}

impl Delta<'_> {
    /// Whether it says something that is not the answer's text.
    fn is_not_text(&self) -> bool {
        let all = [self.tool_calls, self.function_call, self.reasoning_content, self.reasoning, self.refusal];
        all.iter().flatten().any(|said| !matches!(said.get(), "[]" | "\"\""))
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Failure {
    Coded { code: u16 },
    Other(IgnoredAny),
}

impl Failure {
    /// What it is as an answer's status. One that is the request's fault is as good as an answer.
    fn status(&self) -> StatusCode {
        let code = match self {
            Self::Coded { code } => StatusCode::from_u16(*code).ok(),
            Self::Other(_) => None,
        };
        code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl Story {
    /// What of a piece of the stream, and of what was left of those before, can be told.
    pub(in crate::backend) fn push(&mut self, piece: Bytes) -> Told {
        let whole = if self.rest.is_empty() {
            let end = whole_events(&piece);
            self.rest.extend_from_slice(&piece[end..]);
            piece.slice(..end)
        } else {
            self.rest.extend_from_slice(&piece);
            let end = whole_events(&self.rest);
            Bytes::from(self.rest.drain(..end).collect::<Vec<_>>())
        };
        if self.rest.len() > BYTES_MAX {
            self.bind(Bound::TooLong);
            if self.behind.is_some() {
                // What cannot be told as the first one's is not told.
                self.rest = Vec::new();
                return Told { failure: Some((StatusCode::BAD_GATEWAY, Bytes::new())), ..Told::default() };
            }
        }
        if self.bound.is_some() && self.behind.is_none() {
            let rest = std::mem::take(&mut self.rest);
            let events: Bytes = if rest.is_empty() { whole } else { [&whole, &*rest].concat().into() };
            return Told { usage: Usage::of_events(&events), events, failure: None };
        }
        self.tell(whole)
    }

    fn tell(&mut self, whole: Bytes) -> Told {
        let mut retold = Vec::new();
        // Where the present event begins, and where the line behind.
        let (mut event, mut at) = (0, 0);
        let (mut failure, mut usage) = (None, None);
        for line in whole.split_inclusive(|byte| *byte == b'\n') {
            at += line.len();
            let line = line.trim_ascii();
            if line.is_empty() {
                event = at;
            }
            let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else {
                if line.starts_with(b":") {
                    retold.extend_from_slice(&[line, b"\n\n"].concat());
                }
                continue;
            };
            if let Some(status) = self.note(data, &mut usage) {
                failure = Some((status, whole.slice(event..)));
                at = event;
                break;
            }
            if let Some(data) = self.retell(data) {
                retold.extend_from_slice(&[b"data: ", &*data, b"\n\n"].concat());
            }
        }
        let events = if self.behind.is_some() { retold.into() } else { whole.slice(..at) };
        Told { events, failure, usage }
    }

    /// Takes an event in; the status if it says that its server failed.
    fn note(&mut self, data: &[u8], usage: &mut Option<Usage>) -> Option<StatusCode> {
        if let Some(behind) = &mut self.behind {
            behind.cut = 0;
        }
        if data == b"[DONE]" {
            return None;
        }
        let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data) else {
            self.bind(Bound::Unreadable);
            return None;
        };
        if let Some(failure) = &chunk.error {
            let status = failure.status();
            // Behind some text the request was good enough, whatever an engine calls it.
            self.is_refused = status.is_client_error() && self.tokens == 0;
            return (!self.is_refused).then_some(status);
        }
        if self.head.is_none()
            && let Some(id) = chunk.id
        {
            let created = chunk.created.map_or("0", RawValue::get);
            self.head = Some((id.get().to_owned(), created.to_owned()));
        }
        *usage = chunk.usage.or(usage.take());
        let choices = chunk.choices.unwrap_or_default();
        if choices.len() > 1 || choices.iter().any(|choice| choice.index.unwrap_or(0) > 0) {
            self.bind(Bound::Several);
        }
        for choice in choices {
            self.has_begun = true;
            self.is_finished |= choice.finish_reason.is_some_and(|reason| reason.get() != "\"\"");
            if choice.delta.as_ref().is_some_and(Delta::is_not_text) {
                self.bind(Bound::NotText);
            }
            let said = choice.delta.and_then(|delta| delta.content).or(choice.text);
            let said = said.map_or(Cow::Borrowed(""), |Text(said)| said);
            let said = match &mut self.behind {
                None => &*said,
                Some(behind) => {
                    behind.cut(&said);
                    &said[behind.cut..]
                }
            };
            let ids = choice.token_ids.unwrap_or_default();
            if self.text.len() + said.len() > BYTES_MAX || self.ids.len() + ids.len() > BYTES_MAX / 4 {
                self.bind(Bound::TooLong);
            }
            let has_all = self.ids.len() as u64 == self.tokens;
            self.tokens += (ids.len() as u64).max(u64::from(!said.is_empty()));
            if self.bound.is_none() {
                self.text.push_str(said);
                if has_all {
                    self.ids.extend(ids);
                }
            }
        }
        None
    }

    /// Another server's event as the first one's; nothing if it says nothing new.
    fn retell(&self, data: &[u8]) -> Option<Vec<u8>> {
        let Behind { tokens, tells_usage, has_begun, cut, .. } = *self.behind.as_ref()?;
        let Ok(mut event) = serde_json::from_slice::<Value>(data) else { return Some(data.to_vec()) };
        if let Some((id, created)) = &self.head {
            for (name, json) in [("id", id), ("created", created)] {
                if let (Some(field), Ok(value)) = (event.get_mut(name), serde_json::from_str(json)) {
                    *field = value;
                }
            }
        }
        if let Some(usage) = event.get_mut("usage") {
            whole_usage(usage, tokens);
        }
        let choices = event.get_mut("choices").and_then(Value::as_array_mut);
        let says_something = choices.is_none_or(|choices| {
            let mut says_something = choices.is_empty() && tells_usage;
            for choice in choices {
                cut_from(choice.get_mut("text"), cut);
                if let Some(delta) = choice.get_mut("delta").and_then(Value::as_object_mut) {
                    if has_begun {
                        delta.remove("role");
                    }
                    cut_from(delta.get_mut("content"), cut);
                    says_something |= delta.values().any(says);
                }
                says_something |= choice.get("text").is_some_and(says);
                says_something |= choice.get("finish_reason").is_some_and(says);
            }
            says_something
        });
        says_something.then(|| event.to_string().into_bytes())
    }

    /// The last event of a stream that is over, if that has an end but no empty line behind it.
    pub(in crate::backend) fn last(&mut self) -> Option<Bytes> {
        let is_done = self.rest.trim_ascii().ends_with(b"data: [DONE]");
        is_done.then(|| {
            let behind: &[u8] = if self.rest.ends_with(b"\n") { b"\n" } else { b"\n\n" };
            self.rest.extend_from_slice(behind);
            std::mem::take(&mut self.rest).into()
        })
    }

    /// From here on another server speaks, who was asked to go on behind what was told, all but the `seam` of it;
    /// `tells_usage` says whether the client wants to hear what it used.
    pub(in crate::backend) fn goes_on(&mut self, tells_usage: bool, seam: String) {
        self.rest.clear();
        let (tokens, has_begun) = (self.tokens, self.has_begun);
        self.behind = Some(Behind { tokens, tells_usage, has_begun, seam, cut: 0 });
    }

    /// Nobody can go on behind this: from here on all goes through as it comes.
    pub(in crate::backend) fn bind(&mut self, bound: Bound) {
        if self.bound.is_none() {
            (self.bound, self.text, self.ids) = (Some(bound), String::new(), Vec::new());
        }
    }

    pub(in crate::backend) fn bound(&self) -> Option<Bound> {
        self.bound
    }

    /// Whether the answer has come to its end: only its usage and `[DONE]` can be missing.
    pub(in crate::backend) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Whether the engine's answer is a refusal, which is nobody's fault and nothing to go on behind.
    pub(in crate::backend) fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// The answer's text so far.
    pub(in crate::backend) fn text(&self) -> &str {
        &self.text
    }

    /// Tokens of it, about: events that had any, or their ids.
    pub(in crate::backend) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The ids of its tokens, where the engine told all of them.
    pub(in crate::backend) fn token_ids(&self) -> Option<&[u32]> {
        (self.ids.len() as u64 == self.tokens).then_some(&self.ids)
    }

    /// What it keeps.
    pub(in crate::backend) fn bytes(&self) -> usize {
        self.text.capacity() + self.rest.capacity() + self.ids.capacity() * size_of::<u32>()
    }
}

/// Takes the bytes that were told before from an event's text. It was measured on one text of the event; a second one
/// that is shorter has nothing of that.
fn cut_from(text: Option<&mut Value>, cut: usize) {
    if let Some(Value::String(text)) = text
        && text.is_char_boundary(cut)
    {
        text.drain(..cut);
    }
}

/// Makes a usage that of the whole answer, of which so many tokens were told before.
fn whole_usage(usage: &mut Value, told: u64) {
    let count = |usage: &Value, name| usage.get(name).and_then(Value::as_u64);
    if let Some(generated) = count(usage, "completion_tokens") {
        usage["completion_tokens"] = generated.saturating_add(told).into();
    }
    let Some(prompt) = count(usage, "prompt_tokens").map(|prompt| prompt.saturating_sub(told)) else {
        return;
    };
    usage["prompt_tokens"] = prompt.into();
    if let Some(details) = usage.get_mut("prompt_tokens_details")
        && let Some(cached) = count(details, "cached_tokens")
    {
        // What it had of the text before is of no prompt.
        details["cached_tokens"] = cached.min(prompt).into();
    }
}

/// Whether a part of an event says anything.
fn says(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}

/// Where the last whole event ends: behind an empty line, which is at the end of most pieces.
fn whole_events(bytes: &[u8]) -> usize {
    let mut end = bytes.len();
    while let Some(at) = bytes[..end].iter().rposition(|byte| *byte == b'\n') {
        if bytes[..at].ends_with(b"\n") || bytes[..at].ends_with(b"\n\r") {
            return at + 1;
        }
        end = at;
    }
    0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chat(content: &str) -> String {
        let delta = json!({"role": "assistant", "content": content});
        let chunk = json!({"id": "a", "created": 7, "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]});
        format!("data: {chunk}\n\n")
    }

    fn told(story: &mut Story, piece: &str) -> String {
        let told = story.push(Bytes::copy_from_slice(piece.as_bytes()));
        assert!(told.failure.is_none());
        String::from_utf8(told.events.to_vec()).unwrap()
    }

    #[test]
    fn whole_events_go_through_as_they_are_and_are_remembered() {
        let all =
            format!(": ping\n\n{}data: {{\"choices\":[{{\"text\":\"\\u00e9\"}}]}}\r\n\r\n", chat("a b"));
        for cut in 0..=all.len() {
            let Some((first, second)) = all.split_at_checked(cut) else { continue };
            let mut story = Story::default();
            let first = told(&mut story, first);
            assert!(first.is_empty() || first.ends_with("\n\n") || first.ends_with("\r\n\r\n"), "{first:?}");
            assert_eq!(first + &told(&mut story, second), all);
            assert_eq!((story.text(), story.tokens(), story.bound()), ("a b\u{e9}", 2, None));
        }
    }

    #[test]
    fn what_nobody_can_go_on_behind_goes_through() {
        let not_text = |delta: &str| format!("data: {{\"choices\":[{{\"delta\":{delta}}}]}}\n\n");
        for (events, bound) in [
            (not_text(r#"{"tool_calls":[{"index":0}]}"#), Bound::NotText),
            (not_text(r#"{"reasoning_content":"hm"}"#), Bound::NotText),
            (not_text(r#"{"reasoning":"hm"}"#), Bound::NotText),
            ("data: {\"choices\":[{\"index\":1}]}\n\n".into(), Bound::Several),
            ("data: {\"choices\":[{},{}]}\n\n".into(), Bound::Several),
            ("data: no\n\n".into(), Bound::Unreadable),
            (chat(&"x".repeat(BYTES_MAX + 1)), Bound::TooLong),
        ] {
            let mut story = Story::default();
            assert_eq!(told(&mut story, &events), events);
            assert_eq!(story.bound(), Some(bound), "{events:.60}");
            assert_eq!(told(&mut story, "data: {\"half"), "data: {\"half", "no event is held back any more");
        }
        let mut story = Story::default();
        for quiet in [r#"{"tool_calls":[],"reasoning":null,"refusal":null,"content":""}"#, "{}"] {
            told(&mut story, &not_text(quiet));
        }
        assert_eq!((story.bound(), story.tokens()), (None, 0));
        let long = "x".repeat(BYTES_MAX + 1);
        assert_eq!(told(&mut story, &long), long, "an event without an end");
        assert_eq!(story.bound(), Some(Bound::TooLong));
    }

    #[test]
    fn a_server_that_says_that_it_failed_is_not_told() {
        for (error, status) in [
            (r#"{"message":"dead","code":500}"#, 500),
            (r#"{"message":"dead","code":"x"}"#, 500),
            (r#"{"message":"dead","code":503}"#, 503),
            (r#""dead""#, 500),
        ] {
            let mut story = Story::default();
            let failed = format!("data: {{\"error\":{error}}}\n\ndata: [DONE]\n\n");
            let told = story.push(Bytes::from(chat("a") + &failed));
            assert_eq!(told.events, chat("a"));
            assert_eq!(told.failure, Some((StatusCode::from_u16(status).unwrap(), Bytes::from(failed))));
        }
        let refused = "event: error\ndata: {\"error\":{\"message\":\"no\",\"code\":400}}\n\n";
        assert_eq!(told(&mut Story::default(), refused), refused, "the request's own fault");
        let told = Story::default().push(Bytes::from(chat("a") + refused));
        assert_eq!(told.events, chat("a"), "SGLang says 400 whatever happened");
        assert_eq!(told.failure, Some((StatusCode::BAD_REQUEST, refused.into())), "with the event's name");
    }

    #[test]
    fn an_end_without_an_empty_line_is_one() {
        for end in ["data: [DONE]", "data: [DONE]\n", "data: [DONE]\r\n"] {
            let mut story = Story::default();
            assert_eq!(told(&mut story, &(chat("a") + end)), chat("a"));
            let last = story.last().unwrap();
            assert!(last.starts_with(end.as_bytes()));
            assert_eq!(story.push(last.clone()).events, last);
        }
        let mut story = Story::default();
        told(&mut story, "data: {\"half");
        assert_eq!(story.last(), None);
    }

    #[test]
    fn white_space_at_the_seam_is_told_once() {
        let texts = |said: &[&str]| {
            let mut story = Story::default();
            told(&mut story, &chat("a\n\n"));
            story.goes_on(false, "\n\n".into());
            let told: String = said.iter().map(|text| told(&mut story, &chat(text))).collect();
            let texts: Vec<String> = told
                .split("\n\n")
                .filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok())
                .map(|event| event["choices"][0]["delta"]["content"].as_str().unwrap().to_owned())
                .collect();
            (texts, story.text().to_owned(), story.tokens())
        };
        let all = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(texts(&["\n\n", "b"]), (all(&["b"]), "a\n\nb".into(), 2));
        assert_eq!(texts(&["\n", "\n", "\nb"]), (all(&["\nb"]), "a\n\n\nb".into(), 2));
        assert_eq!(texts(&["\n\nb", "\n"]), (all(&["b", "\n"]), "a\n\nb\n".into(), 3));
        assert_eq!(texts(&["b", "\n"]), (all(&["b", "\n"]), "a\n\nb\n".into(), 3));
    }

    #[test]
    fn what_was_measured_on_one_text_is_not_cut_from_another() {
        let mut story = Story::default();
        told(&mut story, &chat("a\n\n"));
        story.goes_on(false, "\n\n".into());
        for (event, said) in [
            (json!({"choices": [{"delta": {"content": "\n"}, "text": ""}]}), None),
            (
                json!({"choices": [{"delta": {"content": "\u{e9}"}}], "usage": {"completion_tokens": -1}}),
                Some("\u{e9}"),
            ),
            (json!({"choices": [{"text": ""}, {"text": "\n"}]}), None),
        ] {
            let told = told(&mut story, &format!("data: {event}\n\n"));
            assert_eq!(!told.is_empty(), said.is_some(), "{told}");
            assert!(told.contains(said.unwrap_or_default()), "{told}");
        }
    }

    #[test]
    fn an_empty_reason_is_no_end_and_a_refusal_is_an_answer() {
        let mut story = Story::default();
        told(&mut story, "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"\"}]}\n\n");
        assert!(!story.is_finished() && !story.is_refused());
        told(&mut story, "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\n");
        assert!(story.is_finished());
        let mut story = Story::default();
        told(&mut story, "data: {\"error\":{\"code\":400}}\n\n");
        assert!(story.is_refused());
    }

    #[test]
    fn an_opening_that_was_not_told_is() {
        let mut story = Story::default();
        told(&mut story, ": ping\n\n");
        story.goes_on(false, String::new());
        let opening =
            "data: {\"id\":\"z\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
        assert_eq!(told(&mut story, &(": ping\n\n".to_owned() + opening)), ": ping\n\n".to_owned() + opening);
        let endless = story.push(Bytes::from("x".repeat(BYTES_MAX + 1)));
        assert_eq!((endless.events.len(), endless.failure.unwrap().0), (0, StatusCode::BAD_GATEWAY));
    }

    #[test]
    fn another_server_goes_on_as_the_first() {
        let mut story = Story::default();
        told(&mut story, &chat(""));
        told(&mut story, &(chat("a") + &chat(" b") + "data: {\"half"));
        story.goes_on(true, String::new());
        let opening = "data: {\"id\":\"z\",\"created\":9,\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
        assert_eq!(told(&mut story, opening), "");
        let more = "data: {\"id\":\"z\",\"created\":9,\"choices\":[{\"delta\":{\"content\":\" c\"},\"finish_reason\":null}],\"usage\":null}\n\n";
        let said = "data: {\"id\":\"a\",\"created\":7,\"choices\":[{\"delta\":{\"content\":\" c\"},\"finish_reason\":null}],\"usage\":null}\n\n";
        assert_eq!(told(&mut story, more), said);
        let end = "data: {\"id\":\"z\",\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
        assert_eq!(told(&mut story, end), end.replace("\"z\"", "\"a\""));
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"total_tokens\":15,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";
        let whole = usage.replace("12", "10").replace(":3}", ":5}");
        assert_eq!(told(&mut story, usage), whole);
        let cached = |prompt, cached| {
            format!(
                "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":{prompt},\"prompt_tokens_details\":{{\"cached_tokens\":{cached}}}}}}}\n\n"
            )
        };
        assert_eq!(told(&mut story, &cached(12, 11)), cached(10, 10));
        assert!(story.is_finished());
        assert_eq!((story.text(), story.tokens()), ("a b c", 3));
        story.goes_on(false, String::new());
        assert_eq!(told(&mut story, usage), "data: [DONE]\n\n", "nobody asked for it");
    }
}
