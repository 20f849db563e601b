//! The store itself: blocks, leases, namespaces, one state machine a tenant; no sockets, no gRPC.
//!
//! # Overview
//! [`Store`] knows the tenants. A [`Tenant`] owns one memory pool and everything in it; its verbs are those
//! of the API. A [`Namespace`] holds what equals-shaped blocks share: the hash key, the radix index that
//! answers `Match`, the event log behind `Watch`.
//!
//! # Locking
//! Reading (match, acquire, release, renew) and changing (reserve, commit, abort, eviction, a session's begin
//! and end) meet at fine locks only. They are taken in this order; the order of two of one kind never arises:
//! 1. the *structural* lock, one a tenant: held by whatever changes which blocks there are, so that changes
//!    see one moment; it holds what is being filled and the order of eviction. Readers take it when a lease is
//!    over, or to empty a queue of touches that is full (then without waiting);
//! 2. the map of sessions, for a look-up;
//! 3. one session: its leases and their expiry;
//! 4. a shard of the block table, or a run of it, one at a time;
//! 5. a namespace's index or event log; the pool.
//!
//! None is held across an await. Checksums and copies are made outside them all.
//!
//! No slot is used again while it is leased: whoever takes a block from the table to evict it does so under
//! the lock of its run, where all clones are made, and only if there is no clone.

mod block;
mod clock;
mod counters;
mod events;
mod explain;
mod histogram;
mod labels;
mod lease;
pub(crate) mod meters;
mod namespace;
mod options;
mod pins;
mod ranges;
mod registry;
mod room;
mod session;
mod state;
mod striped;
mod table;
mod tenant;
#[cfg(test)]
mod tests;
mod tiers;
mod touches;
mod verbs;

pub(crate) use block::Keep;
pub(crate) use block::{ImmutableBlock, MutableBlock};
#[cfg(test)]
pub(crate) use clock::ManualClock;
pub(crate) use clock::{Clock, SystemClock};
pub(crate) use counters::Counters;
pub(crate) use events::{Event, EventKind};
pub(crate) use explain::{Explanation, What, tiers_of};
pub(crate) use histogram::Distribution;
pub(crate) use labels::Row;
pub(crate) use lease::LeaseId;
pub(crate) use namespace::{CURVE_SAMPLES_MAX, Namespace};
pub(crate) use options::show;
pub use options::{NvmeSpace, ObjectSpace, Offload, PolicyKind, Quota, TierOptions, tier_name, tier_of_name};
pub(crate) use pins::{PINS_MAX, PinSurvey};
pub(crate) use ranges::Range;
pub use registry::TenantOptions;
pub(crate) use registry::{Store, StoreOptions};
pub(crate) use room::Removal;
pub(crate) use tenant::{BlockKey, LEASES_MAX, SessionId, Survey, Tenant};
pub(crate) use tiers::{Moved, Objects, TierReport, TierTasks, Tiers, Verified};
pub(crate) use verbs::{AcquiredBlock, ReservedBlock};
