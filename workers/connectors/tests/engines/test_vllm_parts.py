"""The connector's halves by themselves, with a real store and stand-ins for vLLM's objects."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import kelvin

pytest.importorskip("vllm")

import torch
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kelvin.link import Link
from kelvin.paged import worthwhile
from kelvin.vllm.identity import Blocks, Settings
from kelvin.vllm.plan import Load, Plan, Save
from kelvin.vllm.scheduler import SchedulerSide, extra_key
from kelvin.vllm.worker import WorkerSide, pages
from kelvin.weights import model_digest
from stores import BLOCK_BYTES, BLOCK_TOKENS, Store, open_namespace
from test_namespace import TOKENS, eventually, store

LAYERS = ("a", "b")
BLOCKS = Blocks(LAYERS, BLOCK_TOKENS, BLOCK_BYTES // 2)


def request(tokens: list[int] = TOKENS, **changes: Any) -> Any:
    """A request as vLLM has it."""
    fields = {
        "request_id": "r",
        "all_token_ids": tokens,
        "num_tokens": len(tokens),
        "num_preemptions": 0,
        "prompt_embeds": None,
        "skip_reading_prefix_cache": False,
        "lora_request": None,
        "cache_salt": None,
        "mm_features": [],
        "kv_transfer_params": None,
    }
    return SimpleNamespace(**{**fields, **changes})


def allocated(*block_ids: int) -> Any:
    return SimpleNamespace(get_block_ids=lambda: (list(block_ids),))


def step(**scheduled: tuple[int, int, list[int]]) -> Any:
    """A scheduler's output: new requests with computed tokens, scheduled tokens, block ids."""
    new = [
        SimpleNamespace(req_id=name, num_computed_tokens=computed, block_ids=(block_ids,))
        for name, (computed, _, block_ids) in scheduled.items()
    ]
    counts = {name: count for name, (_, count, _) in scheduled.items()}
    cached = SimpleNamespace(req_ids=[], new_block_ids=[], resumed_req_ids=set(), num_computed_tokens=[])
    return SimpleNamespace(
        scheduled_new_reqs=new,
        scheduled_cached_reqs=cached,
        num_scheduled_tokens=counts,
        total_num_scheduled_tokens=sum(counts.values()),
    )


@pytest.fixture
def link(namespace: kelvin.Namespace) -> Iterator[Link]:
    link = Link(lambda: namespace)
    yield link
    link.close()


def scheduler(link: Link, loads: bool = True, saves: bool = True, **settings: Any) -> SchedulerSide:
    return SchedulerSide(link, Settings(**settings), BLOCK_TOKENS, loads, saves)


