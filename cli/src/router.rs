//! `kelvin router`: the OpenAI endpoint.

mod limits;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgGroup, ValueEnum};
use kelvin_router::{
    BackendSpec, BackendsRedis, KeyKind, Listening, ModelSource, PrefillPolicy, RouterConfig,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::ready;
use crate::shutdown::Shutdown;
use crate::values::{self, Model};
pub(crate) use limits::Limits;

/// Run the router: the OpenAI-compatible endpoint before workers and other engines
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("served").required(true).multiple(true).args(["workers", "backends", "backends_file", "backends_redis"])))]
pub(crate) struct Args {
    /// Address of the OpenAI API over HTTP; port 0 takes a free one
    #[arg(long, env = "KELVIN_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:8080", value_parser = values::loopback)]
    listen: SocketAddr,

    /// Address of the built-in page (/ui) and of /metrics over HTTP [default: none]
    #[arg(long, env = "KELVIN_ROUTER_ADMIN_LISTEN", value_name = "IP:PORT", value_parser = values::loopback)]
    admin_listen: Option<SocketAddr>,

    /// The store's own page, for a link to it, e.g. http://127.0.0.1:7441/ui/ [default: none]
    #[arg(long, value_name = "URL")]
    store_page: Option<String>,

    /// The workers' store, followed by its block events to know which prefixes are cached; without it nothing counts as
    /// cached [default: none]
    #[arg(long, env = "KELVIN_STORE", value_name = "URL", value_parser = values::endpoint)]
    store: Option<String>,

    /// Bearer token of the store [default: none]
    #[arg(long, env = "KELVIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// A worker; give one flag for each
    #[arg(long = "worker", env = "KELVIN_WORKERS", value_name = "URL", value_delimiter = ',', requires = "model", value_parser = values::endpoint)]
    workers: Vec<String>,

    /// Another engine's server (vLLM, SGLang, TensorRT-LLM, llama.cpp) that speaks OpenAI's API; give one
    /// flag for each. Behind the URL, with commas: role=both|prefill|decode, events=tcp://HOST:PORT (KV
    /// events), events-bind=true (the engine connects to it), replay=tcp://HOST:PORT, ranks=N,
    /// store=http://HOST:PORT (the store that it loads from), requests-max=N, key=TOKEN (its API key, for requests that
    /// bring none; better in the file, or in this flag's variable, than where all processes are listed)
    #[arg(
        long = "backend",
        env = "KELVIN_BACKENDS",
        hide_env_values = true,
        value_name = "URL[,KEY=VALUE...]",
        value_delimiter = ';'
    )]
    // Not parsed by the flag: its error would repeat the key.
    backends: Vec<String>,

    /// JSON file of backends, {"backends": [{"url": "http://HOST:PORT", "role": "both"}]}, followed as it
    /// changes
    #[arg(long, env = "KELVIN_BACKENDS_FILE", value_name = "PATH")]
    backends_file: Option<PathBuf>,

    /// Redis where backends register themselves, redis://[USER:PASSWORD@]HOST:PORT[/DATABASE][/PREFIX]: keys
    /// PREFIX:backend:NAME, PREFIX being kelvin if none is given, with what the file says of each. Who registers sets
    /// its key again before its time is over: redis-cli SET kelvin:backend:one '{"url": "http://10.0.0.1:8000"}' EX 15
    #[arg(long, env = "KELVIN_BACKENDS_REDIS", value_name = "URL", hide_env_values = true)]
    backends_redis: Option<BackendsRedis>,

    /// Milliseconds without the first piece of a backend's stream after which a second backend is asked too; the first
    /// to answer has the request. At most one in ten requests at a time, or one [default: never]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    hedge_after: Option<u64>,

    /// GGUF file of the workers' model, for its vocabulary and chat template, or "toy"; not needed with
    /// backends alone
    #[arg(long, env = "KELVIN_MODEL", value_name = "PATH|toy", value_parser = values::model)]
    model: Option<Model>,

    /// What prompts for backends are compared by, to know who has a part of them
    #[arg(long, value_name = "WHAT", default_value = "auto")]
    keys: Keys,

    #[command(flatten)]
    limits: Limits,

    /// How often an answer goes on at another decode worker, or a stream at another backend, when its own is lost in
    /// the middle of it; 0 ends it with an error
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    migrations_max: u8,

    /// Most time that such an answer waits for one, which may be its own, started again; and a request that comes with
    /// all decode workers lost
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    migration_wait: Duration,

    /// Where prompts are evaluated; of backends, those of role=decode have them computed by those of role=prefill
    #[arg(long, env = "KELVIN_ROUTER_PREFILL", value_name = "WHERE", default_value = "auto")]
    prefill: Prefill,
}

/// Runs until a signal.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    if let Some(model) = &args.model {
        model.check()?;
    }
    raise_open_files();
    let drain = Shutdown::listen_and_exit()?;
    let ready = |at: Listening| {
        let admin = at.admin.map(|admin| admin.to_string());
        ready::say("router", [("listen", Some(at.http.to_string())), ("admin", admin)]);
    };
    kelvin_router::serve(args.config()?, ready, drain).await.context("run the router")
}

/// A stream takes two connections: as many files may be open as the system allows, not the thousand that is usual.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "raise the limit of open files");
    }
}

impl Args {
    fn config(self) -> anyhow::Result<RouterConfig> {
        let backends = self.backends.iter().map(|text| backend(text)).collect::<anyhow::Result<_>>()?;
        Ok(RouterConfig {
            listen: self.listen,
            admin_listen: self.admin_listen,
            store_page: self.store_page,
            store: self.store,
            token: self.token,
            workers: self.workers,
            backends,
            backends_file: self.backends_file,
            backends_redis: self.backends_redis,
            hedge_after: self.hedge_after.map(Duration::from_millis),
            model: self.model.map(|model| match model {
                Model::Toy => ModelSource::Toy,
                Model::Gguf(path) => ModelSource::Gguf(path),
            }),
            keys: match self.keys {
                Keys::Auto => KeyKind::Auto,
                Keys::Text => KeyKind::Text,
                Keys::Tokens => KeyKind::Tokens,
            },
            migrations_max: self.migrations_max.into(),
            migration_wait: self.migration_wait,
            prefill: match self.prefill {
                Prefill::Auto => PrefillPolicy::Auto,
                Prefill::Remote => PrefillPolicy::Remote,
                Prefill::Local => PrefillPolicy::Local,
            },
            ..self.limits.config()
        })
    }
}

/// Of an error all but its key is shown.
fn backend(text: &str) -> anyhow::Result<BackendSpec> {
    let url = text.split(',').next().unwrap_or_default();
    text.parse().with_context(|| format!("--backend {url}"))
}

/// What prompts for backends are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Keys {
    /// Tokens, once a backend tells by KV events what it has and --model is given; else text
    Auto,
    /// Text always
    Text,
    /// Tokens always
    Tokens,
}

/// Where prompts are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Prefill {
    /// Wherever the first token is expected sooner
    Auto,
    /// On a prefill worker whenever there is one
    Remote,
    /// On the decode worker always
    Local,
}
