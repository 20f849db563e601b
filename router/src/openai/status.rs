//! What a router says of itself: `/v1/models`, `/health`, `/metrics`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use kelvin_proto::Exposition;
use serde::Serialize;

use super::{App, error::ApiError};
use crate::{
    backend::{Backend, Source},
    cost::Role,
    feeds,
    fleet::{Health, Worker},
};

#[derive(Serialize)]
struct ModelList {
    object: &'static str,
    data: Vec<ModelCard>,
}

#[derive(Serialize)]
struct ModelCard {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: String,
    /// Longest prompt plus completion, tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<u32>,
}

/// `GET /v1/models`.
pub(super) async fn models(State(app): State<Arc<App>>) -> Response {
    Json(ModelList { object: "list", data: cards(&app) }).into_response()
}

/// `GET /v1/models/{id}`.
pub(super) async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    match cards(&app).into_iter().find(|card| card.id == id) {
        Some(card) => Ok(Json(card).into_response()),
        None => Err(ApiError::unknown_model(&id)),
    }
}

/// The native workers' model first, then those of other engines.
fn cards(app: &App) -> Vec<ModelCard> {
    let card = |id: String, owned_by: String, max_model_len| ModelCard {
        id,
        object: "model",
        created: app.started_s,
        owned_by,
        max_model_len,
    };
    let own = app.scheduler.fleet.model();
    let own_name = own.as_ref().map(|model| model.name.clone());
    let own = own.map(|model| card(model.name, "kelvin".into(), Some(model.context_tokens_max)));
    let others = app.forwarder.iter().flat_map(|forwarder| forwarder.roster.table().cards());
    let others = others.filter(|other| own_name.as_deref() != Some(&other.id));
    own.into_iter()
        .chain(others.map(|other| card(other.id, other.owned_by, other.context_tokens_max)))
        .collect()
}

#[derive(Serialize)]
pub(super) struct HealthReport {
    /// `ok`, `degraded` (serving, but not all is well) or `unavailable`.
    status: &'static str,
    model: Option<String>,
    fingerprint: Option<String>,
    defined_by: Option<String>,
    store: &'static str,
    requests_in_flight: i64,
    workers: Vec<WorkerReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    backends: Vec<BackendReport>,
    /// Those that are followed: the workers' own, and those that backends load from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stores: Vec<StoreReport>,
    /// Where backends are looked for beside the command line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<SourceReport>,
}

#[derive(Serialize)]
struct StoreReport {
    url: String,
    /// `workers` or `backends`.
    used_by: &'static str,
    /// What is known of what it has.
    known: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    namespaces: usize,
    blocks: usize,
}

#[derive(Serialize)]
struct SourceReport {
    source: &'static str,
    /// `seen`, or `away`: what was found there last counts.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    backends: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(Serialize)]
struct BackendReport {
    url: String,
    role: &'static str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    circuit: &'static str,
    /// What is known of its cache.
    cache: &'static str,
    models: Vec<String>,
    in_flight: u32,
    queued_tokens: u64,
    tokens_per_second: Option<f64>,
    step_us: Option<f64>,
}

impl SourceReport {
    fn new(source: Source, found: Result<usize, String>) -> Self {
        Self {
            source: source.name(),
            state: if found.is_ok() { "seen" } else { "away" },
            backends: found.as_ref().ok().copied(),
            why: found.err(),
        }
    }
}

impl BackendReport {
    fn new(backend: &Backend) -> Self {
        let (health, load) = (backend.health(), backend.load());
        Self {
            url: backend.spec.url.clone(),
            role: backend.role().name(),
            state: health.name(),
            why: backend.why(),
            circuit: backend.circuit().name(),
            cache: backend.mode().name(),
            models: backend.cards().into_iter().map(|card| card.id).collect(),
            in_flight: load.streams,
            queued_tokens: load.queued_tokens,
            tokens_per_second: load.terms.tokens_per_second,
            step_us: load.terms.step_us,
        }
    }
}

#[derive(Serialize)]
struct WorkerReport {
    endpoint: String,
    name: String,
    role: Option<&'static str>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    incarnation: Option<u64>,
    running: u32,
    waiting: u32,
    slots: u32,
    pending_prompt_tokens: u64,
    prefill_tokens_per_second: f64,
    in_flight: u32,
}

impl WorkerReport {
    fn new(worker: &Worker) -> Self {
        let view = worker.view();
        let described = view.described.as_ref();
        let load = described.and_then(|described| described.load).unwrap_or_default();
        Self {
            endpoint: worker.endpoint().to_owned(),
            name: worker.name(),
            role: view.role.map(Role::name),
            state: view.health.name(),
            why: view.health.why().map(str::to_owned),
            incarnation: described.map(|described| described.incarnation),
            running: load.running,
            waiting: load.waiting,
            slots: load.slots,
            pending_prompt_tokens: load.pending_prompt_tokens,
            prefill_tokens_per_second: load.prefill_tokens_per_second,
            in_flight: worker.in_flight(),
        }
    }
}

/// `GET /health`: 200 when a request could be served now, else 503.
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let (serving, report) = report(&app);
    let code = if serving { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(report)).into_response()
}

