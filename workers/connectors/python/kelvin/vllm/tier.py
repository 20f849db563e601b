"""A secondary tier for vLLM's native KV offloading (`TieringOffloadingSpec`): chunks in a Kelvin store.

vLLM copies between its device and its primary tier in host memory; the tier copies between that memory and the store.

# Calls
The scheduler's thread only notes and submits. Lookups go by vLLM's own `AsyncLookupManager`, one question a step;
jobs run on a few threads and end `job_timeout` after they were submitted at the latest, done or not: a batch begun in
time still takes up to a call's timeout. A store that is away, hung, or has a damaged chunk makes misses and failed
jobs, which vLLM recomputes; when it is back it is used again.

# Keys
vLLM names a chunk by the hash of its last block, which has all before it in it (tokens, LoRA, images, salt), and the
cache group. The store's hash is made of the whole name, see :mod:`kelvin.opaque`. A chunk's parent is the chunk before
it in its request and group. Names are stable over processes where vLLM's block hashes are: with `sha256` and
`sha256_cbor` always, with `xxhash` and `xxhash_cbor` where PYTHONHASHSEED is set.

# Bytes
A chunk is the whole row of the primary tier: what all ranks have of it, so there is one namespace whatever the
number of ranks, and other numbers of ranks are other layouts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    get_offload_group_idx,
)
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.base import JobId, JobResult, SecondaryTierManager, TransferJob

from kelvin import ReadLease, WriteLease
from kelvin.link import Link
from kelvin.opaque import OpaqueBlocks
from kelvin.vllm.tier_identity import TierSettings

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingSpec
    from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector

logger = logging.getLogger(__name__)


class KelvinTier(SecondaryTierManager):
    """Chunks in a Kelvin store. Settings: :class:`kelvin.vllm.tier_identity.TierSettings`.

    Refused at start, with :class:`kelvin.FingerprintMismatch`, is another fingerprint than that of a running engine
    under the same model name; unknown settings with :class:`ValueError`. A store that is away is waited for in the
    background.
    """

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: BackpressureDetector | None = None,
        locality: str | None = None,
        **settings: Any,
    ) -> None:
        """As vLLM's factory calls it; `settings` and `locality` (``LOCAL`` or ``REMOTE``) are the tier's entry."""
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = Locality(locality) if locality is not None else None
        self._settings = TierSettings.of(settings)
        config = offloading_spec.config
        chunk_bytes = self.block_size_bytes
        self._chunk_tokens = {
            group.group_id: group.tokens_per_block * config.cache.blocks_per_chunk for group in config.groups
        }

        def blocks(timeout: float, name: str) -> OpaqueBlocks:
            link = Link(lambda: self._settings.connect(config, chunk_bytes, timeout, name))
            return OpaqueBlocks(
                link,
                self._settings.block_tokens(config),
                priority=self._settings.priority,
                block_ttl=self._settings.block_ttl,
                what="chunks",
            )

        self._found = blocks(self._settings.lookup_timeout, "vllm-tier-lookup")
        try:
            self._moved = blocks(self._settings.call_timeout, "vllm-tier")
        except Exception:
            self._found.close()
            raise
        self._lookups = _Lookups(self._found, tier_type)
        self._loader = ThreadPoolExecutor(self._settings.load_threads, "kelvin-tier-load")
        self._storer = ThreadPoolExecutor(self._settings.store_threads, "kelvin-tier-store")
        self._stores = threading.Semaphore(self._settings.stores_max)
        self._running: set[Future[None]] = set()
        self._finished: deque[JobResult] = deque()
        # Of loads that failed: what vLLM must not be told to be there again.
        self._missing: dict[JobId, Sequence[OffloadKey]] = {}
        # [chunks, bytes]; given up at shutdown, since vLLM then releases the memory behind it.
        self._rows: np.ndarray | None = np.asarray(primary_kv_view).view(np.uint8)
        logger.warning(
            "kelvin: tier %s: chunks of %s tokens, %d bytes; transport: %s",
            tier_type,
            "/".join(map(str, sorted(set(self._chunk_tokens.values())))),
            chunk_bytes,
            self._moved.transport,
        )

    # Scheduler's thread

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        found = self._lookups.lookup(key, req_context)
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._lookups.flush()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._lookups.cleanup(req_context.req_id)

    def submit_store(self, job_metadata: TransferJob) -> None:
        if not self._stores.acquire(blocking=False):
            # The primary tier's chunks are held as long as a store waits; dropped, it is only a future miss.
            self._finished.append(JobResult(job_metadata.job_id, success=False))
            return
        # Here, because the scheduler goes on writing where the positions are.
        runs = chain(job_metadata, self._chunk_tokens)
        self._submit(self._storer, job_metadata, lambda until: self._store(runs, until))

    def submit_load(self, job_metadata: TransferJob) -> None:
        self._submit(self._loader, job_metadata, lambda until: self._load(job_metadata, until))

    def get_finished_jobs(self) -> Iterable[JobResult]:
        results = []
        while self._finished:
            result = self._finished.popleft()
            self._lookups.mark_miss(self._missing.pop(result.job_id, ()))
            results.append(result)
        return results

    def drain_jobs(self) -> None:
        wait(list(self._running))

    def shutdown(self) -> None:
        """Ends the threads, after what they do at the moment, and the sessions."""
        for threads in (self._loader, self._storer):
            threads.shutdown(wait=True, cancel_futures=True)
        self._lookups.shutdown()
        self._rows = None
        self._found.close()
        self._moved.close()

    # Jobs' threads

    def _submit(
        self, threads: ThreadPoolExecutor, job: TransferJob, work: Callable[[float], list[bool]]
    ) -> None:
        future = threads.submit(self._run, job, work)
        self._running.add(future)
        future.add_done_callback(self._running.discard)

    def _run(self, job: TransferJob, work: Callable[[float], list[bool]]) -> None:
        start = time.monotonic()
        done: list[bool] = []
        try:
            done = work(job.submit_time + self._settings.job_timeout)
        except Exception:
            # A job without a result would hold vLLM's chunks for ever.
            logger.exception("kelvin: job %d", job.job_id)
        finally:
            keys = list(job.keys)
            done += [False] * (len(keys) - len(done))
            there = [key for key, good in zip(keys, done, strict=True) if good]
            if job.is_promotion:
                if len(there) < len(keys):
                    self._missing[job.job_id] = [
                        key for key, good in zip(keys, done, strict=True) if not good
                    ]
            else:
                self._stores.release()
            self._finished.append(
                JobResult(
                    job_id=job.job_id,
                    success=len(there) == len(keys),
                    successful_keys=there if job.is_promotion and there else None,
                    transfer_time=time.monotonic() - start,
                    transfer_bytes=len(there) * self.block_size_bytes,
                )
            )

    def _load(self, job: TransferJob, until: float) -> list[bool]:
        """The leading run of the job's chunks that is stored; which those are."""
        rows = self._rows
        if rows is None:
            return []

        def take(at: int, lease: ReadLease) -> None:
            np.copyto(rows[job.chunk_ids[at]], np.frombuffer(memoryview(lease), np.uint8))

        return self._moved.load(list(job.keys), take, until)

    def _store(self, runs: list[Run], until: float) -> list[bool]:
        """In the order of the job's keys, which of them are stored then."""
        rows = self._rows
        done: dict[int, bool] = {}
        for run in runs if rows is not None else ():

            def give(at: int, lease: WriteLease, run: Run = run) -> None:
                assert rows is not None
                lease.fill(rows[run.chunk_ids[at]])

            saved = self._moved.save(run.keys, give, run.parent, until)
            done.update(zip(run.places, saved, strict=True))
        return [done[place] for place in sorted(done)]


