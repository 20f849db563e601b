//! What the store has of a prompt, as far as it says so in time.
//!
//! # Overview
//! The store makes requests faster and is never needed to answer one. [`Prefixes::connect`] opens the
//! namespace of the fleet's model in the background, as soon as a worker has defined it, and looks after
//! it; [`Prefixes::find`] waits a bounded time for a match, and without one answers that nothing is
//! stored. The decode worker finds out by itself what is: too low an answer costs a worse decision, never
//! a wrong token.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kelvin_kvstore::{Client, ClientOptions, Namespace, SequenceHash, client::Error};
use kelvin_proto::kv::v1::{BlockExplanation, MissReason, Tier};
use parking_lot::RwLock;
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::{Definition, Fleet},
    metrics::Metrics,
    openai::Hints,
};

/// Between two tries to reach the store, and between two looks whether it is there.
const RETRY: Duration = Duration::from_millis(500);
const PROBE: Duration = Duration::from_secs(2);
/// Most time to end the session at the end: the store ends it by itself else.
const CLOSE: Duration = Duration::from_secs(1);
/// Hints to the store under way at once.
const HINTS_MAX: usize = 64;

/// What is there of a prompt, in tokens of whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Found {
    pub(crate) matched_tokens: u64,
    /// Microseconds until all of those are in the store's memory.
    pub(crate) load_us: u64,
    /// Right behind the matched ones, in the making.
    pub(crate) filling_tokens: u64,
    /// What ends that.
    pub(crate) end: End,
}

/// Why the store has no more of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum End {
    /// There is no store.
    #[default]
    NoStore,
    /// It could not be asked, or did not answer in time.
    Away,
    /// The prompt has no whole block that could be asked for.
    TooShort,
    /// All whole blocks are there.
    AllStored,
    /// All that are not there are being filled.
    Filling,
    /// A whole block that is neither.
    Missing(Missing),
}

/// A block that the store did not have when it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) hash: SequenceHash,
    /// Why, if the store said so.
    pub(crate) why: Option<Why>,
}

/// What of an explanation is kept for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Why {
    reason: MissReason,
    lost_from: Tier,
    age: Option<Duration>,
}

impl Why {
    /// `None` if the store does not know.
    pub(crate) fn of(block: &BlockExplanation) -> Option<Self> {
        let why = Self {
            reason: block.reason(),
            lost_from: block.lost_from(),
            age: block.age_ms.map(Duration::from_millis),
        };
        (why.reason != MissReason::Unspecified).then_some(why)
    }

    /// As an explanation that was given so long ago.
    pub(crate) fn explanation(self, hash: SequenceHash, ago: Duration) -> BlockExplanation {
        BlockExplanation {
            hash: hash.to_bytes().to_vec().into(),
            reason: self.reason.into(),
            lost_from: self.lost_from.into(),
            age_ms: self.age.map(|age| u64::try_from((age + ago).as_millis()).unwrap_or(u64::MAX)),
            ..Default::default()
        }
    }
}

impl Found {
    fn nothing(end: End) -> Self {
        Self { end, ..Self::default() }
    }
}

/// The router's side of the store.
pub(crate) struct Prefixes {
    configured: bool,
    /// Bearer token for it.
    token: Option<String>,
    find_timeout: Duration,
    metrics: Arc<Metrics>,
    namespace: RwLock<Option<Namespace>>,
    /// Whether the last call got an answer.
    answers: AtomicBool,
    /// Places for hints under way.
    hints: Semaphore,
}

impl Prefixes {
    /// `configured` says whether there is to be a store at all, and `token` what it wants to hear.
    pub(crate) fn new(
        configured: bool,
        token: Option<String>,
        find_timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            configured,
            token,
            find_timeout,
            metrics,
            namespace: RwLock::new(None),
            answers: AtomicBool::new(false),
            hints: Semaphore::new(HINTS_MAX),
        }
    }

    /// `none`, `connected` or `away`.
    pub(crate) fn state(&self) -> &'static str {
        match (self.configured, self.answers.load(Ordering::Relaxed)) {
            (false, _) => "none",
            (true, true) => "connected",
            (true, false) => "away",
        }
    }

    /// What the store has of a prompt. At least one token is always left to evaluate, so the last block
    /// of a prompt that ends with a whole one is not asked for.
    pub(crate) async fn find(&self, tokens: &[u32], extra: &[u8]) -> Found {
        if !self.configured {
            return Found::default();
        }
        let namespace = self.namespace.read().clone();
        let Some(namespace) = namespace else { return self.degraded("the store was not reached yet") };
        let block_tokens = u64::from(namespace.spec().block_tokens);
        let askable = &tokens[..tokens.len().saturating_sub(1)];
        let hashes = namespace.hash_blocks(askable, extra);
        if hashes.is_empty() {
            return Found::nothing(End::TooShort);
        }
        match timeout(self.find_timeout, namespace.match_prefix(&hashes)).await {
            Ok(Ok(found)) => {
                self.note(None);
                // Blocks are what can be waited for; their tokens follow.
                let blocks = u64::from(found.blocks).min(hashes.len() as u64);
                let filling = u64::from(found.filling_blocks).min(hashes.len() as u64 - blocks);
                let end = match hashes.get((blocks + filling) as usize) {
                    Some(&hash) => {
                        End::Missing(Missing { hash, why: found.missed.as_ref().and_then(Why::of) })
                    }
                    None if filling > 0 => End::Filling,
                    None => End::AllStored,
                };
                Found {
                    matched_tokens: blocks * block_tokens,
                    load_us: found.loads.iter().map(|load| load.load_us_estimate).sum(),
                    filling_tokens: filling * block_tokens,
                    end,
                }
            }
            Ok(Err(error)) => {
                self.note(Some(&error.to_string()));
                self.degraded("the store failed")
            }
            Err(_) => self.degraded("the store did not answer in time"),
        }
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
        tracing::debug!(why, "nothing counts as cached");
        Found::nothing(End::Away)
    }

    /// Remembers how the last call went; says so when it changes.
    fn note(&self, failure: Option<&str>) {
        let before = self.answers.swap(failure.is_none(), Ordering::Relaxed);
        match (before, failure) {
            (true, Some(why)) => tracing::warn!(why, "the store is away"),
            (false, None) => tracing::info!("the store is there"),
            _ => {}
        }
    }

    /// Reaches the store, and keeps looking whether it is there, until `stop`.
    pub(crate) async fn connect(&self, endpoint: String, fleet: Arc<Fleet>, stop: CancellationToken) {
        let kept = async {
            let (client, namespace) = self.open(&endpoint, &fleet).await;
            *self.namespace.write() = Some(namespace);
            loop {
                sleep(PROBE).await;
                match timeout(PROBE, client.stats()).await {
                    Ok(Ok(_)) => self.note(None),
                    Ok(Err(error)) => self.note(Some(&error.to_string())),
                    Err(_) => self.note(Some("no answer in time")),
                }
            }
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
