"""Messages to changes: parse, check, and sort out the rows that are rejected. The log's records come back through the same parser.

Message-level faults (lengths, emptiness, size) raise Refused or ColumnError; row-level ones become `Rejects`, and the change holds
the other rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.columns import Columns
from livefactor.wire.scoring import ScoreQuery, decode_score
from livefactor_kernels.spec.model import Loss, ModelSpec
from livefactor_server.changes import (
    NO_REJECTS,
    REJECTS_LISTED_MAX,
    SIDES,
    AvailabilityChange,
    Change,
    EngineChange,
    InteractionsChange,
    LabelsChange,
    OpenProducerChange,
    Rejects,
)
from livefactor_server.log.store import Kind
from livefactor_server.statuses import invalid

LABEL_BYTES_MAX = 1024

REJECT_TEXTS: dict[int, str] = {
    updates_pb2.REJECT_REASON_NOT_FINITE: "value or weight is NaN or infinite",
    updates_pb2.REJECT_REASON_VALUE_DOMAIN: "value is outside the loss's domain or above value_abs_max",
    updates_pb2.REJECT_REASON_WEIGHT_DOMAIN: "weight is not above 0, or above weight_max",
    updates_pb2.REJECT_REASON_USERS_FULL: "the model holds users_max users",
    updates_pb2.REJECT_REASON_ITEMS_FULL: "the model holds items_max items",
    updates_pb2.REJECT_REASON_LABELS_FULL: "the model has no room for a label of a further id",
    updates_pb2.REJECT_REASON_LABEL_TOO_LONG: f"label has more than {LABEL_BYTES_MAX} bytes of UTF-8",
}


class UpdateRequest(NamedTuple):
    """An ApplyUpdates or StreamUpdates request, its change still as bytes."""

    model: str
    producer_id: bytes
    epoch: int
    sequence: int
    change: str
    body: bytes


def update_request(raw: bytes) -> UpdateRequest:
    """Parse a request's envelope. Raises ColumnError (malformed), Refused (no change in it)."""
    request = wire.decode_apply(raw)
    if request.change is None:
        raise invalid("change: none given, expected interactions, labels or availability")
    stamp = request.stamp
    return UpdateRequest(
        request.model, stamp.producer_id.encode(), stamp.epoch, stamp.sequence, request.change, request.body
    )


