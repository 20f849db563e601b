//! `/metrics` of the tiers below memory: what they hold, move, refuse and lose.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::store::{TierReport, tier_name};

type Read = fn(&TierReport) -> u64;

/// Name, help and unit of a counter or gauge that each tier has once.
type Plain = (&'static str, &'static str, Option<Unit>, Read);

const GAUGES: [Plain; 6] = [
    ("kelvin_tier_capacity", "Bytes of the tier; 0 without a bound", Some(Unit::Bytes), |tier| {
        tier.capacity_bytes
    }),
    ("kelvin_tier_used", "Bytes of blocks in the tier", Some(Unit::Bytes), |tier| tier.used_bytes),
    ("kelvin_tier_blocks", "Copies of blocks in the tier", None, |tier| tier.blocks),
    (
        "kelvin_tier_quarantined_slots",
        "Slots kept from use since their bytes came back wrong",
        None,
        |tier| tier.quarantined,
    ),
    ("kelvin_tier_healthy", "Whether the tier works: 1, or 0", None, |tier| u64::from(tier.healthy)),
    ("kelvin_tier_in_flight", "Bytes of transfers under way", Some(Unit::Bytes), |tier| {
        tier.lane.in_flight_bytes
    }),
];

const COUNTERS: [Plain; 13] = [
    ("kelvin_tier_reads", "Reads that ended well", None, |tier| tier.lane.reads),
    ("kelvin_tier_writes", "Writes that ended well", None, |tier| tier.lane.writes),
    ("kelvin_tier_read", "Payload read", Some(Unit::Bytes), |tier| tier.lane.read_bytes),
    ("kelvin_tier_written", "Payload written", Some(Unit::Bytes), |tier| tier.lane.written_bytes),
    ("kelvin_tier_errors", "Transfers and other operations that failed", None, |tier| {
        tier.lane.errors + tier.counts.errors
    }),
    ("kelvin_tier_timeouts", "Reads that took too long", None, |tier| tier.counts.timeouts),
    ("kelvin_tier_damaged_blocks", "Copies whose bytes were wrong", None, |tier| tier.counts.damaged),
    ("kelvin_tier_offloaded_blocks", "Blocks that got a copy here", None, |tier| tier.counts.offloaded),
    ("kelvin_tier_onboarded_blocks", "Blocks brought to memory from here", None, |tier| {
        tier.counts.onboarded
    }),
    ("kelvin_tier_not_admitted_blocks", "Blocks not stored here: not asked for often enough", None, |tier| {
        tier.counts.not_admitted
    }),
    ("kelvin_tier_restored_blocks", "Blocks that the last start found again", None, |tier| {
        tier.counts.restored
    }),
    ("kelvin_tier_lost_blocks", "Records that the last start dropped", None, |tier| tier.counts.lost),
    ("kelvin_tier_scrubbed_blocks", "Copies that were read to be checked", None, |tier| tier.counts.scrubbed),
];

/// Name, help, the second label, and of each of its values what it counts.
type Split = (&'static str, &'static str, &'static str, &'static [(&'static str, Read)]);

const SPLIT_COUNTERS: [Split; 2] = [
    (
        "kelvin_tier_evicted_blocks",
        "Copies that went",
        "reason",
        &[
            ("room", |tier| tier.counts.evicted_policy),
            ("expired", |tier| tier.counts.evicted_expired),
            ("quota", |tier| tier.counts.evicted_quota),
        ],
    ),
    (
        "kelvin_tier_refused",
        "Transfers turned away since too many waited",
        "direction",
        &[("read", |tier| tier.lane.reads_refused), ("write", |tier| tier.lane.writes_refused)],
    ),
];

const SPLIT_GAUGES: [Split; 1] = [(
    "kelvin_tier_queue",
    "Transfers that wait",
    "direction",
    &[("read", |tier| tier.lane.reads_waiting), ("write", |tier| tier.lane.writes_waiting)],
)];

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, tiers: &[TierReport]) -> fmt::Result {
    let label = |tier: &TierReport| ("tier", tier_name(tier.tier));
    for (name, help, unit, read) in &GAUGES {
        let kind = ConstGauge::new(0i64).metric_type();
        let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for tier in tiers {
            gauge(read(tier)).encode(family.encode_family(&[label(tier)])?)?;
        }
    }
    for (name, help, unit, read) in &COUNTERS {
        let kind = ConstCounter::new(0u64).metric_type();
        let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for tier in tiers {
            ConstCounter::new(read(tier)).encode(family.encode_family(&[label(tier)])?)?;
        }
    }
    for (name, help, second, parts) in &SPLIT_COUNTERS {
        let kind = ConstCounter::new(0u64).metric_type();
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for (tier, (value, read)) in tiers.iter().flat_map(|tier| parts.iter().map(move |part| (tier, part)))
        {
            let labels = [label(tier), (*second, *value)];
            ConstCounter::new(read(tier)).encode(family.encode_family(&labels)?)?;
        }
    }
    for (name, help, second, parts) in &SPLIT_GAUGES {
        let kind = ConstGauge::new(0i64).metric_type();
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for (tier, (value, read)) in tiers.iter().flat_map(|tier| parts.iter().map(move |part| (tier, part)))
        {
            let labels = [label(tier), (*second, *value)];
            gauge(read(tier)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}
