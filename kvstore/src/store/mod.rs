//! The store itself: blocks, leases, namespaces, one state machine a tenant; no sockets, no gRPC.
//!
//! # Overview
//! [`Store`] knows the tenants. A [`Tenant`] owns one memory pool and everything in it; its verbs are those
//! of the API. A [`Namespace`] holds what equals-shaped blocks share: the hash key, the radix index that
//! answers `Match`, the event log behind `Watch`.
//!
//! # Locking
//! One lock a tenant, held for microseconds and never across an await, orders everything that changes
//! blocks, leases or sessions. Reading an index or an event log does not take it. Checksums and copies are
//! made outside it. Order: tenant, then a namespace's index or event log, then the pool.

mod block;
mod clock;
mod counters;
mod events;
mod lease;
mod namespace;
mod options;
mod registry;
mod room;
mod state;
mod tenant;
#[cfg(test)]
mod tests;
mod verbs;

pub(crate) use block::{ImmutableBlock, MutableBlock};
#[cfg(test)]
pub(crate) use clock::ManualClock;
pub(crate) use clock::{Clock, SystemClock};
pub(crate) use counters::Counters;
pub(crate) use events::{Event, EventKind};
pub(crate) use lease::LeaseId;
pub(crate) use namespace::Namespace;
pub use options::{NvmeSpace, ObjectSpace, Offload, PolicyKind, Quota, TierOptions, tier_name, tier_of_name};
pub use registry::TenantOptions;
pub(crate) use registry::{Store, StoreOptions};
pub(crate) use tenant::{BlockKey, LEASES_MAX, SessionId, Tenant};
pub(crate) use verbs::{AcquiredBlock, ReservedBlock};
