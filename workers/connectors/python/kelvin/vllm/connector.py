"""The connector that vLLM loads: hands its hooks on to the scheduler's or the worker's half."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kelvin.link import Link
from kelvin.vllm.identity import Blocks, Settings
from kelvin.vllm.plan import Plan
from kelvin.vllm.scheduler import SchedulerSide
from kelvin.vllm.worker import WorkerSide

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)


class KelvinConnector(KVConnectorBase_V1, SupportsHMA):
    """Prefix cache in a Kelvin store. Settings: :class:`kelvin.vllm.identity.Settings`.

    A cache: whatever fails is recomputed, so the policy for failed loads is set to that. Refused at start are
    another fingerprint than that of a running engine under the same model name, and models that are not full
    attention in every layer.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = self._kv_transfer_config
        settings = Settings.of(dict(transfer.kv_connector_extra_config or {}))
        blocks = Blocks.of(kv_cache_config)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        if role == KVConnectorRole.SCHEDULER:
            if transfer.kv_load_failure_policy != "recompute":
                transfer.kv_load_failure_policy = "recompute"
                logger.info("kelvin: kv_load_failure_policy is recompute: a cache fails no request")
            link = Link(
                lambda: settings.connect(
                    vllm_config, kv_cache_config, 0, settings.match_timeout, "vllm-scheduler"
                )
            )
            self._scheduler = SchedulerSide(
                link, settings, blocks.block_tokens, transfer.is_kv_consumer, transfer.is_kv_producer
            )
        else:
            rank = vllm_config.parallel_config.rank
            link = Link(
                lambda: settings.connect(
                    vllm_config, kv_cache_config, rank, settings.load_timeout, f"vllm-worker-{rank}"
                )
            )
            self._worker = WorkerSide(link, settings, blocks)
        namespace = link.get()
        transport = namespace.transport if namespace is not None else "none yet"
        logger.warning(
            "kelvin: %s of blocks of %d tokens, %d bytes; transport: %s",
            role.name.lower(),
            blocks.block_tokens,
            blocks.block_bytes,
            transport,
        )

    @property
    def requires_kv_delivery(self) -> bool:
        """A dropped save is only a future miss."""
        return False

    # Worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        assert self._worker is not None
        self._worker.register(kv_caches)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        assert self._worker is not None
        plan = self._get_connector_metadata()
        assert isinstance(plan, Plan)
        if plan.loads:
            self._worker.load(plan)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: loads end between steps."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        """Nothing: a block is saved whole, behind the step."""

    def wait_for_save(self) -> None:
        assert self._worker is not None
        plan = self._get_connector_metadata()
        assert isinstance(plan, Plan)
        if plan.saves:
            self._worker.save(plan)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        assert self._worker is not None
        return None, self._worker.take_loaded() or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        assert self._worker is not None
        return self._worker.take_failed_blocks()

    # Scheduler

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        assert self._scheduler is not None
        tokens = self._scheduler.matched_tokens(request, num_computed_tokens)
        return tokens, bool(tokens)

    def get_external_cache_hit_sources(
        self, request: Request, num_external_tokens: int
    ) -> dict[CacheHitSource, int]:
        assert self._scheduler is not None
        return self._scheduler.sources(request, num_external_tokens)

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        assert self._scheduler is not None
        self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        assert self._scheduler is not None
        return self._scheduler.plan(scheduler_output)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        assert self._scheduler is not None
        return False, self._scheduler.finished(request)

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, block_ids[0] if block_ids else [])

    def reset_cache(self) -> bool | None:
        assert self._scheduler is not None
        return self._scheduler.reset()

    def shutdown(self) -> None:
        for side in (self._scheduler, self._worker):
            if side is not None:
                side.close()
