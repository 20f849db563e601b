"""A conversation with a transformers model whose prompt prefixes are kept in a store.

Run as ``python examples/hf.py MODEL [--store http://127.0.0.1:7440]``.
"""

from __future__ import annotations

import argparse
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import kelvin
from kelvin.hf import KelvinCache

SYSTEM = "You are a patient teacher. " + "Explain every step, name what you assume, and keep it short. " * 60
QUESTIONS = ("Why is the sky blue?", "Why is the sea blue?", "Why is grass green?")


def main() -> None:
    """Asks three questions behind one long system prompt; from the second on it comes out of the store."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--store", default="http://127.0.0.1:7440")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    with KelvinCache(model, kelvin.Client(arguments.store)) as cache:
        for question in QUESTIONS:
            turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
            ids = prompt["input_ids"] if not isinstance(prompt, torch.Tensor) else prompt
            start = time.perf_counter()
            answer = cache.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
            )
            seconds = time.perf_counter() - start
            text = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
            found = f"{cache.report.cached_tokens} of {cache.report.prompt_tokens} tokens found"
            print(f"{seconds:.2f} s, {found}: {question} {text!r}")


if __name__ == "__main__":
    main()
