//! One request's way to an engine's server and back.
//!
//! # Overview
//! ```text
//! body ─► peek ─► place ─► send ─┬─ answer at once: read whole, checked, passed on
//!           ▲                    ├─ stream: first piece awaited, then passed on as it comes
//!           └──── another one ───┴─ trouble, and nothing was sent to the client yet
//! ```
//! The body goes on as it came, byte for byte. As long as the client has seen nothing, trouble with one
//! server means another one, [`ATTEMPTS`] at most; a refusal (4xx) is the engine's answer and passed on.
//!
//! # Cancellation
//! Dropping the future, or the answer's body, closes the connection to the server, which cancels the work
//! there.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    http::{
        HeaderMap, HeaderName, Request, Response, StatusCode,
        header::{
            ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, SERVER, TE, TRAILER,
            TRANSFER_ENCODING, UPGRADE, USER_AGENT,
        },
    },
};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use serde::Deserialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub(crate) use super::trouble::Trouble;
use super::{
    client::{Client, why},
    keys::Keys,
    member::{Backend, Call},
    place::{Full, Shape, place},
    roster::{Pool, Roster},
    stream::Watched,
};
use crate::{
    directory::Directory,
    metrics::Metrics,
    openai::Admitted,
    page::{Placed, Served},
};

/// Servers that are tried for one request.
const ATTEMPTS: usize = 3;
/// Most bytes of an answer that comes at once.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Headers of a request that go on to the engine.
const FORWARDED: [HeaderName; 6] = [
    CONTENT_TYPE,
    ACCEPT,
    AUTHORIZATION,
    USER_AGENT,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];
/// Headers of an answer that are about the connection it came on.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    UPGRADE,
    TE,
    TRAILER,
    SERVER,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-authenticate"),
];

/// A request to pass on.
pub(crate) struct Errand<'a> {
    /// `/v1/chat/completions` and the like.
    pub(crate) path: &'static str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) request_id: &'a str,
    pub(crate) stream: bool,
    pub(crate) keys: Keys,
}

/// An answer's body.
enum Answered {
    Whole(Bytes),
    Stream(Box<Watched>),
}

/// Waits for answers this long.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    pub(crate) first_token: Duration,
    pub(crate) token: Duration,
}

/// Brings requests to engines' servers.
pub(crate) struct Forwarder {
    pub(crate) roster: Arc<Roster>,
    pub(crate) directory: Arc<Directory>,
    /// What the directory counts time from.
    pub(crate) started: Instant,
    pub(crate) client: Client,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) patience: Patience,
    pub(crate) rng: Mutex<SmallRng>,
    pub(crate) ending: CancellationToken,
}

