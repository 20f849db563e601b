"""The scheduler's half: what of a prompt is stored, and which blocks to load and to save.

One `match` a request, by token ids hashed here (vLLM's own block hashes depend on PYTHONHASHSEED); its answer is
kept until the request is scheduled. While the store is away everything is a miss, at no cost.

A prompt may be computed by one engine for another (`kv_transfer_params`, as routers of prefill and decode pairs send
them): the first says how many tokens it saved, and the other waits a moment until these are committed.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kelvin.errors import KelvinError
from kelvin.link import Link
from kelvin.paged import worthwhile
from kelvin.vllm.identity import Settings
from kelvin.vllm.plan import Load, Plan, Save

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

    from kelvin._kelvin import Tier

_SOURCES = {"hbm": CacheHitSource.HOST, "dram": CacheHitSource.HOST, "nvme": CacheHitSource.DISK}


_SAVED_TOKENS = "kelvin_saved_tokens"


def saved_elsewhere(request: Request) -> int:
    """Tokens that another engine saved for this request, by what it answered."""
    tokens = (request.kv_transfer_params or {}).get(_SAVED_TOKENS)
    return tokens if isinstance(tokens, int) else 0


def extra_key(request: Request) -> bytes:
    """What else than the tokens decides a request's KV; empty for a plain one."""
    parts: dict[str, object] = {}
    if request.lora_request is not None:
        parts["lora"] = [request.lora_request.lora_name, request.lora_request.lora_path]
    if request.cache_salt:
        parts["salt"] = request.cache_salt
    if request.mm_features:
        parts["mm"] = [[feature.identifier, feature.mm_position.offset] for feature in request.mm_features]
    return json.dumps(parts, sort_keys=True).encode() if parts else b""


@dataclass
class _Tracked:
    """A request that runs or is about to."""

    request: Request
    extra: bytes
    found: list[Tier] = field(default_factory=list)
    """Tier of each block that the store has of it, from the start, as far as it may be loaded."""
    awaited: int = 0
    """Blocks that another engine saved for it."""
    wait_until: float | None = None
    """End of the wait for these; None before the first look."""
    look_at: float = 0.0
    """Before then there is no other look: vLLM asks again every step."""
    pause: float = 0.002
    is_matched: bool = False
    local_tokens: int = 0
    """Tokens that vLLM had itself when it was matched."""
    block_ids: list[int] = field(default_factory=list)
    saved: int = 0
    """Blocks that are stored, or that a save was planned for."""
    loaded_at: int | None = None
    """Preemptions before its load, which is made once: what failed then is recomputed, not tried again."""


