"""The two abstract classes that a connector implements, and what the scheduler is told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch

from tensorrt_llm._torch.pyexecutor.llm_request import LlmRequest
from tensorrt_llm.llmapi.llm_args import TorchLlmArgs


@dataclass
class RequestData:
    """A request of a step."""

    request_id: int
    new_tokens: list[int]
    """Since the last step that it was in."""
    new_block_ids: list[int]
    """Since the last step that it was in; -1 for a page outside a sliding window."""
    computed_position: int
    """Tokens whose KV is there."""
    num_scheduled_tokens: int
    """Tokens whose KV this step makes."""


@dataclass
class SchedulerOutput:
    """The requests of a step, but not those that are being loaded."""

    new_requests: list[RequestData] = field(default_factory=list)
    cached_requests: list[RequestData] = field(default_factory=list)


class KvCacheConnectorWorker(ABC):
    """On every rank."""

    def __init__(self, llm_args: TorchLlmArgs) -> None:
        self._llm_args = llm_args
        self._metadata: object = None
        super().__init__()

    def bind_connector_meta(self, metadata: object) -> None:
        self._metadata = metadata

    def get_connector_meta(self) -> object:
        return self._metadata

    @abstractmethod
    def register_kv_caches(self, kv_cache_tensor: torch.Tensor) -> None:
        """The pool, `[blocks, ...]`."""

    @abstractmethod
    def start_load_kv(self, stream: torch.cuda.Stream) -> None:
        """Before the forward pass of a step."""

    @abstractmethod
    def wait_for_layer_load(self, layer_idx: int, stream: torch.cuda.Stream) -> None:
        """Before a layer's work is given to the stream."""

    @abstractmethod
    def save_kv_layer(self, layer_idx: int, stream: torch.cuda.Stream) -> None:
        """After a layer's work was given to the stream."""

    @abstractmethod
    def wait_for_save(self, stream: torch.cuda.Stream) -> None:
        """At the end of the forward pass."""

    @abstractmethod
    def get_finished(
        self, finished_gen_req_ids: list[int], started_loading_req_ids: list[int]
    ) -> tuple[list[int], list[int]]:
        """Those of the requests named now or before whose saves, and whose loads, ended; each once."""


class KvCacheConnectorScheduler(ABC):
    """On rank 0."""

    def __init__(self, llm_args: TorchLlmArgs) -> None:
        self._llm_args = llm_args
        super().__init__()

    @abstractmethod
    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> object:
        """What the workers are told for this step."""

    @abstractmethod
    def get_num_new_matched_tokens(self, request: LlmRequest, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens that will be loaded, and whether asynchronously (not so for none). Asked once a request."""

    @abstractmethod
    def request_finished(self, request: LlmRequest, cache_block_ids: list[int]) -> bool:
        """Whether the blocks are kept until `get_finished` names the request."""

    @abstractmethod
    def update_state_after_alloc(self, request: LlmRequest, block_ids: list[int]) -> None:
        """The request's blocks, after it was asked for matches."""

    def wait_for_initialization(self) -> None:
        """When every worker has its pool."""

    def request_reset(self, request: LlmRequest) -> None:
        """The request lost its blocks."""
