//! Figures: a store's `Stats` as the page reads them, so that page and `Stats` cannot differ.
//!
//! A store makes its own and a router asks for it; either way this turns it into JSON and into one row of the
//! history. Ids are 64 bits, more than a browser's numbers are exact for, so they are decimal strings.

use kelvin_proto::kv::v1::{self, MissReason, StatsResponse, Tier, TierHealth, TierStats};
use serde_json::{Map, Value, json};

use super::{Kind, Series};

const fn counter(name: &'static str, unit: &'static str) -> Series {
    Series { name, kind: Kind::Counter, unit }
}

const fn gauge(name: &'static str, unit: &'static str) -> Series {
    Series { name, kind: Kind::Gauge, unit }
}

/// What the history keeps of a store.
pub const STORE_SERIES: [Series; 43] = [
    counter("requested", "tokens"),
    counter("hit.hbm", "tokens"),
    counter("hit.dram", "tokens"),
    counter("hit.nvme", "tokens"),
    counter("hit.object", "tokens"),
    counter("miss.never_stored", "blocks"),
    counter("miss.evicted", "blocks"),
    counter("miss.expired", "blocks"),
    counter("miss.quota", "blocks"),
    counter("miss.quarantined", "blocks"),
    counter("miss.admission_refused", "blocks"),
    counter("miss.too_late", "blocks"),
    counter("miss.abandoned", "blocks"),
    counter("miss.other_namespace", "blocks"),
    counter("miss.removed", "blocks"),
    counter("miss.tier_failed", "blocks"),
    counter("miss.lost_at_restart", "blocks"),
    gauge("dram.used", "bytes"),
    counter("dram.evictions", "blocks"),
    gauge("nvme.used", "bytes"),
    counter("nvme.read", "bytes"),
    counter("nvme.written", "bytes"),
    counter("nvme.reads", "reads"),
    counter("nvme.writes", "writes"),
    gauge("nvme.queued", "transfers"),
    gauge("nvme.mebibyte_read", "us"),
    gauge("object.used", "bytes"),
    counter("object.read", "bytes"),
    counter("object.written", "bytes"),
    counter("object.reads", "reads"),
    counter("object.writes", "writes"),
    gauge("object.queued", "transfers"),
    gauge("object.mebibyte_read", "us"),
    counter("shm.read", "bytes"),
    counter("shm.written", "bytes"),
    counter("tcp.read", "bytes"),
    counter("tcp.written", "bytes"),
    counter("grpc.read", "bytes"),
    counter("grpc.written", "bytes"),
    gauge("leases.read", "leases"),
    gauge("leases.write", "leases"),
    gauge("sessions", "sessions"),
    gauge("pinned", "bytes"),
];

/// The reasons of the series, in their order.
const REASONS: [MissReason; 12] = [
    MissReason::NeverStored,
    MissReason::Evicted,
    MissReason::Expired,
    MissReason::Quota,
    MissReason::Quarantined,
    MissReason::AdmissionRefused,
    MissReason::TooLate,
    MissReason::Abandoned,
    MissReason::OtherNamespace,
    MissReason::Removed,
    MissReason::TierFailed,
    MissReason::LostAtRestart,
];

const TIERS: [Tier; 4] = [Tier::Hbm, Tier::Dram, Tier::Nvme, Tier::Object];

fn name(text: &str, prefix: &str) -> String {
    text.strip_prefix(prefix).unwrap_or(text).to_ascii_lowercase()
}

/// A tier's name: `dram`.
pub(crate) fn tier_name(tier: Tier) -> String {
    name(tier.as_str_name(), "TIER_")
}

/// A reason's name: `evicted`.
pub(crate) fn reason_name(reason: MissReason) -> String {
    name(reason.as_str_name(), "MISS_REASON_")
}

/// Hit tokens by tier, of all namespaces.
fn hit_tokens(stats: &StatsResponse, tier: Tier) -> u64 {
    let of = |namespace: &v1::NamespaceStats| -> u64 {
        let hits = namespace.hits.iter().filter(|hits| hits.tier() == tier);
        hits.map(|hits| hits.blocks * namespace.block_tokens).sum()
    };
    stats.namespaces.iter().map(of).sum()
}

