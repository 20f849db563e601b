"""The plug-in under LMCache's real base class, plug-in launcher, storage manager and allocator, over a real store.

There is no engine: what drives LMCache here are the calls that its cache engine makes of its storage manager.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

try:
    from lmcache.utils import CacheEngineKey
except ImportError as error:
    pytest.skip(f"*** LMCACHE'S TESTS ARE SKIPPED: {error} ***", allow_module_level=True)
import torch
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.event_manager import EventManager
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.abstract_backend import StoragePluginInterface
from lmcache.v1.storage_backend.storage_manager import StorageManager

import kelvin
from kelvin.lmcache import KelvinBackend, Unsupported
from stores import Store
from test_namespace import eventually

TOKENS = 16
LAYERS = 3
HEADS = 2
DIM = 32
CHUNK_BYTES = 2 * LAYERS * TOKENS * HEADS * DIM * 2
PATIENT = {"lookup_timeout": 10.0, "call_timeout": 10.0, "load_timeout": 60.0, "store_timeout": 60.0}
HASTY = {"lookup_timeout": 0.3, "call_timeout": 0.3, "load_timeout": 1.0, "store_timeout": 2.0}
"""Timeouts towards stores that answer, and those that do not."""


def metadata_of(model: str, **changes: Any) -> LMCacheMetadata:
    fields: dict[str, Any] = {
        "model_name": model,
        "world_size": 1,
        "local_world_size": 1,
        "worker_id": 0,
        "local_worker_id": 0,
        "kv_dtype": torch.bfloat16,
        "kv_shape": (LAYERS, 2, TOKENS, HEADS, DIM),
        "chunk_size": TOKENS,
    }
    return LMCacheMetadata(**{**fields, **changes})


def config_of(url: str, settings: dict[str, Any], **changes: Any) -> LMCacheEngineConfig:
    extra = {
        "storage_plugin.kelvin.module_path": "kelvin.lmcache",
        "storage_plugin.kelvin.class_name": "KelvinBackend",
        "kelvin.url": url,
        **{f"kelvin.{name}": value for name, value in {**PATIENT, **settings}.items()},
    }
    fields = {
        "chunk_size": TOKENS,
        "local_cpu": False,
        "max_local_cpu_size": 0.02,
        "storage_plugins": ["kelvin"],
        "extra_config": extra,
    }
    return LMCacheEngineConfig.from_defaults(**{**fields, **changes})


class Engine:
    """LMCache as an engine has it."""

    def __init__(
        self, served: str, store: Store, changes: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        self.metadata = metadata_of(served)
        config = config_of(store.url, settings, **(changes or {}))
        self.manager = StorageManager(config, self.metadata, EventManager())
        self.closed = False
        _engines.append(self)
        backend = self.manager.storage_backends.get("kelvin")
        if backend is None:
            raise RuntimeError("LMCache could not make the backend")
        assert isinstance(backend, KelvinBackend) and isinstance(backend, StoragePluginInterface)
        self.backend = backend

    def keys(self, first: int, last: int) -> list[CacheEngineKey]:
        meta = self.metadata
        return [
            CacheEngineKey(meta.model_name, meta.world_size, meta.worker_id, 0xABC0 + number, meta.kv_dtype)
            for number in range(first, last)
        ]

    def put(self, first: int, last: int) -> None:
        """As LMCache's cache engine stores chunks: into its memory, and from there to every backend."""
        keys = self.keys(first, last)
        objs = self.manager.batched_allocate(
            self.metadata.get_shapes(), self.metadata.get_dtypes(), len(keys), busy_loop=False
        )
        assert objs is not None
        for key, obj in zip(keys, objs, strict=True):
            obj.tensor.copy_(chunk(key))
        self.manager.batched_put(keys, objs)

    def stored(self, first: int, last: int) -> bool:
        """Puts chunks; whether they are in the store then."""
        self.put(first, last)
        self.settled()
        return self.backend.batched_contains(self.keys(first, last)) == last - first

    def settled(self) -> None:
        """Waits until no store is on its way."""
        eventually(lambda: not self.backend._storing, 60)

    def get(self, first: int, last: int) -> int:
        """Chunks of the leading run that come, with the right bytes."""
        keys = self.keys(first, last)
        objs = self.manager.batched_get(keys, location="kelvin")
        return self.checked(keys, objs)

    def checked(self, keys: list[CacheEngineKey], objs: list[Any]) -> int:
        found = [obj for obj in objs if obj is not None]
        assert objs[len(found) :] == [None] * (len(objs) - len(found))
        for key, obj in zip(keys, found, strict=False):
            assert torch.equal(obj.tensor, chunk(key))
            obj.ref_count_down()
        return len(found)

    def close(self) -> None:
        self.settled()
        assert self.manager.memcheck()
        self.end()

    def end(self) -> None:
        if not self.closed:
            self.closed = True
            self.manager.close()


