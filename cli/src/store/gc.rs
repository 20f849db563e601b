//! `kelvin store gc`: collects what nobody can find any more.

use anyhow::Context;
use kelvin_proto::kv::v1::{CollectRequest, CollectResponse};
use serde_json::{Value, json};

use crate::store_at::StoreAt;
use crate::values::{self, Size};

/// Collect what nobody can find any more: packs in the bucket that hold nothing wanted are deleted, those that
/// hold little are rewritten
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    store: StoreAt,

    /// Print JSON instead of words
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let client = args.store.connect().await?;
    let done = client.collect(CollectRequest {}).await.context("collect")?;
    values::print(&if args.json { format!("{:#}\n", as_json(&done)) } else { words(&done) })
}

fn words(done: &CollectResponse) -> String {
    let (deleted, rewritten) = (done.packs_deleted, done.packs_rewritten);
    format!("{deleted} packs deleted and {rewritten} rewritten, {} freed\n", Size(done.pack_bytes_freed))
}

fn as_json(done: &CollectResponse) -> Value {
    json!({
        "packs_deleted": done.packs_deleted,
        "packs_rewritten": done.packs_rewritten,
        "pack_bytes_freed": done.pack_bytes_freed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_are_counted() {
        let done = CollectResponse { packs_deleted: 3, pack_bytes_freed: 96 << 20, ..Default::default() };
        assert_eq!(words(&done), "3 packs deleted and 0 rewritten, 96MiB freed\n");
        assert_eq!(as_json(&done)["packs_deleted"], 3);
    }
}
