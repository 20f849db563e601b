"""Time to the first token on a long prompt, cold and with a stored prefix, by block size."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))

import kelvin
from kelvin.hf import KelvinCache
from stores import Store


def first_token(cache: KelvinCache, prompt: torch.Tensor) -> tuple[float, int]:
    """Seconds to the first token, and the token; nothing is stored."""
    start = time.perf_counter()
    past = cache.fetch(prompt)
    with torch.inference_mode():
        left = prompt[:, past.get_seq_length() :]
        logits = cache.model(input_ids=left, past_key_values=past, logits_to_keep=1).logits
    token = int(logits[0, -1].argmax())
    return time.perf_counter() - start, token


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=getattr(torch, arguments.dtype)
    )
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(100, 40_000, (1, arguments.tokens), generator=generator)
    print(
        f"{'block':>5} {'cold ms':>9} {'warm ms':>9} {'ratio':>6} {'left':>5} {'fetch ms':>9} {'store ms':>9}"
    )
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory), "--dram", "1GiB").start()
        try:
            for block_tokens in (16, 32, 64, 128):
                client = kelvin.Client(store.url)
                with KelvinCache(model, client, name=f"b{block_tokens}", block_tokens=block_tokens) as cache:
                    cold, expected = first_token(cache, prompt)
                    with torch.inference_mode():
                        past = model(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values
                    start = time.perf_counter()
                    cache.store(past, prompt)
                    stored = time.perf_counter() - start
                    warm, fetched = [], []
                    for _ in range(arguments.repeats):
                        seconds, token = first_token(cache, prompt)
                        assert token == expected
                        warm.append(seconds)
                        start = time.perf_counter()
                        left = arguments.tokens - cache.fetch(prompt).get_seq_length()
                        fetched.append(time.perf_counter() - start)
                    median = statistics.median(warm)
                    print(
                        f"{block_tokens:>5} {cold * 1e3:>9.1f} {median * 1e3:>9.1f} {cold / median:>6.1f} "
                        f"{left:>5} {statistics.median(fetched) * 1e3:>9.1f} {stored * 1e3:>9.1f}"
                    )
        finally:
            store.stop()


if __name__ == "__main__":
    main()
