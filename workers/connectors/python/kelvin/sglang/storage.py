"""The backend that SGLang's HiCache loads: its three generations of calls, on pages in a store.

A page is one block. Reads and writes copy once, between the host pool and the store's memory. What is not there, is
damaged, comes too late or belongs to a store that is away is a miss; what can never work (a pool without whole
pages, another fingerprint) is refused when SGLang attaches the backend.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolTransfer,
    PoolTransferResult,
)

from kelvin.link import Link
from kelvin.sglang.identity import KV, Page, Settings, check
from kelvin.sglang.pages import Pages

if TYPE_CHECKING:
    from sglang.srt.mem_cache.pool_host import HostKVCache

logger = logging.getLogger(__name__)


class KelvinStorage(HiCacheStorage):
    """Pages of SGLang's host pools in a Kelvin store. Settings: :class:`kelvin.sglang.identity.Settings`.

    Calls that read answer for the leading run of keys: behind the first page that can't be had, none is. That is
    all that SGLang looks at.
    """

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: dict[str, Any] | None = None) -> None:
        check(storage_config)
        self._config = storage_config
        self._settings = Settings.of(storage_config.extra_config)
        self._pools: dict[str, Pages] = {}
        self._hollow = False
        self._rates = _Rates() if storage_config.enable_storage_metrics else None

    # Pools

    def register_mem_pool_host(self, mem_pool_host: HostKVCache) -> None:
        super().register_mem_pool_host(mem_pool_host)
        # An anchor that only gives out indices: all bytes are in other pools.
        self._hollow = getattr(mem_pool_host, "kv_buffer", mem_pool_host) is None
        if not self._hollow:
            self._open(KV, mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: HostKVCache, host_pool_name: str) -> None:
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        name = str(host_pool_name)
        if name == KV and self._hollow:
            return
        self._open(name, host_pool)

    def _open(self, name: str, pool: HostKVCache) -> None:
        known = self._pools.get(name)
        if known is not None:
            if known.pool is pool:
                return
            self._pools.pop(name).close()
        page = Page.of(name, pool)
        link = Link(lambda: self._settings.connect(self._config, name, pool, page))
        pages = Pages(name, pool, page, link, self._settings)
        self._pools[name] = pages
        logger.warning(
            "kelvin: pool %s: pages of %d tokens, %d bytes; transport: %s",
            name,
            page.tokens,
            page.nbytes,
            pages.transport,
        )

    # First generation: flat tensors of the KV pool

    def get(
        self, key: str, target_location: torch.Tensor | None = None, target_sizes: Any = None
    ) -> torch.Tensor | None:
        targets = None if target_location is None else [target_location]
        return self.batch_get([key], targets)[0]

    def batch_get(
        self,
        keys: list[str],
        target_locations: Sequence[torch.Tensor] | None = None,
        target_sizes: Any = None,
    ) -> list[torch.Tensor | None]:
        found: list[torch.Tensor | None] = [None] * len(keys)

        def take(at: int, page: torch.Tensor) -> None:
            if target_locations is None:
                found[at] = page.clone()
            else:
                target = target_locations[at]
                target.view(-1).view(torch.uint8).copy_(page.view(torch.uint8))
                found[at] = target

        pages = self._pools.get(KV)
        if pages is not None:
            self._timed(True, pages, lambda: pages.load(keys, take))
        return found

    def set(
        self,
        key: str,
        value: torch.Tensor | None = None,
        target_location: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        return value is not None and self.batch_set([key], [value])

    def batch_set(
        self,
        keys: list[str],
        values: Sequence[torch.Tensor] | None = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        pages = self._pools.get(KV)
        if values is None or pages is None:
            return False
        if any(value.nbytes != pages.page.nbytes for value in values):
            logger.error("kelvin: a page of %d bytes is expected, and another was given", pages.page.nbytes)
            return False
        return all(self._timed(False, pages, lambda: pages.save(keys, lambda at: values[at], None)))

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        """Pages of the leading run of `keys` that is stored."""
        if self._hollow:
            return len(keys)
        pages = self._pools.get(KV)
        return 0 if pages is None else pages.run(keys)

    # Second generation: straight from and into the KV pool

    def batch_get_v1(
        self,
        keys: list[str],
        host_indices: torch.Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        if self._hollow:
            return [True] * len(keys)
        return self._load(KV, keys, host_indices)

    def batch_set_v1(
        self,
        keys: list[str],
        host_indices: torch.Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        if self._hollow:
            return [True] * len(keys)
        return self._save(KV, keys, host_indices, extra_info)

    # Third generation: several pools

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        """The lengths at which every pool can be restored: each is a number of pages from the start of `keys`."""
        kv_pages = self.batch_exists(keys, extra_info)
        hits = {KV: kv_pages} if kv_pages else {}
        lengths = set(range(1, kv_pages + 1))
        for transfer in pool_transfers or []:
            if not lengths:
                break
            name = str(transfer.name)
            if transfer.hit_policy == PoolHitPolicy.BLOCK_GROUPS:
                hits[name] = min(kv_pages, self._grouped_pages(name, transfer))
                continue
            able = self._able_lengths(name, transfer, keys[:kv_pages])
            if able:
                hits[name] = max(able)
            lengths &= able
        return PoolTransferResult(max(lengths, default=0), hits, sorted(lengths))

    def _able_lengths(self, name: str, transfer: PoolTransfer, keys: list[str]) -> set[int]:
        """Prefixes of `keys` for which a pool has what its policy wants."""
        pages = self._pool(name)
        if pages is None:
            return set()
        if transfer.hit_policy == PoolHitPolicy.ALL_PAGES:
            return set(range(1, pages.run(keys) + 1))
        if transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
            window = max(1, len(transfer.keys or ()))
            able, run = set(), 0
            for length, present in enumerate(pages.present(keys), 1):
                run = run + 1 if present else 0
                if run >= min(window, length):
                    able.add(length)
            return able
        raise ValueError(f"pool {name!r}: this version knows no hit policy {transfer.hit_policy!r}")

    def _grouped_pages(self, name: str, transfer: PoolTransfer) -> int:
        """Pages that the leading whole groups of a pool cover."""
        if transfer.block_pages <= 0 or transfer.group_pages <= 0:
            raise ValueError(
                f"pool {name!r}: groups of {transfer.group_pages} keys for {transfer.block_pages} pages"
            )
        pages = self._pool(name)
        if pages is None:
            return 0
        return pages.run(transfer.keys or []) // transfer.group_pages * transfer.block_pages

    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        return {
            transfer.name: self._load(str(transfer.name), transfer.keys or [], transfer.host_indices)
            for transfer in transfers
        }

    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        return {
            transfer.name: self._save(
                str(transfer.name), transfer.keys or [], transfer.host_indices, extra_info
            )
            for transfer in transfers
        }

    # What they share

    def _pool(self, name: str) -> Pages | None:
        pages = self._pools.get(name)
        if pages is None:
            logger.error("kelvin: pool %s was never registered: all its pages are misses", name)
        return pages

    def _load(self, name: str, keys: list[str], host_indices: torch.Tensor | None) -> list[bool]:
        pages = self._pool(name)
        starts = None if pages is None else _starts(pages, keys, host_indices)
        if pages is None or starts is None:
            return [False] * len(keys)
        pool = pages.pool
        return self._timed(
            True,
            pages,
            lambda: pages.load(keys, lambda at, page: pool.set_from_flat_data_page(starts[at], page)),
        )

    def _save(
        self,
        name: str,
        keys: list[str],
        host_indices: torch.Tensor | None,
        extra_info: HiCacheStorageExtraInfo | None,
    ) -> list[bool]:
        pages = self._pool(name)
        starts = None if pages is None else _starts(pages, keys, host_indices)
        if pages is None or starts is None:
            return [False] * len(keys)
        prefix = (extra_info.prefix_keys if extra_info is not None else None) or [None]
        pool = pages.pool
        return self._timed(
            False,
            pages,
            lambda: pages.save(keys, lambda at: pool.get_data_page(starts[at], flat=False), prefix[-1]),
        )

    def _timed(self, reading: bool, pages: Pages, call: Callable[[], list[bool]]) -> list[bool]:
        start = time.perf_counter()
        done = call()
        if self._rates is not None and pages.name == KV:
            self._rates.note(reading, sum(done), pages.page.nbytes, time.perf_counter() - start)
        return done

    def clear(self) -> None:
        """Drops this rank's pages of the model, of every engine that shares them."""
        for pages in self._pools.values():
            pages.clear()

    def get_stats(self) -> Any:
        """Pages moved and gigabytes a second since the last call, as SGLang's metrics have them."""
        return None if self._rates is None else self._rates.take()

    def close(self) -> None:
        """Ends the sessions with the store."""
        for pages in self._pools.values():
            pages.close()


