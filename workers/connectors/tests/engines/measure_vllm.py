"""Time to the first token of a real vLLM: recomputed, from its own prefix cache, from the store."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from stores import Store
from vllm_server import Server


def main() -> None:
    """One prompt; vLLM's own cache and the store take turns, so that both see the same machine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=1944)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    prompt = [random.Random(1).randrange(100, 40_000) for _ in range(arguments.tokens)]
    with tempfile.TemporaryDirectory(prefix="kelvin-") as directory:
        store = Store(Path(directory), "--dram", "2GiB")
        log = Path(directory) / "vllm.log"
        server = Server(arguments.model, log, dtype=arguments.dtype, block_size=arguments.block_size)
        try:
            store.start()
            server.start(store.url)
            server.complete(prompt[:60])
            cold = server.complete(prompt)
            own, found = [], []
            for _ in range(arguments.repeats):
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
    print(f"recompute        {cold.first_token_seconds * 1e3:8.1f} ms")
    print(f"own prefix cache {statistics.median(own):8.1f} ms  (least {min(own):.1f})")
    print(f"from the store   {statistics.median(found):8.1f} ms  (least {min(found):.1f})  {ratio:.1f}x")


if __name__ == "__main__":
    main()
