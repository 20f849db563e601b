"""Blocks that an engine names itself, by keys that already have everything before a block in them.

Overview: an engine's key, of any length, becomes the store's 16 bytes; blocks are looked for, loaded and stored by
key, and whatever the store can't do now is a miss.

# Keys
The store's hashes are keyed so that nobody guesses those of another namespace: a block's hash is the namespace's own
(keyed) hash of one block of zero tokens with the engine's key as `extra`, see :meth:`OpaqueBlocks.hashes`.

# Parents
A block's parent is the block before it. Where the engine does not say which that is, or where it is not stored, the
run is stored as a start of its own: the key says all there is to say about what came before. Questions therefore go
by key alone; parents only tell the store what to evict first.

# Deadlines
A call to the store takes at most the client's `call_timeout`. Where a caller gives `until` (of `time.monotonic`), no
further batch is begun after it. A call that failed because the store is away makes everything a miss, at no cost,
until it answers again (:mod:`kelvin.link`).

Thread-safe.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Iterator, Sequence

from kelvin._kelvin import BlockStatus, Namespace, ReadLease, WriteLease
from kelvin.errors import ChecksumMismatch, KelvinError
from kelvin.link import Link

logger = logging.getLogger(__name__)

BATCH_BLOCKS = 128
"""Blocks a call to the store."""

_THERE = (
    BlockStatus.STORED,
    BlockStatus.ALREADY_STORED,
    BlockStatus.CONFLICT,
    # Another engine or rank is writing the same block.
    BlockStatus.FILLING,
)
"""What a block can be after a write that counts as done."""


class OpaqueBlocks:
    """Blocks of one namespace by an engine's keys. No call here raises because of the store."""

    def __init__(
        self,
        link: Link,
        block_tokens: int,
        *,
        priority: int = 0,
        block_ttl: float | None = None,
        what: str = "blocks",
    ) -> None:
        """`what` is the engine's word for blocks, for the log."""
        self.link = link
        self._zeros = array("I", bytes(4 * block_tokens))
        self._keep = (priority, block_ttl)
        self._what = what

    @property
    def transport(self) -> str:
        """How payload moves now."""
        namespace = self.link.get()
        return namespace.transport if namespace is not None else "none yet"

    def hashes(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        """The store's hashes of the engine's keys."""
        return [namespace.hashes(self._zeros, key)[0] for key in keys]

    def run(self, keys: Sequence[bytes]) -> int:
        """Blocks of the leading run that is stored."""
        found = 0
        for batch in _batches(keys):
            namespace = self.link.get()
            if namespace is None:
                break
            try:
                hashes = self.hashes(namespace, batch)
                matched = namespace.match(hashes).blocks
                # A match follows parents, and runs that were stored as starts of their own have none.
                if 0 < matched < len(batch):
                    matched += _leading(self._stored(namespace, hashes[matched:]))
            except KelvinError as error:
                self.link.failed(f"look for {self._what}", error)
                break
            found += matched
            if matched < len(batch):
                break
        return found

    def present(self, keys: Sequence[bytes]) -> list[bool]:
        """Which blocks are stored."""
        found: list[bool] = []
        for batch in _batches(keys):
            namespace = self.link.get()
            if namespace is None:
                break
            try:
                found += self._stored(namespace, self.hashes(namespace, batch))
            except KelvinError as error:
                self.link.failed(f"look for {self._what}", error)
                break
        return found + [False] * (len(keys) - len(found))

    @staticmethod
    def _stored(namespace: Namespace, hashes: Sequence[bytes]) -> list[bool]:
        return [found["reason"] == "stored" for found in namespace.explain(hashes)]

    def load(
        self, keys: Sequence[bytes], take: Callable[[int, ReadLease], None], until: float | None = None
    ) -> list[bool]:
        """Gives the blocks of the leading run that is stored to `take`, each for as long as that lasts.

        Which of `keys` those are. The bytes are verified when `take` first looks at them.
        """
        loaded = 0
        try:
            namespace = self.link.get()
            if namespace is not None:
                for loaded in self._load(namespace, self.hashes(namespace, keys), take, until):
                    pass
        except ChecksumMismatch as error:
            logger.warning("kelvin: damaged, so a miss: %s", error)
        except KelvinError as error:
            self.link.failed(f"load {self._what}", error)
        return [True] * loaded + [False] * (len(keys) - loaded)

    @staticmethod
    def _load(
        namespace: Namespace,
        hashes: Sequence[bytes],
        take: Callable[[int, ReadLease], None],
        until: float | None,
    ) -> Iterator[int]:
        loaded = 0
        while loaded < len(hashes) and not _late(until):
            # A block is verified when it is first looked at, right before it is copied.
            with namespace.acquire(hashes[loaded : loaded + BATCH_BLOCKS], verify=False) as leases:
                for lease in leases:
                    take(loaded, lease)
                    loaded += 1
                    yield loaded
                if leases.stopped is not None or not leases:
                    return

    def save(
        self,
        keys: Sequence[bytes],
        give: Callable[[int, WriteLease], None],
        parent: bytes | None = None,
        until: float | None = None,
    ) -> list[bool]:
        """Stores a run: has `give` fill the blocks that are not stored yet. Which of them are, then.

        `parent` is the key of the block before the first, where it is known.
        """
        saved: list[bool] = []
        for batch in _batches(keys):
            namespace = self.link.get()
            if namespace is None or _late(until):
                break
            first = len(saved)
            before = keys[first - 1] if first > 0 else parent
            try:
                saved += self._save(namespace, batch, first, give, before)
            except KelvinError as error:
                self.link.failed(f"store {self._what}", error)
                break
            if not all(saved):
                break
        return saved + [False] * (len(keys) - len(saved))

    def _save(
        self,
        namespace: Namespace,
        keys: Sequence[bytes],
        first: int,
        give: Callable[[int, WriteLease], None],
        parent: bytes | None,
    ) -> list[bool]:
        hashes = self.hashes(namespace, keys)
        reserved = None
        if parent is not None:
            reserved = namespace.reserve(self.hashes(namespace, [parent])[0], hashes, *self._keep)
        if reserved is None or reserved[0] == BlockStatus.NO_PARENT:
            reserved = namespace.reserve(None, hashes, *self._keep)
        statuses: list[BlockStatus] = []
        filled: dict[int, WriteLease] = {}
        for at, lease in enumerate(reserved):
            if isinstance(lease, WriteLease):
                give(first + at, lease)
                filled[at] = lease
                statuses.append(BlockStatus.RESERVED)
            else:
                statuses.append(lease)
        for at, status in zip(filled, namespace.commit(list(filled.values())), strict=True):
            statuses[at] = status
        return [status in _THERE for status in statuses]

    def drop(self, key: bytes) -> int:
        """Drops a block and everything behind it; how many blocks those are."""
        namespace = self.link.get()
        if namespace is None:
            return 0
        try:
            return namespace.evict(self.hashes(namespace, [key]))["evicted_blocks"]
        except KelvinError as error:
            self.link.failed(f"drop {self._what}", error)
            return 0

    def clear(self) -> int:
        """Drops every block; how many those are."""
        namespace = self.link.get()
        if namespace is None:
            return 0
        try:
            return namespace.evict_all()["evicted_blocks"]
        except KelvinError as error:
            self.link.failed(f"drop all {self._what}", error)
            return 0

    def close(self) -> None:
        """Ends the session."""
        self.link.close()


def _late(until: float | None) -> bool:
    return until is not None and time.monotonic() >= until


def _batches(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), BATCH_BLOCKS):
        yield keys[start : start + BATCH_BLOCKS]


def _leading(flags: Sequence[bool]) -> int:
    return flags.index(False) if False in flags else len(flags)
