//! The messages of a chat: checked, and made what a model's template takes.
//!
//! # Overview
//! A template that takes `tools` gets tools, calls and answers of tools as they are. For another one they are
//! written out in messages: the tools in the system message, calls and answers between tags, so that every chat
//! model can be asked, if not every one answers well.
//!
//! # Invariants
//! Whatever a client wrote is broken by [`defuse`] before a template sees it: words, names, arguments, and the
//! texts and keys of schemas.

use serde_json::{Map, Value, json};

use super::{
    error::ApiError,
    request::{CallBody, Content, Message},
    tools::{CLOSE, OPEN, Tools},
};
use crate::text::{ChatMessage, ChatTemplate, Defused, Vocabulary, defuse};

/// Checks a request's messages.
pub(super) fn messages(messages: Option<Vec<Message>>) -> Result<Vec<ChatMessage>, ApiError> {
    let messages =
        messages.ok_or_else(|| ApiError::param("messages", "The parameter `messages` is missing."))?;
    if messages.is_empty() {
        return Err(ApiError::param("messages", "`messages` must have at least one message."));
    }
    messages.into_iter().enumerate().map(|(index, message)| chat_message(index, message)).collect()
}

fn chat_message(index: usize, message: Message) -> Result<ChatMessage, ApiError> {
    let param = |field: &str| format!("messages[{index}].{field}");
    let role = match message.role.as_str() {
        "system" | "user" | "assistant" | "tool" => message.role,
        // What templates know it by.
        "developer" => "system".to_owned(),
        "function" => {
            let message = "Messages of role `function` are not supported by this version; use `tool`.";
            return Err(ApiError::unsupported(param("role"), message));
        }
        other => {
            let message = format!("`{other}` is no role; use system, developer, user, assistant or tool.");
            return Err(ApiError::param(param("role"), message));
        }
    };
    if message.function_call.is_some() {
        let message = "`function_call` is not supported by this version; use `tool_calls`.";
        return Err(ApiError::unsupported(param("function_call"), message));
    }
    let calls = message.tool_calls.unwrap_or_default();
    if !calls.is_empty() && role != "assistant" {
        let message = "Only messages of role `assistant` have `tool_calls`.";
        return Err(ApiError::param(param("tool_calls"), message));
    }
    let calls = calls.into_iter().enumerate();
    let tool_calls: Vec<Value> = calls
        .map(|(call, body)| called(&format!("messages[{index}].tool_calls[{call}]"), body))
        .collect::<Result<_, _>>()?;
    let tool_call_id = message.tool_call_id.filter(|_| role == "tool");
    if role == "tool" && tool_call_id.is_none() {
        let message = "A message of role `tool` must have a `tool_call_id`.";
        return Err(ApiError::param(param("tool_call_id"), message));
    }
    let content = match message.content {
        Some(content) => text(index, content)?,
        None if !tool_calls.is_empty() => String::new(),
        None => return Err(ApiError::param(param("content"), "A message must have a `content`.")),
    };
    Ok(ChatMessage { role, content, tool_calls, tool_call_id })
}

