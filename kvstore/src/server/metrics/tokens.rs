//! What was asked for and what was found, by namespace, model and tier; and what other memory would find.

use std::{collections::BTreeMap, fmt};

use kelvin_tiering::Tier;

use super::sheet::{Metric, Sheet};
use crate::{
    insight::Reason,
    store::{Row, Store, tier_name},
};

const REQUESTED_TOKENS: Metric = Metric::counter(
    "kelvin_store_requested_tokens",
    &["tenant", "model", "namespace"],
    "Tokens asked for by Match, in whole blocks; what hits are divided by",
);
const HIT_TOKENS: Metric = Metric::counter(
    "kelvin_store_hit_tokens",
    &["tenant", "model", "namespace", "tier"],
    "Tokens found by Match, by the hottest tier that had them",
);
const FILLING_TOKENS: Metric = Metric::counter(
    "kelvin_store_filling_tokens",
    &["tenant"],
    "Tokens asked for by Match while somebody was filling their blocks",
);
const MISS_TOKENS: Metric = Metric::counter(
    "kelvin_store_miss_tokens",
    &["tenant", "reason"],
    "Tokens not found by Match, by why the first of their blocks is not there",
);
const MISS: Metric = Metric::counter(
    "kelvin_miss",
    &["tenant", "reason"],
    "Blocks not found by Match, by why the first of them is not there",
);
const MATCH_BLOCKS: Metric =
    Metric::counter("kelvin_store_match_blocks", &["tenant", "model"], "Blocks asked for by Match");
const HIT_BLOCKS: Metric =
    Metric::counter("kelvin_store_hit_blocks", &["tenant", "model"], "Blocks found by Match");
const TIER_HIT_BLOCKS: Metric = Metric::counter(
    "kelvin_tier_hit_blocks",
    &["tenant", "tier"],
    "Blocks found by Match, by the hottest tier that had them",
);
const BLOCKS: Metric =
    Metric::gauge("kelvin_store_blocks", &["tenant", "model"], "Blocks stored, in whatever tier");
const INDEX: Metric =
    Metric::gauge("kelvin_store_index", &["tenant", "model"], "Memory of the radix indexes").unit("bytes");
const POLICY_HIT_RATIO: Metric = Metric::gauge(
    "kelvin_policy_hit_ratio",
    &["tenant", "policy"],
    "Share of the blocks asked for lately that memory would have had under this policy",
);
const MEMORY_HIT_RATIO: Metric = Metric::gauge(
    "kelvin_memory_hit_ratio",
    &["tenant", "model", "namespace", "times"],
    "Hit ratio of a namespace, as estimated for memory of so many times the size there is, with all of it its own",
);

/// All that is declared here.
pub(super) fn metrics() -> impl Iterator<Item = &'static Metric> {
    SINGLE.iter().copied()
}

const SINGLE: &[&Metric] = &[
    &REQUESTED_TOKENS,
    &HIT_TOKENS,
    &FILLING_TOKENS,
    &MISS_TOKENS,
    &MISS,
    &MATCH_BLOCKS,
    &HIT_BLOCKS,
    &TIER_HIT_BLOCKS,
    &BLOCKS,
    &INDEX,
    &POLICY_HIT_RATIO,
    &MEMORY_HIT_RATIO,
];

/// Tiers that a match finds blocks in.
const TIERS: [Tier; 3] = [Tier::Dram, Tier::Nvme, Tier::Object];
/// Sizes of memory, in multiples of what it has.
const TIMES: [(&str, f64); 4] = [("0.5", 0.5), ("1", 1.0), ("2", 2.0), ("4", 4.0)];

