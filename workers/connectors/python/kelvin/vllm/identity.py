"""What must be equal for two vLLM processes to share KV blocks, from configuration alone.

Scheduler and workers must come to the same answer in different processes, so nothing here looks at tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import kelvin
import kelvin.settings
from kelvin.identity import Fingerprint, Shard
from kelvin.weights import config_digest, model_digest

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

class Unsupported(ValueError):
    """The model's KV cache can't be cut into blocks that stand for themselves."""


@dataclass(frozen=True)
class Blocks:
    """Shape of the KV cache of one rank: one group of layers with full attention."""

    layers: tuple[str, ...]
    block_tokens: int
    page_bytes: int
    """Bytes of one layer's part of a block."""

    @property
    def block_bytes(self) -> int:
        """Bytes of a block over all layers."""
        return len(self.layers) * self.page_bytes

    @classmethod
    def of(cls, config: KVCacheConfig) -> Blocks:
        """From vLLM's own configuration; refuses what is not supported."""
        from vllm.v1.kv_cache_interface import FullAttentionSpec

        kinds = sorted({type(group.kv_cache_spec).__name__ for group in config.kv_cache_groups})
        if len(config.kv_cache_groups) != 1:
            raise Unsupported(
                f"a KV cache of {len(config.kv_cache_groups)} groups ({', '.join(kinds)}): hybrid models are not "
                "supported, full attention in every layer is"
            )
        (group,) = config.kv_cache_groups
        spec = group.kv_cache_spec
        window = getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None)
        if not isinstance(spec, FullAttentionSpec) or window:
            raise Unsupported(f"a KV cache of {kinds[0]}: only full attention is supported")
        return cls(tuple(group.layer_names), spec.block_size, spec.page_size_bytes)


def fingerprint(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> Fingerprint:
    """The fingerprint of a rank's KV; equal for every rank, which :func:`shard` tells apart."""
    import vllm
    from vllm.platforms import current_platform
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    model = vllm_config.model_config
    (group,) = kv_cache_config.kv_cache_groups
    spec = group.kv_cache_spec
    assert isinstance(spec, FullAttentionSpec), "refused by Blocks.of"
    attributes = {
        "config": config_digest(model.hf_config.to_dict()),
        "spec": f"{type(spec).__name__}:{spec.num_kv_heads}x{spec.head_size}+{spec.head_size_v}",
        "cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "quantization": str(model.quantization),
        "model_dtype": str(model.dtype),
        "device": current_platform.device_type,
    }
    if current_platform.is_cpu():
        # Keys are packed for the instruction set, so blocks of another one are other bytes.
        attributes["isa"] = torch.backends.cpu.get_cpu_capability()
    backend = getattr(getattr(vllm_config, "attention_config", None), "backend", None)
    if backend is not None:
        attributes["attention"] = getattr(backend, "name", str(backend))
    return Fingerprint(
        model_digest=model_digest(model.model, model.revision),
        engine="vllm",
        engine_build=vllm.__version__,
        layout=f"layer-page:{kv_cache_config.kv_cache_layout or 'default'}",
        dtype=str(spec.dtype).removeprefix("torch."),
        attributes=attributes,
    )


def shard(vllm_config: VllmConfig, rank: int) -> Shard:
    """The slice that the worker of a rank holds. The scheduler asks for that of rank 0."""
    parallel = vllm_config.parallel_config
    tensor_size = parallel.tensor_parallel_size
    return Shard(
        tensor_rank=rank % tensor_size,
        tensor_size=tensor_size,
        pipeline_rank=rank // tensor_size % parallel.pipeline_parallel_size,
        pipeline_size=parallel.pipeline_parallel_size,
    )


@dataclass(frozen=True)
class Settings(kelvin.settings.Settings):
    """`kv_connector_extra_config`: what :class:`kelvin.settings.Settings` has, and more."""

    hand_over_timeout: float = 1.0
    """Seconds to wait for the blocks of a prompt that another engine computed for this one."""

    @classmethod
    def of(cls, extra_config: dict[str, Any]) -> Settings:
        """From vLLM's configuration; names what is not known."""
        return cls.parse(extra_config, "kv_connector_extra_config")

    def connect(
        self,
        vllm_config: VllmConfig,
        kv_cache_config: KVCacheConfig,
        rank: int,
        timeout: float,
        name: str,
    ) -> kelvin.Namespace:
        """Opens the namespace of a rank's blocks."""
        blocks = Blocks.of(kv_cache_config)
        client = self.client(name, timeout)
        served = vllm_config.model_config.served_model_name
        served = served[0] if isinstance(served, list) else served
        return client.namespace(
            model=self.model or served or vllm_config.model_config.model,
            fingerprint=fingerprint(vllm_config, kv_cache_config),
            block_tokens=blocks.block_tokens,
            block_bytes=blocks.block_bytes,
            shard=shard(vllm_config, rank),
        )
