//! `Stats`: the store's counts as a message.

use kelvin_proto::kv::v1;
use kelvin_tiering::{BreakerState, Tier, Usage};

use super::{convert, ranges::miss_reason};
use crate::{
    insight::Reason,
    store::{Namespace, Objects, Store, Tenant, TierReport, Tiers},
};

const CURVE_POINTS_MAX: usize = 64;

/// What one tenant sees.
pub(super) fn of(store: &Store, tenant: &Tenant, curves: bool) -> v1::StatsResponse {
    let (usage, survey, counters) = (tenant.usage(), tenant.survey(), tenant.counters());
    let namespaces = survey.namespaces.iter().map(|(namespace, sessions)| {
        let blocks = namespace.index.len() as u64;
        v1::NamespaceStats {
            namespace_id: namespace.id,
            tenant: tenant.name().to_owned(),
            model: namespace.spec.model.clone(),
            blocks,
            bytes: blocks * namespace.spec.block_bytes,
            block_tokens: namespace.spec.block_tokens.into(),
            match_blocks: namespace.match_blocks(),
            hit_blocks: namespace.hit_blocks(),
            sessions: *sessions,
            hits: hits(namespace),
            miss_ratio: if curves { miss_ratio(namespace) } else { Vec::new() },
        }
    });
    v1::StatsResponse {
        incarnation: store.incarnation(),
        uptime_ms: store.uptime().as_millis() as u64,
        tiers: tiers(tenant, &usage),
        namespaces: namespaces.collect(),
        sessions: survey.sessions,
        read_leases: survey.read_leases,
        write_leases: survey.write_leases,
        leases_expired: counters.leases_expired.get(),
        evictions: counters.evictions.get(),
        conflicts: counters.conflicts.get(),
        checksum_failures: counters.checksum_failures.get(),
        grpc_read_bytes: counters.grpc_read_bytes.get(),
        grpc_written_bytes: counters.grpc_written_bytes.get(),
        shm_leased_bytes: counters.shm_leased_bytes.get(),
        shm_committed_bytes: counters.shm_committed_bytes.get(),
        copied_bytes: counters.copied_bytes.get(),
        damaged_blocks: counters.damaged_blocks.get(),
        parked_slots: survey.parked_slots,
        pins: Some(pins(tenant)),
        misses: misses(tenant),
        tcp_read_bytes: counters.tcp_read_bytes.get(),
        tcp_written_bytes: counters.tcp_written_bytes.get(),
        exclusive: tenant.tiers().is_some_and(|tiers| tiers.is_exclusive()),
    }
}

fn pins(tenant: &Tenant) -> v1::PinStats {
    let pins = tenant.pin_survey();
    v1::PinStats {
        soft: pins.soft,
        hard: pins.hard,
        blocks: pins.blocks,
        bytes: pins.bytes,
        expired: pins.expired,
    }
}

/// Those that there were.
fn misses(tenant: &Tenant) -> Vec<v1::MissStats> {
    let counts = Reason::ALL.iter().map(|&reason| (reason, tenant.counters().misses[reason as usize].get()));
    let some = counts.filter(|(_, blocks)| *blocks > 0);
    some.map(|(reason, blocks)| v1::MissStats { reason: miss_reason(reason).into(), blocks }).collect()
}

/// The curve at no more points than a chart needs.
fn miss_ratio(namespace: &Namespace) -> Vec<v1::MissRatioPoint> {
    let curve = namespace.curve.lock().curve();
    let step = curve.len().div_ceil(CURVE_POINTS_MAX).max(1);
    let point = |&(blocks, hit_ratio): &(u64, f64)| v1::MissRatioPoint {
        capacity_bytes: blocks.saturating_mul(namespace.spec.block_bytes),
        miss_ratio: 1.0 - hit_ratio,
    };
    curve.iter().step_by(step).map(point).collect()
}

/// Hits by tier, of tiers that had any.
fn hits(namespace: &Namespace) -> Vec<v1::TierHits> {
    let tiers = [Tier::Hbm, Tier::Dram, Tier::Nvme, Tier::Object].into_iter();
    let hits = tiers.map(|tier| (tier, namespace.tier_hits(tier as usize)));
    let some = hits.filter(|(_, blocks)| *blocks > 0);
    some.map(|(tier, blocks)| v1::TierHits { tier: convert::tier(tier).into(), blocks }).collect()
}

fn tiers(tenant: &Tenant, usage: &Usage) -> Vec<v1::TierStats> {
    let rates = tenant.ghost_rates();
    let policies = rates
        .iter()
        .map(|rate| v1::PolicyStats { policy: rate.kind.name().to_owned(), hit_rate: rate.hit_rate });
    let dram = v1::TierStats {
        tier: v1::Tier::Dram.into(),
        capacity_bytes: usage.capacity_bytes,
        used_bytes: usage.used_bytes,
        blocks: usage.places,
        health: v1::TierHealth::Ok.into(),
        evictions: tenant.counters().evictions.get(),
        policy: tenant.policy().to_owned(),
        policies: policies.collect(),
        ..Default::default()
    };
    let below = tenant.tiers().into_iter().flat_map(|tiers| {
        tiers.reports().into_iter().map(|report| cold_tier(tiers, &report)).collect::<Vec<_>>()
    });
    std::iter::once(dram).chain(below).collect()
}

fn cold_tier(tiers: &Tiers, report: &TierReport) -> v1::TierStats {
    let TierReport { lane, counts, .. } = report;
    let [latency, read] = [0, 1 << 20].map(|bytes| tiers.expect_load(report.tier, bytes).unwrap_or_default());
    let object = (report.tier == Tier::Object).then(|| tiers.objects().map(Objects::requests)).flatten();
    v1::TierStats {
        tier: convert::tier(report.tier).into(),
        capacity_bytes: report.capacity_bytes,
        used_bytes: report.used_bytes,
        blocks: report.blocks,
        health: if report.healthy { v1::TierHealth::Ok.into() } else { v1::TierHealth::Failed.into() },
        reads: lane.reads,
        writes: lane.writes,
        read_bytes: lane.read_bytes,
        written_bytes: lane.written_bytes,
        errors: lane.errors + counts.errors,
        timeouts: counts.timeouts,
        damaged_blocks: counts.damaged,
        evictions: counts.evicted_policy,
        expiries: counts.evicted_expired,
        quota_evictions: counts.evicted_quota,
        reads_queued: lane.reads_waiting,
        writes_queued: lane.writes_waiting,
        reads_refused: lane.reads_refused,
        writes_refused: lane.writes_refused,
        offloaded_blocks: counts.offloaded,
        onboarded_blocks: counts.onboarded,
        admission_refused: counts.not_admitted,
        mebibyte_read_us: read.as_micros() as u64,
        read_latency_us: latency.as_micros() as u64,
        policy: tiers.policy(report.tier).unwrap_or_default().to_owned(),
        policies: Vec::new(),
        object: object.map(|requests| v1::ObjectStats {
            puts: requests.puts,
            gets: requests.gets,
            lists: requests.lists,
            deletes: requests.deletes,
            retries: requests.retries,
            hedges: requests.hedges,
            timeouts: requests.timeouts,
            breaker_open: requests.read_breaker == BreakerState::Open
                || requests.write_breaker == BreakerState::Open,
            breaker_opens: requests.breaker_opens,
        }),
    }
}
