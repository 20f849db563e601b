//! Why a call was refused: one table from reasons to gRPC codes, with the reason machine-readable.

use tonic::{Code, Status, metadata::MetadataValue};

/// Trailer that carries [`Reason::name`] of a failed call.
pub const REASON_METADATA: &str = "kelvin-reason";

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal => $code:ident, retry $retry:literal;)*) => {
        /// Why a call as a whole was refused. (One block's failure is a status in the answer, not an error.)
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// Stable, machine-readable name.
            pub fn name(self) -> &'static str { match self { $(Reason::$variant => $name,)* } }

            /// The reason of that name.
            pub fn of_name(name: &str) -> Option<Reason> {
                match name { $($name => Some(Reason::$variant),)* _ => None }
            }

            /// The gRPC code it travels under.
            pub fn code(self) -> Code { match self { $(Reason::$variant => Code::$code,)* } }

            /// Whether the same call can succeed later.
            pub fn is_retryable(self) -> bool { match self { $(Reason::$variant => $retry,)* } }
        }
    };
}

reasons! {
    /// A field is missing, malformed or out of range.
    InvalidArgument = "INVALID_ARGUMENT" => InvalidArgument, retry false;
    /// More keys, bytes or tokens than the limit in the handshake.
    LimitExceeded = "LIMIT_EXCEEDED" => OutOfRange, retry false;
    /// The model is served under another fingerprint; both are in the message.
    FingerprintMismatch = "FINGERPRINT_MISMATCH" => FailedPrecondition, retry false;
    /// The session does not exist (any more): open the namespace again.
    UnknownSession = "UNKNOWN_SESSION" => FailedPrecondition, retry true;
    /// The block is not stored.
    UnknownBlock = "UNKNOWN_BLOCK" => NotFound, retry false;
    /// No such model here.
    UnknownModel = "UNKNOWN_MODEL" => NotFound, retry false;
    /// No or a wrong bearer token.
    Unauthenticated = "UNAUTHENTICATED" => Unauthenticated, retry false;
    /// The call is the operator's, and the tenant is not one.
    NotOperator = "NOT_OPERATOR" => PermissionDenied, retry false;
    /// Too many sessions, or a queue is full.
    Exhausted = "RESOURCE_EXHAUSTED" => ResourceExhausted, retry true;
    /// Shutting down, or what the call depends on is away.
    Unavailable = "UNAVAILABLE" => Unavailable, retry true;
    /// The caller went away.
    Cancelled = "CANCELLED" => Cancelled, retry false;
    /// The engine failed.
    EngineFailed = "ENGINE_FAILED" => Internal, retry true;
    /// A bug here.
    Internal = "INTERNAL" => Internal, retry false;
}

/// A refused call: the reason, and what to change in words.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message} ({})", reason.name())]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// What to change; lowercase, no full stop.
    pub message: String,
}

impl Refusal {
    /// A refusal with its reason and message.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// Shorthand for [`Reason::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Reason::InvalidArgument, message)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        let mut status = Status::new(refusal.reason.code(), refusal.message);
        status.metadata_mut().insert(REASON_METADATA, MetadataValue::from_static(refusal.reason.name()));
        status
    }
}

/// The refusal inside a status, also when it came from a proxy or a library that sets no reason.
pub fn refusal_of(status: &Status) -> Refusal {
    let named = status.metadata().get(REASON_METADATA).and_then(|value| value.to_str().ok());
    let reason = named.and_then(Reason::of_name).unwrap_or(match status.code() {
        Code::InvalidArgument => Reason::InvalidArgument,
        Code::OutOfRange => Reason::LimitExceeded,
        Code::Unauthenticated | Code::PermissionDenied => Reason::Unauthenticated,
        Code::ResourceExhausted => Reason::Exhausted,
        // Without a reason of ours it is the transport that gave up, mostly for want of time.
        Code::Cancelled | Code::Unavailable | Code::DeadlineExceeded | Code::Unknown => Reason::Unavailable,
        _ => Reason::Internal,
    });
    Refusal::new(reason, status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for &reason in Reason::ALL {
            let status: Status = Refusal::new(reason, "text").into();
            assert_eq!(status.code(), reason.code());
            assert_eq!(refusal_of(&status).reason, reason);
            assert_eq!(refusal_of(&status).message, "text");
        }
    }

    #[test]
    fn a_foreign_status_gets_a_reason_from_its_code() {
        assert_eq!(refusal_of(&Status::unavailable("gone")).reason, Reason::Unavailable);
        assert_eq!(refusal_of(&Status::data_loss("?")).reason, Reason::Internal);
        assert_eq!(refusal_of(&Status::cancelled("Timeout expired")).reason, Reason::Unavailable);
    }
}