def change_from_wire(request: UpdateRequest, spec: ModelSpec, rows_max: int) -> tuple[Change, Rejects]:
    """The change of a request without its rejected rows. Raises ColumnError, Refused."""
    if request.change == wire.INTERACTIONS:
        columns = wire.decode_interactions(request.body)
        _require_rows(len(columns), min(rows_max, _WORK_MAX // spec.work_of_event))
        return _checked_interactions(columns, spec)
    if request.change == wire.LABELS:
        _require_few_labels(request.body, rows_max)
        labels = wire.decode_labels(request.body)
        _require_rows(len(labels), rows_max)
        return _checked_labels(labels)
    marks = wire.decode_availability(request.body)
    _require_rows(len(marks), rows_max)
    return AvailabilityChange(marks.item_ids, marks.available, marks.body), NO_REJECTS


_WORK_MAX = 65_536 * 16
"""Most events times `ModelSpec.work_of_event` of a record: it bounds how long a reader waits at the gate."""


def _require_few_labels(body: bytes, rows_max: int) -> None:
    # A message of empty labels takes two bytes each: millions of strings, if it were parsed to be counted. Each has its
    # tag, so the tag's byte occurs at least as often as there are labels; in ids and texts it is rare.
    if body.count(_LABEL_TAG) > 2 * rows_max + len(body) // 64:
        raise invalid(f"batch: at most {rows_max} rows, got many more labels")


_LABEL_TAG = bytes([updates_pb2.Labels.LABELS_FIELD_NUMBER << 3 | 2])


def _require_rows(rows: int, rows_max: int) -> None:
    if not rows:
        raise invalid("batch: no rows")
    if rows > rows_max:
        raise invalid(f"batch: at most {rows_max} rows, got {rows}")


def _checked_interactions(columns: Columns, spec: ModelSpec) -> tuple[Change, Rejects]:
    if columns.values is None and spec.loss == Loss.SQUARED:
        raise invalid("values: squared loss needs a value for every event")
    reasons = _reasons(columns, spec)
    if reasons is None:
        return InteractionsChange(columns, columns.body), NO_REJECTS
    bad = np.flatnonzero(reasons)
    listed = tuple((int(row), int(reasons[row])) for row in bad[:REJECTS_LISTED_MAX])
    change = InteractionsChange(columns, columns.body)
    return without_rows(change, bad), Rejects(len(bad), listed)


def without_rows(change: InteractionsChange, rows: np.ndarray | list[int]) -> InteractionsChange:
    """The change without these rows."""
    keep = np.ones(change.rows, bool)
    keep[rows] = False
    columns = wire.decode_interactions(wire.select(change.columns, keep))
    return InteractionsChange(columns, columns.body)


def _reasons(columns: Columns, spec: ModelSpec) -> np.ndarray | None:
    """uint8[n] reject reason of each row, 0 for good ones; None if all are good. One compare a column when all is well."""
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
    """bool[n]: which values float32[n] are in the domain of the spec's loss, so that their rows are accepted."""
    good: np.ndarray
    if spec.loss == Loss.SQUARED:
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


def _checked_labels(labels: wire.LabelColumns) -> tuple[Change, Rejects]:
    side = SIDES.get(labels.side)
    if side is None:
        raise invalid("side: expected SIDE_USER or SIDE_ITEM")
    keep = np.array([len(text.encode()) <= LABEL_BYTES_MAX for text in labels.labels])
    rejects = NO_REJECTS
    if not keep.all():
        bad = np.flatnonzero(~keep).tolist()
        reason = int(updates_pb2.REJECT_REASON_LABEL_TOO_LONG)
        rejects = Rejects(len(bad), tuple((row, reason) for row in bad[:REJECTS_LISTED_MAX]))
        labels = wire.decode_labels(wire.select_labels(labels, keep))
    return LabelsChange(side, labels.ids, list(labels.labels), labels.body), rejects


def without_labels(change: LabelsChange, rows: list[int]) -> LabelsChange:
    """The change without these rows."""
    keep = np.ones(change.rows, bool)
    keep[rows] = False
    labels = wire.decode_labels(wire.select_labels(wire.decode_labels(change.body), keep))
    return LabelsChange(change.side, labels.ids, list(labels.labels), labels.body)


def change_of(kind: int, body: bytes | memoryview) -> Change:
    """The change of a logged record. What was logged had been checked; ColumnError means a foreign or damaged record."""
    data = bytes(body)
    if kind == Kind.INTERACTIONS:
        columns = wire.decode_interactions(data)
        return InteractionsChange(columns, data)
    if kind == Kind.LABELS:
        labels = wire.decode_labels(data)
        return LabelsChange(SIDES[labels.side], labels.ids, list(labels.labels), data)
    if kind == Kind.AVAILABILITY:
        marks = wire.decode_availability(data)
        return AvailabilityChange(marks.item_ids, marks.available, data)
    if kind == Kind.OPEN_PRODUCER:
        return OpenProducerChange()
    return EngineChange(data)


def score_query(raw: bytes, users_max: int, rows_max: int) -> ScoreQuery:
    """Parse and check a Score request. `rows_max`: most answers of a call. Raises ColumnError, Refused."""
    query = decode_score(raw)
    users = len(query.user_ids)
    if not users:
        raise invalid("user_ids: none given")
    if users > users_max:
        raise invalid(f"user_ids: at most {users_max}, got {users}")
    if query.target is None:
        raise invalid("target: none given, expected candidates or top_k")
    if query.target == "top_k" and not 1 <= query.k * users <= rows_max:
        raise invalid(
            f"k: expected at least 1, and users * k at most {rows_max}; got {query.k} for {users} users"
        )
    if query.offsets is not None:
        _check_offsets("offsets", query.offsets, users, len(query.item_ids))
    if query.event_ids is not None:
        if len(query.event_ids) > rows_max:
            raise invalid(f"events: at most {rows_max}, got {len(query.event_ids)}")
        if query.event_offsets is not None:
            _check_offsets("events.offsets", query.event_offsets, users, len(query.event_ids))
    answers = len(query.item_ids) * (users if query.target == "candidates" and query.offsets is None else 1)
    if answers > rows_max:
        raise invalid(f"item_ids: at most {rows_max} scores a call, got {answers}")
    return query


def _check_offsets(name: str, offsets: np.ndarray, users: int, items: int) -> None:
    good = len(offsets) == users + 1 and offsets[0] == 0 and offsets[-1] == items
    if not good or (offsets[1:] < offsets[:-1]).any():
        raise invalid(f"{name}: expected {users + 1} ascending numbers from 0 to {items}")
