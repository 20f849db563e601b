"""What must be equal for two TensorRT-LLM processes to share KV blocks."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kelvin import Client, Namespace
from kelvin.identity import Fingerprint, Shard
from kelvin.settings import Settings
from kelvin.weights import config_digest, model_digest

if TYPE_CHECKING:
    from tensorrt_llm.llmapi.llm_args import TorchLlmArgs

VARIABLE = "KELVIN_TRTLLM"
"""Environment variable with the settings."""
NO_PAGE = -1
"""TensorRT-LLM's number of a block that fell out of a sliding window."""


class Unsupported(ValueError):
    """A way to run the model whose KV can't be cut into blocks that stand for themselves, or moved safely."""


def settings_of_environment() -> Settings:
    """The settings in ``KELVIN_TRTLLM``; :class:`ValueError` where that is not JSON, or names what is not known."""
    text = os.environ.get(VARIABLE, "").strip() or "{}"
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{VARIABLE}: {text!r} is not a JSON object")
    return Settings.parse(values, VARIABLE)


def check(llm_args: TorchLlmArgs) -> None:
    """Refuses what is not supported, naming the reason."""
    mapping = llm_args.parallel_config.to_mapping()
    if mapping.pp_size > 1 or mapping.cp_size > 1:
        raise Unsupported("pipeline or context parallelism: only tensor parallelism is supported")
    if llm_args.enable_attention_dp:
        raise Unsupported("attention data parallelism: each rank would have requests of its own")
    if (llm_args.max_beam_width or 1) > 1:
        raise Unsupported("beam search: one sequence a request is supported")
    policy = llm_args.scheduler_config.capacity_scheduler_policy
    if str(getattr(policy, "value", policy)) != "GUARANTEED_NO_EVICT":
        raise Unsupported(f"{policy}: a request must keep its blocks until it ends (GUARANTEED_NO_EVICT)")


def tensor_ranks(llm_args: TorchLlmArgs) -> int:
    """Over how many ranks the model is split."""
    return llm_args.parallel_config.to_mapping().tp_size


@dataclass(frozen=True)
class Pool:
    """Shape of one rank's KV pool; equal for every rank."""

    shape: tuple[int, ...]
    """Of one block."""
    dtype: torch.dtype
    device: str
    block_bytes: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Pool:
        """From the pool tensor, ``[blocks, ...]``; refuses one whose blocks are not in one piece."""
        if tensor.dim() < 2 or not tensor[0].is_contiguous() or tensor[0].nbytes == 0:
            raise Unsupported(
                f"a KV pool of shape {tuple(tensor.shape)}, strides {tensor.stride()}: expected whole blocks "
                "along the first axis"
            )
        return cls(tuple(tensor.shape[1:]), tensor.dtype, tensor.device.type, tensor[0].nbytes)


def _config_digest(model: str) -> str:
    path = Path(model) / "config.json"
    if not path.is_file():
        return "none"
    return config_digest(json.loads(path.read_text()))


def fingerprint(llm_args: TorchLlmArgs, pool: Pool) -> Fingerprint:
    """The fingerprint of a rank's blocks; equal for every rank, which the shard tells apart."""
    import tensorrt_llm

    model = str(llm_args.model)
    return Fingerprint(
        model_digest=model_digest(model, llm_args.revision),
        engine="tensorrt_llm",
        engine_build=tensorrt_llm.__version__,
        layout="x".join(map(str, pool.shape)),
        dtype=str(pool.dtype).removeprefix("torch."),
        attributes={
            "config": _config_digest(model),
            # A pool of 8-bit integers can hold several types.
            "cache_dtype": str(llm_args.kv_cache_config.dtype),
            "model_dtype": str(llm_args.dtype),
            "attention": str(llm_args.attn_backend),
            "device": pool.device,
        },
    )


def connect(
    llm_args: TorchLlmArgs, settings: Settings, pool: Pool, rank: int, timeout: float, name: str
) -> Namespace:
    """Opens the namespace of a rank's blocks; :class:`kelvin.KelvinError` where the store is away or refuses."""
    client: Client = settings.client(name, timeout)
    model = str(llm_args.model)
    return client.namespace(
        model=settings.model or model.rstrip("/").rpartition("/")[2] or model,
        fingerprint=fingerprint(llm_args, pool),
        block_tokens=llm_args.kv_cache_config.tokens_per_block,
        block_bytes=pool.block_bytes,
        shard=Shard(tensor_rank=rank, tensor_size=tensor_ranks(llm_args)),
    )
