"""The HiCache backend under SGLang's real base class and factory, over a real store; host pools are doubles.

There is no SGLang engine without a GPU: what drives the backend here are the calls that SGLang's controller makes.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

try:
    from sglang.srt.mem_cache import hicache_storage as hicache
    from sglang.srt.mem_cache.storage import StorageBackendFactory
except ImportError as error:
    pytest.skip(f"*** SGLANG'S TESTS ARE SKIPPED: {error} ***", allow_module_level=True)
import torch

import kelvin
from kelvin.sglang import KelvinStorage, Unsupported
from kelvin.sglang.identity import shard
from stores import Store
from test_namespace import eventually

PAGE = 4
LAYERS = 3
HEADS = 2
DIM = 64
SLOTS = 64
PATIENT = 10.0
HASTY = 0.5
"""Timeouts of calls: of stores that answer, and of those that do not."""


class Pool:
    """What the backend uses of SGLang's `MHATokenToKVPoolHost`, with tensors laid out the same."""

    def __init__(self, layout: str = "layer_first", heads: int = HEADS, page_size: int = PAGE) -> None:
        self.layout, self.page_size, self.heads, self.dtype = layout, page_size, heads, torch.bfloat16
        tokens = SLOTS * page_size
        axes = (LAYERS, tokens) if layout == "layer_first" else (tokens, LAYERS)
        self.kv_buffer: torch.Tensor | None = torch.zeros((2, *axes, heads, DIM), dtype=self.dtype)

    def page(self, index: int) -> torch.Tensor:
        assert self.kv_buffer is not None
        end = index + self.page_size
        return (
            self.kv_buffer[:, :, index:end] if self.layout == "layer_first" else self.kv_buffer[:, index:end]
        )

    def get_data_page(self, index: int, flat: bool = True) -> torch.Tensor:
        return self.page(index).flatten() if flat else self.page(index)

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        return torch.zeros(2 * LAYERS * self.page_size * self.heads * DIM, dtype=self.dtype)

    def set_from_flat_data_page(self, index: int, data_page: torch.Tensor) -> None:
        page = self.page(index)
        page.copy_(data_page.reshape(page.shape))

    def scribble(self) -> Pool:
        assert self.kv_buffer is not None
        self.kv_buffer.copy_(torch.randn(self.kv_buffer.shape, generator=torch.Generator().manual_seed(1)))
        return self

    def slots(self, first: int, pages: int) -> torch.Tensor:
        return torch.arange(first * self.page_size, (first + pages) * self.page_size)


def config(model: str, url: str, **changes: Any) -> hicache.HiCacheStorageConfig:
    extra = {
        "backend_name": "kelvin",
        "module_path": "kelvin.sglang",
        "class_name": "KelvinStorage",
        "interface_v1": 1,
        "url": url,
        "timeout": PATIENT,
        **changes.pop("extra", {}),
    }
    fields: dict[str, Any] = {
        "tp_rank": 0,
        "tp_size": 1,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_rank": 0,
        "attn_cp_size": 1,
        "is_mla_model": False,
        "enable_storage_metrics": False,
        "is_page_first_layout": False,
        "model_name": model,
    }
    return hicache.HiCacheStorageConfig(**{**fields, **changes}, extra_config=extra)


def attach(settings: hicache.HiCacheStorageConfig, pool: Pool, **sidecars: Pool) -> Any:
    """As SGLang's controllers attach a backend."""
    backend = StorageBackendFactory.create_backend("dynamic", settings, pool)
    backend.register_mem_pool_host(pool)
    for name, sidecar in sidecars.items():
        backend.register_mem_host_pool_v2(sidecar, hicache.PoolName(name))
    backend.on_host_pools_registered()
    return backend


def after(keys: list[str]) -> hicache.HiCacheStorageExtraInfo:
    return hicache.HiCacheStorageExtraInfo(prefix_keys=keys)


KEYS = [f"{number:064x}" for number in range(12)]


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    return f"sglang-{request.node.name}"


@pytest.fixture
def opened(shared_store: Store, model: str) -> Iterator[tuple[Any, Pool]]:
    pool = Pool().scribble()
    backend = attach(config(model, shared_store.url), pool)
    assert isinstance(backend, KelvinStorage)
    yield backend, pool
    backend.close()


