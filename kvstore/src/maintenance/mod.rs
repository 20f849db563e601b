//! Looking after a store that is stopped: what it has, whether that is sound, and what nobody needs.
//!
//! # Overview
//! [`StoppedStore`] has a data directory to itself, as a store that runs has. The catalog tells where the
//! copies were at the last start. `inspect` counts, `verify` reads every copy and drops the damaged, `collect`
//! drops what no start would take over, and collects packs. Answers are the messages of the API's calls of
//! these names, so that whoever reads them reads both.
//!
//! # Crash consistency
//! As for a store: a record goes before its slot is used again, a new pack is known before an old one goes.

mod collect;
mod inspect;
mod survey;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use kelvin_tiering::{
    NvmeDevice, NvmeError, NvmeOptions, NvmePath, ObjectError, ObjectOptions, PackEntry, PackId, PackInfo,
    PackStore,
};

use crate::{
    SequenceHash,
    catalog::{
        Access, Catalog, CatalogError, NamespaceId, NamespaceRecord, Opened, PackEntryRecord, PackRecord,
        Places,
    },
};

/// What is meant to be done with a stopped store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `inspect`, and `collect` as a dry run: nothing changes.
    Look,
    /// `verify`: damaged copies are dropped.
    Verify,
    /// `collect`.
    Collect,
}

/// Why a stopped store cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// The catalog.
    #[error("{0}")]
    Catalog(#[from] CatalogError),
    /// The NVMe tier.
    #[error("open the NVMe tier: {0}")]
    Nvme(#[from] NvmeError),
    /// The object tier.
    #[error("object tier: {0}")]
    Object(#[from] ObjectError),
}

/// A store that does not run, held so that none can be started on it.
pub struct StoppedStore {
    catalog: Catalog,
    opened: Opened,
    /// Those files that are there.
    device: Option<NvmeDevice>,
    /// Those that are not.
    missing: Vec<PathBuf>,
    packs: Option<PackStore>,
    namespaces: HashMap<NamespaceId, NamespaceRecord>,
    namespaces_damaged: u64,
}

impl StoppedStore {
    /// Takes the store of the data directory `dir`.
    ///
    /// # Errors
    /// When there is none, or it runs, or a tier cannot be opened.
    pub fn open(dir: &Path, purpose: Purpose) -> Result<Self, MaintenanceError> {
        let access = match purpose {
            Purpose::Look => Access::Read,
            Purpose::Verify | Purpose::Collect => Access::Change,
        };
        let (catalog, opened) = Catalog::open_stopped(dir, access)?;
        let places = catalog.places()?.unwrap_or_default();
        // Opening would make a file that is not there.
        let (there, missing): (Vec<_>, Vec<_>) =
            places.nvme.iter().cloned().partition(|(path, _)| holds_blocks(path));
        let device = match there.is_empty() {
            true => None,
            false => {
                let paths = there.into_iter().map(|(path, bytes)| NvmePath { path, bytes }).collect();
                Some(NvmeDevice::open(&NvmeOptions { paths, ..NvmeOptions::default() })?)
            }
        };
        let files = device.iter().flat_map(NvmeDevice::files);
        catalog.set_files(&files.map(|file| file.uuid).collect::<Vec<_>>())?;
        let packs = open_packs(&places)?;
        let (namespaces, namespaces_damaged) = catalog.namespaces()?;
        let namespaces = namespaces.into_iter().map(|namespace| (namespace.id, namespace)).collect();
        let missing = missing.into_iter().map(|(path, _)| path).collect();
        Ok(Self { catalog, opened, device, missing, packs, namespaces, namespaces_damaged })
    }

    /// Files and devices of the NVMe tier that are not where they were.
    pub fn missing(&self) -> &[PathBuf] {
        &self.missing
    }
}

/// Whether a path leads to a file that a store made, or a device.
fn holds_blocks(path: &Path) -> bool {
    match path.metadata() {
        Ok(found) if found.is_dir() => path.join("kelvin.blocks").is_file(),
        Ok(_) => true,
        Err(_) => false,
    }
}

fn open_packs(places: &Places) -> Result<Option<PackStore>, ObjectError> {
    let Some(url) = &places.object else { return Ok(None) };
    let endpoint = places.object_endpoint.clone();
    let allow_http = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    PackStore::open(&ObjectOptions { endpoint, allow_http, ..ObjectOptions::new(url) }).map(Some)
}

/// A pack as the object tier has it.
fn pack_info(record: &PackRecord) -> PackInfo {
    let entry = |entry: &PackEntryRecord| PackEntry {
        hash: entry.hash.to_bytes(),
        parent: entry.parent.map(SequenceHash::to_bytes),
        offset: entry.offset,
        bytes: entry.bytes,
        checksum: entry.checksum,
    };
    PackInfo {
        id: PackId(record.id),
        namespace: record.namespace,
        bytes: record.bytes,
        entries: record.entries.iter().map(entry).collect(),
    }
}

/// A pack as the catalog has it.
fn pack_record(info: &PackInfo) -> PackRecord {
    let entry = |entry: &PackEntry| PackEntryRecord {
        hash: SequenceHash::from_bytes(entry.hash),
        parent: entry.parent.map(SequenceHash::from_bytes),
        offset: entry.offset,
        bytes: entry.bytes,
        checksum: entry.checksum,
    };
    PackRecord {
        id: info.id.0,
        namespace: info.namespace,
        bytes: info.bytes,
        entries: info.entries.iter().map(entry).collect(),
    }
}

fn hex(id: &[u8; 16]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
