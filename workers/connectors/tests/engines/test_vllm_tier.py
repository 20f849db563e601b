"""The tier under vLLM's real tiering manager, primary tier and factory, over a real store.

vLLM copies between its device and the primary tier only on GPUs: that copy is a double here (`Offloading.offload`,
`Offloading.restore`), as what the scheduler does with the manager is.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import kelvin

pytest.importorskip("vllm")

import numpy as np
from vllm.v1.kv_offload.base import (
    LookupResult,
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import TransferJob
from vllm.v1.kv_offload.tiering.manager import TieringOffloadingManager
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

from kelvin.vllm.tier import KelvinTier, chain
from stores import Store
from test_namespace import eventually
from test_vllm import damage

TOKENS = 16
CHUNK_BYTES = 2 * os.sysconf("SC_PAGE_SIZE")
CHUNKS = 32
PATIENT = {"lookup_timeout": 10.0, "call_timeout": 10.0, "job_timeout": 60.0}
HASTY = {"lookup_timeout": 0.3, "call_timeout": 0.3, "job_timeout": 2.0}
"""Timeouts towards stores that answer, and those that do not."""

_numbers = iter(range(1 << 30))


def keys(first: int, last: int, group: int = 0) -> list[OffloadKey]:
    return [make_offload_key(number.to_bytes(32, "big"), group) for number in range(first, last)]


def config(served: str, url: str, changes: dict[str, Any], tier: dict[str, Any]) -> OffloadingConfig:
    fields: dict[str, Any] = {
        "groups": (OffloadingGroupConfig(TOKENS, ("a", "b"), 0),),
        "worker_kv_bytes_per_block": CHUNK_BYTES,
        "enable_kv_cache_events": False,
        "extra_config": {
            "cpu_bytes_to_use": CHUNKS * CHUNK_BYTES,
            "secondary_tiers": [
                {
                    "type": "KelvinTier",
                    "module_path": "kelvin.vllm.tier",
                    "url": url,
                    "locality": "LOCAL",
                    **PATIENT,
                    **tier,
                }
            ],
        },
        "engine_id": f"kelvin-test-{os.getpid()}-{next(_numbers)}",
        "model": OffloadingModelConfig(served, "bfloat16"),
        "cache": OffloadingCacheConfig(TOKENS, 1),
        "parallel": OffloadingParallelConfig(0, 1, 1, 1, 1, 1, 0, 1, None, False),
        "kv_cache_layout": "LBHNC",
    }
    return OffloadingConfig(**{**fields, **changes})


class Offloading:
    """An engine's native offloading, with what its scheduler and its worker do."""

    def __init__(self, served: str, store: Store, changes: dict[str, Any] | None = None, **tier: Any) -> None:
        spec = TieringOffloadingSpec(config(served, store.url, changes or {}, tier))
        manager = spec.get_manager()
        assert isinstance(manager, TieringOffloadingManager)
        self.manager = manager
        (self.tier,) = manager.secondary_tiers
        assert isinstance(self.tier, KelvinTier)
        _open.append(self)
        self._rows = np.asarray(manager.primary_tier.get_kv_memoryview()).view(np.uint8)
        assert self._rows.shape == (CHUNKS, CHUNK_BYTES)

    def request(self, chain_of: list[OffloadKey]) -> ReqContext:
        context = ReqContext(f"r{next(_numbers)}")
        for number, key in enumerate(chain_of, 1):
            context.set_offload_key_position(key, number * TOKENS)
        self.manager.on_new_request(context)
        return context

    def step(self) -> None:
        self.manager.on_schedule_end(ScheduleEndContext((), ()))

    def idle(self) -> None:
        """Steps until no job runs."""

        def idle() -> bool:
            self.step()
            return not self.manager.has_pending_work()

        eventually(idle, 60)

    def offload(self, wanted: list[OffloadKey], context: ReqContext) -> None:
        """What a request computed goes to the primary tier, and from there to the store."""
        prepared = self.manager.prepare_store(wanted, context)
        assert prepared is not None
        for key, chunk in zip(prepared.keys_to_store, prepared.store_spec.chunk_ids, strict=True):
            self._rows[chunk] = payload(key)
        self.manager.complete_store(prepared.keys_to_store, context)

    def hits(self, wanted: list[OffloadKey], context: ReqContext) -> int:
        """Chunks of the leading run that can be restored, as vLLM's scheduler asks: again until it is certain."""
        found = [0]

        def certain() -> bool:
            results = []
            for key in wanted:
                results.append(self.manager.lookup(key, context))
                if results[-1] is LookupResult.MISS:
                    break
            self.step()
            found[0] = sum(result is LookupResult.HIT for result in results)
            return not {LookupResult.RETRY, LookupResult.HIT_PENDING} & set(results)

        eventually(certain, 60)
        return found[0]

    def restore(self, wanted: list[OffloadKey], context: ReqContext) -> None:
        """From the primary tier to the device: the bytes are right."""
        loaded = self.manager.prepare_load(wanted, context)
        for key, chunk in zip(wanted, loaded.chunk_ids, strict=True):
            assert np.array_equal(self._rows[chunk], payload(key))
        self.manager.complete_load(wanted, context)

    def ask(self, wanted: list[OffloadKey]) -> int:
        """A new request with this prefix: chunks that were there, and had the right bytes."""
        context = self.request(wanted)
        count = self.hits(wanted, context)
        self.restore(wanted[:count], context)
        self.manager.on_request_finished(context)
        return count

    def compute(self, wanted: list[OffloadKey]) -> None:
        """A new request that computes all of this prefix."""
        context = self.request(wanted)
        self.offload(wanted, context)
        self.manager.on_request_finished(context)
        self.idle()

    def close(self) -> None:
        if self in _open:
            _open.remove(self)
            del self._rows
            self.manager.shutdown()


