//! The OpenAI endpoint: routes, shapes and errors; everything a client sees.
//!
//! # Overview
//! `body` reads and parses, `ask` checks (with `conversation` for messages, `format` and `tools` for what the
//! answer must be, `hints` for the rest), `complete` brings a request to the scheduler, `completion` turns
//! what comes back into text and, by `calls`, into calls of tools, `choices` puts several completions together,
//! and `reply` and `sse` give it OpenAI's shape. `error` is the only place that knows status codes.
//!
//! A stream's head is sent with its first token: until then a failure is a status code, after it an
//! event in the stream (see `sse`).
//!
//! # Limits
//! A request asks for its turn when its prompt is known: only then is it known what it costs. So that connections
//! alone cannot fill the memory, 64 bodies are read and tokenized at once, each within its limits of bytes and of
//! time, which makes 256 MiB with the default limits; more of them wait. Behind them are the requests that wait
//! for their turn, of which the tokens of a prompt are kept, and of one for another engine the body, and those in work.
//! As long as there is no room for one more to wait, a request is refused before it is tokenized.

mod ask;
mod body;
mod calls;
mod choices;
mod complete;
mod completion;
mod conversation;
mod error;
mod format;
mod hints;
mod logprobs;
mod pass;
mod reply;
mod request;
mod sse;
mod status;
mod tokens;
mod tools;
mod trace;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::{Method, Uri},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::sync::Semaphore;

pub(crate) use crate::admission::Admitted;
use crate::{
    admission::Admission,
    backend::Forwarder,
    config::KeyKind,
    metrics::Metrics,
    scheduler::Scheduler,
    text::{ChatTemplate, Vocabulary},
};
pub(crate) use error::ApiError;
pub(crate) use hints::Hints;

/// Bodies being read and parsed at once.
const BODIES_MAX: usize = 64;

/// Limits of requests; see [`RouterConfig`](crate::RouterConfig).
pub(crate) struct Limits {
    pub(crate) body_bytes_max: usize,
    pub(crate) read_timeout: Duration,
    pub(crate) client_timeout: Duration,
    pub(crate) requests_max: usize,
    pub(crate) tokens_max_default: u32,
    pub(crate) keys: KeyKind,
}

/// A router's start.
pub(crate) struct Start {
    /// Makes request ids unlike those of other starts.
    pub(crate) seed: u64,
    /// Seconds since 1970.
    pub(crate) now_s: u64,
}

/// What the routes work with.
pub(crate) struct App {
    pub(crate) scheduler: Arc<Scheduler>,
    /// The way to other engines; `None` without any.
    forwarder: Option<Arc<Forwarder>>,
    keys: KeyKind,
    vocabulary: Arc<Vocabulary>,
    template: Option<Arc<ChatTemplate>>,
    pub(crate) metrics: Arc<Metrics>,
    limits: Limits,
    /// Whose turn it is at the native workers, and at other engines.
    native: Admission,
    passed: Admission,
    /// Places for bodies that are being read.
    bodies: Arc<Semaphore>,
    ids: trace::Ids,
    started_s: u64,
}

impl App {
    /// `native` and `passed` admit requests for workers and for other engines.
    pub(crate) fn new(
        scheduler: Arc<Scheduler>,
        forwarder: Option<Arc<Forwarder>>,
        vocabulary: Arc<Vocabulary>,
        template: Option<ChatTemplate>,
        limits: Limits,
        [native, passed]: [Admission; 2],
        start: Start,
    ) -> Self {
        Self {
            metrics: scheduler.metrics.clone(),
            scheduler,
            forwarder,
            keys: limits.keys,
            vocabulary,
            template: template.map(Arc::new),
            native,
            passed,
            bodies: Arc::new(Semaphore::new(BODIES_MAX)),
            limits,
            ids: trace::Ids::new(start.seed),
            started_s: start.now_s,
        }
    }

    /// All routes.
    pub(crate) fn router(self: Arc<Self>) -> Router {
        let app = self;
        Router::new()
            .route("/v1/chat/completions", post(complete::chat))
            .route("/v1/completions", post(complete::text))
            .route("/v1/embeddings", post(pass::embeddings))
            .route("/v1/models", get(status::models))
            .route("/v1/models/{*id}", get(status::model))
            .route("/health", get(status::health))
            .fallback(unknown_route)
            .method_not_allowed_fallback(wrong_method)
            .layer(middleware::from_fn_with_state(app.clone(), trace::observe))
            .with_state(app)
    }
}

impl App {
    /// What an operator may ask as well, where clients are not.
    pub(crate) fn admin(self: Arc<Self>) -> Router {
        Router::new()
            .route("/health", get(status::health))
            .route("/metrics", get(status::metrics))
            .with_state(self)
    }

    /// What `/health` says, as JSON.
    pub(crate) fn report(&self) -> serde_json::Value {
        serde_json::to_value(status::report(self).1).unwrap_or_default()
    }
}

async fn unknown_route(method: Method, uri: Uri) -> Response {
    ApiError::unknown_route(method.as_str(), uri.path()).into_response()
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    ApiError::wrong_method(method.as_str(), uri.path()).into_response()
}
