"""A point in a model's history."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Position:
    """(lineage, revision) of a model: comes with every ack, score and snapshot; `min_position` takes it.

    lineage: 16 bytes (a UUID), new for every created or restored model. revision: 0 is the empty model; never
    goes back.
    """

    lineage: bytes
    revision: int

    def __str__(self) -> str:
        name = uuid.UUID(bytes=self.lineage) if len(self.lineage) == 16 else self.lineage.hex()
        return f"{name}:{self.revision}"


def position_of(message: Any) -> Position:
    """The Position of a `livefactor.v1.Position` message."""
    return Position(message.lineage, message.revision)
