"""LMCache 0.5.6: a storage plug-in over the store.

In LMCache's configuration::

    chunk_size: 256
    local_cpu: true
    max_local_cpu_size: 20
    pre_caching_hash_algorithm: sha256_cbor
    storage_plugins: ["kelvin"]
    extra_config:
      storage_plugin.kelvin.module_path: kelvin.lmcache
      storage_plugin.kelvin.class_name: KelvinBackend
      kelvin.url: http://127.0.0.1:7440

The keys ``kelvin.…`` are :class:`kelvin.lmcache.identity.Settings`.
"""

from __future__ import annotations

from kelvin.lmcache.backend import KelvinBackend
from kelvin.lmcache.identity import Unsupported

__all__ = ["KelvinBackend", "Unsupported"]
