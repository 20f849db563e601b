"""What must be equal for two engines to understand each other's bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything that decides the bytes of a block of one model, apart from its tokens.

    All values are text of 1 to 256 bytes; at most 64 attributes.
    """

    model_digest: str
    """Digest of the weights, lowercase hex."""
    engine: str
    """Engine whose state format the block holds, e.g. ``"vllm"``."""
    engine_build: str
    """Build of it, as far as it decides the format."""
    layout: str
    """Order of the bytes in a block."""
    dtype: str
    """Type of one KV element, e.g. ``"bfloat16"``."""
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Anything else that changes the bytes; order does not matter."""

    def __post_init__(self) -> None:
        # The native half wants a dict; a copy, so that nobody changes it afterwards.
        object.__setattr__(self, "attributes", dict(self.attributes))


@dataclass(frozen=True)
class Shard:
    """A slice of a model that is split over several engines; by default the whole model."""

    tensor_rank: int = 0
    tensor_size: int = 1
    pipeline_rank: int = 0
    pipeline_size: int = 1
