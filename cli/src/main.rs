//! The one binary, `kelvin`: one file a subcommand.
//!
//! Every process of a cluster is this binary under another subcommand; `kelvin up` starts them all. What
//! the processes do lives in the crates below; here flags become their configurations.

mod admin;
mod logging;
mod ready;
mod router;
mod shutdown;
mod stats;
mod store;
mod store_at;
mod up;
mod values;
mod watch;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use logging::LogFormat;

/// Exit code of a command that failed; wrong flags give 2.
const FAILED: u8 = 1;

/// Keeps the KV cache of large language models, and serves models through it.
#[derive(Debug, Parser)]
#[command(
    name = "kelvin",
    version,
    propagate_version = true,
    after_help = "Logs go to stderr. KELVIN_LOG filters them: error, warn, info, debug, trace, or by target, \
                  e.g. warn,kelvin_router=debug [default: warn]."
)]
struct Cli {
    /// How log lines are written
    #[arg(
        long,
        global = true,
        display_order = 900,
        env = "KELVIN_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Args),
    Store(store::Args),
    Worker(worker::Args),
    Router(router::Args),
    Stats(stats::Args),
    Watch(watch::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::from(FAILED)
        }
    }
}

/// The causes on one line: "open the model m.gguf: No such file". Some errors repeat their cause in their own
/// text; it is then said once.
fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| {
        if said.is_empty() {
            cause
        } else if said.contains(&cause) {
            said
        } else {
            format!("{said}: {cause}")
        }
    })
}

fn run(cli: Cli) -> anyhow::Result<()> {
    // First of all, so that no child is left should its supervisor end right now.
    kelvin_planner::bind_to_supervisor()?;
    logging::start(cli.log_format, matches!(cli.command, Command::Up(_)))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Up(args) => up::run(args, cli.log_format).await,
            Command::Store(args) => store::run(args).await,
            Command::Worker(args) => worker::run(args).await,
            Command::Router(args) => router::run(args).await,
            Command::Stats(args) => stats::run(args).await,
            Command::Watch(args) => watch::run(args).await,
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::anyhow!("refused").context("connect to x: refused").context("start");
        assert_eq!(super::chain(&error), "start: connect to x: refused");
    }

    #[test]
    fn the_flags_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
