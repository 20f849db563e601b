"""SGLang's backend without an engine: makes the calls that SGLang's controller makes; see README.md.

The host pool is a double: tensors laid out as SGLang has them, filled with noise instead of KV.
"""

import sys

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
from sglang.srt.mem_cache.storage import StorageBackendFactory

PAGE, PAGES, LAYERS, HEADS, DIM = 64, 32, 4, 2, 64


class Pool:
    """Page-first host memory."""

    layout, page_size, dtype = "page_first", PAGE, torch.bfloat16

    def __init__(self) -> None:
        self.kv_buffer = torch.randn((2, PAGES * PAGE, LAYERS, HEADS, DIM)).to(self.dtype)

    def get_data_page(self, index: int, flat: bool = True) -> torch.Tensor:
        page = self.kv_buffer[:, index : index + PAGE]
        return page.flatten() if flat else page

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        return torch.zeros_like(self.get_data_page(0))

    def set_from_flat_data_page(self, index: int, data_page: torch.Tensor) -> None:
        page = self.get_data_page(index, flat=False)
        page.copy_(data_page.reshape(page.shape))


def attach(pool: Pool):
    """As `--hicache-storage-backend dynamic` does."""
    config = HiCacheStorageConfig(
        tp_rank=0,
        tp_size=1,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=False,
        is_page_first_layout=True,
        model_name="sglang-example",
        extra_config={
            "backend_name": "kelvin",
            "module_path": "kelvin.sglang",
            "class_name": "KelvinStorage",
            "interface_v1": 1,
            "url": sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7440",
        },
    )
    backend = StorageBackendFactory.create_backend("dynamic", config, pool)
    backend.register_mem_pool_host(pool)
    return backend


keys = [f"page-{number}" for number in range(PAGES)]
everything = torch.arange(PAGES * PAGE)
writer, reader = Pool(), Pool()
first = attach(writer)
first.clear()
print("stored:", sum(first.batch_set_v1(keys, everything)), "of", PAGES, "pages")
first.close()
second = attach(reader)
print("found by another:", second.batch_exists(keys))
print("loaded:", sum(second.batch_get_v1(keys, everything)))
print("equal:", torch.equal(writer.kv_buffer, reader.kv_buffer))
second.close()
