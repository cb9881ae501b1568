"""Interactions: events from which the model learns.

The columns are user and item, and optionally value, weight, type, time, and a bag of context. Only
a model with context (`ModelSpec.context`) learns the bags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.columns import Columns
from livefactor.wire.keys import keys_of
from livefactor_kernels.spec.model import Loss, ModelSpec
from livefactor_server.changes.change import KeyedChange, Placement, Record, require_rows
from livefactor_server.changes.content.bags import check_context, context_bags
from livefactor_server.changes.events import join, learn
from livefactor_server.changes.rejects import NO_REJECTS, Rejects
from livefactor_server.changes.short_updates import Range, ShortUpdate
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import invalid

WORK_MAX = 65_536 * 16
"""Maximum of events times `ModelSpec.work_of_event` of one record.

It bounds the time for which a reader waits at the gate.
"""


@dataclass(slots=True)
class InteractionsChange(KeyedChange):
    """Accepted events. `columns` are NumPy views of `body`."""

    columns: Columns
    body: bytes

    kind: ClassVar[Kind] = Kind.INTERACTIONS
    field: ClassVar[str] = wire.INTERACTIONS
    has_events: ClassVar[bool] = True
    is_sighting: ClassVar[bool] = True
    reject_texts: ClassVar[Mapping[int, str]] = {
        updates_pb2.REJECT_REASON_NOT_FINITE: "value or weight is NaN or infinite",
        updates_pb2.REJECT_REASON_VALUE_DOMAIN: "value is outside the loss's domain or above value_abs_max",
        updates_pb2.REJECT_REASON_WEIGHT_DOMAIN: "weight is not above 0, or above weight_max",
        updates_pb2.REJECT_REASON_USERS_FULL: "the user is new, and the model has limits.users_max users",
        updates_pb2.REJECT_REASON_ITEMS_FULL: "the item is new, and the model has limits.items_max items",
        updates_pb2.REJECT_REASON_MEMORY_FULL: "the server has no memory for a further user or item",
        updates_pb2.REJECT_REASON_USER_RATE: "the user has had too many events in a minute",
        updates_pb2.REJECT_REASON_DUPLICATE_OUTCOME: "this outcome of this Score call was learned already",
        updates_pb2.REJECT_REASON_NEW_IDS: "the producer has added too many new users and items in a minute",
    }

    @property
    def rows(self) -> int:
        """Number of events."""
        return len(self.columns.user_ids)

    @property
    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        """(user ids, item ids) of the events, uint64[rows] each."""
        return self.columns.user_ids, self.columns.item_ids

    @classmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[InteractionsChange, Rejects]:
        """Decodes a message, and rejects the events whose values or weights the spec does not
        accept.

        Raises:
            ColumnError: the message is malformed.
            Refused: it has no rows, too many rows, or no values for squared loss.
        """
        columns = wire.decode_interactions(body)
        require_rows(len(columns), min(rows_max, WORK_MAX // spec.work_of_event))
        if columns.context is not None:
            check_context(columns.context, spec)
        change = cls(columns, columns.body)
        reasons = change._reasons(spec)
        if reasons is None:
            return change, NO_REJECTS
        bad = np.flatnonzero(reasons)
        return change.without_rows(bad), Rejects.of(bad, reasons[bad])

    @classmethod
    def from_short(cls, update: ShortUpdate, spec: ModelSpec, rows_max: int) -> InteractionsChange | None:
        """The change of a usual message. None if the spec does not accept one of its events.

        Raises:
            Refused: it has too many rows.
        """
        columns = update.columns
        require_rows(len(columns), min(rows_max, WORK_MAX // spec.work_of_event))
        if not (_accepts_values(update.values, spec) and _accepts_weights(update.weights, spec)):
            return None
        return cls(columns, columns.body)

    def rows_outside(self, spec: ModelSpec) -> list[tuple[int, int]]:
        """See `WireChange.rows_outside`."""
        if self.columns.context is not None:
            check_context(self.columns.context, spec)
        reasons = self._reasons(spec) if self.rows else None
        if reasons is None:
            return []
        bad = np.flatnonzero(reasons)
        return list(zip(bad.tolist(), reasons[bad].tolist(), strict=True))

    def _reasons(self, spec: ModelSpec) -> np.ndarray | None:
        require_rows(self.rows, WORK_MAX // spec.work_of_event)
        if self.columns.values is None and spec.loss == Loss.SQUARED:
            raise invalid("values: squared loss needs a value for every event")
        return _reasons(self.columns, spec)

    @classmethod
    def from_log(cls, body: bytes) -> InteractionsChange:
        """Decodes a logged body."""
        return cls(wire.decode_interactions(body), body)

    def without_rows(self, rows: np.ndarray | list[int]) -> InteractionsChange:
        """The events without those with these numbers."""
        keep = np.ones(self.rows, bool)
        keep[rows] = False
        columns = wire.decode_interactions(wire.select(self.columns, keep))
        return InteractionsChange(columns, columns.body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Learns the events of all records in one call of the backend.

        The bits are those of one call per record.
        """
        for run in _runs(records) if state.spec.context.size else (records,):
            columns, placements = [], []
            for _, change, placement in run:
                assert isinstance(change, InteractionsChange) and placement is not None
                columns.append(change.columns)
                placements.append(placement)
            learn(state, run[0].header.revision, *join(columns, placements))
            if state.spec.context.size and columns[-1].context is not None:
                _learn_context(state, columns[-1], placements[-1])

    def describe(self) -> str:
        """The optional columns that the events have."""
        names = ("values", "weights", "event_types", "times_us", "context")
        present = [name for name in names if getattr(self.columns, name) is not None]
        return " ".join(["events", *(["with", ", ".join(present)] if present else [])])


