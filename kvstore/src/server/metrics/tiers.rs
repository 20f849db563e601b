//! The tiers below memory: what they hold, move, refuse and lose.

use std::fmt;

use kelvin_tiering::{DeviceHealth, Tier};

use super::sheet::{Metric, Sheet, Value};
use crate::store::{Moved, TierReport, Tiers, tier_name};

const TIER: &[&str] = &["tier"];
const TIER_DIRECTION: &[&str] = &["tier", "direction"];
const EDGE: &[&str] = &["from", "to"];
const FILE: &[&str] = &["file"];

type Read = fn(&TierReport) -> u64;

/// What each tier has once.
static PLAIN: [(Metric, Read); 20] = [
    (
        Metric::gauge("kelvin_tier_capacity", TIER, "Bytes of the tier; 0 without a bound").unit("bytes"),
        |tier| tier.capacity_bytes,
    ),
    (Metric::gauge("kelvin_tier_used", TIER, "Bytes of blocks in the tier").unit("bytes"), |tier| {
        tier.used_bytes
    }),
    (Metric::gauge("kelvin_tier_blocks", TIER, "Copies of blocks in the tier"), |tier| tier.blocks),
    (
        Metric::gauge(
            "kelvin_tier_quarantined_slots",
            TIER,
            "Slots kept from use since their bytes came back wrong",
        ),
        |tier| tier.quarantined,
    ),
    (Metric::gauge("kelvin_tier_healthy", TIER, "Whether the tier works: 1, or 0"), |tier| {
        u64::from(tier.healthy)
    }),
    (Metric::gauge("kelvin_tier_in_flight", TIER, "Bytes of transfers under way").unit("bytes"), |tier| {
        tier.lane.in_flight_bytes
    }),
    (Metric::counter("kelvin_tier_reads", TIER, "Reads that ended well"), |tier| tier.lane.reads),
    (Metric::counter("kelvin_tier_writes", TIER, "Writes that ended well"), |tier| tier.lane.writes),
    (Metric::counter("kelvin_tier_read", TIER, "Payload read").unit("bytes"), |tier| tier.lane.read_bytes),
    (Metric::counter("kelvin_tier_written", TIER, "Payload written").unit("bytes"), |tier| {
        tier.lane.written_bytes
    }),
    (Metric::counter("kelvin_tier_errors", TIER, "Transfers and other operations that failed"), |tier| {
        tier.lane.errors + tier.counts.errors
    }),
    (Metric::counter("kelvin_tier_timeouts", TIER, "Reads that took too long"), |tier| tier.counts.timeouts),
    (Metric::counter("kelvin_tier_damaged_blocks", TIER, "Copies whose bytes were wrong"), |tier| {
        tier.counts.damaged
    }),
    (Metric::counter("kelvin_tier_offloaded_blocks", TIER, "Blocks that got a copy here"), |tier| {
        tier.counts.offloaded
    }),
    (Metric::counter("kelvin_tier_onboarded_blocks", TIER, "Blocks brought to memory from here"), |tier| {
        tier.counts.onboarded
    }),
    (
        Metric::counter(
            "kelvin_tier_not_admitted_blocks",
            TIER,
            "Blocks not stored here: not asked for often enough",
        ),
        |tier| tier.counts.not_admitted,
    ),
    (
        Metric::counter(
            "kelvin_tier_uncopied_blocks",
            TIER,
            "Blocks that left memory before they were copied here",
        ),
        |tier| tier.counts.uncopied,
    ),
    (
        Metric::counter("kelvin_tier_restored_blocks", TIER, "Blocks that the last start found again"),
        |tier| tier.counts.restored,
    ),
    (Metric::counter("kelvin_tier_lost_blocks", TIER, "Records that the last start dropped"), |tier| {
        tier.counts.lost
    }),
    (Metric::counter("kelvin_tier_scrubbed_blocks", TIER, "Copies that were read to be checked"), |tier| {
        tier.counts.scrubbed
    }),
];

/// What each tier has once for reads and once for writes.
static BOTH_WAYS: [(Metric, [Read; 2]); 3] = [
    (
        Metric::counter("kelvin_tier_refused", TIER_DIRECTION, "Transfers turned away since too many waited"),
        [|tier| tier.lane.reads_refused, |tier| tier.lane.writes_refused],
    ),
    (
        Metric::gauge("kelvin_tier_queue", TIER_DIRECTION, "Transfers that wait"),
        [|tier| tier.lane.reads_waiting, |tier| tier.lane.writes_waiting],
    ),
    (
        Metric::gauge("kelvin_tier_queue", TIER_DIRECTION, "Bytes of transfers that wait").unit("bytes"),
        [|tier| tier.lane.reads_waiting_bytes, |tier| tier.lane.writes_waiting_bytes],
    ),
];

