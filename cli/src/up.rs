//! `kelvin up`: a whole cluster on this machine, as real processes under one supervisor.
//!
//! # Overview
//! What can be wrong is found before anything is started (`preflight`); then come a private run
//! directory, free ports, and the children in order: store, workers, router. They are this same
//! executable under other subcommands. From then on the supervisor of `kelvin_planner` keeps them running
//! until Ctrl-C or SIGTERM.
//!
//! # Invariants
//! Nothing is left behind: children, ports and the run directory go with this process, and the directory
//! of one that was killed with -9 is removed by the next.

mod plan;
mod ports;
mod preflight;
mod probe;
mod run_dir;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::future::try_join_all;
use kelvin_planner::{Supervisor, SupervisorOptions};

use crate::admin::AdminToken;
use crate::logging::LogFormat;
use crate::router::Limits;
use crate::shutdown::Shutdown;
use crate::store::Places;
use crate::values::{self, Model, Size};
use crate::worker::CONTEXT_TOKENS;
use plan::Plan;
use run_dir::RunDir;

/// Serve a model: run a store, workers and a router on this machine
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// GGUF file of the model, or "toy" for a tiny built-in one that says nothing of interest
    #[arg(long, env = "KELVIN_MODEL", value_name = "PATH|toy", value_parser = values::model)]
    model: Model,

    /// Name under which the model is served [default: the GGUF's own name, lowercase with dashes]
    #[arg(long, env = "KELVIN_MODEL_NAME", value_name = "NAME")]
    model_name: Option<String>,

    /// Prefill workers; 0 lets the decode workers evaluate prompts themselves
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=64))]
    prefill: u32,

    /// Decode workers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    decode: u32,

    /// Address of the OpenAI API over HTTP; port 0 takes a free one
    #[arg(long, env = "KELVIN_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:8080", value_parser = values::loopback)]
    listen: SocketAddr,

    /// The store's memory for blocks
    #[arg(long, env = "KELVIN_STORE_DRAM", value_name = "SIZE", default_value_t = Size(1 << 30))]
    dram: Size,

    /// Compute threads of each worker [default: cores divided by workers, at least 1]
    #[arg(long, env = "KELVIN_WORKER_THREADS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,

    /// Longest prompt plus completion, tokens
    #[arg(long, value_name = "TOKENS", default_value_t = CONTEXT_TOKENS, value_parser = clap::value_parser!(u32).range(64..))]
    context: u32,

    /// Where the private run directory is made [default: $XDG_RUNTIME_DIR, else /tmp]
    #[arg(long, env = "KELVIN_RUN_DIR", value_name = "DIR")]
    run_dir: Option<PathBuf>,

    /// Print one JSON line when ready, instead of words
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    admin: AdminToken,

    #[command(flatten)]
    places: Places,

    #[command(flatten, next_help_heading = "Bounds of the router")]
    limits: Limits,
}

/// Time for a child to finish what is under way before it is killed: a little more than the router takes, the
/// most patient of them.
const GRACE: Duration = Duration::from_secs(25);

/// Most time from the router's ready line to its first good answer.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

pub(crate) async fn run(args: Args, log_format: LogFormat, otlp: Option<String>) -> anyhow::Result<()> {
    // Before the first child, so that a signal during the start drains too.
    let shutdown = Shutdown::listen()?;
    preflight::check(&args)?;
    let run_dir = RunDir::create(args.run_dir.as_deref())?;
    let plan = Plan::make(&args, &run_dir, log_format, otlp)?;
    let supervisor = Supervisor::new(SupervisorOptions { grace: GRACE, ..SupervisorOptions::default() })?;

    let served = tokio::select! {
        started = start(&plan, &supervisor) => started.map(Some),
        () = shutdown.drain.cancelled() => Ok(None),
    };
    if let Ok(Some(model)) = &served {
        announce(&plan, model, args.json);
        shutdown.drain.cancelled().await;
    }
    if shutdown.drain.is_cancelled() {
        tracing::info!("stopping; once more does not wait");
    }
    tokio::select! {
        () = supervisor.drain() => {}
        () = async {
            shutdown.now.cancelled().await;
            tracing::info!("not waiting any longer");
            supervisor.hurry();
            std::future::pending::<()>().await
        } => {}
    }
    drop(run_dir);
    served.map(|_| ())
}

/// Starts the children in order and returns the name of the model that is served.
async fn start(plan: &Plan, supervisor: &Supervisor) -> anyhow::Result<String> {
    let since = Instant::now();
    tracing::info!(dram = %plan.dram, "starting the store");
    supervisor.start(plan.store()).await?;

    let workers = plan.workers();
    let count = workers.len();
    tracing::info!(threads = plan.threads, "loading {} in {count} workers", plan.model);
    try_join_all(workers.into_iter().map(async |worker| {
        let name = worker.name.clone();
        supervisor.start(worker).await?;
        tracing::info!("{name} is ready");
        anyhow::Ok(())
    }))
    .await?;

    tracing::info!("starting the router");
    supervisor.start(plan.router()).await?;
    let model = tokio::time::timeout(ANSWER_WAIT, first_answer(plan.listen))
        .await
        .with_context(|| format!("the router gave no good answer within {ANSWER_WAIT:?}"))?;
    tracing::info!("ready after {:.1} s", since.elapsed().as_secs_f64());
    Ok(model)
}

/// Asks the router until it knows a model: it learns of them from the workers, a moment after its start.
async fn first_answer(router: SocketAddr) -> String {
    loop {
        match served_model(router).await {
            Ok(model) => return model,
            Err(error) => tracing::debug!(%error, "the router is not there yet"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn served_model(router: SocketAddr) -> anyhow::Result<String> {
    probe::http_get(router, "/health").await.map_err(anyhow::Error::msg)?;
    let models = probe::http_get(router, "/v1/models").await.map_err(anyhow::Error::msg)?;
    let models: serde_json::Value = serde_json::from_str(&models).context("read the list of models")?;
    match models["data"][0]["id"].as_str() {
        Some(id) => Ok(id.to_owned()),
        None => bail!("no model is served yet"),
    }
}

/// Says where everything is. A stdout that nobody reads is no reason to fail.
fn announce(plan: &Plan, model: &str, json: bool) {
    if json {
        let facts = [
            ("listen", Some(plan.listen.to_string())),
            ("model", Some(model.to_owned())),
            ("store", Some(plan.store_url())),
            ("store_admin", Some(plan.store_admin_url())),
            ("router_admin", Some(plan.router_admin_url())),
        ];
        return crate::ready::say("up", facts);
    }
    let (listen, store) = (plan.listen, plan.store_url());
    let (admin, router_admin) = (plan.store_admin_url(), plan.router_admin_url());
    let body = serde_json::json!({
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
        "max_tokens": 64,
        "temperature": 0,
    });
    let text = format!(
        "\nServing {model}\n\n  \
         OpenAI API    http://{listen}/v1\n  \
         dashboard     {router_admin}/ui/  (the cache itself: {admin}/ui/)\n  \
         metrics       {router_admin}/metrics  {admin}/metrics\n  \
         KV API        {store}  (gRPC; try: kelvin top --store {store} --router http://{listen})\n\n\
         Try:\n\n  \
         curl -s http://{listen}/v1/chat/completions -H 'content-type: application/json' -d '{body}'\n\n\
         Ctrl-C stops everything.\n"
    );
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}
