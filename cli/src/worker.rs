//! `kelvin worker`: a prefill or decode worker.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use kelvin_workers::{Listening, ModelSource, ToyOptions, WorkerConfig};

use crate::ready;
use crate::shutdown::Shutdown;
use crate::store_at::StoreAt;
use crate::telemetry::Service;
use crate::values::{self, Model};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Evaluates prompts and fills the store with their blocks
    Prefill,
    /// Imports blocks from the store and generates tokens
    Decode,
}

impl Role {
    /// As it is written on a command line.
    pub(crate) fn as_flag(self) -> &'static str {
        match self {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
        }
    }
}

/// Run a worker: executes a model, filling and using the store's blocks
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What the worker does
    #[arg(long, env = "KELVIN_WORKER_ROLE", value_name = "ROLE")]
    role: Role,

    /// GGUF file of the model, or "toy" for a tiny built-in one
    #[arg(long, env = "KELVIN_MODEL", value_name = "PATH|toy", value_parser = values::model)]
    model: Model,

    /// Name under which the model is served [default: the GGUF's own name, lowercase with dashes]
    #[arg(long, env = "KELVIN_MODEL_NAME", value_name = "NAME")]
    model_name: Option<String>,

    /// Address of the worker's gRPC API; port 0 takes a free one
    #[arg(long, env = "KELVIN_WORKER_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:0", value_parser = values::loopback)]
    listen: SocketAddr,

    #[command(flatten)]
    store: StoreAt,

    /// The worker's name in logs and metrics [default: ROLE-PID]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Compute threads; more than idle cores make it slower [default: all cores]
    #[arg(long, env = "KELVIN_WORKER_THREADS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,

    /// Longest prompt plus completion, tokens; at most what the model was trained on
    #[arg(long, value_name = "TOKENS", default_value_t = CONTEXT_TOKENS, value_parser = clap::value_parser!(u32).range(64..))]
    context: u32,

    /// Sequences in work at the same time; a prefill worker uses one
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=128))]
    slots: u32,

    /// Tokens of all sequences together whose KV the engine holds [default: slots times context]
    #[arg(long, value_name = "TOKENS")]
    cells: Option<u32>,

    /// Tokens a block; equal for all workers of a model
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    block_tokens: u32,

    /// Most prompt tokens of one step, a multiple of the tokens a block; equal for all workers of a model
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    chunk_tokens: u32,

    /// Time the toy takes for a prompt token
    #[arg(long, hide = true, env = "KELVIN_TOY_PROMPT_TOKEN_TIME", default_value = "0s", value_parser = values::duration)]
    toy_prompt_token_time: Duration,

    /// Time the toy takes for a step
    #[arg(long, hide = true, env = "KELVIN_TOY_STEP_TIME", default_value = "0s", value_parser = values::duration)]
    toy_step_time: Duration,
}

/// Default of `--context`, tokens.
pub(crate) const CONTEXT_TOKENS: u32 = 4096;

/// Runs until a signal.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    args.model.check()?;
    let drain = Shutdown::listen_and_exit()?;
    let (role, name) = (args.role, args.name.clone());
    let config = args.config();
    let name = name.unwrap_or_else(|| config.name.clone());
    let ready = |at: Listening| {
        let facts = [
            ("role", Some(role.as_flag().to_owned())),
            ("name", Some(name)),
            ("listen", Some(at.grpc.to_string())),
        ];
        ready::say("worker", facts);
    };
    kelvin_workers::serve(config, ready, drain).await.context("run the worker")
}

impl Args {
    /// As whom it exports spans.
    pub(crate) fn service(&self) -> Service {
        let name = match self.role {
            Role::Prefill => "kelvin-prefill",
            Role::Decode => "kelvin-decode",
        };
        Service { name, instance: self.name.clone() }
    }

    fn config(self) -> WorkerConfig {
        let role = match self.role {
            Role::Prefill => kelvin_workers::Role::Prefill,
            Role::Decode => kelvin_workers::Role::Decode,
        };
        let model = match self.model {
            Model::Toy => ModelSource::Toy(ToyOptions {
                prompt_token_time: self.toy_prompt_token_time,
                step_time: self.toy_step_time,
                ..ToyOptions::default()
            }),
            Model::Gguf(path) => ModelSource::Gguf(path),
        };
        WorkerConfig {
            model_name: self.model_name,
            listen: self.listen,
            store: self.store.url,
            token: self.store.token,
            name: self.name.unwrap_or_else(|| format!("{}-{}", self.role.as_flag(), std::process::id())),
            threads: self.threads.unwrap_or_else(values::cores),
            context_tokens: self.context,
            slots: self.slots,
            cells: self.cells,
            block_tokens: self.block_tokens,
            chunk_tokens: self.chunk_tokens,
            ..WorkerConfig::new(role, model)
        }
    }
}
