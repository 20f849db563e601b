//! Why a worker does not start or does not go on. (One request's failure is a `Refusal`, not an error.)

use std::{net::SocketAddr, path::PathBuf};

use crate::engine::EngineError;

/// What a worker fails with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting does not fit.
    #[error("{0}")]
    Config(String),
    /// The model can't be used.
    #[error("load model {}: {message}", path.display())]
    Model {
        /// Its file.
        path: PathBuf,
        /// What to change.
        message: String,
    },
    /// The engine failed at start.
    #[error("start engine")]
    Engine(#[from] EngineError),
    /// The owner thread of the engine ended.
    #[error("the engine's thread ended unexpectedly")]
    EngineGone,
    /// The store refuses for good; with a fingerprint mismatch the message names both.
    #[error("open namespace at {endpoint}: {message}")]
    Store {
        /// Where the store is.
        endpoint: String,
        /// What it said.
        message: String,
    },
    /// The address can't be listened on.
    #[error("listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The gRPC server failed.
    #[error("serve")]
    Serve(#[from] tonic::transport::Error),
}

impl Error {
    /// Whether the same start can succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::EngineGone | Self::Listen { .. } | Self::Serve(_))
    }
}
