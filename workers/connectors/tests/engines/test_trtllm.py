"""TensorRT-LLM's connector in an executor like TensorRT-LLM's (`trtllm_harness`), over a real store.

TensorRT-LLM itself needs a GPU: it never ran here.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import kelvin

pytest.importorskip("torch")

import torch

from stores import Store
from test_namespace import eventually
from trtllm_harness import BLOCK_TOKENS, LAYERS, POOL_BLOCKS, RUBBISH, Executor, arguments, stream

from kelvin.trtllm import LoadLost, Unsupported
from kelvin.trtllm import bridge as bridges
from kelvin.trtllm.plan import Plan
from kelvin.trtllm.scheduler import extra_key
from kelvin.trtllm.worker import KelvinWorker

PROMPT = list(range(500, 500 + 5 * BLOCK_TOKENS + 2))
WHOLE = 5 * BLOCK_TOKENS
MAKE = 6

Make = Callable[..., Executor]


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes executors; each model name is a test's own."""
    executors: list[Executor] = []

    def make(store: Store, model: str = "", ranks: int = 1, settings: Any = None, **options: Any) -> Executor:
        values = {"url": store.url, "match_timeout": 1.0, "load_timeout": 1.0, **(settings or {})}
        monkeypatch.setenv("KELVIN_TRTLLM", json.dumps(values))
        executors.append(Executor(arguments(model or request.node.name, ranks), **options))
        return executors[-1]

    yield make
    for made in executors:
        made.close()


def plain(tokens: list[int] = PROMPT, ranks: int = 1, **options: Any) -> list[int]:
    """What is generated without a connector."""
    return Executor(arguments("plain", ranks), connected=False, **options).answer(tokens, MAKE).made


@pytest.mark.parametrize("shared_memory", [True, False])
def test_blocks_travel_between_executors(shared_store: Store, executor: Make, shared_memory: bool) -> None:
    settings = {"shared_memory": shared_memory}
    first, second = (executor(shared_store, settings=settings) for _ in (1, 2))
    made = first.answer(PROMPT, MAKE)
    assert (made.made, made.loaded_tokens) == (plain(), 0)
    again = second.answer(PROMPT, MAKE)
    assert (again.made, again.loaded_tokens) == (plain(), WHOLE)
    # What was generated is stored as well, but for the last token, whose KV nobody made.
    longer = [*PROMPT, *made.made, *range(9)]
    computed = len(PROMPT) + MAKE - 1
    assert second.answer(longer, MAKE).loaded_tokens == computed // BLOCK_TOKENS * BLOCK_TOKENS > WHOLE


def test_partial_prefixes_and_what_is_there_already(shared_store: Store, executor: Make) -> None:
    executor(shared_store).answer(PROMPT, MAKE)
    other = [*PROMPT[: 2 * BLOCK_TOKENS + 1], *range(50)]
    branch = executor(shared_store).answer(other, MAKE)
    assert (branch.made, branch.loaded_tokens) == (plain(other), 2 * BLOCK_TOKENS)
    local = executor(shared_store, local_tokens=2 * BLOCK_TOKENS).answer(PROMPT, MAKE)
    assert (local.made, local.loaded_tokens) == (plain(), 3 * BLOCK_TOKENS)
    inside = executor(shared_store, local_tokens=2 * BLOCK_TOKENS + 1).answer(PROMPT, MAKE)
    assert (inside.made, inside.loaded_tokens) == (plain(), 0), "no load into a block that is half there"
    exact = executor(shared_store).answer(PROMPT[:WHOLE], MAKE)
    assert (exact.made, exact.loaded_tokens) == (plain(PROMPT[:WHOLE]), WHOLE - BLOCK_TOKENS)
    short = executor(shared_store).answer(PROMPT[:2], MAKE)
    assert (short.made, short.loaded_tokens) == (plain(PROMPT[:2]), 0)


def test_a_request_is_asked_and_loaded_once(shared_store: Store, executor: Make) -> None:
    executor(shared_store).answer(PROMPT, MAKE)
    running = executor(shared_store)
    prompts = [[*PROMPT, *[number] * number] for number in range(4)]
    answers = [running.submit(prompt, MAKE) for prompt in prompts]
    running.run()
    assert [answer.made for answer in answers] == [plain(prompt) for prompt in prompts]
    assert {answer.loaded_tokens for answer in answers} == {WHOLE}
    assert set(running.asked.values()) == {1}
    assert sorted(running.free) == list(range(POOL_BLOCKS - 1)), "every block came back"


