//! `kelvin store pin|unpin|prefetch|evict|explain`: verbs on a running store's blocks.

use std::time::Duration;

use anyhow::Context;
use clap::ArgGroup;
use kelvin_kvstore::server::{Tier, tier_of_name};
use kelvin_kvstore::{Client, SequenceHash, prefix_up_to};
use kelvin_proto::kv::v1;
use serde_json::{Value, json};

use crate::store_at::{StoreAt, choose};
use crate::values::{self, Size, hex};

/// Which store, and which namespace of it.
#[derive(Debug, clap::Args)]
struct At {
    #[command(flatten)]
    store: StoreAt,

    /// Whose blocks: a namespace's id, as "kelvin stats" shows it [default: the only one]
    #[arg(long, value_name = "ID")]
    namespace: Option<u64>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl At {
    async fn connect(&self) -> anyhow::Result<(Client, u64)> {
        let client = self.store.connect().await?;
        let stats = client.stats().await.context("ask the store for its namespaces")?;
        let namespace = choose(&stats.namespaces, self.namespace)?;
        Ok((client, namespace))
    }

    fn say(&self, words: &str, json: &Value) -> anyhow::Result<()> {
        values::print(&if self.json { format!("{json:#}\n") } else { format!("{words}\n") })
    }
}

/// Keep a sequence's blocks from being evicted: those from its start up to a block
#[derive(Debug, clap::Args)]
pub(crate) struct Pin {
    #[command(flatten)]
    at: At,

    /// Last block of the prefix, as "kelvin watch" shows it
    #[arg(value_name = "HASH", value_parser = values::hash)]
    hash: SequenceHash,

    /// And everything stored behind it
    #[arg(long)]
    subtree: bool,

    /// End by itself after this time [default: at unpin, or with the store]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    ttl: Option<Duration>,

    /// Who pins; unpin can name it
    #[arg(long, value_name = "NAME", default_value = "operator")]
    owner: String,
}

pub(crate) async fn pin(args: Pin) -> anyhow::Result<()> {
    let (client, namespace_id) = args.at.connect().await?;
    let request = v1::PinRequest {
        namespace_id,
        prefix: Some(prefix_up_to(args.hash)),
        subtree: args.subtree,
        ttl_ms: args.ttl.map_or(0, |ttl| (ttl.as_millis() as u64).max(1)),
        owner: args.owner,
        ..Default::default()
    };
    let pinned = client.pin(request).await.context("pin")?;
    let until = if args.ttl.is_some() { "until its time is over" } else { "until it is unpinned" };
    let words =
        format!("pin {} keeps {} blocks, {}, {until}", pinned.pin_id, pinned.blocks, Size(pinned.bytes));
    let json = json!({"pin_id": pinned.pin_id, "blocks": pinned.blocks, "bytes": pinned.bytes});
    args.at.say(&words, &json)
}

/// End pins
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(true).args(["pins", "owner"]))]
pub(crate) struct Unpin {
    #[command(flatten)]
    store: StoreAt,

    /// Pins, as "kelvin store pin" named them
    #[arg(value_name = "PIN")]
    pins: Vec<u64>,

    /// All pins of this owner
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn unpin(args: Unpin) -> anyhow::Result<()> {
    let client = args.store.connect().await?;
    let request = v1::UnpinRequest { pin_ids: args.pins, owner: args.owner.unwrap_or_default() };
    let ended = client.unpin(request).await.context("unpin")?;
    values::print(&match args.json {
        true => format!("{:#}\n", json!({"pins": ended.pins, "blocks": ended.blocks})),
        false => format!("{} pins ended; {} blocks may go again\n", ended.pins, ended.blocks),
    })
}

/// Bring a sequence's blocks from the cold tiers into memory: those from its start up to a block
#[derive(Debug, clap::Args)]
pub(crate) struct Prefetch {
    #[command(flatten)]
    at: At,

    /// Last block of the prefix, as "kelvin watch" shows it
    #[arg(value_name = "HASH", value_parser = values::hash)]
    hash: SequenceHash,
}

pub(crate) async fn prefetch(args: Prefetch) -> anyhow::Result<()> {
    let (client, namespace_id) = args.at.connect().await?;
    let prefix = Some(prefix_up_to(args.hash));
    let request = v1::PrefetchRequest { namespace_id, prefix, ..Default::default() };
    let begun = client.prefetch(request).await.context("prefetch")?;
    let words = format!(
        "{} blocks are in memory, {} are being brought, {} were refused (ask again), {} are not stored",
        begun.ready_blocks, begun.queued_blocks, begun.refused_blocks, begun.missing_blocks
    );
    let json = json!({
        "ready_blocks": begun.ready_blocks,
        "queued_blocks": begun.queued_blocks,
        "refused_blocks": begun.refused_blocks,
        "missing_blocks": begun.missing_blocks,
    });
    args.at.say(&words, &json)
}

pub(super) fn wire(tier: Tier) -> v1::Tier {
    match tier {
        Tier::Hbm => v1::Tier::Hbm,
        Tier::Dram => v1::Tier::Dram,
        Tier::Nvme => v1::Tier::Nvme,
        Tier::Object => v1::Tier::Object,
    }
}

/// Drop a block and everything behind it, or all blocks of a namespace
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("range").required(true).args(["hash", "all"]))]
pub(crate) struct Evict {
    #[command(flatten)]
    at: At,

