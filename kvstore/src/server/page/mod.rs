//! The store behind the built-in page.
//!
//! Figures are those of `Stats`, of all tenants together: the listener is the operator's.

mod acts;
mod calls;
mod names;
mod tree;

use std::{path::Path, sync::Arc, time::Duration};

use axum::http::StatusCode;
use futures::{FutureExt, future::BoxFuture};
use kelvin_proto::kv::v1::{self, StatsResponse, Tier};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{convert, ranges, stats};
use crate::{
    SequenceHash,
    page::{
        Failure, STORE_SERIES, Series, Source, Token, TreeQuery, explanation, figures, mrc, sample, tier_name,
    },
    store::{Explanation, Moved, Namespace, Store, Tenant, What},
};
pub(super) use calls::{Calls, Outcome};
use names::Names;

/// Prefetches of the page under way.
const PREFETCHES_MAX: usize = 4;

/// A store as the page sees it.
pub(super) struct StorePage {
    store: Arc<Store>,
    calls: Arc<Calls>,
    /// The operator's token.
    admin: Option<Token>,
    has_tenant_token: bool,
    names: Arc<Names>,
    prefetches: Arc<Semaphore>,
    shutdown: CancellationToken,
    /// One walk over a tree at a time.
    walk: Mutex<()>,
}

impl StorePage {
    pub(super) fn new(
        store: Arc<Store>,
        calls: Arc<Calls>,
        admin: Option<&str>,
        has_tenant_token: bool,
        data: Option<&Path>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            store,
            calls,
            admin: admin.map(Token::new),
            has_tenant_token,
            names: Arc::new(Names::open(data)),
            prefetches: Arc::new(Semaphore::new(PREFETCHES_MAX)),
            shutdown,
            walk: Mutex::default(),
        }
    }

    /// Whether there is a token with which something can be changed.
    fn takes_tokens(&self) -> bool {
        self.admin.is_some() || self.has_tenant_token
    }

    /// All tenants' figures; their curves take time, and are left out where nobody looks at them.
    fn stats(&self, curves: bool) -> StatsResponse {
        let mut all = self.store.tenants().map(|tenant| stats::of(&self.store, tenant, curves));
        let first = all.next().unwrap_or_default();
        all.fold(first, together)
    }

    fn namespaces(&self) -> Vec<(Arc<Tenant>, Arc<Namespace>)> {
        let of = |tenant: &Arc<Tenant>| {
            let tenant = tenant.clone();
            tenant
                .namespaces()
                .into_iter()
                .map(move |namespace| (tenant.clone(), namespace))
                .collect::<Vec<_>>()
        };
        self.store.tenants().flat_map(of).collect()
    }

    /// What transfers between tiers took, in microseconds. Tiers below memory are all tenants' own.
    fn moves(&self) -> Vec<Value> {
        let tiers = self.store.tenants().find_map(|tenant| tenant.tiers());
        let moved = tiers.map(|tiers| tiers.moved()).unwrap_or_default();
        let name = |tier| tier_name(convert::tier(tier));
        let told = moved.into_iter().map(|Moved { from, to, times, .. }| {
            let micros = |q| times.quantile(q).map(|nanos| nanos / 1000);
            json!({
                "from": name(from), "to": name(to), "count": times.count(),
                "p50_us": micros(0.5), "p99_us": micros(0.99),
            })
        });
        told.collect()
    }

    async fn explained(&self, id: &str) -> Option<Value> {
        let seen = self.calls.find(id)?;
        let mut value = seen.json(&self.store);
        value["explain"] = match seen.first_missing.clone() {
            None => Value::Null,
            Some((hash, why)) => {
                let found =
                    self.namespaces().into_iter().find(|(_, namespace)| namespace.id == seen.namespace);
                let now =
                    found.and_then(|(tenant, namespace)| tenant.explain(&namespace, &[hash], None).pop());
                let then = why.map(|what| {
                    ranges::explanation(Explanation {
                        hash,
                        what: since(what, seen.age(&self.store)),
                        pinned: false,
                    })
                });
                explanation(then.as_ref(), now.map(ranges::explanation).as_ref())
            }
        };
        Some(value)
    }

    async fn tree_of(&self, query: TreeQuery) -> Result<Value, Failure> {
        let bad = |message: &str| Failure::new(StatusCode::BAD_REQUEST, message);
        let from = match &query.from {
            None => None,
            Some(text) => {
                Some(hash(text).ok_or_else(|| bad("from is the 32 hexadecimal digits of a block"))?)
            }
        };
        let namespaces = self.namespaces();
        let found = match &query.namespace {
            Some(id) => namespaces.into_iter().find(|(_, namespace)| namespace.id.to_string() == *id),
            None => namespaces
                .into_iter()
                .max_by_key(|(_, namespace)| namespace.index.len() as u64 * namespace.spec.block_bytes),
        };
        let Some((tenant, namespace)) = found else {
            return match query.namespace {
                None => Ok(json!({"nodes": [], "branches": 0, "shown": 0, "is_cut": false})),
                Some(id) => Err(Failure::new(StatusCode::NOT_FOUND, format!("namespace {id} is not known"))),
            };
        };
        let _one = self.walk.lock().await;
        let name = tenant.name().to_owned();
        let now = tenant.now();
        // Names are looked up there too, so the walk borrows nothing of this thread's.
        let names = self.names.copy();
        let walked = tokio::task::spawn_blocking(move || tree::tree(&namespace, from, &names, now)).await;
        let mut tree =
            walked.map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        tree["tenant"] = json!(name);
        Ok(tree)
    }
}

