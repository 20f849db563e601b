//! What each tenant has and holds: memory, sessions, leases, pins; what left it; and what went wrong.

use std::{fmt, sync::Arc, time::Duration};

use kelvin_tiering::{Tier, Usage};

use super::sheet::{Metric, Sheet};
use crate::store::{Counters, PinSurvey, Removal, Store, Survey, Tenant, tier_name};

const TENANT: &[&str] = &["tenant"];
const TENANT_TIER: &[&str] = &["tenant", "tier"];
const TENANT_KIND: &[&str] = &["tenant", "kind"];

const CAPACITY: Metric =
    Metric::gauge("kelvin_store_capacity", TENANT_TIER, "Bytes of the memory pool").unit("bytes");
const USED: Metric =
    Metric::gauge("kelvin_store_used", TENANT_TIER, "Bytes of the pool in slots handed out").unit("bytes");
const PARKED_SLOTS: Metric =
    Metric::gauge("kelvin_store_parked_slots", TENANT_TIER, "Slots resting until a process is gone");
const NAMESPACES: Metric = Metric::gauge("kelvin_store_namespaces", TENANT, "Namespaces known");
const SESSIONS: Metric = Metric::gauge("kelvin_store_sessions", TENANT, "Sessions open");
const LEASES: Metric = Metric::gauge("kelvin_store_leases", TENANT_KIND, "Leases held, to read or to write");
const LEASE_AGE: Metric = Metric::gauge(
    "kelvin_store_lease_oldest_age",
    TENANT_KIND,
    "Since the oldest lease held was granted; 0 without one",
)
.unit("seconds");
const SOFT_PINS: Metric = Metric::gauge("kelvin_store_soft_pins", TENANT, "Pins with an end");
const HARD_PINS: Metric = Metric::gauge("kelvin_store_hard_pins", TENANT, "Pins without an end");
const PIN_AGE: Metric = Metric::gauge(
    "kelvin_store_pin_oldest_age",
    TENANT_KIND,
    "Since the oldest pin was set, soft or hard; 0 without one",
)
.unit("seconds");
const PINNED_BLOCKS: Metric = Metric::gauge("kelvin_store_pinned_blocks", TENANT, "Blocks that a pin keeps");
const PINNED: Metric =
    Metric::gauge("kelvin_store_pinned", TENANT, "Bytes of the blocks that a pin keeps").unit("bytes");
const PINS_EXPIRED: Metric =
    Metric::counter("kelvin_store_pins_expired", TENANT, "Pins that ended by themselves");
const EXPLAINED_BLOCKS: Metric = Metric::gauge(
    "kelvin_store_explained_blocks",
    TENANT,
    "Blocks of which it is known why they went; at most 65536",
);
const OFFLOAD_QUEUE: Metric = Metric::gauge(
    "kelvin_store_offload_queue_blocks",
    TENANT,
    "Blocks committed lately that wait to be copied to a colder tier; without eager offload none do",
);
const EVICTED_BLOCKS: Metric = Metric::counter(
    "kelvin_store_evicted_blocks",
    &["tenant", "policy", "reason"],
    "Blocks that left DRAM, by the policy in force and by why",
);
const UPTIME: Metric =
    Metric::gauge("kelvin_store_uptime", &[], "Since the store was started").unit("seconds");
const MEMORY: Metric = Metric::gauge(
    "kelvin_store_metrics_memory",
    &[],
    "Memory of what is kept to be shown: counts, histograms, miss-ratio curves, reasons of misses",
)
.unit("bytes");

type Read = fn(&Counters) -> u64;

/// Counters that each tenant has once.
static COUNTERS: [(Metric, Read); 13] = [
    (Metric::counter("kelvin_store_evictions", TENANT, "Blocks evicted from DRAM"), |counters| {
        counters.evictions.get()
    }),
    (
        Metric::counter("kelvin_store_conflicts", TENANT, "Commits of other bytes under a stored hash"),
        |counters| counters.conflicts.get(),
    ),
    (
        Metric::counter("kelvin_store_checksum_failures", TENANT, "Commits whose bytes had another checksum"),
        |counters| counters.checksum_failures.get(),
    ),
    (
        Metric::counter(
            "kelvin_store_damaged_blocks",
            TENANT,
            "Blocks dropped since a reader found them damaged",
        ),
        |counters| counters.damaged_blocks.get(),
    ),
    (Metric::counter("kelvin_store_no_space", TENANT, "Reservations that found no slot"), |counters| {
        counters.no_space.get()
    }),
    (Metric::counter("kelvin_store_leases_expired", TENANT, "Leases ended by their TTL"), |counters| {
        counters.leases_expired.get()
    }),
    (
        Metric::counter("kelvin_store_grpc_read", TENANT, "Payload read through gRPC").unit("bytes"),
        |counters| counters.grpc_read_bytes.get(),
    ),
    (
        Metric::counter("kelvin_store_grpc_written", TENANT, "Payload written through gRPC").unit("bytes"),
        |counters| counters.grpc_written_bytes.get(),
    ),
    (
        Metric::counter("kelvin_store_tcp_read", TENANT, "Payload read through the data port").unit("bytes"),
        |counters| counters.tcp_read_bytes.get(),
    ),
    (
        Metric::counter("kelvin_store_tcp_written", TENANT, "Payload written through the data port")
            .unit("bytes"),
        |counters| counters.tcp_written_bytes.get(),
    ),
    (
        Metric::counter("kelvin_store_shm_leased", TENANT, "Payload leased in shared memory").unit("bytes"),
        |counters| counters.shm_leased_bytes.get(),
    ),
    (
        Metric::counter("kelvin_store_shm_committed", TENANT, "Payload committed in shared memory")
            .unit("bytes"),
        |counters| counters.shm_committed_bytes.get(),
    ),
    (
        Metric::counter("kelvin_store_copied", TENANT, "Payload that the store itself copied").unit("bytes"),
        |counters| counters.copied_bytes.get(),
    ),
];

