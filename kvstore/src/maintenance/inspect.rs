//! Counting what a stopped store has.

use std::{collections::HashMap, time::Instant};

use kelvin_proto::kv::v1::{
    Dropped, InspectResponse, StoreFile, StoredNamespace, StoredTier, Tier, TierHealth,
};
use kelvin_tiering::{DeviceHealth, NvmeFile, NvmeSlot};

use super::{MaintenanceError, StoppedStore, hex};
use crate::catalog::{FORMAT, NamespaceId};

/// Blocks and bytes.
type Sums = HashMap<NamespaceId, (u64, u64)>;

impl StoppedStore {
    /// What there is, by file, namespace and tier, and what the next start would drop.
    ///
    /// `recovered_blocks` and `recovery_us` are of this look: the next start finds the same.
    pub fn inspect(&self) -> Result<InspectResponse, MaintenanceError> {
        let start = Instant::now();
        let survey = self.survey()?;
        let recovery_us = start.elapsed().as_micros() as u64;
        let stats = self.catalog.stats();
        let mut found = InspectResponse {
            format_version: FORMAT,
            incarnation: self.opened.incarnation,
            clean: self.opened.clean,
            catalog_bytes: stats.disk_bytes,
            recovered_blocks: survey.copies.len() as u64,
            recovery_us,
            ..Default::default()
        };
        let mut used: HashMap<u16, u64> = HashMap::new();
        let mut nvme = Sums::new();
        for copy in &survey.copies {
            *used.entry(copy.record.file).or_default() += NvmeSlot::slot_bytes_for(copy.slot.bytes());
            add(&mut nvme, copy.record.namespace, 1, u64::from(copy.record.bytes));
        }
        found.catalog_records =
            (survey.copies.len() + survey.useless.len()) as u64 + survey.damaged + survey.absent;
        let dropped = survey.dropped().into_iter();
        found.dropped =
            dropped.map(|(reason, blocks)| Dropped { reason: reason.to_owned(), blocks }).collect();
        if self.namespaces_damaged > 0 {
            let reason = "damaged namespace".to_owned();
            found.dropped.push(Dropped { reason, blocks: self.namespaces_damaged });
        }
        let files = self.device.iter().flat_map(|device| device.files()).zip(0..);
        found.files.extend(files.map(|(file, at)| file_of(file, used.get(&at).copied().unwrap_or(0))));
        found.files.extend(self.missing.iter().map(|path| StoreFile {
            path: path.display().to_string(),
            health: TierHealth::Failed.into(),
            ..Default::default()
        }));
        let mut object = Sums::new();
        for id in self.namespaces.keys() {
            for pack in self.catalog.packs(id)?.0 {
                found.packs += 1;
                found.pack_bytes += pack.bytes;
                let bytes = pack.entries.iter().map(|entry| u64::from(entry.bytes)).sum();
                found.pack_live_bytes += bytes;
                add(&mut object, *id, pack.entries.len() as u64, bytes);
            }
        }
        for (id, namespace) in &self.namespaces {
            let tier = |tier: Tier, sums: &Sums| {
                let &(blocks, bytes) = sums.get(id)?;
                Some(StoredTier { tier: tier.into(), blocks, bytes })
            };
            found.namespaces.push(StoredNamespace {
                namespace_id: 0,
                id: hex(id),
                tenant: namespace.tenant.clone(),
                model: namespace.spec.model.clone(),
                block_bytes: namespace.spec.block_bytes,
                tiers: [tier(Tier::Nvme, &nvme), tier(Tier::Object, &object)].into_iter().flatten().collect(),
            });
        }
        found.namespaces.sort_by(|a, b| (&a.tenant, &a.model, &a.id).cmp(&(&b.tenant, &b.model, &b.id)));
        Ok(found)
    }
}

fn add(sums: &mut Sums, namespace: NamespaceId, blocks: u64, bytes: u64) {
    let sum = sums.entry(namespace).or_default();
    *sum = (sum.0 + blocks, sum.1 + bytes);
}

fn file_of(file: NvmeFile, used_bytes: u64) -> StoreFile {
    let health = match file.health {
        DeviceHealth::Healthy => TierHealth::Ok,
        DeviceHealth::ReadOnly => TierHealth::Degraded,
        DeviceHealth::Failed => TierHealth::Failed,
    };
    StoreFile {
        path: file.path.display().to_string(),
        uuid: hex(&file.uuid),
        bytes: file.bytes,
        used_bytes,
        direct: file.direct,
        engine: file.engine.to_string(),
        health: health.into(),
        ..Default::default()
    }
}
