"""Availability: marks items as available or unavailable for recommendation.

Unavailable items keep their factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, NO_ROW
from livefactor_server.changes.change import NO_ROOM, Record, Room, WireChange, keys_of_side, require_rows
from livefactor_server.changes.rejects import NO_REJECTS, Rejects
from livefactor_server.log.store import Kind
from livefactor_server.model.availability import UNKNOWN_MARK_BYTES
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
    reject_texts: ClassVar[Mapping[int, str]] = {
        updates_pb2.REJECT_REASON_MARKS_FULL: "the model has no room for a mark of a further unknown item",
    }

    @property
    def rows(self) -> int:
        """Number of items."""
        return len(self.item_ids)

    @property
    def named_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """See `WireChange.named_ids`."""
        return keys_of_side(ITEMS, self.item_ids)

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
        """Sets the marks in order."""
        for record in records:
            change = record.change
            assert isinstance(change, AvailabilityChange)
            state.marks.put(change.item_ids, change.available)

    def describe(self) -> str:
        """The new mark."""
        return "items available" if self.available else "items unavailable"

    def without_rows(self, rows: np.ndarray | list[int]) -> AvailabilityChange:
        """The marks without those with these numbers."""
        ids = np.delete(self.item_ids, rows)
        marks = updates_pb2.Availability(item_ids=ids.tolist(), available=self.available)
        return self.from_log(marks.SerializeToString())

    def rows_without_room(
        self, state: ModelState, pending: Mapping[int, int], free_bytes: int
    ) -> list[tuple[int, int]]:
        """See `WireChange.rows_without_room`. Only marks of unknown items take room."""
        marks, limit = state.marks, state.spec.limits.items_max
        present = marks.unknown + len(pending)
        if UNKNOWN_MARK_BYTES * self.rows <= free_bytes and present + self.rows <= limit:
            return []
        items = state.backend.items
        unknown = items.find(self.item_ids, items.allocated) == NO_ROW
        rows = np.flatnonzero(unknown & ~marks.are_marked_unknown(self.item_ids))
        room = min(limit - present, free_bytes // UNKNOWN_MARK_BYTES)
        new: set[int] = set()
        full = []
        for row, key in zip(rows.tolist(), self.item_ids[rows].tolist(), strict=True):
            if key in pending or key in new:
                continue
            if len(new) >= room:
                full.append((row, int(updates_pb2.REJECT_REASON_MARKS_FULL)))
            else:
                new.add(key)
        return full

    @property
    def room(self) -> Room:
        """One entry in the list of unknown unavailable items for each row."""
        if self.available:
            return NO_ROOM
        return Room(self.describe(), self.item_ids.tolist(), UNKNOWN_MARK_BYTES * self.rows)
