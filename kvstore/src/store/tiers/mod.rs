//! The tiers below DRAM, and what goes between them.
//!
//! # Overview
//! [`Tiers`] belongs to the store; all tenants share it. NVMe and object tier each know what they hold
//! ([`nvme`], [`object`]), and enter it in the index of the block's namespace as one more holder, so that a
//! match sees all tiers at once. What moves:
//! ```text
//!            commit                 offload: near eviction, ancestors first
//!  client ───────────► DRAM ──────────────────────────► NVMe ─────────────► packs (S3)
//!                        ▲         onboard: lease, prefetch │                   │
//!                        └──────────────────────────────────┴───────────────────┘
//! ```
//! Without NVMe, packs are made from DRAM.
//!
//! # Failures
//! Nothing here fails a call. A copy that comes back wrong, or lies where nothing can be read, is forgotten and is a
//! miss. A tier that is out of reach keeps its copies, and is passed over until it is back: what only it has is
//! a miss meanwhile. A device that refuses writes costs copies.
//!
//! # Locking
//! Tenant, then a tier's table, then a namespace's index or event log. No lock is held across I/O.

mod attach;
mod cascade;
mod collect;
mod copies;
mod flash;
mod life;
mod nvme;
mod object;
mod offload;
mod onboard;
mod open;
mod read;
mod report;
mod restore;
mod scrub;
mod stir;
#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kelvin_tiering::{Attributes, PackInfo, Tier, Why, mover::Flights, mover::Sightings};
use parking_lot::Mutex;

pub(crate) use attach::Below;
pub(crate) use life::TierTasks;
pub(crate) use open::OpenError;
pub(crate) use report::{Moved, TierReport};
pub(crate) use scrub::Verified;
use stir::Stirred;

use super::BlockKey;
use crate::{
    SequenceHash,
    catalog::{Catalog, PackEntryRecord, PackRecord},
    index::{HolderSet, TierSet},
    insight::Reason,
};
use nvme::Nvme;
pub(crate) use object::Objects;

/// The tiers below DRAM.
pub(crate) struct Tiers {
    pub(super) nvme: Option<Nvme>,
    pub(super) object: Option<Objects>,
    catalog: Arc<Catalog>,
    flights: Flights<BlockKey>,
    /// Held by who makes packs from NVMe.
    cascading: tokio::sync::Mutex<()>,
    /// Something happened on NVMe, or to packs, that may have made work for who makes packs from NVMe.
    cascade_wanted: Stirred,
    /// How often blocks were asked for, when that decides who is copied.
    sightings: Option<(u8, Mutex<Sightings>)>,
    /// Copies on NVMe that a restart brought back and that are in no order yet.
    unordered: Mutex<Vec<(BlockKey, Attributes)>>,
    exclusive: bool,
    eager: bool,
    quotas: Vec<super::Quota>,
}

/// Why a block was not onboarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoadFailure {
    /// Its bytes were wrong; the copy is forgotten.
    Damaged,
    /// It is not there (any more).
    Gone,
    /// The device failed; the copy is forgotten.
    Failed,
    /// It took too long.
    Late,
    /// Too many wait, or the tier is out of reach just now.
    Busy,
}

impl LoadFailure {
    /// Whether the copy is still there for another try.
    fn keeps_copy(self) -> bool {
        matches!(self, Self::Late | Self::Busy)
    }
}

impl Tiers {
    /// Whether `tier` has a copy of the block.
    pub(super) fn contains(&self, tier: Tier, key: &BlockKey) -> bool {
        match tier {
            Tier::Nvme => self.nvme.as_ref().is_some_and(|nvme| nvme.copies.contains(key)),
            Tier::Object => self.object.as_ref().is_some_and(|object| object.copies.contains(key)),
            Tier::Hbm | Tier::Dram => false,
        }
    }

    /// Whether any tier below DRAM has a copy.
    pub(super) fn holds(&self, key: &BlockKey) -> bool {
        self.contains(Tier::Nvme, key) || self.contains(Tier::Object, key)
    }

    /// Counts a request for blocks, when admission asks how often they were; whether it does.
    pub(super) fn sight(&self, hashes: impl Iterator<Item = SequenceHash>) -> bool {
        let Some((_, sightings)) = &self.sightings else { return false };
        let mut sightings = sightings.lock();
        for hash in hashes {
            sightings.note(hash.fingerprint());
        }
        true
    }

    /// Whether the block was asked for often enough to be copied.
    pub(super) fn admits(&self, key: &BlockKey) -> bool {
        let Some((least, sightings)) = &self.sightings else { return true };
        sightings.lock().count(key.hash.fingerprint()) >= *least
    }

    /// Expected time to bring `bytes` from a tier, with what waits ahead; `None` for one that is not there.
    pub(crate) fn expect_load(&self, tier: Tier, bytes: u64) -> Option<Duration> {
        match tier {
            Tier::Hbm => None,
            Tier::Dram => Some(Duration::ZERO),
            Tier::Nvme => self.nvme.as_ref().map(|nvme| nvme.lane().expect_read(bytes)),
            Tier::Object => self.object.as_ref().map(|object| object.lane().expect_read(bytes)),
        }
    }