/// A row of [`STORE_SERIES`]; NaN for what is not known, which is everything while the store is away.
pub fn sample(stats: Option<&StatsResponse>) -> Vec<f64> {
    let Some(stats) = stats else { return vec![f64::NAN; STORE_SERIES.len()] };
    let requested = |namespace: &v1::NamespaceStats| namespace.match_blocks * namespace.block_tokens;
    let mut row = vec![stats.namespaces.iter().map(requested).sum::<u64>() as f64];
    row.extend(TIERS.map(|tier| hit_tokens(stats, tier) as f64));
    let missed = |reason| stats.misses.iter().filter(move |miss| miss.reason() == reason);
    row.extend(REASONS.map(|reason| missed(reason).map(|miss| miss.blocks).sum::<u64>() as f64));
    let tier = |tier| stats.tiers.iter().find(move |stats| stats.tier() == tier);
    let dram = |value: fn(&TierStats) -> u64| tier(Tier::Dram).map_or(f64::NAN, |tier| value(tier) as f64);
    row.extend([dram(|tier| tier.used_bytes), dram(|tier| tier.evictions)]);
    for cold in [Tier::Nvme, Tier::Object] {
        let of = |value: fn(&TierStats) -> u64| tier(cold).map_or(f64::NAN, |tier| value(tier) as f64);
        row.extend([
            of(|tier| tier.used_bytes),
            of(|tier| tier.read_bytes),
            of(|tier| tier.written_bytes),
            of(|tier| tier.reads),
            of(|tier| tier.writes),
            of(|tier| tier.reads_queued + tier.writes_queued),
            of(|tier| tier.mebibyte_read_us),
        ]);
    }
    let rest = [
        stats.shm_leased_bytes,
        stats.shm_committed_bytes,
        stats.tcp_read_bytes,
        stats.tcp_written_bytes,
        stats.grpc_read_bytes,
        stats.grpc_written_bytes,
        stats.read_leases,
        stats.write_leases,
        stats.sessions,
        stats.pins.as_ref().map_or(0, |pins| pins.bytes),
    ];
    row.extend(rest.map(|value| value as f64));
    row
}

/// Why a block was not there when it was asked for, and where it is now, with sentences for people. Either may not be
/// known: mostly whoever missed a block stores it, and then only the former tells why it was missing.
pub fn explanation(then: Option<&v1::BlockExplanation>, now: Option<&v1::BlockExplanation>) -> Value {
    let is_there = |block: &v1::BlockExplanation| {
        matches!(block.reason(), MissReason::Stored | MissReason::Filling | MissReason::Unspecified)
    };
    let (then, now) = match (then.filter(|then| !is_there(then)), now) {
        (Some(then), Some(now)) => (then, now),
        (Some(one), None) | (None, Some(one)) => return told(one),
        (None, None) => return Value::Null,
    };
    let (mut value, present) = (told(then), told(now));
    value["tiers"] = present["tiers"].clone();
    value["pinned"] = present["pinned"].clone();
    if is_there(now) {
        value["words"] = json!(format!("{} {}", text(&value["words"]), text(&present["words"])));
    }
    value
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// What is known about a block.
fn told(block: &v1::BlockExplanation) -> Value {
    let reason = block.reason();
    let lost_from = (block.lost_from() != Tier::Unspecified).then(|| tier_name(block.lost_from()));
    let from = lost_from.as_ref().map_or(String::new(), |tier| format!(" from {tier}"));
    let ago = block.age_ms.map_or(String::new(), |age_ms| format!(" {} s ago", age_ms / 1000));
    let tiers: Vec<String> = block.tiers().map(tier_name).collect();
    let words = match reason {
        MissReason::Unspecified => "Nothing is known about it.".to_owned(),
        MissReason::Stored => format!("It is stored now, in {}.", tiers.join(", ")),
        MissReason::Filling => "It is being filled right now.".into(),
        MissReason::NeverStored => "It was never stored, or so long ago that it was forgotten.".into(),
        MissReason::Evicted => format!("It went{from}{ago} to make room for others."),
        MissReason::Expired => format!("It went{from}{ago}: its own time was over."),
        MissReason::Quota => format!("It went{from}{ago}: its namespace had more than its quota."),
        MissReason::Quarantined => {
            format!("Its bytes did not have their checksum any more{ago}, so it was dropped{from}.")
        }
        MissReason::AdmissionRefused => {
            format!("It went from memory{ago}, and too few had asked for it to be written to a colder tier.")
        }
        MissReason::TooLate => format!(
            "It went from memory{ago} before it could be written to a colder tier: others came faster."
        ),
        MissReason::Abandoned => format!("Whoever was filling it gave up{ago}."),
        MissReason::OtherNamespace => format!(
            "Namespace {} has it, and this one has not: mostly an engine of another build.",
            block.other_namespace_id
        ),
        MissReason::Removed => format!("Somebody dropped it{ago} by Evict."),
        MissReason::TierFailed => format!(
            "The tier{} could not take it, or did not give it back in time.",
            lost_from.as_ref().map_or(String::new(), |tier| format!(" {tier}"))
        ),
        MissReason::LostAtRestart => {
            "It was not written yet when the store was killed, or its place was lost.".into()
        }
    };
    let hash: String = block.hash.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "hash": hash,
        "reason": reason_name(reason),
        "tier": lost_from,
        "tiers": tiers,
        "age_ms": block.age_ms,
        "pinned": block.pinned,
        "words": words,
    })
}

