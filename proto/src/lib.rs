//! The words everyone shares: the `.proto` files, the code generated from them, and validated types.
//!
//! Wire types live in [`kv::v1`] and [`worker::v1`] and are never trusted: a service turns them into the
//! domain types of this crate (or of `kvstore`) on arrival and answers what does not fit with a
//! [`Reason`]. The table in [`error`](Reason) is the only place that knows which reason is which gRPC code.
#![forbid(unsafe_code)]

mod error;
mod exposition;
mod fingerprint;
pub mod trace;

pub use error::{REASON_METADATA, Reason, Refusal, refusal_of};
pub use exposition::{Exposition, MetricInfo, catalogue, describe};
pub use fingerprint::{Fingerprint, NamespaceSpec, Shard};

/// The KV API.
pub mod kv {
    /// Version 1 of the KV API, as generated.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("kelvin.kv.v1");
    }
}

/// The worker API.
pub mod worker {
    /// Version 1 of the worker API, as generated.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("kelvin.worker.v1");
    }
}

/// Encoded `FileDescriptorSet` of every service here, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
