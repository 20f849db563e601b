//! What the store has of a prompt, without asking it on the way.
//!
//! # Overview
//! The store makes requests faster and is never needed to answer one. [`Prefixes::connect`] opens the
//! namespace of the fleet's model in the background, as soon as a worker has defined it, and follows it by its block
//! events into an index. [`Prefixes::find`] answers from there:
//!
//! | the index | who answers |
//! |---|---|
//! | `exact` | the index; the store is asked beside it, and nobody waits for that |
//! | `degraded`, its budget was used up, or not there yet | the store, within a bounded time |
//! | the store is away | nobody, at once: nothing counts as cached |
//!
//! With room again, a degraded index is made anew from a snapshot.
//!
//! The decode worker finds out by itself what is there: too low an answer costs a worse decision, never a wrong token.
//!
//! # Why the store is asked at all
//! To be asked is how the store knows what there is demand for: hits and misses, ghosts, the miss-ratio curve, which
//! block was used last. And it knows what its events do not tell: why a block is missing, and what others than this
//! router are filling. [`Found`] has that once it came.
//!
//! # Limits
//! [`LOOKS_MAX`] such questions are under way at once, each for the time that a request would wait; more are passed
//! over. The index takes what the setting `directory_bytes` says, twice that while a snapshot is read. Events are
//! applied as they come: a block that was stored a moment ago may not be known yet.

