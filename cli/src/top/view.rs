//! What is shown, as figures: a pure function of two samples.

use std::collections::VecDeque;
use std::time::Duration;

use kelvin_proto::kv::v1::{NamespaceStats, StatsResponse, Tier, TierHealth, TierStats};

use super::sample::{Router, Sample};
use crate::values;

/// Everything on the screen.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    pub(super) store: String,
    pub(super) uptime: Duration,
    /// Why the figures are old.
    pub(super) trouble: Option<String>,
    pub(super) requested_tokens: u64,
    /// Of the tokens asked for, by tier, hottest first.
    pub(super) hits: Vec<(String, f64)>,
    /// Of all requests since the start.
    pub(super) hit_ratio: Option<f64>,
    /// Of those in the last interval.
    pub(super) hit_ratio_now: Option<f64>,
    /// The same, of the last intervals.
    pub(super) trend: Vec<f64>,
    /// Shares of the misses, most first.
    pub(super) misses: Vec<(String, f64)>,
    pub(super) tiers: Vec<TierRow>,
    pub(super) counts: Counts,
    /// What memory would hit under each policy, best first.
    pub(super) ghosts: Vec<(String, f64)>,
    pub(super) policy: String,
    /// What the namespace that is asked most would hit with so much DRAM.
    pub(super) memory: Vec<(String, f64)>,
    pub(super) namespaces: Vec<NamespaceRow>,
    pub(super) router: Option<(String, Result<Router, String>)>,
}

/// A tier.
#[derive(Debug, Clone, Default)]
pub(super) struct TierRow {
    pub(super) name: String,
    pub(super) used_bytes: u64,
    /// 0: without an end.
    pub(super) capacity_bytes: u64,
    /// Bytes a second between two looks.
    pub(super) rates: Option<(f64, f64)>,
    pub(super) queued: u64,
    /// How long a read of a MiB takes; none of memory.
    pub(super) mebibyte_read: Option<Duration>,
    pub(super) health: String,
}

/// Single numbers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) sessions: u64,
    pub(super) read_leases: u64,
    pub(super) write_leases: u64,
    pub(super) leases_expired: u64,
    pub(super) pins: u64,
    pub(super) pinned_bytes: u64,
    pub(super) evictions: u64,
    /// Conflicts, wrong checksums, damaged blocks.
    pub(super) faults: u64,
}

