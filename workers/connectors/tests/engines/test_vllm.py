"""A real vLLM over a real store: same tokens, prefixes found again, nothing lost by any failure."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from stores import Store
from vllm_server import Answer, Server

BLOCK_TOKENS = 32
_RANDOM = random.Random(5)
PREFIXES = [[_RANDOM.randrange(100, 40_000) for _ in range(20 * BLOCK_TOKENS)] for _ in range(3)]
PROMPTS = [
    [*prefix, *(_RANDOM.randrange(100, 40_000) for _ in range(9))] for prefix in PREFIXES for _ in (0, 1)
]
SHARED = 20 * BLOCK_TOKENS


@pytest.fixture(scope="module")
def expected(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, ...]]:
    """What vLLM says without the store."""
    server = Server(model_directory, tmp_path_factory.mktemp("plain") / "log")
    try:
        server.start(None)
        return [server.complete(prompt).tokens for prompt in PROMPTS]
    finally:
        server.stop()


class Serving:
    """A store with a disk, and vLLM over it."""

    def __init__(self, directory: Path, model: Path) -> None:
        data, nvme = directory / "data", directory / "nvme"
        nvme.mkdir()
        flags = ["--dram", "1GiB", "--data", str(data), "--nvme", f"{nvme}=1GiB", "--offload", "eager"]
        self.store = Store(directory, *flags)
        self.server = Server(model, directory / "log")

    def answers(self) -> list[Answer]:
        """Every prompt's, vLLM's own cache dropped before each."""
        answers = []
        for prompt in PROMPTS:
            self.server.forget()
            answers.append(self.server.complete(prompt))
        return answers

    def found_again(self, prompt: list[int], tokens: tuple[int, ...]) -> None:
        """Waits until a prompt comes out of the store; every answer until then is right."""
        await_prefix(self.server, prompt, tokens)


def await_prefix(server: Server, prompt: list[int], tokens: tuple[int, ...], seconds: float = 60.0) -> None:
    """Waits until a server has a prompt's prefix from the store; every answer until then is right."""
    deadline = time.monotonic() + seconds
    while True:
        server.forget()
        answer = server.complete(prompt)
        assert answer.tokens == tokens
        if answer.cached_tokens == SHARED:
            return
        assert time.monotonic() < deadline, "the store is not used"


