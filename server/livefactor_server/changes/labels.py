"""Labels: names of ids of one side. The last label of an id wins, and an empty one removes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.changes.change import Record, Room, WireChange, require_rows
from livefactor_server.changes.rejects import NO_REJECTS, Rejects
from livefactor_server.log.store import Kind
from livefactor_server.model.labels import ENTRY_BYTES
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import invalid

LABEL_BYTES_MAX = 1024

SIDES: dict[int, int] = {updates_pb2.SIDE_USER: 0, updates_pb2.SIDE_ITEM: 1}
"""Contract side -> table number."""

_LABEL_TAG = bytes([updates_pb2.Labels.LABELS_FIELD_NUMBER << 3 | 2])


@dataclass(slots=True)
class LabelsChange(WireChange):
    """side: 0 users, 1 items. ids: uint64[n]. labels: n texts."""

    side: int
    ids: np.ndarray
    labels: list[str]
    body: bytes

    kind: ClassVar[Kind] = Kind.LABELS
    field: ClassVar[str] = wire.LABELS
    reject_texts: ClassVar[Mapping[int, str]] = {
        updates_pb2.REJECT_REASON_LABEL_TOO_LONG: f"label has more than {LABEL_BYTES_MAX} bytes of UTF-8",
        updates_pb2.REJECT_REASON_LABELS_FULL: "the model has no room for a label of a further id",
    }

    @property
    def rows(self) -> int:
        """Labels."""
        return len(self.labels)

    @classmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[LabelsChange, Rejects]:
        """The labels that are not too long."""
        _require_few(body, rows_max)
        labels = wire.decode_labels(body)
        require_rows(len(labels), rows_max)
        if labels.side not in SIDES:
            raise invalid("side: expected SIDE_USER or SIDE_ITEM")
        keep = np.array([len(text.encode()) <= LABEL_BYTES_MAX for text in labels.labels])
        if keep.all():
            return cls._of(labels), NO_REJECTS
        bad = np.flatnonzero(~keep)
        reasons = np.full(len(bad), updates_pb2.REJECT_REASON_LABEL_TOO_LONG)
        return cls._of(wire.decode_labels(wire.select_labels(labels, keep))), Rejects.of(bad, reasons)

    @classmethod
    def from_log(cls, body: bytes) -> LabelsChange:
        """The labels of a logged body."""
        return cls._of(wire.decode_labels(body))

    @classmethod
    def _of(cls, labels: wire.LabelColumns) -> LabelsChange:
        return cls(SIDES[labels.side], labels.ids, list(labels.labels), labels.body)

    def without_rows(self, rows: Sequence[int]) -> LabelsChange:
        """The change without these rows."""
        keep = np.ones(self.rows, bool)
        keep[np.asarray(rows, np.int64)] = False
        return self._of(wire.decode_labels(wire.select_labels(wire.decode_labels(self.body), keep)))

    def rows_without_room(self, state: ModelState, pending: Mapping[int, int]) -> list[int]:
        """Rows whose label would be one more than the side may have.

        pending: keys of the side whose labels were admitted and are not applied yet, with their numbers.
        """
        held, limit = state.labels[self.side], self.entries_in(state)[1]
        if len(held) + len(pending) + self.rows <= limit:
            return []
        taken = len(held) + sum(key not in held for key in pending)
        new: set[int] = set()
        full = []
        for row, (key, text) in enumerate(zip(self.ids.tolist(), self.labels, strict=True)):
            if not text or key in held or key in pending or key in new:
                continue
            if taken + len(new) >= limit:
                full.append(row)
            else:
                new.add(key)
        return full

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Set the labels in order."""
        for record in records:
            change = record.change
            assert isinstance(change, LabelsChange)
            state.labels[change.side].put(change.ids, change.labels)

    def describe(self) -> str:
        """The side."""
        return f"labels of {('users', 'items')[self.side]}"

    @property
    def room(self) -> Room:
        """An entry of the list of labels for each, and its text."""
        return Room(self.rows, len(self.body) + ENTRY_BYTES * self.rows)

    def entries_in(self, state: ModelState) -> tuple[int, int]:
        """(labels of the side, ids that the side may have)."""
        limits = state.spec.limits
        return len(state.labels[self.side]), (limits.users_max, limits.items_max)[self.side]


def _require_few(body: bytes, rows_max: int) -> None:
    # A message of empty labels takes two bytes each: millions of strings, if it were parsed to be counted. Each has its
    # tag, so the tag's byte occurs at least as often as there are labels; in ids and texts it is rare.
    if body.count(_LABEL_TAG) > 2 * rows_max + len(body) // 64:
        raise invalid(f"batch: at most {rows_max} rows, got many more labels")
