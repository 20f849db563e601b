"""A real vLLM whose own offloading has a tier in a real store; the device is the CPU, see `cpu_offload`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from stores import Store
from test_vllm import PROMPTS, SHARED, damage
from vllm_server import Answer, Server

CHUNK_BYTES = 1_474_560
"""Of 32 tokens in float32."""


class Serving:
    """A store, and vLLM with a tier in it."""

    def __init__(self, directory: Path, model: Path) -> None:
        data, nvme = directory / "data", directory / "nvme"
        nvme.mkdir()
        flags = ["--dram", "1GiB", "--data", str(data), "--nvme", f"{nvme}=1GiB", "--offload", "eager"]
        self.store = Store(directory, *flags)
        self.server = Server(model, directory / "log")
        self.engine = f"kelvin-test-{self.server.port}"

    def start(self) -> None:
        tier = {"type": "KelvinTier", "module_path": "kelvin.vllm.tier", "url": self.store.url}
        offloading: dict[str, Any] = {
            "spec_name": "CpuTieringSpec",
            "spec_module_path": "cpu_offload",
            # Less than the prompts' chunks altogether.
            "cpu_bytes_to_use": 50 * CHUNK_BYTES,
            "secondary_tiers": [tier],
        }
        self.server.start_with(
            {
                "engine_id": self.engine,
                "kv_connector": "OffloadingConnector",
                "kv_role": "kv_both",
                "kv_connector_extra_config": offloading,
            }
        )

    def stop(self) -> None:
        """Ends vLLM, and the memory of its primary tier: the file stays when vLLM is told to end."""
        self.server.stop()
        for file in Path("/dev/shm").glob(f"vllm_offload_{self.engine}*.mmap"):
            file.unlink()

    def answer(self, number: int) -> Answer:
        """A prompt's, with nothing left of it but what the store has."""
        self.server.forget(connectors_too=True)
        return self.server.complete(PROMPTS[number])

    def found_again(self, number: int, tokens: tuple[int, ...], seconds: float = 60.0) -> None:
        """Waits until a prompt comes out of the store; every answer until then is right."""
        deadline = time.monotonic() + seconds
        while (answer := self.answer(number)).cached_tokens != SHARED:
            assert answer.tokens == tokens
            assert time.monotonic() < deadline, "the store is not used again"
        assert answer.tokens == tokens


@pytest.fixture(scope="module")
def serving(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))
    serving = Serving(Path(tmp_path_factory.mktemp("t")), model_directory)
    try:
        serving.store.start()
        serving.start()
        yield serving
    finally:
        serving.stop()
        serving.store.stop()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def expected(serving: Serving) -> list[tuple[int, ...]]:
    """What vLLM says when it computes everything, and nothing is stored yet."""
    answers = []
    for number in range(0, len(PROMPTS), 2):
        answers.append(serving.answer(number))
    assert {answer.cached_tokens for answer in answers} == {0}
    return [answer.tokens for answer in answers]


def test_prefixes_come_from_the_store(serving: Serving, expected: list[tuple[int, ...]]) -> None:
    for number, tokens in enumerate(expected):
        serving.found_again(2 * number, tokens)
    # The other prompt with the same prefix.
    assert serving.answer(1).cached_tokens == SHARED


def test_prefixes_are_found_after_restarts(serving: Serving, expected: list[tuple[int, ...]]) -> None:
    serving.stop()
    serving.store.kill()
    serving.store.start()
    serving.start()
    answers = [serving.answer(2 * number) for number in range(len(expected))]
    assert [answer.tokens for answer in answers] == expected
    assert {answer.cached_tokens for answer in answers} == {SHARED}


def test_a_killed_store_fails_no_request(serving: Serving, expected: list[tuple[int, ...]]) -> None:
    serving.found_again(0, expected[0])
    serving.server.forget(connectors_too=True)
    answers: dict[int, Answer] = {}

    def ask(number: int) -> None:
        answers[number] = serving.server.complete(PROMPTS[2 * number])

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(len(expected))]
    for client in clients:
        client.start()
    serving.store.kill()
    for client in clients:
        client.join()
    assert [answers[number].tokens for number in range(len(expected))] == expected
    serving.store.start()
    serving.found_again(0, expected[0])


def test_a_hung_store_holds_nobody_up(serving: Serving, expected: list[tuple[int, ...]]) -> None:
    serving.store.signal(signal.SIGSTOP)
    try:
        answers = [serving.answer(2 * number) for number in range(len(expected))]
    finally:
        serving.store.signal(signal.SIGCONT)
    assert [answer.tokens for answer in answers] == expected
    assert {answer.cached_tokens for answer in answers} == {0}
    serving.found_again(0, expected[0])


def test_a_damaged_chunk_is_recomputed(serving: Serving, expected: list[tuple[int, ...]]) -> None:
    for number, tokens in enumerate(expected):
        serving.found_again(2 * number, tokens)
    assert serving.store.process is not None
    damage(serving.store.process.pid)
    answers = [serving.answer(2 * number) for number in range(len(expected))]
    assert [answer.tokens for answer in answers] == expected
    assert min(answer.cached_tokens for answer in answers) < SHARED
