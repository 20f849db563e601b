"""The same verbs for :mod:`asyncio`: each gives an awaitable on the running loop; cancelling it drops the call.

>>> client = await kelvin.aio.connect("http://127.0.0.1:7440")
>>> namespace = await client.namespace(...)
>>> leases = await namespace.acquire(hashes, wait=30.0)
"""

from __future__ import annotations

from kelvin._kelvin import AsyncClient as Client
from kelvin._kelvin import AsyncNamespace as Namespace
from kelvin._kelvin import AsyncWatch as Watch
from kelvin._kelvin import connect

__all__ = ["Client", "Namespace", "Watch", "connect"]