_open: list[Offloading] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """The memory of an engine that a failed test left open would outlive the process."""
    yield
    while _open:
        _open[-1].close()


def payload(key: OffloadKey) -> np.ndarray:
    return np.random.default_rng(list(key)).integers(0, 256, CHUNK_BYTES, np.uint8)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    return f"tier-{request.node.name}"


@pytest.fixture
def opened(shared_store: Store, model: str) -> Iterator[Offloading]:
    offloading = Offloading(model, shared_store)
    yield offloading
    offloading.close()


def test_another_engine_finds_chunks(shared_store: Store, model: str, opened: Offloading) -> None:
    wanted = keys(0, 12)
    assert opened.ask(wanted) == 0
    opened.compute(wanted[:8])
    other = Offloading(model, shared_store)
    assert other.ask(wanted) == 8
    # From the primary tier now, without the store.
    other.tier.submit_load = None  # type: ignore[assignment]
    assert other.ask(wanted[:8]) == 8
    other.close()


def test_own_chunks_are_found_when_the_primary_tier_dropped_them(opened: Offloading) -> None:
    wanted = keys(0, 10)
    opened.compute(wanted)
    opened.manager.reset_cache()
    assert opened.ask(wanted) == 10
    many = keys(100, 100 + CHUNKS)
    opened.compute(many)
    assert opened.ask(wanted) == 10


def test_parents_are_those_of_the_request(opened: Offloading) -> None:
    wanted = keys(0, 9)
    context = opened.request(wanted)
    opened.offload(wanted[:3], context)
    opened.offload(wanted[3:7], context)
    opened.idle()
    blocks = opened.tier._moved
    namespace = blocks.link.get()
    assert namespace is not None
    hashes = blocks.hashes(namespace, wanted)
    assert len(set(hashes)) == 9 and {len(value) for value in hashes} == {16}
    assert namespace.match(hashes).blocks == 7
    # What comes behind a chunk that is not stored is a start of its own, and found all the same.
    opened.offload(wanted[8:], context)
    opened.idle()
    opened.manager.reset_cache()
    assert opened.ask(wanted) == 7
    assert opened.ask(wanted[8:]) == 1


