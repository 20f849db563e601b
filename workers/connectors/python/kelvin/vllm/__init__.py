"""vLLM 0.32 and 0.33: a KV connector over the store.

Started as::

    vllm serve MODEL --kv-transfer-config '{
        "kv_connector": "KelvinConnector", "kv_connector_module_path": "kelvin.vllm", "kv_role": "kv_both",
        "kv_connector_extra_config": {"url": "http://127.0.0.1:7440"}}'

The extra configuration is :class:`kelvin.vllm.identity.Settings`.
"""

from __future__ import annotations

from kelvin.vllm.connector import KelvinConnector

__all__ = ["KelvinConnector"]
