//! The object store: what it was asked, how that went, what it would cost; and the catalog.
//!
//! # Cost
//! An estimate by what S3 Standard charges in us-east-1 (aws.amazon.com/s3/pricing, 2025), whatever the object
//! store is: PUT and LIST 0.005 dollars a thousand, GET 0.0004 a thousand, DELETE nothing, 0.023 a GiB and month of
//! storage. Traffic within the region is free and not counted; nor is traffic out of it. Every try is a request.

use std::fmt;

use kelvin_tiering::{BreakerState, ObjectStats};

use super::sheet::{Metric, Sheet};
use crate::store::Tiers;

/// Dollars a request.
const PUT_DOLLARS: f64 = 0.005 / 1000.0;
const GET_DOLLARS: f64 = 0.0004 / 1000.0;
/// Dollars a GiB and month.
const STORAGE_DOLLARS: f64 = 0.023;

const REQUESTS: Metric =
    Metric::counter("kelvin_object_requests", &["kind"], "Requests to the object store, each try counted");
const REQUEST_COST: Metric = Metric::counter(
    "kelvin_object_request_cost",
    &["kind"],
    "Estimated price of those requests: what S3 Standard in us-east-1 charges, whatever the store is",
)
.unit("dollars");
const STORAGE_COST: Metric = Metric::gauge(
    "kelvin_object_storage_monthly_cost",
    &[],
    "Estimated price of a month of what is stored now, at S3 Standard's in us-east-1",
)
.unit("dollars");
const PACKS: Metric = Metric::gauge("kelvin_object_packs", &[], "Packs known");
const LIVE: Metric =
    Metric::gauge("kelvin_object_live", &[], "Bytes of the blocks in packs that are still wanted")
        .unit("bytes");
const QUEUE: Metric = Metric::gauge(
    "kelvin_object_queue",
    &["direction"],
    "Requests to the object store under way or waiting for their turn",
);
const BREAKER_OPEN: Metric = Metric::gauge(
    "kelvin_object_breaker_open",
    &["direction"],
    "Whether no requests are made for a while, since too many failed: 1, or 0",
);
const CATALOG_RECORDS: Metric =
    Metric::gauge("kelvin_catalog_records", &[], "Blocks on NVMe in the catalog, as RocksDB estimates");
const CATALOG_DISK: Metric =
    Metric::gauge("kelvin_catalog_disk", &[], "Bytes of the catalog's files").unit("bytes");
const CATALOG_MEMORY: Metric =
    Metric::gauge("kelvin_catalog_memory", &[], "Bytes of the catalog's buffers and cache").unit("bytes");
const CATALOG_WRITE_FAILURES: Metric =
    Metric::counter("kelvin_catalog_write_failures", &[], "Writes that the catalog failed");

type Read = fn(&ObjectStats) -> u64;

/// Counters of the object store.
static COUNTERS: [(Metric, Read); 10] = [
    (Metric::counter("kelvin_object_retries", &[], "Tries after the first"), |stats| stats.retries),
    (
        Metric::counter("kelvin_object_hedges", &[], "Second requests for a first byte that took long"),
        |stats| stats.hedges,
    ),
    (Metric::counter("kelvin_object_hedges_won", &[], "Second requests that answered first"), |stats| {
        stats.hedges_won
    }),
    (Metric::counter("kelvin_object_timeouts", &[], "Requests that ended for lack of time"), |stats| {
        stats.timeouts
    }),
    (
        Metric::counter("kelvin_object_refusals", &[], "Requests not made, because a breaker was open"),
        |stats| stats.refusals,
    ),
    (Metric::counter("kelvin_object_errors", &[], "Requests that failed, each try counted"), |stats| {
        stats.errors
    }),
    (
        Metric::counter(
            "kelvin_object_damaged_blocks",
            &[],
            "Times that a block of a pack failed its checksum",
        ),
        |stats| stats.damaged,
    ),
    (Metric::counter("kelvin_object_missing_packs", &[], "Packs asked for that were not there"), |stats| {
        stats.missing
    }),
    (Metric::counter("kelvin_object_breaker_opens", &[], "Times that either breaker opened"), |stats| {
        stats.breaker_opens
    }),
    (
        Metric::counter(
            "kelvin_object_gap",
            &[],
            "Bytes that came with blocks but belong to none that was wanted",
        )
        .unit("bytes"),
        |stats| stats.bytes_gaps,
    ),
];

/// All that is declared here.
pub(super) fn metrics() -> impl Iterator<Item = &'static Metric> {
    SINGLE.iter().copied().chain(COUNTERS.iter().map(|(metric, _)| metric))
}

const SINGLE: &[&Metric] = &[
    &REQUESTS,
    &REQUEST_COST,
    &STORAGE_COST,
    &PACKS,
    &LIVE,
    &QUEUE,
    &BREAKER_OPEN,
    &CATALOG_RECORDS,
    &CATALOG_DISK,
    &CATALOG_MEMORY,
    &CATALOG_WRITE_FAILURES,
];

pub(super) fn encode(tiers: &Tiers, sheet: &mut Sheet<'_>) -> fmt::Result {
    let catalog = tiers.catalog().stats();
    sheet.single(&CATALOG_RECORDS, catalog.records)?;
    sheet.single(&CATALOG_DISK, catalog.disk_bytes)?;
    sheet.single(&CATALOG_MEMORY, catalog.memory_bytes)?;
    sheet.single(&CATALOG_WRITE_FAILURES, catalog.writes_failed)?;
    let Some(objects) = tiers.objects() else { return Ok(()) };
    let stats = objects.requests();
    let kinds = [
        ("get", stats.gets, GET_DOLLARS),
        ("put", stats.puts, PUT_DOLLARS),
        ("list", stats.lists, PUT_DOLLARS),
        ("delete", stats.deletes, 0.0),
    ];
    sheet.put(&REQUESTS, kinds.map(|(kind, count, _)| (vec![kind.to_owned()], count.into())))?;
    let cost = kinds.map(|(kind, count, price)| (vec![kind.to_owned()], (count as f64 * price).into()));
    sheet.put(&REQUEST_COST, cost)?;
    let (packs, pack_bytes, live_bytes) = objects.survey();
    sheet.single(&STORAGE_COST, pack_bytes as f64 / f64::from(1 << 30) * STORAGE_DOLLARS)?;
    sheet.single(&PACKS, packs)?;
    sheet.single(&LIVE, live_bytes)?;
    let queue = [("read", stats.reads_queued), ("write", stats.writes_queued)];
    sheet.put(&QUEUE, queue.map(|(way, count)| (vec![way.to_owned()], count.into())))?;
    let breakers = [("read", stats.read_breaker), ("write", stats.write_breaker)];
    let open = breakers
        .map(|(way, breaker)| (vec![way.to_owned()], u64::from(breaker == BreakerState::Open).into()));
    sheet.put(&BREAKER_OPEN, open)?;
    for (metric, read) in &COUNTERS {
        sheet.single(metric, read(&stats))?;
    }
    Ok(())
}
