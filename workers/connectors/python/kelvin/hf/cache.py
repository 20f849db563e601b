"""Prompt prefixes of a transformers model, found in and kept by a store."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import DynamicCache

from kelvin import BlockStatus, Client, KelvinError, WriteLease
from kelvin.hf.identity import fingerprint
from kelvin.hf.layout import Layout, Unsupported

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

BLOCK_TOKENS = 32
"""Tokens a block. Smaller finds more of a prompt, larger costs less a token: see `tests/engines/measure_hf.py`."""


@dataclass
class Report:
    """What the last calls did, for whoever wants to know whether it pays."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Tokens whose KV came from the store."""
    stored_blocks: int = 0
    """Blocks that the last `store` added."""
    failures: int = 0
    """Calls to the store that failed, since the start; each cost a recomputation, nothing else."""


class KelvinCache:
    """A model's prefix cache in a store. One sequence at a time; not for several threads at once.

    A store that is away or fails costs recomputation, never an error; what can't work at all (another
    fingerprint, an unsupported model) is refused when this is made.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        client: Client,
        *,
        name: str | None = None,
        block_tokens: int = BLOCK_TOKENS,
        extra: bytes = b"",
    ) -> None:
        """Computes one token to learn the KV's shape, and opens the model's namespace.

        ``name`` is the model's public name (by default that of its configuration); ``extra`` whatever else
        decides the KV and is not in the weights, e.g. the name of the active adapter.
        """
        self.model = model
        self.layout = Layout.probe(model, block_tokens)
        self.extra = extra
        self.report = Report()
        path = model.config.name_or_path or ""
        name = name or path.rstrip("/").rpartition("/")[2] or type(model).__name__
        self.namespace = client.namespace(
            model=name,
            fingerprint=fingerprint(model, self.layout),
            block_tokens=block_tokens,
            block_bytes=self.layout.block_bytes,
        )

    def fetch(self, input_ids: torch.Tensor | Sequence[int]) -> DynamicCache:
        """A cache with the stored prefix of a prompt, empty where nothing is stored.

        ``input_ids`` is ``[tokens]`` or ``[1, tokens]``. At least one token is left to compute.
        """
        tokens = _one_sequence(input_ids)
        cache = DynamicCache(config=self.model.config)
        self.report.prompt_tokens, self.report.cached_tokens = len(tokens), 0
        hashes = self.namespace.hashes(tokens[:-1], self.extra)
        if not hashes:
            return cache
        try:
            with self.namespace.acquire(hashes) as leases:
                if leases:
                    self.layout.restore(leases, cache)
                    self.report.cached_tokens = len(leases) * self.layout.block_tokens
        except KelvinError as error:
            self._failed("find a prefix", error)
            return DynamicCache(config=self.model.config)
        return cache

    def store(self, cache: DynamicCache, input_ids: torch.Tensor | Sequence[int]) -> int:
        """Stores the whole blocks of a sequence that are not stored yet; how many that were.

        ``cache`` has the KV of the first tokens of ``input_ids``, as after ``generate``.
        """
        tokens = _one_sequence(input_ids)
        self.layout.check(cache)
        tokens = tokens[: cache.get_seq_length()]
        self.report.stored_blocks = 0
        hashes = self.namespace.hashes(tokens, self.extra)
        if not hashes:
            return 0
        try:
            reserved = self.namespace.reserve(None, hashes)
            leases = []
            for lease, parts in zip(reserved, self.layout.split(cache, len(hashes)), strict=True):
                if isinstance(lease, WriteLease):
                    self.layout.fill(lease, parts)
                    leases.append(lease)
            statuses = self.namespace.commit(leases)
            self.report.stored_blocks = statuses.count(BlockStatus.STORED)
        except KelvinError as error:
            self._failed("store a sequence", error)
        return self.report.stored_blocks

    def generate(self, input_ids: torch.Tensor, **arguments: Any) -> Any:
        """``model.generate`` with the stored prefix of ``input_ids`` ``[1, tokens]``, then stores what is new.

        Takes and returns what ``generate`` does, for one sequence.
        """
        for name in ("past_key_values", "cache_implementation", "cache_config"):
            if arguments.get(name) is not None:
                raise Unsupported(f"{name}: the cache is this one's, a DynamicCache")
        settings = arguments.get("generation_config", self.model.generation_config)
        for name in ("num_beams", "num_return_sequences"):
            if (arguments.get(name) or getattr(settings, name, None) or 1) != 1:
                raise Unsupported(f"{name}: one sequence at a time")
        mask = arguments.get("attention_mask")
        if mask is not None and not bool(torch.as_tensor(mask).all()):
            raise Unsupported("attention_mask: padding would become part of the prefix")
        as_dict = arguments.pop("return_dict_in_generate", None)
        if as_dict is None:
            as_dict = bool(getattr(settings, "return_dict_in_generate", False))
        past = self.fetch(input_ids)
        generate: Any = self.model.generate
        answer = generate(
            input_ids, past_key_values=past, return_dict_in_generate=True, use_cache=True, **arguments
        )
        self.store(answer.past_key_values, answer.sequences)
        return answer if as_dict else answer.sequences

    def close(self) -> None:
        """Ends the session with the store."""
        self.namespace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _failed(self, action: str, error: KelvinError) -> None:
        self.report.failures += 1
        logger.warning("%s: %s", action, error)


def _one_sequence(input_ids: torch.Tensor | Sequence[int]) -> list[int]:
    if isinstance(input_ids, torch.Tensor):
        if input_ids.dim() == 2 and input_ids.shape[0] == 1:
            input_ids = input_ids[0]
        if input_ids.dim() != 1:
            raise Unsupported(f"input_ids of shape {tuple(input_ids.shape)}: one sequence at a time")
        return input_ids.tolist()
    return list(input_ids)
