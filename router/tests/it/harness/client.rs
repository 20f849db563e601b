//! Bodies to send and answers to read.

use futures::StreamExt;
use serde_json::{Value, json};

pub(crate) fn chat_body(content: &str) -> Value {
    json!({"model": "toy", "messages": [{"role": "user", "content": content}]})
}

/// Status and error of an answer that must be one in OpenAI's shape.
pub(crate) async fn error_of(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.expect("an error is JSON");
    let error = body["error"].clone();
    for key in ["message", "type", "param", "code"] {
        assert!(
            error.as_object().expect("error is an object").contains_key(key),
            "{key} is missing in {error}"
        );
    }
    assert!(!error["message"].as_str().unwrap().is_empty());
    (status, error)
}

/// Server-sent events of one answer.
pub(crate) struct Events {
    body: futures::stream::BoxStream<'static, reqwest::Result<Vec<u8>>>,
    buffer: String,
}

impl Events {
    pub(crate) fn of(response: reqwest::Response) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.bytes_stream().map(|part| part.map(|bytes| bytes.to_vec())).boxed(),
            buffer: String::new(),
        }
    }

    /// Data of the next event; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let data = event.strip_prefix("data: ").expect("an event is data").to_owned();
                self.buffer = rest.to_owned();
                return Some(data);
            }
            match self.body.next().await {
                Some(part) => {
                    self.buffer.push_str(std::str::from_utf8(&part.expect("no cut")).expect("UTF-8"))
                }
                None => {
                    assert_eq!(self.buffer, "", "the stream ended inside an event");
                    return None;
                }
            }
        }
    }

    /// Skips to the first event with text.
    pub(crate) async fn first_text(&mut self) -> String {
        loop {
            let event: Value = serde_json::from_str(&self.next().await.expect("an event")).expect("JSON");
            if let Some(text) = text_of(&event).filter(|text| !text.is_empty()) {
                return text;
            }
        }
    }

    /// All that is left.
    pub(crate) async fn rest(mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(data) = self.next().await {
            all.push(data);
        }
        all
    }

    /// Text of all that is left, and the last event.
    pub(crate) async fn text(self) -> (String, String) {
        let all = self.rest().await;
        let text = all.iter().filter_map(|data| text_of(&serde_json::from_str(data).ok()?)).collect();
        (text, all.last().expect("at least one event").clone())
    }
}

fn text_of(event: &Value) -> Option<String> {
    let choice = &event["choices"][0];
    choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str()).map(str::to_owned)
}
