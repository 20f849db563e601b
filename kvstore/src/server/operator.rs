//! `Inspect`, `Verify`, `Collect`: the operator's calls on the store as a whole.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use kelvin_proto::{Reason, Refusal, kv::v1};
use kelvin_tiering::{DeviceHealth, NvmeFile, Tier};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::convert;
use crate::{
    catalog::FORMAT,
    index::HolderSet,
    store::{Namespace, Store, Tenant, TierReport, Tiers, Verified, tiers_of},
};

/// How often `Verify` says how far it is.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// Whether a tenant may: the store's one tenant, or the one that is its operator.
fn enter(store: &Store, tenant: &Tenant) -> Result<(), Refusal> {
    if store.tenants().count() == 1 || tenant.is_operator() {
        return Ok(());
    }
    Err(Refusal::new(
        Reason::NotOperator,
        "this call is the operator's: bring the token of a tenant that is one",
    ))
}

fn cold_tiers(tenant: &Tenant) -> Result<Arc<Tiers>, Refusal> {
    tenant.tiers().cloned().ok_or_else(|| {
        Refusal::new(
            Reason::Unavailable,
            "this store has no tier below memory: start it with --data and --nvme or --object",
        )
    })
}

pub(super) async fn inspect(store: Arc<Store>, tenant: Arc<Tenant>) -> Result<v1::InspectResponse, Refusal> {
    enter(&store, &tenant)?;
    let tiers = cold_tiers(&tenant)?;
    let incarnation = store.incarnation();
    // Every index is walked for it.
    let work = tokio::task::spawn_blocking(move || {
        let namespaces = store.tenants().flat_map(|tenant| {
            tenant.namespaces().into_iter().map(|namespace| stored_namespace(tenant, &namespace))
        });
        let namespaces = namespaces.collect();
        (
            namespaces,
            tiers.catalog().stats(),
            files(&tiers),
            tiers.objects().map(|packs| packs.survey()),
            tiers.reports(),
        )
    });
    let (namespaces, catalog, files, packs, reports) =
        work.await.map_err(|error| Refusal::new(Reason::Internal, error.to_string()))?;
    let (packs, pack_bytes, pack_live_bytes) = packs.unwrap_or_default();
    let sum = |read: fn(&TierReport) -> u64| reports.iter().map(read).sum();
    let lost = sum(|tier| tier.counts.lost);
    let dropped = (lost > 0).then(|| v1::Dropped { reason: "no place or no parent".into(), blocks: lost });
    let dropped = dropped.into_iter().collect();
    Ok(v1::InspectResponse {
        format_version: FORMAT,
        incarnation,
        files,
        namespaces,
        catalog_records: catalog.records,
        catalog_bytes: catalog.disk_bytes,
        catalog_writes_failed: catalog.writes_failed,
        catalog_closed: catalog.closed,
        packs,
        pack_bytes,
        pack_live_bytes,
        recovered_blocks: sum(|tier| tier.counts.restored),
        dropped,
        quarantined_slots: sum(|tier| tier.quarantined),
        ..Default::default()
    })
}

fn files(tiers: &Tiers) -> Vec<v1::StoreFile> {
    let files = tiers.nvme().map(|nvme| nvme.files()).unwrap_or_default();
    let file = |(file, used_bytes): (NvmeFile, u64)| v1::StoreFile {
        path: file.path.display().to_string(),
        uuid: hex(&file.uuid),
        bytes: file.bytes,
        used_bytes,
        direct: file.direct,
        engine: file.engine.to_string(),
        health: match file.health {
            DeviceHealth::Healthy => v1::TierHealth::Ok.into(),
            DeviceHealth::ReadOnly => v1::TierHealth::Degraded.into(),
            DeviceHealth::Failed => v1::TierHealth::Failed.into(),
        },
        reads: file.reads,
        read_bytes: file.read_bytes,
        writes: file.writes,
        written_bytes: file.written_bytes,
        errors: file.errors,
        pending: file.pending as u64,
    };
    files.into_iter().map(file).collect()
}

