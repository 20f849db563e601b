//! `kelvin store verify`: reads every stored copy and checks it.

use std::io::{IsTerminal, Write};

use anyhow::{Context, bail};
use kelvin_kvstore::server::{Tier, tier_of_name};
use kelvin_proto::kv::v1;
use serde_json::json;

use crate::store_at::StoreAt;
use crate::values::{self, Size};

/// Read every copy on the disks and in the bucket, and check its checksum; damaged ones are dropped. Ends with
/// code 1 when it found any
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    store: StoreAt,

    /// Only copies in these tiers: nvme, object [default: both]
    #[arg(long, value_name = "TIER", value_delimiter = ',', value_parser = tier_of_name)]
    tier: Vec<Tier>,

    /// Read at most so much a second from NVMe, not to slow others down [default: no bound]
    #[arg(long, value_name = "SIZE")]
    rate: Option<Size>,

    /// Print one JSON object when done, instead of words
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let client = args.store.connect().await?;
    let tiers = args.tier.iter().map(|tier| super::ranges::wire(*tier).into()).collect();
    let request = v1::VerifyRequest { tiers, bytes_per_second_max: args.rate.map_or(0, |rate| rate.0) };
    let mut progress = client.verify(request).await.context("verify the store")?;
    let mut terminal = std::io::stderr();
    let shows = terminal.is_terminal() && !args.json;
    let last = loop {
        let message = progress.message().await.context("the store went away")?;
        let Some(message) = message else { bail!("the store ended the check before its end") };
        if shows {
            // A terminal that is gone is no reason to stop.
            let _ =
                write!(terminal, "\r{} of {} copies checked", message.checked_blocks, message.total_blocks);
        }
        if message.done {
            break message;
        }
    };
    if shows {
        let _ = writeln!(terminal);
    }
    values::print(&if args.json { format!("{:#}\n", as_json(&last)) } else { words(&last) })?;
    match last.damaged_blocks {
        0 => Ok(()),
        found => bail!("{found} damaged copies were found"),
    }
}

fn words(last: &v1::VerifyResponse) -> String {
    format!(
        "{} copies checked, {}: {} damaged and dropped, {} could not be read\n",
        last.checked_blocks,
        Size(last.checked_bytes),
        last.damaged_blocks,
        last.unreadable_blocks
    )
}

fn as_json(last: &v1::VerifyResponse) -> serde_json::Value {
    json!({
        "checked_blocks": last.checked_blocks,
        "checked_bytes": last.checked_bytes,
        "damaged_blocks": last.damaged_blocks,
        "unreadable_blocks": last.unreadable_blocks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_counted() {
        let last = v1::VerifyResponse {
            checked_blocks: 9,
            checked_bytes: 9 << 20,
            damaged_blocks: 1,
            ..Default::default()
        };
        assert!(words(&last).starts_with("9 copies checked, 9MiB: 1 damaged"), "{}", words(&last));
        assert_eq!(as_json(&last)["damaged_blocks"], 1);
    }
}