pub(super) fn encode(store: &Store, sheet: &mut Sheet<'_>) -> fmt::Result {
    let rows: Vec<(&str, Row)> = store
        .tenants()
        .flat_map(|tenant| tenant.rows().into_iter().map(|row| (tenant.name(), row)))
        .collect();
    let labels =
        |(tenant, row): &(&str, Row)| vec![(*tenant).to_owned(), row.model.clone(), row.namespace.clone()];
    let requested = rows.iter().map(|row| (labels(row), row.1.sums.requested_tokens.into()));
    sheet.put(&REQUESTED_TOKENS, requested)?;
    let hits = rows.iter().flat_map(|row| {
        TIERS.map(|tier| {
            let mut labels = labels(row);
            labels.push(tier_name(tier).to_owned());
            (labels, row.1.sums.hit_tokens[tier as usize].into())
        })
    });
    sheet.put(&HIT_TOKENS, hits)?;
    misses(store, sheet)?;
    models(&rows, sheet)?;
    let tier_hits = store.tenants().flat_map(|tenant| {
        let own: Vec<&Row> = rows.iter().filter(|(of, _)| *of == tenant.name()).map(|(_, row)| row).collect();
        TIERS.map(|tier| {
            let blocks: u64 = own.iter().map(|row| row.sums.tier_blocks[tier as usize]).sum();
            (vec![tenant.name().to_owned(), tier_name(tier).to_owned()], blocks.into())
        })
    });
    sheet.put(&TIER_HIT_BLOCKS, tier_hits)?;
    what_if(store, sheet)
}

fn misses(store: &Store, sheet: &mut Sheet<'_>) -> fmt::Result {
    let filling = store
        .tenants()
        .map(|tenant| (vec![tenant.name().to_owned()], tenant.counters().filling_tokens.get().into()));
    sheet.put(&FILLING_TOKENS, filling)?;
    let by_reason = || {
        store.tenants().flat_map(|tenant| {
            Reason::ALL
                .map(|reason| (tenant, reason, vec![tenant.name().to_owned(), reason.name().to_owned()]))
        })
    };
    let tokens = by_reason().map(|(tenant, reason, labels)| {
        (labels, tenant.counters().miss_tokens[reason as usize].get().into())
    });
    sheet.put(&MISS_TOKENS, tokens)?;
    let blocks = by_reason()
        .map(|(tenant, reason, labels)| (labels, tenant.counters().misses[reason as usize].get().into()));
    sheet.put(&MISS, blocks)
}

/// What is summed up by model.
fn models(rows: &[(&str, Row)], sheet: &mut Sheet<'_>) -> fmt::Result {
    type Read = fn(&Row) -> u64;
    let metrics: [(&Metric, Read); 4] = [
        (&MATCH_BLOCKS, |row| row.sums.match_blocks),
        (&HIT_BLOCKS, |row| row.sums.hit_blocks),
        (&BLOCKS, |row| row.sums.blocks),
        (&INDEX, |row| row.sums.index_bytes),
    ];
    for (metric, read) in metrics {
        let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for (tenant, row) in rows {
            *sums.entry((tenant, &row.model)).or_default() += read(row);
        }
        let samples =
            sums.into_iter().map(|((tenant, model), sum)| (vec![tenant.into(), model.into()], sum.into()));
        sheet.put(metric, samples)?;
    }
    Ok(())
}

/// What other policies, and other sizes of memory, would have hit.
fn what_if(store: &Store, sheet: &mut Sheet<'_>) -> fmt::Result {
    let policies = store.tenants().flat_map(|tenant| {
        let rates = tenant.ghost_rates().into_iter();
        rates.map(|rate| (vec![tenant.name().to_owned(), rate.kind.name().to_owned()], rate.hit_rate.into()))
    });
    sheet.put(&POLICY_HIT_RATIO, policies)?;
    let mut sizes = Vec::new();
    for tenant in store.tenants() {
        let bytes = tenant.usage().capacity_bytes as f64;
        for row in tenant.rows() {
            let Some(namespace) = row.id.and_then(|id| tenant.namespace(id).ok()) else { continue };
            let curve = namespace.curve.lock();
            for (times, share) in TIMES {
                let blocks = (bytes * share) as u64 / namespace.spec.block_bytes;
                let labels = vec![
                    tenant.name().to_owned(),
                    row.model.clone(),
                    row.namespace.clone(),
                    times.to_owned(),
                ];
                sizes.push((labels, curve.hit_ratio(blocks).into()));
            }
        }
    }
    sheet.put(&MEMORY_HIT_RATIO, sizes)
}
