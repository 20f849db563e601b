"""A worker's half: moves whole blocks between TensorRT-LLM's pool and the store.

Payload is opaque: a block is what the pool has at its number.

# Loads
On a thread of its own, while other requests run. Rank 0 copies out of leases that the scheduler holds already. The
other ranks fetch their shards themselves, while the scheduler keeps them from being evicted; only a store that dies
just then can break what was promised, and then :class:`LoadLost` is raised: wrong bytes are never served.

# Saves
On another thread, behind the step that made the blocks; the request keeps them until it is through.

# Streams
On a GPU both threads copy on a stream of their own, behind what the executor's stream had been given when the load or
save was planned.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from tensorrt_llm._torch.pyexecutor.kv_cache_connector import KvCacheConnectorWorker

from kelvin import KelvinError
from kelvin.link import Link
from kelvin.paged import PENDING_SAVES_MAX, Load, copy_in, load_blocks, reserve_and_fill
from kelvin.trtllm import bridge as bridges
from kelvin.trtllm.bridge import Bridge
from kelvin.trtllm.identity import NO_PAGE, Pool, check, connect, settings_of_environment
from kelvin.trtllm.plan import Plan, RequestSave

if TYPE_CHECKING:
    from tensorrt_llm.llmapi.llm_args import TorchLlmArgs

logger = logging.getLogger(__name__)


class LoadLost(RuntimeError):
    """Blocks that were promised to a request can't be had any more, and TensorRT-LLM can't compute them instead."""


class _Abandoned(Exception):
    """The blocks belong to another request now."""


class KelvinWorker(KvCacheConnectorWorker):
    """One rank's blocks in a Kelvin store. Settings: :class:`kelvin.settings.Settings`, in ``KELVIN_TRTLLM``."""

    def __init__(self, llm_args: TorchLlmArgs) -> None:
        """:class:`~kelvin.trtllm.Unsupported` or :class:`ValueError` for what is not supported or misspelt."""
        super().__init__(llm_args)
        check(llm_args)
        self._args = llm_args
        self._rank: int = llm_args.parallel_config.to_mapping().tp_rank
        self._settings = settings_of_environment()
        self._link: Link | None = None
        self._bridge: Bridge | None = None
        self._pool = torch.empty(0, 0, dtype=torch.uint8)
        self._plan = Plan()
        self._loader = ThreadPoolExecutor(1, "kelvin-load")
        self._saver = ThreadPoolExecutor(1, "kelvin-save")
        self._pending_saves = threading.Semaphore(PENDING_SAVES_MAX)
        # Guards the sets below; held for the copy of a block at most.
        self._lock = threading.Lock()
        self._under_way: Counter[int] = Counter()
        self._abandoned: set[int] = set()
        self._loaded: set[int] = set()
        self._lost: dict[int, str] = {}
        # Only the executor's thread uses these.
        self._asked_loads: set[int] = set()
        self._asked_ends: set[int] = set()

    def register_kv_caches(self, kv_cache_tensor: torch.Tensor) -> None:
        """Opens the namespace of this rank's blocks.

        :class:`~kelvin.trtllm.Unsupported` for a pool whose blocks are not in one piece,
        :class:`kelvin.FingerprintMismatch` where the model is served with other blocks.
        """
        pool = Pool.of(kv_cache_tensor)
        seconds, name = self._settings.load_timeout, f"trtllm-worker-{self._rank}"
        link = Link(lambda: connect(self._args, self._settings, pool, self._rank, seconds, name))
        self._link = link
        self._pool = kv_cache_tensor.view(kv_cache_tensor.shape[0], -1).view(torch.uint8)
        if self._rank == 0:
            self._bridge = Bridge(pool)
            bridges.publish(self._args, self._bridge)
        namespace = link.get()
        logger.warning(
            "kelvin: rank %d: blocks of %d bytes; transport: %s",
            self._rank,
            pool.block_bytes,
            namespace.transport if namespace is not None else "none yet",
        )

    # Step by step

    def bind_connector_meta(self, metadata: object) -> None:
        """Takes the scheduler's plan for the next step."""
        super().bind_connector_meta(metadata)
        assert isinstance(metadata, Plan)
        unmade, self._plan = self._plan, metadata
        with self._lock:
            # What a step that did not run would have moved.
            for load in unmade.loads:
                self._lost[load.request] = "its step did not start"
            for request in unmade.requests():
                self._end(request)
            self._under_way.update(metadata.requests())
            self._abandoned.update(metadata.abandoned)

    def start_load_kv(self, stream: torch.cuda.Stream) -> None:
        """Starts the step's loads."""
        loads, self._plan.loads = self._plan.loads, []
        behind = self._behind(stream) if loads else None
        for load in loads:
            self._loader.submit(self._load, load, behind)

    def wait_for_layer_load(self, layer_idx: int, stream: torch.cuda.Stream) -> None:
        """Nothing: a request does not run before its load ended."""

    def save_kv_layer(self, layer_idx: int, stream: torch.cuda.Stream) -> None:
        """Nothing: a block is saved whole, behind the step."""

    def wait_for_save(self, stream: torch.cuda.Stream) -> None:
        """Starts the step's saves; waits for none, since the requests keep their blocks."""
        saves, self._plan.saves = self._plan.saves, []
        behind = self._behind(stream) if saves else None
        for save in saves:
            if self._pending_saves.acquire(blocking=False):
                self._saver.submit(self._save, save, behind)
            else:
                with self._lock:
                    self._end(save.request)

    def get_finished(
        self, finished_gen_req_ids: list[int], started_loading_req_ids: list[int]
    ) -> tuple[list[int], list[int]]:
        """Requests that are over and whose blocks nobody moves any more, and requests whose loads ended.

        :class:`LoadLost` where a load can't end.
        """
        self._asked_ends.update(finished_gen_req_ids)
        self._asked_loads.update(started_loading_req_ids)
        with self._lock:
            for request, reason in self._lost.items():
                if request not in self._asked_ends:
                    raise LoadLost(f"request {request}: {reason}")
            ends = {request for request in self._asked_ends if self._under_way[request] == 0}
            for request in ends:
                del self._under_way[request]
                self._abandoned.discard(request)
                self._lost.pop(request, None)
            loads = self._asked_loads & self._loaded
            self._loaded -= loads | ends
        self._asked_ends -= ends
        self._asked_loads -= loads | ends
        return sorted(ends), sorted(loads)

    def _end(self, request: int) -> None:
        """One load or save less; the lock is held."""
        self._under_way[request] -= 1

    # On threads

    def _load(self, load: Load[int], behind: torch.cuda.Event | None) -> None:
        lost = "its load failed"
        try:
            with self._ordered(behind):
                if self._fill(load) == len(load.block_ids):
                    lost = ""
                else:
                    lost = f"the store did not give its blocks within {self._settings.load_timeout} s"
        except _Abandoned:
            lost = ""
        finally:
            with self._lock:
                if lost:
                    self._lost[load.request] = lost
                else:
                    self._loaded.add(load.request)
                self._end(load.request)

    def _fill(self, load: Load[int]) -> int:
        """Fills the blocks; how many."""

        def write(block: int, source: torch.Tensor) -> None:
            with self._unless_abandoned(load.request):
                if block != NO_PAGE:
                    self._pool[block].copy_(source)

        if self._bridge is not None:
            leases = self._bridge.take(load.request)
            if leases is None:
                return 0
            with leases:
                return copy_in(leases, load.block_ids, write)
        # The scheduler has leases on these blocks, so the store is there, whatever this rank last heard of it.
        assert self._link is not None
        deadline = time.monotonic() + self._settings.load_timeout
        while namespace := self._link.wait(max(0.0, deadline - time.monotonic())):
            try:
                return load_blocks(namespace, load, write)
            except KelvinError as error:
                self._link.failed("load blocks", error)
                if not error.retryable:
                    break
        return 0

    def _save(self, planned: RequestSave, behind: torch.cuda.Event | None) -> None:
        assert self._link is not None
        namespace = self._link.get()
        try:
            if namespace is not None:
                with self._ordered(behind):
                    filled = reserve_and_fill(
                        namespace, planned.save, self._reader(planned.request), self._settings
                    )
                if filled:
                    namespace.commit(filled)
        except _Abandoned:
            logger.debug("kelvin: a save of request %d was given up", planned.request)
        except KelvinError as error:
            self._link.failed("save blocks", error)
        finally:
            self._pending_saves.release()
            with self._lock:
                self._end(planned.request)

    def _reader(self, request: int) -> Callable[[int, torch.Tensor], None]:
        def read(block: int, target: torch.Tensor) -> None:
            with self._unless_abandoned(request):
                target.copy_(self._pool[block])

        return read

    @contextmanager
    def _unless_abandoned(self, request: int) -> Iterator[None]:
        """For the copy of one block: whoever abandons a request knows that none runs after that."""
        with self._lock:
            if request in self._abandoned:
                raise _Abandoned
            yield
            if self._pool.is_cuda:
                torch.cuda.current_stream(self._pool.device).synchronize()

    # Streams

    def _behind(self, stream: torch.cuda.Stream) -> torch.cuda.Event | None:
        """What the executor's stream has been given until now; None without a GPU."""
        if not self._pool.is_cuda:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    @contextmanager
    def _ordered(self, behind: torch.cuda.Event | None) -> Iterator[None]:
        """What is copied inside waits for `behind`, and is there when this ends."""
        if behind is None:
            yield
            return
        stream = torch.cuda.Stream(self._pool.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            stream.wait_event(behind)
            yield
            stream.synchronize()

    def close(self) -> None:
        """Ends the threads and the session."""
        self._loader.shutdown(wait=True)
        self._saver.shutdown(wait=True)
        if self._bridge is not None:
            bridges.withdraw(self._bridge)
        if self._link is not None:
            self._link.close()