    /// First block to go, as "kelvin watch" shows it; those before it stay
    #[arg(value_name = "HASH", value_parser = values::hash)]
    hash: Option<SequenceHash>,

    /// Every block of the namespace
    #[arg(long)]
    all: bool,

    /// Only copies in these tiers: dram, nvme, object [default: all]
    #[arg(long, value_name = "TIER", value_delimiter = ',', value_parser = tier_of_name)]
    tier: Vec<Tier>,
}

pub(crate) async fn evict(args: Evict) -> anyhow::Result<()> {
    let (client, namespace_id) = args.at.connect().await?;
    let range = match args.hash {
        Some(hash) => v1::evict_request::Range::Prefix(prefix_up_to(hash)),
        None => v1::evict_request::Range::WholeNamespace(true),
    };
    let tiers = args.tier.iter().map(|tier| wire(*tier).into()).collect();
    let request = v1::EvictRequest { namespace_id, range: Some(range), tiers, ..Default::default() };
    let evicted = client.evict(request).await.context("evict")?;
    let words = format!(
        "{} blocks evicted, {}; {} kept, leased or pinned",
        evicted.evicted_blocks,
        Size(evicted.evicted_bytes),
        evicted.kept_blocks
    );
    let json = json!({
        "evicted_blocks": evicted.evicted_blocks,
        "evicted_bytes": evicted.evicted_bytes,
        "kept_blocks": evicted.kept_blocks,
    });
    args.at.say(&words, &json)
}

/// Say where blocks are, or why they are not stored (any more)
#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    at: At,

    /// Blocks, as "kelvin watch" shows them
    #[arg(value_name = "HASH", required = true, value_parser = values::hash)]
    hashes: Vec<SequenceHash>,
}

pub(crate) async fn explain(args: Explain) -> anyhow::Result<()> {
    let (client, namespace_id) = args.at.connect().await?;
    let hashes = args.hashes.iter().map(|hash| hash.to_bytes().to_vec().into()).collect();
    let blocks = Some(v1::explain_request::Blocks::Hashes(v1::Hashes { hashes }));
    let request = v1::ExplainRequest { namespace_id, blocks, ..Default::default() };
    let blocks = client.explain(request).await.context("explain")?.blocks;
    let lines: Vec<String> = blocks.iter().map(line).collect();
    args.at.say(&lines.join("\n"), &blocks.iter().map(as_json).collect())
}

fn reason(block: &v1::BlockExplanation) -> String {
    block.reason().as_str_name().trim_start_matches("MISS_REASON_").to_lowercase()
}

fn tiers(block: &v1::BlockExplanation) -> Vec<String> {
    block.tiers().map(values::tier).collect()
}

/// `HASH  stored in dram, nvme; pinned` or `HASH  evicted from nvme, 12 s ago`.
fn line(block: &v1::BlockExplanation) -> String {
    let mut text = format!("{}  {}", hex(&block.hash), reason(block).replace('_', " "));
    if !block.tiers.is_empty() {
        text += &format!(" in {}", tiers(block).join(", "));
    }
    if block.lost_from() != v1::Tier::Unspecified {
        text += &format!(" from {}", values::tier(block.lost_from()));
    }
    if block.other_namespace_id != 0 {
        text += &format!(" {}", block.other_namespace_id);
    }
    if let Some(age) = block.age_ms {
        text += &format!(", {} s ago", age / 1000);
    }
    if block.pinned {
        text += "; pinned";
    }
    text
}

fn as_json(block: &v1::BlockExplanation) -> Value {
    json!({
        "hash": hex(&block.hash),
        "reason": reason(block),
        "tiers": tiers(block),
        "lost_from": (block.lost_from() != v1::Tier::Unspecified).then(|| values::tier(block.lost_from())),
        "age_ms": block.age_ms,
        "other_namespace_id": (block.other_namespace_id != 0).then_some(block.other_namespace_id),
        "pinned": block.pinned,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_is_a_line() {
        let hash = vec![0xab; 16];
        let stored = v1::BlockExplanation {
            hash: hash.clone().into(),
            reason: v1::MissReason::Stored.into(),
            tiers: vec![v1::Tier::Dram.into(), v1::Tier::Nvme.into()],
            pinned: true,
            ..Default::default()
        };
        assert!(line(&stored).ends_with("ab  stored in dram, nvme; pinned"), "{}", line(&stored));
        let evicted = v1::BlockExplanation {
            hash: hash.into(),
            reason: v1::MissReason::Evicted.into(),
            lost_from: v1::Tier::Nvme.into(),
            age_ms: Some(12_345),
            ..Default::default()
        };
        assert!(line(&evicted).ends_with("ab  evicted from nvme, 12 s ago"), "{}", line(&evicted));
        assert_eq!(as_json(&evicted)["lost_from"], "nvme");
    }
}
