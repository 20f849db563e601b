"""LMCache's plug-in without an engine: makes the calls that LMCache's engine makes; see README.md."""

import sys
import time
from pathlib import Path

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.event_manager import EventManager
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.storage_manager import StorageManager

LAYERS, HEADS, DIM, CHUNKS = 4, 2, 64, 16

config = LMCacheEngineConfig.from_file(str(Path(__file__).with_name("kelvin.yaml")))
if len(sys.argv) > 1:
    config.extra_config["kelvin.url"] = sys.argv[1]
metadata = LMCacheMetadata(
    model_name="lmcache-example",
    world_size=1,
    local_world_size=1,
    worker_id=0,
    local_worker_id=0,
    kv_dtype=torch.bfloat16,
    kv_shape=(LAYERS, 2, config.chunk_size, HEADS, DIM),
    chunk_size=config.chunk_size,
)
keys = [CacheEngineKey(metadata.model_name, 1, 0, 1000 + number, torch.bfloat16) for number in range(CHUNKS)]

first = StorageManager(config, metadata, EventManager())
kelvin = first.storage_backends["kelvin"]
kelvin.clear()
chunks = first.batched_allocate(metadata.get_shapes(), metadata.get_dtypes(), CHUNKS)
noise = [torch.randn(chunk.tensor.shape).to(torch.bfloat16) for chunk in chunks]
for chunk, values in zip(chunks, noise, strict=True):
    chunk.tensor.copy_(values)
first.batched_put(keys, chunks)
while any(kelvin.exists_in_put_tasks(key) for key in keys):
    time.sleep(0.01)
first.close()

second = StorageManager(config, metadata, EventManager())
print("found by another:", second.batched_contains(keys)[0], "of", CHUNKS, "chunks")
loaded = second.batched_get(keys, location="kelvin")
print("loaded:", sum(chunk is not None for chunk in loaded))
print("equal:", all(torch.equal(chunk.tensor, values) for chunk, values in zip(loaded, noise, strict=True)))
for chunk in loaded:
    chunk.ref_count_down()
second.close()
