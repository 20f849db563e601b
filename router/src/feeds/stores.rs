//! What stores have that engines load from: followed by their block events, so that no request asks them.
//!
//! # Overview
//! A backend whose description names a store (`store=http://HOST:PORT`) has its engine load from there. Each store so
//! named is connected to; its namespaces whose model is one of those backends' are followed by `Watch`: a snapshot,
//! then what changes, from the last cursor on after a break, and from a new snapshot where the store says that
//! something was lost or that it is another start of it.
//!
//! # Modes
//! Of a store, that of its least known namespace: `exact`; `degraded`, something found no place; `fallback`, it is
//! away or has none of the models, and nothing is expected of it.
//!
//! # Limits
//! [`STORES_MAX`] stores, for each of which there is a budget of the directory's size in equal parts for
//! [`NAMESPACES_MAX`] namespaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kelvin_kvstore::{Client, ClientOptions};
use parking_lot::RwLock;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Mode,
    followed::Followed,
    holdings::{Hashed, Holdings, Rates},
};
use crate::{backend::Roster, expected::Held, metrics::Metrics};

/// Between two looks at which stores and namespaces there are, and between two tries.
const LOOK: Duration = Duration::from_secs(1);
/// Most time for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
const STORES_MAX: usize = 64;
const NAMESPACES_MAX: usize = 8;

/// The stores that backends load from.
pub(crate) struct Stores {
    token: Option<String>,
    budget_bytes: usize,
    metrics: Arc<Metrics>,
    known: RwLock<BTreeMap<String, Arc<Store>>>,
}

/// One of them.
struct Store {
    url: String,
    gone: CancellationToken,
    /// Of the backends that load from it.
    models: RwLock<BTreeSet<String>>,
    namespaces: RwLock<BTreeMap<(String, u64), Arc<Followed>>>,
    rates: RwLock<Rates>,
    /// Why it is away.
    why: RwLock<Option<String>>,
}

/// What is said of a store.
pub(crate) struct StoreReport {
    pub(crate) url: String,
    pub(crate) mode: Mode,
    pub(crate) why: Option<String>,
    pub(crate) namespaces: usize,
    pub(crate) blocks: usize,
    pub(crate) memory_bytes: usize,
}

impl Stores {
    /// Each takes `budget_bytes` at most, twice that while a snapshot is read; `token` is what they want to hear.
    pub(crate) fn new(token: Option<String>, budget_bytes: usize, metrics: Arc<Metrics>) -> Self {
        Self { token, budget_bytes, metrics, known: RwLock::default() }
    }

    /// What each of the stores at `urls` has of a prompt for `model`, from its beginning on.
    pub(crate) fn held(&self, urls: &[String], model: &str, tokens: &[u32]) -> Vec<Vec<Held>> {
        let mut prompt = Hashed::new(tokens);
        urls.iter().map(|url| self.held_at(url, model, &mut prompt)).collect()
    }

    fn held_at(&self, url: &str, model: &str, prompt: &mut Hashed<'_>) -> Vec<Held> {
        let Some(store) = self.known.read().get(url).cloned() else { return Vec::new() };
        let rates = *store.rates.read();
        let namespaces = store.namespaces.read();
        let of_model = namespaces.range((model.to_owned(), 0)..=(model.to_owned(), u64::MAX));
        let held = of_model.map(|(_, followed)| followed.holdings.held(prompt, &rates));
        held.max_by_key(|held| held.iter().map(|held| held.tokens).sum::<u64>()).unwrap_or_default()
    }

    pub(crate) fn reports(&self) -> Vec<StoreReport> {
        self.known.read().values().map(|store| store.report()).collect()
    }

    /// Follows the stores that the roster's backends name, until `stop`.
    pub(crate) async fn follow(
        self: Arc<Self>,
        roster: Arc<Roster>,
        tracker: TaskTracker,
        stop: CancellationToken,
    ) {
        loop {
            self.look(&roster, &tracker, &stop);
            if stop.run_until_cancelled(sleep(LOOK)).await.is_none() {
                return;
            }
        }
    }

