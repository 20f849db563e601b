//! The admin listener of a store: the page, `/metrics` for Prometheus, `/health`.

mod tiers;

use std::{fmt, sync::Arc};

use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};
use kelvin_tiering::Tier;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    insight::Reason,
    store::{Counters, Namespace, PinSurvey, Store, Tenant, tier_name},
};

pub(super) async fn serve(listener: TcpListener, store: Arc<Store>, page: Router, stop: CancellationToken) {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(StoreCollector(store)));
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(async || "ok\n"))
        .with_state(Arc::new(registry))
        .merge(page);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::warn!(%error, "admin page ended");
    }
}

async fn metrics(State(registry): State<Arc<Registry>>) -> impl IntoResponse {
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to a string does not fail");
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

/// Reads the store's own counts when asked, so that nothing is counted twice.
struct StoreCollector(Arc<Store>);

impl fmt::Debug for StoreCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreCollector")
    }
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        type Read = fn(&Counters) -> u64;
        let bytes = Some(&Unit::Bytes);
        let counters: [(&str, &str, Option<&Unit>, Read); 13] = [
            ("kelvin_store_evictions", "Blocks evicted", None, |counters| counters.evictions.get()),
            ("kelvin_store_conflicts", "Commits of other bytes under a stored hash", None, |counters| {
                counters.conflicts.get()
            }),
            (
                "kelvin_store_checksum_failures",
                "Commits whose bytes had another checksum",
                None,
                |counters| counters.checksum_failures.get(),
            ),
            (
                "kelvin_store_damaged_blocks",
                "Blocks dropped since a reader found them damaged",
                None,
                |counters| counters.damaged_blocks.get(),
            ),
            ("kelvin_store_no_space", "Reservations that found no slot", None, |counters| {
                counters.no_space.get()
            }),
            ("kelvin_store_leases_expired", "Leases ended by their TTL", None, |counters| {
                counters.leases_expired.get()
            }),
            ("kelvin_store_grpc_read", "Payload read through gRPC", bytes, |counters| {
                counters.grpc_read_bytes.get()
            }),
            ("kelvin_store_grpc_written", "Payload written through gRPC", bytes, |counters| {
                counters.grpc_written_bytes.get()
            }),
            ("kelvin_store_tcp_read", "Payload read through the data port", bytes, |counters| {
                counters.tcp_read_bytes.get()
            }),
            ("kelvin_store_tcp_written", "Payload written through the data port", bytes, |counters| {
                counters.tcp_written_bytes.get()
            }),
            ("kelvin_store_shm_leased", "Payload leased in shared memory", bytes, |counters| {
                counters.shm_leased_bytes.get()
            }),
            ("kelvin_store_shm_committed", "Payload committed in shared memory", bytes, |counters| {
                counters.shm_committed_bytes.get()
            }),
            ("kelvin_store_copied", "Payload that the store itself copied", bytes, |counters| {
                counters.copied_bytes.get()
            }),
        ];
        for (name, help, unit, read) in counters {
            let kind = ConstCounter::new(0u64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, unit, kind)?;
            for tenant in self.0.tenants() {
                let labels = [("tenant", tenant.name().to_owned())];
                ConstCounter::new(read(tenant.counters())).encode(family.encode_family(&labels)?)?;
            }
        }
        self.tenants(&mut encoder)?;
        self.misses(&mut encoder)?;
        self.pins(&mut encoder)?;
        self.policies(&mut encoder)?;
        // All tenants share them.
        match self.0.tenants().next().and_then(|tenant| tenant.tiers()) {
            Some(below) => tiers::encode(&mut encoder, &below.reports()),
            None => Ok(()),
        }
    }
}

