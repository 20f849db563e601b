"""Hugging Face transformers with a store; see README.md."""

import argparse
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import kelvin
from kelvin.hf import KelvinCache

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", help="directory or name of a model with full attention")
parser.add_argument("--url", default="http://127.0.0.1:7440")
arguments = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(arguments.model)
model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
prefix = "The store keeps what was computed once. " * 40
with KelvinCache(model, kelvin.Client(arguments.url)) as cache:
    for question in ("Why?", "How?"):
        ids = tokenizer(prefix + question, return_tensors="pt").input_ids
        start = time.perf_counter()
        answer = cache.generate(ids, max_new_tokens=4, do_sample=False)
        print(
            f"{question} {time.perf_counter() - start:.2f} s, {cache.report.cached_tokens} of "
            f"{cache.report.prompt_tokens} tokens cached: {tokenizer.decode(answer[0, ids.shape[1] :])!r}"
        )
