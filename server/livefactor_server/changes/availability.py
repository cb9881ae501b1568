"""Availability: items that may or may not be recommended from here on. They keep their factors either way."""

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
    """item_ids: uint64[n]. available: what they become."""

    item_ids: np.ndarray
    available: bool
    body: bytes

    kind: ClassVar[Kind] = Kind.AVAILABILITY
    field: ClassVar[str] = wire.AVAILABILITY

    @property
    def rows(self) -> int:
        """Items."""
        return len(self.item_ids)

    @classmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[AvailabilityChange, Rejects]:
        """The marks of a message; none is ever rejected."""
        change = cls.from_log(body)
        require_rows(change.rows, rows_max)
        return change, NO_REJECTS

    @classmethod
    def from_log(cls, body: bytes) -> AvailabilityChange:
        """The marks of a logged body."""
        marks = wire.decode_availability(body)
        return cls(marks.item_ids, marks.available, marks.body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Add the items to the unavailable ones, or take them away. Readers may hold the old array: it is replaced."""
        for record in records:
            change = record.change
            assert isinstance(change, AvailabilityChange)
            merge = np.setdiff1d if change.available else np.union1d
            state.unavailable = merge(state.unavailable, change.item_ids)

    def describe(self) -> str:
        """What the items become."""
        return "items available" if self.available else "items unavailable"

    @property
    def room(self) -> Room:
        """An entry of the list of unavailable items for each."""
        return Room(self.rows)

    def entries_in(self, state: ModelState) -> tuple[int, int]:
        """(unavailable items, items that the model may have)."""
        return len(state.unavailable), state.spec.limits.items_max
