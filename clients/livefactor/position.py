"""A point in a model's history."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, repr=False)
class Position:
    """(lineage, revision) of a model. Every ack, score and snapshot has one, and `min_position` takes it.

    lineage: 16 bytes (a UUID), new for every model that is created or restored. revision: 0 for the empty model;
    it never goes back.
    """

    lineage: bytes
    revision: int

    def __str__(self) -> str:
        name = uuid.UUID(bytes=self.lineage) if len(self.lineage) == 16 else self.lineage.hex()
        return f"{name}:{self.revision}"

    def __repr__(self) -> str:
        return f"Position({self})"


def position_of(message: Any) -> Position:
    """The Position of a `livefactor.v1.Position` message."""
    return Position(message.lineage, message.revision)
