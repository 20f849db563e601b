//! The request that has another server go on behind an answer's beginning.
//!
//! # Overview
//! Text completions: the prompt with the text behind it; of a prompt in tokens, with the tokens, where the client has the
//! engine tell their ids (`return_token_ids`). Chats: the messages and, as the last one, the assistant's with
//! the text so far, which the engine is told to continue instead of to answer (`continue_final_message` of vLLM and
//! SGLang; llama.cpp does so with any last message of an assistant). Templates may trim that message, so white space at
//! its end is left to the engine, and what it says of that again is not told. What may still be generated is less by what was,
//! and the usage is asked for, to know what was computed again. All other fields stay byte for byte.

use std::borrow::Cow;

use axum::body::Bytes;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::story::{Bound, Story};
use crate::backend::fields::Fields;

/// Fields that constrain an answer from its beginning on, in engines' words.
const CONSTRAINTS: [&str; 10] = [
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "grammar",
    "json_schema",
    "regex",
    "ebnf",
    "structural_tag",
];

#[derive(Deserialize)]
struct Asked<'a> {
    n: Option<u64>,
    best_of: Option<u64>,
    use_beam_search: Option<bool>,
    echo: Option<bool>,
    #[serde(borrow)]
    suffix: Option<&'a RawValue>,
    #[serde(borrow)]
    truncate_prompt_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    response_format: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_choice: Option<&'a RawValue>,
    continue_final_message: Option<bool>,
    #[serde(borrow)]
    messages: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    min_tokens: Option<u64>,
    #[serde(borrow)]
    stream_options: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Format<'a> {
    #[serde(borrow)]
    r#type: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Option<Cow<'a, str>>,
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
}

/// What engines but llama.cpp generate at most behind a prompt whose request says nothing of it.
const TOKENS_DEFAULT: u64 = 16;

/// A request that goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Onward {
    pub(super) body: Bytes,
    /// Whether its client wants to hear what it used.
    pub(super) tells_usage: bool,
    /// White space at the end of what was told that the engine is not shown.
    pub(super) seam: String,
}

