"""The scheduler's half, on rank 0: what of a prompt is stored, and which blocks to load and to save.

# A promise is kept
TensorRT-LLM asks once a request how many tokens will be loaded, and then waits for them: it has no word for a load
that failed. So a match is answered when leases on the blocks are in hand, of every tensor rank's shard, with their
bytes verified; what can't be had within `match_timeout` is not promised, and a store that is away costs nothing.

# Blocks stay put
A request for which workers copy anything keeps its blocks until they say that they are through: `request_finished`
answers so.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tensorrt_llm._torch.pyexecutor.kv_cache_connector import KvCacheConnectorScheduler

from kelvin import Acquired, KelvinError
from kelvin.link import Link
from kelvin.paged import Load, Save, worthwhile
from kelvin.trtllm import bridge as bridges
from kelvin.trtllm.bridge import Bridge
from kelvin.trtllm.identity import NO_PAGE, Pool, check, connect, settings_of_environment, tensor_ranks
from kelvin.trtllm.plan import Plan, RequestSave

if TYPE_CHECKING:
    from tensorrt_llm._torch.pyexecutor.kv_cache_connector import RequestData, SchedulerOutput
    from tensorrt_llm._torch.pyexecutor.llm_request import LlmRequest
    from tensorrt_llm.llmapi.llm_args import TorchLlmArgs

logger = logging.getLogger(__name__)


def extra_key(request: LlmRequest) -> bytes | None:
    """What else than the tokens decides a request's KV; empty for a plain one, None where it can't be told."""
    parts: dict[str, Any] = {}
    for name in ("lora_task_id", "cache_salt_id", "multimodal_hashes", "multimodal_positions"):
        # Which of these a request has depends on the release.
        value = getattr(request, name, None)
        if value is not None and value != []:
            parts[name] = value
    embedded = getattr(request, "prompt_embedding_table", None) is not None
    images = getattr(request, "py_multimodal_data", None) and "multimodal_hashes" not in parts
    if embedded or images:
        return None
    return json.dumps(parts, sort_keys=True, default=str).encode() if parts else b""


@dataclass
class _Tracked:
    """A request that runs or is about to."""

    extra: bytes
    tokens: list[int]
    first: int = 0
    """Blocks that TensorRT-LLM had itself when it was matched."""
    promised: int = 0
    """Blocks behind them that are to be loaded."""
    guards: list[Acquired] = field(default_factory=list)
    """Leases that keep the other ranks' blocks in the store until those ranks have leases of their own."""
    block_ids: list[int] = field(default_factory=list)
    saved: int = 0
    """Blocks that are stored, or that a save was planned for."""
    handed: bool = False
    """Workers were told to move blocks of it."""
    given_up: bool = False
    """It lost its blocks once: nothing more is moved for it."""

    def unguard(self) -> None:
        guards, self.guards = self.guards, []
        for leases in guards:
            leases.release()


