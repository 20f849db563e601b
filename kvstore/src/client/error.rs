//! What can go wrong for a client.

use kelvin_kernels::Checksum;
use kelvin_proto::{Refusal, refusal_of};

use crate::SequenceHash;

/// A call that failed as a whole. (A miss, a conflict or a full store is a value, not an error.)
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store said no, or was away.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nobody answers there.
    #[error("reach the store at {endpoint}: {source}")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// The cause.
        source: tonic::transport::Error,
    },
    /// The store's answer makes no sense.
    #[error("the store's answer makes no sense: {0}")]
    Protocol(String),
}

impl Error {
    /// Whether the same call can succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.reason.is_retryable(),
            Self::Unreachable { .. } => true,
            Self::Protocol(_) => false,
        }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(refusal_of(&status))
    }
}

/// A block's bytes are not those that were committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("block {hash} has checksum {found}, not {expected}")]
pub struct ChecksumMismatch {
    /// Which block.
    pub hash: SequenceHash,
    /// What was committed.
    pub expected: Checksum,
    /// What is there.
    pub found: Checksum,
}