@pytest.mark.parametrize("chunk", [1, 3, 4, 9])
def test_chunked_prefill(shared_store: Store, executor: Make, chunk: int) -> None:
    first = executor(shared_store, chunk_tokens=chunk)
    assert first.answer(PROMPT, MAKE).made == plain()
    again = executor(shared_store, chunk_tokens=chunk).answer(PROMPT, MAKE)
    assert (again.made, again.loaded_tokens) == (plain(), WHOLE)


def test_tensor_ranks_are_shards(shared_store: Store, executor: Make) -> None:
    first = executor(shared_store, ranks=2)
    assert first.answer(PROMPT, MAKE).made == plain(ranks=2)
    second = executor(shared_store, ranks=2)
    again = second.answer(PROMPT, MAKE)
    assert (again.made, again.loaded_tokens) == (plain(ranks=2), WHOLE)
    # A rank that lacks the end of it decides.
    namespace = link_of(second, 1).get()
    assert namespace is not None
    namespace.evict(namespace.hashes(PROMPT[: 3 * BLOCK_TOKENS]))
    shorter = executor(shared_store, ranks=2).answer(PROMPT, MAKE)
    assert (shorter.made, shorter.loaded_tokens) == (plain(ranks=2), 2 * BLOCK_TOKENS)
    whole = executor(shared_store, ranks=2).answer(PROMPT, MAKE)
    assert whole.loaded_tokens == WHOLE, "what one rank lacked was saved again"


def link_of(executor: Executor, rank: int) -> Any:
    worker = executor.workers[rank]
    assert isinstance(worker, KelvinWorker)
    return worker._link


def test_pages_outside_a_window_are_left_alone(shared_store: Store, executor: Make) -> None:
    executor(shared_store).answer(PROMPT, MAKE)
    windowed = executor(shared_store, window_blocks=2)
    answer = windowed.answer(PROMPT, MAKE)
    assert answer.loaded_tokens == WHOLE
    assert answer.made == plain(window_blocks=2)
    assert (windowed.pools[0][-1] == RUBBISH).all(), "-1 is no index"
    # Nothing can be stored behind a block that is not there.
    other = [number + 1 for number in PROMPT]
    assert windowed.answer(other, MAKE).made == plain(other, window_blocks=2)
    assert executor(shared_store).answer(other, MAKE).loaded_tokens == 0


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP])
def test_what_was_promised_outlives_the_store(
    make_store: Callable[..., Store], executor: Make, way: signal.Signals, shared_memory: bool
) -> None:
    store = make_store("--dram", "16MiB")
    executor(store).answer(PROMPT, MAKE)
    running = executor(store, settings={"shared_memory": shared_memory})
    running.after_match = lambda: end(store, way)
    answer = running.answer(PROMPT, MAKE)
    assert (answer.made, answer.loaded_tokens) == (plain(), WHOLE)


def end(store: Store, way: signal.Signals) -> None:
    if way == signal.SIGKILL:
        store.kill()
    else:
        store.signal(way)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP])
def test_without_a_store_every_request_is_answered(
    make_store: Callable[..., Store], executor: Make, way: signal.Signals, ranks: int
) -> None:
    store = make_store("--dram", "16MiB")
    running = executor(store, ranks=ranks)
    assert running.answer(PROMPT, MAKE).made == plain(ranks=ranks)
    end(store, way)
    for _ in range(3):
        away = running.answer(PROMPT, MAKE)
        assert (away.made, away.loaded_tokens) == (plain(ranks=ranks), 0)
    if way == signal.SIGKILL:
        store.start()
    else:
        store.signal(signal.SIGCONT)

    def used_again() -> bool:
        answer = running.answer(PROMPT, MAKE)
        assert answer.made == plain(ranks=ranks)
        return answer.loaded_tokens == WHOLE

    eventually(used_again, 30)


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP])
def test_a_store_that_goes_before_a_save_ends(
    make_store: Callable[..., Store], executor: Make, way: signal.Signals
) -> None:
    store = make_store("--dram", "16MiB")
    running = executor(store)
    running.after_match = lambda: end(store, way)
    assert running.answer(PROMPT, MAKE).made == plain()
    assert sorted(running.free) == list(range(POOL_BLOCKS - 1))


