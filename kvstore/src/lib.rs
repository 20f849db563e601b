//! What Kelvin's bytes mean: sequence hashes, the radix index, leases, the service and its client.
//!
//! Features: `index` is hashes and the radix index alone; `client` adds the client library; `server`
//! (default) adds the store itself.

mod hash;

pub use hash::{NamespaceKey, SequenceHash, WrongLength};
