"""What the scheduler and the worker of rank 0, which live in one process, hand each other.

The worker tells the shape of the pool, which TensorRT-LLM tells the scheduler nothing about. The scheduler hands
over leases: TensorRT-LLM has no word for a load that failed, so what is promised has to be in hand already.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kelvin import Acquired
from kelvin.trtllm.identity import Pool

if TYPE_CHECKING:
    from tensorrt_llm.llmapi.llm_args import TorchLlmArgs


class Bridge:
    """One model's. Thread-safe."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._lock = threading.Lock()
        self._held: dict[int, Acquired] = {}

    def hold(self, request: int, leases: Acquired) -> None:
        """Keeps the leases of a request's promised blocks; as many as requests wait for a load."""
        with self._lock:
            self._held[request] = leases

    def take(self, request: int) -> Acquired | None:
        """Gives them to the caller, once."""
        with self._lock:
            return self._held.pop(request, None)

    def drop(self, request: int) -> None:
        """Gives them back to the store, should they still be here."""
        leases = self.take(request)
        if leases is not None:
            leases.release()


_lock = threading.Lock()
_bridges: list[tuple[TorchLlmArgs, Bridge]] = []


def publish(llm_args: TorchLlmArgs, bridge: Bridge) -> None:
    """The worker of rank 0 is there."""
    with _lock:
        _bridges.append((llm_args, bridge))


def find(llm_args: TorchLlmArgs) -> Bridge | None:
    """That of the worker that was made with the same arguments, or with equal ones; None before it is there."""
    with _lock:
        for known, bridge in _bridges:
            if known is llm_args:
                return bridge
        for known, bridge in _bridges:
            if known == llm_args:
                return bridge
    return None


def withdraw(bridge: Bridge) -> None:
    """The worker goes."""
    with _lock:
        _bridges[:] = [pair for pair in _bridges if pair[1] is not bridge]