/// Everything but the curves.
pub fn figures(stats: &StatsResponse) -> Value {
    let pins = stats.pins.unwrap_or_default();
    let misses = stats.misses.iter().map(|miss| (reason_name(miss.reason()), json!(miss.blocks)));
    json!({
        // As a string: it is 64 random bits.
        "incarnation": stats.incarnation.to_string(),
        "uptime_ms": stats.uptime_ms,
        "tiers": stats.tiers.iter().map(tier_figures).collect::<Vec<_>>(),
        "namespaces": stats.namespaces.iter().map(namespace_figures).collect::<Vec<_>>(),
        "misses": misses.collect::<Map<_, _>>(),
        "sessions": stats.sessions,
        "read_leases": stats.read_leases,
        "write_leases": stats.write_leases,
        "leases_expired": stats.leases_expired,
        "conflicts": stats.conflicts,
        "checksum_failures": stats.checksum_failures,
        "damaged_blocks": stats.damaged_blocks,
        "parked_slots": stats.parked_slots,
        "copied_bytes": stats.copied_bytes,
        "pins": {
            "soft": pins.soft, "hard": pins.hard, "blocks": pins.blocks, "bytes": pins.bytes,
            "expired": pins.expired,
        },
        "policies": policies(stats),
    })
}

fn policies(stats: &StatsResponse) -> Vec<Value> {
    let dram = stats.tiers.iter().find(|tier| tier.tier() == Tier::Dram);
    let policies = dram.into_iter().flat_map(|tier| &tier.policies);
    policies.map(|policy| json!({"policy": policy.policy, "hit_rate": policy.hit_rate})).collect()
}

fn tier_figures(tier: &TierStats) -> Value {
    let health = match tier.health() {
        TierHealth::Unspecified => "unknown".to_owned(),
        health => name(health.as_str_name(), "TIER_HEALTH_"),
    };
    let object = tier.object.as_ref().map(|object| {
        json!({
            "puts": object.puts, "gets": object.gets, "lists": object.lists, "deletes": object.deletes,
            "retries": object.retries, "hedges": object.hedges, "timeouts": object.timeouts,
            "breaker_open": object.breaker_open,
        })
    });
    json!({
        "tier": tier_name(tier.tier()),
        "capacity_bytes": tier.capacity_bytes,
        "used_bytes": tier.used_bytes,
        "blocks": tier.blocks,
        "health": health,
        "policy": tier.policy,
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
        "queued": tier.reads_queued + tier.writes_queued,
        "refused": tier.reads_refused + tier.writes_refused,
        "offloaded_blocks": tier.offloaded_blocks,
        "onboarded_blocks": tier.onboarded_blocks,
        "admission_refused": tier.admission_refused,
        "mebibyte_read_us": tier.mebibyte_read_us,
        "object": object,
    })
}

