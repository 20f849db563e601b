"""The storage backend that LMCache loads: chunks of one rank in a Kelvin store.

A full chunk is one block. Bytes are copied once, between LMCache's memory and the store's. What is not there, is
damaged, comes too late or belongs to a store that is away is a miss; what can never work (chunks by layer, another
fingerprint) is refused when LMCache makes the backend, which logs it and goes on without.

# Keys
The store's hash is made of LMCache's whole key (model, ranks, hash of the chunk, type, tags), see
:mod:`kelvin.opaque`. Hashes of chunks are the same in other processes with `pre_caching_hash_algorithm: sha256_cbor`,
or with PYTHONHASHSEED set.

# Parents
LMCache does not say which chunk is before the first that it gives; mostly it asked for both in one question before,
so the backend remembers some of those.

# Threads
LMCache calls from its own threads and from its event loop; questions and loads that are awaited run on threads of
their own, and so do stores, one at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from lmcache.v1.memory_management import MemoryFormat, MemoryObj
from lmcache.v1.storage_backend.abstract_backend import StoragePluginInterface

from kelvin import ReadLease, WriteLease
from kelvin.link import Link
from kelvin.lmcache.identity import Chunk, Settings
from kelvin.opaque import OpaqueBlocks

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey
    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.metadata import LMCacheMetadata
    from lmcache.v1.storage_backend.abstract_backend import AllocatorBackendInterface
    from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend

logger = logging.getLogger(__name__)

PARENTS_MOST = 16_384
"""Chunks whose parent is remembered."""


class KelvinBackend(StoragePluginInterface):
    """LMCache's chunks in a Kelvin store. Settings: :class:`kelvin.lmcache.identity.Settings`.

    Raises :class:`kelvin.lmcache.Unsupported`, :class:`kelvin.FingerprintMismatch`, and :class:`ValueError` for
    settings that are not known. A store that is away is waited for in the background.
    """

    def __init__(
        self,
        config: LMCacheEngineConfig | None = None,
        metadata: LMCacheMetadata | None = None,
        local_cpu_backend: LocalCPUBackend | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        dst_device: str = "cpu",
    ) -> None:
        super().__init__(dst_device, config, metadata, local_cpu_backend, loop)
        if config is None or metadata is None:
            raise ValueError("a storage plug-in needs LMCache's config and metadata")
        self._metadata = metadata
        self._settings = settings = Settings.of(config.extra_config)
        self._chunk = chunk = Chunk.of(config, metadata)
        role = f"lmcache-{metadata.role or 'worker'}-{metadata.worker_id}"

        def blocks(timeout: float, name: str) -> OpaqueBlocks:
            link = Link(lambda: settings.connect(metadata, chunk, timeout, name))
            return OpaqueBlocks(
                link, chunk.tokens, priority=settings.priority, block_ttl=settings.block_ttl, what="chunks"
            )

        self._found = blocks(settings.lookup_timeout, f"{role}-lookup")
        try:
            self._moved = blocks(settings.call_timeout, role)
        except Exception:
            self._found.close()
            raise
        self._parents = _Parents()
        self._loader = ThreadPoolExecutor(settings.load_threads, "kelvin-lmcache-load")
        self._storer = ThreadPoolExecutor(1, "kelvin-lmcache-store")
        self._stores = threading.Semaphore(settings.stores_max)
        self._lock = threading.Lock()
        self._storing: set[CacheEngineKey] = set()
        self._told_of_size = False
        logger.warning(
            "kelvin: %s: chunks of %d tokens, %d bytes; transport: %s",
            role,
            chunk.tokens,
            chunk.nbytes,
            self._moved.transport,
        )

    # Questions

    def contains(self, key: CacheEngineKey, pin: bool = False) -> bool:
        """Whether a chunk is stored. Nothing is pinned: one that goes before it is loaded is a miss."""
        return self.batched_contains([key], pin) == 1

    def batched_contains(self, keys: list[CacheEngineKey], pin: bool = False) -> int:
        """Chunks of the leading run that is stored."""
        named = _named(keys)
        self._parents.note(named)
        return self._found.run(named)

    async def batched_async_contains(
        self, lookup_id: str, keys: list[CacheEngineKey], pin: bool = False
    ) -> int:
        """As :meth:`batched_contains`."""
        return await asyncio.wrap_future(self._loader.submit(self.batched_contains, keys, pin))

    def exists_in_put_tasks(self, key: CacheEngineKey) -> bool:
        with self._lock:
            return key in self._storing

    # Loads

    def get_blocking(self, key: CacheEngineKey) -> MemoryObj | None:
        return self.batched_get_blocking([key])[0]

    def batched_get_blocking(self, keys: list[CacheEngineKey]) -> list[MemoryObj | None]:
        """The chunks of the leading run that is stored, in LMCache's memory; None for the others."""
        loaded: list[MemoryObj | None] = [*self._load(keys)]
        return loaded + [None] * (len(keys) - len(loaded))

    async def batched_get_non_blocking(
        self, lookup_id: str, keys: list[CacheEngineKey], transfer_spec: Any = None
    ) -> list[MemoryObj]:
        """The chunks of the leading run that is stored, in LMCache's memory."""
        future = self._loader.submit(self._load, keys)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_give_back)
            raise

    def get_non_blocking(self, key: CacheEngineKey, location: str | None = None) -> Future[MemoryObj | None]:
        return self._loader.submit(self.get_blocking, key)

    def _load(self, keys: Sequence[CacheEngineKey]) -> list[MemoryObj]:
        loaded: list[MemoryObj] = []
        memory = self.local_cpu_backend
        if memory is None:
            return loaded
        shapes, dtypes = self._metadata.get_shapes(), self._metadata.get_dtypes()
        form = MemoryFormat.KV_MLA_FMT if self._metadata.use_mla else MemoryFormat.KV_2LTD

        def take(at: int, lease: ReadLease) -> None:
            # Verified here, so that nothing is left to fail behind the allocation.
            source = np.frombuffer(lease, np.uint8)
            # Without waiting for memory: the store's is held meanwhile, and a miss is no harm.
            target = memory.allocate(shapes, dtypes, form, busy_loop=False)
            if target is None:
                raise _NoPlace
            if not self._fits(target):
                target.ref_count_down()
                raise _NoPlace
            np.copyto(np.frombuffer(target.byte_array, np.uint8), source)
            loaded.append(target)

        named = _named(keys)
        self._parents.note(named)
        try:
            self._moved.load(named, take, time.monotonic() + self._settings.load_timeout)
        except _NoPlace:
            logger.warning(
                "kelvin: LMCache has no place for %d of %d chunks", len(keys) - len(loaded), len(keys)
            )
        return loaded

    # Stores

    def batched_submit_put_task(
        self,
        keys: Sequence[CacheEngineKey],
        objs: list[MemoryObj],
        transfer_spec: Any = None,
        on_complete_callback: Callable[[CacheEngineKey], None] | None = None,
    ) -> list[Future[None]] | None:
        """Stores full chunks in the background; None where nothing is.

        Dropped, which only costs later hits: chunks of another size than a full one, those on their way already,
        and stores when too many wait. `on_complete_callback` is called for each chunk that is stored then.
        """
        if not self._stores.acquire(blocking=False):
            return None
        # Not sure: LMCache leaves out what it has no memory for.
        self._parents.note(_named(keys), sure=False)
        wanted: dict[CacheEngineKey, MemoryObj] = {}
        with self._lock:
            for key, obj in zip(keys, objs, strict=False):
                if key not in self._storing and self._fits(obj):
                    self._storing.add(key)
                    obj.ref_count_up()
                    wanted[key] = obj
        until = time.monotonic() + self._settings.store_timeout
        try:
            if wanted:
                return [self._storer.submit(self._store, wanted, until, on_complete_callback)]
        except RuntimeError:
            logger.debug("kelvin: a store after the end")
        self._let_go(wanted)
        return None

    async def async_batched_submit_put_task(
        self,
        keys: Sequence[CacheEngineKey],
        objs: list[MemoryObj],
        transfer_spec: Any = None,
        on_complete_callback: Callable[[CacheEngineKey], None] | None = None,
    ) -> None:
        """As :meth:`batched_submit_put_task`."""
        self.batched_submit_put_task(keys, objs, transfer_spec, on_complete_callback)

    def _fits(self, obj: MemoryObj) -> bool:
        if obj.get_size() == self._chunk.nbytes:
            return True
        if not self._told_of_size:
            self._told_of_size = True
            logger.warning(
                "kelvin: a chunk of %d bytes is neither stored nor loaded: full ones have %d",
                obj.get_size(),
                self._chunk.nbytes,
            )
        return False

    def _store(
        self,
        wanted: dict[CacheEngineKey, MemoryObj],
        until: float,
        on_complete: Callable[[CacheEngineKey], None] | None,
    ) -> None:
        keys, objs = list(wanted), list(wanted.values())
        named = _named(keys)
        saved: list[bool] = []

        try:
            for first, end in self._parents.runs(named):

                def give(at: int, lease: WriteLease, first: int = first) -> None:
                    lease.fill(np.frombuffer(objs[first + at].byte_array, np.uint8))

                parent = self._parents.of(named[first])
                saved += self._moved.save(named[first:end], give, parent, until)
        except Exception:
            # Nobody looks at the future.
            logger.exception("kelvin: store %d chunks", len(keys))
        finally:
            self._let_go(wanted)
        if on_complete is None:
            return
        for key, good in zip(keys, saved, strict=False):
            if good:
                try:
                    on_complete(key)
                except Exception:
                    logger.exception("kelvin: LMCache's callback")

    def _let_go(self, wanted: dict[CacheEngineKey, MemoryObj]) -> None:
        with self._lock:
            self._storing.difference_update(wanted)
        for obj in wanted.values():
            obj.ref_count_down()
        self._stores.release()

    # The rest

    def pin(self, key: CacheEngineKey) -> bool:
        """Nothing: see :meth:`contains`."""
        return True

    def unpin(self, key: CacheEngineKey) -> bool:
        """Nothing: see :meth:`contains`."""
        return True

    def remove(self, key: CacheEngineKey, force: bool = True) -> bool:
        """Drops a chunk and those behind it, which are of no use without it. Whether there was one."""
        (named,) = _named([key])
        return self._found.drop(named) > 0

    def clear(self) -> int:
        """Drops every chunk of this model and rank, of every engine that shares them; how many tokens those are."""
        return self._found.clear() * self._chunk.tokens

    def touch_cache(self) -> None:
        """Nothing: the store knows what is used."""

    def get_allocator_backend(self) -> AllocatorBackendInterface:
        """LMCache's own memory."""
        if self.local_cpu_backend is None:
            raise RuntimeError("LMCache's scheduler has no memory for chunks")
        return self.local_cpu_backend

    def close(self) -> None:
        """Ends the threads, after what they do at the moment, and the sessions."""
        self._loader.shutdown(wait=True, cancel_futures=True)
        self._storer.shutdown(wait=True)
        self._found.close()
        self._moved.close()


