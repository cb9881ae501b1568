"""Features: weighted bags of features of users or items.

A bag replaces the id's bag before it, and an empty bag removes it. A new id gets a row, so that it
is scored before its first event. The state keeps the names of features (`model/state.py`), and the
kernels the bags by keys, which are those of string ids (`livefactor.wire.keys`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.keys import keys_of
from livefactor.wire.limits import FEATURE_NAME_BYTES_MAX, FEATURES_OF_BATCH_MAX
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import USERS
from livefactor_server.changes.change import (
    KeyedChange,
    Record,
    ReplayError,
    Room,
    WireChange,
    keys_of_side,
    require_rows,
)
from livefactor_server.changes.content.bags import check_bags, check_names, require_context
from livefactor_server.changes.labels import SIDES
from livefactor_server.changes.rejects import NO_REJECTS, Rejects
from livefactor_server.log.store import Kind
from livefactor_server.model.labels import ENTRY_BYTES
from livefactor_server.model.state import ModelState, feature_row_bytes
from livefactor_server.statuses import invalid

CONTEXT = 2
DROPPED_SIDES = SIDES | {updates_pb2.SIDE_CONTEXT: CONTEXT}
"""Whose features can be dropped: those of the users (0), of the items (1), and of context (2)."""
_DROPPED_NAMES = "users", "items", "context"
_USUAL_K = 128
"""Factors of a row in the estimate of what admitted batches will take."""
_DROPPED_TAG = bytes([updates_pb2.DroppedFeatures.NAMES_FIELD_NUMBER << 3 | 2])
_NAME_TAG = bytes([updates_pb2.Features.NAMES_FIELD_NUMBER << 3 | 2])


@dataclass(slots=True)
class FeaturesChange(KeyedChange):
    """Bags of one side.

    Attributes:
        side: 0 for users, 1 for items.
        columns: the message.
        name_keys: the key of each name, uint64[any].
    """

    side: int
    columns: wire.FeatureColumns
    name_keys: np.ndarray
    body: bytes

    kind: ClassVar[Kind] = Kind.FEATURES
    field: ClassVar[str] = wire.FEATURES
    work_of_row: ClassVar[int] = 4
    reject_texts: ClassVar[Mapping[int, str]] = {
        updates_pb2.REJECT_REASON_FEATURES_FULL: "the model has no room for a further feature",
    }

    @property
    def rows(self) -> int:
        """Number of ids."""
        return len(self.columns)

    @property
    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the side, and none of the other one."""
        return keys_of_side(self.side, self.columns.ids)

    @classmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[FeaturesChange, Rejects]:
        """Decodes a message. It rejects no row.

        Raises:
            ColumnError: the message is malformed.
            Refused: the model has no features, or the message as a whole is invalid.
        """
        # A name takes two bytes of a message at least, so names are counted before they are parsed.
        if body.count(_NAME_TAG) > 2 * FEATURES_OF_BATCH_MAX + len(body) // 64:
            raise invalid(f"names: at most {FEATURES_OF_BATCH_MAX} a batch, got many more")
        columns = wire.decode_features(body)
        require_rows(len(columns), rows_max)
        if columns.side not in SIDES:
            raise invalid("side: expected SIDE_USER or SIDE_ITEM")
        change = cls._of(columns)
        change.rows_outside(spec)
        check_names("features", columns, change.name_keys)
        return change, NO_REJECTS

    @classmethod
    def from_log(cls, body: bytes) -> FeaturesChange:
        """Decodes a logged body."""
        return cls._of(wire.decode_features(body))

    @classmethod
    def _of(cls, columns: wire.FeatureColumns) -> FeaturesChange:
        return cls(SIDES[columns.side], columns, keys_of(columns.names), columns.body)

    def rows_outside(self, spec: ModelSpec) -> list[tuple[int, int]]:
        """See `WireChange.rows_outside`. It rejects no row."""
        require_features(spec)
        check_bags("features", self.columns, spec.features.per_id)
        return []

    def without_rows(self, rows: np.ndarray | list[int]) -> FeaturesChange:
        """The bags without those with these numbers, and without the names that only they have."""
        columns = self.columns
        keep = np.ones(self.rows, bool)
        keep[np.asarray(rows, np.int64)] = False
        in_bag = np.repeat(keep, columns.counts)
        used, features = np.unique(columns.features[in_bag], return_inverse=True)
        names = [columns.names[at] for at in used.tolist()]
        parts = columns.ids[keep], columns.counts[keep], names, features, columns.weights[in_bag]
        return self._of(wire.decode_features(wire.encode_features(columns.side, *parts)))

    def rows_without_room(
        self, state: ModelState, pending: Mapping[int, int], free_bytes: int
    ) -> list[tuple[int, int]]:
        """See `WireChange.rows_without_room`."""
        present, size = state.features[self.side], state.spec.features.size
        taken = len(present) + sum(key not in present for key in pending)
        cost = _feature_bytes(state.spec.k)
        if len(self.name_keys) * cost <= free_bytes and taken + len(self.name_keys) <= size:
            return []
        full, new, keys = [], set[int](), self.name_keys.tolist()
        for row, bag in enumerate(np.split(self.columns.features, self._ends[:-1])):
            wanted = {keys[at] for at in bag.tolist()}
            wanted = {key for key in wanted if key not in present and key not in pending} - new
            if taken + len(new) + len(wanted) > size or len(wanted) * cost > free_bytes:
                full.append((row, int(updates_pb2.REJECT_REASON_FEATURES_FULL)))
            else:
                new |= wanted
                free_bytes -= len(wanted) * cost
        return full

    @property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.columns.counts, dtype=np.int64)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Sets the bags in order.

        Raises:
            ReplayError: a bag has more features than the spec allows.
        """
        per_id = state.spec.features.per_id if state.spec.features.size else 0
        for record in records:
            change, placement = record.change, record.placement
            assert isinstance(change, FeaturesChange) and placement is not None
            columns, side = change.columns, change.side
            if int(columns.counts.max(initial=0)) > per_id:
                raise ReplayError(f"features: expected at most {per_id} an id, got {columns.counts.max()}")
            bags = Bags(change._ends, change.name_keys[columns.features], columns.weights)
            new = [at for at, key in enumerate(change.name_keys.tolist()) if key not in state.features[side]]
            state.features[side].put(change.name_keys[new], [columns.names[at] for at in new])
            at = (
                (placement.user_rows, placement.user_count)
                if side == USERS
                else (placement.item_rows, placement.item_count)
            )
            state.backend.set_features(side, at[0], bags, record.header.revision, at[1])

    def describe(self) -> str:
        """The side, and the number of features."""
        return f"features of {('users', 'items')[self.side]}, {len(self.columns.features)} in all"

    @property
    def room(self) -> Room:
        """An entry for each name, with its row."""
        list_name = f"features of {('users', 'items')[self.side]}"
        return Room(list_name, self.name_keys.tolist(), len(self.name_keys) * _feature_bytes(_USUAL_K))


def _feature_bytes(k: int) -> int:
    return ENTRY_BYTES + FEATURE_NAME_BYTES_MAX + feature_row_bytes(k)


@dataclass(slots=True)
class DroppedFeaturesChange(WireChange):
    """Names of features that are dropped. `side` is a number of `DROPPED_SIDES`."""

    side: int
    names: list[str]
    body: bytes

    kind: ClassVar[Kind] = Kind.DROPPED_FEATURES
    field: ClassVar[str] = wire.DROPPED_FEATURES
    work_of_row: ClassVar[int] = 64

    @property
    def rows(self) -> int:
        """Number of names."""
        return len(self.names)

    @classmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[DroppedFeaturesChange, Rejects]:
        """Decodes a message. It rejects no row.

        Raises:
            ColumnError: the message is malformed.
            Refused: the model has no such features, or the message has no rows, too many or no
                side.
        """
        # A name takes two bytes of a message at least, so names are counted before they are parsed.
        if body.count(_DROPPED_TAG) > 2 * rows_max + len(body) // 64:
            raise invalid(f"batch: at most {rows_max} rows, got many more names")
        side, names = wire.decode_dropped_features(body)
        require_rows(len(names), rows_max)
        if side not in DROPPED_SIDES:
            raise invalid("side: expected SIDE_USER, SIDE_ITEM or SIDE_CONTEXT")
        change = cls(DROPPED_SIDES[side], names, body)
        change.rows_outside(spec)
        return change, NO_REJECTS

    @classmethod
    def from_log(cls, body: bytes) -> DroppedFeaturesChange:
        """Decodes a logged body."""
        side, names = wire.decode_dropped_features(body)
        return cls(DROPPED_SIDES[side], names, body)

    def without_rows(self, rows: np.ndarray | list[int]) -> DroppedFeaturesChange:
        """The names without those with these numbers."""
        dropped = set(np.asarray(rows, np.int64).tolist())
        names = [name for row, name in enumerate(self.names) if row not in dropped]
        side = next(number for number, table in DROPPED_SIDES.items() if table == self.side)
        return self.from_log(wire.encode_dropped_features(side, names))

    def rows_outside(self, spec: ModelSpec) -> list[tuple[int, int]]:
        """See `WireChange.rows_outside`. It rejects no row."""
        (require_context if self.side == CONTEXT else require_features)(spec)
        return []

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Drops the features in order."""
        for record in records:
            change = record.change
            assert isinstance(change, DroppedFeaturesChange)
            keys = keys_of(change.names)
            if change.side == CONTEXT:
                if state.spec.context.size:
                    state.backend.drop_context(keys, record.header.revision)
                    state.context.drop(keys)
            elif state.spec.features.size:
                state.backend.drop_features(change.side, keys, record.header.revision)
                state.features[change.side].put(keys, [""] * len(keys))

    def describe(self) -> str:
        """The side."""
        return f"dropped features of {_DROPPED_NAMES[self.side]}"


def require_features(spec: ModelSpec) -> None:
    """Checks that a model has features.

    Raises:
        Refused: INVALID_ARGUMENT if it has none.
    """
    if not spec.features.size:
        raise invalid("features: this model has no features (spec: features.size)")
