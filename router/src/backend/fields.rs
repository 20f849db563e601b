//! A JSON object's fields as they were written: some are changed, and all others stay byte for byte.

use std::{borrow::Cow, fmt};

use axum::body::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// Name and value, in order.
#[derive(Debug, Default)]
pub(super) struct Fields<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Fields<'a> {
    /// Of a text that is an object, or nothing.
    pub(super) fn parse(text: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// Whether there is one of that name that is not null.
    pub(super) fn has_value(&self, name: &str) -> bool {
        self.0.iter().any(|(known, value)| known == name && value != "null")
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }

    /// Gives a field a value in JSON; there is one of that name afterwards.
    pub(super) fn set(&mut self, name: &'a str, json: impl Into<Cow<'a, str>>) {
        self.remove(name);
        self.0.push((name.into(), json.into()));
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        let mut text = Vec::new();
        for (name, value) in &self.0 {
            text.push(if text.is_empty() { b'{' } else { b',' });
            // A string always has a form in JSON.
            text.extend_from_slice(serde_json::Value::from(name.as_ref()).to_string().as_bytes());
            text.push(b':');
            text.extend_from_slice(value.as_bytes());
        }
        if text.is_empty() {
            text.push(b'{');
        }
        text.push(b'}');
        text.into()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    fields.push((Cow::Owned(name), Cow::Borrowed(value.get())));
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_changed_stays_as_it_was_written() {
        let text = r#"{"a": 1.50, "b\n": [1,  2], "c": 123456789012345678901234567890, "d": null, "c": 1}"#;
        let mut fields = Fields::parse(text.as_bytes()).unwrap();
        assert!(fields.has("d") && !fields.has("e"));
        assert!(fields.has_value("a") && !fields.has_value("d") && !fields.has_value("e"));
        fields.remove("d");
        fields.set("e", "true");
        fields.set("a", r#"{"x": 2}"#);
        assert_eq!(
            fields.to_bytes(),
            r#"{"b\n":[1,  2],"c":123456789012345678901234567890,"c":1,"e":true,"a":{"x": 2}}"#.as_bytes()
        );
        assert_eq!(Fields::parse(b"{}").unwrap().to_bytes(), "{}".as_bytes());
        assert!(Fields::parse(b"[]").is_none() && Fields::parse(b"{").is_none());
    }
}
