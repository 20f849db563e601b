"""What the scheduler tells the workers to move, step by step. Travels between processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from kelvin.paged import Load, Save


@dataclass(frozen=True)
class RequestSave:
    """A save, and whose blocks they are: they stay allocated until every worker has made it."""

    request: int
    save: Save


@dataclass
class Plan:
    """One step."""

    loads: list[Load[int]] = field(default_factory=list)
    saves: list[RequestSave] = field(default_factory=list)
    abandoned: list[int] = field(default_factory=list)
    """Requests whose blocks belong to others from this step on."""

    def requests(self) -> list[int]:
        """Whose blocks are moved: once for each load and save."""
        return [load.request for load in self.loads] + [save.request for save in self.saves]
