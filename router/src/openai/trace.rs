//! What every request gets: an id, a span, a count, and an answer even if its handler panics.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::HeaderValue,
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use kelvin_proto::trace;
use tracing::{Instrument, Span, field::Empty};

use super::{App, error::ApiError};

const HEADER: &str = "x-request-id";
const ID_BYTES_MAX: usize = 128;

/// A request's ids.
#[derive(Debug, Clone)]
pub(super) struct RequestId {
    /// As the client wrote it in `x-request-id`, or `unique`: comes back in the answer.
    pub(super) shown: String,
    /// Ours alone.
    pub(super) unique: String,
}

/// Makes ids that no other start of the router makes.
pub(super) struct Ids {
    start: u64,
    next: AtomicU64,
}

impl Ids {
    pub(super) fn new(start: u64) -> Self {
        Self { start, next: AtomicU64::new(0) }
    }

    fn unique(&self) -> String {
        format!("{:016x}{:08x}", self.start, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// The span of a request, of a streamed answer up to its last event. Those of the API have one that is exported; who
/// looks at metrics or health every few seconds is no request to trace.
fn span(id: &RequestId, method: &str, route: &str) -> Span {
    if !route.starts_with("/v1/") || route == "/v1/models" {
        return tracing::info_span!(target: "kelvin_router::page", "page", id = id.shown, route);
    }
    tracing::info_span!(
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        id = id.shown,
        request_id = id.unique,
        route,
        http.response.status_code = Empty,
        model = Empty,
        prompt_tokens = Empty,
        cached_tokens = Empty,
        generated_tokens = Empty,
    )
}

/// The layer around all routes.
pub(super) async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let unique = app.ids.unique();
    let given = request.headers().get(HEADER).and_then(|value| value.to_str().ok());
    let given = given.filter(|id| !id.is_empty() && id.len() <= ID_BYTES_MAX);
    let id = RequestId { shown: given.unwrap_or(&unique).to_owned(), unique };
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let span = span(&id, request.method().as_str(), &route);
    trace::adopt(&span, trace::of_headers(request.headers()));
    request.extensions_mut().insert(id.clone());
    // A client that leaves drops it, and with it all of this.
    let unanswered = app.metrics.seen.begin(&id.shown, &id.unique, &route);
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let _entered = span.enter();
    let mut response = handled.unwrap_or_else(|_| {
        app.metrics.error("panic");
        tracing::error!("a handler panicked");
        ApiError::internal().into_response()
    });
    let (status, took) = (response.status().as_u16(), begun.elapsed());
    app.metrics.request(&route, status, took);
    span.record("http.response.status_code", status);
    unanswered.answered(status);
    tracing::info!(status, ?took, "answered");
    if let Ok(value) = HeaderValue::from_str(&id.shown) {
        response.headers_mut().insert(HEADER, value);
    }
    response
}
