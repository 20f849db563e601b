//! Structured logs on stderr.

use std::io::IsTerminal;

use anyhow::Context;
use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// The environment variable that filters logs.
const FILTER: &str = "KELVIN_LOG";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

impl LogFormat {
    /// As it is written on a command line.
    pub(crate) fn as_flag(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

/// Starts logging, beside what else wants to know of spans. A `narrator` tells what it does even when it is not asked
/// to.
pub(crate) fn start(
    format: LogFormat,
    narrator: bool,
    exported: Option<Box<dyn Layer<Registry> + Send + Sync>>,
) -> anyhow::Result<()> {
    // llama.cpp warns about what is meant to be so: all sequences share one cache, larger than one context.
    // What the disks do and what a start found on them is worth a line each.
    const QUIET: &str = "warn,llama-cpp-2=error,llama_cpp_2=error,kelvin_kvstore::store::tiers=info";
    const NARRATE: &str = "warn,llama-cpp-2=error,llama_cpp_2=error,kelvin_kvstore::store::tiers=info,\
                           kelvin=info,kelvin_planner=info";
    let default = if narrator { NARRATE } else { QUIET };
    let wanted = std::env::var(FILTER).unwrap_or_default();
    let filter = EnvFilter::try_new(if wanted.trim().is_empty() { default } else { &wanted })
        .with_context(|| format!("{FILTER} is {wanted:?}, which is no filter; try e.g. info"))?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Text => lines.with_target(!narrator).with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    tracing_subscriber::registry().with(exported).with(lines).init();
    Ok(())
}
