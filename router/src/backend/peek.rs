//! What the router has to know of a request that another server answers: a look at its body, which goes on as
//! it came, all but a priority.

use std::borrow::Cow;

use axum::body::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::fields::Fields;
use crate::admission;

/// The fields that matter; all others are the engine's business.
#[derive(Debug, Deserialize)]
pub(crate) struct Peek<'a> {
    #[serde(borrow)]
    pub(crate) model: Option<Cow<'a, str>>,
    pub(crate) stream: Option<bool>,
    #[serde(default, deserialize_with = "admission::priority")]
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
    // Whatever they are: what they must be is the engine's business.
    #[serde(borrow)]
    session_id: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_cache_key: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
}

impl Peek<'_> {
    pub(crate) fn is_stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// `body`, of which this is the look, for an engine. The router's queue has acted on the priority; to vLLM it
    /// would mean the opposite, or be an error.
    pub(crate) fn without_priority(&self, body: &Bytes) -> Bytes {
        let fields = Fields::parse(body).filter(|_| self.priority.is_some_and(|priority| priority != 0));
        fields.map_or_else(
            || body.clone(),
            |mut fields| {
                fields.remove("priority");
                fields.to_bytes()
            },
        )
    }

    /// What the request says it belongs with: its session, a key for caches, or who asks, the first there is; as it
    /// was written.
    pub(crate) fn session(&self) -> Option<&str> {
        self.session_id.or(self.prompt_cache_key).or(self.user).map(RawValue::get)
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

    #[test]
    fn a_priority_stays_here() {
        let check = |body: &'static str, priority, sent: &str| {
            let peek: Peek<'_> = serde_json::from_str(body).unwrap();
            assert_eq!(peek.priority, priority, "{body}");
            assert_eq!(peek.without_priority(&Bytes::from_static(body.as_bytes())), sent.as_bytes());
        };
        for body in ["{ }", r#"{ "priority": null }"#, r#"{ "priority": 0 }"#] {
            check(body, if body.contains('0') { Some(0) } else { None }, body);
        }
        check(r#"{"a": 1.0, "priority": -3, "b": [ ]}"#, Some(-3), r#"{"a":1.0,"b":[ ]}"#);
        check(r#"{"priority": 3000000000}"#, Some(i32::MAX), "{}");
        check(r#"{"priority": -36893488147419103232}"#, Some(i32::MIN), "{}");
        assert!(serde_json::from_str::<Peek<'_>>(r#"{"priority": 1.5}"#).is_err());
    }

    #[test]
    fn a_session_is_named_by_the_first_that_there_is() {
        for (body, session) in [
            ("{}", None),
            (r#"{"user": null}"#, None),
            (r#"{"user": "u", "session_id": null}"#, Some("\"u\"")),
            (r#"{"user": "u", "prompt_cache_key": 7}"#, Some("7")),
            (r#"{"user": "u", "session_id": "s", "prompt_cache_key": "k"}"#, Some("\"s\"")),
        ] {
            assert_eq!(serde_json::from_str::<Peek<'_>>(body).unwrap().session(), session, "{body}");
        }
    }
}
