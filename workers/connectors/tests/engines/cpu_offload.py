"""vLLM's tiered offloading with its device being the CPU, which vLLM itself refuses.

`CPUOffloadingSpec.get_worker` of vLLM 0.32 raises "CPU Offloading is currently only supported on CUDA-alike and XPU
GPUs". All it would do there is copy blocks between the device and the primary tier; that copy is a double here, and
everything else is vLLM's own: connector, scheduler, manager, primary tier.
"""

from __future__ import annotations

from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class Copies(OffloadingWorker):
    """Copies at once, block by block; a chunk is one block."""

    def __init__(self, caches: CanonicalKVCaches, region: SharedOffloadRegion) -> None:
        self._region = region
        self._blocks = [cache.tensor for cache in caches.tensors]
        self._chunks = [region.create_next_worker_view(cache.page_size_bytes) for cache in caches.tensors]
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        assert isinstance(dst_spec, CPULoadStoreSpec)
        for block, chunk in zip(src_spec.block_ids, dst_spec.chunk_ids, strict=True):
            for source, target in zip(self._blocks, self._chunks, strict=True):
                target[chunk].copy_(source[block])
        self._finished.append(TransferResult(job_id, True))
        return True

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        assert isinstance(src_spec, CPULoadStoreSpec)
        for chunk, block in zip(src_spec.chunk_ids, dst_spec.block_ids, strict=True):
            for source, target in zip(self._chunks, self._blocks, strict=True):
                target[block].copy_(source[chunk])
        self._finished.append(TransferResult(job_id, True))
        return True

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        pass

    def shutdown(self) -> None:
        self._chunks.clear()
        self._region.cleanup()


class CpuTieringSpec(TieringOffloadingSpec):
    """`TieringOffloadingSpec` whose device is the CPU."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        assert self.blocks_per_chunk == 1
        region = SharedOffloadRegion(
            engine_id=self._engine_id,
            num_chunks=self.num_chunks,
            rank=self.config.parallel.rank,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk,
            cpu_page_size=self.cpu_page_size_per_worker,
        )
        return Copies(kv_caches, region)