_engines: list[Engine] = []


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """LMCache's threads would outlive a test that failed, and hold the process."""
    yield
    while _engines:
        _engines.pop().end()


def chunk(key: CacheEngineKey) -> torch.Tensor:
    generator = torch.Generator().manual_seed(key.chunk_hash)
    return torch.randn((2, LAYERS, TOKENS, HEADS * DIM), generator=generator).to(torch.bfloat16)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    return f"lmcache-{request.node.name}"


@pytest.fixture
def opened(shared_store: Store, model: str) -> Iterator[Engine]:
    engine = Engine(model, shared_store)
    yield engine
    engine.close()


def test_another_engine_finds_chunks(shared_store: Store, model: str, opened: Engine) -> None:
    assert opened.get(0, 4) == 0
    assert opened.stored(0, 10)
    other = Engine(model, shared_store)
    assert other.manager.batched_contains(other.keys(0, 14)) == (10, {"kelvin": other.keys(0, 10)})
    assert other.manager.contains(other.keys(3, 4)[0], pin=True) == "kelvin"
    assert other.manager.contains(other.keys(11, 12)[0]) is None
    assert other.get(0, 14) == 10
    assert other.get(6, 10) == 4
    obj = other.manager.get(other.keys(2, 3)[0])
    assert other.checked(other.keys(2, 3), [obj]) == 1
    assert other.manager.get(other.keys(20, 21)[0]) is None
    other.close()


def test_contains_counts_the_leading_run(opened: Engine) -> None:
    assert opened.stored(0, 3) and opened.stored(5, 7)
    assert opened.backend.batched_contains(opened.keys(0, 7)) == 3
    assert opened.backend.batched_contains(opened.keys(5, 9)) == 2
    assert opened.backend.batched_contains([*opened.keys(4, 5), *opened.keys(0, 3)]) == 0
    assert opened.get(0, 7) == 3


def test_from_the_event_loop(opened: Engine) -> None:
    assert opened.stored(0, 6)
    keys = opened.keys(0, 8)

    async def ask() -> tuple[int, list[Any]]:
        found = await opened.backend.batched_async_contains("lookup", keys, pin=True)
        return found, await opened.backend.batched_get_non_blocking("lookup", keys[:found])

    found, objs = asyncio.run_coroutine_threadsafe(ask(), opened.manager.loop).result(60)
    assert found == 6 and opened.checked(keys, objs) == 6
    # Not by the storage manager: LMCache's own memory, which it asks first, does not have this call.
    assert opened.checked([keys[2]], [opened.backend.get_non_blocking(keys[2]).result(60)]) == 1


def test_a_load_that_nobody_waits_for_gives_its_memory_back(opened: Engine) -> None:
    assert opened.stored(0, 4)
    held, go = threading.Event(), threading.Event()
    load = opened.backend._load

    def slow(keys: Any) -> Any:
        held.set()
        go.wait(60)
        return load(keys)

    opened.backend._load = slow  # type: ignore[method-assign]
    task = asyncio.run_coroutine_threadsafe(
        opened.backend.batched_get_non_blocking("lookup", opened.keys(0, 4)), opened.manager.loop
    )
    assert held.wait(60)
    task.cancel()
    allocator = opened.backend.get_allocator_backend().get_memory_allocator()
    go.set()
    opened.backend._loader.submit(lambda: None).result(60)
    eventually(lambda: allocator.memcheck() and in_use(opened) == 0, 30)


