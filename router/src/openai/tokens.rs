//! The tokens of a prompt that another engine will evaluate: to know what it already has of it.
//!
//! They are made as the engine makes them, with its model's chat template and vocabulary, control tokens
//! included. What cannot be made here (images, a template that refuses) is compared as text: a guess is worse than
//! none. Of some prompts it is not sure that the engine makes the same of them (tools, calls of tools, content in
//! several parts: engines differ): they are compared both ways.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{App, conversation::called, request::CallBody};
use crate::text::{ChatMessage, ChatTemplate, Defused, Vocabulary};

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Vec<CallBody>>,
    tool_call_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A prompt in tokens.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tokens {
    pub(super) tokens: Vec<u32>,
    /// Whether the engine makes the same ones.
    pub(super) is_sure: bool,
}

/// A chat as a template takes it.
#[derive(Debug, PartialEq)]
struct Chat {
    messages: Vec<ChatMessage>,
    tools: Vec<Value>,
    is_sure: bool,
}

/// What is tokenized.
enum Source {
    Chat(Chat, Arc<ChatTemplate>),
    Text(String),
}

/// Tokens of a chat's `messages` with its `tools`, or of a `prompt`.
pub(super) async fn tokens(
    app: &App,
    messages: Option<&RawValue>,
    tools: Option<&RawValue>,
    prompt: Option<&RawValue>,
) -> Option<Tokens> {
    let source = match (messages, prompt) {
        (Some(messages), _) => Source::Chat(chat(messages.get(), tools)?, app.template.clone()?),
        (None, Some(prompt)) => match serde_json::from_str(prompt.get()).ok()? {
            Prompt::Text(text) => Source::Text(text),
            Prompt::Tokens(tokens) => return Some(Tokens { tokens, is_sure: true }),
        },
        (None, None) => return None,
    };
    let vocabulary = app.vocabulary.clone();
    tokio::task::spawn_blocking(move || tokenize(&vocabulary, source)).await.ok().flatten()
}

fn tokenize(vocabulary: &Vocabulary, source: Source) -> Option<Tokens> {
    let (text, is_sure) = match source {
        Source::Chat(chat, template) => (template.render(&chat.messages, &chat.tools).ok()?, chat.is_sure),
        Source::Text(text) => (text, true),
    };
    let tokens = vocabulary.tokenize(&Defused::plain(text)).ok()?;
    Some(Tokens { tokens, is_sure })
}

fn chat(messages: &str, tools: Option<&RawValue>) -> Option<Chat> {
    let messages: Vec<Message> = serde_json::from_str(messages).ok()?;
    let tools: Vec<Value> = tools.map_or(Some(Vec::new()), |tools| serde_json::from_str(tools.get()).ok())?;
    let mut is_sure = tools.is_empty();
    let messages = messages.into_iter().map(|message| chat_message(message, &mut is_sure));
    Some(Chat { messages: messages.collect::<Option<_>>()?, tools, is_sure })
}

fn chat_message(message: Message, is_sure: &mut bool) -> Option<ChatMessage> {
    let calls = message.tool_calls.unwrap_or_default();
    *is_sure &= calls.is_empty() && message.tool_call_id.is_none();
    let content = match message.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            *is_sure &= parts.len() < 2;
            let texts: Option<Vec<_>> =
                parts.into_iter().map(|part| part.text.filter(|_| part.r#type == "text")).collect();
            texts?.concat()
        }
        None if !calls.is_empty() => String::new(),
        None => return None,
    };
    let tool_calls: Option<_> = calls.into_iter().map(|call| called("tool_calls", call).ok()).collect();
    Some(ChatMessage {
        role: message.role,
        content,
        tool_calls: tool_calls?,
        tool_call_id: message.tool_call_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn tools_and_their_calls_are_in_the_prompt() {
        let template = "{% for t in tools %}{{ t.function.name }};{% endfor %}{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments.a }}{% endfor %},{% endfor %}";
        let template = Arc::new(ChatTemplate::new(template, "", "").unwrap());
        let tools = raw(r#"[{"type": "function", "function": {"name": "f"}}]"#);
        let messages = r#"[{"role": "user", "content": "x"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 7}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "y"}]"#;
        let made = |messages: &str, tools: Option<&RawValue>| {
            let made = tokenize(&Vocabulary::Toy, Source::Chat(chat(messages, tools)?, template.clone()))?;
            let text = made.tokens.iter().map(|token| char::from(*token as u8)).collect::<String>();
            Some((text, made.is_sure))
        };
        let text = |text: &str, is_sure| Some((text.to_owned(), is_sure));
        assert_eq!(made(messages, Some(&tools)), text("f;user:x,assistant:7,tool:y,", false));
        let plain = r#"[{"role": "user", "content": [{"type": "text", "text": "x"}]}]"#;
        assert_eq!(made(plain, None), text("user:x,", true));
        assert_eq!(made(plain, Some(&raw("[]"))), text("user:x,", true));
        assert_eq!(made(plain, Some(&tools)), text("f;user:x,", false));
        let image =
            r#"[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]"#;
        assert_eq!(made(image, None), None);
    }
}
