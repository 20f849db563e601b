//! `kelvin store inspect`: what a store keeps, by file, namespace and tier.

use std::fmt::Write;

use anyhow::Context;
use kelvin_kvstore::maintenance::Purpose;
use kelvin_proto::kv::v1::{InspectRequest, InspectResponse, StoreFile, StoredNamespace, TierHealth};
use serde_json::{Value, json};

use super::stopped::Subject;
use crate::values::{self, Size};

/// Show what a store keeps on its disks and in its bucket, by namespace and tier
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    subject: Subject,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let found = match args.subject.stopped(Purpose::Look)? {
        Some(store) => store.inspect().context("inspect the stopped store")?,
        None => {
            let client = args.subject.store.connect().await?;
            client.inspect(InspectRequest {}).await.context("inspect the store")?
        }
    };
    values::print(&if args.json { format!("{:#}\n", as_json(&found)) } else { table(&found) })
}

pub(super) fn health(health: TierHealth) -> String {
    health.as_str_name().trim_start_matches("TIER_HEALTH_").to_lowercase()
}

fn table(found: &InspectResponse) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_table(&mut text, found);
    text
}

fn write_table(out: &mut String, found: &InspectResponse) -> std::fmt::Result {
    let stopped = if found.clean { "in order" } else { "by a crash, or for the first time now" };
    writeln!(out, "format {}, last stopped {stopped}", found.format_version)?;
    writeln!(
        out,
        "catalog   {} records, {} on disk; {} blocks found again at the start in {:.1} ms",
        found.catalog_records,
        Size(found.catalog_bytes),
        found.recovered_blocks,
        found.recovery_us as f64 / 1e3
    )?;
    for dropped in &found.dropped {
        writeln!(out, "          {} blocks not taken over: {}", dropped.blocks, dropped.reason)?;
    }
    if found.quarantined_slots > 0 {
        writeln!(out, "          {} slots in quarantine", found.quarantined_slots)?;
    }
    if found.packs > 0 {
        let (bytes, live) = (Size(found.pack_bytes), Size(found.pack_live_bytes));
        writeln!(out, "bucket    {} packs, {bytes}, of which {live} are wanted", found.packs)?;
    }
    if !found.files.is_empty() {
        writeln!(out, "\n{:<10}{:>12}{:>12}  {:<8}{:<10}path", "health", "used", "size", "engine", "cache")?;
    }
    for file in &found.files {
        writeln!(
            out,
            "{:<10}{:>12}{:>12}  {:<8}{:<10}{}",
            health(file.health()),
            Size(file.used_bytes).to_string(),
            Size(file.bytes).to_string(),
            file.engine,
            if file.direct { "direct" } else { "buffered" },
            file.path
        )?;
    }
    let width = found.namespaces.iter().map(|space| space.model.len()).max().unwrap_or(0).max(5) + 2;
    writeln!(out, "\n{:<34}{:<width$}{:<8}{:>12}{:>12}", "namespace", "model", "tier", "blocks", "bytes")?;
    for space in &found.namespaces {
        for tier in &space.tiers {
            writeln!(
                out,
                "{:<34}{:<width$}{:<8}{:>12}{:>12}",
                space.id,
                space.model,
                values::tier(tier.tier()),
                tier.blocks,
                Size(tier.bytes).to_string()
            )?;
        }
    }
    Ok(())
}

fn as_json(found: &InspectResponse) -> Value {
    let file = |file: &StoreFile| {
        json!({
            "path": file.path,
            "uuid": file.uuid,
            "bytes": file.bytes,
            "used_bytes": file.used_bytes,
            "direct": file.direct,
            "engine": file.engine,
            "health": health(file.health()),
        })
    };
    let namespace = |space: &StoredNamespace| {
        let tiers = space.tiers.iter().map(
            |tier| json!({"tier": values::tier(tier.tier()), "blocks": tier.blocks, "bytes": tier.bytes}),
        );
        json!({
            "namespace_id": space.namespace_id,
            "id": space.id,
            "tenant": space.tenant,
            "model": space.model,
            "block_bytes": space.block_bytes,
            "tiers": tiers.collect::<Vec<_>>(),
        })
    };
    let dropped = found.dropped.iter().map(|dropped| (dropped.reason.clone(), json!(dropped.blocks)));
    json!({
        "format_version": found.format_version,
        "incarnation": found.incarnation,
        "clean": found.clean,
        "files": found.files.iter().map(file).collect::<Vec<_>>(),
        "namespaces": found.namespaces.iter().map(namespace).collect::<Vec<_>>(),
        "catalog_records": found.catalog_records,
        "catalog_bytes": found.catalog_bytes,
        "packs": found.packs,
        "pack_bytes": found.pack_bytes,
        "pack_live_bytes": found.pack_live_bytes,
        "recovered_blocks": found.recovered_blocks,
        "recovery_us": found.recovery_us,
        "dropped": dropped.collect::<serde_json::Map<_, _>>(),
        "quarantined_slots": found.quarantined_slots,
    })
}

#[cfg(test)]
mod tests {
    use kelvin_proto::kv::v1::{Dropped, StoredTier, Tier};

    use super::*;

    #[test]
    fn a_table_names_files_and_namespaces() {
        let found = InspectResponse {
            format_version: 1,
            clean: true,
            files: vec![StoreFile {
                path: "/mnt/a/kelvin.blocks".into(),
                bytes: 1 << 30,
                used_bytes: 1 << 29,
                engine: "uring".into(),
                direct: true,
                health: TierHealth::Ok.into(),
                ..Default::default()
            }],
            namespaces: vec![StoredNamespace {
                model: "m".into(),
                tiers: vec![StoredTier { tier: Tier::Nvme.into(), blocks: 7, bytes: 7 << 20 }],
                ..Default::default()
            }],
            dropped: vec![Dropped { reason: "no parent".into(), blocks: 3 }],
            ..Default::default()
        };
        let table = table(&found);
        for words in
            ["in order", "uring", "direct", "512MiB", "/mnt/a/kelvin.blocks", "nvme", "7MiB", "no parent"]
        {
            assert!(table.contains(words), "{words} is not in:\n{table}");
        }
        assert_eq!(as_json(&found)["dropped"]["no parent"], 3);
    }
}