class _NoPlace(Exception):
    """LMCache has no memory for a chunk, or wants one of another size."""


class _Parents:
    """Which chunk is before which, of those that were last named in one breath. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parents: OrderedDict[bytes, bytes] = OrderedDict()

    def note(self, named: Sequence[bytes], sure: bool = True) -> None:
        """Chunks that follow one another, or likely do."""
        with self._lock:
            for parent, child in itertools.pairwise(named):
                if sure:
                    self._parents[child] = parent
                else:
                    self._parents.setdefault(child, parent)
                self._parents.move_to_end(child)
            while len(self._parents) > PARENTS_MOST:
                self._parents.popitem(last=False)

    def of(self, named: bytes) -> bytes | None:
        """The chunk before this one, where that is known."""
        with self._lock:
            return self._parents.get(named)

    def runs(self, named: Sequence[bytes]) -> list[tuple[int, int]]:
        """Where chunks follow one another: first and end of each run."""
        with self._lock:
            cuts = [
                at
                for at in range(1, len(named))
                if self._parents.get(named[at], named[at - 1]) != named[at - 1]
            ]
        return list(itertools.pairwise([0, *cuts, len(named)])) if named else []


def _named(keys: Sequence[CacheEngineKey]) -> list[bytes]:
    return [key.to_string().encode() for key in keys]


def _give_back(future: Future[list[MemoryObj]]) -> None:
    """Of a load that nobody waits for any more."""
    try:
        for obj in future.result():
            obj.ref_count_down()
    except CancelledError:
        pass
