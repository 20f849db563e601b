//! What an operator writes about an engine's server, on a command line or in a file.

use std::{fmt, str::FromStr};

use axum::http::{HeaderValue, Uri, uri::Authority};
use serde::{Deserialize, Serialize};

/// Which part of a request an engine's server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendRole {
    /// The whole of it.
    #[default]
    Both,
    /// Prompts, for others to decode.
    Prefill,
    /// Tokens, behind prompts that others computed; and whole requests where that is sooner.
    Decode,
}

impl BackendRole {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }

    /// Whether a client's request can be handed to it.
    #[inline]
    pub(crate) fn answers(self) -> bool {
        self != Self::Prefill
    }

    /// Whether its prompts may be computed by one of role `prefill`.
    pub(crate) fn pairs(self) -> bool {
        self == Self::Decode
    }
}

/// A bearer token that an engine wants (vLLM: `--api-key`). It is shown nowhere, and written nowhere.
#[derive(Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
pub struct BackendKey(String);

impl BackendKey {
    /// As a header's value; `None` where it can be none.
    pub(crate) fn bearer(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value).filter(|_| !self.0.is_empty())
    }
}

impl From<&str> for BackendKey {
    fn from(key: &str) -> Self {
        Self(key.to_owned())
    }
}

impl fmt::Debug for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// An engine's server that speaks OpenAI's API.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendSpec {
    /// `http://HOST:PORT`, without a path.
    pub url: String,
    /// What it does.
    #[serde(default)]
    pub role: BackendRole,
    /// Where its KV events come from, e.g. `tcp://127.0.0.1:5557`; with data parallel ranks that of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<String>,
    /// Whether this router binds `events` and the engine connects there: vLLM does so for an endpoint without `*`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub events_bind: bool,
    /// Where missed events are asked for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<String>,
    /// Data parallel ranks, each with a port of its own from that of `events` on.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ranks: u32,
    /// The store that its engine loads KV from, e.g. `http://127.0.0.1:7440`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// Most requests at once. As soon as all backends together have as many as they take, more wait in the router's
    /// queue; where they serve different models, one that is full alone has its requests refused.
    #[serde(default = "requests_max", skip_serializing_if = "is_requests_max")]
    pub requests_max: u32,
    /// What the router says to it: to look after it, and for requests that say nothing themselves.
    #[serde(default, skip_serializing)]
    pub key: Option<BackendKey>,
}

const REQUESTS_MAX: u32 = 256;
const RANKS_MAX: u32 = 64;

fn is_false(value: &bool) -> bool {
    !value
}

fn one() -> u32 {
    1
}

fn is_one(value: &u32) -> bool {
    *value == 1
}

fn requests_max() -> u32 {
    REQUESTS_MAX
}

fn is_requests_max(value: &u32) -> bool {
    *value == REQUESTS_MAX
}

/// What is wrong with a description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendSpecError {
    /// The address.
    #[error("`{0}` is not of the form http://HOST:PORT")]
    Url(String),
    /// An address of events.
    #[error("`{0}` is not of the form tcp://HOST:PORT")]
    Events(String),
    /// A setting.
    #[error(
        "`{0}` is none of role=both|prefill|decode, events=, events-bind=true|false, replay=, ranks=, store=, requests-max=, key="
    )]
    Setting(String),
    /// A key.
    #[error("`key` is empty, or has characters that no header can have")]
    Key,
    /// A setting's value.
    #[error("`{name}` is {value}, but must be {range}")]
    Range {
        /// Of the setting.
        name: &'static str,
        /// As it was written.
        value: String,
        /// What it may be.
        range: String,
    },
    /// One without the other.
    #[error("`{0}` goes with `events` only")]
    WithoutEvents(&'static str),
}

impl BackendSpec {
    /// A server that does whole requests and tells nothing of its cache.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            role: BackendRole::Both,
            events: None,
            events_bind: false,
            replay: None,
            ranks: 1,
            store: None,
            requests_max: REQUESTS_MAX,
            key: None,
        }
    }

    /// Checks every part, and drops a slash at the end of the address.
    ///
    /// # Errors
    /// The first part that makes no sense.
    pub fn checked(mut self) -> Result<Self, BackendSpecError> {
        self.url = self.url.trim_end_matches('/').to_owned();
        authority(&self.url)?;
        self.store = self.store.map(|store| store.trim_end_matches('/').to_owned());
        self.store.as_deref().map(authority).transpose()?;
        for endpoint in self.events.iter().chain(&self.replay) {
            let address = endpoint.strip_prefix("tcp://").and_then(|address| address.rsplit_once(':'));
            if !address.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
                return Err(BackendSpecError::Events(endpoint.clone()));
            }
        }
        if self.events.is_none() && self.replay.is_some() {
            return Err(BackendSpecError::WithoutEvents("replay"));
        }
        if self.events.is_none() && self.events_bind {
            return Err(BackendSpecError::WithoutEvents("events-bind"));
        }
        if self.key.as_ref().is_some_and(|key| key.bearer().is_none()) {
            return Err(BackendSpecError::Key);
        }
        within("ranks", self.ranks, 1..=RANKS_MAX)?;
        within("requests-max", self.requests_max, 1..=1_000_000)?;
        Ok(self)
    }

    /// Host and port.
    pub(crate) fn authority(&self) -> Result<Authority, BackendSpecError> {
        authority(&self.url)
    }
}

