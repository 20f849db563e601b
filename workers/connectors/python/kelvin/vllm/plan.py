"""What the scheduler tells the workers to move, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata


@dataclass(frozen=True)
class Load:
    """Blocks to bring for one request."""

    request: str
    tokens: list[int]
    """From the prompt's start to the end of the last block to bring."""
    extra: bytes
    first: int
    """Blocks before those to bring."""
    block_ids: list[int]
    """vLLM's numbers of the blocks to fill, from `first` on."""


@dataclass(frozen=True)
class Save:
    """Blocks of one request that are whole when the step has run."""

    tokens: list[int]
    extra: bytes
    first: int
    """Blocks before it are known to be stored."""
    block_ids: list[int]
    """vLLM's numbers of all blocks, from the start."""


@dataclass
class Plan(KVConnectorMetadata):
    """One step."""

    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    idle: bool = False
    """No request computes in this step: loads hold up nobody."""