@pytest.mark.parametrize("layout", ["layer_first", "page_first"])
@pytest.mark.parametrize("prefixes", [True, False])
def test_another_process_finds_pages(shared_store: Store, model: str, layout: str, prefixes: bool) -> None:
    writer = Pool(layout).scribble()
    first = attach(config(model, shared_store.url), writer)
    assert first.batch_exists(KEYS) == 0
    # Two radix nodes, one behind the other, as SGLang backs them up.
    assert first.batch_set_v1(KEYS[:3], writer.slots(5, 3)) == [True] * 3
    chain = after(KEYS[:3]) if prefixes else None
    assert first.batch_set_v1(KEYS[3:8], writer.slots(20, 5), chain) == [True] * 5
    first.close()

    reader = Pool(layout)
    second = attach(config(model, shared_store.url), reader)
    assert second.batch_exists(KEYS) == 8
    assert second.batch_exists(KEYS[5:]) == 3
    assert second.batch_exists([KEYS[9], *KEYS[:2]]) == 0
    assert second.exists(KEYS[7]) and not second.exists(KEYS[8])
    assert second.batch_get_v1(KEYS[:10], reader.slots(40, 10)) == [True] * 8 + [False] * 2
    for at in range(8):
        slot = 5 + at if at < 3 else 17 + at
        assert torch.equal(reader.page((40 + at) * PAGE), writer.page(slot * PAGE))
    assert not reader.page(48 * PAGE).any()
    second.close()


def test_parents_are_kept_where_they_are_known(
    shared_store: Store, opened: tuple[Any, Pool], model: str
) -> None:
    backend, pool = opened
    assert all(backend.batch_set_v1(KEYS[:2], pool.slots(0, 2)))
    assert all(backend.batch_set_v1(KEYS[2:4], pool.slots(2, 2), after(KEYS[:2])))
    pages = backend._pools["kv"]
    namespace = pages._link.get()
    hashes = pages.hashes(namespace, KEYS[:4])
    assert len(set(hashes)) == 4 and all(len(value) == 16 for value in hashes)
    assert namespace.match(hashes).blocks == 4
    # What comes behind a page that is not stored is a start of its own.
    assert all(backend.batch_set_v1(KEYS[6:8], pool.slots(6, 2), after(KEYS[:6])))
    assert backend.batch_exists(KEYS[6:]) == 2
    assert backend.batch_exists(KEYS) == 4


def test_writing_again_is_no_failure(opened: tuple[Any, Pool]) -> None:
    backend, pool = opened
    assert backend.batch_set_v1(KEYS[:4], pool.slots(0, 4)) == [True] * 4
    assert backend.batch_set_v1(KEYS[:6], pool.slots(0, 6)) == [True] * 6
    backend.clear()
    eventually(lambda: backend.batch_exists(KEYS) == 0)


def test_flat_pages(opened: tuple[Any, Pool]) -> None:
    backend, pool = opened
    values = [pool.get_data_page(at * PAGE) for at in range(3)]
    assert backend.batch_set(KEYS[:3], values)
    assert backend.set(KEYS[3], pool.get_data_page(3 * PAGE))
    assert not backend.set(KEYS[4], values[0][1:])
    targets = [pool.get_dummy_flat_data_page() for _ in range(5)]
    found = backend.batch_get(KEYS[:5], targets)
    assert [page is None for page in found] == [False] * 4 + [True]
    assert found[0] is targets[0]
    assert all(torch.equal(found[at], pool.get_data_page(at * PAGE)) for at in range(4))
    assert torch.equal(backend.get(KEYS[1]), values[1])
    assert backend.get(KEYS[4]) is None


def test_indices_that_do_not_fit_are_misses(opened: tuple[Any, Pool]) -> None:
    backend, pool = opened
    assert backend.batch_set_v1(KEYS[:2], pool.slots(0, 1)) == [False] * 2
    assert backend.batch_get_v1(KEYS[:2], pool.slots(0, 3)) == [False] * 2
    unknown = hicache.PoolTransfer(hicache.PoolName.SWA, pool.slots(0, 2), keys=KEYS[:2])
    assert backend.batch_set_v2([unknown]) == {hicache.PoolName.SWA: [False] * 2}


