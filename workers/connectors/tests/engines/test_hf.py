"""`kelvin.hf` with small models of random weights, and with a real one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import kelvin
from kelvin.hf import KelvinCache, Unsupported
from stores import Store

PROMPT = torch.arange(100, 171).unsqueeze(0)


def tiny(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A Llama of two layers."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def client(shared_store: Store) -> Iterator[kelvin.Client]:
    yield kelvin.Client(shared_store.url)


def caching(client: kelvin.Client, name: str, model: Any = None, **arguments: Any) -> KelvinCache:
    return KelvinCache(model or tiny(), client, name=name, block_tokens=16, **arguments)


def greedy(model: Any, prompt: torch.Tensor, **arguments: Any) -> list[int]:
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=20, **arguments)[
        0
    ].tolist()


@pytest.mark.parametrize("shared_memory", [True, False])
def test_output_is_the_same_and_prefixes_are_found(
    shared_store: Store, shared_memory: bool, request: pytest.FixtureRequest
) -> None:
    client = kelvin.Client(shared_store.url, shared_memory=shared_memory)
    model = tiny()
    expected = greedy(model, PROMPT)
    with caching(client, request.node.name, model) as cache:
        assert cache.namespace.transport == ("shm" if shared_memory else "tcp")
        assert greedy(cache, PROMPT) == expected
        assert (cache.report.cached_tokens, cache.report.stored_blocks) == (0, 5)
        assert greedy(cache, PROMPT) == expected
        assert (cache.report.cached_tokens, cache.report.stored_blocks) == (64, 0)
        # The whole answer, and another question behind it: the second turn of a conversation.
        turn = torch.tensor([[*expected, 7, 8, 9]])
        assert greedy(cache, turn) == greedy(model, turn)
        assert cache.report.cached_tokens == 80


def test_at_least_one_token_is_left(client: kelvin.Client) -> None:
    with caching(client, "one-left") as cache:
        prompt = PROMPT[:, :64]
        greedy(cache, prompt)
        past = cache.fetch(prompt)
        assert past.get_seq_length() == 48
        assert cache.fetch([1]).get_seq_length() == 0
        assert cache.fetch([]).get_seq_length() == 0


def test_restored_tensors_are_the_stored_ones(client: kelvin.Client) -> None:
    model = tiny()
    with caching(client, "exact", model) as cache, torch.inference_mode():
        past = model(input_ids=PROMPT, use_cache=True).past_key_values
        assert cache.store(past, PROMPT) == 4
        again = cache.fetch(PROMPT)
        for found, made in zip(again.layers, past.layers, strict=True):
            assert torch.equal(found.keys, made.keys[:, :, :64])
            assert torch.equal(found.values, made.values[:, :, :64])
        # They are the cache's own: leases are back, and writing there changes nothing that is stored.
        again.layers[0].keys.zero_()
        assert torch.equal(cache.fetch(PROMPT).layers[0].keys, past.layers[0].keys[:, :, :64])


def test_bfloat16_is_kept_bit_by_bit(client: kelvin.Client) -> None:
    model = tiny().to(torch.bfloat16)
    with caching(client, "bf16", model) as cache, torch.inference_mode():
        past = model(input_ids=PROMPT, use_cache=True).past_key_values
        cache.store(past, PROMPT[0].tolist())
        assert torch.equal(cache.fetch(PROMPT).layers[1].values, past.layers[1].values[:, :, :64])


def test_models_do_not_meet(client: kelvin.Client) -> None:
    with caching(client, "meet") as first:
        greedy(first, PROMPT)
        with pytest.raises(kelvin.FingerprintMismatch):
            caching(client, "meet", tiny(seed=1))
        with pytest.raises(kelvin.FingerprintMismatch):
            caching(client, "meet", tiny().to(torch.bfloat16))
        with pytest.raises(kelvin.FingerprintMismatch):
            caching(client, "meet", tiny(rope_theta=5e5))
        with caching(client, "meet") as again:
            assert again.fetch(PROMPT).get_seq_length() == 64
        with caching(client, "meet", extra=b"adapter") as adapted:
            assert adapted.fetch(PROMPT).get_seq_length() == 0


def test_what_cannot_work_is_refused(client: kelvin.Client) -> None:
    from transformers import MistralConfig, MistralForCausalLM, T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    sliding = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=8))
    with pytest.raises(Unsupported, match="sliding"):
        caching(client, "sliding", sliding)
    encoder = T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    )
    with pytest.raises(Unsupported, match="encoder"):
        caching(client, "encoder", encoder)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(Unsupported, match="dynamic"):
        caching(client, "rope", tiny(rope_parameters=rope))
    with caching(client, "arguments") as cache:
        with pytest.raises(Unsupported, match="one sequence"):
            cache.generate(PROMPT.repeat(2, 1))
        with pytest.raises(Unsupported, match="num_beams"):
            cache.generate(PROMPT, num_beams=2)
        with pytest.raises(Unsupported, match="cache_implementation"):
            cache.generate(PROMPT, cache_implementation="quantized")
        with pytest.raises(Unsupported, match="padding"):
            cache.generate(PROMPT, attention_mask=torch.tensor([[0] + [1] * 70]))
        with pytest.raises(Unsupported, match="StaticCache"):
            cache.store(transformers.StaticCache(cache.model.config, max_cache_len=8), PROMPT)
        other = tiny(head_dim=8)
        with pytest.raises(Unsupported, match="expected"), torch.inference_mode():
            cache.store(other(input_ids=PROMPT, use_cache=True).past_key_values, PROMPT)
        with pytest.raises(Unsupported, match="layers"):
            cache.store(DynamicCache(), PROMPT)


def test_a_store_that_dies_costs_nothing_but_time(make_store: Callable[..., Store]) -> None:
    running = make_store("--dram", "16MiB")
    model = tiny()
    expected = greedy(model, PROMPT)
    cache = caching(kelvin.Client(running.url, call_timeout=1.0), "dies", model)
    assert greedy(cache, PROMPT) == expected
    running.kill()
    assert greedy(cache, PROMPT) == expected
    assert cache.report.failures == 2
    running.start()
    deadline = time.monotonic() + 30
    while cache.report.cached_tokens == 0 and time.monotonic() < deadline:
        assert greedy(cache, PROMPT) == expected
    assert cache.report.cached_tokens == 64


def test_a_real_model(make_store: Callable[..., Store], model_directory: Path) -> None:
    running = make_store("--dram", "512MiB")
    model = transformers.AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    prompt = torch.randint(100, 40_000, (1, 300), generator=torch.Generator().manual_seed(7))
    expected = greedy(model, prompt)
    with KelvinCache(model, kelvin.Client(running.url)) as cache:
        assert greedy(cache, prompt) == expected
        assert greedy(cache, prompt) == expected
        assert cache.report.cached_tokens == 288
