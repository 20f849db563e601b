//! What the router has to know of a request that another server answers: a look at its body, which goes on as
//! it came, all but what is said to the router alone.

use std::borrow::Cow;

use axum::body::Bytes;
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::value::RawValue;

use super::fields::Fields;
use crate::admission;

/// Fields that are hints to the router. To vLLM a priority would mean the opposite, and TensorRT-LLM refuses what it
/// does not know. A `cache_salt` is no such hint: engines know it.
const HINTS: [&str; 6] =
    ["priority", "deadline_ms", "session_id", "session_end", "ttl_s", "prefetch_next_turn"];

/// The fields that matter; all others are the engine's business.
#[derive(Debug, Deserialize)]
pub(crate) struct Peek<'a> {
    #[serde(borrow)]
    pub(crate) model: Option<Cow<'a, str>>,
    pub(crate) stream: Option<bool>,
    // Of hints it matters whether they are there: the outer `Option`.
    #[serde(default, deserialize_with = "priority")]
    priority: Option<Option<i32>>,
    #[serde(default, deserialize_with = "there")]
    deadline_ms: Option<Option<u64>>,
    #[serde(default, deserialize_with = "there")]
    session_end: Option<Option<bool>>,
    #[serde(default, deserialize_with = "there")]
    ttl_s: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "there")]
    prefetch_next_turn: Option<IgnoredAny>,
    #[serde(borrow)]
    pub(crate) messages: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) tools: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) input: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) cache_salt: Option<Cow<'a, str>>,
    // Whatever they are: what they must be is the engine's business.
    #[serde(borrow, default, deserialize_with = "raw")]
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

    /// The higher, the sooner; 0 is ordinary.
    pub(crate) fn priority(&self) -> i32 {
        self.priority.flatten().unwrap_or(0)
    }

    /// Most milliseconds that the request may wait for its turn.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.deadline_ms.flatten()
    }

    /// Whether its session ends with this answer.
    pub(crate) fn is_session_end(&self) -> bool {
        self.session_end.flatten().unwrap_or(false)
    }

    fn has_hints(&self) -> bool {
        self.priority.is_some()
            || self.deadline_ms.is_some()
            || self.session_id.is_some()
            || self.session_end.is_some()
            || self.ttl_s.is_some()
            || self.prefetch_next_turn.is_some()
    }

    /// `body`, of which this is the look, for an engine: the hints have done what they are for here.
    pub(crate) fn without_hints(&self, body: &Bytes) -> Bytes {
        let fields = Fields::parse(body).filter(|_| self.has_hints());
        fields.map_or_else(
            || body.clone(),
            |mut fields| {
                HINTS.iter().for_each(|hint| fields.remove(hint));
                fields.to_bytes()
            },
        )
    }

    /// What the request says it belongs with: its session, a key for caches, or who asks, the first there is; as it
    /// was written.
    pub(crate) fn session(&self) -> Option<&str> {
        let session_id = self.session_id.filter(|id| id.get() != "null");
        session_id.or(self.prompt_cache_key).or(self.user).map(RawValue::get)
    }

    /// The part of the body that two requests with a common prefix have in common, as it was written.
    pub(crate) fn text(&self) -> &str {
        let raw = self.messages.or(self.prompt).or(self.input);
        raw.map_or("", RawValue::get)
    }
}

/// A field that is there, whatever it is.
fn there<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn raw<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    there(deserializer)
}

fn priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<i32>>, D::Error> {
    admission::priority(deserializer).map(Some)
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
    fn hints_stay_here() {
        let check = |body: &'static str, priority, sent: &str| {
            let peek: Peek<'_> = serde_json::from_str(body).unwrap();
            assert_eq!(peek.priority(), priority, "{body}");
            assert_eq!(peek.without_hints(&Bytes::from_static(body.as_bytes())), sent.as_bytes());
        };
        check(r#"{ "a": 1 }"#, 0, r#"{ "a": 1 }"#);
        check(r#"{ "priority": null }"#, 0, "{}");
        check(r#"{ "priority": 0 }"#, 0, "{}");
        check(r#"{"a": 1.0, "priority": -3, "b": [ ]}"#, -3, r#"{"a":1.0,"b":[ ]}"#);
        check(r#"{"priority": 3000000000}"#, i32::MAX, "{}");
        check(r#"{"priority": -36893488147419103232}"#, i32::MIN, "{}");
        for hint in [
            r#""deadline_ms": 5"#,
            r#""deadline_ms": null"#,
            r#""session_id": "s""#,
            r#""session_id": null"#,
            r#""session_end": true"#,
            r#""ttl_s": 7"#,
            r#""prefetch_next_turn": null"#,
        ] {
            let body = format!(r#"{{{hint}, "cache_salt": "c", "user": "u"}}"#);
            let peek: Peek<'_> = serde_json::from_str(&body).unwrap();
            let sent = peek.without_hints(&Bytes::from(body.clone()));
            assert_eq!(sent, r#"{"cache_salt":"c","user":"u"}"#.as_bytes(), "{hint}");
        }
        for wrong in [r#"{"priority": 1.5}"#, r#"{"deadline_ms": "x"}"#, r#"{"session_end": 1}"#] {
            assert!(serde_json::from_str::<Peek<'_>>(wrong).is_err(), "{wrong}");
        }
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
