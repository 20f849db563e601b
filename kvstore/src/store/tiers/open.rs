//! Opening the tiers at a start: devices, catalog, and what both say about each other.

use std::{path::Path, sync::Arc, time::Duration};

use kelvin_tiering::{
    DramPool, NvmeDevice, NvmeError, NvmeOptions, NvmePath, ObjectError, ObjectOptions, Order, PackStore,
    PolicyKind, Tier,
    mover::{Flights, Lane, LaneOptions, Sightings},
};
use parking_lot::Mutex;

use super::{
    Stirred, Tiers, flash::Flash, nvme::Nvme, object::Objects, offload::PACK_BYTES, read::READ_DEADLINE,
};
use crate::{
    catalog::{Catalog, CatalogError, Opened},
    store::{Clock, Offload, TierOptions},
};

/// Blocks that a tier's policy is made for, before it is known what a block is: half a mebibyte each.
const BLOCK_BYTES_GUESS: u64 = 512 << 10;
/// Blocks whose requests are counted for admission.
const SIGHTINGS_BLOCKS: usize = 1 << 20;

/// Why the tiers could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The catalog.
    #[error("open the catalog: {0}")]
    Catalog(#[from] CatalogError),
    /// The NVMe tier.
    #[error("open the NVMe tier: {0}")]
    Nvme(#[from] NvmeError),
    /// The object tier.
    #[error("open the object tier: {0}")]
    Object(#[from] ObjectError),
}

/// What the tiers are on, and how patient they are with it.
#[derive(Debug, Clone)]
pub(crate) struct Grounds {
    pub(crate) nvme: Option<NvmeOptions>,
    /// A read from NVMe that takes longer is given up.
    pub(crate) nvme_read_deadline: Duration,
    pub(crate) object: Option<ObjectOptions>,
}

impl Grounds {
    /// Those that an operator names.
    pub(crate) fn of(options: &TierOptions) -> Self {
        let object = options.object.as_ref().map(|space| {
            let (defaults, pack_bytes) = (ObjectOptions::new(&space.url), pack_bytes(options));
            ObjectOptions {
                endpoint: space.endpoint.clone(),
                allow_http: space.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")),
                get_bytes_max: pack_bytes / 4,
                gap_bytes_max: defaults.gap_bytes_max.min(pack_bytes / 128),
                ..defaults
            }
        });
        let nvme = (!options.nvme.is_empty()).then(|| nvme_options(options));
        Self { nvme, nvme_read_deadline: READ_DEADLINE, object }
    }
}

/// What a start found.
#[derive(Debug, Clone)]
pub(crate) struct StartReport {
    pub(crate) opened: Opened,
    /// NVMe files whose blocks are not there any more.
    pub(crate) files_absent: usize,
}

impl Tiers {
    /// Opens what the options name, which is `grounds`, for tenants with these pools; empty until
    /// [`restore`](Self::restore). `None` when they name no cold tier.
    pub(crate) async fn open(
        options: &TierOptions,
        grounds: &Grounds,
        pools: &[&DramPool],
        clock: Arc<dyn Clock>,
    ) -> Result<Option<(Self, StartReport)>, OpenError> {
        let (Some(data), true) = (&options.data, options.any()) else { return Ok(None) };
        let (catalog, opened) = Catalog::open(Path::new(data))?;
        let catalog = Arc::new(catalog);
        catalog.set_places(&options.into())?;
        let policy = |tier| policy_of(options, tier);
        let mut files_absent = 0;
        let nvme = match &grounds.nvme {
            None => None,
            Some(nvme) => {
                let device = NvmeDevice::open(nvme)?;
                for pool in pools {
                    if let Err(error) = device.register(pool).await {
                        tracing::debug!(%error, "memory is not registered with the kernel: NVMe costs more CPU");
                    }
                }
                let uuids: Vec<[u8; 16]> = device.files().iter().map(|file| file.uuid).collect();
                files_absent = catalog.set_files(&uuids)?.absent;
                let (device, deadline) = (Flash::new(device), grounds.nvme_read_deadline);
                let policy = policy(Tier::Nvme);
                Some(Self::nvme_tier(device, catalog.clone(), policy, clock.clone(), deadline))
            }
        };
        let object = match &grounds.object {
            None => None,
            Some(object) => {
                let packs = PackStore::open(object)?;
                if let Err(error) = packs.check().await {
                    if !error.is_retryable() {
                        return Err(error.into());
                    }
                    tracing::warn!(%error, "the object tier does not answer: its blocks are misses until it does");
                }
                let bytes = options.object.as_ref().and_then(|space| space.bytes).unwrap_or(0);
                let (policy, deadline) = (policy(Tier::Object), object.read_deadline);
                let sizes = (bytes, pack_bytes(options));
                Some(Self::object_tier(packs, catalog.clone(), sizes, policy, clock, deadline))
            }
        };
        let least = u8::try_from(options.admission).unwrap_or(u8::MAX).min(15);
        let sightings = (least > 1).then(|| (least, Mutex::new(Sightings::new(SIGHTINGS_BLOCKS))));
        let tiers = Self {
            nvme,
            object,
            catalog,
            flights: Flights::default(),
            cascading: tokio::sync::Mutex::default(),
            cascade_wanted: Stirred::default(),
            sightings,
            unordered: Mutex::default(),
            exclusive: options.exclusive,
            eager: options.offload == Offload::Eager,
            quotas: options.quotas.clone(),
        };
        Ok(Some((tiers, StartReport { opened, files_absent })))
    }

    fn nvme_tier(
        device: Flash,
        catalog: Arc<Catalog>,
        policy: PolicyKind,
        clock: Arc<dyn Clock>,
        read_deadline: Duration,
    ) -> Nvme {
        use kelvin_tiering::Device as _;
        let lane = Lane::new(LaneOptions::nvme());
        let blocks = (device.usage().capacity_bytes / BLOCK_BYTES_GUESS).max(1) as usize;
        Nvme::new(device, catalog, lane, Order::new(policy, blocks), clock, read_deadline)
    }

    fn object_tier(
        packs: PackStore,
        catalog: Arc<Catalog>,
        (bytes, pack_bytes): (u64, u64),
        policy: PolicyKind,
        clock: Arc<dyn Clock>,
        turn_deadline: Duration,
    ) -> Objects {
        let lane = Lane::new(LaneOptions::object());
        let blocks = if bytes == 0 { 1 << 20 } else { (bytes / BLOCK_BYTES_GUESS).max(1) as usize };
        let order = Order::new(policy, blocks);
        Objects::new(packs, catalog, lane, (bytes, pack_bytes), order, clock, turn_deadline)
    }
}

/// Bytes that a pack should have, about.
fn pack_bytes(options: &TierOptions) -> u64 {
    options.object.as_ref().and_then(|space| space.pack_bytes).unwrap_or(PACK_BYTES)
}

/// The policy of a tier.
fn policy_of(options: &TierOptions, tier: Tier) -> PolicyKind {
    options.policies.get(&tier).copied().unwrap_or_default()
}

fn nvme_options(options: &TierOptions) -> NvmeOptions {
    let paths = options.nvme.iter().map(|space| NvmePath { path: space.path.clone(), bytes: space.bytes });
    NvmeOptions { paths: paths.collect(), ..NvmeOptions::default() }
}