class SchedulerSide:
    """State of the scheduler's connector."""

    def __init__(self, link: Link, settings: Settings, block_tokens: int, loads: bool, saves: bool) -> None:
        self._link = link
        self._settings = settings
        self._block_tokens = block_tokens
        self._may_load = loads
        self._may_save = saves
        self._tracked: dict[str, _Tracked] = {}
        self._loads: list[Load[str]] = []

    def matched_tokens(self, request: Request, local_tokens: int) -> int | None:
        """Tokens beyond `local_tokens` that are worth loading, in whole blocks; one token is left to compute.

        None while another engine's saves are on their way: vLLM asks again.
        """
        if not self._may_load or request.prompt_embeds is not None or request.skip_reading_prefix_cache:
            return 0
        tracked = self._tracked.get(request.request_id)
        if tracked is not None and tracked.loaded_at is not None:
            if tracked.loaded_at == request.num_preemptions:
                return 0
            tracked = None
        if tracked is None:
            tracked = self._tracked[request.request_id] = _Tracked(request, extra_key(request))
            tracked.awaited = saved_elsewhere(request) // self._block_tokens
        if not tracked.is_matched:
            now = time.monotonic()
            if now < tracked.look_at:
                return None
            blocks = (request.num_tokens - 1) // self._block_tokens
            stored = self._match(tracked, blocks) if blocks * self._block_tokens > local_tokens else None
            if stored is not None and stored < min(tracked.awaited, blocks):
                if tracked.wait_until is None:
                    tracked.wait_until = now + self._settings.hand_over_timeout
                if now < tracked.wait_until:
                    tracked.pause *= 2
                    tracked.look_at = min(now + tracked.pause, tracked.wait_until)
                    return None
            tracked.is_matched = True
        tracked.local_tokens = local_tokens
        return max(0, len(tracked.found) * self._block_tokens - local_tokens)

    def _match(self, tracked: _Tracked, blocks: int) -> int | None:
        """Looks up what is stored of the first `blocks`: how many, or None without an answer."""
        namespace = self._link.get()
        if namespace is None:
            return None
        tokens = tracked.request.all_token_ids[: blocks * self._block_tokens]
        try:
            found = namespace.match(namespace.hashes(tokens, tracked.extra))
        except KelvinError as error:
            self._link.failed("match a prompt", error)
            return None
        settings = self._settings
        tracked.found = worthwhile(found, settings.load_timeout, settings.prefill_tokens_per_second)
        tracked.saved = len(tracked.found)
        return found.blocks

    def sources(self, request: Request, tokens: int) -> dict[CacheHitSource, int]:
        """Loaded tokens by where they come from."""
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            return {CacheHitSource.EXTERNAL_UNSPECIFIED: tokens} if tokens else {}
        first = tracked.local_tokens // self._block_tokens
        sources: dict[CacheHitSource, int] = {}
        for tier in tracked.found[first : first + tokens // self._block_tokens]:
            source = _SOURCES.get(tier, CacheHitSource.EXTERNAL_UNSPECIFIED)
            sources[source] = sources.get(source, 0) + self._block_tokens
        return sources

    def allocated(self, request: Request, blocks: KVCacheBlocks, tokens: int) -> None:
        """vLLM has blocks for a request; `tokens` of them are to be loaded."""
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            tracked = self._tracked[request.request_id] = _Tracked(request, extra_key(request))
        if tokens <= 0:
            return
        tracked.loaded_at = request.num_preemptions
        first = tracked.local_tokens // self._block_tokens
        end = first + tokens // self._block_tokens
        (block_ids,) = blocks.get_block_ids()
        self._loads.append(
            Load(
                request=request.request_id,
                tokens=request.all_token_ids[: end * self._block_tokens],
                extra=tracked.extra,
                first=first,
                block_ids=block_ids[first:end],
            )
        )

    def plan(self, output: SchedulerOutput) -> Plan:
        """This step's work."""
        plan = Plan(loads=self._loads, idle=output.total_num_scheduled_tokens == 0)
        self._loads = []
        if not self._may_save:
            return plan
        for new in output.scheduled_new_reqs:
            if tracked := self._tracked.get(new.req_id):
                tracked.block_ids = list(new.block_ids[0])
                self._save(plan, tracked, new.num_computed_tokens + output.num_scheduled_tokens[new.req_id])
        cached = output.scheduled_cached_reqs
        for number, request in enumerate(cached.req_ids):
            tracked = self._tracked.get(request)
            if tracked is None:
                continue
            block_ids = cached.new_block_ids[number]
            if request in cached.resumed_req_ids:
                tracked.block_ids = []
            if block_ids is not None:
                tracked.block_ids.extend(block_ids[0])
            self._save(
                plan, tracked, cached.num_computed_tokens[number] + output.num_scheduled_tokens[request]
            )
        return plan

    def _save(self, plan: Plan, tracked: _Tracked, computed: int) -> None:
        request = tracked.request
        if request.prompt_embeds is not None:
            return
        # Tokens that were only speculated on, or that the scheduler has not seen yet, are in no whole block.
        whole = min(computed, request.num_tokens) // self._block_tokens
        if whole <= tracked.saved or whole > len(tracked.block_ids):
            return
        plan.saves.append(
            Save(
                tokens=request.all_token_ids[: whole * self._block_tokens],
                extra=tracked.extra,
                first=tracked.saved,
                block_ids=tracked.block_ids[:whole],
            )
        )
        tracked.saved = whole

    def finished(self, request: Request) -> dict[str, Any] | None:
        """The request is over; saves that were planned have run. What the engine that decodes behind it is told."""
        tracked = self._tracked.pop(request.request_id, None)
        if tracked is None or not (request.kv_transfer_params or {}).get("do_remote_decode"):
            return None
        # Not `do_remote_prefill`: then vLLM gives out the cached tokens of the first engine as the second one's.
        return {_SAVED_TOKENS: tracked.saved * self._block_tokens}

    def reset(self) -> bool:
        """Drops every block of this model: its weights changed, or somebody said so."""
        namespace = self._link.get()
        if namespace is None:
            return False
        try:
            namespace.evict_all()
        except KelvinError as error:
            self._link.failed("drop all blocks", error)
            return False
        return True

    def close(self) -> None:
        """Ends the session."""
        self._link.close()
