"""SGLang 0.5.23: a HiCache storage backend over the store.

Started as::

    python -m sglang.launch_server --model-path MODEL --enable-hierarchical-cache \\
        --hicache-mem-layout page_first --hicache-storage-backend dynamic \\
        --hicache-storage-backend-extra-config '{
            "backend_name": "kelvin", "module_path": "kelvin.sglang", "class_name": "KelvinStorage",
            "interface_v1": 1, "hicache_storage_pass_prefix_keys": true, "url": "http://127.0.0.1:7440"}'

The rest of the extra configuration is :class:`kelvin.sglang.identity.Settings`.
"""

from __future__ import annotations

from kelvin.sglang.identity import Unsupported
from kelvin.sglang.storage import KelvinStorage

__all__ = ["KelvinStorage", "Unsupported"]
