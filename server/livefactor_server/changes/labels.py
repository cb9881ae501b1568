"""Labels: names of ids of users or items.

The last label of an id replaces earlier ones. An empty label removes the label of the id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.limits import LABEL_BYTES_MAX
from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.changes.change import Record, Room, WireChange, keys_of_side, require_rows
from livefactor_server.changes.rejects import NO_REJECTS, Rejects
from livefactor_server.log.store import Kind
from livefactor_server.model.labels import ENTRY_BYTES
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import invalid

SIDES: dict[int, int] = {updates_pb2.SIDE_USER: 0, updates_pb2.SIDE_ITEM: 1}
"""Side in the API -> table number."""

_LABEL_TAG = bytes([updates_pb2.Labels.LABELS_FIELD_NUMBER << 3 | 2])


@dataclass(slots=True)
class LabelsChange(WireChange):
    """Labels of one side.

    Attributes:
        side: 0 for users, 1 for items.
        ids: uint64[n].
        labels: n texts.
    """

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
        """Number of labels."""
        return len(self.labels)

    @property
    def named_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """See `WireChange.named_ids`."""
        return keys_of_side(self.side, self.ids)

    @classmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[LabelsChange, Rejects]:
        """Decodes a message, and rejects labels of more than `LABEL_BYTES_MAX` bytes.

        Raises:
            ColumnError: the message is malformed.
            Refused: it has no rows, too many rows, or no side.
        """
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
        """Decodes a logged body."""
        return cls._of(wire.decode_labels(body))

    @classmethod
    def _of(cls, labels: wire.LabelColumns) -> LabelsChange:
        return cls(SIDES[labels.side], labels.ids, list(labels.labels), labels.body)

    def without_rows(self, rows: np.ndarray | list[int]) -> LabelsChange:
        """The labels without those with these numbers."""
        keep = np.ones(self.rows, bool)
        keep[np.asarray(rows, np.int64)] = False
        return self._of(wire.decode_labels(wire.select_labels(wire.decode_labels(self.body), keep)))

    def rows_without_room(
        self, state: ModelState, pending: Mapping[int, int], free_bytes: int
    ) -> list[tuple[int, int]]:
        """See `WireChange.rows_without_room`.

        A label that replaces one of at least its length takes no memory.
        """
        present, limits = state.labels[self.side], state.spec.limits
        limit = (limits.users_max, limits.items_max)[self.side]
        if self._nbytes <= free_bytes and len(present) + len(pending) + self.rows <= limit:
            return []
        taken = len(present) + sum(key not in present for key in pending)
        new: set[int] = set()
        full = []
        for row, (key, text) in enumerate(zip(self.ids.tolist(), self.labels, strict=True)):
            size = len(text.encode())
            if size <= len(present.get(key).encode()):
                continue
            is_new = key not in present and key not in pending and key not in new
            free_bytes -= ENTRY_BYTES + size
            if free_bytes < 0 or (is_new and taken + len(new) >= limit):
                full.append((row, int(updates_pb2.REJECT_REASON_LABELS_FULL)))
                free_bytes += ENTRY_BYTES + size
            elif is_new:
                new.add(key)
        return full

    @property
    def _nbytes(self) -> int:
        return len(self.body) + ENTRY_BYTES * self.rows

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Sets the labels in order."""
        for record in records:
            change = record.change
            assert isinstance(change, LabelsChange)
            state.labels[change.side].put(change.ids, change.labels)

    def describe(self) -> str:
        """The side."""
        return f"labels of {('users', 'items')[self.side]}"

    @property
    def room(self) -> Room:
        """One entry in the list of labels for each row, and the bytes of the texts."""
        return Room(self.describe(), self.ids.tolist(), self._nbytes)


def _require_few(body: bytes, rows_max: int) -> None:
    # An empty label takes two bytes of a message, so parsing a message to count its labels could
    # make millions of strings. Each label has a tag, so the tag's byte occurs at least as often as
    # labels do. In ids and texts this byte is rare.
    if body.count(_LABEL_TAG) > 2 * rows_max + len(body) // 64:
        raise invalid(f"batch: at most {rows_max} rows, got many more labels")
