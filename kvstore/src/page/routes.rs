//! The routes below `/ui`, and the sampler behind the history.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{History, Series, access, assets};

const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const ACTION_BYTES_MAX: usize = 4096;

/// Why something was not done; the page shows the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its status.
    pub status: StatusCode,
    /// What to change.
    pub message: String,
}

impl Failure {
    /// With a status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(json!({"error": self.message}))).into_response()
    }
}

/// Which part of which tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeQuery {
    /// A namespace's id as `now` gives it; without one, the largest.
    pub namespace: Option<String>,
    /// A block: it and all behind it. Without one, the whole tree.
    pub from: Option<String>,
}

/// What a page shows.
pub trait Source: Send + Sync + 'static {
    /// The series of the history.
    fn series(&self) -> Vec<Series>;
    /// One number for each of them; NaN where it is not known.
    fn sample(&self) -> BoxFuture<'_, Vec<f64>>;
    /// Figures of this moment.
    fn now(&self) -> BoxFuture<'_, Value>;
    /// Curves of the hit rate over the size.
    fn curves(&self) -> BoxFuture<'_, Value>;
    /// The tree of prefixes.
    fn tree(&self, query: TreeQuery) -> BoxFuture<'_, Result<Value, Failure>>;
    /// Recent requests.
    fn requests(&self) -> Value;
    /// One of them, explained.
    fn request<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Option<Value>>;
    /// Changes something, for whoever brings this token.
    fn act<'a>(&'a self, token: Option<&'a str>, action: Value) -> BoxFuture<'a, Result<Value, Failure>>;
}

/// A source and its history.
#[derive(Clone)]
pub struct Page {
    source: Arc<dyn Source>,
    history: Arc<History>,
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Page").field("history", &self.history).finish_non_exhaustive()
    }
}

impl Page {
    /// Of a source.
    pub fn new(source: Arc<dyn Source>) -> Self {
        let history = Arc::new(History::new(source.series(), now_ms()));
        Self { source, history }
    }

    /// The history.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Takes a sample each second until `stop`.
    pub async fn watch(self, stop: CancellationToken) {
        let (_, bytes_max) = self.history.memory_bytes();
        tracing::info!(series = self.history.series().len(), bytes_max, "the page keeps a history");
        let mut tick = tokio::time::interval(SAMPLE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let Some(row) = stop.run_until_cancelled(self.source.sample()).await else { return };
            self.history.push(now_ms(), row);
        }
    }

    /// The page and its calls, to be [`guarded`].
    pub fn routes(&self) -> Router {
        Router::new()
            .route("/", get(async || Redirect::temporary("/ui/")))
            .route("/ui", get(async || Redirect::temporary("/ui/")))
            .route("/ui/", get(async || asset("index.html")))
            .route("/ui/{*file}", get(async |Path(name): Path<String>| asset(&name)))
            .route("/ui/api/now", get(now))
            .route("/ui/api/history", get(history))
            .route("/ui/api/mrc", get(curves))
            .route("/ui/api/tree", get(tree))
            .route("/ui/api/requests", get(requests))
            .route("/ui/api/requests/{id}", get(request))
            .route("/ui/api/act", post(act))
            .layer(DefaultBodyLimit::max(ACTION_BYTES_MAX))
            .with_state(self.clone())
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Keeps everything of an admin listener, `/metrics` and `/health` too, from pages of other origins (see
/// [`access`]). The listener is loopback: whoever scrapes or probes it names an address of this machine, or goes
/// through a proxy on it, which must.
pub fn guarded(routes: Router) -> Router {
    routes.layer(middleware::from_fn(guard))
}

async fn guard(request: Request, next: Next) -> Response {
    let refused = if !access::is_own_host(request.headers()) {
        Some("the host of this address is not a name of this machine: use 127.0.0.1, [::1] or localhost")
    } else if !request.method().is_safe() && !access::is_own_origin(request.headers()) {
        Some("a page of another origin may change nothing here")
    } else {
        None
    };
    assets::guard(match refused {
        Some(why) => Failure::new(StatusCode::FORBIDDEN, why).into_response(),
        None => next.run(request).await,
    })
}

fn asset(name: &str) -> Response {
    assets::file(name).unwrap_or_else(|| {
        Failure::new(StatusCode::NOT_FOUND, format!("the page has no file `{name}`")).into_response()
    })
}

async fn now(State(page): State<Page>) -> Json<Value> {
    let mut now = page.source.now().await;
    let (memory_bytes, memory_bytes_max) = page.history.memory_bytes();
    now["at_ms"] = json!(now_ms());
    now["history_memory_bytes"] = json!(memory_bytes);
    now["history_memory_bytes_max"] = json!(memory_bytes_max);
    Json(now)
}

type Params = Query<std::collections::HashMap<String, String>>;

async fn history(State(page): State<Page>, Query(params): Params) -> Result<Json<Value>, Failure> {
    let bad = |message: &str| Failure::new(StatusCode::BAD_REQUEST, message);
    let since = match params.get("since") {
        None => 0,
        Some(text) => {
            text.parse().map_err(|_| bad("since is the number that the last answer called `next`"))?
        }
    };
    let minutes = match params.get("step").map(String::as_str) {
        None | Some("1s") => false,
        Some("1m") => true,
        Some(_) => return Err(bad("step is 1s or 1m")),
    };
    Ok(Json(page.history.since(since, minutes)))
}

async fn curves(State(page): State<Page>) -> Json<Value> {
    Json(page.source.curves().await)
}

async fn tree(State(page): State<Page>, Query(mut params): Params) -> Result<Json<Value>, Failure> {
    let query = TreeQuery { namespace: params.remove("namespace"), from: params.remove("from") };
    page.source.tree(query).await.map(Json)
}

async fn requests(State(page): State<Page>) -> Json<Value> {
    Json(page.source.requests())
}

async fn request(State(page): State<Page>, Path(id): Path<String>) -> Result<Json<Value>, Failure> {
    page.source.request(&id).await.map(Json).ok_or_else(|| {
        Failure::new(StatusCode::NOT_FOUND, "no recent request has this id; only the last thousand are kept")
    })
}

async fn act(State(page): State<Page>, headers: HeaderMap, body: String) -> Result<Json<Value>, Failure> {
    let action: Value = serde_json::from_str(&body)
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("the action is no JSON: {error}")))?;
    page.source.act(access::bearer(&headers), action).await.map(Json)
}