fn authority(url: &str) -> Result<Authority, BackendSpecError> {
    let bad = || BackendSpecError::Url(url.to_owned());
    let uri = url.parse::<Uri>().map_err(|_| bad())?;
    let plain = uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none();
    let authority = uri.authority().filter(|authority| plain && authority.port_u16().is_some());
    let authority =
        authority.filter(|authority| !authority.as_str().contains('@') && !authority.host().is_empty());
    authority.cloned().ok_or_else(bad)
}

fn within(
    name: &'static str,
    value: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Result<(), BackendSpecError> {
    if range.contains(&value) {
        return Ok(());
    }
    let range = format!("{} to {}", range.start(), range.end());
    Err(BackendSpecError::Range { name, value: value.to_string(), range })
}

/// `URL[,role=ROLE][,events=ENDPOINT][,events-bind=true][,replay=ENDPOINT][,ranks=N][,store=URL][,requests-max=N][,key=TOKEN]`.
impl FromStr for BackendSpec {
    type Err = BackendSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let mut spec = Self::new(parts.next().unwrap_or_default());
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            // Whatever has no known name may be the rest of a key.
            let has_key = spec.key.is_some();
            let unknown = || {
                let is_known = matches!(name, "role" | "events-bind" | "ranks" | "requests-max");
                let shown = if has_key && !is_known { "what stands behind a comma" } else { part };
                BackendSpecError::Setting(shown.to_owned())
            };
            let count = || value.parse::<u32>().map_err(|_| unknown());
            match (name, value) {
                ("role", "both") => spec.role = BackendRole::Both,
                ("role", "prefill") => spec.role = BackendRole::Prefill,
                ("role", "decode") => spec.role = BackendRole::Decode,
                ("events", _) => spec.events = Some(value.to_owned()),
                ("events-bind", _) => spec.events_bind = value.parse().map_err(|_| unknown())?,
                ("replay", _) => spec.replay = Some(value.to_owned()),
                ("ranks", _) => spec.ranks = count()?,
                ("store", _) => spec.store = Some(value.to_owned()),
                ("key", _) => spec.key = Some(value.into()),
                ("requests-max", _) => spec.requests_max = count()?,
                _ => return Err(unknown()),
            }
        }
        spec.checked()
    }
}

impl fmt::Display for BackendSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_and_a_file_say_the_same() {
        let spec: BackendSpec = "http://127.0.0.1:8000,role=decode,events=tcp://127.0.0.1:5557,replay=tcp://127.0.0.1:5558,ranks=2,store=http://127.0.0.1:7440/,requests-max=8,key=a=b"
            .parse()
            .unwrap();
        let json = r#"{"url": "http://127.0.0.1:8000/", "role": "decode", "events": "tcp://127.0.0.1:5557",
            "replay": "tcp://127.0.0.1:5558", "ranks": 2, "store": "http://127.0.0.1:7440",
            "requests_max": 8, "key": "a=b"}"#;
        assert_eq!(spec.key.as_ref().unwrap().bearer().unwrap(), "Bearer a=b");
        let shown = format!("{spec:?} {spec} {}", serde_json::to_string(&spec).unwrap());
        assert!(!shown.contains("a=b"), "{shown}");
        assert_eq!(serde_json::from_str::<BackendSpec>(json).unwrap().checked().unwrap(), spec);
        assert_eq!(
            "http://[::1]:8000".parse::<BackendSpec>().unwrap(),
            BackendSpec::new("http://[::1]:8000")
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, part) in [
            ("127.0.0.1:8000", "http://HOST:PORT"),
            ("https://127.0.0.1:8000", "http://HOST:PORT"),
            ("http://127.0.0.1", "http://HOST:PORT"),
            ("http://127.0.0.1:8000/v1", "http://HOST:PORT"),
            ("http://me:secret@127.0.0.1:8000", "http://HOST:PORT"),
            ("http://127.0.0.1:8000,role=boss", "role=boss"),
            ("http://127.0.0.1:8000,events=5557", "tcp://HOST:PORT"),
            ("http://127.0.0.1:8000,replay=tcp://127.0.0.1:1", "goes with `events`"),
            ("http://127.0.0.1:8000,ranks=0", "1 to 64"),
            ("http://127.0.0.1:8000,store=7440", "http://HOST:PORT"),
            ("http://127.0.0.1:8000,key=", "`key` is empty"),
            ("http://127.0.0.1:8000,colour=red", "colour=red"),
            ("http://127.0.0.1:8000,key=half,secret", "behind a comma"),
            ("http://127.0.0.1:8000,key=half,secret=b", "behind a comma"),
            ("http://127.0.0.1:8000,key=secret,role=boss", "role=boss"),
        ] {
            let error = text.parse::<BackendSpec>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            let hidden = ["half", "secret"];
            assert!(
                !text.contains("key=") || hidden.iter().all(|part| !error.contains(part)),
                "{text}: {error}"
            );
        }
    }
}