def test_more_pages_than_a_call_takes(opened: tuple[Any, Pool]) -> None:
    backend, pool = opened
    many = [f"many-{number}" for number in range(300)]
    slots = pool.slots(0, 50).repeat(6)
    assert all(backend.batch_set_v1(many, slots))
    assert backend.batch_exists([*many, "more"]) == 300
    assert all(backend.batch_get_v1(many, slots))


def test_pools_and_their_policies(shared_store: Store, model: str) -> None:
    pools = {"mamba": Pool(heads=5, page_size=1), "indexer": Pool(heads=1), "swa": Pool()}
    kv = Pool().scribble()
    backend = attach(config(model, shared_store.url), kv, **{n: p.scribble() for n, p in pools.items()})

    def transfer(name: str, first: int, last: int, policy: str = "all_pages") -> hicache.PoolTransfer:
        return hicache.PoolTransfer(
            hicache.PoolName(name),
            pools[name].slots(first, last - first),
            keys=KEYS[first:last],
            hit_policy=hicache.PoolHitPolicy(policy),
        )

    assert all(backend.batch_set_v1(KEYS[:8], kv.slots(0, 8)))
    stored = backend.batch_set_v2([transfer("indexer", 0, 7)])
    stored |= backend.batch_set_v2([transfer("mamba", 2, 3)], after(KEYS[:2]))
    stored |= backend.batch_set_v2([transfer("mamba", 5, 6)], after(KEYS[:5]))
    stored |= backend.batch_set_v2([transfer("swa", 3, 6)], after(KEYS[:3]))
    assert all(all(done) for done in stored.values())

    def lengths(*transfers: hicache.PoolTransfer) -> tuple[int, list[int], dict[str, int]]:
        found = backend.batch_exists_v2(KEYS, list(transfers))
        return found.kv_hit_pages, found.restorable_prefix_pages, found.extra_pool_hit_pages

    assert lengths() == (8, list(range(1, 9)), {"kv": 8})
    indexer = transfer("indexer", 0, 12)
    assert lengths(indexer) == (7, list(range(1, 8)), {"kv": 8, "indexer": 7})
    mamba = transfer("mamba", 11, 12, "trailing_pages")
    assert lengths(indexer, mamba) == (6, [3, 6], {"kv": 8, "indexer": 7, "mamba": 6})
    swa = transfer("swa", 10, 12, "trailing_pages")
    assert lengths(mamba, swa) == (6, [6], {"kv": 8, "mamba": 6, "swa": 6})
    assert lengths(transfer("swa", 8, 12, "trailing_pages")) == (0, [], {"kv": 8})
    groups = transfer("indexer", 0, 8, "block_groups")
    groups.block_pages, groups.group_pages = 2, 3
    assert lengths(groups) == (8, list(range(1, 9)), {"kv": 8, "indexer": 4})
    with pytest.raises(ValueError, match="groups of 0 keys"):
        lengths(transfer("indexer", 0, 8, "block_groups"))

    before = pools["mamba"].page(5).clone()
    pools["mamba"].page(5).zero_()
    found = backend.batch_get_v2([transfer("mamba", 5, 6), transfer("swa", 4, 8)])
    assert found == {"mamba": [True], "swa": [True, True, False, False]}
    assert torch.equal(pools["mamba"].page(5), before)
    backend.close()


def test_a_hollow_anchor_has_its_bytes_elsewhere(shared_store: Store, model: str) -> None:
    anchor, side = Pool(), Pool().scribble()
    anchor.kv_buffer = None
    backend = attach(config(model, shared_store.url), anchor, swa=side)
    assert backend.batch_exists(KEYS) == len(KEYS)
    assert backend.batch_set_v1(KEYS, anchor.slots(0, 12)) == [True] * 12
    pages = hicache.PoolTransfer(hicache.PoolName.SWA, side.slots(0, 2), keys=KEYS[:2])
    assert all(backend.batch_set_v2([pages])["swa"])
    assert backend.batch_exists_v2(KEYS, [pages]).kv_hit_pages == 2
    backend.close()


def test_ranks() -> None:
    def of(name: str = "kv", **changes: Any) -> kelvin.Shard:
        return shard(config("m", "", **changes), name)

    assert of(tp_rank=1, tp_size=2, pp_rank=2, pp_size=4) == kelvin.Shard(1, 2, 2, 4)
    assert of(tp_rank=1, tp_size=2, is_mla_model=True) == kelvin.Shard()
    assert of("mamba", tp_rank=1, tp_size=2, is_mla_model=True) == kelvin.Shard(1, 2)
    assert of(tp_rank=1, tp_size=2, attn_cp_rank=1, attn_cp_size=2) == kelvin.Shard(3, 4)


