"""Blocks of an engine's paged KV pool: what to move, and moving it. Shared by the connectors of such engines.

Payload is opaque: how a block's bytes lie in the engine's pool is known to `write` and `read` alone, which copy one
block into the pool and out of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import torch
from torch.utils.dlpack import from_dlpack

from kelvin._kelvin import BlockStatus, Match, Namespace, ReadLease, WriteLease
from kelvin.errors import ChecksumMismatch
from kelvin.settings import Settings

if TYPE_CHECKING:
    from kelvin._kelvin import Tier

logger = logging.getLogger(__name__)

Request = TypeVar("Request")
"""How the engine names its requests."""

Copy: TypeAlias = Callable[[int, torch.Tensor], None]
"""Copies one block: its number in the engine's pool, and its bytes in the store (one axis of `uint8`)."""

IN_MEMORY: tuple[Tier, ...] = ("hbm", "dram")
PENDING_SAVES_MAX = 8
"""Saves of a worker that wait for the store; more are not made, which only costs later hits."""


@dataclass(frozen=True)
class Load(Generic[Request]):
    """Blocks to bring for one request."""

    request: Request
    tokens: list[int]
    """From the prompt's start to the end of the last block to bring."""
    extra: bytes
    first: int
    """Blocks before those to bring."""
    block_ids: list[int]
    """The engine's numbers of the blocks to fill, from `first` on."""


@dataclass(frozen=True)
class Save:
    """Blocks of one request that are whole when the step has run."""

    tokens: list[int]
    extra: bytes
    first: int
    """Blocks before it are known to be stored."""
    block_ids: list[int]
    """The engine's numbers of all blocks, from the start."""


def worthwhile(found: Match, seconds: float, prefill_tokens_per_second: float) -> list[Tier]:
    """Tiers of the blocks to load within `seconds`: all, or those in memory where the rest would come too late.

    Too late is also what takes longer than to compute it at `prefill_tokens_per_second`, where that is not 0.
    """
    if prefill_tokens_per_second > 0:
        seconds = min(seconds, found.tokens / prefill_tokens_per_second)
    tiers = found.tiers
    if found.load_us_estimate / 1e6 <= seconds:
        return tiers
    cold = (number for number, tier in enumerate(tiers) if tier not in IN_MEMORY)
    return tiers[: next(cold, len(tiers))]


def copy_in(leases: Iterable[ReadLease], block_ids: Sequence[int], write: Copy) -> int:
    """Copies leased blocks into the engine's; how many, up to the first that is damaged."""
    copied = 0
    for lease, block in zip(leases, block_ids, strict=False):
        try:
            source = from_dlpack(lease)
        except ChecksumMismatch as error:
            logger.warning("kelvin: recompute from a damaged block on: %s", error)
            break
        write(block, source)
        copied += 1
    return copied


def load_blocks(namespace: Namespace, load: Load[Request], write: Copy) -> int:
    """Fills as many of the blocks as are stored; how many that were.

    :class:`kelvin.KelvinError` when the store fails; blocks filled until then are whole.
    """
    hashes = namespace.hashes(load.tokens, load.extra)[load.first :]
    loaded = 0
    # The store gives a bounded number of blocks in a call. A block is verified when it is first looked at, right
    # before it is copied: then it is in the processor's cache.
    while loaded < len(hashes):
        with namespace.acquire(hashes[loaded:], verify=False) as leases:
            copied = copy_in(leases, load.block_ids[loaded:], write)
            loaded += copied
            if copied < len(leases) or leases.stopped is not None or not leases:
                break
    return loaded


def reserve_and_fill(namespace: Namespace, save: Save, read: Copy, settings: Settings) -> list[WriteLease]:
    """Reserves those blocks of a save that nobody has, and fills them; to be committed.

    :class:`kelvin.KelvinError` when the store fails. What `read` raises gives all reservations back.
    """
    hashes = namespace.hashes(save.tokens, save.extra)
    first = save.first
    reserved = _reserve(namespace, hashes, first, settings)
    if first > 0 and reserved and reserved[0] == BlockStatus.NO_PARENT:
        # What was stored is not any more, but the engine still has it.
        first = 0
        reserved = _reserve(namespace, hashes, first, settings)
    filled = []
    for lease, block in zip(reserved, save.block_ids[first:], strict=True):
        if isinstance(lease, WriteLease):
            read(block, from_dlpack(lease))
            filled.append(lease)
    return filled


def _reserve(
    namespace: Namespace, hashes: Sequence[bytes], first: int, settings: Settings
) -> list[WriteLease | BlockStatus]:
    parent = hashes[first - 1] if first > 0 else None
    return namespace.reserve(parent, hashes[first:], settings.priority, settings.block_ttl)
