//! `kelvin stats`: what a running store holds.

mod tiers;

use std::fmt::Write;
use std::time::Duration;

use anyhow::Context;
use kelvin_proto::kv::v1::{MissStats, NamespaceStats, StatsResponse};
use serde_json::{Value, json};

use crate::store_at::StoreAt;
use crate::values::{self, Size};

/// Show what a running store holds and has done
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    store: StoreAt,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let stats = args.store.connect().await?.stats().await.context("ask the store for its statistics")?;
    let text = if args.json { format!("{:#}\n", as_json(&stats)) } else { table(&args.store.url, &stats) };
    values::print(&text)
}

/// A share, in percent; of nothing, it is a dash.
fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.1}%", part as f64 / whole as f64 * 100.0) }
}

fn table(store: &str, stats: &StatsResponse) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_table(&mut text, store, stats);
    text
}

fn write_table(out: &mut String, store: &str, stats: &StatsResponse) -> std::fmt::Result {
    writeln!(out, "store {store}, up {}", uptime(Duration::from_millis(stats.uptime_ms)))?;

    tiers::write_table(out, &stats.tiers)?;

    let width = stats.namespaces.iter().map(|space| space.model.len()).max().unwrap_or(0).max(5) + 2;
    writeln!(
        out,
        "\n{:<22}{:<width$}{:<12}{:>12}{:>12}{:>10}{:>16}{:>8}",
        "id", "model", "tenant", "blocks", "bytes", "sessions", "matched tokens", "hits"
    )?;
    for space in &stats.namespaces {
        writeln!(
            out,
            "{:<22}{:<width$}{:<12}{:>12}{:>12}{:>10}{:>16}{:>8}",
            space.namespace_id,
            space.model,
            space.tenant,
            space.blocks,
            Size(space.bytes).to_string(),
            space.sessions,
            space.match_blocks * space.block_tokens,
            percent(space.hit_blocks, space.match_blocks)
        )?;
    }

    writeln!(
        out,
        "\nnow       {} sessions, {} read leases, {} write leases",
        stats.sessions, stats.read_leases, stats.write_leases
    )?;
    writeln!(
        out,
        "so far    {} evictions, {} leases expired, {} conflicts, {} checksum failures",
        stats.evictions, stats.leases_expired, stats.conflicts, stats.checksum_failures
    )?;
    let misses: Vec<String> =
        stats.misses.iter().map(|miss| format!("{} {}", miss.blocks, reason(miss))).collect();
    if !misses.is_empty() {
        writeln!(out, "missed    {}", misses.join(", "))?;
    }
    if let Some(pins) = stats.pins.filter(|pins| pins.soft + pins.hard > 0) {
        writeln!(
            out,
            "pinned    {} blocks, {}, by {} hard and {} soft pins",
            pins.blocks,
            Size(pins.bytes),
            pins.hard,
            pins.soft
        )?;
    }
    writeln!(
        out,
        "bytes     in place: {} read, {} filled; over TCP: {} read, {} written; over gRPC: {} read, {} written; copied by the store: {}",
        Size(stats.shm_leased_bytes),
        Size(stats.shm_committed_bytes),
        Size(stats.tcp_read_bytes),
        Size(stats.tcp_written_bytes),
        Size(stats.grpc_read_bytes),
        Size(stats.grpc_written_bytes),
        Size(stats.copied_bytes)
    )
}

/// `never stored` of `MISS_REASON_NEVER_STORED`.
pub(crate) fn reason(miss: &MissStats) -> String {
    miss.reason().as_str_name().trim_start_matches("MISS_REASON_").to_lowercase().replace('_', " ")
}

/// The two largest units: `3d 4h`, `5m 6s`, `7s`.
pub(crate) fn uptime(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        (_, _, _) => format!("{days}d {hours}h"),
    }
}