def test_runs_of_a_job() -> None:
    one, two = keys(0, 6), keys(0, 4, group=1)
    context = ReqContext("r")
    for number in range(6):
        context.set_offload_key_position(one[number], (number + 1) * 16)
    for number in range(4):
        context.set_offload_key_position(two[number], (number + 1) * 32)
    (stranger,) = keys(50, 51)
    given = [one[4], two[2], one[1], stranger, one[5], two[3], one[2]]
    job = TransferJob(0, given, np.arange(10, 17, dtype=np.int32), False, context)
    runs = {run.keys[0]: run for run in chain(job, {0: 16, 1: 32})}
    assert {run: found.keys for run, found in runs.items()} == {
        one[1]: [one[1], one[2]],
        one[4]: [one[4], one[5]],
        two[2]: [two[2], two[3]],
        stranger: [stranger],
    }
    assert runs[one[1]].parent == one[0] and runs[one[4]].parent == one[3]
    assert runs[two[2]].parent == two[1] and runs[stranger].parent is None
    assert runs[one[1]].chunk_ids == [12, 16] and runs[one[1]].places == [2, 6]
    assert sorted(place for run in runs.values() for place in run.places) == list(range(7))


def test_requests_from_elsewhere_have_no_positions(opened: Offloading) -> None:
    context = ReqContext("elsewhere")
    opened.manager.on_new_request(context)
    opened.offload(keys(0, 3), context)
    opened.idle()
    opened.manager.reset_cache()
    assert opened.ask(keys(0, 4)) == 3


def test_groups_are_chunks_of_their_own(shared_store: Store, model: str) -> None:
    groups = (OffloadingGroupConfig(TOKENS, ("a",), 0), OffloadingGroupConfig(TOKENS, ("b",), 1))
    engine = Offloading(model, shared_store, {"groups": groups})
    engine.compute(keys(0, 2))
    engine.compute(keys(1, 3, group=1))
    engine.manager.reset_cache()
    assert engine.ask(keys(0, 3)) == 2
    assert engine.ask(keys(0, 1, group=1)) == 0
    assert engine.ask(keys(1, 3, group=1)) == 2
    engine.close()


def test_what_is_written_twice_is_no_failure(shared_store: Store, model: str, opened: Offloading) -> None:
    wanted = keys(0, 6)
    opened.compute(wanted[:4])
    other = Offloading(model, shared_store)
    context = other.request(wanted)
    other.offload(wanted, context)
    (job,) = (entry.transfer_job for entry in other.manager._transfer_jobs.values())
    finished = {}

    def done() -> bool:
        finished.update({result.job_id: result for result in other.tier.get_finished_jobs()})
        return bool(finished)

    eventually(done, 60)
    assert finished[job.job_id].success and finished[job.job_id].transfer_bytes == 6 * CHUNK_BYTES
    other.manager.primary_tier.complete_read(job.keys, context)
    other.manager._jobs.clear()
    other.close()
    opened.manager.reset_cache()
    assert opened.ask(wanted) == 6


def test_a_store_job_too_many_is_dropped(shared_store: Store, model: str) -> None:
    engine = Offloading(model, shared_store, stores_max=1, store_threads=1)
    held, go = threading.Event(), threading.Event()
    engine.tier._storer.submit(lambda: (held.set(), go.wait(60)))
    assert held.wait(60)
    wanted = keys(0, 4)
    context = engine.request(wanted)
    engine.offload(wanted[:2], context)
    engine.offload(wanted[2:], context)
    # Results are taken once a step, and this step's were before.
    engine.step()
    engine.step()
    assert len(engine.manager._transfer_jobs) == 1
    go.set()
    engine.idle()
    engine.manager.reset_cache()
    assert engine.ask(wanted) == 2
    engine.close()


