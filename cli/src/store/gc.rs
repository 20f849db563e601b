//! `kelvin store gc`: collects what nobody can find any more.

use anyhow::Context;
use kelvin_kvstore::maintenance::Purpose;
use kelvin_proto::kv::v1::{CollectRequest, CollectResponse};
use serde_json::{Value, json};

use super::stopped::Subject;
use crate::values::{self, Size};

/// Collect what nobody can find any more: dead packs in the bucket, records and slots without a block
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    subject: Subject,

    /// Rewrite packs of which less than this is still wanted, in percent [default: the store's own, 50]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    live: Option<u32>,

    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,

    /// Print JSON instead of words
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let purpose = if args.dry_run { Purpose::Look } else { Purpose::Collect };
    let live_percent_min = args.live.unwrap_or(0);
    let done = match args.subject.stopped(purpose)? {
        Some(store) => store.collect(live_percent_min).await.context("collect in the stopped store")?,
        None => {
            let request = CollectRequest { live_percent_min, dry_run: args.dry_run };
            args.subject.store.connect().await?.collect(request).await.context("collect")?
        }
    };
    values::print(&if args.json { format!("{:#}\n", as_json(&done)) } else { words(&done, args.dry_run) })
}

fn words(done: &CollectResponse, dry_run: bool) -> String {
    format!(
        "{}{} packs deleted and {} rewritten, {} freed in the bucket\n{}{} records removed, {} slots freed, {}\n",
        if dry_run { "would be: " } else { "" },
        done.packs_deleted,
        done.packs_rewritten,
        Size(done.pack_bytes_freed),
        if dry_run { "would be: " } else { "" },
        done.records_removed,
        done.slots_freed,
        Size(done.slot_bytes_freed)
    )
}

fn as_json(done: &CollectResponse) -> Value {
    json!({
        "packs_deleted": done.packs_deleted,
        "packs_rewritten": done.packs_rewritten,
        "pack_bytes_freed": done.pack_bytes_freed,
        "records_removed": done.records_removed,
        "slots_freed": done.slots_freed,
        "slot_bytes_freed": done.slot_bytes_freed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_says_so() {
        let done = CollectResponse { packs_deleted: 3, pack_bytes_freed: 96 << 20, ..Default::default() };
        assert!(words(&done, false).starts_with("3 packs deleted and 0 rewritten, 96MiB freed"));
        assert!(words(&done, true).starts_with("would be: 3 packs"));
        assert_eq!(as_json(&done)["packs_deleted"], 3);
    }
}
