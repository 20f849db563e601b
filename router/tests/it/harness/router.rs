//! A router in this process.

use std::{future::Future, time::Duration};

use kelvin_router::{BackendSpec, Error, Listening, ModelSource, RouterConfig, serve};
use serde_json::Value;
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{TestBackend, TestWorker};

/// How long anything may take that must happen; no scenario depends on it being short.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct TestRouter {
    pub(crate) base: String,
    /// Of the admin listener.
    pub(crate) admin: String,
    pub(crate) http: reqwest::Client,
    pub(crate) shutdown: CancellationToken,
    served: JoinHandle<Result<(), Error>>,
}

impl TestRouter {
    /// Starts a router for `workers` and waits until it knows what each of them is.
    pub(crate) async fn start(workers: &[&TestWorker]) -> Self {
        Self::configured(workers, |_| {}).await
    }

    pub(crate) async fn configured(workers: &[&TestWorker], change: impl FnOnce(&mut RouterConfig)) -> Self {
        let mut config = RouterConfig {
            workers: workers.iter().map(|worker| worker.endpoint()).collect(),
            model: Some(ModelSource::Toy),
            poll_interval: Duration::from_millis(100),
            // Scripted workers stay dead.
            migration_wait: Duration::ZERO,
            ..RouterConfig::default()
        };
        change(&mut config);
        let router = Self::bare(config).await;
        router
            .health_until(|health| {
                let states = health["workers"].as_array().unwrap();
                states.iter().all(|worker| worker["state"] != "starting")
            })
            .await;
        router
    }

    /// Starts a router before other engines' servers and waits until they are ready.
    pub(crate) async fn before(backends: &[&TestBackend], change: impl FnOnce(&mut RouterConfig)) -> Self {
        let mut config = RouterConfig {
            backends: backends.iter().map(|backend| BackendSpec::new(backend.url())).collect(),
            probe_interval: Duration::from_millis(50),
            migration_wait: Duration::ZERO,
            ..RouterConfig::default()
        };
        change(&mut config);
        let router = Self::bare(config).await;
        router
            .health_until(|health| {
                let states = health["backends"].as_array().cloned().unwrap_or_default();
                states.len() >= backends.len() && states.iter().all(|backend| backend["state"] == "ready")
            })
            .await;
        router
    }

    /// Starts a router and waits for nothing but its listening.
    pub(crate) async fn bare(mut config: RouterConfig) -> Self {
        config.admin_listen.get_or_insert(([127, 0, 0, 1], 0).into());
        let shutdown = CancellationToken::new();
        let (send, listening) = oneshot::channel::<Listening>();
        let ready = move |listening| send.send(listening).expect("the test waits");
        let served = tokio::spawn(serve(config, ready, shutdown.clone()));
        let listening = timeout(PATIENCE, listening).await.expect("in time").expect("it listens");
        // Its TLS wants a provider, though nothing here is encrypted; an error says that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::new();
        let admin = listening.admin.expect("an admin listener");
        Self {
            base: format!("http://{}", listening.http),
            admin: format!("http://{admin}"),
            http,
            shutdown,
            served,
        }
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        self.http.post(format!("{}{path}", self.base)).json(body).send().await.expect("an answer")
    }

    pub(crate) async fn chat(&self, body: &Value) -> reqwest::Response {
        self.post("/v1/chat/completions", body).await
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.http.get(format!("{}{path}", self.base)).send().await.expect("an answer")
    }

    pub(crate) async fn health(&self) -> Value {
        self.get("/health").await.json().await.expect("JSON")
    }

    pub(crate) async fn health_until(&self, condition: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let waited = timeout(PATIENCE, async {
            loop {
                last = self.health().await;
                if condition(&last) {
                    return;
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
        if waited.await.is_err() {
            panic!("it does not come to that: {last:#}");
        }
        last
    }

    /// Waits until its index of the store has so many blocks, and all that there are.
    pub(crate) async fn knows(&self, blocks: u64) {
        let exact = |health: &Value| {
            let store = &health["stores"][0];
            health["store"] == "connected" && store["known"] == "exact" && store["blocks"] == blocks
        };
        self.health_until(exact).await;
        assert_eq!(self.metric("kelvin_router_store_blocks").await, Some(blocks as f64));
    }

    pub(crate) async fn admin(&self, path: &str) -> reqwest::Response {
        self.http.get(format!("{}{path}", self.admin)).send().await.expect("an answer")
    }

    /// Value of a metric's line, given with its labels.
    pub(crate) async fn metric(&self, line: &str) -> Option<f64> {
        let text = self.admin("/metrics").await.text().await.expect("text");
        let found = text
            .lines()
            .find(|candidate| candidate.strip_prefix(line).is_some_and(|rest| rest.starts_with(' ')));
        found.map(|found| found.rsplit(' ').next().unwrap().parse().expect("a number"))
    }

    /// Waits for the end of a drain.
    pub(crate) async fn ended(self) -> Result<(), Error> {
        timeout(PATIENCE, self.served).await.expect("in time").expect("no panic")
    }
}

/// Waits until something is there.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> T {
    let waited = timeout(PATIENCE, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.expect("it happens in time")
}
