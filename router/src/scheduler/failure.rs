//! Why a request cannot be served, or not to its end.

use std::time::Duration;

use kelvin_proto::{REASON_METADATA, Reason, Refusal, refusal_of};
use tonic::{Code, Status};

/// A request's failure, before its first token or in its middle.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Failure {
    /// Nobody there to serve it.
    #[error("no decode worker is ready")]
    NoWorker,
    /// The connection to the worker broke, or its stream ended without a last word.
    #[error("worker {worker} was lost: {why}")]
    Lost {
        /// Its name.
        worker: String,
        /// What was seen of it.
        why: String,
    },
    /// The worker said no.
    #[error("worker {worker} refused: {}", refusal.message)]
    Refused {
        /// Its name.
        worker: String,
        /// What it said.
        refusal: Refusal,
    },
    /// The worker is there and says nothing.
    #[error("worker {worker} said nothing for {after:?}")]
    Stalled {
        /// Its name.
        worker: String,
        /// How long it had.
        after: Duration,
    },
    /// The worker said what makes no sense.
    #[error("worker {worker} broke the protocol: {what}")]
    Protocol {
        /// Its name.
        worker: String,
        /// What it said.
        what: &'static str,
    },
    /// The router ends.
    #[error("the router is shutting down")]
    ShuttingDown,
}

impl Failure {
    /// What a failed call to `worker` means: its own word where the status carries a reason, else a
    /// guess from the code. A broken connection shows as any of several codes.
    pub(super) fn of(worker: String, status: &Status) -> Self {
        let named = status.metadata().contains_key(REASON_METADATA);
        let broken = matches!(
            status.code(),
            Code::Unavailable
                | Code::Unknown
                | Code::Cancelled
                | Code::Internal
                | Code::DeadlineExceeded
                | Code::Aborted
        );
        if broken && !named {
            return Self::Lost { worker, why: status.message().to_owned() };
        }
        Self::Refused { worker, refusal: refusal_of(status) }
    }

    /// Whether another worker may do better.
    pub(super) fn another_may_serve(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::Stalled { .. } | Self::Protocol { .. } => true,
            Self::Refused { refusal, .. } => {
                refusal.reason.is_retryable() || refusal.reason == Reason::UnknownModel || self.is_gone()
            }
            Self::NoWorker | Self::ShuttingDown => false,
        }
    }

    /// Whether the worker, in its own words or without any, is no longer there for this request.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Self::Lost { .. } => true,
            Self::Refused { refusal, .. } => {
                matches!(refusal.reason, Reason::Unavailable | Reason::Cancelled)
            }
            _ => false,
        }
    }

    /// Name for metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::NoWorker => "no_worker",
            Self::Lost { .. } => "worker_lost",
            Self::Refused { .. } => "worker_refused",
            Self::Stalled { .. } => "worker_stalled",
            Self::Protocol { .. } => "worker_protocol",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workers_word_is_told_from_a_broken_connection() {
        let said: Status = Refusal::new(Reason::Unavailable, "draining").into();
        let said = Failure::of("w".into(), &said);
        assert!(matches!(&said, Failure::Refused { .. }) && said.is_gone() && said.another_may_serve());
        let broken = Failure::of("w".into(), &Status::unknown("h2 protocol error"));
        assert!(matches!(&broken, Failure::Lost { .. }) && broken.is_gone() && broken.another_may_serve());
        let invalid = Failure::of("w".into(), &Refusal::invalid("top_p").into());
        assert!(!invalid.another_may_serve() && !invalid.is_gone());
    }
}
