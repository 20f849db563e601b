"""Pages of one host pool, in a namespace of their own, by SGLang's keys: :mod:`kelvin.opaque` with tensors.

SGLang names a page by a hash of everything up to its end, as text. A page's parent is the page before it; SGLang
says which that is with ``hicache_storage_pass_prefix_keys``, and pools that keep only the end of a prefix have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch.utils.dlpack import from_dlpack

from kelvin import Namespace, ReadLease, WriteLease
from kelvin.link import Link
from kelvin.opaque import OpaqueBlocks
from kelvin.sglang.identity import Page, Settings

if TYPE_CHECKING:
    from sglang.srt.mem_cache.pool_host import HostKVCache


class Pages:
    """Whatever the store can't do now is a miss; no call here raises because of it."""

    def __init__(self, name: str, pool: HostKVCache, page: Page, link: Link, settings: Settings) -> None:
        self.name = name
        self.pool = pool
        self.page = page
        self._link = link
        self._blocks = OpaqueBlocks(
            link, page.tokens, priority=settings.priority, block_ttl=settings.block_ttl, what="pages"
        )

    @property
    def transport(self) -> str:
        """How payload moves now."""
        return self._blocks.transport

    def hashes(self, namespace: Namespace, keys: Sequence[str]) -> list[bytes]:
        """The store's hashes of SGLang's keys."""
        return self._blocks.hashes(namespace, _encoded(keys))

    def run(self, keys: Sequence[str]) -> int:
        """Pages of the leading run that is stored."""
        return self._blocks.run(_encoded(keys))

    def present(self, keys: Sequence[str]) -> list[bool]:
        """Which pages are stored."""
        return self._blocks.present(_encoded(keys))

    def load(self, keys: Sequence[str], take: Callable[[int, torch.Tensor], None]) -> list[bool]:
        """Gives the pages of the leading run that is stored to `take`, flat and for as long as that lasts."""

        def flat(at: int, lease: ReadLease) -> None:
            take(at, from_dlpack(lease).view(self.page.dtype))

        return self._blocks.load(_encoded(keys), flat)

    def save(
        self, keys: Sequence[str], give: Callable[[int], torch.Tensor], parent: str | None
    ) -> list[bool]:
        """Stores the pages that `give` gives and that are not stored yet; which of them are, then."""

        def fill(at: int, lease: WriteLease) -> None:
            # In place and once, whatever the strides of the pool are.
            page = give(at)
            from_dlpack(lease).view(page.dtype).view(page.shape).copy_(page)

        return self._blocks.save(_encoded(keys), fill, None if parent is None else parent.encode())

    def clear(self) -> None:
        """Drops every page."""
        self._blocks.clear()

    def close(self) -> None:
        """Ends the session."""
        self._blocks.close()


def _encoded(keys: Sequence[str]) -> list[bytes]:
    return [key.encode() for key in keys]