class KelvinScheduler(KvCacheConnectorScheduler):
    """Prefix cache in a Kelvin store. Settings: :class:`kelvin.settings.Settings`, in ``KELVIN_TRTLLM``."""

    def __init__(self, llm_args: TorchLlmArgs) -> None:
        """:class:`~kelvin.trtllm.Unsupported` or :class:`ValueError` for what is not supported or misspelt."""
        super().__init__(llm_args)
        check(llm_args)
        self._args = llm_args
        self._settings = settings_of_environment()
        self._block_tokens: int = llm_args.kv_cache_config.tokens_per_block
        self._bridge: Bridge | None = None
        self._links: list[Link] = []
        self._tracked: dict[int, _Tracked] = {}
        self._loads: list[Load[int]] = []
        self._abandoned: list[int] = []
        self._warned = False

    def wait_for_initialization(self) -> None:
        """Opens the namespaces; :class:`kelvin.KelvinError` where a store refuses, none where it is away."""
        self._open()

    def _open(self) -> Bridge | None:
        if self._bridge is None:
            self._bridge = bridges.find(self._args)
            if self._bridge is not None:
                pool = self._bridge.pool
                self._links = [self._link(pool, rank) for rank in range(tensor_ranks(self._args))]
        return self._bridge

    def _link(self, pool: Pool, rank: int) -> Link:
        seconds = self._settings.match_timeout
        return Link(
            lambda: connect(self._args, self._settings, pool, rank, seconds, f"trtllm-scheduler-{rank}")
        )

    # Before a request runs

    def get_num_new_matched_tokens(self, request: LlmRequest, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens beyond `num_computed_tokens` that are loaded, in whole blocks; one token is left to compute."""
        extra = extra_key(request)
        if extra is None or getattr(request, "is_dummy", False):
            return 0, False
        tracked = _Tracked(extra, list(request.get_tokens(0)))
        self._forget(request.request_id)
        self._tracked[request.request_id] = tracked
        if num_computed_tokens % self._block_tokens:
            # The rest of that block may still be copied by TensorRT-LLM when it would be loaded.
            if not self._warned:
                self._warned = True
                logger.warning(
                    "kelvin: TensorRT-LLM reuses parts of blocks, and then nothing is loaded: set enable_partial_reuse "
                    "of kv_cache_config to false"
                )
            return 0, False
        tracked.first = num_computed_tokens // self._block_tokens
        tracked.promised = self._secure(request.request_id, tracked)
        tracked.saved = tracked.first + tracked.promised if tracked.promised else 0
        return tracked.promised * self._block_tokens, tracked.promised > 0

    def _secure(self, request: int, tracked: _Tracked) -> int:
        """Leases the blocks to load, on every rank; how many, from the first on."""
        blocks = (len(tracked.tokens) - 1) // self._block_tokens
        bridge = self._open()
        if bridge is None or blocks <= tracked.first:
            return 0
        tokens = tracked.tokens[: blocks * self._block_tokens]
        secured = [self._acquire(self._links[0], tokens, tracked, worth=True)]
        for link in self._links[1:]:
            if not secured[-1]:
                break
            secured.append(self._acquire(link, tokens, tracked, worth=False))
        run = min(len(leases) if leases is not None else 0 for leases in secured)
        held = [leases for leases in secured if leases is not None]
        if run == 0:
            for leases in held:
                leases.release()
            return 0
        bridge.hold(request, held[0])
        tracked.guards = held[1:]
        return run

    def _acquire(self, link: Link, tokens: list[int], tracked: _Tracked, worth: bool) -> Acquired | None:
        namespace = link.get()
        if namespace is None:
            return None
        try:
            hashes = namespace.hashes(tokens, tracked.extra)
            if worth:
                settings = self._settings
                found = namespace.match(hashes)
                tiers = worthwhile(found, settings.match_timeout, settings.prefill_tokens_per_second)
                hashes = hashes[: len(tiers)]
            hashes = hashes[tracked.first :]
            return namespace.acquire(hashes) if hashes else None
        except KelvinError as error:
            link.failed("match a prompt", error)
            return None

    def update_state_after_alloc(self, request: LlmRequest, block_ids: list[int]) -> None:
        """TensorRT-LLM has blocks for a request: those that were promised are loaded in the next step."""
        tracked = self._tracked.get(request.request_id)
        if tracked is None or tracked.promised == 0:
            return
        end = tracked.first + tracked.promised
        self._loads.append(
            Load(
                request=request.request_id,
                tokens=tracked.tokens[: end * self._block_tokens],
                extra=tracked.extra,
                first=tracked.first,
                block_ids=list(block_ids[tracked.first : end]),
            )
        )

    # Step by step

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Plan:
        """This step's work."""
        plan = Plan(loads=self._loads, abandoned=self._abandoned)
        self._loads, self._abandoned = [], []
        for load in plan.loads:
            self._tracked[load.request].handed = True
        for data in scheduler_output.new_requests:
            if tracked := self._tracked.get(data.request_id):
                # Whoever runs has its blocks: every rank has loaded them.
                tracked.unguard()
                tracked.tokens, tracked.block_ids = [], []
                self._save(plan, tracked, data)
        for data in scheduler_output.cached_requests:
            if tracked := self._tracked.get(data.request_id):
                self._save(plan, tracked, data)
        return plan

    def _save(self, plan: Plan, tracked: _Tracked, data: RequestData) -> None:
        """Plans to save the blocks that are whole when the step has run."""
        tracked.tokens.extend(data.new_tokens)
        tracked.block_ids.extend(data.new_block_ids)
        # Tokens that are only speculated on, or that were not sampled yet, are in no whole block.
        computed = min(data.computed_position + data.num_scheduled_tokens, len(tracked.tokens))
        whole = min(computed // self._block_tokens, len(tracked.block_ids))
        pages = tracked.block_ids[:whole]
        if NO_PAGE in pages:
            whole = pages.index(NO_PAGE)
        if whole <= tracked.saved or tracked.given_up:
            return
        save = Save(
            tokens=tracked.tokens[: whole * self._block_tokens],
            extra=tracked.extra,
            first=tracked.saved,
            block_ids=pages[:whole],
        )
        plan.saves.append(RequestSave(data.request_id, save))
        tracked.saved = whole
        tracked.handed = True

    # When it is over

    def request_finished(self, request: LlmRequest, cache_block_ids: list[int]) -> bool:
        """Whether its blocks have to stay until the workers' `get_finished` names it."""
        return self._forget(request.request_id)

    def _forget(self, request: int) -> bool:
        """Gives back what is held for a request; whether workers may still move blocks of it."""
        tracked = self._tracked.pop(request, None)
        if tracked is None:
            return False
        tracked.unguard()
        if self._bridge is not None:
            self._bridge.drop(request)
        self._loads = [load for load in self._loads if load.request != request]
        return tracked.handed

    def request_reset(self, request: LlmRequest) -> None:
        """The request loses its blocks before it is over: workers let go of them before the next step runs."""
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            return
        tracked.given_up = True
        if tracked.handed:
            self._abandoned.append(request.request_id)
        elif self._bridge is not None:
            self._bridge.drop(request.request_id)
        self._loads = [load for load in self._loads if load.request != request.request_id]

    def close(self) -> None:
        """Ends the sessions."""
        for request in list(self._tracked):
            self._forget(request)
        for link in self._links:
            link.close()
