"""Two real vLLM behind Kelvin's router: one computes prompts, the other decodes behind them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from stores import Store
from test_router import BLOCK_TOKENS, Router, prompt_of, until
from vllm_server import Server


@pytest.fixture(scope="module")
def pair(
    model_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Router, Server, Server]]:
    directory = tmp_path_factory.mktemp("pair")
    store = Store(directory, "--dram", "1GiB").start()
    prefill, decode = (Server(model_directory, directory / name) for name in ("prefill", "decode"))
    router = None
    try:
        prefill.start(store.url, "kv_producer")
        decode.start(store.url, "kv_consumer")
        backends = [
            f"http://127.0.0.1:{server.port},role={role}"
            for server, role in ((prefill, "prefill"), (decode, "decode"))
        ]
        router = Router(directory, backends, "--prefill", "remote")
        until(lambda: router.health()["status"] == "ok", "both are ready")
        yield router, prefill, decode
    finally:
        if router is not None:
            router.stop()
        for server in (prefill, decode):
            server.stop()
        store.stop()


def test_the_one_that_decodes_has_all_whole_blocks_from_the_other(
    pair: tuple[Router, Server, Server],
) -> None:
    router, prefill, decode = pair
    for seed in range(5):
        prompt = prompt_of(4000 + seed)
        answer = router.complete(prompt)
        assert answer.cached_tokens == 20 * BLOCK_TOKENS, "none of it is computed where it is decoded"
        # What one engine alone answers, of its own.
        assert prefill.complete(prompt).tokens == answer.tokens
    assert router.metric('kelvin_router_backend_prefills_total{result="done"}') == 5
    # A decode server without the router: nobody computed this one for it.
    assert decode.complete(prompt_of(5000)).cached_tokens == 0


def test_without_the_one_that_computes_the_other_does_it(pair: tuple[Router, Server, Server]) -> None:
    router, prefill, _ = pair
    prompt = prompt_of(4100)
    expected = prefill.complete(prompt)
    prefill.stop()
    answer = router.complete(prompt_of(4101))
    assert len(answer.tokens) == 8 and answer.cached_tokens == 0
    # What it had stored before is still there.
    answer = router.complete(prompt)
    assert (answer.tokens, answer.cached_tokens) == (expected.tokens, 20 * BLOCK_TOKENS)
