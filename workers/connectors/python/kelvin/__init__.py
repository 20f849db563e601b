"""Client of the Kelvin KV-cache block store.

>>> import kelvin
>>> client = kelvin.Client("http://127.0.0.1:7440")
>>> namespace = client.namespace(
...     model="m", fingerprint=fingerprint, block_tokens=16, block_bytes=1 << 20
... )
>>> hashes = namespace.hashes(token_ids)
>>> with namespace.acquire(hashes) as leases:  # a leading run of stored blocks
...     for lease in leases:
...         consume(np.frombuffer(lease, np.float16))  # the store's own memory

Verbs block without holding the GIL; :mod:`kelvin.aio` has them as awaitables.
"""

from __future__ import annotations

from kelvin._kelvin import (
    Acquired,
    BlockStatus,
    Client,
    Match,
    Namespace,
    Parts,
    ReadLease,
    Watch,
    WriteLease,
)
from kelvin.errors import (
    ChecksumMismatch,
    Exhausted,
    FingerprintMismatch,
    InvalidArgument,
    KelvinError,
    LimitExceeded,
    ProtocolError,
    Unauthenticated,
    Unavailable,
    UnknownBlock,
    UnknownSession,
)
from kelvin.identity import Fingerprint, Shard

__all__ = [
    "Acquired",
    "BlockStatus",
    "ChecksumMismatch",
    "Client",
    "Exhausted",
    "Fingerprint",
    "FingerprintMismatch",
    "InvalidArgument",
    "KelvinError",
    "LimitExceeded",
    "Match",
    "Namespace",
    "Parts",
    "ProtocolError",
    "ReadLease",
    "Shard",
    "Unauthenticated",
    "Unavailable",
    "UnknownBlock",
    "UnknownSession",
    "Watch",
    "WriteLease",
]
