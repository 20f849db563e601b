//! `kelvin watch`: the blocks of a running store as they come and go.

use crate::values;

/// Print a running store's block events: the present blocks first, then live, until Ctrl-C
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The store
    #[arg(long, env = "KELVIN_STORE", value_name = "URL", default_value = "http://127.0.0.1:7440", value_parser = values::endpoint)]
    store: String,

    /// Print one JSON object an event
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    anyhow::bail!("the store cannot be watched yet: {args:?}")
}