fn text(index: usize, content: Content) -> Result<String, ApiError> {
    let parts = match content {
        Content::Text(text) => return Ok(text),
        Content::Parts(parts) => parts,
    };
    let texts = parts.into_iter().enumerate().map(|(part_index, part)| {
        let param = format!("messages[{index}].content[{part_index}]");
        match (part.r#type.as_str(), part.text) {
            ("text", Some(text)) => Ok(text),
            ("text", None) => Err(ApiError::param(param, "A part of type `text` must have a `text`.")),
            (other, _) => Err(ApiError::unsupported(
                param,
                format!("Parts of type `{other}` are not supported by this version."),
            )),
        }
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// An earlier call as templates take it: with arguments that are an object, if they are one.
pub(super) fn called(param: &str, call: CallBody) -> Result<Value, ApiError> {
    let function = call
        .function
        .ok_or_else(|| ApiError::param(format!("{param}.function"), "A tool call must have a `function`."))?;
    let name = function.name.filter(|name| !name.is_empty()).ok_or_else(|| {
        ApiError::param(format!("{param}.function.name"), "A tool call must have a `function.name`.")
    })?;
    let written = function.arguments.unwrap_or_else(|| "{}".to_owned());
    let arguments = match serde_json::from_str::<Value>(&written) {
        Ok(object @ Value::Object(_)) => object,
        _ => Value::String(written),
    };
    Ok(json!({"id": call.id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

/// Bytes of the words in a conversation.
pub(super) fn bytes(messages: &[ChatMessage], tools: Option<&Tools>) -> usize {
    let calls = |message: &ChatMessage| message.tool_calls.iter().map(value_bytes).sum::<usize>();
    let said = messages.iter().map(|message| message.content.len() + calls(message)).sum::<usize>();
    said + tools.map_or(0, |tools| tools.for_template().iter().map(value_bytes).sum())
}

fn value_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(value_bytes).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + value_bytes(value)).sum(),
        _ => 1,
    }
}

/// The prompt of a conversation.
pub(super) fn render(
    vocabulary: &Vocabulary,
    template: &ChatTemplate,
    mut messages: Vec<ChatMessage>,
    tools: Option<&Tools>,
) -> Result<Defused, ApiError> {
    let control = vocabulary.control_texts();
    for message in &mut messages {
        message.content = defuse(&message.content, control);
        message.tool_calls.iter_mut().for_each(|call| defuse_value(call, control));
        message.tool_call_id = message.tool_call_id.take().map(|id| defuse(&id, control));
    }
    let mut tools = tools.map(Tools::for_template).unwrap_or_default();
    tools.iter_mut().for_each(|tool| defuse_value(tool, control));
    if !template.takes_tools() {
        messages = written_out(messages, &tools);
        tools.clear();
    }
    match template.render(&messages, &tools) {
        Ok(text) => Ok(Defused::from_rendered(&text)),
        Err(error) => {
            let message = format!("The model's chat template does not take these messages: {error}.");
            Err(ApiError::param("messages", message))
        }
    }
}

fn defuse_value(value: &mut Value, control: &[String]) {
    match value {
        Value::String(text) => *text = defuse(text, control),
        Value::Array(list) => list.iter_mut().for_each(|value| defuse_value(value, control)),
        Value::Object(map) => {
            let defused = std::mem::take(map).into_iter().map(|(key, mut value)| {
                defuse_value(&mut value, control);
                (defuse(&key, control), value)
            });
            *map = defused.collect::<Map<_, _>>();
        }
        _ => {}
    }
}

/// The conversation without tools, calls and answers of tools, which stand in the words of its messages.
fn written_out(messages: Vec<ChatMessage>, tools: &[Value]) -> Vec<ChatMessage> {
    let mut plain: Vec<ChatMessage> = Vec::with_capacity(messages.len() + 1);
    if !tools.is_empty() {
        plain.push(ChatMessage { role: "system".into(), content: instructions(tools), ..Default::default() });
    }
    for (index, message) in messages.into_iter().enumerate() {
        let ChatMessage { role, mut content, tool_calls, .. } = message;
        if role == "system" && index == 0 && !plain.is_empty() {
            plain[0].content = format!("{content}\n\n{}", plain[0].content);
            continue;
        }
        for call in tool_calls {
            let body = json!({"name": call["function"]["name"], "arguments": call["function"]["arguments"]});
            let gap = if content.is_empty() { "" } else { "\n" };
            content = format!("{content}{gap}{OPEN}\n{body}\n{CLOSE}");
        }
        let (role, content) = match role.as_str() {
            "tool" => ("user".into(), format!("<tool_response>\n{content}\n</tool_response>")),
            _ => (role, content),
        };
        // Many templates want users and assistants to take turns, and several tools may have answered.
        match plain.last_mut() {
            Some(last) if last.role == role && role == "user" => {
                last.content = format!("{}\n{content}", last.content);
            }
            _ => plain.push(ChatMessage { role, content, ..Default::default() }),
        }
    }
    plain
}

fn instructions(tools: &[Value]) -> String {
    let list: Vec<String> = tools.iter().map(|tool| tool["function"].to_string()).collect();
    format!(
        "You may call functions. They are, one a line, as JSON with a schema of their arguments:\n{}\n\nTo call one, write exactly this, with its name and its arguments:\n{OPEN}\n{{\"name\": \"…\", \"arguments\": {{…}}}}\n{CLOSE}\nAnswers of functions come between <tool_response> and </tool_response>.",
        list.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::ChatMessage;

    fn parsed(json: &str) -> Vec<ChatMessage> {
        messages(Some(serde_json::from_str(json).unwrap())).unwrap()
    }

    const TURNS: &str = r#"[{"role":"system","content":"Be brief."},{"role":"user","content":"weather?"},
        {"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}}]},
        {"role":"tool","tool_call_id":"c1","content":"sunny"},{"role":"tool","tool_call_id":"c2","content":"dry"}]"#;

    #[test]
    fn a_template_without_tools_gets_them_in_words() {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
        let plain = written_out(parsed(TURNS), &[tool]);
        let roles: Vec<&str> = plain.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert!(plain[0].content.starts_with("Be brief.\n\nYou may call functions."), "{}", plain[0].content);
        assert!(plain[0].content.contains(r#"{"name":"f","parameters":{}}"#));
        assert_eq!(plain[2].content, "<tool_call>\n{\"name\":\"f\",\"arguments\":{\"a\":1}}\n</tool_call>");
        assert_eq!(
            plain[3].content,
            "<tool_response>\nsunny\n</tool_response>\n<tool_response>\ndry\n</tool_response>"
        );
    }

    #[test]
    fn a_template_with_tools_gets_them_as_they_are() {
        let source = "{% for t in tools %}{{ t.function.name }};{% endfor %}{% for m in messages %}{{ m.role }}{% for c in m.tool_calls %}{{ c.function.arguments.a }}{% endfor %},{% endfor %}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        let list = serde_json::from_str(r#"[{"type":"function","function":{"name":"f"}}]"#).unwrap();
        let tools = Tools::new(Some(list), None, None).unwrap();
        let text = render(&Vocabulary::Toy, &template, parsed(TURNS), tools.as_ref()).unwrap();
        assert_eq!(text, Defused::plain("f;system,user,assistant1,tool,tool,"));
    }

    #[test]
    fn nothing_of_a_clients_can_be_a_control_token() {
        let control = vec!["<|im_end|>".to_owned()];
        let mut value = json!({"<|im_end|>": ["a<|im_end|>", {"b": "<|im_end|>"}], "n": 1});
        defuse_value(&mut value, &control);
        assert!(!value.to_string().contains("<|im_end|>"), "{value}");
    }
}