def in_use(engine: Engine) -> int:
    """Bytes of LMCache's memory that somebody holds."""
    allocator = engine.backend.get_allocator_backend().get_memory_allocator()
    return getattr(allocator, "pin_allocator", allocator).total_allocated_size


def test_parents_are_those_of_earlier_questions(opened: Engine) -> None:
    assert opened.stored(0, 3)
    assert opened.backend.batched_contains(opened.keys(0, 9)) == 3
    assert opened.stored(3, 6)
    blocks = opened.backend._moved
    namespace = blocks.link.get()
    assert namespace is not None
    hashes = blocks.hashes(namespace, [key.to_string().encode() for key in opened.keys(0, 9)])
    assert len(set(hashes)) == 9
    assert namespace.match(hashes).blocks == 6


def test_remove_and_clear(opened: Engine) -> None:
    assert opened.stored(0, 6)
    assert opened.manager.remove(opened.keys(4, 5)[0]) == 1
    eventually(lambda: opened.backend.batched_contains(opened.keys(0, 6)) == 4)
    assert not opened.backend.remove(opened.keys(9, 10)[0])
    assert opened.manager.clear(["kelvin"]) == 4 * TOKENS
    eventually(lambda: opened.backend.batched_contains(opened.keys(0, 6)) == 0)


def test_callbacks_name_what_is_stored(opened: Engine) -> None:
    keys = opened.keys(0, 3)
    objs = opened.manager.batched_allocate(opened.metadata.get_shapes(), opened.metadata.get_dtypes(), 3)
    assert objs is not None
    told: list[CacheEngineKey] = []
    futures = opened.backend.batched_submit_put_task(keys, objs, on_complete_callback=told.append)
    assert futures is not None
    for future in futures:
        future.result(60)
    assert told == keys
    for obj in objs:
        obj.ref_count_down()
    assert in_use(opened) == 0


