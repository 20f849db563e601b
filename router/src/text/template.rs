//! A model's chat template: messages in, prompt text out.
//!
//! Rendered as the template's author tests it: the usual environment of such templates trims blocks, has
//! `raise_exception`, Python's string methods, and `tools` and `documents` set to none.

use std::io::{self, Write};

use minijinja::{
    Environment, Error, ErrorKind, Value as Template, context,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use serde::Serialize;
use serde_json::{
    Serializer, Value,
    ser::{Formatter, PrettyFormatter},
};

const NAME: &str = "chat";

/// One message, its content already text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ChatMessage {
    pub(crate) role: String,
    pub(crate) content: String,
    /// Calls that an answer made, as templates take them: `{"type", "id", "function": {"name", "arguments"}}`.
    pub(crate) tool_calls: Vec<Value>,
    /// Which call a tool's message answers.
    pub(crate) tool_call_id: Option<String>,
}

/// The template is broken, or does not take these messages.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TemplateError(String);

/// A compiled chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    takes_tools: bool,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are the texts of the tokens that begin and end a sequence.
    pub(crate) fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(describe)?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source.to_owned()).map_err(describe)?;
        let takes_tools = {
            let template = environment.get_template(NAME).map_err(describe)?;
            template.undeclared_variables(false).contains("tools")
        };
        Ok(Self { environment, takes_tools, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// Whether it renders tools and their calls itself.
    pub(crate) fn takes_tools(&self) -> bool {
        self.takes_tools
    }

    /// The prompt that makes the model answer `messages`.
    pub(crate) fn render(&self, messages: &[ChatMessage], tools: &[Value]) -> Result<String, TemplateError> {
        let message = |message: &ChatMessage| {
            let mut fields = vec![
                ("role", Template::from(message.role.as_str())),
                ("content", Template::from(message.content.as_str())),
            ];
            // Templates ask whether they are there at all.
            if !message.tool_calls.is_empty() {
                fields.push(("tool_calls", Template::from(Serde(&message.tool_calls))));
            }
            if let Some(id) = &message.tool_call_id {
                fields.push(("tool_call_id", Template::from(id.as_str())));
            }
            Template::from_pairs(fields)
        };
        let messages: Vec<_> = messages.iter().map(message).collect();
        let tools = if tools.is_empty() { Template::from(()) } else { Template::from(Serde(tools)) };
        let variables = context! {
            messages,
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools,
            documents => (),
        };
        let template = self.environment.get_template(NAME).map_err(describe)?;
        template.render(variables).map_err(describe)
    }
}

/// JSON as Python writes it, which is what models were trained on: the built-in filter escapes `<` and `>`.
fn to_json(value: Template, options: Kwargs) -> Result<Template, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Others, like `ensure_ascii`, are taken and are as they mostly are set.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let bad = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut out = Vec::new();
    match indent {
        Some(spaces) => {
            let spaces = " ".repeat(spaces.min(16));
            let format = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, format)).map_err(bad)?;
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)).map_err(bad)?,
    }
    Ok(Template::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

/// `, ` and `: ` between the parts.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The words of the innermost error, without the place in the template, which users do not see.
fn describe(error: Error) -> TemplateError {
    let kind = error.kind();
    TemplateError(error.detail().map_or_else(|| kind.to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(content: &str) -> ChatMessage {
        ChatMessage { role: "user".into(), content: content.into(), ..Default::default() }
    }

    fn check(source: &str, expected: Result<&str, &str>) {
        let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        let rendered = template.render(&[user(" hi ")], &[]);
        assert_eq!(rendered.as_deref().map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn what_chat_templates_use_works() {
        check(
            "{{ bos_token }}{% for m in messages %}\n  {{ m.content.strip() }}\n{% endfor %}",
            Ok("<s>  hi\n"),
        );
        check(
            "{% for m in messages %}{% if m['role'] == 'user' %}{% continue %}{% endif %}x{% endfor %}y",
            Ok("y"),
        );
        check(
            "{{ messages[0]['role'].startswith('us') }}{{ messages[0] | tojson }}",
            Ok(r#"True{"role": "user", "content": " hi "}"#),
        );
        check(
            "{% if tools is none %}{{ messages[-1].content | trim }}{{ eos_token }}{% endif %}",
            Ok("hi</s>"),
        );
        check(
            "{% set ns = namespace(x=1) %}{% for m in messages %}{% set ns.x = 2 %}{% endfor %}{{ ns.x }}",
            Ok("2"),
        );
    }

    #[test]
    fn tools_are_rendered_by_templates_that_take_them() {
        let source = "{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}{% endfor %}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        assert!(template.takes_tools());
        let tool = serde_json::json!({"type": "function", "function": {"name": "<f>", "a": [1, true]}});
        let call = serde_json::json!({"function": {"name": "f", "arguments": {"z": 1, "a": "'é"}}});
        let message = ChatMessage { tool_calls: vec![call], ..user("") };
        assert_eq!(
            template.render(&[message], &[tool]).unwrap(),
            "{\"type\": \"function\", \"function\": {\"name\": \"<f>\", \"a\": [1, true]}}\n{\"z\": 1, \"a\": \"'é\"}"
        );
        assert!(!ChatTemplate::new("{{ messages[0].content }}", "", "").unwrap().takes_tools());
    }

    #[test]
    fn a_template_can_refuse() {
        check("{{ raise_exception('roles must alternate') }}", Err("roles must alternate"));
    }

    #[test]
    fn a_broken_template_is_an_error() {
        assert!(ChatTemplate::new("{% for x %}", "", "").is_err());
    }
}