@pytest.fixture(scope="module")
def serving(
    expected: list[tuple[int, ...]], model_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    serving = Serving(Path(tmp_path_factory.mktemp("s")), model_directory)
    try:
        serving.store.start()
        serving.server.start(serving.store.url)
        yield serving
    finally:
        serving.server.stop()
        serving.store.stop()


def test_same_tokens_and_shared_prefixes_are_found(serving: Serving, expected: list[tuple[int, ...]]) -> None:
    first = serving.answers()
    assert [answer.tokens for answer in first] == expected
    assert [answer.cached_tokens for answer in first] == [0, SHARED] * len(PREFIXES)
    again = serving.answers()
    assert [answer.tokens for answer in again] == expected
    assert {answer.cached_tokens for answer in again} == {SHARED}


def test_prefixes_are_found_after_restarts(serving: Serving, expected: list[tuple[int, ...]]) -> None:
    serving.server.stop()
    serving.store.kill()
    serving.store.start()
    serving.server.start(serving.store.url)
    answers = serving.answers()
    assert [answer.tokens for answer in answers] == expected
    assert {answer.cached_tokens for answer in answers} == {SHARED}


def test_a_killed_store_fails_no_request(serving: Serving, expected: list[tuple[int, ...]]) -> None:
    serving.store.kill()
    answers = serving.answers()
    assert [answer.tokens for answer in answers] == expected
    serving.store.start()
    serving.found_again(PROMPTS[0], expected[0])


def test_a_store_killed_under_load_fails_no_request(
    serving: Serving, expected: list[tuple[int, ...]]
) -> None:
    answers: dict[int, Answer] = {}

    def ask(number: int) -> None:
        answers[number] = serving.server.complete(PROMPTS[number])

    for _ in range(2):
        serving.server.forget()
        answers.clear()
        clients = [threading.Thread(target=ask, args=(number,)) for number in range(len(PROMPTS))]
        for client in clients:
            client.start()
        serving.store.kill()
        for client in clients:
            client.join()
        assert [answers[number].tokens for number in range(len(PROMPTS))] == expected
        serving.store.start()
        serving.found_again(PROMPTS[0], expected[0])


def test_a_hung_store_holds_nobody_up(serving: Serving, expected: list[tuple[int, ...]]) -> None:
    serving.store.signal(signal.SIGSTOP)
    try:
        answers = serving.answers()
    finally:
        serving.store.signal(signal.SIGCONT)
    assert [answer.tokens for answer in answers] == expected
    assert {answer.cached_tokens for answer in answers} == {0}
    serving.found_again(PROMPTS[0], expected[0])


@contextmanager
def stuttering(store: Store) -> Iterator[None]:
    """The store stands still now and then, for shorter and longer than anybody waits for it."""
    over = threading.Event()

    def stutter() -> None:
        for seconds in itertools.cycle((0.02, 0.1, 0.2, 0.4, 1.0)):
            store.signal(signal.SIGSTOP)
            over.wait(seconds)
            store.signal(signal.SIGCONT)
            if over.wait(seconds / 2):
                return

    thread = threading.Thread(target=stutter)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_store_that_answers_late_fails_no_request(
    serving: Serving, expected: list[tuple[int, ...]]
) -> None:
    with stuttering(serving.store):
        for _ in range(3):
            assert [answer.tokens for answer in serving.answers()] == expected
    serving.found_again(PROMPTS[0], expected[0])


def test_a_damaged_block_is_recomputed(serving: Serving, expected: list[tuple[int, ...]]) -> None:
    serving.found_again(PROMPTS[0], expected[0])
    assert serving.store.process is not None
    damage(serving.store.process.pid)
    answers = serving.answers()
    assert [answer.tokens for answer in answers] == expected
    assert min(answer.cached_tokens for answer in answers) < SHARED
    again = serving.answers()
    assert [answer.tokens for answer in again] == expected


def damage(process: int, step: int = 1 << 20) -> None:
    """Overwrites a few bytes in every used `step` bytes of a store's memory."""
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        if "memfd:" not in os.readlink(descriptor):
            continue
        with descriptor.open("r+b", buffering=0) as memory:
            size = memory.seek(0, os.SEEK_END)
            for offset in range(step // 2, size, step):
                memory.seek(offset)
                if any(memory.read(64)):
                    memory.seek(offset)
                    memory.write(b"\xee" * 64)


def test_another_type_is_refused_at_start(serving: Serving, model_directory: Path, tmp_path: Path) -> None:
    other = Server(model_directory, tmp_path / "log", dtype="bfloat16")
    try:
        with pytest.raises(RuntimeError):
            other.start(serving.store.url)
        log = (tmp_path / "log").read_text()
        assert "FINGERPRINT_MISMATCH" in log
        assert "float32" in log and "bfloat16" in log
    finally:
        other.stop()


def test_two_servers_share_a_store(serving: Serving, model_directory: Path, tmp_path: Path) -> None:
    other = Server(model_directory, tmp_path / "other")
    try:
        other.start(serving.store.url)
        for prefills, loads, first in ((serving.server, other, 18), (other, serving.server, 19)):
            prompt = [first, *PROMPTS[2][1:]]
            made = prefills.complete(prompt)
            assert made.cached_tokens == 0
            await_prefix(loads, prompt, made.tokens)
        # Both at once, on prompts that neither has seen; who is first stores them.
        prompts = [[token, *PROMPTS[4][1:]] for token in (20, 21)]
        answers: dict[tuple[int, int], Answer] = {}

        def ask(number: int, server: Server) -> None:
            for which, prompt in enumerate(prompts):
                answers[number, which] = server.complete(prompt)

        clients = [threading.Thread(target=ask, args=pair) for pair in enumerate((serving.server, other))]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        for which, prompt in enumerate(prompts):
            assert answers[0, which].tokens == answers[1, which].tokens
            for server in (serving.server, other):
                await_prefix(server, prompt, answers[0, which].tokens)
    finally:
        other.stop()


def test_prefill_in_one_decode_in_another(
    serving: Serving, expected: list[tuple[int, ...]], model_directory: Path, tmp_path: Path
) -> None:
    prompt = [*PROMPTS[0][1:], 17]
    serving.server.stop()
    producer = Server(model_directory, tmp_path / "producer")
    consumer = Server(model_directory, tmp_path / "consumer")
    try:
        producer.start(serving.store.url, "kv_producer")
        made = producer.complete(prompt)
        consumer.start(serving.store.url, "kv_consumer")
        answer = consumer.complete(prompt)
        assert answer.tokens == made.tokens
        assert answer.cached_tokens == SHARED
    finally:
        producer.stop()
        consumer.stop()
