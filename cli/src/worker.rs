//! `kelvin worker`: a prefill or decode worker.

use std::net::SocketAddr;

use clap::ValueEnum;

use crate::shutdown::Shutdown;
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

    /// The store
    #[arg(long, env = "KELVIN_STORE", value_name = "URL", default_value = "http://127.0.0.1:7440", value_parser = values::endpoint)]
    store: String,

    /// The worker's name in logs and metrics [default: ROLE-PID]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Compute threads; more than idle cores make it slower [default: all cores]
    #[arg(long, env = "KELVIN_WORKER_THREADS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,

    /// Longest prompt plus completion, tokens
    #[arg(long, value_name = "TOKENS", default_value_t = CONTEXT_TOKENS, value_parser = clap::value_parser!(u32).range(16..))]
    context: u32,

    /// Sequences in work at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=128))]
    slots: u32,

    /// Tokens of all sequences together whose KV the engine holds [default: by the engine, from context and slots]
    #[arg(long, value_name = "TOKENS")]
    cells: Option<u32>,

    /// Tokens a block; equal for all workers of a model
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    block_tokens: u32,

    /// Prompt tokens evaluated in one step; equal for all workers of a model
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    chunk_tokens: u32,
}

/// Default of `--context`, tokens.
pub(crate) const CONTEXT_TOKENS: u32 = 4096;

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    args.model.check()?;
    let _drain = Shutdown::listen_and_exit()?;
    anyhow::bail!("a worker cannot be run yet: {args:?}")
}
