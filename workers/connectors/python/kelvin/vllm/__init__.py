"""vLLM 0.32 and 0.33: a KV connector over the store, and a tier of vLLM's own offloading.

Started as::

    vllm serve MODEL --kv-transfer-config '{
        "kv_connector": "KelvinConnector", "kv_connector_module_path": "kelvin.vllm", "kv_role": "kv_both",
        "kv_connector_extra_config": {"url": "http://127.0.0.1:7440"}}'

The extra configuration is :class:`kelvin.vllm.identity.Settings`.

Behind vLLM's native offloading, on devices for which vLLM has it (CUDA, ROCm, XPU)::

    vllm serve MODEL --kv-transfer-config '{
        "kv_connector": "OffloadingConnector", "kv_role": "kv_both",
        "kv_connector_extra_config": {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 17179869184,
            "secondary_tiers": [{"type": "KelvinTier", "module_path": "kelvin.vllm.tier",
                "url": "http://127.0.0.1:7440"}]}}'

The tier's entry is :class:`kelvin.vllm.tier_identity.TierSettings`.
"""

from __future__ import annotations

from kelvin.vllm.connector import KelvinConnector

__all__ = ["KelvinConnector"]
