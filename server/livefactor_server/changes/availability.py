"""Availability: marks items as available or unavailable for recommendation.

Unavailable items keep their factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from livefactor.wire import columns as wire
from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.changes.change import Record, Room, WireChange, require_rows
from livefactor_server.changes.rejects import NO_REJECTS, Rejects
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState


@dataclass(slots=True)
class AvailabilityChange(WireChange):
    """A mark for items.

    Attributes:
        item_ids: uint64[n].
        available: the new mark of all of them.
    """

    item_ids: np.ndarray
    available: bool
    body: bytes

    kind: ClassVar[Kind] = Kind.AVAILABILITY
    field: ClassVar[str] = wire.AVAILABILITY

    @property
    def rows(self) -> int:
        """Number of items."""
        return len(self.item_ids)

    @classmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[AvailabilityChange, Rejects]:
        """Decodes a message. It rejects no row.

        Raises:
            ColumnError: the message is malformed.
            Refused: it has no rows or too many.
        """
        change = cls.from_log(body)
        require_rows(change.rows, rows_max)
        return change, NO_REJECTS

    @classmethod
    def from_log(cls, body: bytes) -> AvailabilityChange:
        """Decodes a logged body."""
        marks = wire.decode_availability(body)
        return cls(marks.item_ids, marks.available, marks.body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Adds the items to the unavailable ones or removes them.

        It replaces the array, because readers may still use the old one.
        """
        for record in records:
            change = record.change
            assert isinstance(change, AvailabilityChange)
            merge = np.setdiff1d if change.available else np.union1d
            state.unavailable = merge(state.unavailable, change.item_ids)

    def describe(self) -> str:
        """The new mark."""
        return "items available" if self.available else "items unavailable"

    @property
    def room(self) -> Room:
        """One entry in the list of unavailable items for each row."""
        return Room(self.rows)

    def entries_in(self, state: ModelState) -> tuple[int, int]:
        """(number of unavailable items, limit of items)."""
        return len(state.unavailable), state.spec.limits.items_max
