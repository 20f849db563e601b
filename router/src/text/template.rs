//! A model's chat template: messages in, prompt text out.
//!
//! Rendered as the template's author tests it: the usual environment of such templates trims blocks, has
//! `raise_exception`, Python's string methods, and `tools` and `documents` set to none.

use minijinja::{Environment, Error, ErrorKind, context, syntax::SyntaxConfig};

const NAME: &str = "chat";

/// One message, its content already text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChatMessage {
    pub(crate) role: String,
    pub(crate) content: String,
}

/// The template is broken, or does not take these messages.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TemplateError(String);

/// A compiled chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
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
        environment.add_template_owned(NAME, source.to_owned()).map_err(describe)?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The prompt that makes the model answer `messages`.
    pub(crate) fn render(&self, messages: &[ChatMessage]) -> Result<String, TemplateError> {
        let messages: Vec<_> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let variables = context! {
            messages,
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools => (),
            documents => (),
        };
        let template = self.environment.get_template(NAME).map_err(describe)?;
        template.render(variables).map_err(describe)
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
        ChatMessage { role: "user".into(), content: content.into() }
    }

    fn check(source: &str, expected: Result<&str, &str>) {
        let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        let rendered = template.render(&[user(" hi ")]);
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
    fn a_template_can_refuse() {
        check("{{ raise_exception('roles must alternate') }}", Err("roles must alternate"));
    }

    #[test]
    fn a_broken_template_is_an_error() {
        assert!(ChatTemplate::new("{% for x %}", "", "").is_err());
    }
}