def _runs(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """The records in runs that end with a record that has context."""
    start = 0
    for stop, (_, change, _) in enumerate(records, 1):
        assert isinstance(change, InteractionsChange)
        if change.columns.context is not None or stop == len(records):
            yield records[start:stop]
            start = stop


def _learn_context(state: ModelState, columns: Columns, placement: Placement) -> None:
    """Learns the context of the events of a record that are learned and have a value above 0."""
    assert columns.context is not None
    values, _ = state.meanings.applied(len(columns), columns.event_types, columns.values, columns.weights)
    counts = np.ones(len(columns), bool) if values is None else values > 0
    if placement.learned is not None:
        counts &= placement.learned
    told = columns.context.select(counts)
    placed, forgotten = state.backend.learn_context(placement.item_rows[counts], context_bags(told))
    state.context.drop(forgotten)
    if placed.size:
        names = dict(zip(keys_of(told.names).tolist(), told.names, strict=True))
        state.context.put(placed, [names[key] for key in placed.tolist()])


def _reasons(columns: Columns, spec: ModelSpec) -> np.ndarray | None:
    """uint8[n] reason of the rejection of each row, 0 for accepted rows. None if all are accepted.

    If all rows are accepted, it costs one comparison per column.
    """
    checks = []
    if columns.values is not None:
        good = good_values(columns.values, spec)
        checks.append((columns.values, good, updates_pb2.REJECT_REASON_VALUE_DOMAIN))
    if columns.weights is not None:
        good = good_weights(columns.weights, spec)
        checks.append((columns.weights, good, updates_pb2.REJECT_REASON_WEIGHT_DOMAIN))
    if all(good.all() for _, good, _ in checks):
        return None
    reasons = np.zeros(len(columns), np.uint8)
    for numbers, good, reason in reversed(checks):
        reasons[~good] = reason
        reasons[~np.isfinite(numbers)] = updates_pb2.REJECT_REASON_NOT_FINITE
    return reasons


def good_values(values: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """bool[n]: which values float32[n] the spec accepts."""
    good: np.ndarray
    if spec.loss == Loss.SQUARED or spec.auto.ratings_events:
        good = np.abs(values) <= np.float32(spec.limits.value_abs_max)
    elif spec.loss == Loss.LOGISTIC:
        good = (values == 0) | (values == 1)
    elif spec.loss in (Loss.IMPLICIT, Loss.SOFTMAX):
        good = (values >= 0) & (values <= np.float32(spec.limits.value_abs_max))
    else:
        good = (values > 0) & (values <= np.float32(spec.limits.value_abs_max))
    return good


def good_weights(weights: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """bool[n]: which weights float32[n] the spec accepts."""
    return (weights > 0) & (weights <= np.float32(spec.limits.weight_max))


def _accepts_values(values: Range | None, spec: ModelSpec) -> bool:
    """Whether `good_values` is true for all numbers of a column. None is no column."""
    if values is None:
        return spec.loss != Loss.SQUARED
    low, high, binary = values
    most = float(np.float32(spec.limits.value_abs_max))
    if spec.loss == Loss.SQUARED or spec.auto.ratings_events:
        return -most <= low and high <= most
    if spec.loss == Loss.LOGISTIC:
        return binary > 0
    if spec.loss in (Loss.IMPLICIT, Loss.SOFTMAX):
        return low >= 0 and high <= most
    return low > 0 and high <= most


def _accepts_weights(weights: Range | None, spec: ModelSpec) -> bool:
    """Whether `good_weights` is true for all numbers of a column. None is no column."""
    return weights is None or (weights[0] > 0 and weights[1] <= float(np.float32(spec.limits.weight_max)))
