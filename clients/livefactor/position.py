"""The class `Position` names a point in a model's history."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, repr=False)
class Position:
    """A lineage and a revision of a model. Every ack, score and snapshot has one.

    Pass it as `min_position` to read a state at least as new. lineage: 16 bytes (a UUID); every
    model that is created or restored has a new one. revision: 0 for the empty model. It never
    decreases.
    """

    lineage: bytes
    revision: int

    def __str__(self) -> str:
        name = uuid.UUID(bytes=self.lineage) if len(self.lineage) == 16 else self.lineage.hex()
        return f"{name}:{self.revision}"

    def __repr__(self) -> str:
        return f"Position({self})"


def position_of(message: Any) -> Position:
    """Convert a `livefactor.v1.Position` message to a Position."""
    return Position(message.lineage, message.revision)
