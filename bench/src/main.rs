//! How fast, against whom: `kelvin-bench WORKLOAD`, one file a workload.
//!
//! A run prints a table that a person reads, and with `--json FILE` writes the same figures for programs.
//! Comparisons are made within one run on one machine, as ratios.

mod client;
mod cluster;
mod clusters;
mod core;
mod counting;
mod frontend;
mod index;
mod load;
mod machine;
mod namespace;
mod policies;
mod prompts;
mod recorder;
mod replay;
mod report;
mod restart;
mod reuse;
mod serve;
mod tiers;
mod trace;
mod transport;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Kelvin.
#[derive(Debug, Parser)]
#[command(name = "kelvin-bench", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Debug, Subcommand)]
enum Workload {
    Clusters(clusters::Args),
    Core(core::Args),
    Frontend(frontend::Args),
    Index(index::Args),
    Policies(policies::Args),
    Replay(replay::Args),
    Restart(restart::Args),
    Serve(serve::Args),
    Tiers(tiers::Args),
    Transport(transport::Args),
}

/// As shells have it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // As the servers have it.
    if let Err(error) = kelvin_kvstore::heap::in_huge_pages() {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    // For the supervisor of a cluster that is started here.
    let filter = tracing_subscriber::EnvFilter::try_from_env("KELVIN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(cli) {
        Ok(Some(())) => ExitCode::SUCCESS,
        Ok(None) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// None when it was interrupted.
fn run(cli: Cli) -> anyhow::Result<Option<()>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match cli.workload {
            Workload::Clusters(args) => clusters::run(args).await,
            Workload::Core(args) => core::run(&args).map(Some),
            Workload::Frontend(args) => frontend::run(args).await.map(Some),
            Workload::Index(args) => index::run(&args).map(Some),
            Workload::Policies(args) => policies::run(&args).map(Some),
            Workload::Replay(args) => replay::run(&args).map(Some),
            Workload::Restart(args) => restart::run(&args).await.map(Some),
            Workload::Serve(args) => serve::run(args).await,
            Workload::Tiers(args) => tiers::run(args).await,
            Workload::Transport(args) => transport::run(&args).await.map(Some),
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