/// All that is declared here.
pub(super) fn metrics() -> impl Iterator<Item = &'static Metric> {
    SINGLE.iter().copied().chain(COUNTERS.iter().map(|(metric, _)| metric))
}

const SINGLE: &[&Metric] = &[
    &CAPACITY,
    &USED,
    &PARKED_SLOTS,
    &NAMESPACES,
    &SESSIONS,
    &LEASES,
    &LEASE_AGE,
    &SOFT_PINS,
    &HARD_PINS,
    &PIN_AGE,
    &PINNED_BLOCKS,
    &PINNED,
    &PINS_EXPIRED,
    &EXPLAINED_BLOCKS,
    &OFFLOAD_QUEUE,
    &EVICTED_BLOCKS,
    &UPTIME,
    &MEMORY,
];

/// A tenant at one moment.
struct Seen<'a> {
    tenant: &'a Arc<Tenant>,
    usage: Usage,
    survey: Survey,
    pins: PinSurvey,
}

impl Seen<'_> {
    fn age(&self, since: Option<Duration>) -> f64 {
        since.map_or(0.0, |since| self.tenant.now().saturating_sub(since).as_secs_f64())
    }
}

pub(super) fn encode(store: &Store, sheet: &mut Sheet<'_>) -> fmt::Result {
    let seen: Vec<Seen<'_>> = store
        .tenants()
        .map(|tenant| Seen {
            tenant,
            usage: tenant.usage(),
            survey: tenant.survey(),
            pins: tenant.pin_survey(),
        })
        .collect();
    held(&seen, sheet)?;
    for (metric, read) in &COUNTERS {
        let samples = seen
            .iter()
            .map(|seen| (vec![seen.tenant.name().to_owned()], read(seen.tenant.counters()).into()));
        sheet.put(metric, samples)?;
    }
    let evicted = seen.iter().flat_map(|seen| {
        Removal::ALL.map(|why| {
            let labels = [seen.tenant.name(), seen.tenant.policy(), why.name()];
            let blocks = seen.tenant.counters().removals[why as usize].get();
            (labels.map(str::to_owned).to_vec(), blocks.into())
        })
    });
    sheet.put(&EVICTED_BLOCKS, evicted)?;
    sheet.single(&UPTIME, store.uptime().as_secs_f64())?;
    let memory: usize = store.tenants().map(|tenant| tenant.metrics_memory_bytes()).sum();
    sheet.single(&MEMORY, memory as u64)
}

/// Gauges.
fn held(seen: &[Seen<'_>], sheet: &mut Sheet<'_>) -> fmt::Result {
    type Read = fn(&Seen<'_>) -> u64;
    let dram = tier_name(Tier::Dram);
    let pool: [(&Metric, Read); 3] = [
        (&CAPACITY, |seen| seen.usage.capacity_bytes),
        (&USED, |seen| seen.usage.used_bytes),
        (&PARKED_SLOTS, |seen| seen.survey.parked_slots),
    ];
    for (metric, read) in pool {
        let samples =
            seen.iter().map(|seen| (vec![seen.tenant.name().to_owned(), dram.to_owned()], read(seen).into()));
        sheet.put(metric, samples)?;
    }
    let plain: [(&Metric, Read); 9] = [
        (&NAMESPACES, |seen| seen.survey.namespaces.len() as u64),
        (&SESSIONS, |seen| seen.survey.sessions),
        (&SOFT_PINS, |seen| seen.pins.soft),
        (&HARD_PINS, |seen| seen.pins.hard),
        (&PINNED_BLOCKS, |seen| seen.pins.blocks),
        (&PINNED, |seen| seen.pins.bytes),
        (&PINS_EXPIRED, |seen| seen.pins.expired),
        (&EXPLAINED_BLOCKS, |seen| seen.tenant.explainer_usage().records as u64),
        (&OFFLOAD_QUEUE, |seen| seen.tenant.offload_queue_blocks()),
    ];
    for (metric, read) in plain {
        sheet
            .put(metric, seen.iter().map(|seen| (vec![seen.tenant.name().to_owned()], read(seen).into())))?;
    }
    let leases = seen.iter().flat_map(|seen| {
        [("read", seen.survey.read_leases), ("write", seen.survey.write_leases)]
            .map(|(kind, count)| (vec![seen.tenant.name().to_owned(), kind.to_owned()], count.into()))
    });
    sheet.put(&LEASES, leases)?;
    let ages = |kinds: [&'static str; 2], oldest: fn(&Seen<'_>) -> [Option<Duration>; 2]| {
        seen.iter().flat_map(move |seen| {
            let [first, second] = oldest(seen);
            [(kinds[0], first), (kinds[1], second)].map(|(kind, since)| {
                (vec![seen.tenant.name().to_owned(), kind.to_owned()], seen.age(since).into())
            })
        })
    };
    sheet.put(&LEASE_AGE, ages(["read", "write"], |seen| seen.survey.oldest_leases))?;
    sheet.put(&PIN_AGE, ages(["soft", "hard"], |seen| seen.pins.oldest))
}
