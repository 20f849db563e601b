"""What must be equal for two vLLM engines to share the chunks of their primary tiers, and the tier's settings.

From what vLLM tells a tier, which is less than it tells a connector: how weights were changed as they were loaded
(`--quantization`, `--hf-overrides`) is not in it, and has to be said in the setting `variant`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import kelvin
from kelvin.identity import Fingerprint
from kelvin.weights import model_digest

if TYPE_CHECKING:
    from vllm.v1.kv_offload.config import OffloadingConfig


def fingerprint(config: OffloadingConfig, settings: TierSettings, chunk_bytes: int) -> Fingerprint:
    """The fingerprint of rows of the primary tier: all ranks' bytes of a chunk."""
    import vllm
    from vllm.platforms import current_platform

    parallel = config.parallel
    # Rows of another way to split a model have their bytes in another order, unless vLLM says that they have not.
    topology = "any"
    if not (config.canonical_layout and parallel.is_parallelism_agnostic):
        topology = f"tp{parallel.tp_size} pp{parallel.pp_size} pcp{parallel.pcp_size} dcp{parallel.dcp_size}"
    groups = [[group.group_id, group.tokens_per_block, list(group.layer_names)] for group in config.groups]
    attributes = {
        "groups": hashlib.blake2b(json.dumps(groups).encode(), digest_size=16).hexdigest(),
        "blocks_per_chunk": str(config.cache.blocks_per_chunk),
        "worker_bytes_per_block": str(config.worker_kv_bytes_per_block),
        "chunk_bytes": str(chunk_bytes),
        "topology": topology,
        "replicated": str(config.replicated_layout),
        "device": current_platform.device_type,
    }
    if current_platform.is_cpu():
        # Keys are packed for the instruction set, so blocks of another one are other bytes.
        attributes["isa"] = torch.backends.cpu.get_cpu_capability()
    if settings.variant:
        attributes["variant"] = settings.variant
    layout = "canonical" if config.canonical_layout else "row"
    return Fingerprint(
        model_digest=model_digest(config.model.name, settings.revision),
        engine="vllm-offload",
        engine_build=vllm.__version__,
        layout=f"{layout}:{config.kv_cache_layout or 'default'}",
        dtype=config.model.dtype,
        attributes=attributes,
    )


@dataclass(frozen=True)
class TierSettings:
    """The tier's entry in `secondary_tiers`, beside `type`, `module_path`, `locality` and `backpressure`."""

    url: str = "http://127.0.0.1:7440"
    token: str | None = None
    model: str | None = None
    """Public name of the model in the store; by default what `--model` says, with ``+offload`` behind it."""
    revision: str | None = None
    """Of the weights, where `--model` names a repository of the hub."""
    variant: str = ""
    """Whatever else changes the KV, as text: engines share only where it is equal."""
    lookup_timeout: float = 0.25
    """Seconds that a question for chunks may take; after that, they are misses."""
    call_timeout: float = 2.0
    """Seconds that a call of a load or a store may take."""
    job_timeout: float = 10.0
    """Seconds after which a job begins nothing more, and fails where chunks are left."""
    load_threads: int = 2
    store_threads: int = 1
    stores_max: int = 64
    """Store jobs at once, running and waiting; more are dropped, which only costs later hits."""
    priority: int = 0
    """Of stored chunks, -128 to 127."""
    block_ttl: float | None = None
    """Seconds after which stored chunks are dropped."""
    shared_memory: bool = True

    @classmethod
    def of(cls, entry: dict[str, Any]) -> TierSettings:
        """From vLLM's configuration; :class:`ValueError` names what is not known."""
        unknown = sorted(set(entry) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"secondary_tiers: unknown {', '.join(unknown)}; known are {known}")
        return cls(**entry)

    def block_tokens(self, config: OffloadingConfig) -> int:
        """Tokens a chunk, for the handshake; groups may have others, and the key says all."""
        return config.groups[0].tokens_per_block * config.cache.blocks_per_chunk

    def connect(
        self, config: OffloadingConfig, chunk_bytes: int, timeout: float, name: str
    ) -> kelvin.Namespace:
        """Opens the namespace of a model's chunks."""
        client = kelvin.Client(
            self.url,
            self.token,
            name=name,
            call_timeout=timeout,
            connect_timeout=min(timeout, 2.0),
            shared_memory=self.shared_memory,
        )
        return client.namespace(
            model=self.model or f"{config.model.name}+offload",
            fingerprint=fingerprint(config, self, chunk_bytes),
            block_tokens=self.block_tokens(config),
            block_bytes=chunk_bytes,
        )
