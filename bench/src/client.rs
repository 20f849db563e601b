//! A client of an OpenAI endpoint that takes the time of every token.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use serde::Serialize;
use serde_json::Value;

/// A line of an event stream that is longer is an error.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Without a byte for this long, a stream counts as dead.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Of this process' clients without reuse.
static SALTS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Message {
    role: &'static str,
    content: String,
}

impl Message {
    pub(crate) fn new(role: &'static str, content: impl Into<String>) -> Message {
        Message { role, content: content.into() }
    }
}

/// One answer and its times.
#[derive(Clone, Debug)]
pub(crate) struct Completed {
    /// From sending the request to the first text (or the end, should there be none).
    pub(crate) first: Duration,
    /// Between pieces of text.
    pub(crate) gaps: Vec<Duration>,
    pub(crate) total: Duration,
    pub(crate) text: String,
    pub(crate) usage: Usage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) completion_tokens: u64,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection, or it broke.
    Connection(String),
    /// Refused with this status and message.
    Refused(u16, String),
    /// An error event in the stream.
    Event(String),
    /// The stream ended without saying so.
    Cut,
    /// What came is not what the API says.
    Garbled(String),
    /// Nothing came for too long.
    Silent,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Connection(reason) => write!(f, "connection: {reason}"),
            Failure::Refused(status, message) => write!(f, "status {status}: {message}"),
            Failure::Event(message) => write!(f, "error event: {message}"),
            Failure::Cut => f.write_str("the stream was cut"),
            Failure::Garbled(what) => write!(f, "garbled: {what}"),
            Failure::Silent => write!(f, "nothing came for {SILENCE_MAX:?}"),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    pub(crate) model: String,
    /// Each request has a salt of its own, so that it shares no KV with any other.
    alone: bool,
}

/// A client of any endpoint.
pub(crate) fn http() -> reqwest::Result<reqwest::Client> {
    // Its TLS wants a provider, though nothing here is encrypted; an error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build()
}

impl Client {
    /// Finds out what is served at `url`.
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Client> {
        let url = url.trim_end_matches('/').to_owned();
        let http = http()?;
        let models: Value =
            async { http.get(format!("{url}/v1/models")).send().await?.error_for_status()?.json().await }
                .await
                .with_context(|| {
                    format!("no OpenAI endpoint answers at {url} (start one: kelvin up --model PATH)")
                })?;
        let Some(model) = models["data"][0]["id"].as_str() else { bail!("{url} serves no model: {models}") };
        let model = model.to_owned();
        Ok(Client { http, url, model, alone: false })
    }

    /// The same client, none of whose requests finds anything in the store.
    pub(crate) fn without_reuse(mut self) -> Client {
        self.alone = true;
        self
    }

    /// One streamed greedy chat completion.
    pub(crate) async fn chat(&self, messages: &[Message], tokens_max: u32) -> Result<Completed, Failure> {
        let mut body = serde_json::json!({
            "model": self.model,
            "messages": messages,
            "max_tokens": tokens_max,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if self.alone {
            let salt = SALTS.fetch_add(1, Ordering::Relaxed);
            body["cache_salt"] = format!("{}-{salt}", std::process::id()).into();
        }
        let begin = Instant::now();
        let request = self.http.post(format!("{}/v1/chat/completions", self.url)).json(&body);
        let response = timely(request.send()).await?;
        let status = response.status();
        if !status.is_success() {
            let text = timely(response.text()).await.unwrap_or_default();
            return Err(Failure::Refused(status.as_u16(), error_message(&text)));
        }
        let mut reader = Reader::new(begin);
        let mut bytes = response.bytes_stream();
        loop {
            let piece = tokio::time::timeout(SILENCE_MAX, bytes.next()).await.map_err(|_| Failure::Silent)?;
            match piece {
                None => return Err(Failure::Cut),
                Some(Err(error)) => return Err(connection(&error)),
                Some(Ok(piece)) => {
                    if reader.read(&piece, Instant::now())? {
                        return reader.finish();
                    }
                }
            }
        }
    }
}

async fn timely<T>(request: impl Future<Output = reqwest::Result<T>>) -> Result<T, Failure> {
    let result = tokio::time::timeout(SILENCE_MAX, request).await.map_err(|_| Failure::Silent)?;
    result.map_err(|error| connection(&error))
}

/// The innermost cause says the most, e.g. "Connection refused".
fn connection(error: &dyn std::error::Error) -> Failure {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    Failure::Connection(cause.to_string())
}

fn error_message(body: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(body).ok();
    let message = parsed.as_ref().and_then(|value| value["error"]["message"].as_str());
    message.unwrap_or(body).chars().take(200).collect()
}

/// Puts an event stream together.
struct Reader {
    begin: Instant,
    line: Vec<u8>,
    last: Option<Instant>,
    first: Option<Duration>,
    gaps: Vec<Duration>,
    text: String,
    usage: Option<Usage>,
}

impl Reader {
    fn new(begin: Instant) -> Reader {
        Reader {
            begin,
            line: Vec::new(),
            last: None,
            first: None,
            gaps: Vec::new(),
            text: String::new(),
            usage: None,
        }
    }

    /// Takes bytes that came at `now`; true after the stream's last event.
    fn read(&mut self, bytes: &[u8], now: Instant) -> Result<bool, Failure> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.len() > LINE_BYTES_MAX {
                return Err(Failure::Garbled("an event without end".into()));
            }
            if self.line.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.line);
                let line = String::from_utf8_lossy(&line);
                // Other fields of an event (id, comments, blank lines) carry nothing here.
                if let Some(data) = line.trim_end().strip_prefix("data:")
                    && self.event(data.trim_start(), now)?
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn event(&mut self, data: &str, now: Instant) -> Result<bool, Failure> {
        if data == "[DONE]" {
            return Ok(true);
        }
        let event: Value = serde_json::from_str(data).map_err(|error| Failure::Garbled(error.to_string()))?;
        if !event["error"].is_null() {
            return Err(Failure::Event(error_message(data)));
        }
        let choice = &event["choices"][0];
        let text = choice["delta"]["content"].as_str().unwrap_or_default();
        if !text.is_empty() {
            self.text.push_str(text);
            match self.last.replace(now) {
                None => self.first = Some(now - self.begin),
                Some(last) => self.gaps.push(now - last),
            }
        }
        if !choice["finish_reason"].is_null() {
            self.first.get_or_insert(now - self.begin);
        }
        if !event["usage"].is_null() {
            let count = |value: &Value| value.as_u64().unwrap_or(0);
            let usage = &event["usage"];
            self.usage = Some(Usage {
                prompt_tokens: count(&usage["prompt_tokens"]),
                cached_tokens: count(&usage["prompt_tokens_details"]["cached_tokens"]),
                completion_tokens: count(&usage["completion_tokens"]),
            });
        }
        Ok(false)
    }

    fn finish(self) -> Result<Completed, Failure> {
        let (Some(first), Some(usage)) = (self.first, self.usage) else {
            return Err(Failure::Garbled("the stream ended without a finish reason and usage".into()));
        };
        Ok(Completed { first, gaps: self.gaps, total: self.begin.elapsed(), text: self.text, usage })
    }
}

#[cfg(test)]
#[path = "client/tests.rs"]
mod tests;
