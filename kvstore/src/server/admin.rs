//! The admin listener of a store: the page, `/metrics` for Prometheus, `/health`.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, header},
    response::IntoResponse,
    routing::get,
};
use kelvin_proto::Exposition;
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::metrics::StoreCollector;
use crate::{page::guarded, store::Store};

pub(super) async fn serve(listener: TcpListener, store: Arc<Store>, page: Router, stop: CancellationToken) {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(StoreCollector(store)));
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(async || "ok\n"))
        .with_state(Arc::new(registry))
        .merge(page);
    let served = axum::serve(listener, guarded(router)).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::warn!(%error, "admin page ended");
    }
}

async fn metrics(State(registry): State<Arc<Registry>>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = Exposition::accepted(accept);
    // Some of it waits for locks, and reads the catalog's folder.
    let page = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        encode(&mut text, &registry).expect("writing to a string does not fail");
        format.render(text)
    });
    let page = page.await.expect("the page is made or the process ends");
    ([(header::CONTENT_TYPE, format.content_type())], page)
}
