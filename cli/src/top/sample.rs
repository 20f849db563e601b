//! One look at a store and its router.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kelvin_kvstore::Client;
use kelvin_proto::kv::v1::StatsResponse;
use serde::Deserialize;

use crate::http;

/// Where looks are taken.
pub(super) struct Source {
    pub(super) store: Client,
    pub(super) url: String,
    pub(super) router: Option<String>,
}

/// What was seen.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) taken: Instant,
    pub(super) store: String,
    pub(super) stats: StatsResponse,
    /// The router's address, and what it said or why not.
    pub(super) router: Option<(String, Result<Router, String>)>,
}

/// A router's `/health`, as far as it is shown.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Router {
    pub(super) status: String,
    #[serde(default)]
    pub(super) store: String,
    #[serde(default)]
    pub(super) requests_in_flight: i64,
    #[serde(default)]
    pub(super) workers: Vec<Worker>,
    #[serde(default)]
    pub(super) backends: Vec<Backend>,
}

/// A native worker.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Worker {
    pub(super) name: String,
    pub(super) role: Option<String>,
    pub(super) state: String,
    #[serde(default)]
    pub(super) running: u32,
    #[serde(default)]
    pub(super) waiting: u32,
    #[serde(default)]
    pub(super) slots: u32,
    #[serde(default)]
    pub(super) pending_prompt_tokens: u64,
    #[serde(default)]
    pub(super) prefill_tokens_per_second: f64,
}

/// Another engine's server.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Backend {
    pub(super) url: String,
    pub(super) state: String,
    #[serde(default)]
    pub(super) circuit: String,
    #[serde(default)]
    pub(super) cache: String,
    #[serde(default)]
    pub(super) in_flight: u32,
    #[serde(default)]
    pub(super) queued_tokens: u64,
    pub(super) tokens_per_second: Option<f64>,
}

/// A store that is busy answers late; one that hangs is said to.
const TIME_MAX: Duration = Duration::from_secs(6);

impl Source {
    /// Looks. A router that does not answer is shown as such; without a store there is nothing to show.
    pub(super) async fn sample(&self) -> anyhow::Result<Sample> {
        let Ok(stats) = tokio::time::timeout(TIME_MAX, self.store.stats()).await else {
            bail!("no answer within {TIME_MAX:?}");
        };
        let router = match &self.router {
            None => None,
            Some(url) => Some((url.clone(), router(url).await.map_err(|error| format!("{error:#}")))),
        };
        Ok(Sample { taken: Instant::now(), store: self.url.clone(), stats: stats?, router })
    }
}

async fn router(url: &str) -> anyhow::Result<Router> {
    // It says 503 when it cannot serve, with the same report.
    let (_, body) = http::get(url, "/health").await.map_err(anyhow::Error::msg)?;
    serde_json::from_str(&body).context("read the router's /health")
}