/// The request of `body`'s client that goes on behind a story; an empty one if that came to its end.
pub(super) fn onward(body: &[u8], story: &Story) -> Result<Onward, Bound> {
    if let Some(bound) = story.bound() {
        return Err(bound);
    }
    let (Some(mut fields), Ok(asked)) = (Fields::parse(body), serde_json::from_slice::<Asked<'_>>(body))
    else {
        return Err(Bound::Prompt);
    };
    if asked.n.unwrap_or(1) != 1 || asked.best_of.unwrap_or(1) != 1 || asked.use_beam_search == Some(true) {
        return Err(Bound::Several);
    }
    // Of several prompts one may have ended, and another not begun.
    let prompt = asked.prompt.map(|prompt| serde_json::from_str::<Prompt>(prompt.get()));
    let prompt = prompt.transpose().map_err(|_| Bound::Several)?;
    if story.is_finished() {
        return Ok(Onward { body: Bytes::new(), tells_usage: false, seam: String::new() });
    }
    let options = asked.stream_options;
    let known: StreamOptions =
        options.and_then(|options| serde_json::from_str(options.get()).ok()).unwrap_or_default();
    let tells_usage = known.include_usage.unwrap_or(false);
    let mut options = options.and_then(|options| Fields::parse(options.get().as_bytes())).unwrap_or_default();
    options.set("include_usage", "true");
    let options = text_of(&options);
    fields.set("stream_options", options);
    let (text, has_ids) = (story.text(), story.token_ids().is_some_and(|ids| !ids.is_empty()));
    let shown = if asked.messages.is_some() { text.trim_end() } else { text };
    let seam = text[shown.len()..].to_owned();
    // Of an answer that did not begin there is nothing to go on behind.
    if shown.is_empty() && !has_ids {
        return Ok(Onward { body: fields.to_bytes(), tells_usage, seam });
    }
    if CONSTRAINTS.iter().any(|name| fields.has_value(name)) || !is_free(&asked) {
        return Err(Bound::Constrained);
    }
    if asked.echo == Some(true) || asked.suffix.is_some() || asked.truncate_prompt_tokens.is_some() {
        return Err(Bound::Prompt);
    }
    match (&asked.messages, prompt) {
        (Some(messages), _) => {
            let is_continued = asked.continue_final_message == Some(true);
            if shown.is_empty() {
                return Err(Bound::NotText);
            }
            fields.set("messages", behind_messages(messages, shown, is_continued)?);
            fields.set("continue_final_message", "true");
            fields.set("add_generation_prompt", "false");
        }
        (None, Some(prompt)) => {
            let is_open = asked.max_tokens.is_none() && asked.max_completion_tokens.is_none();
            if is_open && story.tokens() < TOKENS_DEFAULT {
                return Err(Bound::Length);
            }
            fields.set("prompt", behind_prompt(prompt, story)?);
        }
        (None, None) => return Err(Bound::Prompt),
    }
    let told = story.tokens();
    for (name, most) in
        [("max_tokens", asked.max_tokens), ("max_completion_tokens", asked.max_completion_tokens)]
    {
        if let Some(most) = most {
            fields.set(name, most.saturating_sub(told).max(1).to_string());
        }
    }
    if let Some(least) = asked.min_tokens {
        fields.set("min_tokens", least.saturating_sub(told).to_string());
    }
    Ok(Onward { body: fields.to_bytes(), tells_usage, seam })
}

/// Whether the text may be any.
fn is_free(asked: &Asked<'_>) -> bool {
    let format =
        asked.response_format.and_then(|format| serde_json::from_str::<Format<'_>>(format.get()).ok());
    let any_text = asked.response_format.is_none()
        || format.is_some_and(|format| format.r#type.as_deref().is_none_or(|name| name == "text"));
    any_text && asked.tool_choice.is_none_or(|choice| matches!(choice.get(), "\"auto\"" | "\"none\""))
}

fn text_of(fields: &Fields<'_>) -> String {
    String::from_utf8_lossy(&fields.to_bytes()).into_owned()
}

fn behind_messages(messages: &[&RawValue], text: &str, is_continued: bool) -> Result<String, Bound> {
    let mut all: Vec<Cow<'_, str>> = messages.iter().map(|message| message.get().into()).collect();
    if is_continued {
        let last = all.pop().ok_or(Bound::Prompt)?;
        let message: Message<'_> = serde_json::from_str(&last).map_err(|_| Bound::Prompt)?;
        let (Some("assistant"), Some(content)) = (message.role.as_deref(), &message.content) else {
            return Err(Bound::Prompt);
        };
        let content = Value::from(format!("{content}{text}")).to_string();
        let mut fields = Fields::parse(last.as_bytes()).ok_or(Bound::Prompt)?;
        fields.set("content", content);
        all.push(text_of(&fields).into());
    } else {
        all.push(serde_json::json!({"role": "assistant", "content": text}).to_string().into());
    }
    Ok(format!("[{}]", all.join(",")))
}

/// A prompt, or a list of one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    OneText([String; 1]),
    OneTokens([Vec<u32>; 1]),
}

fn behind_prompt(prompt: Prompt, story: &Story) -> Result<String, Bound> {
    match prompt {
        Prompt::Text(text) | Prompt::OneText([text]) => Ok(Value::from(text + story.text()).to_string()),
        Prompt::Tokens(tokens) | Prompt::OneTokens([tokens]) => {
            let told = story.token_ids().ok_or(Bound::Prompt)?;
            Ok(Value::from([&tokens, told].concat()).to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_go_on_where_their_ids_are_told() {
        let told = |events: &[Value]| {
            let mut story = Story::default();
            for choice in events {
                let event = json!({"choices": [choice]});
                story.push(Bytes::from(format!("data: {event}\n\n")));
            }
            let body = json!({"prompt": [1, 2], "max_tokens": 10}).to_string();
            let onward = onward(body.as_bytes(), &story)?;
            let sent: Value = serde_json::from_slice(&onward.body).unwrap();
            Ok((sent["prompt"].clone(), sent["max_tokens"].clone()))
        };
        let all = [json!({"text": "a", "token_ids": [3]}), json!({"text": "", "token_ids": [4, 5]})];
        assert_eq!(told(&all), Ok((json!([1, 2, 3, 4, 5]), json!(7))));
        let some = [json!({"text": "a"}), json!({"text": "b", "token_ids": [4]})];
        assert_eq!(told(&some), Err(Bound::Prompt));
    }

    fn story(texts: &[&str]) -> Story {
        let mut story = Story::default();
        for text in texts {
            let event = json!({"choices": [{"text": text}]});
            story.push(Bytes::from(format!("data: {event}\n\n")));
        }
        story
    }

    fn asked(body: &Value, texts: &[&str]) -> Result<(Value, bool), Bound> {
        let onward = onward(body.to_string().as_bytes(), &story(texts))?;
        Ok((serde_json::from_slice(&onward.body).unwrap(), onward.tells_usage))
    }

    #[test]
    fn a_text_goes_on_behind_its_prompt() {
        let body = json!({"model": "m", "prompt": "p\u{e9} ", "stream": true, "max_tokens": 5, "min_tokens": 1, "seed": 1});
        let mut sent = body.clone();
        sent["prompt"] = json!("p\u{e9} a b");
        sent["max_tokens"] = json!(3);
        sent["min_tokens"] = json!(0);
        sent["stream_options"] = json!({"include_usage": true});
        assert_eq!(asked(&body, &["a", " b"]), Ok((sent, false)));
        let body =
            json!({"prompt": ["p"], "max_tokens": 1, "stream_options": {"include_usage": true, "x": 1}});
        let sent =
            json!({"prompt": "pa", "max_tokens": 1, "stream_options": {"x": 1, "include_usage": true}});
        assert_eq!(asked(&body, &["a"]), Ok((sent, true)), "of no tokens there would be no end");
    }

    #[test]
    fn a_chat_goes_on_behind_the_assistants_words() {
        let user = json!({"role": "user", "content": [{"type": "text", "text": "hi"}]});
        let body = json!({"messages": [user], "max_completion_tokens": 50, "tools": [1], "tool_choice": "auto",
            "response_format": {"type": "text"}, "stream_options": null, "n": 1});
        let mut sent = body.clone();
        sent["messages"] = json!([user, {"role": "assistant", "content": "so \"far\""}]);
        sent["continue_final_message"] = json!(true);
        sent["add_generation_prompt"] = json!(false);
        sent["max_completion_tokens"] = json!(49);
        sent["stream_options"] = json!({"include_usage": true});
        assert_eq!(asked(&body, &["so \"far\""]), Ok((sent, false)));
        let last = json!({"role": "assistant", "content": "I say", "name": "x"});
        let body = json!({"messages": [user, last], "continue_final_message": true});
        let (sent, _) = asked(&body, &[" so"]).unwrap();
        assert_eq!(
            sent["messages"],
            json!([user, {"role": "assistant", "name": "x", "content": "I say so"}])
        );
    }

    #[test]
    fn white_space_at_the_end_of_a_message_is_left_to_the_engine() {
        let body = json!({"messages": []});
        let onward = onward(body.to_string().as_bytes(), &story(&["a ", "\n"])).unwrap();
        let sent: Value = serde_json::from_slice(&onward.body).unwrap();
        assert_eq!((&sent["messages"][0]["content"], onward.seam.as_str()), (&json!("a"), " \n"));
        assert!(!asked(&body, &["\n"]).unwrap().0["messages"].to_string().contains("assistant"));
    }

    #[test]
    fn what_did_not_begin_is_asked_for_again() {
        let body =
            json!({"messages": [], "tool_choice": "required", "response_format": {"type": "json_object"}});
        let mut sent = body.clone();
        sent["stream_options"] = json!({"include_usage": true});
        assert_eq!(asked(&body, &[]), Ok((sent, false)));
    }

    #[test]
    fn what_its_beginning_decides_of_stays() {
        let check = |field: Value, bound| {
            let mut body = json!({"prompt": "p", "max_tokens": 9});
            body.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
            assert_eq!(asked(&body, &["a"]), Err(bound), "{body}");
        };
        for field in [
            json!({"response_format": {"type": "json_schema"}}),
            json!({"response_format": {"type": "json_object"}}),
            json!({"tool_choice": "required"}),
            json!({"tool_choice": {"type": "function"}}),
            json!({"guided_regex": "a+"}),
            json!({"structured_outputs": {"json": {}}}),
        ] {
            check(field, Bound::Constrained);
        }
        for field in [
            json!({"n": 2}),
            json!({"best_of": 2}),
            json!({"use_beam_search": true}),
            json!({"prompt": ["a", "b"]}),
        ] {
            check(field, Bound::Several);
        }
        for field in [
            json!({"prompt": [1, 2]}),
            json!({"prompt": null}),
            json!({"echo": true}),
            json!({"suffix": "s"}),
            json!({"truncate_prompt_tokens": 5}),
            json!({"messages": [{"role": "user", "content": "x"}], "continue_final_message": true}),
        ] {
            check(field, Bound::Prompt);
        }
        let open = json!({"prompt": "p"});
        assert_eq!(asked(&open, &["a"; 15]), Err(Bound::Length), "16, or as many as it likes");
        assert!(asked(&open, &["a"; 16]).is_ok());
        let free = json!({"prompt": "p", "max_tokens": 9, "guided_json": null, "response_format": null, "tool_choice": null});
        assert!(asked(&free, &["a"]).is_ok());
    }
}
