//! `kelvin store`: the block store, and whatever is done to one.
//!
//! Without a subcommand it runs a store. `inspect`, `verify` and `gc` work on a store that runs (`--store`) and
//! on the files of one that does not (`--data`); the others on a running one.

mod gc;
mod inspect;
mod places;
mod ranges;
mod rules;
mod serve;
mod stopped;
mod verify;

use clap::Subcommand;

pub(crate) use places::Places;

/// Run the block store: keeps KV blocks and serves the gRPC KV API; or, with a subcommand, look after one
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_value_name = "COMMAND",
    subcommand_help_heading = "Commands, in place of running a store",
    after_long_help = EXAMPLES
)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    serve: Box<serve::Args>,

    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "Examples:\n  \
    kelvin store --dram 16GiB\n  \
    kelvin store --dram 16GiB --data /var/lib/kelvin --nvme /mnt/a=200GiB --nvme /mnt/b=200GiB\n  \
    kelvin store --data /var/lib/kelvin --nvme /mnt/a=200GiB --object s3://bucket/kelvin --policy nvme=arc\n  \
    kelvin store inspect --data /var/lib/kelvin\n  \
    kelvin store verify --store http://127.0.0.1:7440";

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Args),
    Verify(verify::Args),
    Gc(gc::Args),
    Pin(ranges::Pin),
    Unpin(ranges::Unpin),
    Prefetch(ranges::Prefetch),
    Evict(ranges::Evict),
    Explain(ranges::Explain),
}

impl Args {
    /// Whether this runs a store, and does not ask one.
    pub(crate) fn serves(&self) -> bool {
        self.command.is_none()
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        None => serve::run(*args.serve).await,
        Some(Command::Inspect(args)) => inspect::run(args).await,
        Some(Command::Verify(args)) => verify::run(args).await,
        Some(Command::Gc(args)) => gc::run(args).await,
        Some(Command::Pin(args)) => ranges::pin(args).await,
        Some(Command::Unpin(args)) => ranges::unpin(args).await,
        Some(Command::Prefetch(args)) => ranges::prefetch(args).await,
        Some(Command::Evict(args)) => ranges::evict(args).await,
        Some(Command::Explain(args)) => ranges::explain(args).await,
    }
}
