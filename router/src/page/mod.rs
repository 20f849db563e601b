//! The router behind the built-in page: its workers and requests, and what the store says of itself.
//!
//! The store's figures are its `Stats`, asked for once a second; the tree of prefixes and all that changes
//! something is at the store's own page, whose address an operator may name.

mod requests;

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use futures::{FutureExt, future::BoxFuture};
use kelvin_kvstore::{
    Client, ClientOptions,
    page::{Failure, Kind, STORE_SERIES, Series, Source, TreeQuery, explanation, figures, mrc, sample},
};
use kelvin_proto::kv::v1::StatsResponse;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{openai::App, prefix::Missing};
pub(crate) use requests::{Placed, Requests, Served};

/// Most time for the store's answer: the next sample is due in a second.
const STATS_TIMEOUT: Duration = Duration::from_millis(700);

const fn counter(name: &'static str, unit: &'static str) -> Series {
    Series { name, kind: Kind::Counter, unit }
}

/// What the history keeps of a router, before what it keeps of the store.
const ROUTER_SERIES: [Series; 4] = [
    counter("router.prompt", "tokens"),
    counter("router.cached", "tokens"),
    counter("router.generated", "tokens"),
    Series { name: "router.in_flight", kind: Kind::Gauge, unit: "requests" },
];

/// Where the store is, and the last that was heard of it.
pub(crate) struct StoreAt {
    pub(crate) endpoint: String,
    pub(crate) token: Option<String>,
}

/// A router as the page sees it.
pub(crate) struct RouterPage {
    app: Arc<App>,
    store: Option<StoreAt>,
    /// The store's own page, for people.
    store_page: Option<String>,
    client: Mutex<Option<Client>>,
    last: Mutex<Option<StatsResponse>>,
}

impl RouterPage {
    pub(crate) fn new(app: Arc<App>, store: Option<StoreAt>, store_page: Option<String>) -> Self {
        Self { app, store, store_page, client: Mutex::default(), last: Mutex::default() }
    }

    /// Asks the store.
    async fn ask(&self, curves: bool) -> Option<StatsResponse> {
        let at = self.store.as_ref()?;
        let asked = async {
            let known = self.client.lock().clone();
            let client = match known {
                Some(client) => client,
                None => {
                    let options = ClientOptions {
                        token: at.token.clone(),
                        shared_memory: false,
                        data_port: false,
                        ..ClientOptions::new(&at.endpoint, "router-page")
                    };
                    let client = Client::connect(options).await.ok()?;
                    *self.client.lock() = Some(client.clone());
                    client
                }
            };
            if curves { client.stats().await.ok() } else { client.stats_without_curves().await.ok() }
        };
        timeout(STATS_TIMEOUT, asked).await.ok().flatten()
    }

    async fn explained(&self, id: &str) -> Option<Value> {
        let seen = self.app.metrics.seen.find(id)?;
        let mut value = seen.json();
        value["explain"] = match seen.missing() {
            None => Value::Null,
            Some(Missing { hash, why }) => {
                let now = timeout(STATS_TIMEOUT, self.app.scheduler.prefixes.explain(hash)).await;
                let then = why.map(|why| why.explanation(hash, seen.age()));
                explanation(then.as_ref(), now.ok().flatten().as_ref())
            }
        };
        Some(value)
    }
}

impl Source for RouterPage {
    fn series(&self) -> Vec<Series> {
        [&ROUTER_SERIES[..], &STORE_SERIES[..]].concat()
    }

    fn sample(&self) -> BoxFuture<'_, Vec<f64>> {
        async {
            let stats = self.ask(false).await;
            self.last.lock().clone_from(&stats);
            let metrics = &self.app.metrics;
            let mut row = vec![
                metrics.prompt_tokens.get() as f64,
                metrics.cached_tokens.get() as f64,
                metrics.generated_tokens.get() as f64,
                metrics.in_flight.get() as f64,
            ];
            row.extend(sample(stats.as_ref()));
            row
        }
        .boxed()
    }

    fn now(&self) -> BoxFuture<'_, Value> {
        async {
            let stats = self.last.lock().clone();
            let report = self.app.report();
            json!({
                "kind": "router",
                "version": env!("CARGO_PKG_VERSION"),
                "may_change": false,
                "router": report,
                "store_page": self.store_page,
                "store": stats.as_ref().map(figures),
            })
        }
        .boxed()
    }

    fn curves(&self) -> BoxFuture<'_, Value> {
        // They cost the store some time, so it is asked for them when somebody looks.
        async {
            let stats = self.ask(true).await;
            stats.as_ref().map_or_else(|| json!({"capacities": {}, "namespaces": []}), mrc)
        }
        .boxed()
    }

    fn tree(&self, _: TreeQuery) -> BoxFuture<'_, Result<Value, Failure>> {
        let message = "the tree is at the store: open the page of its admin listener";
        std::future::ready(Err(Failure::new(StatusCode::NOT_FOUND, message))).boxed()
    }

    fn requests(&self) -> Value {
        self.app.metrics.seen.lists()
    }

    fn request<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Option<Value>> {
        self.explained(id).boxed()
    }

    fn act<'a>(&'a self, _: Option<&'a str>, _: Value) -> BoxFuture<'a, Result<Value, Failure>> {
        let message = "nothing is changed at a router: open the page of the store's admin listener";
        std::future::ready(Err(Failure::new(StatusCode::FORBIDDEN, message))).boxed()
    }
}
