"""What a connector is made with."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Mapping:
    """Which rank this process is."""

    rank: int = 0
    tp_rank: int = 0
    tp_size: int = 1
    pp_size: int = 1
    cp_size: int = 1


@dataclass
class ParallelConfig:
    """How the model is split."""

    tp_size: int = 1
    pp_size: int = 1
    cp_size: int = 1
    rank: int = 0
    """Of this process; TensorRT-LLM asks MPI."""

    def to_mapping(self) -> Mapping:
        return Mapping(self.rank, self.rank % self.tp_size, self.tp_size, self.pp_size, self.cp_size)


@dataclass
class KvCacheConfig:
    """Of the KV pool."""

    tokens_per_block: int = 32
    dtype: str = "auto"
    enable_partial_reuse: bool = True


@dataclass
class SchedulerConfig:
    """`capacity_scheduler_policy` is an enumeration of strings in TensorRT-LLM."""

    capacity_scheduler_policy: str = "GUARANTEED_NO_EVICT"


@dataclass
class TorchLlmArgs:
    """Everything that an `LLM` was made with."""

    model: str
    revision: str | None = None
    dtype: str = "auto"
    attn_backend: str = "TRTLLM"
    enable_attention_dp: bool = False
    max_beam_width: int | None = None
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    kv_cache_config: KvCacheConfig = field(default_factory=KvCacheConfig)
    scheduler_config: SchedulerConfig = field(default_factory=SchedulerConfig)
