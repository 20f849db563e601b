"""Two real vLLM with KV events behind Kelvin's router, over one store."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from stores import Store, kelvin_binary
from vllm_server import Answer, Server, complete_at, free_port

BLOCK_TOKENS = 32
SECONDS = 60.0


class Router:
    """`kelvin router` before vLLM servers."""

    def __init__(self, directory: Path, backends: list[str], *flags: str) -> None:
        self.port, self.admin = free_port(), free_port()
        command = [kelvin_binary(), "router", "--listen", f"127.0.0.1:{self.port}", *flags]
        command += ["--admin-listen", f"127.0.0.1:{self.admin}"]
        for backend in backends:
            command += ["--backend", backend]
        self.log = (directory / "router.log").open("wb")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.log.close()

    def health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=10) as response:
                health: dict[str, Any] = json.load(response)
                return health
        except urllib.error.HTTPError as error:
            health = json.load(error)
            return health

    def metric(self, line: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as response:
            for text in response.read().decode().splitlines():
                if text.startswith(line + " "):
                    return float(text.rsplit(" ", 1)[1])
        return 0.0

    def complete(self, prompt: list[int]) -> Answer:
        return complete_at(self.port, prompt)

    def chat(self, question: str, after: Callable[[int], None]) -> tuple[str, dict[str, Any]]:
        """A greedy streamed answer and its usage; `after` is called behind each piece, with their number."""
        body = {
            "model": "smol",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 100,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        pieces: list[str] = []
        usage: dict[str, Any] = {}
        lines: list[bytes] = []
        with urllib.request.urlopen(request, timeout=SECONDS * 2) as response:
            for line in response:
                if not line.strip():
                    continue
                lines.append(line)
                assert line.startswith(b"data: ") and b'"error"' not in line, line
                if line.startswith(b"data: [DONE]"):
                    break
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    if text := choice["delta"].get("content"):
                        pieces.append(text)
                        after(len(pieces))
        assert lines[-1].startswith(b"data: [DONE]")
        assert len({json.loads(line[6:])["id"] for line in lines[:-1]}) == 1, "one answer"
        return "".join(pieces), usage


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(
    model_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Router, list[Server]]]:
    model = os.environ.get("KELVIN_ROUTER_MODEL")
    if model is None:
        pytest.skip("KELVIN_ROUTER_MODEL names no GGUF file for the router's vocabulary")
    directory = tmp_path_factory.mktemp("router")
    store = Store(directory, "--dram", "1GiB").start()
    servers = []
    for name in ("one", "two"):
        events, replay = free_port(), free_port()
        server = Server(model_directory, directory / name)
        said = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{events}",
            "replay_endpoint": f"tcp://*:{replay}",
        }
        server.flags += ["--kv-events-config", json.dumps(said)]
        servers.append((server, events, replay))
    router = None
    try:
        for server, _, _ in servers:
            server.start(store.url)
        backends = [
            f"http://127.0.0.1:{server.port},events=tcp://127.0.0.1:{events}"
            f",replay=tcp://127.0.0.1:{replay},store={store.url}"
            for server, events, replay in servers
        ]
        router = Router(directory, backends, "--model", model)
        until(lambda: [b["cache"] for b in router.health()["backends"]] == ["exact"] * 2, "events are followed")
        until(
            lambda: [s["known"] for s in router.health().get("stores", [])] == ["exact"],
            "the store is followed",
        )
        yield router, [server for server, _, _ in servers]
    finally:
        if router is not None:
            router.stop()
        for server, _, _ in servers:
            server.stop()
        store.stop()


def prompt_of(seed: int) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(100, 40_000) for _ in range(20 * BLOCK_TOKENS + 5)]


def test_the_second_turn_goes_to_the_one_that_has_the_first(cluster: tuple[Router, list[Server]]) -> None:
    router, _ = cluster
    for seed in range(6):
        before = router.metric('kelvin_router_feed_events_total{kind="stored"}')
        turn = prompt_of(seed)
        first = router.complete(turn)
        assert first.cached_tokens == 0
        until(
            lambda: router.metric('kelvin_router_feed_events_total{kind="stored"}') >= before + 20,
            "the engine says what it stored",
        )
        second = router.complete([*turn, *first.tokens, *prompt_of(1000 + seed)[:40]])
        # All whole blocks of the first turn are in the memory of the one that answers.
        assert second.cached_tokens >= 20 * BLOCK_TOKENS
    assert router.health()["status"] == "ok"


def test_when_the_one_that_has_it_is_busy_the_other_loads_from_the_store(
    cluster: tuple[Router, list[Server]],
) -> None:
    router, servers = cluster
    turn, tail = prompt_of(66), prompt_of(67) + prompt_of(68)

    def stored() -> int:
        blocks: int = router.health()["stores"][0]["blocks"]
        return blocks

    before = stored()
    first = router.complete(turn)
    until(lambda: stored() >= before + 20, "the router sees that the store has it")
    # Behind the same beginning, and long: it goes to the one that has that.
    busy = threading.Thread(target=router.complete, args=([*turn, *tail],))
    busy.start()
    try:
        until(lambda: any(b["in_flight"] for b in router.health()["backends"]), "the long one is under way")
        owner = next(at for at, b in enumerate(router.health()["backends"]) if b["in_flight"])
        other = servers[1 - owner]
        answered = other.answered()
        answer = router.complete(turn)
    finally:
        busy.join()
    assert other.answered() == answered + 1, "it did not wait behind the long one"
    assert answer.tokens == first.tokens
    assert answer.cached_tokens >= 19 * BLOCK_TOKENS, "it came out of the store, not by computing it again"


def test_when_the_one_that_has_it_is_killed_the_other_loads_from_the_store(
    cluster: tuple[Router, list[Server]],
) -> None:
    router, servers = cluster
    turn = prompt_of(77)
    first = router.complete(turn)
    # Who answered has it in its own memory.
    owner = next(server for server in servers if server.complete(turn).cached_tokens > 0)
    other = next(server for server in servers if server is not owner)
    # What the first stored is there for the other once its saves are through.
    until(lambda: other_found(other, turn), "the store has it")
    assert owner.process is not None
    os.killpg(owner.process.pid, signal.SIGKILL)
    answer = router.complete(turn)
    assert answer.tokens == first.tokens
    assert answer.cached_tokens >= 19 * BLOCK_TOKENS, "it came out of the store, not by computing it again"
    until(lambda: any(b["state"] == "lost" for b in router.health()["backends"]), "the loss is seen")
    assert router.complete(turn).tokens == first.tokens


def migrations(router: Router) -> list[float]:
    """Moves, tokens of what moved, and those of them that were computed again."""
    names = ("s", "_tokens", "_recomputed_tokens")
    return [router.metric(f"kelvin_router_migration{name}_total") for name in names]


def other_found(other: Server, turn: list[int]) -> bool:
    other.forget()
    found = other.complete(turn).cached_tokens > 0
    other.forget()
    return found


def test_a_stream_whose_server_is_killed_goes_on_at_the_other(
    cluster: tuple[Router, list[Server]],
) -> None:
    router, servers = cluster
    store = router.health()["stores"][0]["url"]
    for server in servers:
        if server.process is None or server.process.poll() is not None:
            server.stop()
            server.start(store)
    backends = ["ready exact"] * 2
    until(
        lambda: [f"{b['state']} {b['cache']}" for b in router.health()["backends"]] == backends,
        "both are back",
    )
    facts = " ".join(f"Item {number} of the list costs {number * 7} coins." for number in range(40))
    question = facts + " Tell me a long story about a merchant who sells these."
    undisturbed, whole = router.chat(question, lambda _: None)
    assert len(undisturbed) > 200
    before = migrations(router)

    def kill(pieces: int) -> None:
        if pieces == 40:
            owner = next(at for at, b in enumerate(router.health()["backends"]) if b["in_flight"])
            process = servers[owner].process
            assert process is not None
            os.killpg(process.pid, signal.SIGKILL)

    text, usage = router.chat(question, kill)
    print(f"undisturbed: {undisturbed!r}, moved: {text!r}, {whole}, {usage}")
    assert text == undisturbed
    assert usage["completion_tokens"] == whole["completion_tokens"]
    assert usage["prompt_tokens"] == whole["prompt_tokens"]
    moves, tokens, recomputed = (now - then for now, then in zip(migrations(router), before, strict=True))
    print(f"{moves} move, {recomputed} of {tokens} tokens computed again")
    assert moves == 1
    assert tokens > whole["prompt_tokens"]
    assert recomputed < tokens / 4, "the rest came out of the store"