def test_what_cannot_be_held_is_refused(shared_store: Store, model: str) -> None:
    url = shared_store.url
    for changes in (
        {"should_split_heads": True, "tp_lcm_size": 4},
        {"is_mla_model": True, "tp_size": 2, "dcp_size": 2, "logical_page_size": 8},
    ):
        with pytest.raises(Unsupported):
            attach(config(model, url, **changes), Pool())
    with pytest.raises(ValueError, match="unknown colour"):
        attach(config(model, url, extra={"colour": "red"}), Pool())

    class NoPages(Pool):
        def get_data_page(self, index: int, flat: bool = True) -> torch.Tensor:
            raise NotImplementedError("head_dim != v_head_dim")

    with pytest.raises(Unsupported, match="head_dim"):
        attach(config(model, url), NoPages())
    kept = attach(config(model, url), Pool())
    with pytest.raises(kelvin.FingerprintMismatch) as caught:
        attach(config(model, url), Pool("page_first"))
    assert "layer_first" in str(caught.value) and "page_first" in str(caught.value)
    kept.close()


def everything(backend: Any, pool: Pool) -> None:
    """Every call; each is a miss, and takes no longer than a few timeouts."""
    pages = hicache.PoolTransfer(hicache.PoolName.KV, pool.slots(0, 4), keys=KEYS[:4])
    assert backend.batch_exists(KEYS) == 0
    assert backend.batch_get_v1(KEYS[:4], pool.slots(0, 4)) == [False] * 4
    assert backend.batch_set_v1(KEYS[:4], pool.slots(0, 4)) == [False] * 4
    assert backend.batch_get_v2([pages]) == {"kv": [False] * 4}
    assert backend.batch_set_v2([pages]) == {"kv": [False] * 4}
    assert backend.batch_exists_v2(KEYS, [pages]).kv_hit_pages == 0
    assert backend.get(KEYS[0]) is None
    assert not backend.set(KEYS[0], pool.get_data_page(0))
    assert not backend.exists(KEYS[0])
    backend.clear()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_store_that_goes_away_is_misses_and_comes_back(
    make_store: Callable[..., Store], model: str, number: int
) -> None:
    running = make_store("--dram", "16MiB")
    pool = Pool().scribble()
    backend = attach(config(model, running.url, extra={"timeout": HASTY}), pool)
    eventually(lambda: all(backend.batch_set_v1(KEYS[:4], pool.slots(0, 4))), 30)
    if number == signal.SIGKILL:
        running.kill()
    else:
        running.signal(number)
    everything(backend, pool)
    if number == signal.SIGKILL:
        running.start()
    else:
        running.signal(signal.SIGCONT)
    eventually(lambda: all(backend.batch_set_v1(KEYS[:4], pool.slots(0, 4))), 30)
    eventually(lambda: backend.batch_exists(KEYS) == 4, 30)
    backend.close()


def test_a_store_that_starts_later_is_found(make_store: Callable[..., Store], model: str) -> None:
    running = make_store("--dram", "16MiB")
    running.kill()
    pool = Pool().scribble()
    backend = attach(config(model, running.url, extra={"timeout": HASTY}), pool)
    everything(backend, pool)
    running.start()
    eventually(lambda: all(backend.batch_set_v1(KEYS[:4], pool.slots(0, 4))), 30)
    backend.close()


def test_sglangs_failure_injector(shared_store: Store, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY", "0.002")
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE", "0.3")
    writer, reader = Pool().scribble(), Pool()
    backend = attach(config(model, shared_store.url), writer)
    assert isinstance(backend, hicache.HiCacheStorageFailureInjector)
    other = attach(config(model, shared_store.url), reader)
    for at, key in enumerate(KEYS):
        slot = writer.slots(at, 1)
        eventually(lambda key=key, slot=slot: all(backend.batch_set_v1([key], slot)))
        eventually(lambda key=key, slot=slot: all(other.batch_get_v1([key], slot)))
    assert torch.equal(reader.page(0), writer.page(0)) and torch.equal(reader.page(44), writer.page(44))
    backend.close()
    other.close()