def test_only_full_chunks_are_stored(opened: Engine) -> None:
    shape = torch.Size((2, LAYERS, TOKENS // 2, HEADS * DIM))
    objs = opened.manager.batched_allocate([shape], [torch.bfloat16], 1)
    assert objs is not None
    assert opened.backend.batched_submit_put_task(opened.keys(0, 1), objs) is None
    objs[0].ref_count_down()
    assert in_use(opened) == 0
    assert not opened.backend.contains(opened.keys(0, 1)[0])


def test_a_store_too_many_is_dropped(shared_store: Store, model: str) -> None:
    engine = Engine(model, shared_store, stores_max=1)
    held, go = threading.Event(), threading.Event()
    engine.backend._storer.submit(lambda: (held.set(), go.wait(60)))
    assert held.wait(60)
    engine.put(0, 2)
    assert engine.backend.exists_in_put_tasks(engine.keys(0, 1)[0])
    engine.put(2, 4)
    assert not engine.backend.exists_in_put_tasks(engine.keys(2, 3)[0])
    go.set()
    engine.settled()
    assert engine.backend.batched_contains(engine.keys(0, 4)) == 2
    engine.close()


def test_what_is_late_is_a_miss(shared_store: Store, model: str, opened: Engine) -> None:
    late = Engine(model, shared_store, load_timeout=0.0, store_timeout=0.0)
    assert not late.stored(0, 2)
    assert opened.stored(0, 2)
    assert late.backend.batched_contains(late.keys(0, 2)) == 2
    assert late.get(0, 2) == 0
    late.close()


def test_no_memory_is_a_miss(opened: Engine) -> None:
    assert opened.stored(0, 4)
    shapes, dtypes = opened.metadata.get_shapes(), opened.metadata.get_dtypes()
    allocator = opened.backend.get_allocator_backend()
    taken = []
    while (obj := allocator.allocate(shapes, dtypes, busy_loop=False)) is not None:
        taken.append(obj)
    assert opened.get(0, 4) == 0
    for obj in taken[:3]:
        obj.ref_count_down()
    assert opened.get(0, 4) == 3
    for obj in taken[3:]:
        obj.ref_count_down()


def test_local_memory_before_the_store(shared_store: Store, model: str, opened: Engine) -> None:
    assert opened.stored(0, 6)
    other = Engine(model, shared_store, {"local_cpu": True})
    keys = other.keys(0, 6)
    assert other.checked(keys[:2], other.manager.batched_get(keys[:2], location="kelvin")) == 2
    hits, places = other.manager.batched_contains(keys)
    assert hits == 6 and {name: len(found) for name, found in places.items()} == {
        "LocalCPUBackend": 2,
        "kelvin": 4,
    }
    other.close()


def test_the_scheduler_only_asks(shared_store: Store, model: str, opened: Engine) -> None:
    assert opened.stored(0, 3)
    metadata = metadata_of(model, role="scheduler")
    backend = KelvinBackend(config_of(shared_store.url, {}), metadata)
    assert backend.batched_contains(opened.keys(0, 5)) == 3
    assert backend.batched_get_blocking(opened.keys(0, 3)) == [None] * 3
    backend.close()


def test_ranks_have_chunks_of_their_own(shared_store: Store, model: str) -> None:
    config = config_of(shared_store.url, {})
    ranks = [KelvinBackend(config, metadata_of(model, world_size=2, worker_id=rank)) for rank in (0, 1)]
    names = {backend._moved.link.get().id for backend in ranks}
    assert len(names) == 2
    for backend in ranks:
        backend.close()


def test_what_cannot_be_shared_is_refused(shared_store: Store, model: str, opened: Engine) -> None:
    config = config_of(shared_store.url, {})
    for changes in ({"kv_dtype": torch.float16}, {"use_mla": True}, {"kv_shape": (LAYERS, 2, TOKENS, 1, 64)}):
        with pytest.raises(kelvin.FingerprintMismatch):
            KelvinBackend(config, metadata_of(model, **changes))
    with pytest.raises(Unsupported, match="use_layerwise"):
        KelvinBackend(config_of(shared_store.url, {}, use_layerwise=True), metadata_of(model))
    with pytest.raises(ValueError, match=r"unknown kelvin\.colour"):
        KelvinBackend(config_of(shared_store.url, {"colour": "red"}), metadata_of(model))
    # LMCache goes on without a backend that it could not make.
    with pytest.raises(RuntimeError, match="could not make"):
        Engine(model, shared_store, variant="fp8 at load")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_store_that_goes_away_is_misses_and_comes_back(
    make_store: Callable[..., Store], model: str, number: int
) -> None:
    running = make_store("--dram", "16MiB")
    engine = Engine(model, running, **HASTY)
    eventually(lambda: engine.stored(0, 4), 30)
    if number == signal.SIGKILL:
        running.kill()
    else:
        running.signal(number)
    keys = engine.keys(0, 4)
    assert engine.backend.batched_contains(keys) == 0
    assert engine.get(0, 4) == 0
    assert engine.manager.get(keys[0]) is None

    async def ask() -> tuple[int, list[Any]]:
        found = await engine.backend.batched_async_contains("lookup", keys)
        return found, await engine.backend.batched_get_non_blocking("lookup", keys)

    assert asyncio.run_coroutine_threadsafe(ask(), engine.manager.loop).result(60) == (0, [])
    assert not engine.stored(8, 10)
    assert not engine.backend.remove(keys[0])
    assert engine.backend.clear() == 0
    assert in_use(engine) == 0
    if number == signal.SIGKILL:
        running.start()
    else:
        running.signal(signal.SIGCONT)
    eventually(lambda: engine.stored(10, 14) and engine.get(10, 14) == 4, 30)
    engine.close()


def test_a_store_that_starts_later_is_found(make_store: Callable[..., Store], model: str) -> None:
    running = make_store("--dram", "16MiB")
    running.kill()
    engine = Engine(model, running, **HASTY)
    assert engine.get(0, 2) == 0 and not engine.stored(0, 2)
    running.start()
    eventually(lambda: engine.stored(0, 2), 30)
    assert engine.get(0, 2) == 2
    engine.close()
