//! What form a completion must have, as a grammar for the workers.
//!
//! A grammar is written in llguidance's variant of Lark, where a JSON schema stands behind `%json`: nothing that a
//! client wrote is ever outside a JSON value, so that none can be read as grammar.
//!
//! # Limits
//! Schemas are JSON Schema 2020-12, references within the schema alone. JSON is written in one line, `", "` and
//! `": "` between its parts. With `strict` a keyword that cannot be enforced is refused, by the worker; without it
//! it is passed over, as OpenAI's API does. `oneOf` counts as `anyOf`.

use serde_json::{Map, Value, json};

use super::{error::ApiError, request::ResponseFormat};

/// What a schema's compiler is told, under this key of the schema.
const OPTIONS: &str = "x-guidance";

/// The form of a completion's text, as a rule of a grammar.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Form {
    /// What `%json` is to be.
    schema: String,
}

impl Form {
    /// What a request's `response_format` asks for; `None` for any text.
    pub(super) fn new(format: Option<ResponseFormat>) -> Result<Option<Self>, ApiError> {
        let Some(format) = format else { return Ok(None) };
        match format.r#type.as_str() {
            "text" => Ok(None),
            "json_object" => {
                Ok(Some(Self { schema: literal(Map::from_iter([("type".into(), "object".into())]), false) }))
            }
            "json_schema" => {
                const PARAM: &str = "response_format.json_schema";
                let named = format
                    .json_schema
                    .ok_or_else(|| ApiError::param(PARAM, format!("The parameter `{PARAM}` is missing.")))?;
                if !named.name.as_deref().is_some_and(is_name) {
                    let param = format!("{PARAM}.name");
                    return Err(ApiError::param(&param, format!("`{param}` must be {NAMES}.")));
                }
                let schema = schema(named.schema.unwrap_or_else(|| json!({})), &format!("{PARAM}.schema"))?;
                Ok(Some(Self { schema: literal(schema, named.strict.unwrap_or(false)) }))
            }
            other => {
                let message = format!(
                    "The response format `{other}` is not supported by this version; use text, json_object or json_schema."
                );
                Err(ApiError::unsupported("response_format", message))
            }
        }
    }

    /// The rule by which text has this form.
    pub(super) fn rule(&self) -> String {
        format!("%json {}", self.schema)
    }

    /// A whole grammar.
    pub(super) fn grammar(&self) -> String {
        format!("start: {}\n", self.rule())
    }
}

/// What names of schemas and tools are.
pub(super) const NAMES: &str = "1 to 64 letters, digits, underscores and dashes";

pub(super) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

/// A schema, which must be an object.
pub(super) fn schema(value: Value, param: &str) -> Result<Map<String, Value>, ApiError> {
    match value {
        Value::Object(schema) => Ok(schema),
        _ => Err(ApiError::param(param, format!("`{param}` must be a JSON schema, an object."))),
    }
}

/// A schema as it stands behind `%json`.
pub(super) fn literal(mut schema: Map<String, Value>, strict: bool) -> String {
    let options = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
        "coerce_one_of": true, "lenient": !strict});
    schema.insert(OPTIONS.into(), options);
    Value::Object(schema).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(json: &str) -> Result<Option<Form>, String> {
        Form::new(Some(serde_json::from_str(json).unwrap())).map_err(|error| error.to_json())
    }

    #[test]
    fn a_schema_stands_in_the_grammar_with_our_options() {
        let text = form(
            r#"{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"type":"string","const":"\n%lark","x-guidance":{"lenient":true}}}}"#,
        );
        let grammar = text.unwrap().unwrap().grammar();
        assert_eq!(grammar.lines().count(), 1, "{grammar}");
        let json: Value = serde_json::from_str(grammar.strip_prefix("start: %json ").unwrap()).unwrap();
        assert_eq!((&json["const"], &json["x-guidance"]["lenient"]), (&json!("\n%lark"), &json!(false)));
        assert!(form(r#"{"type":"json_object"}"#).unwrap().unwrap().grammar().contains(r#""type":"object""#));
        assert_eq!(form(r#"{"type":"text"}"#), Ok(None));
    }

    #[test]
    fn what_is_no_format_is_refused() {
        let check = |json: &str, words: &str| {
            let error = form(json).unwrap_err();
            assert!(error.contains(words), "{words} is not in {error}");
        };
        check(r#"{"type":"grammar"}"#, "`grammar` is not supported");
        check(r#"{"type":"json_schema"}"#, "response_format.json_schema` is missing");
        check(r#"{"type":"json_schema","json_schema":{}}"#, "1 to 64 letters");
        check(r#"{"type":"json_schema","json_schema":{"name":"a b"}}"#, "1 to 64 letters");
        check(r#"{"type":"json_schema","json_schema":{"name":"a","schema":[]}}"#, "must be a JSON schema");
    }
}