    /// Forgets the copy of a block in a tier below DRAM, for the reason given; whether there was one.
    pub(crate) fn drop_copy(&self, tier: Tier, key: &BlockKey, why: Reason) -> bool {
        match tier {
            Tier::Nvme => self.nvme.as_ref().is_some_and(|nvme| nvme.drop_copy(key, why)),
            Tier::Object => self.object.as_ref().is_some_and(|object| object.drop_copy(key, why)),
            Tier::Hbm | Tier::Dram => false,
        }
    }

    /// Makes copies the first to go, the first of these first.
    pub(crate) fn demote(&self, keys: &[BlockKey]) {
        if let Some(nvme) = &self.nvme {
            nvme.copies.demote(keys);
        }
        if let Some(object) = &self.object {
            object.copies.demote(keys);
        }
        self.cascade_wanted.stir();
    }

    /// The name of a tier's order.
    pub(crate) fn policy(&self, tier: Tier) -> Option<&'static str> {
        match tier {
            Tier::Nvme => self.nvme.as_ref().map(|nvme| nvme.copies.policy()),
            Tier::Object => self.object.as_ref().map(|object| object.copies.policy()),
            Tier::Hbm | Tier::Dram => None,
        }
    }

    /// The tiers whose copies can be had at the moment. One that was out of reach is among them again when it is
    /// time to try it.
    pub(super) fn reachable(&self) -> TierSet {
        let mut tiers = TierSet::default();
        tiers.insert(Tier::Dram as u32);
        if self.nvme.as_ref().is_some_and(|nvme| nvme.device().reads()) {
            tiers.insert(Tier::Nvme as u32);
        }
        if self.object.as_ref().is_some_and(Objects::answers) {
            tiers.insert(Tier::Object as u32);
        }
        tiers
    }

    /// Whether copies can come to a tier at the moment.
    fn takes(&self, tier: Tier) -> bool {
        match tier {
            Tier::Nvme => self.nvme.as_ref().is_some_and(|nvme| nvme.device().takes_writes()),
            Tier::Object => self.object.as_ref().is_some_and(|object| object.packs().takes()),
            Tier::Hbm | Tier::Dram => false,
        }
    }

    /// The tier that DRAM offloads to.
    fn first(&self) -> Option<Tier> {
        match (&self.nvme, &self.object) {
            (Some(_), _) => Some(Tier::Nvme),
            (None, Some(_)) => Some(Tier::Object),
            (None, None) => None,
        }
    }

    /// Its counters.
    fn first_counters(&self) -> Option<&report::TierCounters> {
        match (&self.nvme, &self.object) {
            (Some(nvme), _) => Some(&nvme.counters),
            (None, Some(object)) => Some(&object.counters),
            (None, None) => None,
        }
    }

    /// What each tier has and did.
    pub(crate) fn reports(&self) -> Vec<TierReport> {
        let nvme = self.nvme.as_ref().map(Nvme::report);
        let object = self.object.as_ref().map(Objects::report);
        nvme.into_iter().chain(object).collect()
    }

    /// What went from tier to tier.
    pub(crate) fn moved(&self) -> Vec<Moved> {
        let nvme = self.nvme.iter().flat_map(|nvme| nvme.counters.moved(Tier::Nvme));
        let object = self.object.iter().flat_map(|object| object.counters.moved(Tier::Object));
        nvme.chain(object).collect()
    }

    /// The catalog.
    pub(crate) fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Whether a block leaves NVMe when it is brought to memory.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    /// The packs.
    pub(crate) fn objects(&self) -> Option<&Objects> {
        self.object.as_ref()
    }

    /// The device.
    pub(crate) fn nvme(&self) -> Option<&Nvme> {
        self.nvme.as_ref()
    }

    /// Applies the quotas of a namespace that was opened.
    pub(super) fn apply_quotas(&self, namespace: &super::Namespace) {
        for quota in self.quotas.iter().filter(|quota| quota.model == namespace.spec.model) {
            match (quota.tier, &self.nvme, &self.object) {
                (Tier::Nvme, Some(nvme), _) => nvme.copies.set_quota(namespace.id, quota.bytes),
                (Tier::Object, _, Some(object)) => object.copies.set_quota(namespace.id, quota.bytes),
                _ => {}
            }
        }
    }
}

/// Why a copy went, as it is explained to people.
fn reason_of(why: Why) -> Reason {
    match why {
        Why::Expired => Reason::Expired,
        Why::Quota => Reason::Quota,
        Why::Policy => Reason::Evicted,
    }
}

/// A pack as the catalog keeps it.
fn pack_record(info: &PackInfo) -> PackRecord {
    let entries = info.entries.iter().map(|entry| PackEntryRecord {
        hash: SequenceHash::from_bytes(entry.hash),
        parent: entry.parent.map(SequenceHash::from_bytes),
        offset: entry.offset,
        bytes: entry.bytes,
        checksum: entry.checksum,
    });
    PackRecord { id: info.id.0, namespace: info.namespace, bytes: info.bytes, entries: entries.collect() }
}

/// Milliseconds since 1970 of a moment on the store's clock, which says `now` now.
fn unix_ms_of(at: Duration, now: Duration) -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (unix + at).saturating_sub(now).as_millis() as u64
}

/// A moment in milliseconds since 1970 on the store's clock; one that is past is now.
fn on_clock(unix_ms: u64, now: Duration) -> Duration {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now + Duration::from_millis(unix_ms).saturating_sub(unix)
}
