//! What the router has to know of a request that another server answers: a look at its body, which goes on as
//! it came.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The fields that matter; all others are the engine's business.
#[derive(Debug, Deserialize)]
pub(crate) struct Peek<'a> {
    #[serde(borrow)]
    pub(crate) model: Option<Cow<'a, str>>,
    pub(crate) stream: Option<bool>,
    pub(crate) priority: Option<i32>,
    pub(crate) deadline_ms: Option<u64>,
    #[serde(borrow)]
    pub(crate) messages: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) input: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) cache_salt: Option<Cow<'a, str>>,
}

impl Peek<'_> {
    pub(crate) fn is_stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// The part of the body that two requests with a common prefix have in common, as it was written.
    pub(crate) fn text(&self) -> &str {
        let raw = self.messages.or(self.prompt).or(self.input);
        raw.map_or("", RawValue::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_sees_the_prompt_as_it_was_written() {
        let body =
            r#"{"model":"m","messages":[{"role":"user","content":"a\nb"}],"stream":true,"tools":[1,2]}"#;
        let peek: Peek<'_> = serde_json::from_str(body).unwrap();
        assert_eq!(peek.model.as_deref(), Some("m"));
        assert_eq!(peek.text(), r#"[{"role":"user","content":"a\nb"}]"#);
        assert!(peek.is_stream());
    }

    #[test]
    fn absent_and_null_are_the_same() {
        let peek: Peek<'_> = serde_json::from_str(r#"{"model":null,"stream":null,"prompt":null}"#).unwrap();
        assert!(peek.model.is_none() && !peek.is_stream());
    }
}
