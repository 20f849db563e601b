"""Where a block's keys and values are, in a block and in a `DynamicCache`.

A block of `T` tokens is, layer after layer, the keys `[heads, T, key_dim]` and then the values
`[heads, T, value_dim]`, without gaps, in the type of the cache's own tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.dlpack import from_dlpack
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kelvin import ReadLease, WriteLease

_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Ropes whose keys depend on how long the sequence became later."""


class Unsupported(ValueError):
    """The model's KV can't be cut into blocks that stand for themselves, or not by this package."""


@dataclass(frozen=True)
class Layer:
    """Shape and place of one layer's KV."""

    heads: int
    key_dim: int
    value_dim: int
    device: torch.device


def check_cache(cache: Any) -> None:
    """Refuses caches other than plain growing ones, naming the reason."""
    if not isinstance(cache, DynamicCache):
        raise Unsupported(
            f"a {type(cache).__name__}: only a DynamicCache holds each token's KV as it was made"
        )
    for number, layer in enumerate(cache.layers):
        # Sliding, quantised, indexed and recurrent layers are subclasses or others.
        if type(layer) is not DynamicLayer:
            raise Unsupported(
                f"layer {number} is a {type(layer).__name__}: sliding-window, hybrid, recurrent and quantised "
                "caches are not supported, full attention in every layer is"
            )


def tensors(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer of a cache that was checked; refuses one that is empty."""
    pairs = []
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            raise Unsupported("a cache with layers that hold nothing yet")
        pairs.append((layer.keys, layer.values))
    return pairs


def check_rope(config: Any) -> None:
    """Refuses ropes under which a prefix's keys are not its own."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    for kind in kinds:
        name = kind.get("rope_type", kind.get("type", "default"))
        if name in _LENGTH_DEPENDENT_ROPE:
            raise Unsupported(f"rope of type {name!r}: its keys depend on the length of the whole sequence")


@dataclass(frozen=True)
class Layout:
    """Layers, type and tokens of a block."""

    layers: tuple[Layer, ...]
    dtype: torch.dtype
    block_tokens: int

    @classmethod
    def probe(cls, model: PreTrainedModel, block_tokens: int) -> Layout:
        """Asks the model itself, by computing one token, and refuses what is not supported."""
        if getattr(model.config, "is_encoder_decoder", False):
            raise Unsupported("an encoder-decoder model: its KV depends on the encoder's whole input")
        check_rope(model.config.get_text_config())
        with torch.inference_mode():
            token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
            cache = model(input_ids=token, use_cache=True).past_key_values
        check_cache(cache)
        layers = []
        for keys, values in tensors(cache):
            _, heads, _, key_dim = keys.shape
            layers.append(Layer(heads, key_dim, values.shape[-1], keys.device))
        return cls(tuple(layers), keys.dtype, block_tokens)

    @property
    def name(self) -> str:
        """Layout as the fingerprint has it."""
        shapes = [(layer.heads, layer.key_dim, layer.value_dim) for layer in self.layers]
        uniform = len(set(shapes)) == 1
        return "layer-kv-head-token-dim:" + ",".join(
            "x".join(map(str, shape)) for shape in (shapes[:1] if uniform else shapes)
        )

    @property
    def block_bytes(self) -> int:
        """Bytes a block."""
        token = sum(layer.heads * (layer.key_dim + layer.value_dim) for layer in self.layers)
        return token * self.block_tokens * self.dtype.itemsize

    def parts(self, block: torch.Tensor) -> list[torch.Tensor]:
        """Views `[heads, T, dim]` of a block's bytes (one axis of `uint8`): keys, values, keys, ..."""
        elements = block.view(self.dtype)
        shapes = [
            (layer.heads, self.block_tokens, dim)
            for layer in self.layers
            for dim in (layer.key_dim, layer.value_dim)
        ]
        if len(set(shapes)) == 1:
            return list(elements.view(len(shapes), *shapes[0]).unbind(0))
        pieces = torch.split_with_sizes(elements, [heads * tokens * dim for heads, tokens, dim in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def restore(self, leases: Sequence[ReadLease], cache: DynamicCache) -> None:
        """Fills an empty cache with the leased blocks, in order; one copy, out of the store's memory."""
        blocks = [self.parts(from_dlpack(lease)) for lease in leases]
        for number, layer in enumerate(self.layers):
            keys, values = (
                torch.cat([block[2 * number + half] for block in blocks], dim=1).unsqueeze(0).to(layer.device)
                for half in (0, 1)
            )
            target = cache.layers[number]
            assert isinstance(target, DynamicLayer), "made for this model"
            # `update` would copy once more, behind a tensor of no tokens.
            target.lazy_initialization(keys, values)
            target.keys, target.values = keys, values

    def check(self, cache: DynamicCache) -> None:
        """Refuses a cache of another model, type or batch."""
        check_cache(cache)
        if len(cache.layers) != len(self.layers):
            raise Unsupported(f"a cache of {len(cache.layers)} layers for a model of {len(self.layers)}")
        for (keys, _), layer in zip(tensors(cache), self.layers, strict=True):
            expected = (1, layer.heads, layer.key_dim)
            batch, heads, _, dim = keys.shape
            if (batch, heads, dim) != expected or keys.dtype != self.dtype:
                raise Unsupported(
                    f"keys of shape {tuple(keys.shape)}, {keys.dtype}: expected one sequence of "
                    f"{layer.heads} heads of {layer.key_dim}, {self.dtype}"
                )

    def split(self, cache: DynamicCache, blocks: int) -> list[list[torch.Tensor]]:
        """Views `[heads, T, dim]` of the first blocks of a cache: for each block keys, values, keys, ..."""
        tokens = blocks * self.block_tokens
        halves = (half for pair in tensors(cache) for half in pair)
        columns = [
            half[0, :, :tokens].view(half.shape[1], blocks, self.block_tokens, half.shape[3]).unbind(1)
            for half in halves
        ]
        return [list(parts) for parts in zip(*columns, strict=True)]

    def fill(self, lease: WriteLease, parts: Sequence[torch.Tensor]) -> None:
        """Copies one block's parts to where they are stored."""
        targets = self.parts(from_dlpack(lease))
        for target, part in zip(targets, parts, strict=True):
            target.copy_(part)
