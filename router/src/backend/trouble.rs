//! Why a request that an engine's server was to answer has no answer.

use std::time::Duration;

use axum::http::StatusCode;

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    /// No server of the model can be asked.
    #[error("no backend that serves this model is ready")]
    NoBackend,
    /// Every server of the model has as many requests as it takes.
    #[error("all backends of this model are busy")]
    Busy,
    /// No connection, or one that broke before the answer began.
    #[error("the backend cannot be reached: {0}")]
    Unreachable(String),
    /// It answers that it failed.
    #[error("the backend answered {0}")]
    Failed(StatusCode),
    /// What it answers is no answer.
    #[error("the backend's answer makes no sense: {0}")]
    Garbage(String),
    /// It says nothing for too long.
    #[error("the backend was silent for {} s", .0.as_secs_f64())]
    Stalled(Duration),
    /// An answer broke off.
    #[error("the backend's answer broke off: {0}")]
    Cut(String),
    /// The router stops.
    #[error("the router is shutting down")]
    ShuttingDown,
}

impl Trouble {
    /// Its name in metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::NoBackend => "no_backend",
            Self::Busy => "backends_busy",
            Self::Unreachable(_) => "backend_unreachable",
            Self::Failed(_) => "backend_failed",
            Self::Garbage(_) => "backend_garbage",
            Self::Stalled(_) => "backend_stalled",
            Self::Cut(_) => "backend_cut",
            Self::ShuttingDown => "shutting_down",
        }
    }

    /// Whether it speaks against the server.
    pub(crate) fn is_fault(&self) -> bool {
        !matches!(self, Self::NoBackend | Self::Busy | Self::ShuttingDown)
    }
}