fn stored_namespace(tenant: &Tenant, namespace: &Namespace) -> v1::StoredNamespace {
    let mut blocks: BTreeMap<Tier, u64> = BTreeMap::new();
    for entry in namespace.index.snapshot() {
        for tier in tiers_of(entry.holders) {
            *blocks.entry(tier).or_default() += 1;
        }
    }
    let block_bytes = namespace.spec.block_bytes;
    let tier = |(tier, blocks): (Tier, u64)| v1::StoredTier {
        tier: convert::tier(tier).into(),
        blocks,
        bytes: blocks * block_bytes,
    };
    v1::StoredNamespace {
        namespace_id: namespace.id,
        id: hex(&namespace.persistent),
        tenant: tenant.name().to_owned(),
        model: namespace.spec.model.clone(),
        block_bytes,
        tiers: blocks.into_iter().map(tier).collect(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks what is stored, saying how far it is; ends with its reader or the store.
pub(super) fn verify(
    store: &Store,
    tenant: &Tenant,
    message: &v1::VerifyRequest,
    shutdown: CancellationToken,
) -> Result<BoxStream<'static, Result<v1::VerifyResponse, Status>>, Refusal> {
    enter(store, tenant)?;
    let tiers = cold_tiers(tenant)?;
    let wanted = convert::tiers(&message.tiers)?;
    let wants = move |tier: Tier| wanted.contains(tier as u32);
    let rate = (message.bytes_per_second_max > 0).then_some(message.bytes_per_second_max);
    let total_blocks =
        tiers.reports().iter().filter(|report| wants(report.tier)).map(|report| report.blocks).sum();
    let (out, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let (progress, so_far) = watch::channel(Verified::default());
        let check = async {
            let nvme = match wants(Tier::Nvme) {
                true => {
                    tiers
                        .verify_nvme(rate, |found| {
                            progress.send_replace(found);
                        })
                        .await
                }
                false => Verified::default(),
            };
            match wants(Tier::Object) {
                true => {
                    let say = |found| {
                        progress.send_replace(sum_of(nvme, found));
                    };
                    sum_of(nvme, tiers.verify_packs(say).await)
                }
                false => nvme,
            }
        };
        let say = async |found: Verified, done: bool| {
            let message = v1::VerifyResponse {
                checked_blocks: found.blocks,
                total_blocks,
                checked_bytes: found.bytes,
                damaged_blocks: found.damaged,
                unreadable_blocks: found.unreadable,
                done,
                ..Default::default()
            };
            out.send(Ok(message)).await.is_ok()
        };
        let mut check = std::pin::pin!(check);
        let mut tick = tokio::time::interval(REPORT_EVERY);
        loop {
            tokio::select! {
                found = &mut check => {
                    say(found, true).await;
                    return;
                }
                _ = tick.tick() => {
                    let found = *so_far.borrow();
                    if !say(found, false).await {
                        return;
                    }
                }
                () = out.closed() => return,
                () = shutdown.cancelled() => return,
            }
        }
    });
    Ok(ReceiverStream::new(receiver).boxed())
}

fn sum_of(a: Verified, b: Verified) -> Verified {
    Verified {
        blocks: a.blocks + b.blocks,
        bytes: a.bytes + b.bytes,
        unreadable: a.unreadable + b.unreadable,
        damaged: a.damaged + b.damaged,
    }
}

pub(super) async fn collect(
    store: &Store,
    tenant: &Tenant,
    message: &v1::CollectRequest,
) -> Result<v1::CollectResponse, Refusal> {
    enter(store, tenant)?;
    if message.dry_run || message.live_percent_min != 0 {
        return Err(Refusal::invalid(
            "a running store collects by its own setting, and not as a dry run: leave both out, or stop it and \
             use kelvin store gc --data DIR",
        ));
    }
    let tiers = cold_tiers(tenant)?;
    let bytes = |tiers: &Tiers| tiers.objects().map_or(0, |packs| packs.survey().1);
    let before = bytes(&tiers);
    let (packs_deleted, packs_rewritten) = tiers.collect().await;
    let pack_bytes_freed = before.saturating_sub(bytes(&tiers));
    Ok(v1::CollectResponse { packs_deleted, packs_rewritten, pack_bytes_freed, ..Default::default() })
}
