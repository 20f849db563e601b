"""TensorRT-LLM 1.2.1: a KV cache connector over the store.

Started as::

    LLM(model, kv_connector_config=KvCacheConnectorConfig(
        connector_module="kelvin.trtllm",
        connector_scheduler_class="KelvinScheduler",
        connector_worker_class="KelvinWorker"))

with :class:`kelvin.settings.Settings` as JSON in the environment variable ``KELVIN_TRTLLM``, since that
configuration has no place for more.

Type-checked and run against a stand-in for TensorRT-LLM only (`tests/engines/trtllm_harness.py`), whose interface
is written from TensorRT-LLM's documentation; never run on TensorRT-LLM itself, nor on a GPU.
"""

from __future__ import annotations

from kelvin.trtllm.identity import Unsupported
from kelvin.trtllm.scheduler import KelvinScheduler
from kelvin.trtllm.worker import KelvinWorker, LoadLost

__all__ = ["KelvinScheduler", "KelvinWorker", "LoadLost", "Unsupported"]