fn namespace_figures(namespace: &v1::NamespaceStats) -> Value {
    let hits = namespace
        .hits
        .iter()
        .map(|hits| (tier_name(hits.tier()), json!(hits.blocks * namespace.block_tokens)));
    json!({
        "id": namespace.namespace_id.to_string(),
        "tenant": namespace.tenant,
        "model": namespace.model,
        "blocks": namespace.blocks,
        "bytes": namespace.bytes,
        "block_tokens": namespace.block_tokens,
        "sessions": namespace.sessions,
        "requested_tokens": namespace.match_blocks * namespace.block_tokens,
        "hit_tokens": namespace.hit_blocks * namespace.block_tokens,
        "hits": hits.collect::<Map<_, _>>(),
    })
}

/// The hit rate over the size, by namespace, with the sizes that there are.
pub fn mrc(stats: &StatsResponse) -> Value {
    let tiers = stats.tiers.iter().map(|tier| (tier_name(tier.tier()), json!(tier.capacity_bytes)));
    let namespaces = stats.namespaces.iter().map(|namespace| {
        let points = namespace.miss_ratio.iter();
        let points = points.map(|point| json!([point.capacity_bytes, 1.0 - point.miss_ratio]));
        json!({
            "id": namespace.namespace_id.to_string(),
            "tenant": namespace.tenant,
            "model": namespace.model,
            "requested_tokens": namespace.match_blocks * namespace.block_tokens,
            "points": points.collect::<Vec<_>>(),
        })
    });
    json!({
        "capacities": tiers.collect::<Map<_, _>>(),
        "exclusive": stats.exclusive,
        "namespaces": namespaces.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_number_for_each_series() {
        assert_eq!(sample(None).len(), STORE_SERIES.len());
        let namespace = v1::NamespaceStats {
            block_tokens: 16,
            match_blocks: 10,
            hits: vec![v1::TierHits { tier: Tier::Nvme.into(), blocks: 3 }],
            ..Default::default()
        };
        let stats = StatsResponse {
            namespaces: vec![namespace.clone(), namespace],
            misses: vec![v1::MissStats { reason: MissReason::TooLate.into(), blocks: 14 }],
            tiers: vec![TierStats { tier: Tier::Dram.into(), used_bytes: 9, ..Default::default() }],
            sessions: 4,
            ..Default::default()
        };
        let row = sample(Some(&stats));
        let of = |name: &str| {
            let at = STORE_SERIES.iter().position(|series| series.name == name);
            at.map(|at| row[at])
        };
        assert_eq!(row.len(), STORE_SERIES.len());
        assert_eq!((of("requested"), of("hit.nvme"), of("hit.dram")), (Some(320.0), Some(96.0), Some(0.0)));
        assert_eq!(
            (of("miss.too_late"), of("dram.used"), of("sessions")),
            (Some(14.0), Some(9.0), Some(4.0))
        );
        assert!(of("nvme.used").is_some_and(f64::is_nan), "a tier that is not there");
    }

    #[test]
    fn a_block_is_explained_as_of_its_miss_and_as_of_now() {
        let block = |reason: MissReason, tiers: &[Tier]| v1::BlockExplanation {
            reason: reason.into(),
            tiers: tiers.iter().map(|tier| (*tier).into()).collect(),
            ..Default::default()
        };
        let gone = v1::BlockExplanation {
            lost_from: Tier::Dram.into(),
            age_ms: Some(4000),
            ..block(MissReason::Evicted, &[])
        };
        let stored = block(MissReason::Stored, &[Tier::Dram]);
        let told = explanation(Some(&gone), Some(&stored));
        assert_eq!((&told["reason"], &told["tiers"]), (&json!("evicted"), &json!(["dram"])));
        assert_eq!(
            told["words"],
            "It went from dram 4 s ago to make room for others. It is stored now, in dram."
        );
        assert_eq!(explanation(Some(&gone), Some(&gone))["words"], explanation(Some(&gone), None)["words"]);
        assert_eq!(explanation(None, Some(&stored))["reason"], "stored");
        assert_eq!(explanation(Some(&stored), Some(&gone))["reason"], "evicted", "it was there, and went");
        assert_eq!(explanation(None, None), Value::Null);
    }

    #[test]
    fn every_reason_has_a_series_of_its_name() {
        for (reason, series) in REASONS.iter().zip(&STORE_SERIES[5..]) {
            assert_eq!(series.name, format!("miss.{}", reason_name(*reason)));
        }
    }
}
