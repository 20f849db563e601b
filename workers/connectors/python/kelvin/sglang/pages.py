"""Pages of one host pool, in a namespace of their own.

# Keys
SGLang names a page by a hash of everything up to its end, as text. The store wants 16 bytes, keyed so that nobody
guesses those of another namespace: a page's hash is the namespace's own (keyed) hash of one block of zero tokens
with SGLang's key as `extra`, see :meth:`Pages.hashes`.

# Parents
A page's parent is the page before it. Where SGLang does not say which that is (without
``hicache_storage_pass_prefix_keys``), or where it is not stored (pools that keep only the end of a prefix), the run
is stored as a start of its own: the key says all there is to say about what came before. Questions therefore go by
key alone; parents only tell the store what to evict first.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.utils.dlpack import from_dlpack

from kelvin import BlockStatus, ChecksumMismatch, KelvinError, Namespace, ReadLease, WriteLease
from kelvin.link import Link
from kelvin.sglang.identity import Page, Settings

if TYPE_CHECKING:
    from sglang.srt.mem_cache.pool_host import HostKVCache

logger = logging.getLogger(__name__)

BATCH_PAGES = 128
"""Pages a call to the store."""

_THERE = (
    BlockStatus.STORED,
    BlockStatus.ALREADY_STORED,
    BlockStatus.CONFLICT,
    # Another rank or replica is writing the same page.
    BlockStatus.FILLING,
)
"""What a page can be after a write that counts as done."""


class Pages:
    """Whatever the store can't do now is a miss; no call here raises because of it."""

    def __init__(self, name: str, pool: HostKVCache, page: Page, link: Link, settings: Settings) -> None:
        self.name = name
        self.pool = pool
        self.page = page
        self._link = link
        self._settings = settings
        self._zeros = array("I", bytes(4 * page.tokens))

    @property
    def transport(self) -> str:
        """How payload moves now."""
        namespace = self._link.get()
        return namespace.transport if namespace is not None else "none yet"

    def hashes(self, namespace: Namespace, keys: Sequence[str]) -> list[bytes]:
        """The store's hashes of SGLang's keys."""
        return [namespace.hashes(self._zeros, key.encode())[0] for key in keys]

    def run(self, keys: Sequence[str]) -> int:
        """Pages of the leading run that is stored."""
        found = 0
        for batch in _batches(keys):
            namespace = self._link.get()
            if namespace is None:
                break
            try:
                hashes = self.hashes(namespace, batch)
                matched = namespace.match(hashes).blocks
                # A match follows parents, and runs that were stored as starts of their own have none.
                if 0 < matched < len(batch):
                    matched += _leading(self._stored(namespace, hashes[matched:]))
            except KelvinError as error:
                self._link.failed("look for pages", error)
                break
            found += matched
            if matched < len(batch):
                break
        return found

    def present(self, keys: Sequence[str]) -> list[bool]:
        """Which pages are stored."""
        found: list[bool] = []
        for batch in _batches(keys):
            namespace = self._link.get()
            if namespace is None:
                break
            try:
                found += self._stored(namespace, self.hashes(namespace, batch))
            except KelvinError as error:
                self._link.failed("look for pages", error)
                break
        return found + [False] * (len(keys) - len(found))

    @staticmethod
    def _stored(namespace: Namespace, hashes: Sequence[bytes]) -> list[bool]:
        return [found["reason"] == "stored" for found in namespace.explain(hashes)]

    def load(self, keys: Sequence[str], take: Callable[[int, torch.Tensor], None]) -> list[bool]:
        """Gives the pages of the leading run that is stored to `take`, flat and for as long as that lasts."""
        loaded = 0
        try:
            namespace = self._link.get()
            if namespace is not None:
                for loaded in self._load(namespace, self.hashes(namespace, keys), take):
                    pass
        except ChecksumMismatch as error:
            logger.warning("kelvin: a damaged page is a miss: %s", error)
        except KelvinError as error:
            self._link.failed("load pages", error)
        return [True] * loaded + [False] * (len(keys) - loaded)

    def _load(
        self, namespace: Namespace, hashes: Sequence[bytes], take: Callable[[int, torch.Tensor], None]
    ) -> Iterator[int]:
        loaded = 0
        while loaded < len(hashes):
            # A page is verified when it is first looked at, right before it is copied.
            with namespace.acquire(hashes[loaded : loaded + BATCH_PAGES], verify=False) as leases:
                for lease in leases:
                    take(loaded, self._flat(lease))
                    loaded += 1
                    yield loaded
                if leases.stopped is not None or not leases:
                    return

    def _flat(self, lease: ReadLease) -> torch.Tensor:
        return from_dlpack(lease).view(self.page.dtype)

    def save(
        self, keys: Sequence[str], give: Callable[[int], torch.Tensor], parent: str | None
    ) -> list[bool]:
        """Stores the pages that `give` gives and that are not stored yet; which of them are, then."""
        saved: list[bool] = []
        for batch in _batches(keys):
            namespace = self._link.get()
            if namespace is None:
                break
            first = len(saved)
            before = keys[first - 1] if first > 0 else parent
            try:
                saved += self._save(namespace, batch, first, give, before)
            except KelvinError as error:
                self._link.failed("store pages", error)
                break
            if not all(saved):
                break
        return saved + [False] * (len(keys) - len(saved))

    def _save(
        self,
        namespace: Namespace,
        keys: Sequence[str],
        first: int,
        give: Callable[[int], torch.Tensor],
        parent: str | None,
    ) -> list[bool]:
        hashes = self.hashes(namespace, keys)
        keep = (self._settings.priority, self._settings.block_ttl)
        reserved = None
        if parent is not None:
            reserved = namespace.reserve(self.hashes(namespace, [parent])[0], hashes, *keep)
        if reserved is None or reserved[0] == BlockStatus.NO_PARENT:
            reserved = namespace.reserve(None, hashes, *keep)
        statuses: list[BlockStatus] = []
        filled: dict[int, WriteLease] = {}
        for at, lease in enumerate(reserved):
            if isinstance(lease, WriteLease):
                self._fill(lease, give(first + at))
                filled[at] = lease
                statuses.append(BlockStatus.RESERVED)
            else:
                statuses.append(lease)
        for at, status in zip(filled, namespace.commit(list(filled.values())), strict=True):
            statuses[at] = status
        return [status in _THERE for status in statuses]

    def _fill(self, lease: WriteLease, page: torch.Tensor) -> None:
        # In place and once, whatever the strides of the pool are.
        target = from_dlpack(lease)
        target.view(page.dtype).view(page.shape).copy_(page)

    def clear(self) -> None:
        """Drops every page."""
        namespace = self._link.get()
        if namespace is None:
            return
        try:
            namespace.evict_all()
        except KelvinError as error:
            self._link.failed("drop all pages", error)

    def close(self) -> None:
        """Ends the session."""
        self._link.close()


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), BATCH_PAGES):
        yield keys[start : start + BATCH_PAGES]


def _leading(flags: Sequence[bool]) -> int:
    return flags.index(False) if False in flags else len(flags)
