//! `Stats`: the store's counts as a message.

use kelvin_proto::kv::v1;

use super::ranges::miss_reason;
use crate::{
    insight::Reason,
    store::{Store, Tenant},
};

/// What one tenant sees.
pub(super) fn of(store: &Store, tenant: &Tenant) -> v1::StatsResponse {
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
            match_blocks: namespace.match_blocks.get(),
            hit_blocks: namespace.hit_blocks.get(),
            sessions: *sessions,
            ..Default::default()
        }
    });
    v1::StatsResponse {
        incarnation: store.incarnation(),
        uptime_ms: store.uptime().as_millis() as u64,
        tiers: vec![v1::TierStats {
            tier: v1::Tier::Dram.into(),
            capacity_bytes: usage.capacity_bytes,
            used_bytes: usage.used_bytes,
            blocks: usage.places,
            health: v1::TierHealth::Ok.into(),
            ..Default::default()
        }],
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