class Run:
    """Chunks of a job that follow one another in their request."""

    def __init__(self) -> None:
        self.parent: OffloadKey | None = None
        """The chunk before the first, where vLLM says which that is."""
        self.keys: list[OffloadKey] = []
        self.chunk_ids: list[int] = []
        self.places: list[int] = []
        """Of each in the job."""


def chain(job: TransferJob, chunk_tokens: dict[int, int]) -> list[Run]:
    """Cuts a job's chunks into runs, by the positions that vLLM's scheduler noted for the request's keys.

    `chunk_tokens` are each group's tokens a chunk. Chunks without a position (of requests that came from elsewhere)
    are runs of their own.
    """
    context = job.req_context
    keys = list(job.keys)
    positions = [context.get_offload_key_position(key) for key in keys]
    runs: list[Run] = []
    last: dict[int, tuple[int, Run]] = {}
    firsts: dict[tuple[int, int], Run] = {}
    for place in sorted(range(len(keys)), key=lambda place: positions[place] or 0):
        key, position = keys[place], positions[place]
        group = get_offload_group_idx(key)
        before = None if position is None or group not in chunk_tokens else position - chunk_tokens[group]
        known = last.get(group)
        if before is not None and known is not None and known[0] == before:
            run = known[1]
        else:
            run = Run()
            runs.append(run)
            if before:
                firsts[group, before] = run
        if position is not None:
            last[group] = (position, run)
        run.keys.append(key)
        run.chunk_ids.append(int(job.chunk_ids[place]))
        run.places.append(place)
    _find_parents(context, firsts)
    return runs


def _find_parents(context: ReqContext, firsts: dict[tuple[int, int], Run]) -> None:
    """Gives runs the chunk that ends at a position of a group, where the request has one."""
    # Not public in vLLM 0.32, which only gives the position of a key and not the key at a position. The chunks before
    # those of a job were mostly noted right before them.
    noted: dict[OffloadKey, int] = getattr(context, "_offload_key_positions", {})
    for key, position in reversed(noted.items()):
        if not firsts:
            return
        run = firsts.pop((get_offload_group_idx(key), position), None)
        if run is not None:
            run.parent = key


class _Lookups(AsyncLookupManager):
    """vLLM's bookkeeping of lookups, with the store's answers."""

    def __init__(self, blocks: OpaqueBlocks, tier_type: str) -> None:
        self._blocks = blocks
        super().__init__(tier_type)

    def batch_lookup(self, keys: list[OffloadKey], req_context: ReqContext) -> Iterable[bool]:
        return self._blocks.present(keys)
