"""What must be equal for two SGLang processes to share pages, and the settings of the backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import kelvin
from kelvin.identity import Fingerprint, Shard
from kelvin.weights import model_digest

if TYPE_CHECKING:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
    from sglang.srt.mem_cache.pool_host import HostKVCache

KV = "kv"
_SHARDED_POOLS = ("mamba",)
"""Pools that every tensor-parallel rank has its own part of, even where the KV is replicated."""

_OF_SGLANG = ("backend_name", "module_path", "class_name", "interface_v1")
"""What SGLang leaves in the extra configuration for itself."""


class Unsupported(ValueError):
    """A host pool whose pages can't be held, or a way to split them that SGLang has for few backends."""


@dataclass(frozen=True)
class Page:
    """A page of a host pool as flat bytes."""

    tokens: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, pool: HostKVCache) -> Page:
        """Asks the pool; refuses one that has no flat pages, or has them elsewhere than in memory."""
        what = f"host pool {name!r} ({type(pool).__name__}, layout {getattr(pool, 'layout', None)!r})"
        try:
            flat = pool.get_dummy_flat_data_page()
            page = pool.get_data_page(0, flat=False)
        except (NotImplementedError, ValueError) as error:
            raise Unsupported(f"{what} gives no whole pages, and can't be stored: {error}") from error
        if flat.device.type != "cpu" or page.device.type != "cpu":
            raise Unsupported(f"{what} has its pages on {page.device}, and only host memory can be stored")
        if flat.nbytes == 0 or flat.nbytes != page.nbytes:
            raise Unsupported(f"{what} has pages of {page.nbytes} bytes and takes ones of {flat.nbytes}")
        return cls(max(1, pool.page_size), flat.nbytes, flat.dtype, tuple(page.shape))


def check(config: HiCacheStorageConfig) -> None:
    """Refuses what would need more than a page a rank."""
    if config.dcp_size > 1:
        raise Unsupported("decode context parallelism: SGLang itself allows it for its own backends alone")
    if config.should_split_heads:
        raise Unsupported(
            f"tp_lcm_size {config.tp_lcm_size} over {config.tp_size} ranks would split each page by heads; "
            "leave it out, ranks of different tensor parallelism then do not share"
        )


def fingerprint(
    config: HiCacheStorageConfig, settings: Settings, name: str, pool: HostKVCache, page: Page
) -> Fingerprint:
    """The fingerprint of a pool's pages; equal for every rank, which :func:`shard` tells apart."""
    import sglang

    model = settings.model_path or config.model_name or "unnamed"
    device_dtype = getattr(getattr(pool, "device_pool", None), "dtype", None)
    return Fingerprint(
        model_digest=model_digest(model),
        engine="sglang",
        engine_build=sglang.__version__,
        layout=f"{getattr(pool, 'layout', 'opaque')}:{'x'.join(map(str, page.shape))}",
        dtype=str(page.dtype).removeprefix("torch."),
        attributes={
            "pool": name,
            "pool_class": type(pool).__name__,
            "page_tokens": str(page.tokens),
            # 8-bit types are all stored as uint8.
            "kv_dtype": str(device_dtype or page.dtype).removeprefix("torch."),
            "format": str(getattr(pool, "storage_format_tag", None)),
        },
    )


def shard(config: HiCacheStorageConfig, name: str) -> Shard:
    """The slice of a pool that this rank holds."""
    replicated = config.is_mla_model and name not in _SHARDED_POOLS
    rank, size = (0, 1) if replicated else (config.tp_rank, config.tp_size)
    # Ranks of context parallelism each have a slice of every page.
    return Shard(
        tensor_rank=rank * config.attn_cp_size + config.attn_cp_rank,
        tensor_size=size * config.attn_cp_size,
        pipeline_rank=config.pp_rank,
        pipeline_size=config.pp_size,
    )


@dataclass(frozen=True)
class Settings:
    """`--hicache-storage-backend-extra-config`, beside what SGLang reads itself."""

    url: str = "http://127.0.0.1:7440"
    token: str | None = None
    model: str | None = None
    """Public name of the model in the store; by default the served name."""
    model_path: str | None = None
    """Directory of the weights, whose digest tells models apart; by default the served name has to do."""
    timeout: float = 1.0
    """Seconds that a call may take; after that it is a miss, and so is all that comes until the store answers."""
    priority: int = 0
    """Of stored pages, -128 to 127."""
    block_ttl: float | None = None
    """Seconds after which stored pages are dropped."""
    shared_memory: bool = True

    @classmethod
    def of(cls, extra_config: dict[str, Any] | None) -> Settings:
        """From SGLang's configuration; names what is not known."""
        given = {name: value for name, value in (extra_config or {}).items() if name not in _OF_SGLANG}
        unknown = sorted(set(given) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(
                f"hicache-storage-backend-extra-config: unknown {', '.join(unknown)}; known are {known}"
            )
        return cls(**given)

    def connect(
        self, config: HiCacheStorageConfig, name: str, pool: HostKVCache, page: Page
    ) -> kelvin.Namespace:
        """Opens the namespace of a pool's pages: a model of its own each, since pages differ in size."""
        client = kelvin.Client(
            self.url,
            self.token,
            name=f"sglang-{config.tp_rank}-{name}",
            call_timeout=self.timeout,
            connect_timeout=min(self.timeout, 2.0),
            shared_memory=self.shared_memory,
        )
        model = self.model or config.model_name or "sglang"
        return client.namespace(
            model=model if name == KV else f"{model}+{name}",
            fingerprint=fingerprint(config, self, name, pool, page),
            block_tokens=page.tokens,
            block_bytes=page.nbytes,
            shard=shard(config, name),
        )