    /// Has the known stores be those that are named.
    fn look(self: &Arc<Self>, roster: &Roster, tracker: &TaskTracker, stop: &CancellationToken) {
        let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for backend in &roster.table().all {
            if let Some(url) = &backend.spec.store
                && (wanted.len() < STORES_MAX || wanted.contains_key(url))
            {
                let models = wanted.entry(url.clone()).or_default();
                models.extend(backend.cards().into_iter().map(|card| card.id));
            }
        }
        let mut known = self.known.write();
        known.retain(|url, store| {
            let stays = wanted.contains_key(url);
            if !stays {
                store.gone.cancel();
            }
            stays
        });
        for (url, models) in wanted {
            let store = known.entry(url).or_insert_with_key(|url| {
                let store = Arc::new(Store::new(url.clone(), stop.child_token()));
                let (stores, run) = (self.clone(), store.clone());
                tracker.spawn(async move {
                    let gone = run.gone.clone();
                    let _ = gone.run_until_cancelled(run.run(&stores)).await;
                });
                store
            });
            *store.models.write() = models;
        }
    }
}

impl Store {
    fn new(url: String, gone: CancellationToken) -> Self {
        Self {
            url,
            gone,
            models: RwLock::default(),
            namespaces: RwLock::default(),
            rates: RwLock::default(),
            why: RwLock::new(Some("it was not reached yet".into())),
        }
    }

    /// Connects, and connects again.
    async fn run(&self, stores: &Stores) {
        loop {
            let why = self.connection(stores).await;
            self.namespaces.read().values().for_each(|followed| followed.holdings.away());
            let before = self.why.write().replace(why.clone());
            if before.as_ref() != Some(&why) {
                tracing::warn!(store = self.url, why, "a store that backends load from is away");
            }
            sleep(LOOK).await;
        }
    }

    /// Follows until something breaks; returns what.
    async fn connection(&self, stores: &Stores) -> String {
        let options = ClientOptions {
            token: stores.token.clone(),
            shared_memory: false,
            ..ClientOptions::new(self.url.clone(), "router")
        };
        let client = match timeout(PATIENCE, Client::connect(options)).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "it does not answer".into(),
        };
        // All of them end with this connection.
        let mut streams = JoinSet::new();
        let mut running = BTreeSet::new();
        loop {
            let stats = match timeout(PATIENCE, client.stats()).await {
                Ok(Ok(stats)) => stats,
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return "it does not answer".into(),
            };
            if self.why.write().take().is_some() {
                tracing::info!(store = self.url, "a store that backends load from is there");
            }
            *self.rates.write() = Rates::of(&stats);
            let models = self.models.read().clone();
            let named = stats.namespaces.iter().filter(|namespace| models.contains(&namespace.model));
            let keys: BTreeSet<_> = named
                .map(|namespace| (namespace.model.clone(), namespace.namespace_id))
                .take(NAMESPACES_MAX)
                .collect();
            self.namespaces.write().retain(|key, _| keys.contains(key));
            if running.iter().any(|key| !keys.contains(key)) {
                return "what is followed of it changed".into();
            }
            for key in keys {
                let mut namespaces = self.namespaces.write();
                let followed = namespaces
                    .entry(key.clone())
                    .or_insert_with(|| Arc::new(Followed::new(stores.budget_bytes / NAMESPACES_MAX)));
                let (id, incarnation) = (key.1, stats.incarnation);
                if running.insert(key) {
                    let (client, followed, metrics) =
                        (client.clone(), followed.clone(), stores.metrics.clone());
                    streams.spawn(async move {
                        let watch = |cursor, known| client.watch_described(id, cursor, known);
                        followed.run(incarnation, &metrics, watch).await
                    });
                }
            }
            tokio::select! {
                () = sleep(LOOK) => {}
                Some(why) = streams.join_next() => {
                    return why.unwrap_or_else(|error| error.to_string());
                }
            }
        }
    }

    fn report(&self) -> StoreReport {
        let namespaces = self.namespaces.read();
        let all = || namespaces.values().map(|followed| &followed.holdings);
        StoreReport {
            url: self.url.clone(),
            mode: all().map(Holdings::mode).min().unwrap_or_default(),
            why: self.why.read().clone(),
            namespaces: namespaces.len(),
            blocks: all().map(Holdings::blocks).sum(),
            memory_bytes: all().map(Holdings::memory_bytes).sum(),
        }
    }
}