def worker(link: Link) -> tuple[WorkerSide, dict[str, torch.Tensor]]:
    """A worker over KV tensors of 8 blocks."""
    tensors = {name: torch.zeros(8, BLOCK_BYTES // 2 // 4, dtype=torch.float32) for name in LAYERS}
    side = WorkerSide(link, Settings(), BLOCKS)
    side.register(tensors)
    return side, tensors


def test_a_stored_prefix_is_claimed_and_loaded_once(namespace: kelvin.Namespace, link: Link) -> None:
    store(namespace)
    side, asked = scheduler(link), request()
    assert side.matched_tokens(asked, 0) == 20
    namespace.evict_all()
    assert side.matched_tokens(asked, 4) == 16, "the answer is final"
    side.allocated(asked, allocated(7, 6, 5, 4, 3, 2), 16)
    assert side.sources(asked, 16) == {CacheHitSource.HOST: 16}
    (load,) = side.plan(step()).loads
    assert (load.first, load.block_ids, load.tokens) == (1, [6, 5, 4, 3], TOKENS[:20])
    assert side.matched_tokens(asked, 0) == 0, "what failed to load is not tried again"
    asked.num_preemptions = 1
    store(namespace)
    assert side.matched_tokens(asked, 0) == 20


def test_one_token_is_left_to_compute(namespace: kelvin.Namespace, link: Link) -> None:
    store(namespace)
    assert scheduler(link).matched_tokens(request(TOKENS[:20]), 0) == 16
    assert scheduler(link).matched_tokens(request(TOKENS[:20]), 16) == 0
    assert scheduler(link).matched_tokens(request(TOKENS[:1]), 0) == 0


def test_what_another_engine_saves_is_waited_for(namespace: kelvin.Namespace, link: Link) -> None:
    producer, asked = scheduler(link), request(TOKENS[:20], kv_transfer_params={"do_remote_decode": True})
    producer.matched_tokens(asked, 0)
    producer.allocated(asked, allocated(0, 1, 2, 3, 4), 0)
    producer.plan(step(r=(0, 20, [0, 1, 2, 3, 4])))
    said = producer.finished(asked)
    assert said == {"kelvin_saved_tokens": 20}
    consumer, handed = scheduler(link), request(TOKENS[:20], kv_transfer_params=said)
    assert consumer.matched_tokens(handed, 0) is None
    store(namespace)
    deadline = time.monotonic() + 5
    while (found := consumer.matched_tokens(handed, 0)) is None:
        assert time.monotonic() < deadline
    assert found == 16


def test_the_wait_for_another_engine_ends(link: Link) -> None:
    handed = request(TOKENS[:20], kv_transfer_params={"kelvin_saved_tokens": 20})
    consumer = scheduler(link)
    begun = time.monotonic()
    while consumer.matched_tokens(handed, 0) is None:
        assert time.monotonic() < begun + 5
    assert time.monotonic() - begun >= Settings().hand_over_timeout
    # Plain requests do not wait, and tell nothing.
    assert consumer.matched_tokens(request(), 0) == 0
    assert consumer.finished(request()) is None


def test_roles_and_what_is_not_cached(namespace: kelvin.Namespace, link: Link) -> None:
    store(namespace)
    assert scheduler(link, loads=False).matched_tokens(request(), 0) == 0
    assert scheduler(link).matched_tokens(request(skip_reading_prefix_cache=True), 0) == 0
    assert scheduler(link).matched_tokens(request(prompt_embeds=object()), 0) == 0
    consumer, asked = scheduler(link, saves=False), request()
    consumer.matched_tokens(asked, 0)
    consumer.allocated(asked, allocated(0, 1, 2, 3, 4, 5), 0)
    assert consumer.plan(step(r=(0, 22, [0, 1, 2, 3, 4, 5]))).saves == []


def test_whole_blocks_are_saved_as_chunks_compute_them(link: Link) -> None:
    side, asked = scheduler(link), request()
    assert side.matched_tokens(asked, 0) == 0
    side.allocated(asked, allocated(3, 1, 2), 0)
    (save,) = side.plan(step(r=(0, 10, [3, 1, 2]))).saves
    assert (save.first, save.block_ids, save.tokens) == (0, [3, 1], TOKENS[:8])
    rest = step()
    rest.scheduled_cached_reqs = SimpleNamespace(
        req_ids=["r"], new_block_ids=[([5, 6, 7],)], resumed_req_ids=set(), num_computed_tokens=[10]
    )
    rest.num_scheduled_tokens = {"r": 16}
    (save,) = side.plan(rest).saves
    # Four tokens more than are known were scheduled, on speculation.
    assert (save.first, save.block_ids, save.tokens) == (2, [3, 1, 2, 5, 6], TOKENS[:20])


def test_what_else_decides_the_kv_is_in_the_key() -> None:
    lora = SimpleNamespace(lora_name="l", lora_path="/l")
    image = SimpleNamespace(identifier="hash", mm_position=SimpleNamespace(offset=3))
    keys = [
        extra_key(request(**changes))
        for changes in ({}, {"lora_request": lora}, {"cache_salt": "s"}, {"mm_features": [image]})
    ]
    assert keys[0] == b""
    assert len(set(keys)) == 4


def test_blocks_travel_unchanged(namespace: kelvin.Namespace, link: Link) -> None:
    side, tensors = worker(link)
    for tensor in tensors.values():
        tensor.copy_(torch.randn_like(tensor))
    made = {name: tensor.clone() for name, tensor in tensors.items()}
    side.save(Plan(saves=[Save(TOKENS[:20], b"", 0, [4, 2, 0, 6, 7])]))
    eventually(lambda: namespace.match(TOKENS).blocks == 5)
    for tensor in tensors.values():
        tensor.zero_()
    side.load(Plan(loads=[Load("r", TOKENS[:20], b"", 1, [1, 3, 5, 7])], idle=True))
    assert side.take_loaded() == {"r"}
    assert side.take_failed_blocks() == set()
    for name, tensor in tensors.items():
        assert torch.equal(tensor[[1, 3, 5, 7]], made[name][[2, 0, 6, 7]])
        assert not tensor[[0, 2, 4, 6]].any(), "no other block is touched"
    side.close()


def test_blocks_that_are_gone_are_reported(namespace: kelvin.Namespace, link: Link) -> None:
    side, _ = worker(link)
    namespace.evict(store(namespace)[:4])
    side.load(Plan(loads=[Load("r", TOKENS[:20], b"", 1, [1, 3, 5, 7])]))
    eventually(lambda: side.take_loaded() == {"r"})
    assert side.take_failed_blocks() == {5, 7}
    assert side.take_failed_blocks() == set()


def test_a_parent_that_is_gone_is_saved_again(namespace: kelvin.Namespace, link: Link) -> None:
    side, _ = worker(link)
    side.save(Plan(saves=[Save(TOKENS[:20], b"", 3, [4, 2, 0, 6, 7])]))
    eventually(lambda: namespace.match(TOKENS).blocks == 5)


def test_without_a_store_all_is_a_miss(make_store: Callable[..., Store]) -> None:
    running = make_store("--dram", "16MiB")
    link = Link(lambda: open_namespace(kelvin.Client(running.url, call_timeout=0.5), "gone"))
    namespace = link.get()
    assert namespace is not None
    store(namespace)
    running.kill()
    side, asked = scheduler(link), request()
    assert side.matched_tokens(asked, 0) == 0
    assert link.get() is None
    assert side.reset() is False
    mover, _ = worker(link)
    mover.load(Plan(loads=[Load("r", TOKENS[:8], b"", 0, [1, 2])], idle=True))
    mover.save(Plan(saves=[Save(TOKENS[:8], b"", 0, [1, 2])]))
    assert (mover.take_loaded(), mover.take_failed_blocks()) == ({"r"}, {1, 2})
    running.start()
    eventually(lambda: link.get() is not None, 30)
    link.close()


def test_a_store_that_comes_later_is_found(make_store: Callable[..., Store]) -> None:
    running = make_store("--dram", "16MiB")
    running.kill()
    link = Link(lambda: open_namespace(kelvin.Client(running.url), "later"))
    assert link.get() is None
    running.start()
    eventually(lambda: link.get() is not None, 30)
    link.close()


def test_settings_and_shapes_are_checked() -> None:
    assert Settings.of({"url": "http://x", "priority": 3}).priority == 3
    with pytest.raises(ValueError, match="unknown ulr"):
        Settings.of({"ulr": "http://x"})
    assert pages(torch.zeros(4, 2, 8), 64).shape == (4, 64)
    with pytest.raises(ValueError, match="contiguous"):
        pages(torch.zeros(2, 4, 8).transpose(0, 1), 64)
    with pytest.raises(ValueError, match="contiguous"):
        pages(torch.zeros(4, 2, 8), 32)
    with pytest.raises(ValueError, match="no KV tensors of b"):
        WorkerSide(None, Settings(), BLOCKS).register({"a": torch.zeros(4, 2, 8)})  # type: ignore[arg-type]


def test_cold_blocks_are_loaded_when_that_is_faster() -> None:
    tiers = ["dram", "dram", "nvme", "nvme"]
    fast = SimpleNamespace(tiers=tiers, tokens=16, load_us_estimate=15_000)
    slow = SimpleNamespace(tiers=tiers, tokens=16, load_us_estimate=17_000)
    assert worthwhile(fast, 2.0, 1000.0) == tiers
    assert worthwhile(slow, 2.0, 1000.0) == tiers[:2]
    assert worthwhile(slow, 2.0, 0.0) == tiers, "how fast vLLM computes is not known"
    assert worthwhile(slow, 0.016, 0.0) == tiers[:2]


def test_other_weights_have_another_digest(tmp_path: Any) -> None:
    digests = []
    for content in (b"a" * 10_000_000, b"a" * 9_999_999 + b"b", b"a" * 9_999_999):
        (tmp_path / "model.safetensors").write_bytes(content)
        digests.append(model_digest(str(tmp_path), None))
    assert len(set(digests)) == 3