/// Whether a request could be served now, and how all are.
pub(super) fn report(app: &App) -> (bool, HealthReport) {
    let fleet = &app.scheduler.fleet;
    let store = app.scheduler.prefixes.state();
    let table = app.forwarder.as_ref().map(|forwarder| forwarder.roster.table()).unwrap_or_default();
    let stores = stores(app);
    let sources = app.forwarder.as_ref().map(|forwarder| forwarder.roster.sources()).unwrap_or_default();
    let serving =
        (fleet.has_ready(Role::Decode) || table.has_ready()) && !app.scheduler.ending.is_cancelled();
    let all_well = store != "away"
        && fleet.workers().iter().all(|worker| worker.view().health == Health::Ready)
        && table.all.iter().all(|backend| backend.is_open())
        && stores.iter().all(|(_, store)| store.why.is_none())
        && sources.iter().all(|(_, found)| found.is_ok());
    let status = match (serving, all_well) {
        (false, _) => "unavailable",
        (true, false) => "degraded",
        (true, true) => "ok",
    };
    let definition = fleet.definition();
    let report = HealthReport {
        status,
        model: definition.map(|definition| definition.spec.model.clone()),
        fingerprint: definition.map(|definition| definition.spec.fingerprint.to_string()),
        defined_by: definition.map(|definition| definition.defined_by.clone()),
        store,
        requests_in_flight: app.metrics.in_flight.get(),
        workers: fleet.workers().iter().map(|worker| WorkerReport::new(worker)).collect(),
        backends: table.all.iter().map(|backend| BackendReport::new(backend)).collect(),
        stores: stores
            .into_iter()
            .map(|(used_by, store)| StoreReport {
                url: store.url,
                used_by,
                known: store.mode.name(),
                why: store.why,
                namespaces: store.namespaces,
                blocks: store.blocks,
            })
            .collect(),
        sources: sources.into_iter().map(|(source, found)| SourceReport::new(source, found)).collect(),
    };
    (serving, report)
}

/// The stores that are followed, each with who uses it.
fn stores(app: &App) -> Vec<(&'static str, feeds::StoreReport)> {
    let others = app.forwarder.iter().flat_map(|forwarder| forwarder.stores.reports());
    let own = app.scheduler.prefixes.report().map(|report| ("workers", report));
    own.into_iter().chain(others.map(|report| ("backends", report))).collect()
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    app.metrics.workers(app.scheduler.fleet.counts());
    app.metrics.sessions(app.scheduler.sessions.lock().len());
    app.metrics.lookups.filling(app.scheduler.prefixes.filling_blocks());
    let stores: Vec<_> = stores(&app).into_iter().map(|(_, report)| report).collect();
    if !stores.is_empty() || app.forwarder.is_some() {
        app.metrics.backend.stores(&stores);
    }
    if let Some(forwarder) = &app.forwarder {
        let table = forwarder.roster.table();
        app.metrics.backends(table.counts());
        app.metrics.feeds(table.modes());
        app.metrics.backend.sessions(forwarder.sessions.len());
        let directory = &forwarder.directory;
        let (blocks, coming) = (directory.len(), directory.marks_coming());
        app.metrics.directory(blocks, coming, directory.memory_bytes(), directory.refused());
    }
    let format = Exposition::accepted(headers.get(ACCEPT).and_then(|value| value.to_str().ok()));
    let content_type = HeaderValue::from_static(format.content_type());
    ([(CONTENT_TYPE, content_type)], format.render(app.metrics.encode())).into_response()
}
