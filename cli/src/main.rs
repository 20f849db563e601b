//! The one binary, `kelvin`: one file a subcommand.
//!
//! Every process of a cluster is this binary under another subcommand; `kelvin up` starts them all. What
//! the processes do lives in the crates below; here flags become their configurations.

mod admin;
mod explain;
mod http;
mod logging;
mod ready;
mod router;
mod shutdown;
mod stats;
mod store;
mod store_at;
mod telemetry;
mod top;
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

    /// Where traces go: a collector that takes OTLP over gRPC, e.g. http://127.0.0.1:4317 [default: nowhere]
    #[arg(
        long,
        global = true,
        display_order = 901,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        value_name = "URL",
        value_parser = values::otlp
    )]
    otlp: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Args),
    Store(store::Args),
    Worker(worker::Args),
    Router(Box<router::Args>),
    Stats(stats::Args),
    Watch(watch::Args),
    Top(top::Args),
    Explain(explain::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.command.serves()
        && let Err(error) = kelvin_kvstore::heap::in_huge_pages()
    {
        eprintln!("error: {error}");
        return ExitCode::from(FAILED);
    }
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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let otlp = cli.otlp.filter(|endpoint| !endpoint.is_empty());
    let (exported, telemetry) = match (&otlp, cli.command.exports()) {
        (Some(endpoint), Some(service)) => {
            let _entered = runtime.enter();
            let (layer, telemetry) = telemetry::start(endpoint, service)?;
            (Some(layer), Some(telemetry))
        }
        _ => (None, None),
    };
    logging::start(cli.log_format, matches!(cli.command, Command::Up(_)), exported)?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Up(args) => up::run(args, cli.log_format, otlp).await,
            Command::Store(args) => store::run(args).await,
            Command::Worker(args) => worker::run(args).await,
            Command::Router(args) => router::run(*args).await,
            Command::Stats(args) => stats::run(args).await,
            Command::Watch(args) => watch::run(args).await,
            Command::Top(args) => top::run(args).await,
            Command::Explain(args) => explain::run(args).await,
        }
    });
    // The last spans go while the runtime still works for them.
    drop(telemetry);
    result
}

impl Command {
    /// Whether this is a process of a cluster, which lasts.
    fn serves(&self) -> bool {
        self.exports().is_some()
    }

    /// As whom this exports spans: the processes of a cluster do, what people ask of them does not.
    fn exports(&self) -> Option<telemetry::Service> {
        match self {
            Command::Store(args) => {
                args.serves().then_some(telemetry::Service { name: "kelvin-store", instance: None })
            }
            Command::Worker(args) => Some(args.service()),
            Command::Router(_) => Some(telemetry::Service { name: "kelvin-router", instance: None }),
            Command::Up(_)
            | Command::Stats(_)
            | Command::Watch(_)
            | Command::Top(_)
            | Command::Explain(_) => None,
        }
    }
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
