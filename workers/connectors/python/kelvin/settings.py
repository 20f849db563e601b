"""What a connector's user can set, whatever the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from kelvin._kelvin import Client


@dataclass(frozen=True)
class Settings:
    """Where the store is, how long to wait for it, and how its blocks are kept."""

    url: str = "http://127.0.0.1:7440"
    token: str | None = None
    model: str | None = None
    """Public name of the model in the store; by default the name that the engine has for it."""
    match_timeout: float = 0.25
    """Seconds that the scheduler waits for an answer at most, once an outage."""
    load_timeout: float = 2.0
    """Seconds that a load or a save may take."""
    prefill_tokens_per_second: float = 0.0
    """How fast the engine recomputes; a load expected to take longer is not made. 0: not known."""
    priority: int = 0
    """Of stored blocks, -128 to 127."""
    block_ttl: float | None = None
    """Seconds after which stored blocks are dropped."""
    shared_memory: bool = True

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """From the engine's configuration; :class:`ValueError` says where it names what is not known."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"{where}: unknown {', '.join(unknown)}; known are {known}")
        return cls(**values)

    def client(self, name: str, timeout: float) -> Client:
        """Connects as `name`; no call takes longer than `timeout` seconds."""
        return Client(
            self.url,
            self.token,
            name=name,
            call_timeout=timeout,
            connect_timeout=min(timeout, 2.0),
            shared_memory=self.shared_memory,
        )