mod filling;
mod found;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kelvin_kvstore::{Client, ClientOptions, Namespace, SequenceHash, client::Error};
use kelvin_proto::kv::v1::BlockExplanation;
use parking_lot::RwLock;
use tokio::{
    sync::{Notify, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;

use crate::{
    feeds::{Followed, Mode, Rates, StoreReport},
    fleet::{Definition, Fleet},
    metrics::Metrics,
    openai::Hints,
};
use filling::Filling;
pub(crate) use filling::Made;
use found::Told;
pub(crate) use found::{End, Found, Missing};

/// Between two tries to reach the store, and between two looks whether it is there.
const RETRY: Duration = Duration::from_millis(500);
const PROBE: Duration = Duration::from_secs(2);
/// Until a snapshot is asked for again that may be whole by now: at first, and at most.
const ANEW: Duration = Duration::from_secs(2);
const ANEW_MAX: Duration = Duration::from_secs(600);
/// Most time to end the session at the end: the store ends it by itself else.
const CLOSE: Duration = Duration::from_secs(1);
/// Hints to the store under way at once.
const HINTS_MAX: usize = 64;
/// Questions to the store under way at once that nobody waits for.
const LOOKS_MAX: usize = 256;
/// Most blocks of a prompt that the store looks at in one call.
const ASKED_MAX: usize = 8192;

/// The router's side of the store.
pub(crate) struct Prefixes {
    /// `None` if there is to be no store.
    endpoint: Option<String>,
    /// Bearer token for it.
    token: Option<String>,
    find_timeout: Duration,
    metrics: Arc<Metrics>,
    namespace: RwLock<Option<Namespace>>,
    /// Whether the last call got an answer.
    answers: AtomicBool,
    /// Places for hints under way.
    hints: Semaphore,
    /// Places for looks under way.
    looks: Arc<Semaphore>,
    index: Arc<Followed>,
    rates: RwLock<Rates>,
    /// Why the index is not followed, or was not the last time.
    why: RwLock<String>,
    /// Asks for a look whether the store is there.
    probe: Notify,
    filling: Arc<Filling>,
}

impl Prefixes {
    /// Of the store at `endpoint`, if there is to be one; `token` is what it wants to hear, and `budget_bytes` what the
    /// index of it may take.
    pub(crate) fn new(
        endpoint: Option<String>,
        token: Option<String>,
        find_timeout: Duration,
        budget_bytes: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            endpoint,
            token,
            find_timeout,
            metrics,
            namespace: RwLock::new(None),
            answers: AtomicBool::new(false),
            hints: Semaphore::new(HINTS_MAX),
            looks: Arc::new(Semaphore::new(LOOKS_MAX)),
            index: Arc::new(Followed::new(budget_bytes)),
            rates: RwLock::default(),
            why: RwLock::new("it was not reached yet".into()),
            probe: Notify::new(),
            filling: Arc::default(),
        }
    }

    /// `none`, `connected` or `away`.
    pub(crate) fn state(&self) -> &'static str {
        match (&self.endpoint, self.answers.load(Ordering::Relaxed)) {
            (None, _) => "none",
            (Some(_), true) => "connected",
            (Some(_), false) => "away",
        }
    }

    /// How well the store is followed, if there is one.
    pub(crate) fn report(&self) -> Option<StoreReport> {
        let url = self.endpoint.clone()?;
        let (holdings, answers) = (&self.index.holdings, self.answers.load(Ordering::Relaxed));
        let mode = if answers { holdings.mode() } else { Mode::Fallback };
        Some(StoreReport {
            url,
            mode,
            why: (mode == Mode::Fallback).then(|| self.why.read().clone()),
            namespaces: usize::from(self.namespace.read().is_some()),
            blocks: holdings.blocks(),
            memory_bytes: holdings.memory_bytes(),
        })
    }

    /// Blocks that this router's prefills are making.
    pub(crate) fn filling_blocks(&self) -> usize {
        self.filling.len()
    }

    /// What the store has of a prompt. At least one token is always left to evaluate, so the last block
    /// of a prompt that ends with a whole one is not asked for.
    pub(crate) async fn find(self: &Arc<Self>, tokens: &[u32], extra: &[u8]) -> Found {
        if self.endpoint.is_none() {
            return Found::default();
        }
        let namespace = self.namespace.read().clone();
        let Some(namespace) = namespace else { return self.degraded("the store was not reached yet") };
        if !self.answers.load(Ordering::Relaxed) {
            return self.degraded("the store is away");
        }
        let block_tokens = u64::from(namespace.spec().block_tokens);
        let askable = &tokens[..tokens.len().saturating_sub(1)];
        let hashes = namespace.hash_blocks(askable, extra);
        if hashes.is_empty() {
            return Found::nothing(End::TooShort);
        }
        let indexed = self.index.holdings.matched(&hashes, &self.rates.read());
        if let Some((blocks, load_us)) = indexed {
            self.metrics.lookups.by("index");
            let filling = self.filling.leading(&hashes[blocks..]);
            let known = Told::new(&hashes, blocks as u64, filling as u64, None, block_tokens);
            return Found::indexed(known, load_us as u64, self.look(namespace, hashes, blocks));
        }
        match timeout(self.find_timeout, namespace.match_prefix(&hashes)).await {
            Ok(Ok(found)) => {
                self.note(None);
                self.metrics.lookups.by("store");
                let load_us = found.loads.iter().map(|load| load.load_us_estimate).sum();
                Found::told(Told::of(&found, &hashes, block_tokens), load_us)
            }
            Ok(Err(error)) => {
                self.failed(&error.to_string());
                self.degraded("the store failed")
            }
            Err(_) => {
                self.failed("no answer in time");
                self.degraded("the store did not answer in time")
            }
        }
    }

    /// Asks the store for what the index has answered, of which it has so many `blocks`. Nobody waits for it.
    fn look(
        self: &Arc<Self>,
        namespace: Namespace,
        hashes: Vec<SequenceHash>,
        blocks: usize,
    ) -> Option<Arc<OnceLock<Told>>> {
        let Ok(place) = self.looks.clone().try_acquire_owned() else {
            self.metrics.lookups.look("passed_over");
            return None;
        };
        let told = Arc::new(OnceLock::new());
        let (prefixes, answer) = (self.clone(), told.clone());
        let looking = async move {
            let result = match timeout(prefixes.find_timeout, namespace.match_prefix(&hashes)).await {
                Ok(Ok(found)) => {
                    let asked = hashes.len().min(ASKED_MAX);
                    prefixes.metrics.lookups.compared(blocks.min(asked), (found.blocks as usize).min(asked));
                    let block_tokens = u64::from(namespace.spec().block_tokens);
                    let _ = answer.set(Told::of(&found, &hashes, block_tokens));
                    prefixes.note(None);
                    "answered"
                }
                Ok(Err(error)) => {
                    prefixes.failed(&error.to_string());
                    "failed"
                }
                // The index is followed all the same, as long as the probe is answered.
                Err(_) => {
                    prefixes.probe.notify_one();
                    "late"
                }
            };
            prefixes.metrics.lookups.look(result);
            drop(place);
        };
        tokio::spawn(looking.in_current_span());
        Some(told)
    }

    /// A prefill makes the blocks of a prompt behind its first `stored_tokens`, until what comes back is dropped.
    pub(crate) fn making(&self, tokens: &[u32], extra: &[u8], stored_tokens: u64) -> Option<Made> {
        let namespace = self.namespace.read().clone()?;
        let mut hashes = namespace.hash_blocks(tokens, extra);
        let stored = stored_tokens / u64::from(namespace.spec().block_tokens);
        hashes.drain(..hashes.len().min(stored as usize));
        Some(self.filling.begin(hashes))
    }

    /// Does what a request's hints ask for once its answer is whole; `tokens` are the prompt's and the answer's.
    /// What fails is counted and logged: no answer depends on it. With [`HINTS_MAX`] under way more are passed
    /// over.
    pub(crate) async fn after(&self, tokens: &[u32], hints: &Hints) {
        let namespace = self.namespace.read().clone();
        let (Some(namespace), Ok(_place)) = (namespace, self.hints.try_acquire()) else {
            self.metrics.hint("any", "passed_over");
            return;
        };
        let hashes = namespace.hash_blocks(tokens, &hints.extra());
        if hashes.is_empty() {
            return;
        }
        let note = |hint: &'static str, failure: Option<String>| match failure {
            Some(error) => {
                self.metrics.hint(hint, "failed");
                tracing::warn!(hint, error, "a hint was not followed");
            }
            None => self.metrics.hint(hint, "done"),
        };
        if let Some(ttl_s) = hints.ttl_s {
            let pinned = namespace.pin(&hashes, Some(Duration::from_secs(ttl_s))).await;
            note("ttl", pinned.err().map(|error| error.to_string()));
        }
        if hints.session_end {
            let ended = namespace.end_session(&hashes).await;
            note("session_end", ended.err().map(|error| error.to_string()));
        } else if hints.prefetch_next_turn {
            let fetched = namespace.prefetch(&hashes).await;
            note("prefetch", fetched.err().map(|error| error.to_string()));
        }
    }

    /// The namespace that is asked, once the store was reached.
    pub(crate) fn namespace_id(&self) -> Option<u64> {
        self.namespace.read().as_ref().map(Namespace::namespace_id)
    }

    /// Why the store has not a block, or where it is.
    pub(crate) async fn explain(&self, hash: SequenceHash) -> Option<BlockExplanation> {
        let namespace = self.namespace.read().clone()?;
        namespace.explain(&[hash]).await.ok()?.pop()
    }

    fn degraded(&self, why: &str) -> Found {
        self.metrics.store_degraded.inc();
        self.metrics.lookups.by("nobody");
        tracing::debug!(why, "nothing counts as cached");
        Found::nothing(End::Away)
    }

    /// A call failed: nothing is expected of the store until it answers the probe, which is sent at once.
    fn failed(&self, why: &str) {
        self.note(Some(why));
        self.probe.notify_one();
    }

    /// Remembers how the last call went; says so when it changes.
    fn note(&self, failure: Option<&str>) {
        if let Some(why) = failure {
            why.clone_into(&mut self.why.write());
        }
        let before = self.answers.swap(failure.is_none(), Ordering::Relaxed);
        match (before, failure) {
            (true, Some(why)) => tracing::warn!(why, "the store is away"),
            (false, None) => tracing::info!("the store is there"),
            _ => {}
        }
    }

    /// Reaches the store, and follows it until `stop`.
    pub(crate) async fn connect(&self, fleet: Arc<Fleet>, stop: CancellationToken) {
        let Some(endpoint) = &self.endpoint else { return };
        let kept = async {
            let (client, namespace) = self.open(endpoint, &fleet).await;
            *self.namespace.write() = Some(namespace.clone());
            self.keep(&client, &namespace).await;
        };
        tokio::select! {
            () = kept => {}
            () = stop.cancelled() => {}
        }
        let namespace = self.namespace.write().take();
        if let Some(namespace) = namespace {
            let _ = timeout(CLOSE, namespace.close()).await;
        }
    }

    /// Looks whether the store is there, and follows its events while it is.
    async fn keep(&self, client: &Client, namespace: &Namespace) {
        let mut events: Option<AbortOnDropHandle<String>> = None;
        let mut pause = Duration::ZERO;
        let (mut anew, mut begun) = (ANEW, Instant::now());
        loop {
            let probed = match timeout(PROBE, client.stats_without_curves()).await {
                Ok(Ok(stats)) => Ok(stats),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no answer in time".into()),
            };
            let next = match probed {
                Ok(stats) => {
                    *self.rates.write() = Rates::of(&stats);
                    self.note(None);
                    if self.index.holdings.mode() == Mode::Exact {
                        anew = ANEW;
                    }
                    if self.index.can_be_whole() && begun.elapsed() >= anew {
                        // A snapshot of a large store is not asked for all the time.
                        anew = (anew * 2).min(ANEW_MAX);
                        stop_following(&mut events).await;
                        self.index.begin_anew();
                    }
                    if events.is_none() {
                        begun = Instant::now();
                        events = Some(self.follow(namespace.clone(), stats.incarnation, pause));
                        pause = RETRY;
                    }
                    PROBE
                }
                Err(why) => {
                    self.note(Some(&why));
                    stop_following(&mut events).await;
                    self.index.holdings.away();
                    RETRY
                }
            };
            let ended = async {
                match &mut events {
                    Some(events) => events.await.unwrap_or_else(|error| error.to_string()),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep(next) => {}
                () = self.probe.notified() => {}
                why = ended => {
                    events = None;
                    self.index.holdings.away();
                    tracing::info!(why, "the store's events are not followed");
                    *self.why.write() = why;
                }
            }
        }
    }

    /// Has the index be what the store's events tell, from `pause` on; ends with why they do so no more.
    fn follow(&self, namespace: Namespace, incarnation: u64, pause: Duration) -> AbortOnDropHandle<String> {
        let (index, metrics) = (self.index.clone(), self.metrics.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            sleep(pause).await;
            let watch = |cursor, known| namespace.watch(cursor, known);
            index.run(incarnation, &metrics, watch).await
        }))
    }

    async fn open(&self, endpoint: &str, fleet: &Fleet) -> (Client, Namespace) {
        let mut said = String::new();
        loop {
            if let Some(definition) = fleet.definition() {
                match handshake(endpoint, self.token.clone(), definition).await {
                    Ok(open) => {
                        self.note(None);
                        return open;
                    }
                    // Once for every new reason: it may take long until it is there.
                    Err(error) => {
                        let why = error.to_string();
                        if why != said {
                            tracing::warn!(endpoint, why, "the store is not there yet");
                            said = why;
                        }
                    }
                }
            }
            sleep(RETRY).await;
        }
    }
}

/// Nothing is applied to the index any more.
async fn stop_following(events: &mut Option<AbortOnDropHandle<String>>) {
    if let Some(events) = events.take() {
        events.abort();
        let _ = events.await;
    }
}

async fn handshake(
    endpoint: &str,
    token: Option<String>,
    definition: &Definition,
) -> Result<(Client, Namespace), Error> {
    // No payload is read or written here.
    let options = ClientOptions { token, shared_memory: false, ..ClientOptions::new(endpoint, "router") };
    let client = Client::connect(options).await?;
    let namespace = client.open(definition.spec.clone()).await?;
    Ok((client, namespace))
}
