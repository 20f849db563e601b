//! The tiers in `kelvin stats`: what each holds, moves and loses, and what other policies would have hit.

use std::fmt::Write;

use kelvin_proto::kv::v1::{PolicyStats, Tier, TierHealth, TierStats};
use serde_json::{Value, json};

use super::percent;
use crate::values::{self, Size};

fn health(tier: &TierStats) -> String {
    match tier.health() {
        TierHealth::Unspecified => "-".into(),
        health => health.as_str_name().trim_start_matches("TIER_HEALTH_").to_lowercase(),
    }
}

pub(super) fn write_table(out: &mut String, tiers: &[TierStats]) -> std::fmt::Result {
    writeln!(
        out,
        "\n{:<8}{:>12}{:>12}{:>12}{:>8}  {:<10}order",
        "tier", "blocks", "used", "capacity", "fill", "health"
    )?;
    for tier in tiers {
        let (used, capacity) = (Size(tier.used_bytes).to_string(), Size(tier.capacity_bytes).to_string());
        let fill = percent(tier.used_bytes, tier.capacity_bytes);
        let (name, health) = (values::tier(tier.tier()), health(tier));
        writeln!(
            out,
            "{name:<8}{:>12}{used:>12}{:>12}{fill:>8}  {health:<10}{}",
            tier.blocks,
            if tier.capacity_bytes == 0 { "-" } else { &capacity },
            tier.policy
        )?;
    }
    let cold: Vec<&TierStats> = tiers.iter().filter(|tier| tier.tier() != Tier::Dram).collect();
    if !cold.is_empty() {
        writeln!(
            out,
            "\n{:<8}{:>12}{:>12}{:>11}{:>11}{:>10}{:>8}{:>9}{:>8}{:>12}",
            "moved",
            "read",
            "written",
            "onboarded",
            "offloaded",
            "evicted",
            "errors",
            "damaged",
            "queued",
            "1MiB takes"
        )?;
    }
    for tier in cold {
        let name = values::tier(tier.tier());
        writeln!(
            out,
            "{name:<8}{:>12}{:>12}{:>11}{:>11}{:>10}{:>8}{:>9}{:>8}{:>9} us",
            Size(tier.read_bytes).to_string(),
            Size(tier.written_bytes).to_string(),
            tier.onboarded_blocks,
            tier.offloaded_blocks,
            tier.evictions + tier.expiries + tier.quota_evictions,
            tier.errors + tier.timeouts,
            tier.damaged_blocks,
            tier.reads_queued + tier.writes_queued,
            tier.mebibyte_read_us
        )?;
    }
    for tier in tiers.iter().filter(|tier| !tier.policies.is_empty()) {
        let rate = |policy: &PolicyStats| format!("{} {:.1}%", policy.policy, policy.hit_rate * 100.0);
        let rates: Vec<String> = tier.policies.iter().map(rate).collect();
        writeln!(out, "\n{} would hit, by order: {}", values::tier(tier.tier()), rates.join(", "))?;
    }
    Ok(())
}

/// The message as it is on the wire, field by field.
pub(super) fn as_json(tier: &TierStats) -> Value {
    let policies =
        tier.policies.iter().map(|policy| json!({"policy": policy.policy, "hit_rate": policy.hit_rate}));
    let object = tier.object.map(|object| {
        json!({
            "puts": object.puts,
            "gets": object.gets,
            "lists": object.lists,
            "deletes": object.deletes,
            "retries": object.retries,
            "hedges": object.hedges,
            "timeouts": object.timeouts,
            "breaker_open": object.breaker_open,
            "breaker_opens": object.breaker_opens,
        })
    });
    json!({
        "tier": values::tier(tier.tier()),
        "capacity_bytes": tier.capacity_bytes,
        "used_bytes": tier.used_bytes,
        "blocks": tier.blocks,
        "health": health(tier),
        "reads": tier.reads,
        "writes": tier.writes,
        "read_bytes": tier.read_bytes,
        "written_bytes": tier.written_bytes,
        "errors": tier.errors,
        "timeouts": tier.timeouts,
        "damaged_blocks": tier.damaged_blocks,
        "evictions": tier.evictions,
        "expiries": tier.expiries,
        "quota_evictions": tier.quota_evictions,
        "reads_queued": tier.reads_queued,
        "writes_queued": tier.writes_queued,
        "reads_refused": tier.reads_refused,
        "writes_refused": tier.writes_refused,
        "offloaded_blocks": tier.offloaded_blocks,
        "onboarded_blocks": tier.onboarded_blocks,
        "admission_refused": tier.admission_refused,
        "mebibyte_read_us": tier.mebibyte_read_us,
        "policy": tier.policy,
        "policies": policies.collect::<Vec<_>>(),
        "object": object,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cold_tiers_show_what_they_move() {
        let dram = TierStats { tier: Tier::Dram.into(), blocks: 3, ..Default::default() };
        let nvme = TierStats {
            tier: Tier::Nvme.into(),
            capacity_bytes: 1 << 30,
            read_bytes: 5 << 20,
            onboarded_blocks: 77,
            mebibyte_read_us: 812,
            health: TierHealth::Degraded.into(),
            policy: "arc".into(),
            policies: vec![PolicyStats { policy: "lru".into(), hit_rate: 0.25 }],
            ..Default::default()
        };
        let table = |tiers: &[TierStats]| {
            let mut text = String::new();
            write_table(&mut text, tiers).unwrap();
            text
        };
        assert!(!table(std::slice::from_ref(&dram)).contains("onboarded"));
        let text = table(&[dram, nvme.clone()]);
        for words in ["degraded  arc", "5MiB", " 77", "812 us", "nvme would hit, by order: lru 25.0%"] {
            assert!(text.contains(words), "{words} is not in:\n{text}");
        }
        assert_eq!(as_json(&nvme)["policies"][0]["hit_rate"], 0.25);
    }
}
