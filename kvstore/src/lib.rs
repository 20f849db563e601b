//! What Kelvin's bytes mean: sequence hashes, the radix index, leases, the service and its client.
//!
//! Features: `index` is hashes and the radix index alone; `client` adds the client library; `server`
//! (default) adds the store itself.

mod hash;
mod index;

pub use hash::{NamespaceKey, SequenceHash, WrongLength};
pub use index::{
    Entry, HolderSet, InsertError, Inserted, PassThrough, RUN_BLOCKS_MAX, RadixIndex, Subtree, TierSet,
    WorkerSet,
};
