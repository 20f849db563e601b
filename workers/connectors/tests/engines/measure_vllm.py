"""A real vLLM's time to the first token: recomputed, from its own prefix cache, from the store; and across restarts.

``first-token``: one prompt; vLLM's own cache and the store take turns, so that both see the same machine.
``restarts``: many prompts that share prefixes, in float32, where every answer has to be that of vLLM without the
store: with an empty store, after a restart of vLLM, after a restart of the store, which then reads from its disk.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from stores import Store
from vllm_server import Answer, Server

FLOAT32_BLOCK_TOKENS = 32
BACK_SECONDS = 60.0
PATIENCE = {"match_timeout": 2.0, "load_timeout": 10.0}
"""On a busy machine an answer may be late, which counts as a miss; here it is times that count."""


def first_token(model: Path, tokens: int, dtype: str, block_size: int, repeats: int) -> None:
    """Prints the medians of one prompt."""
    prompt = [random.Random(1).randrange(100, 40_000) for _ in range(tokens)]
    with tempfile.TemporaryDirectory(prefix="kelvin-") as directory:
        store = Store(Path(directory), "--dram", "2GiB")
        server = Server(model, Path(directory) / "vllm.log", dtype=dtype, block_size=block_size)
        try:
            store.start()
            server.start(store.url)
            server.complete(prompt[:60])
            cold = server.complete(prompt)
            own, found = [], []
            for _ in range(repeats):
                warm = server.complete(prompt, 1)
                own.append(warm.first_token_seconds * 1e3)
                server.forget()
                stored = server.complete(prompt, 1)
                found.append(stored.first_token_seconds * 1e3)
                assert stored.tokens == warm.tokens
                assert stored.cached_tokens == warm.cached_tokens > 0
        finally:
            server.stop()
            store.stop()
    ratio = cold.first_token_seconds * 1e3 / statistics.median(found)
    print(f"one prompt of {tokens} tokens, {dtype}, {repeats} turns")
    print(f"  recompute        {cold.first_token_seconds * 1e3:8.1f} ms")
    print(f"  own prefix cache {statistics.median(own):8.1f} ms  (least {min(own):.1f})")
    print(f"  from the store   {statistics.median(found):8.1f} ms  (least {min(found):.1f})  {ratio:.1f}x")


def restarts(model: Path, prompts: int, prefixes: int, tokens: int) -> None:
    """Prints a line a phase; raises where an answer differs or a prefix is not found."""
    block = FLOAT32_BLOCK_TOKENS
    shared = (tokens - 8) // block * block - 2 * block
    numbers = random.Random(2)
    starts = [[numbers.randrange(100, 40_000) for _ in range(shared)] for _ in range(prefixes)]
    asked = [
        [*starts[n % prefixes], *(numbers.randrange(100, 40_000) for _ in range(tokens - shared))]
        for n in range(prompts)
    ]
    whole = (tokens - 1) // block * block
    print(f"{prompts} prompts of {tokens} tokens, float32, {prefixes} prefixes of {shared} tokens")
    with tempfile.TemporaryDirectory(prefix="kelvin-") as name:
        directory = Path(name)
        (directory / "nvme").mkdir()
        disk = ["--data", str(directory / "data"), "--nvme", f"{directory}/nvme=2GiB", "--offload", "eager"]
        store = Store(directory, "--dram", "1GiB", *disk)
        server = Server(model, directory / "vllm.log", block_size=block)
        try:
            server.start(None)
            plain = [server.complete(prompt) for prompt in asked]
            _say("vLLM alone, recomputed", plain[:prefixes])
            _say("  prefix in its own cache", plain[prefixes:])
            server.stop()
            store.start()
            server.start(store.url, **PATIENCE)
            answers = _all(server, asked)
            _same(answers, plain, [0] * prefixes + [shared] * (prompts - prefixes))
            _say("an empty store, recomputed", answers[:prefixes])
            _say("  prefix in the store", answers[prefixes:])
            server.stop()
            server.start(store.url, **PATIENCE)
            answers = _all(server, asked)
            _same(answers, plain, [whole] * prompts)
            _say("vLLM restarted", answers)
            store.stop()
            store.start()
            _back(server, asked[0])
            answers = _all(server, asked)
            _same(answers, plain, [whole] * prompts)
            _say("Kelvin restarted, from its disk at first", answers)
        except RuntimeError:
            log = (directory / "vllm.log").read_text().splitlines()
            print(*(line for line in log if "kelvin" in line), sep="\n", file=sys.stderr)
            raise
        finally:
            server.stop()
            store.stop()


def _all(server: Server, asked: Sequence[list[int]]) -> list[Answer]:
    """Every prompt's answer, vLLM's own cache dropped before each."""
    answers = []
    for prompt in asked:
        server.forget()
        answers.append(server.complete(prompt))
    return answers


def _back(server: Server, prompt: list[int]) -> None:
    """Waits until the connector has its store again."""
    deadline = time.monotonic() + BACK_SECONDS
    while time.monotonic() < deadline:
        server.forget()
        if server.complete(prompt, 1).cached_tokens:
            return
    raise RuntimeError("the store is not used again")


def _same(answers: Sequence[Answer], plain: Sequence[Answer], cached: Sequence[int]) -> None:
    for number, (answer, expected, tokens) in enumerate(zip(answers, plain, cached, strict=True)):
        if answer.tokens != expected.tokens:
            raise RuntimeError(f"prompt {number}: {answer.tokens} where vLLM alone says {expected.tokens}")
        if answer.cached_tokens != tokens:
            raise RuntimeError(f"prompt {number}: {answer.cached_tokens} tokens found, {tokens} stored")


def _say(phase: str, answers: Sequence[Answer]) -> None:
    times = [answer.first_token_seconds * 1e3 for answer in answers]
    cached = sum(answer.cached_tokens for answer in answers) // len(answers)
    print(
        f"  {phase:42} {len(answers):3} answers  first token {statistics.median(times):8.1f} ms "
        f"({min(times):.1f} to {max(times):.1f})  {cached} tokens found",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("what", nargs="?", choices=["first-token", "restarts", "all"], default="all")
    parser.add_argument("--tokens", type=int, default=1944)
    parser.add_argument("--dtype", default="bfloat16", help="of first-token")
    parser.add_argument("--block-size", type=int, default=128, help="of first-token")
    parser.add_argument("--repeats", type=int, default=15, help="of first-token")
    parser.add_argument("--prompts", type=int, default=20, help="of restarts")
    parser.add_argument("--prefixes", type=int, default=4, help="of restarts")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} processors, one thread; load average {os.getloadavg()[0]:.1f}")
    if arguments.what in ("first-token", "all"):
        first_token(
            arguments.model, arguments.tokens, arguments.dtype, arguments.block_size, arguments.repeats
        )
    if arguments.what in ("restarts", "all"):
        restarts(arguments.model, arguments.prompts, arguments.prefixes, arguments.tokens)


if __name__ == "__main__":
    main()
