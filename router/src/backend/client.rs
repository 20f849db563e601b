//! Connections to engines' servers: kept open and used again.

use std::{error::Error, time::Duration};

use axum::body::Body;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

/// Most time to reach a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection without a request is kept. vLLM's server closes such ones after 5 s; a request that
/// meets a closed one is sent again on another by the pool, if none of it was sent.
const IDLE: Duration = Duration::from_secs(4);
/// Connections without a request that are kept for one server.
const IDLE_MAX: usize = 256;

pub(crate) type Client = legacy::Client<HttpConnector, Body>;

pub(crate) fn client() -> Client {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_MAX)
        .set_host(false)
        .build(connector)
}

/// An error with its causes, which hold what happened.
pub(crate) fn why(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