const EVICTED_BLOCKS: Metric = Metric::counter(
    "kelvin_tier_evicted_blocks",
    &["tier", "policy", "reason"],
    "Copies that went, by the policy in force and by why",
);
const MOVE_BYTES: Metric = Metric::histogram(
    "kelvin_tier_move",
    "bytes",
    EDGE,
    "Payload of a transfer between two tiers: of a block, or of the blocks of a pack",
);
const MOVE_SECONDS: Metric = Metric::histogram(
    "kelvin_tier_move",
    "seconds",
    EDGE,
    "Time of a transfer between two tiers, the wait for its turn included",
);
const FILE_PENDING: Metric =
    Metric::gauge("kelvin_nvme_file_pending", FILE, "Operations that wait or run at a file or device");
const FILE_HEALTHY: Metric =
    Metric::gauge("kelvin_nvme_file_healthy", FILE, "Whether a file or device works: 1, or 0");
const FILE_ERRORS: Metric =
    Metric::counter("kelvin_nvme_file_errors", FILE, "Reads and writes that a file or device failed");

/// All that is declared here.
pub(super) fn metrics() -> impl Iterator<Item = &'static Metric> {
    SINGLE
        .iter()
        .copied()
        .chain(PLAIN.iter().map(|(metric, _)| metric))
        .chain(BOTH_WAYS.iter().map(|(metric, _)| metric))
}

const SINGLE: &[&Metric] =
    &[&EVICTED_BLOCKS, &MOVE_BYTES, &MOVE_SECONDS, &FILE_PENDING, &FILE_HEALTHY, &FILE_ERRORS];

pub(super) fn encode(tiers: &Tiers, sheet: &mut Sheet<'_>) -> fmt::Result {
    let reports = tiers.reports();
    let name = |report: &TierReport| tier_name(report.tier).to_owned();
    for (metric, read) in &PLAIN {
        sheet.put(metric, reports.iter().map(|report| (vec![name(report)], read(report).into())))?;
    }
    for (metric, reads) in &BOTH_WAYS {
        let samples = reports.iter().flat_map(|report| {
            [("read", reads[0]), ("write", reads[1])]
                .map(|(way, read)| (vec![name(report), way.to_owned()], read(report).into()))
        });
        sheet.put(metric, samples)?;
    }
    let evicted = reports.iter().flat_map(|report| {
        let counts = &report.counts;
        let policy = tiers.policy(report.tier).unwrap_or_default();
        let reasons = [
            ("room", counts.evicted_policy),
            ("expired", counts.evicted_expired),
            ("quota", counts.evicted_quota),
        ];
        reasons
            .map(|(reason, blocks)| (vec![name(report), policy.to_owned(), reason.to_owned()], blocks.into()))
    });
    sheet.put(&EVICTED_BLOCKS, evicted)?;
    let moved = tiers.moved();
    let edge = |moved: &Moved| vec![tier_name(moved.from).to_owned(), tier_name(moved.to).to_owned()];
    sheet.put(&MOVE_BYTES, moved.iter().map(|moved| (edge(moved), moved.bytes.clone().into())))?;
    sheet.put(&MOVE_SECONDS, moved.iter().map(|moved| (edge(moved), moved.times.clone().into())))?;
    files(tiers, sheet)
}

/// Files are told apart by their place in the order they were given in: a path is too much of a label.
fn files(tiers: &Tiers, sheet: &mut Sheet<'_>) -> fmt::Result {
    let Some(nvme) = tiers.nvme() else { return Ok(()) };
    debug_assert!(tiers.policy(Tier::Nvme).is_some());
    let files = nvme.states();
    let mut put = |metric: &Metric, read: &dyn Fn(usize) -> Value| {
        sheet.put(metric, (0..files.len()).map(|at| (vec![at.to_string()], read(at))))
    };
    put(&FILE_PENDING, &|at| (files[at].pending as u64).into())?;
    put(&FILE_HEALTHY, &|at| u64::from(files[at].health == DeviceHealth::Healthy).into())?;
    put(&FILE_ERRORS, &|at| files[at].errors.into())
}