impl StoreCollector {
    /// Blocks that a match did not find, by the reason of the first of them.
    fn misses(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kind = ConstCounter::new(0u64).metric_type();
        let help = "Blocks not found by Match, by why the first of them is not there";
        let mut family = encoder.encode_descriptor("kelvin_miss", help, None, kind)?;
        for tenant in self.0.tenants() {
            for reason in Reason::ALL {
                let labels = [("tenant", tenant.name().to_owned()), ("reason", reason.name().to_owned())];
                let blocks = tenant.counters().misses[reason as usize].get();
                ConstCounter::new(blocks).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn pins(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let pins: Vec<_> = self.0.tenants().map(|tenant| (tenant, tenant.pin_survey())).collect();
        type Read = fn(&PinSurvey, &Tenant) -> u64;
        let gauges: [(&str, &str, Option<Unit>, Read); 5] = [
            ("kelvin_store_soft_pins", "Pins with an end", None, |pins, _| pins.soft),
            ("kelvin_store_hard_pins", "Pins without an end", None, |pins, _| pins.hard),
            ("kelvin_store_pinned_blocks", "Blocks that a pin keeps", None, |pins, _| pins.blocks),
            ("kelvin_store_pinned", "Bytes of those", Some(Unit::Bytes), |pins, _| pins.bytes),
            (
                "kelvin_store_explained_blocks",
                "Blocks of which it is known why they went; at most 65536",
                None,
                |_, tenant| tenant.explainer_usage().records as u64,
            ),
        ];
        for (name, help, unit, read) in gauges {
            let kind = ConstGauge::new(0i64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            for (tenant, pins) in &pins {
                let labels = [("tenant", tenant.name().to_owned())];
                ConstGauge::new(read(pins, tenant) as i64).encode(family.encode_family(&labels)?)?;
            }
        }
        let kind = ConstCounter::new(0u64).metric_type();
        let mut family = encoder.encode_descriptor(
            "kelvin_store_pins_expired",
            "Pins that ended by themselves",
            None,
            kind,
        )?;
        for (tenant, pins) in &pins {
            ConstCounter::new(pins.expired)
                .encode(family.encode_family(&[("tenant", tenant.name().to_owned())])?)?;
        }
        Ok(())
    }

    /// What other orders would have hit in memory, and what each tier did hit.
    fn policies(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kind = ConstGauge::new(0f64).metric_type();
        let help = "Share of the blocks asked for lately that memory would have had under this policy";
        let mut family = encoder.encode_descriptor("kelvin_policy_hit_ratio", help, None, kind)?;
        for tenant in self.0.tenants() {
            for rate in tenant.ghost_rates() {
                let labels = [("tenant", tenant.name().to_owned()), ("policy", rate.kind.name().to_owned())];
                ConstGauge::new(rate.hit_rate).encode(family.encode_family(&labels)?)?;
            }
        }
        let kind = ConstGauge::new(0f64).metric_type();
        let help = "Hit ratio of a namespace, as estimated for memory of so many times the size it has";
        let mut family = encoder.encode_descriptor("kelvin_memory_hit_ratio", help, None, kind)?;
        for tenant in self.0.tenants() {
            let bytes = tenant.usage().capacity_bytes;
            for namespace in tenant.namespaces() {
                for (times, share) in [("0.5", 0.5), ("1", 1.0), ("2", 2.0), ("4", 4.0)] {
                    let blocks = (bytes as f64 * share) as u64 / namespace.spec.block_bytes;
                    let labels = [
                        ("tenant", tenant.name().to_owned()),
                        ("model", namespace.spec.model.clone()),
                        ("namespace", namespace.id.to_string()),
                        ("times", times.to_owned()),
                    ];
                    let ratio = namespace.curve.lock().hit_ratio(blocks);
                    ConstGauge::new(ratio).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let kind = ConstCounter::new(0u64).metric_type();
        let help = "Blocks found by Match, by the hottest tier that had them";
        let mut family = encoder.encode_descriptor("kelvin_tier_hit_blocks", help, None, kind)?;
        for tenant in self.0.tenants() {
            for tier in [Tier::Dram, Tier::Nvme, Tier::Object] {
                let hits = |namespace: &Arc<Namespace>| namespace.tier_hits[tier as usize].get();
                let blocks: u64 = tenant.namespaces().iter().map(hits).sum();
                let labels = [("tenant", tenant.name().to_owned()), ("tier", tier_name(tier).to_owned())];
                ConstCounter::new(blocks).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl StoreCollector {
    fn tenants(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let tenants: Vec<_> =
            self.0.tenants().map(|tenant| (tenant, tenant.usage(), tenant.survey())).collect();
        type Values = Vec<([(&'static str, String); 2], u64)>;
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, values: Values| {
            let mut family =
                encoder.encode_descriptor(name, help, unit, ConstGauge::new(0i64).metric_type())?;
            for (labels, value) in values {
                ConstGauge::new(value as i64).encode(family.encode_family(&labels)?)?;
            }
            fmt::Result::Ok(())
        };
        let tier = |tenant: &str| [("tenant", tenant.to_owned()), ("tier", "dram".to_owned())];
        let kind = |tenant: &str, kind: &str| [("tenant", tenant.to_owned()), ("kind", kind.to_owned())];
        let model = |tenant: &str, model: &str| [("tenant", tenant.to_owned()), ("model", model.to_owned())];
        let each = |value: &dyn Fn(&kelvin_tiering::Usage) -> u64| {
            tenants.iter().map(|(tenant, usage, _)| (tier(tenant.name()), value(usage))).collect::<Vec<_>>()
        };
        gauge(
            "kelvin_store_capacity",
            "Bytes of the pool",
            Some(&Unit::Bytes),
            each(&|usage| usage.capacity_bytes),
        )?;
        gauge(
            "kelvin_store_used",
            "Bytes of the pool in slots handed out",
            Some(&Unit::Bytes),
            each(&|usage| usage.used_bytes),
        )?;
        let leases = tenants.iter().flat_map(|(tenant, _, survey)| {
            [
                (kind(tenant.name(), "read"), survey.read_leases),
                (kind(tenant.name(), "write"), survey.write_leases),
            ]
        });
        gauge("kelvin_store_leases", "Leases held", None, leases.collect())?;
        let parked = tenants.iter().map(|(tenant, _, survey)| (tier(tenant.name()), survey.parked_slots));
        gauge("kelvin_store_parked_slots", "Slots resting until a process is gone", None, parked.collect())?;
        let per_model = |value: &dyn Fn(&crate::store::Namespace) -> u64| {
            let mut sums = std::collections::BTreeMap::<(String, String), u64>::new();
            for (tenant, _, survey) in &tenants {
                for (namespace, _) in &survey.namespaces {
                    let key = (tenant.name().to_owned(), namespace.spec.model.clone());
                    *sums.entry(key).or_default() += value(namespace);
                }
            }
            sums.into_iter().map(|((tenant, name), sum)| (model(&tenant, &name), sum)).collect::<Vec<_>>()
        };
        gauge(
            "kelvin_store_blocks",
            "Blocks stored",
            None,
            per_model(&|namespace| namespace.index.len() as u64),
        )?;
        let mut counter = |name: &str, help: &str, values: Values| {
            let kind = ConstCounter::new(0u64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (labels, value) in values {
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
            fmt::Result::Ok(())
        };
        let asked = per_model(&|namespace| namespace.match_blocks.get());
        counter("kelvin_store_match_blocks", "Blocks asked for by Match", asked)?;
        let found = per_model(&|namespace| namespace.hit_blocks.get());
        counter("kelvin_store_hit_blocks", "Blocks found by Match", found)
    }
}
