//! Looks after one engine's server: is it there, is it ready, what does it serve.
//!
//! `GET /health` answers 200 where an engine is ready (vLLM, SGLang, TensorRT-LLM, llama.cpp, which says 503
//! while it loads); a server without that route is ready when it names its models. `GET /v1/models` is asked
//! when a server turns ready, and now and then.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{
        Method, Request, StatusCode,
        header::{AUTHORIZATION, HOST},
    },
};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    client::Client,
    member::{Backend, Card, Health},
    roster::Roster,
};
use crate::directory::Directory;

/// Most time for an answer. An engine that computes a long prompt may answer late, and is not lost for it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Probes that must fail in a row before a server that was ready counts as lost.
const FAILURES: u32 = 2;
/// Probes between two looks at the models.
const MODELS_EVERY: u32 = 30;
const BYTES_MAX: usize = 1 << 20;
const MODELS_MAX: usize = 1024;

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    owned_by: Option<String>,
    max_model_len: Option<u32>,
    /// What it is under all of its names; an adapter's own.
    root: Option<String>,
    /// What it is an adapter of.
    parent: Option<String>,
}

/// Probes `backend` every `every`, until `alive` or `stop` is cancelled.
pub(crate) async fn look_after(
    backend: Arc<Backend>,
    client: Client,
    roster: Arc<Roster>,
    directory: Arc<Directory>,
    every: Duration,
    alive: CancellationToken,
    stop: CancellationToken,
) {
    let id = backend.id;
    // It walks the directory.
    let forget = || {
        let directory = directory.clone();
        async move {
            let _ = tokio::task::spawn_blocking(move || directory.leave(id)).await;
        }
    };
    let mut probe = Probe { backend, client, failures: 0, until_models: 0 };
    let probes = async {
        loop {
            if probe.once().await {
                roster.refresh();
                if matches!(probe.backend.health(), Health::Lost(_)) {
                    // Whatever it had is gone with it, as far as anybody can tell.
                    forget().await;
                }
            }
            sleep(every).await;
        }
    };
    tokio::select! {
        () = probes => {}
        () = alive.cancelled() => {}
        () = stop.cancelled() => return,
    }
    forget().await;
    roster.forgotten(id);
}

/// A card a name. vLLM has several names for one model (`--served-model-name a b`), and its blocks are the same ones.
fn cards(models: Models) -> Vec<Card> {
    let mut first: HashMap<String, String> = HashMap::new();
    let card = |model: Model| {
        let root = model.root.filter(|_| model.parent.is_none());
        let name = root.map(|root| first.entry(root).or_insert_with(|| model.id.clone()).clone());
        Card {
            name: name.unwrap_or_else(|| model.id.clone()),
            id: model.id,
            context_tokens_max: model.max_model_len,
            owned_by: model.owned_by.unwrap_or_else(|| "unknown".into()),
        }
    };
    models.data.into_iter().take(MODELS_MAX).map(card).collect()
}

struct Probe {
    backend: Arc<Backend>,
    client: Client,
    failures: u32,
    until_models: u32,
}

impl Probe {
    /// Returns whether anything changed.
    async fn once(&mut self) -> bool {
        match self.look().await {
            Ok(cards) => {
                self.failures = 0;
                self.until_models = if cards.is_some() { MODELS_EVERY } else { self.until_models - 1 };
                self.backend.found(Health::Ready, cards)
            }
            Err(why) => {
                self.failures += 1;
                let was_ready = self.backend.health() == Health::Ready;
                if was_ready && self.failures < FAILURES {
                    return false;
                }
                // What it serves when it is back may be something else.
                self.until_models = 0;
                match self.backend.health() {
                    Health::Starting => {
                        self.backend.is_not_there_yet(why);
                        false
                    }
                    Health::Ready | Health::Lost(_) => self.backend.found(Health::Lost(why), None),
                }
            }
        }
    }

    async fn look(&self) -> Result<Option<Vec<Card>>, String> {
        let (status, _) = self.get("/health").await?;
        let unknown = matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
        if !status.is_success() && !unknown {
            return Err(format!("/health answers {status}"));
        }
        if self.until_models > 0 && !unknown {
            return Ok(None);
        }
        let (status, body) = self.get("/v1/models").await?;
        if !status.is_success() {
            return Err(format!("/v1/models answers {status}"));
        }
        let models: Models =
            serde_json::from_slice(&body).map_err(|error| format!("/v1/models makes no sense: {error}"))?;
        Ok(Some(cards(models)))
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, Bytes), String> {
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(format!("{}{path}", self.backend.spec.url))
            .header(HOST, self.backend.authority.as_str())
            .body(Body::empty())
            .map_err(|error| error.to_string())?;
        if let Some(key) = self.backend.bearer() {
            request.headers_mut().insert(AUTHORIZATION, key);
        }
        let answer = async {
            let response = self.client.request(request).await.map_err(|error| super::client::why(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
            Ok((head.status, body.to_bytes()))
        };
        timeout(PROBE_TIMEOUT, answer).await.unwrap_or_else(|_| Err(format!("{path} does not answer")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_model_have_the_same_blocks() {
        let models = r#"{"data": [{"id": "a", "root": "/m"}, {"id": "b", "root": "/m", "parent": null},
            {"id": "lora", "root": "/m", "parent": "a"}, {"id": "c", "root": "/c"}, {"id": "d"}, {"id": "e"}]}"#;
        let cards = cards(serde_json::from_str(models).unwrap());
        let names: Vec<_> = cards.iter().map(|card| (card.id.as_str(), card.name.as_str())).collect();
        let own = ["lora", "c", "d", "e"].map(|id| (id, id));
        assert_eq!(names, [&[("a", "a"), ("b", "a")][..], &own[..]].concat());
    }
}