def _starts(pages: Pages, keys: list[str], host_indices: torch.Tensor | None) -> list[int] | None:
    """Where each page begins in its pool; None where SGLang's indices do not fit its keys."""
    tokens = pages.page.tokens
    given = 0 if host_indices is None else host_indices.numel()
    if host_indices is None or given != len(keys) * tokens:
        logger.error("kelvin: pool %s: %d indices for %d pages of %d", pages.name, given, len(keys), tokens)
        return None
    return host_indices[::tokens].tolist()


class _Rates:
    """What SGLang's `StorageMetrics` asks for. Not exact when threads meet, like those of its own backends."""

    def __init__(self) -> None:
        self._notes: dict[bool, list[tuple[int, float]]] = {True: [], False: []}

    def note(self, reading: bool, pages: int, page_bytes: int, seconds: float) -> None:
        """A call that moved so many pages."""
        if pages and len(self._notes[reading]) < 10_000:
            self._notes[reading].append((pages, pages * page_bytes / 1e9 / max(seconds, 1e-9)))

    def take(self) -> Any:
        """The calls since the last time."""
        from sglang.srt.observability.metrics_collector import StorageMetrics

        metrics = StorageMetrics()
        notes, self._notes = self._notes, {True: [], False: []}
        for pages, rate in notes[True]:
            metrics.prefetch_pgs.append(pages)
            metrics.prefetch_bandwidth.append(rate)
        for pages, rate in notes[False]:
            metrics.backup_pgs.append(pages)
            metrics.backup_bandwidth.append(rate)
        return metrics