impl Source for StorePage {
    fn series(&self) -> Vec<Series> {
        STORE_SERIES.to_vec()
    }

    fn sample(&self) -> BoxFuture<'_, Vec<f64>> {
        async { sample(Some(&self.stats(false))) }.boxed()
    }

    fn now(&self) -> BoxFuture<'_, Value> {
        async {
            let tenants = self.store.tenants().map(|tenant| {
                let usage = tenant.usage();
                json!({
                    "name": tenant.name(),
                    "capacity_bytes": usage.capacity_bytes,
                    "used_bytes": usage.used_bytes,
                    "sessions": tenant.survey().sessions,
                })
            });
            json!({
                "kind": "store",
                "version": env!("CARGO_PKG_VERSION"),
                "may_change": self.takes_tokens(),
                "store": figures(&self.stats(false)),
                "tenants": tenants.collect::<Vec<_>>(),
                "moves": self.moves(),
            })
        }
        .boxed()
    }

    fn curves(&self) -> BoxFuture<'_, Value> {
        async { mrc(&self.stats(true)) }.boxed()
    }

    fn tree(&self, query: TreeQuery) -> BoxFuture<'_, Result<Value, Failure>> {
        self.tree_of(query).boxed()
    }

    fn requests(&self) -> Value {
        self.calls.lists(&self.store)
    }

    fn request<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Option<Value>> {
        self.explained(id).boxed()
    }

    fn act<'a>(&'a self, token: Option<&'a str>, action: Value) -> BoxFuture<'a, Result<Value, Failure>> {
        async move { acts::act(self, token, &action).await }.boxed()
    }
}

/// What was true so long ago.
fn since(what: What, ago: Duration) -> What {
    match what {
        What::Gone { reason, tier, age } => What::Gone { reason, tier, age: age + ago },
        what => what,
    }
}

/// The figures of two tenants as one. What is below memory is both's, so it is counted once.
fn together(mut all: StatsResponse, other: StatsResponse) -> StatsResponse {
    all.namespaces.extend(other.namespaces);
    for (sum, more) in all.tiers.iter_mut().zip(&other.tiers).filter(|(tier, _)| tier.tier() == Tier::Dram) {
        sum.capacity_bytes += more.capacity_bytes;
        sum.used_bytes += more.used_bytes;
        sum.blocks += more.blocks;
        sum.evictions += more.evictions;
    }
    for more in other.misses {
        match all.misses.iter_mut().find(|miss| miss.reason == more.reason) {
            Some(miss) => miss.blocks += more.blocks,
            None => all.misses.push(more),
        }
    }
    if let (Some(pins), Some(more)) = (&mut all.pins, &other.pins) {
        *pins = v1::PinStats {
            soft: pins.soft + more.soft,
            hard: pins.hard + more.hard,
            blocks: pins.blocks + more.blocks,
            bytes: pins.bytes + more.bytes,
            expired: pins.expired + more.expired,
        };
    }
    all.sessions += other.sessions;
    all.read_leases += other.read_leases;
    all.write_leases += other.write_leases;
    all.leases_expired += other.leases_expired;
    all.conflicts += other.conflicts;
    all.checksum_failures += other.checksum_failures;
    all.damaged_blocks += other.damaged_blocks;
    all.parked_slots += other.parked_slots;
    all.copied_bytes += other.copied_bytes;
    all.shm_leased_bytes += other.shm_leased_bytes;
    all.shm_committed_bytes += other.shm_committed_bytes;
    all.tcp_read_bytes += other.tcp_read_bytes;
    all.tcp_written_bytes += other.tcp_written_bytes;
    all.grpc_read_bytes += other.grpc_read_bytes;
    all.grpc_written_bytes += other.grpc_written_bytes;
    all
}

/// A block's hash of its 32 hexadecimal digits.
fn hash(text: &str) -> Option<SequenceHash> {
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bytes = (0..16).map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok());
    let bytes: Option<Vec<u8>> = if is_hex { bytes.collect() } else { None };
    SequenceHash::try_from(&bytes?[..]).ok()
}

#[cfg(test)]
mod tests {
    use kelvin_proto::kv::v1::MissReason;

    use super::*;

    #[test]
    fn a_hash_reads_as_it_is_shown() {
        let hash_of = SequenceHash::try_from(&[0x0f; 16][..]).ok();
        assert_eq!(hash(&"0f".repeat(16)), hash_of);
        assert_eq!(hash_of.map(|hash| hash.to_string()), Some("0f".repeat(16)));
        for wrong in ["", "0f", "+f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f", &"é".repeat(16)] {
            assert_eq!(hash(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn tenants_add_up_and_their_cold_tiers_do_not() {
        let tier = |tier: Tier| v1::TierStats { tier: tier.into(), used_bytes: 5, ..Default::default() };
        let miss = v1::MissStats { reason: MissReason::Evicted.into(), blocks: 3 };
        let one = StatsResponse {
            tiers: vec![tier(Tier::Dram), tier(Tier::Nvme)],
            misses: vec![miss],
            sessions: 2,
            ..Default::default()
        };
        let sum = together(one.clone(), one);
        let used: Vec<_> = sum.tiers.iter().map(|tier| tier.used_bytes).collect();
        assert_eq!((used, sum.misses[0].blocks, sum.sessions), (vec![10, 5], 6, 4));
    }
}
