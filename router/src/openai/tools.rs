//! Tools a model may call: what a request offers, and the grammar that makes the model call one.
//!
//! # Overview
//! A call is text of the form that many models were trained on, whatever the model:
//! `<tool_call>\n{"name": "f", "arguments": {…}}\n</tool_call>`. `required` and a named tool are grammars over
//! that form; `auto` is none, and [`calls`](super::calls) finds the calls in what the model writes. With `auto`
//! and a response format the grammar has both, since else the format would forbid calls.
//!
//! # Limits
//! [`TOOLS_MAX`] tools of type `function`; [`CALLS_MAX`] calls an answer under a grammar.

use serde_json::{Value, json};

use super::{
    error::ApiError,
    format::{Form, NAMES, is_name, literal, schema},
    request::ToolBody,
};

const TOOLS_MAX: usize = 128;
const CALLS_MAX: usize = 16;

/// What stands before a call, and behind it.
pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

/// Which tools the model is to call.
#[derive(Debug, Clone, PartialEq)]
enum Choice {
    Auto,
    Required,
    Named(String),
}

#[derive(Debug, Clone, PartialEq)]
struct Tool {
    name: String,
    description: Option<String>,
    parameters: serde_json::Map<String, Value>,
    strict: bool,
}

/// The tools of a request, which may be called.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tools {
    list: Vec<Tool>,
    choice: Choice,
    parallel: bool,
}

impl Tools {
    /// Checks `tools` and `tool_choice`; `None` when nothing may be called.
    pub(super) fn new(
        tools: Option<Vec<ToolBody>>,
        choice: Option<Value>,
        parallel: Option<bool>,
    ) -> Result<Option<Self>, ApiError> {
        let tools = tools.unwrap_or_default();
        let choice = match choice {
            None | Some(Value::Null) => Choice::Auto,
            Some(choice) if tools.is_empty() => match choice.as_str() {
                Some("none" | "auto") => return Ok(None),
                _ => return Err(ApiError::param("tool_choice", "`tool_choice` goes with `tools` only.")),
            },
            Some(choice) => match self::choice(&choice)? {
                Some(choice) => choice,
                None => return Ok(None),
            },
        };
        if tools.is_empty() {
            return Ok(None);
        }
        if tools.len() > TOOLS_MAX {
            let message = format!("`tools` has {} tools, but at most {TOOLS_MAX} are allowed.", tools.len());
            return Err(ApiError::param("tools", message));
        }
        let list = tools.into_iter().enumerate().map(|(index, tool)| self::tool(index, tool));
        let list = list.collect::<Result<Vec<_>, _>>()?;
        for (index, tool) in list.iter().enumerate() {
            if list[..index].iter().any(|other| other.name == tool.name) {
                let param = format!("tools[{index}].function.name");
                return Err(ApiError::param(param, format!("There are two tools of name `{}`.", tool.name)));
            }
        }
        if let Choice::Named(name) = &choice
            && !list.iter().any(|tool| tool.name == *name)
        {
            let message = format!("`tool_choice` names `{name}`, which is not among `tools`.");
            return Err(ApiError::param("tool_choice", message));
        }
        Ok(Some(Self { list, choice, parallel: parallel.unwrap_or(true) }))
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.list.iter().map(|tool| tool.name.clone()).collect()
    }

    /// Whether the model may also answer in text that is no call.
    pub(super) fn is_auto(&self) -> bool {
        self.choice == Choice::Auto
    }

    /// Whether an answer has one call at most.
    pub(super) fn is_single(&self) -> bool {
        !self.parallel || matches!(self.choice, Choice::Named(_))
    }

    /// The grammar that brings a call about, if it has to be; `form` is what text that is no call must be.
    pub(super) fn grammar(&self, form: Option<&Form>) -> Option<String> {
        let start = match (&self.choice, form) {
            (Choice::Auto, None) => return None,
            (Choice::Auto, Some(form)) => format!("start: calls | text\ntext: {}\n", form.rule()),
            _ => "start: calls\n".to_owned(),
        };
        let more = match self.is_single() {
            true => String::new(),
            false => format!(r#" ("\n" call){{0,{}}}"#, CALLS_MAX - 1),
        };
        let called = |tool: &&Tool| match &self.choice {
            Choice::Named(name) => tool.name == *name,
            _ => true,
        };
        let mut rules = String::new();
        let mut bodies = Vec::new();
        for (index, tool) in self.list.iter().filter(called).enumerate() {
            // A name has nothing that would have to be escaped.
            let head = format!(r#""{{\"name\": \"{}\", \"arguments\": ""#, tool.name);
            let arguments = literal(tool.parameters.clone(), tool.strict);
            rules.push_str(&format!(
                "body{index}: {head} args{index} \"}}\"\nargs{index}: %json {arguments}\n"
            ));
            bodies.push(format!("body{index}"));
        }
        let call = format!("call: \"{OPEN}\\n\" ({}) \"\\n{CLOSE}\"\n", bodies.join(" | "));
        Some(format!("{start}calls: call{more}\n{call}{rules}"))
    }

    /// The tools as chat templates take them.
    pub(super) fn for_template(&self) -> Vec<Value> {
        let tool = |tool: &Tool| {
            let mut function = json!({"name": tool.name});
            if let Some(description) = &tool.description {
                function["description"] = json!(description);
            }
            function["parameters"] = Value::Object(tool.parameters.clone());
            json!({"type": "function", "function": function})
        };
        self.list.iter().map(tool).collect()
    }
}

/// `tool_choice`; `None` for "none".
fn choice(choice: &Value) -> Result<Option<Choice>, ApiError> {
    let bad = || {
        let message = "`tool_choice` must be \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": …}}.";
        ApiError::param("tool_choice", message)
    };
    match choice {
        Value::String(word) => match word.as_str() {
            "none" => Ok(None),
            "auto" => Ok(Some(Choice::Auto)),
            "required" => Ok(Some(Choice::Required)),
            _ => Err(bad()),
        },
        Value::Object(named) if named.get("type").and_then(Value::as_str) == Some("function") => {
            let name = choice["function"]["name"].as_str().ok_or_else(bad)?;
            Ok(Some(Choice::Named(name.to_owned())))
        }
        Value::Object(_) => Err(ApiError::unsupported(
            "tool_choice",
            "A `tool_choice` that is an object must be of type `function` in this version.",
        )),
        _ => Err(bad()),
    }
}

