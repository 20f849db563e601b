//! `kelvin store verify`: reads every stored copy and checks it.

use std::io::{IsTerminal, Write};

use anyhow::{Context, bail};
use kelvin_kvstore::maintenance::Purpose;
use kelvin_kvstore::server::{Tier, tier_of_name};
use kelvin_proto::kv::v1;
use serde_json::json;

use super::stopped::Subject;
use crate::values::{self, Size, hex};

/// Read every copy on the disks and in the bucket, and check its checksum; damaged ones are dropped. Ends with
/// code 1 when it found any
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    subject: Subject,

    /// Only copies in these tiers: nvme, object [default: both]
    #[arg(long, value_name = "TIER", value_delimiter = ',', value_parser = tier_of_name)]
    tier: Vec<Tier>,

    /// Read at most so much a second from NVMe, not to slow a running store down [default: no bound]
    #[arg(long, value_name = "SIZE", conflicts_with = "data")]
    rate: Option<Size>,

    /// Print one JSON object when done, instead of words
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut progress = Progress::new(!args.json);
    match args.subject.stopped(Purpose::Verify)? {
        Some(store) => {
            let told = store.verify(&args.tier, |message| progress.tell(message)).await;
            told.context("verify the stopped store")?;
        }
        None => {
            let client = args.subject.store.connect().await?;
            let tiers = args.tier.iter().map(|tier| super::ranges::wire(*tier).into()).collect();
            let bytes_per_second_max = args.rate.map_or(0, |rate| rate.0);
            let request = v1::VerifyRequest { tiers, bytes_per_second_max };
            let mut messages = client.verify(request).await.context("verify the store")?;
            while !progress.last.done {
                let message = messages.message().await.context("the store went away")?;
                let Some(message) = message else { bail!("the store ended the check before its end") };
                progress.tell(message);
            }
        }
    }
    let (last, damaged) = progress.end();
    values::print(&if args.json {
        format!("{:#}\n", as_json(&last, &damaged))
    } else {
        words(&last, &damaged)
    })?;
    match last.damaged_blocks {
        0 => Ok(()),
        found => bail!("{found} damaged copies were found"),
    }
}

/// What was said so far.
struct Progress {
    last: v1::VerifyResponse,
    damaged: Vec<v1::DamagedBlock>,
    shows: bool,
}

impl Progress {
    fn new(for_people: bool) -> Self {
        let shows = for_people && std::io::stderr().is_terminal();
        Self { last: v1::VerifyResponse::default(), damaged: Vec::new(), shows }
    }

    fn tell(&mut self, mut message: v1::VerifyResponse) {
        self.damaged.append(&mut message.damaged);
        if self.shows {
            let (checked, total) = (message.checked_blocks, message.total_blocks);
            // A terminal that is gone is no reason to stop.
            let _ = write!(std::io::stderr(), "\r{checked} of {total} copies checked");
        }
        self.last = message;
    }

    fn end(self) -> (v1::VerifyResponse, Vec<v1::DamagedBlock>) {
        if self.shows {
            let _ = writeln!(std::io::stderr());
        }
        (self.last, self.damaged)
    }
}

fn words(last: &v1::VerifyResponse, damaged: &[v1::DamagedBlock]) -> String {
    let mut text = format!(
        "{} copies checked, {}: {} damaged and dropped, {} could not be read\n",
        last.checked_blocks,
        Size(last.checked_bytes),
        last.damaged_blocks,
        last.unreadable_blocks
    );
    for block in damaged {
        text += &format!(
            "damaged  {}  {}  of {}\n",
            hex(&block.hash),
            values::tier(block.tier()),
            block.namespace
        );
    }
    text
}

fn as_json(last: &v1::VerifyResponse, damaged: &[v1::DamagedBlock]) -> serde_json::Value {
    let damaged = damaged.iter().map(|block| {
        json!({"hash": hex(&block.hash), "tier": values::tier(block.tier()), "namespace": block.namespace})
    });
    json!({
        "checked_blocks": last.checked_blocks,
        "checked_bytes": last.checked_bytes,
        "damaged_blocks": last.damaged_blocks,
        "unreadable_blocks": last.unreadable_blocks,
        "damaged": damaged.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_blocks_are_named() {
        let last = v1::VerifyResponse {
            checked_blocks: 9,
            checked_bytes: 9 << 20,
            damaged_blocks: 1,
            ..Default::default()
        };
        let damaged = [v1::DamagedBlock {
            hash: vec![0xcd; 16].into(),
            tier: v1::Tier::Object.into(),
            namespace: "n".into(),
        }];
        let text = words(&last, &damaged);
        assert!(
            text.contains("9 copies checked, 9MiB: 1 damaged") && text.contains("cd  object  of n"),
            "{text}"
        );
        assert_eq!(as_json(&last, &damaged)["damaged"][0]["tier"], "object");
    }
}
