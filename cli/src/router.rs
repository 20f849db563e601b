//! `kelvin router`: the OpenAI endpoint.

use std::net::SocketAddr;

use anyhow::Context;
use clap::ValueEnum;
use kelvin_router::{Listening, ModelSource, PrefillPolicy, RouterConfig};

use crate::ready;
use crate::shutdown::Shutdown;
use crate::values::{self, Model};

/// Run the router: the OpenAI-compatible endpoint before the workers
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address of the OpenAI API over HTTP; port 0 takes a free one
    #[arg(long, env = "KELVIN_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:8080", value_parser = values::loopback)]
    listen: SocketAddr,

    /// The store, asked which prefixes are cached; without it nothing counts as cached [default: none]
    #[arg(long, env = "KELVIN_STORE", value_name = "URL", value_parser = values::endpoint)]
    store: Option<String>,

    /// Bearer token of the store [default: none]
    #[arg(long, env = "KELVIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// A worker; give one flag for each
    #[arg(long = "worker", env = "KELVIN_WORKERS", value_name = "URL", required = true, value_delimiter = ',', value_parser = values::endpoint)]
    workers: Vec<String>,

    /// GGUF file of the workers' model, for its vocabulary and chat template, or "toy"
    #[arg(long, env = "KELVIN_MODEL", value_name = "PATH|toy", value_parser = values::model)]
    model: Model,

    /// Most tokens of a completion for which the request names no limit
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    tokens_max_default: u32,

    /// Where prompts are evaluated
    #[arg(long, env = "KELVIN_ROUTER_PREFILL", value_name = "WHERE", default_value = "auto")]
    prefill: Prefill,
}

/// Runs until a signal.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    args.model.check()?;
    let drain = Shutdown::listen_and_exit()?;
    let ready = |at: Listening| ready::say("router", [("listen", Some(at.http.to_string()))]);
    kelvin_router::serve(args.config(), ready, drain).await.context("run the router")
}

impl Args {
    fn config(self) -> RouterConfig {
        RouterConfig {
            listen: self.listen,
            store: self.store,
            token: self.token,
            workers: self.workers,
            model: match self.model {
                Model::Toy => ModelSource::Toy,
                Model::Gguf(path) => ModelSource::Gguf(path),
            },
            tokens_max_default: self.tokens_max_default,
            prefill: match self.prefill {
                Prefill::Auto => PrefillPolicy::Auto,
                Prefill::Remote => PrefillPolicy::Remote,
                Prefill::Local => PrefillPolicy::Local,
            },
            ..RouterConfig::default()
        }
    }
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
