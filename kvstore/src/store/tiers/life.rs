//! The tiers' life with their store: start, tasks, stop.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kelvin_tiering::DramPool;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{OpenError, Tiers, cascade, offload, open::Grounds, restore::Restored, scrub};
use crate::{
    catalog::NamespaceId,
    store::{Namespace, Store, Tenant, TierOptions},
};

/// The tasks of a store's tiers.
pub(crate) struct TierTasks {
    tiers: Arc<Tiers>,
    tenants: Vec<Arc<Tenant>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Store {
    /// Opens the tiers that the options name, brings back what they hold, and starts their tasks. `None` when
    /// there are none.
    pub(crate) async fn start_tiers(&self, options: &TierOptions) -> Result<Option<TierTasks>, OpenError> {
        self.start_tiers_on(options, &Grounds::of(options)).await
    }

    /// The same, on grounds that say more than the options.
    pub(super) async fn start_tiers_on(
        &self,
        options: &TierOptions,
        grounds: &Grounds,
    ) -> Result<Option<TierTasks>, OpenError> {
        let pools: Vec<&DramPool> = self.tenants().map(|tenant| tenant.pool()).collect();
        let Some((tiers, report)) = Tiers::open(options, grounds, &pools, self.clock().clone()).await? else {
            return Ok(None);
        };
        let namespaces = self.known_namespaces(&tiers)?;
        for namespace in namespaces.values() {
            tiers.apply_quotas(namespace);
        }
        let Restored { nvme_blocks, object_blocks, lost, took_ms } =
            tiers.restore(&namespaces, self.clock().now())?;
        tracing::info!(
            nvme_blocks,
            object_blocks,
            lost,
            took_ms,
            clean = report.opened.clean,
            files_absent = report.files_absent,
            "cold tiers opened"
        );
        if let Some(nvme) = tiers.nvme() {
            // Now that the slots of stored blocks are taken: it writes to free ones.
            for probe in nvme.device().device().probe(pools.first().copied()).await {
                tracing::info!("{probe}");
            }
        }
        let tenants: Vec<Arc<Tenant>> = self.tenants().cloned().collect();
        let tiers = Arc::new(tiers);
        tiers.cascade_wanted.stir();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        for tenant in &tenants {
            tenant.attach(tiers.clone());
            tasks.spawn(offload::run(tenant.clone(), tiers.clone(), stop.clone()));
        }
        tasks.spawn(tiers.clone().fill_order());
        tasks.spawn(cascade::run(tiers.clone(), stop.clone()));
        tasks.spawn(cascade::keep_house(tiers.clone(), stop.clone()));
        tasks.spawn(scrub::run(tiers.clone(), stop.clone()));
        let everyone = tenants.clone();
        let all = move || everyone.iter().flat_map(|tenant| tenant.namespaces()).collect();
        tasks.spawn(tiers.clone().discover(all, stop.clone()));
        tasks.close();
        Ok(Some(TierTasks { tiers, tenants, tasks, stop }))
    }

    /// The namespaces of the catalog whose tenants this store still has, by their lasting ids.
    fn known_namespaces(&self, tiers: &Tiers) -> Result<HashMap<NamespaceId, Arc<Namespace>>, OpenError> {
        let (records, skipped) = tiers.catalog().namespaces()?;
        if skipped > 0 {
            tracing::warn!(skipped, "namespaces of the catalog could not be read: their blocks are lost");
        }
        let mut known = HashMap::new();
        for record in records {
            let Some(tenant) = self.tenants().find(|tenant| tenant.name() == record.tenant) else {
                tracing::warn!(
                    tenant = record.tenant,
                    "blocks of a tenant that is not there any more are dropped"
                );
                continue;
            };
            let namespace = tenant.restore_namespace(record.spec);
            match namespace {
                Ok(namespace) if namespace.persistent == record.id => {
                    drop(known.insert(record.id, namespace))
                }
                _ => tracing::warn!(
                    tenant = record.tenant,
                    "blocks stored under another secret are dropped: give the store the secret it had"
                ),
            }
        }
        Ok(known)
    }
}

impl TierTasks {
    /// Ends the tasks and nothing else, as a crash would.
    #[cfg(test)]
    pub(super) async fn abandon(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }

    /// Copies to the cold tiers what has no copy there, as far as `patience` lets it, and closes them.
    pub(crate) async fn stop(self, patience: Duration) {
        let flush = async {
            let mut copied = 0;
            for tenant in &self.tenants {
                copied += tenant.flush(&self.tiers).await;
            }
            copied
        };
        match tokio::time::timeout(patience, flush).await {
            Ok(0) => {}
            Ok(blocks) => tracing::info!(blocks, "blocks of DRAM copied to the cold tiers"),
            Err(_) => tracing::warn!("the stop does not wait longer for blocks of DRAM to be copied"),
        }
        self.stop.cancel();
        self.tasks.wait().await;
        if let Some(nvme) = self.tiers.nvme() {
            nvme.sync().await;
        }
        if let Err(error) = self.tiers.catalog().mark_clean(true) {
            tracing::warn!(%error, "the catalog could not be closed in good order");
        }
    }
}