/// What an engine says it used.
#[derive(Deserialize)]
struct Answer {
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Forwarder {
    /// The engine's answer to `errand`, from one of the servers in `pool`.
    /// It is in work until its body was read.
    pub(crate) async fn forward(
        &self,
        pool: &Pool,
        errand: Errand<'_>,
        admitted: Admitted,
    ) -> Result<Response<Body>, Trouble> {
        let forwarded = tokio::select! {
            biased;
            () = self.ending.cancelled() => Err(Trouble::ShuttingDown),
            answer = self.attempts(pool, &errand) => answer,
        };
        let answer = forwarded.inspect_err(|trouble| self.metrics.error(trouble.kind()))?;
        Ok(answer.map(|body| match body {
            Answered::Whole(bytes) => Body::from(bytes),
            Answered::Stream(watched) => Body::new(watched.keep(admitted)),
        }))
    }

    async fn attempts(&self, pool: &Pool, errand: &Errand<'_>) -> Result<Response<Answered>, Trouble> {
        let mut excluded = Vec::new();
        let mut last: Option<Result<Response<Answered>, Trouble>> = None;
        while excluded.len() < ATTEMPTS {
            let call = match self.begin(pool, &errand.keys, &excluded) {
                Ok(call) => call,
                Err(Full::Busy) => return last.unwrap_or(Err(Trouble::Busy)),
                Err(Full::Away) => return last.unwrap_or(Err(Trouble::NoBackend)),
            };
            let backend = call.backend().clone();
            if !excluded.is_empty() {
                self.metrics.retries.inc();
            }
            excluded.push(backend.id);
            last = Some(match self.ask(call, &pool.card.id, errand).await {
                Ok(answer) if answer.status() != StatusCode::TOO_MANY_REQUESTS => return Ok(answer),
                // Another one may have room.
                Ok(busy) => Ok(busy),
                Err(trouble) => {
                    if trouble.is_fault() {
                        backend.failed(&trouble.to_string());
                    }
                    self.metrics.error(trouble.kind());
                    tracing::warn!(request = errand.request_id, backend = backend.spec.url, %trouble, "a backend failed before its first token");
                    Err(trouble)
                }
            });
        }
        last.unwrap_or(Err(Trouble::NoBackend))
    }

    /// Chooses a server and counts the request there, in one step: the next decision must see it.
    fn begin(&self, pool: &Pool, keys: &Keys, excluded: &[u32]) -> Result<Call, Full> {
        let shape = Shape { tokens: keys.tokens(), own: keys.own(), stored: keys.stored() };
        let mut rng = self.rng.lock();
        let (backend, choice) = place(pool, shape, excluded, &mut *rng)?;
        let call = Call::begin(&backend, choice.expected.compute_tokens, choice.expected.load_tokens);
        drop(rng);
        keys.sent(&self.directory, &backend, self.started.elapsed());
        Ok(call)
    }

    async fn ask(&self, call: Call, model: &str, errand: &Errand<'_>) -> Result<Response<Answered>, Trouble> {
        let placed = Placed {
            model: Some(model.to_owned()),
            worker: Some(call.backend().spec.url.clone()),
            mode: Some("backend"),
            ..Placed::default()
        };
        let served =
            |has_first_token| Served::begin(&self.metrics, errand.request_id, placed, has_first_token);
        let request = request(call.backend(), errand)?;
        let patience = self.patience.first_token;
        let head = timeout(patience, self.client.request(request)).await;
        let head = head.map_err(|_| Trouble::Stalled(patience))?;
        let (head, body) = head.map_err(|error| Trouble::Unreachable(why(&error)))?.into_parts();
        if head.status.is_server_error() {
            return Err(Trouble::Failed(head.status));
        }
        call.backend().succeeded();
        let content_type =
            head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let body = if head.status.is_success() && errand.stream {
            if !content_type.starts_with("text/event-stream") {
                return Err(Trouble::Garbage(format!("a stream was asked for, `{content_type}` came")));
            }
            self.stream(call, body, served).await?
        } else {
            self.whole(call, body, head.status, served).await?
        };
        let mut answer = Response::new(body);
        *answer.status_mut() = head.status;
        for (name, value) in &head.headers {
            if !HOP_BY_HOP.contains(name) {
                answer.headers_mut().append(name.clone(), value.clone());
            }
        }
        Ok(answer)
    }

    /// A stream once its first piece is there: until then it can still come from another server.
    async fn stream(
        &self,
        mut call: Call,
        mut body: Incoming,
        served: impl FnOnce(bool) -> Served,
    ) -> Result<Answered, Trouble> {
        let patience = self.patience.first_token;
        let first = loop {
            let left = patience.saturating_sub(call.elapsed());
            match timeout(left, body.frame()).await {
                Err(_) => return Err(Trouble::Stalled(patience)),
                Ok(None) => return Err(Trouble::Cut("it ended before the first token".into())),
                Ok(Some(Err(error))) => return Err(Trouble::Cut(why(&error))),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => break data,
                    _ => {}
                },
            }
        };
        call.first_token();
        self.metrics.backend_first_token(call.elapsed());
        let ending = self.ending.clone().cancelled_owned();
        let (patience, metrics) = (self.patience.token, self.metrics.clone());
        let watched = Watched::new(body, first, call, patience, ending, metrics, served(true));
        Ok(Answered::Stream(Box::new(watched)))
    }

    async fn whole(
        &self,
        mut call: Call,
        body: Incoming,
        status: StatusCode,
        served: impl FnOnce(bool) -> Served,
    ) -> Result<Answered, Trouble> {
        let patience = self.patience.first_token;
        let left = patience.saturating_sub(call.elapsed());
        let body = timeout(left, Limited::new(body, ANSWER_BYTES_MAX).collect()).await;
        let body = body.map_err(|_| Trouble::Stalled(patience))?;
        let body = body.map_err(|error| Trouble::Cut(why(&*error)))?.to_bytes();
        if status.is_success() {
            let answer: Answer =
                serde_json::from_slice(&body).map_err(|error| Trouble::Garbage(error.to_string()))?;
            let usage = answer.usage.as_ref();
            call.whole(usage.and_then(|usage| usage.completion_tokens).unwrap_or(0));
            let mut served = served(false);
            if let Some(usage) = usage {
                let details = usage.prompt_tokens_details.as_ref();
                let cached = details.and_then(|details| details.cached_tokens).unwrap_or(0);
                self.metrics.prompt_tokens.inc_by(usage.prompt_tokens.unwrap_or(0));
                self.metrics.cached_tokens.inc_by(cached);
                self.metrics.generated_tokens.inc_by(usage.completion_tokens.unwrap_or(0));
                let counts = [usage.prompt_tokens, Some(cached), usage.completion_tokens];
                served.used(counts.map(|count| count.unwrap_or(0)));
            }
        }
        Ok(Answered::Whole(body))
    }
}

fn request(backend: &Backend, errand: &Errand<'_>) -> Result<Request<Body>, Trouble> {
    let mut request = Request::post(format!("{}{}", backend.spec.url, errand.path))
        .header(HOST, backend.authority.as_str())
        .header("x-request-id", errand.request_id)
        .body(Body::from(errand.body.clone()))
        .map_err(|error| Trouble::Garbage(error.to_string()))?;
    for name in &FORWARDED {
        if let Some(value) = errand.headers.get(name) {
            request.headers_mut().insert(name.clone(), value.clone());
        }
    }
    Ok(request)
}
