"""What can go wrong. A miss, a conflict or a full store is a value, not an exception."""

from __future__ import annotations


class KelvinError(Exception):
    """A call that failed as a whole.

    ``reason`` is stable and machine-readable, e.g. ``"FINGERPRINT_MISMATCH"``; ``retryable`` says whether the
    same call can succeed later.
    """

    def __init__(self, message: str, reason: str = "INTERNAL", retryable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{super().__str__()} ({self.reason})"

    def __reduce__(self) -> tuple[type[KelvinError], tuple[object, ...]]:
        return type(self), (*self.args, self.reason, self.retryable)


class Unavailable(KelvinError, ConnectionError):
    """Nobody answers there, the answer took too long, or the store is shutting down."""


class UnknownSession(KelvinError):
    """The store lost the session, mostly by a restart. It is opened again in the background: try again."""


class FingerprintMismatch(KelvinError):
    """The model is served under another fingerprint; the message names both."""


class InvalidArgument(KelvinError, ValueError):
    """The store refused a field; the message says what to change."""


class LimitExceeded(KelvinError):
    """More keys or bytes than the store takes in a call."""


class Exhausted(KelvinError):
    """Too many sessions, or a queue is full."""


class Unauthenticated(KelvinError, PermissionError):
    """No bearer token, or a wrong one."""


class UnknownBlock(KelvinError, LookupError):
    """A block that was asked for by itself is not stored."""


class ChecksumMismatch(KelvinError):
    """A block's bytes are not those that were committed. The store is told."""


class ProtocolError(KelvinError):
    """The store's answer makes no sense."""


_BY_REASON: dict[str, type[KelvinError]] = {
    "UNAVAILABLE": Unavailable,
    "UNKNOWN_SESSION": UnknownSession,
    "FINGERPRINT_MISMATCH": FingerprintMismatch,
    "INVALID_ARGUMENT": InvalidArgument,
    "LIMIT_EXCEEDED": LimitExceeded,
    "RESOURCE_EXHAUSTED": Exhausted,
    "UNAUTHENTICATED": Unauthenticated,
    "UNKNOWN_BLOCK": UnknownBlock,
    "CHECKSUM_MISMATCH": ChecksumMismatch,
    "PROTOCOL": ProtocolError,
}


def from_reason(message: str, reason: str, retryable: bool) -> KelvinError:
    """The exception for a reason of the store's; the native half raises through this."""
    return _BY_REASON.get(reason, KelvinError)(message, reason, retryable)
