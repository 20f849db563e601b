//! `kelvin stats`: what a running store holds.

use crate::values;

/// Show what a running store holds and has done
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The store
    #[arg(long, env = "KELVIN_STORE", value_name = "URL", default_value = "http://127.0.0.1:7440", value_parser = values::endpoint)]
    store: String,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    anyhow::bail!("the store cannot be asked yet: {args:?}")
}
