//! The tokens of a prompt that another engine will evaluate: to know what it already has of it.
//!
//! They are made as the engine makes them, with its model's chat template and vocabulary, control tokens
//! included. What cannot be made here (tools, images, a template that refuses) is compared as text: a guess is
//! worse than none.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::App;
use crate::text::{ChatMessage, ChatTemplate, Defused, Vocabulary};

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Content,
    tool_calls: Option<Value>,
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

/// What is tokenized.
enum Source {
    Chat(Vec<ChatMessage>, Arc<ChatTemplate>),
    Text(String),
}

/// Tokens of a chat's `messages`, or of a `prompt`.
pub(super) async fn tokens(
    app: &App,
    messages: Option<&RawValue>,
    prompt: Option<&RawValue>,
) -> Option<Vec<u32>> {
    let source = match (messages, prompt) {
        (Some(messages), _) => Source::Chat(chat(messages.get())?, app.template.clone()?),
        (None, Some(prompt)) => match serde_json::from_str(prompt.get()).ok()? {
            Prompt::Text(text) => Source::Text(text),
            Prompt::Tokens(tokens) => return Some(tokens),
        },
        (None, None) => return None,
    };
    let vocabulary = app.vocabulary.clone();
    tokio::task::spawn_blocking(move || tokenize(&vocabulary, source)).await.ok().flatten()
}

fn tokenize(vocabulary: &Vocabulary, source: Source) -> Option<Vec<u32>> {
    let text = match source {
        Source::Chat(messages, template) => template.render(&messages, &[]).ok()?,
        Source::Text(text) => text,
    };
    vocabulary.tokenize(&Defused::plain(text)).ok()
}

fn chat(messages: &str) -> Option<Vec<ChatMessage>> {
    let messages: Vec<Message> = serde_json::from_str(messages).ok()?;
    messages.into_iter().map(chat_message).collect()
}

fn chat_message(message: Message) -> Option<ChatMessage> {
    if message.tool_calls.is_some_and(|calls| !calls.is_null()) {
        return None;
    }
    let content = match message.content {
        Content::Text(text) => text,
        Content::Parts(parts) => {
            let texts: Option<Vec<_>> =
                parts.into_iter().map(|part| part.text.filter(|_| part.r#type == "text")).collect();
            texts?.concat()
        }
    };
    Some(ChatMessage { role: message.role, content, tool_calls: Vec::new(), tool_call_id: None })
}
