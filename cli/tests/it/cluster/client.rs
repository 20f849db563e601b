//! A client of the OpenAI endpoint, as thin as can be.

use serde_json::{Value, json};

/// Everything that came over one stream.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Streamed {
    pub(crate) text: String,
    pub(crate) finish: Option<String>,
    pub(crate) error: Option<Value>,
    pub(crate) done: bool,
    pub(crate) usage: Value,
}

impl Streamed {
    /// Takes in one event.
    pub(crate) fn add(&mut self, data: &str) {
        assert!(!self.done, "an event behind [DONE]: {data}");
        if data == "[DONE]" {
            self.done = true;
            return;
        }
        let event: Value = serde_json::from_str(data).unwrap();
        if !event["error"].is_null() {
            self.error = Some(event["error"].clone());
            return;
        }
        let choice = &event["choices"][0];
        let piece = choice["delta"]["content"].as_str().or(choice["text"].as_str());
        self.text.push_str(piece.unwrap_or_default());
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(finish.to_owned());
        }
        if !event["usage"].is_null() {
            self.usage = event["usage"].clone();
        }
    }
}

/// The events of a stream, as they come.
pub(crate) struct Events {
    response: reqwest::Response,
    rest: Vec<u8>,
}

impl Events {
    pub(crate) async fn open(url: &str, path: &str, body: &Value) -> Self {
        let mut body = body.clone();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let response = crate::harness::http()
            .build()
            .unwrap()
            .post(format!("{url}{path}"))
            .json(&body)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        Self { response, rest: Vec::new() }
    }

    /// The next `data:` line; `None` at the end. A body that breaks off is a panic: it must end in order.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.rest.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.rest.drain(..end + 2).collect();
                let event = String::from_utf8(event).unwrap();
                if let Some(data) = event.trim_end().strip_prefix("data:") {
                    return Some(data.trim_start().to_owned());
                }
                continue;
            }
            match self.response.chunk().await.expect("the stream is not cut") {
                Some(bytes) => self.rest.extend_from_slice(&bytes),
                None => {
                    assert!(self.rest.is_empty(), "half an event at the end");
                    return None;
                }
            }
        }
    }

    /// Everything that is left.
    pub(crate) async fn collect(mut self) -> Streamed {
        let mut streamed = Streamed::default();
        while let Some(data) = self.next().await {
            streamed.add(&data);
        }
        streamed
    }
}

pub(crate) fn completion(model: &str, prompt: &str, tokens: u32) -> Value {
    json!({"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0})
}

/// Status and body of an answer that is not streamed.
pub(crate) async fn post(url: &str, path: &str, body: &Value) -> (u16, Value) {
    let response =
        crate::harness::http().build().unwrap().post(format!("{url}{path}")).json(body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}