/// A namespace.
#[derive(Debug, Clone, Default)]
pub(super) struct NamespaceRow {
    pub(super) tenant: String,
    pub(super) model: String,
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    pub(super) sessions: u64,
    pub(super) hit_ratio: Option<f64>,
    /// Tokens asked for, a second, between two looks.
    pub(super) tokens_rate: Option<f64>,
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn tokens(stats: &StatsResponse, blocks: impl Fn(&NamespaceStats) -> u64) -> u64 {
    stats.namespaces.iter().map(|space| blocks(space) * space.block_tokens).sum()
}

/// What the namespace that is asked most would hit with as much DRAM as there is, and with multiples of it.
fn memory(stats: &StatsResponse) -> Vec<(String, f64)> {
    let dram = stats.tiers.iter().find(|tier| tier.tier() == Tier::Dram);
    let most = stats.namespaces.iter().max_by_key(|space| space.match_blocks * space.block_tokens);
    let (Some(dram), Some(space)) = (dram, most) else { return Vec::new() };
    let hit_ratio = |bytes: u64| {
        let below = space.miss_ratio.iter().take_while(|point| point.capacity_bytes <= bytes).last();
        below.or(space.miss_ratio.first()).map(|point| 1.0 - point.miss_ratio)
    };
    let named = |(times, name): (u64, &str)| {
        Some((name.to_owned(), hit_ratio(dram.capacity_bytes.saturating_mul(times))?))
    };
    [(1, "as now"), (2, "twice"), (4, "4 times"), (8, "8 times")].into_iter().filter_map(named).collect()
}

fn asked(stats: &StatsResponse) -> u64 {
    tokens(stats, |space| space.match_blocks)
}

/// The share of tokens that were hit between two looks, if any were asked for.
pub(super) fn hit_ratio_between(before: &Sample, now: &Sample) -> Option<f64> {
    if before.stats.incarnation != now.stats.incarnation {
        return None;
    }
    let hit = |sample: &Sample| tokens(&sample.stats, |space| space.hit_blocks);
    ratio(hit(now).saturating_sub(hit(before)), asked(&now.stats).saturating_sub(asked(&before.stats)))
}

impl View {
    /// What `now` shows, with rates since `before`.
    pub(super) fn of(now: &Sample, before: Option<&Sample>, trend: &VecDeque<f64>) -> Self {
        let stats = &now.stats;
        // A store that was started anew counts from nothing.
        let before = before.filter(|before| before.stats.incarnation == stats.incarnation);
        let since = before.map(|before| (before, now.taken.duration_since(before.taken).as_secs_f64()));
        let since = since.filter(|(_, seconds)| *seconds > 0.0);
        let rate = |now: u64, before: Option<u64>| {
            let (_, seconds) = since?;
            Some(now.saturating_sub(before?) as f64 / seconds)
        };
        let asked = asked(stats);
        let hit_in = |tier: Tier| {
            tokens(stats, |space| {
                space.hits.iter().filter(|hits| hits.tier() == tier).map(|hits| hits.blocks).sum()
            })
        };
        let hits = stats.tiers.iter().map(TierStats::tier);
        let hits = hits.map(|tier| (values::tier(tier), ratio(hit_in(tier), asked).unwrap_or(0.0))).collect();
        let missed: u64 = stats.misses.iter().map(|miss| miss.blocks).sum();
        let mut misses: Vec<_> = stats
            .misses
            .iter()
            .filter_map(|miss| Some((crate::stats::reason(miss), ratio(miss.blocks, missed)?)))
            .collect();
        misses.sort_by(|a, b| b.1.total_cmp(&a.1));
        let tiers = stats.tiers.iter().map(|tier| {
            let old =
                since.and_then(|(before, _)| before.stats.tiers.iter().find(|old| old.tier == tier.tier));
            // Blocks of memory are used in place: what counts there is what was leased and committed.
            let bytes = |stats: &StatsResponse, tier: &TierStats| match tier.tier() {
                Tier::Dram => (
                    stats.shm_leased_bytes + stats.tcp_read_bytes + stats.grpc_read_bytes,
                    stats.shm_committed_bytes + stats.tcp_written_bytes + stats.grpc_written_bytes,
                ),
                _ => (tier.read_bytes, tier.written_bytes),
            };
            let old = since.zip(old).map(|((before, _), old)| bytes(&before.stats, old));
            let (read, written) = bytes(stats, tier);
            TierRow {
                name: values::tier(tier.tier()),
                used_bytes: tier.used_bytes,
                capacity_bytes: tier.capacity_bytes,
                rates: rate(read, old.map(|old| old.0)).zip(rate(written, old.map(|old| old.1))),
                queued: tier.reads_queued + tier.writes_queued,
                mebibyte_read: (tier.mebibyte_read_us > 0 && tier.tier() != Tier::Dram)
                    .then(|| Duration::from_micros(tier.mebibyte_read_us)),
                health: match tier.health() {
                    TierHealth::Unspecified => "-".into(),
                    health => health.as_str_name().trim_start_matches("TIER_HEALTH_").to_lowercase(),
                },
            }
        });
        let dram = stats.tiers.iter().find(|tier| tier.tier() == Tier::Dram);
        let mut ghosts: Vec<_> = dram.map_or_else(Vec::new, |dram| {
            dram.policies.iter().map(|ghost| (ghost.policy.clone(), ghost.hit_rate)).collect()
        });
        ghosts.sort_by(|a, b| b.1.total_cmp(&a.1));
        let pins = stats.pins.unwrap_or_default();
        let mut namespaces: Vec<_> = stats
            .namespaces
            .iter()
            .map(|space| {
                let same = |old: &&NamespaceStats| old.namespace_id == space.namespace_id;
                let old = since.and_then(|(before, _)| before.stats.namespaces.iter().find(same));
                let old = old.map(|old| old.match_blocks * old.block_tokens);
                NamespaceRow {
                    tenant: space.tenant.clone(),
                    model: space.model.clone(),
                    blocks: space.blocks,
                    bytes: space.bytes,
                    sessions: space.sessions,
                    hit_ratio: ratio(space.hit_blocks, space.match_blocks),
                    tokens_rate: rate(space.match_blocks * space.block_tokens, old),
                }
            })
            .collect();
        namespaces.sort_by_key(|space| std::cmp::Reverse(space.bytes));
        Self {
            store: now.store.clone(),
            uptime: Duration::from_millis(stats.uptime_ms),
            trouble: None,
            requested_tokens: asked,
            hits,
            hit_ratio: ratio(tokens(stats, |space| space.hit_blocks), asked),
            hit_ratio_now: before.and_then(|before| hit_ratio_between(before, now)),
            trend: trend.iter().copied().collect(),
            misses,
            tiers: tiers.collect(),
            counts: Counts {
                sessions: stats.sessions,
                read_leases: stats.read_leases,
                write_leases: stats.write_leases,
                leases_expired: stats.leases_expired,
                pins: pins.soft + pins.hard,
                pinned_bytes: pins.bytes,
                evictions: stats.evictions,
                faults: stats.conflicts + stats.checksum_failures + stats.damaged_blocks,
            },
            policy: dram.map(|dram| dram.policy.clone()).unwrap_or_default(),
            ghosts,
            memory: memory(stats),
            namespaces,
            router: now.router.clone(),
        }
    }
}