fn tool(index: usize, body: ToolBody) -> Result<Tool, ApiError> {
    let param = |rest: &str| format!("tools[{index}]{rest}");
    if body.r#type != "function" {
        let message = format!("Tools of type `{}` are not supported by this version.", body.r#type);
        return Err(ApiError::unsupported(param(".type"), message));
    }
    let function = body.function.ok_or_else(|| {
        ApiError::param(param(".function"), "A tool of type `function` must have a `function`.")
    })?;
    let name = function.name.unwrap_or_default();
    if !is_name(&name) {
        return Err(ApiError::param(param(".function.name"), format!("A tool's name must be {NAMES}.")));
    }
    let parameters = function.parameters.unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    let mut parameters = schema(parameters, &param(".function.parameters"))?;
    parameters.entry("type").or_insert_with(|| "object".into());
    let strict = function.strict.unwrap_or(false);
    Ok(Tool { name, description: function.description, parameters, strict })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(choice: &str, parallel: bool) -> Result<Option<Tools>, String> {
        let list = r#"[{"type":"function","function":{"name":"f","description":"d","parameters":{"properties":{"x":{"type":"integer"}}}}},
            {"type":"function","function":{"name":"g"}}]"#;
        let list = serde_json::from_str(list).unwrap();
        let choice = serde_json::from_str(choice).unwrap();
        Tools::new(Some(list), Some(choice), Some(parallel)).map_err(|error| error.to_json())
    }

    #[test]
    fn the_choice_decides_the_grammar() {
        assert_eq!(tools("\"none\"", true), Ok(None));
        assert_eq!(tools("\"auto\"", true).unwrap().unwrap().grammar(None), None);
        let required = tools("\"required\"", true).unwrap().unwrap().grammar(None).unwrap();
        for part in [
            "calls: call (\"\\n\" call){0,15}",
            "(body0 | body1)",
            r#"body0: "{\"name\": \"f\", \"arguments\": " args0 "}""#,
        ] {
            assert!(required.contains(part), "{part} is not in {required}");
        }
        let one = tools("\"required\"", false).unwrap().unwrap().grammar(None).unwrap();
        assert!(one.contains("calls: call\n"), "{one}");
        let named = tools(r#"{"type":"function","function":{"name":"g"}}"#, true).unwrap().unwrap();
        let grammar = named.grammar(None).unwrap();
        assert!(
            grammar.contains("calls: call\n")
                && grammar.contains("(body0)")
                && !grammar.contains("\\\"f\\\"")
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |choice: &str, words: &str| {
            let error = tools(choice, true).unwrap_err();
            assert!(error.contains(words) && error.contains(r#""param":"tool_choice""#), "{error}");
        };
        check("\"any\"", "must be");
        check("3", "must be");
        check(r#"{"type":"function"}"#, "must be");
        check(r#"{"type":"allowed_tools"}"#, "of type `function`");
        check(r#"{"type":"function","function":{"name":"h"}}"#, "not among `tools`");
        let list = |json: &str| {
            let list = serde_json::from_str(json).unwrap();
            Tools::new(Some(list), None, None).unwrap_err().to_json()
        };
        assert!(list(r#"[{"type":"web_search"}]"#).contains("tools[0].type"));
        assert!(list(r#"[{"type":"function"}]"#).contains("tools[0].function"));
        assert!(list(r#"[{"type":"function","function":{"name":"a b"}}]"#).contains("1 to 64 letters"));
        assert!(
            list(r#"[{"type":"function","function":{"name":"a","parameters":3}}]"#).contains("JSON schema")
        );
        let twice = r#"{"type":"function","function":{"name":"a"}}"#;
        assert!(list(&format!("[{twice},{twice}]")).contains("two tools"));
    }
}
