//! What Kelvin's bytes mean: sequence hashes, the radix index, leases, the service and its client.
//!
//! Features: `index` is hashes and the radix index alone; `client` adds the client library; `page` the built-in
//! page, for a store or a router; `server` (default) adds the store itself.

#[cfg(feature = "server")]
#[doc(hidden)]
pub mod bench_support;
// Open to the benches, the fuzz targets and the maintenance commands; no part of the library's promises.
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod catalog;
#[cfg(feature = "client")]
pub mod client;
mod hash;
#[cfg(feature = "index")]
pub mod heap;
mod index;
#[cfg(feature = "server")]
pub mod insight;
#[cfg(feature = "server")]
pub mod maintenance;
#[cfg(feature = "page")]
pub mod page;
#[cfg(feature = "server")]
mod random;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "client")]
mod span;
#[cfg(feature = "server")]
mod store;
#[cfg(feature = "client")]
mod transport;

/// Decodes bytes as the data port does; for the fuzz target.
#[cfg(feature = "server")]
#[doc(hidden)]
pub fn fuzz_data_port(bytes: &[u8]) {
    transport::decode_any(bytes);
}

/// Decodes bytes as calls over a socket are decoded; for the fuzz target.
#[cfg(feature = "server")]
#[doc(hidden)]
pub fn fuzz_calls(bytes: &[u8]) {
    transport::decode_any_call(bytes);
}

#[cfg(feature = "client")]
pub use client::{
    Acquired, Client, ClientOptions, Keep, Leased, Match, Namespace, PartLease, ReadLease, Reserved,
    Transport, WriteLease, prefix, prefix_up_to,
};
pub use hash::{NamespaceKey, SequenceHash, WrongLength};
pub use index::{
    Branch, Entry, FleetSet, HashMixer, HolderSet, InsertError, Inserted, Loaded, OUTLINE_HOLDERS, Outline,
    RUN_BLOCKS_MAX, RadixIndex, Subtree, TierSet, WorkerSet,
};