/// The message as it is on the wire, field by field.
fn as_json(stats: &StatsResponse) -> Value {
    let namespace = |space: &NamespaceStats| {
        json!({
            "namespace_id": space.namespace_id,
            "tenant": space.tenant,
            "model": space.model,
            "blocks": space.blocks,
            "bytes": space.bytes,
            "block_tokens": space.block_tokens,
            "match_blocks": space.match_blocks,
            "hit_blocks": space.hit_blocks,
            "sessions": space.sessions,
            "hits": space
                .hits
                .iter()
                .map(|hits| json!({"tier": values::tier(hits.tier()), "blocks": hits.blocks}))
                .collect::<Vec<_>>(),
            "miss_ratio": space
                .miss_ratio
                .iter()
                .map(|point| json!({"capacity_bytes": point.capacity_bytes, "miss_ratio": point.miss_ratio}))
                .collect::<Vec<_>>(),
        })
    };
    json!({
        "incarnation": stats.incarnation,
        "uptime_ms": stats.uptime_ms,
        "tiers": stats.tiers.iter().map(tiers::as_json).collect::<Vec<_>>(),
        "namespaces": stats.namespaces.iter().map(namespace).collect::<Vec<_>>(),
        "sessions": stats.sessions,
        "read_leases": stats.read_leases,
        "write_leases": stats.write_leases,
        "leases_expired": stats.leases_expired,
        "evictions": stats.evictions,
        "conflicts": stats.conflicts,
        "checksum_failures": stats.checksum_failures,
        "tcp_read_bytes": stats.tcp_read_bytes,
        "tcp_written_bytes": stats.tcp_written_bytes,
        "grpc_read_bytes": stats.grpc_read_bytes,
        "grpc_written_bytes": stats.grpc_written_bytes,
        "shm_leased_bytes": stats.shm_leased_bytes,
        "shm_committed_bytes": stats.shm_committed_bytes,
        "copied_bytes": stats.copied_bytes,
        "damaged_blocks": stats.damaged_blocks,
        "parked_slots": stats.parked_slots,
        "pins": stats.pins.map(|pins| {
            json!({
                "soft": pins.soft,
                "hard": pins.hard,
                "blocks": pins.blocks,
                "bytes": pins.bytes,
                "expired": pins.expired,
            })
        }),
        "misses": stats
            .misses
            .iter()
            .map(|miss| (reason(miss).replace(' ', "_"), json!(miss.blocks)))
            .collect::<serde_json::Map<_, _>>(),
    })
}

#[cfg(test)]
mod tests {
    use kelvin_proto::kv::v1::{MissReason, PinStats, TierStats};

    use super::*;

    #[test]
    fn a_table_names_models_and_rates() {
        let space = NamespaceStats {
            namespace_id: 1,
            tenant: "default".into(),
            model: "a-model-with-a-long-name".into(),
            blocks: 3,
            bytes: 3 << 20,
            block_tokens: 16,
            match_blocks: 8,
            hit_blocks: 6,
            sessions: 2,
            ..Default::default()
        };
        let tier = TierStats {
            tier: 2,
            capacity_bytes: 1 << 30,
            used_bytes: 1 << 29,
            blocks: 3,
            ..Default::default()
        };
        let stats = StatsResponse {
            uptime_ms: 61_000,
            tiers: vec![tier],
            namespaces: vec![space],
            misses: vec![MissStats { reason: MissReason::NeverStored.into(), blocks: 12 }],
            pins: Some(PinStats { hard: 1, blocks: 2, bytes: 2 << 20, ..Default::default() }),
            ..Default::default()
        };
        let table = table("http://here", &stats);
        for words in [
            "up 1m 1s",
            "dram",
            "512MiB",
            "50.0%",
            "a-model-with-a-long-name",
            "3MiB",
            " 128",
            "75.0%",
            "12 never stored",
            "2 blocks, 2MiB, by 1 hard and 0 soft pins",
        ] {
            assert!(table.contains(words), "{words} is not in:\n{table}");
        }
        assert_eq!(as_json(&stats)["namespaces"][0]["hit_blocks"], 6);
        assert_eq!(as_json(&stats)["misses"]["never_stored"], 12);
    }

    #[test]
    fn uptimes_have_two_units() {
        for (seconds, text) in [(7, "7s"), (306, "5m 6s"), (3_660, "1h 1m"), (277_200, "3d 5h")] {
            assert_eq!(uptime(Duration::from_secs(seconds)), text);
        }
    }
}
