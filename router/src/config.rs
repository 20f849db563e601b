//! What an operator decides about a router.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

pub use crate::text::ModelSource;
use crate::{
    backend::{BackendSpec, BackendsRedis},
    cost::PrefillPolicy,
    text::VocabularyError,
};

/// What a prompt for another engine is compared by, to know who has a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyKind {
    /// Tokens, once a backend tells by KV events what it has, and a vocabulary is there; else text.
    #[default]
    Auto,
    /// Text always.
    Text,
    /// Tokens always.
    Tokens,
}

/// A router's settings; `RouterConfig { listen, .. RouterConfig::default() }` sets a few.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    /// Loopback address of the OpenAI endpoint; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Loopback address of the built-in page (`/ui`), with `/metrics` and `/health`; port 0 takes a free one.
    pub admin_listen: Option<SocketAddr>,
    /// Address of the store's own page, for people: a link.
    pub store_page: Option<String>,
    /// The workers' store, e.g. `http://127.0.0.1:7440`, followed by its block events; without one nothing is known to
    /// be cached.
    pub store: Option<String>,
    /// Bearer token for the store, if it wants one.
    pub token: Option<String>,
    /// Workers, e.g. `http://127.0.0.1:7450`; what each of them is, it says itself.
    pub workers: Vec<String>,
    /// Other engines' servers; a worker or a backend there must be, or a place where they are found.
    pub backends: Vec<BackendSpec>,
    /// A file that names backends; read again when it changes.
    pub backends_file: Option<PathBuf>,
    /// Where backends register themselves.
    pub backends_redis: Option<BackendsRedis>,
    /// Without the first piece of a stream for so long, a second backend is asked; never without.
    pub hedge_after: Option<Duration>,
    /// What prompts for backends are compared by.
    pub keys: KeyKind,
    /// Most bytes for knowing what is in backends' memories, engines' own hashes included, and as many for each store:
    /// the workers' and those that backends load from. Twice that while a store's snapshot is read.
    pub directory_bytes: usize,
    /// Time between two looks at a backend.
    pub probe_interval: Duration,
    /// Vocabulary and chat template; must be those of the workers' model. Without it there are no workers, and
    /// prompts for backends are compared by their text.
    pub model: Option<ModelSource>,
    /// Most tokens of a completion whose request does not say.
    pub tokens_max_default: u32,
    /// Requests in work at once, of workers and of backends each; more of them wait.
    pub requests_max: usize,
    /// Requests handed to workers at once for each of their decode workers' slots; 0 for `requests_max` alone.
    pub requests_per_slot: u32,
    /// Requests that wait at once; one more is answered 429.
    pub queue_max: usize,
    /// Most time that a request waits.
    pub queue_timeout: Duration,
    /// A prompt of which so many tokens are not cached is long.
    pub long_tokens: u64,
    /// Long prompts in work at once; half of what may be in work without.
    pub long_max: Option<usize>,
    /// Connections at once; one more waits to be accepted.
    pub connections_max: usize,
    /// Most bytes of a request's body.
    pub body_bytes_max: usize,
    /// Most time for a request's head, and then for its body; and for a new connection to bring one.
    pub read_timeout: Duration,
    /// Most time a client may take to make room for the next part of a stream.
    pub client_timeout: Duration,
    /// Time between two looks at a worker.
    pub poll_interval: Duration,
    /// Most time a request waits for the store's answer, where the index of the store does not have it; without one
    /// nothing counts as cached.
    pub store_timeout: Duration,
    /// Most time a prefill worker may take to reserve its blocks; after it the decode worker evaluates.
    pub reserve_timeout: Duration,
    /// Most time a decode worker waits for one block that is being filled.
    pub block_timeout: Duration,
    /// Most time from handing a request to a worker to its first token.
    pub first_token_timeout: Duration,
    /// Most time between two tokens.
    pub token_timeout: Duration,
    /// How often a completion goes on at another worker, or a stream of another engine at another backend, when the one
    /// that it was at is lost; 0 ends it with an error.
    pub migrations_max: usize,
    /// Most time that such a completion, or a request whose turn it is, waits for a decode worker to be there: a lost
    /// one may be started again.
    pub migration_wait: Duration,
    /// Time that running requests get to end once a shutdown has begun.
    pub drain_grace: Duration,
    /// Where prompts are evaluated.
    pub prefill: PrefillPolicy,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin_listen: None,
            store_page: None,
            store: None,
            token: None,
            workers: Vec::new(),
            backends: Vec::new(),
            backends_file: None,
            backends_redis: None,
            hedge_after: None,
            keys: KeyKind::Auto,
            directory_bytes: 256 << 20,
            probe_interval: Duration::from_secs(1),
            model: None,
            tokens_max_default: 1024,
            requests_max: 256,
            requests_per_slot: 2,
            queue_max: 1024,
            queue_timeout: Duration::from_secs(120),
            long_tokens: 4096,
            long_max: None,
            connections_max: 1024,
            body_bytes_max: 4 << 20,
            read_timeout: Duration::from_secs(30),
            client_timeout: Duration::from_secs(60),
            poll_interval: Duration::from_millis(300),
            store_timeout: Duration::from_millis(250),
            reserve_timeout: Duration::from_secs(30),
            block_timeout: Duration::from_secs(30),
            first_token_timeout: Duration::from_secs(600),
            token_timeout: Duration::from_secs(60),
            migrations_max: 2,
            migration_wait: Duration::from_secs(10),
            drain_grace: Duration::from_secs(20),
            prefill: PrefillPolicy::Auto,
        }
    }
}

/// Where a router listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// The OpenAI endpoint.
    pub http: SocketAddr,
    /// The page.
    pub admin: Option<SocketAddr>,
}

/// Why a router does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is reachable from outside, and there is no TLS yet.
    #[error(
        "listen on {0}: only loopback addresses (127.0.0.0/8, ::1) are allowed in this version, which has no TLS"
    )]
    NotLoopback(SocketAddr),
    /// The address is taken, or not of this machine.
    #[error("listen on {listen}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A worker's address is no URL.
    #[error("worker address `{endpoint}` is not of the form http://HOST:PORT")]
    WorkerAddress {
        /// As configured.
        endpoint: String,
    },
    /// Nobody could ever answer.
    #[error("no worker and no backend is configured: name at least one decode worker or backend")]
    NoWorkers,
    /// Workers speak tokens, and nothing says what they mean.
    #[error("workers are configured, but no model: name the GGUF file that they serve")]
    NoModel,
    /// A backend's description.
    #[error("backend {url}")]
    Backend {
        /// As configured.
        url: String,
        /// What is wrong with it.
        source: crate::backend::BackendSpecError,
    },
    /// The file of backends.
    #[error("read backends from {}: {message}", path.display())]
    BackendsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The vocabulary cannot be read.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// Reading the vocabulary died.
    #[error("load vocabulary of {model:?}")]
    VocabularyLost {
        /// The model.
        model: ModelSource,
        /// What happened to the thread.
        source: tokio::task::JoinError,
    },
}

impl Error {
    /// Whether the same start can succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Listen { .. })
    }
}
