//! How long calls take, and how much and how fast payload goes between clients and the store.

use std::fmt;

use super::sheet::{Metric, Sheet};
use crate::store::{
    Distribution, Store,
    meters::{Carrier, Direction, Meters, Transfers, Verb, Via},
};

const CALL: Metric = Metric::histogram(
    "kelvin_store_call",
    "seconds",
    &["verb", "via"],
    "Time of a call of the API, waits that it asked for included; of a stream, until it begins",
);
const TRANSFER_BYTES: Metric = Metric::histogram(
    "kelvin_transport_transfer",
    "bytes",
    &["transport", "direction"],
    "Payload of a transfer: tcp and grpc, of a block or a part of one; shm, of the call that leases or commits",
);
const TRANSFER_SECONDS: Metric = Metric::histogram(
    "kelvin_transport_transfer",
    "seconds",
    &["transport", "direction"],
    "Time of a transfer: tcp and grpc, of a block or a part of one; shm, of the call that leases or commits",
);

/// All that is declared here.
pub(super) fn metrics() -> impl Iterator<Item = &'static Metric> {
    SINGLE.iter().copied()
}

const SINGLE: &[&Metric] = &[&CALL, &TRANSFER_BYTES, &TRANSFER_SECONDS];

/// Of all tenants.
fn sum(store: &Store, read: impl Fn(&Meters) -> Distribution) -> Distribution {
    let mut sum = Distribution::default();
    store.tenants().flat_map(|tenant| tenant.all_meters()).for_each(|meters| sum.add(&read(meters)));
    sum
}

pub(super) fn encode(store: &Store, sheet: &mut Sheet<'_>) -> fmt::Result {
    // A verb that nobody called is left out: there are many.
    let mut calls = Vec::new();
    for (verb, via) in Verb::ALL.into_iter().flat_map(|verb| Via::ALL.map(|via| (verb, via))) {
        let times = sum(store, |meters| meters.call(verb, via).read());
        if times.count() > 0 {
            calls.push((vec![verb.name().to_owned(), via.name().to_owned()], times.into()));
        }
    }
    sheet.put(&CALL, calls)?;
    let transfers = |read: fn(&Transfers) -> Distribution| {
        let kinds = Carrier::ALL.into_iter().flat_map(|carrier| Direction::ALL.map(|way| (carrier, way)));
        kinds.map(move |(carrier, way)| {
            let labels = vec![carrier.name().to_owned(), way.name().to_owned()];
            (labels, sum(store, |meters| read(meters.transfers(carrier, way))).into())
        })
    };
    sheet.put(&TRANSFER_BYTES, transfers(|transfers| transfers.bytes.read()))?;
    sheet.put(&TRANSFER_SECONDS, transfers(|transfers| transfers.times.read()))
}