def test_a_rank_whose_shard_is_lost_serves_no_wrong_bytes(
    make_store: Callable[..., Store], executor: Make
) -> None:
    store = make_store("--dram", "16MiB")
    executor(store, ranks=2).answer(PROMPT, MAKE)
    running = executor(store, ranks=2)
    running.after_match = store.kill
    with pytest.raises(LoadLost, match="request 1"):
        running.answer(PROMPT, MAKE)


def test_an_executor_that_starts_before_the_store(make_store: Callable[..., Store], executor: Make) -> None:
    store = make_store("--dram", "16MiB")
    store.kill()
    running = executor(store)
    assert running.answer(PROMPT, MAKE).made == plain()
    store.start()
    eventually(lambda: running.answer(PROMPT, MAKE).loaded_tokens == WHOLE, 30)


def test_another_type_is_refused(shared_store: Store, executor: Make) -> None:
    executor(shared_store)
    with pytest.raises(kelvin.FingerprintMismatch, match=r"(?s)float32.*bfloat16|bfloat16.*float32"):
        executor(shared_store, dtype=torch.bfloat16)


def test_a_request_that_loses_its_blocks_is_left_alone(shared_store: Store, executor: Make) -> None:
    running = executor(shared_store)
    (worker,), scheduler = running.workers, running.scheduler
    assert isinstance(worker, KelvinWorker) and scheduler is not None
    taken = running.submit(PROMPT, MAKE)
    request = taken.request.request_id
    assert running._add_sequences()
    worker.bind_connector_meta(
        scheduler.build_connector_meta(running._output([taken], {request: len(PROMPT)}))
    )
    with worker._lock:
        # The saver can't copy meanwhile. What the next plan would say takes effect before it can.
        worker.wait_for_save(stream())
        scheduler.request_reset(taken.request)
        told = scheduler.build_connector_meta(running._output([], {}))
        assert isinstance(told, Plan) and told.abandoned == [request]
        worker._abandoned.update(told.abandoned)
    assert scheduler.request_finished(taken.request, taken.block_ids)
    eventually(lambda: worker.get_finished([request], []) == ([request], []))
    assert executor(shared_store).answer(PROMPT, MAKE).loaded_tokens == 0


def test_what_else_decides_the_kv_is_in_the_key(shared_store: Store, executor: Make) -> None:
    running = executor(shared_store)
    running.answer(PROMPT, MAKE, cache_salt_id=3)
    assert running.answer(PROMPT, MAKE, cache_salt_id=3).loaded_tokens == WHOLE
    assert running.answer(PROMPT, MAKE, cache_salt_id=4).loaded_tokens == 0
    assert running.answer(PROMPT, MAKE, lora_task_id=1).loaded_tokens == 0
    assert running.answer(PROMPT, MAKE, multimodal_hashes=[[1, 2]]).loaded_tokens == 0
    unknown = running.answer(PROMPT, MAKE, py_multimodal_data={"image": 1})
    assert extra_key(unknown.request) is None
    assert running.answer(PROMPT, MAKE).loaded_tokens == 0, "what can't be told apart was not stored"


def test_what_is_not_supported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorrt_llm.llmapi.llm_args import ParallelConfig, SchedulerConfig

    refused = [
        {"parallel_config": ParallelConfig(pp_size=2)},
        {"enable_attention_dp": True},
        {"max_beam_width": 2},
        {"scheduler_config": SchedulerConfig("MAX_UTILIZATION")},
    ]
    for changes in refused:
        with pytest.raises(Unsupported):
            KelvinWorker(arguments("m", **changes))
    with pytest.raises(Unsupported, match="whole blocks"):
        KelvinWorker(arguments("m")).register_kv_caches(torch.zeros(LAYERS, POOL_BLOCKS, 8).transpose(0, 1))
    for text, message in (("{", "not JSON"), ("[]", "not a JSON object"), ('{"ulr": 1}', "unknown ulr")):
        monkeypatch.setenv("KELVIN_TRTLLM", text)
        with pytest.raises(ValueError, match=message):
            KelvinWorker(arguments("m"))


def test_the_halves_of_rank_0_find_each_other(shared_store: Store, executor: Make) -> None:
    args = arguments("m")
    assert bridges.find(args) is None
    running = executor(shared_store)
    assert bridges.find(arguments("another")) is None
    running.close()
    assert bridges._bridges == []