def test_jobs_that_are_late_fail(shared_store: Store, model: str, opened: Offloading) -> None:
    late = Offloading(model, shared_store, job_timeout=0.0)
    late.compute(keys(0, 3))
    assert opened.ask(keys(0, 3)) == 0
    opened.compute(keys(0, 3))
    late.manager.reset_cache()
    # Promised, not loaded, and not promised again.
    assert late.ask(keys(0, 3)) == 0
    late.close()


def test_a_damaged_chunk_is_a_miss(make_store: Callable[..., Store], model: str) -> None:
    running = make_store("--dram", "16MiB")
    engine = Offloading(model, running)
    wanted = keys(0, 6)
    engine.compute(wanted)
    assert running.process is not None
    damage(running.process.pid, CHUNK_BYTES)
    engine.manager.reset_cache()
    left = engine.ask(wanted)
    assert left < 6
    engine.compute(wanted[left:])
    assert engine.ask(wanted) == 6
    engine.close()


def test_what_cannot_be_shared_is_refused(shared_store: Store, model: str, opened: Offloading) -> None:
    opened.compute(keys(0, 1))
    for changes in (
        {"model": OffloadingModelConfig(model, "float16")},
        {"groups": (OffloadingGroupConfig(TOKENS, ("a", "c"), 0),)},
        {"kv_cache_layout": "BLHNC"},
        {"worker_kv_bytes_per_block": CHUNK_BYTES - 64},
        {"parallel": OffloadingParallelConfig(0, 1, 2, 1, 1, 1, 0, 1, None, True)},
    ):
        with pytest.raises(kelvin.FingerprintMismatch):
            Offloading(model, shared_store, changes)
    with pytest.raises(kelvin.FingerprintMismatch):
        Offloading(model, shared_store, variant="fp8 at load")
    with pytest.raises(ValueError, match="unknown colour"):
        Offloading(model, shared_store, colour="red")
    other = Offloading(model, shared_store, variant="fp8 at load", model="another")
    assert other.ask(keys(0, 1)) == 0
    other.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_store_that_goes_away_is_misses_and_comes_back(
    make_store: Callable[..., Store], model: str, number: int
) -> None:
    running = make_store("--dram", "16MiB")
    engine = Offloading(model, running, **HASTY)
    wanted = keys(0, 4)
    eventually(lambda: stored(engine, wanted), 30)

    # A load that was promised, and can't be had any more.
    engine.manager.reset_cache()
    context = engine.request(wanted)

    def promised() -> bool:
        engine.step()
        return engine.tier.lookup(wanted[0], context) is LookupResult.HIT

    eventually(promised, 30)
    if number == signal.SIGKILL:
        running.kill()
    else:
        running.signal(number)
    assert engine.hits(wanted, context) == 0
    engine.manager.on_request_finished(context)

    assert engine.ask(keys(0, 6)) == 0
    engine.compute(keys(10, 14))
    assert engine.ask(keys(10, 14)) == 4
    engine.manager.reset_cache()

    if number == signal.SIGKILL:
        running.start()
    else:
        running.signal(signal.SIGCONT)
    eventually(lambda: stored(engine, wanted), 30)
    engine.close()


def test_a_store_that_starts_later_is_found(make_store: Callable[..., Store], model: str) -> None:
    running = make_store("--dram", "16MiB")
    running.kill()
    engine = Offloading(model, running, **HASTY)
    assert engine.ask(keys(0, 2)) == 0
    running.start()
    eventually(lambda: stored(engine, keys(0, 2)), 30)
    engine.close()


def stored(engine: Offloading, wanted: list[OffloadKey]) -> bool:
    """Computes a prefix; whether it then comes from the store."""
    engine.manager.reset_cache()
    engine.compute(wanted)
    engine.manager.reset_cache()
    return engine.ask(wanted) == len(wanted)
