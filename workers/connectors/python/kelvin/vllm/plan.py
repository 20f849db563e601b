"""What the scheduler tells the workers to move, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

from kelvin.paged import Load, Save

__all__ = ["Load", "Plan", "Save"]


@dataclass
class Plan(KVConnectorMetadata):
    """One step."""

    loads: list[Load[str]] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    idle: bool = False
    """No request computes in this step: loads hold up nobody."""
