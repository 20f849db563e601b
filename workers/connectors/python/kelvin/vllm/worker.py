"""A worker's half: moves whole blocks between vLLM's KV tensors and the store's memory.

Payload is opaque: a block is each layer's page, one after another, as vLLM has it.

# Loads
Between steps: in the step itself when nobody computes in it, on a thread of its own otherwise. What can't be had
(gone, damaged, too late) is reported block by block, and vLLM recomputes it.

# Saves
Behind the step that made the blocks, the pages are copied into reserved blocks before vLLM may touch them again;
checksum and commit follow on a thread.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from kelvin import KelvinError, Namespace, WriteLease
from kelvin.link import Link
from kelvin.paged import PENDING_SAVES_MAX, Load, Save, load_blocks, reserve_and_fill
from kelvin.vllm.identity import Blocks, Settings
from kelvin.vllm.plan import Plan


def pages(tensor: torch.Tensor, page_bytes: int) -> torch.Tensor:
    """A layer's KV tensor, `[blocks, ...]`, as bytes `[blocks, page_bytes]`, in place."""
    block_bytes = tensor.stride(0) * tensor.element_size()
    if block_bytes != page_bytes or not tensor[0].is_contiguous() or tensor[0].nbytes != page_bytes:
        raise ValueError(
            f"a KV tensor of shape {tuple(tensor.shape)}, strides {tensor.stride()}, {tensor.dtype}: expected "
            f"blocks of {page_bytes} contiguous bytes"
        )
    return tensor.view(tensor.shape[0], -1).view(torch.uint8)


class WorkerSide:
    """State of a worker's connector."""

    def __init__(self, link: Link, settings: Settings, blocks: Blocks) -> None:
        self._link = link
        self._settings = settings
        self._blocks = blocks
        self._layers: list[torch.Tensor] = []
        self._loader = ThreadPoolExecutor(1, "kelvin-load")
        self._committer = ThreadPoolExecutor(1, "kelvin-commit")
        self._lock = threading.Lock()
        self._loaded: set[str] = set()
        self._failed_blocks: set[int] = set()
        self._commits = threading.Semaphore(PENDING_SAVES_MAX)

    def register(self, tensors: dict[str, torch.Tensor]) -> None:
        """vLLM's KV tensors, by layer."""
        missing = [name for name in self._blocks.layers if name not in tensors]
        if missing:
            raise ValueError(f"no KV tensors of {', '.join(missing)}")
        self._layers = [pages(tensors[name], self._blocks.page_bytes) for name in self._blocks.layers]

    def load(self, plan: Plan) -> None:
        """Starts the loads of a step."""
        for load in plan.loads:
            if plan.idle:
                self._load(load)
            else:
                self._loader.submit(self._load, load)

    def _load(self, load: Load[str]) -> None:
        loaded = 0
        namespace = self._link.get()
        try:
            if namespace is not None:
                loaded = load_blocks(namespace, load, self._copy_in)
        except KelvinError as error:
            self._link.failed("load blocks", error)
        finally:
            with self._lock:
                self._failed_blocks.update(load.block_ids[loaded:])
                self._loaded.add(load.request)

    def _copy_in(self, block: int, source: torch.Tensor) -> None:
        parts = source.view(len(self._layers), -1)
        for layer, page in zip(self._layers, parts.unbind(0), strict=True):
            layer[block].copy_(page)

    def save(self, plan: Plan) -> None:
        """Saves a step's blocks: copied when this returns."""
        for save in plan.saves:
            try:
                self._save(save)
            except KelvinError as error:
                self._link.failed("save blocks", error)

    def _save(self, save: Save) -> None:
        namespace = self._link.get()
        if namespace is None or not self._commits.acquire(blocking=False):
            return
        submitted = False
        try:
            filled = reserve_and_fill(namespace, save, self._copy_out, self._settings)
            if filled:
                self._committer.submit(self._commit, namespace, filled)
                submitted = True
        finally:
            if not submitted:
                self._commits.release()

    def _copy_out(self, block: int, target: torch.Tensor) -> None:
        parts = target.view(len(self._layers), -1)
        for layer, page in zip(self._layers, parts.unbind(0), strict=True):
            page.copy_(layer[block])

    def _commit(self, namespace: Namespace, filled: list[WriteLease]) -> None:
        try:
            namespace.commit(filled)
        except KelvinError as error:
            self._link.failed("commit blocks", error)
        finally:
            self._commits.release()

    def take_loaded(self) -> set[str]:
        """Requests whose loads ended, well or not, since the last call."""
        with self._lock:
            loaded, self._loaded = self._loaded, set()
        return loaded

    def take_failed_blocks(self) -> set[int]:
        """vLLM's blocks that could not be loaded, since the last call."""
        with self._lock:
            failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def close(self) -> None:
        """Ends the threads and the session."""
        self._loader.shutdown(wait=True)
        self._committer.shutdown(wait=True)
        self._link.close()
