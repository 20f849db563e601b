"""What must be equal for two LMCache engines to share chunks, and the settings of the plug-in."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import kelvin
from kelvin.identity import Fingerprint, Shard
from kelvin.weights import model_digest

if TYPE_CHECKING:
    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.metadata import LMCacheMetadata

PREFIX = "kelvin."
"""Of the settings' names in LMCache's `extra_config`."""


class Unsupported(ValueError):
    """A way to cut the KV cache whose chunks are not all of one size."""


@dataclass(frozen=True)
class Chunk:
    """A full chunk of one rank: all layers of `tokens` tokens."""

    tokens: int
    nbytes: int

    @classmethod
    def of(cls, config: LMCacheEngineConfig, metadata: LMCacheMetadata) -> Chunk:
        """From LMCache's configuration; refuses chunks by layer and by group of layers."""
        if config.use_layerwise:
            raise Unsupported("use_layerwise: chunks of single layers can't be stored, whole ones can")
        if metadata.get_num_groups() != 1:
            raise Unsupported(
                f"a KV cache of {metadata.get_num_groups()} groups of layers: only one can be stored"
            )
        (shape,), (dtype,) = metadata.get_shapes(), metadata.get_dtypes()
        return cls(metadata.chunk_size, prod(shape) * dtype.itemsize)


def fingerprint(metadata: LMCacheMetadata, settings: Settings) -> Fingerprint:
    """The fingerprint of a rank's chunks; equal for every rank, which :func:`shard` tells apart."""
    import lmcache

    attributes = {
        "kv_shape": "x".join(map(str, metadata.kv_shape)),
        "chunk_tokens": str(metadata.chunk_size),
    }
    if settings.variant:
        attributes["variant"] = settings.variant
    return Fingerprint(
        model_digest=model_digest(settings.model_path or metadata.model_name),
        engine="lmcache",
        engine_build=lmcache.__version__,
        layout="KV_MLA_FMT" if metadata.use_mla else "KV_2LTD",
        dtype=str(metadata.kv_dtype).removeprefix("torch."),
        attributes=attributes,
    )


def shard(metadata: LMCacheMetadata) -> Shard:
    """The slice of a chunk that this rank holds, by its number among all ranks."""
    return Shard(tensor_rank=metadata.worker_id, tensor_size=metadata.world_size)


@dataclass(frozen=True)
class Settings:
    """LMCache's `extra_config`, as far as its keys begin with ``kelvin.``."""

    url: str = "http://127.0.0.1:7440"
    token: str | None = None
    model: str | None = None
    """Public name of the model in the store; by default LMCache's, with ``+lmcache`` behind it."""
    model_path: str | None = None
    """Directory of the weights, whose digest tells models apart; by default LMCache's name of the model."""
    variant: str = ""
    """Whatever else changes the KV (weights quantized as they are loaded), as text: engines share only where it
    is equal."""
    lookup_timeout: float = 0.25
    """Seconds that a question for chunks may take; after that, they are misses."""
    call_timeout: float = 2.0
    """Seconds that a call of a load or a store may take."""
    load_timeout: float = 5.0
    """Seconds after which a load begins nothing more, and ends with what it has."""
    store_timeout: float = 30.0
    """The same of a store, from when LMCache gave it."""
    load_threads: int = 2
    """Of loads and questions that LMCache does not wait for."""
    stores_max: int = 64
    """Stores at once, running and waiting; more are dropped, which only costs later hits."""
    priority: int = 0
    """Of stored chunks, -128 to 127."""
    block_ttl: float | None = None
    """Seconds after which stored chunks are dropped."""
    shared_memory: bool = True

    @classmethod
    def of(cls, extra_config: dict[str, Any] | None) -> Settings:
        """From LMCache's configuration; :class:`ValueError` names what is not known."""
        given = {
            name.removeprefix(PREFIX): value
            for name, value in (extra_config or {}).items()
            if name.startswith(PREFIX)
        }
        unknown = sorted(set(given) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(PREFIX + name for name in cls.__dataclass_fields__)
            names = ", ".join(PREFIX + name for name in unknown)
            raise ValueError(f"extra_config: unknown {names}; known are {known}")
        return cls(**given)

    def connect(self, metadata: LMCacheMetadata, chunk: Chunk, timeout: float, name: str) -> kelvin.Namespace:
        """Opens the namespace of a rank's chunks."""
        client = kelvin.Client(
            self.url,
            self.token,
            name=name,
            call_timeout=timeout,
            connect_timeout=min(timeout, 2.0),
            shared_memory=self.shared_memory,
        )
        return client.namespace(
            model=self.model or f"{metadata.model_name}+lmcache",
            fingerprint=fingerprint(metadata, self),
            block_tokens=chunk.tokens,
            block_bytes=chunk.nbytes,
            shard=shard(metadata),
        )
