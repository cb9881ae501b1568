"""Reads the usual update message with interactions in one compiled call.

In Python its parts (fields, columns, checks of values) cost more than the rest of the way to the
log. The usual message has its fields in the order of their numbers, each at most once, and columns
of equal length. Every other message is left to the general code, which also words all errors. Both
give the same change (`tests/server/changes/test_short_updates.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire.arrays import FLOATS, KEYS, NUMBERS, TIMES
from livefactor.wire.columns import Columns
from livefactor_kernels.numbers.compiled import compiled
from livefactor_server.changes.tags import BYTES, VARINT, tag_of

Range = Sequence[float]

BYTES_MAX = 64 << 10
"""A larger message is left to the general code, whose checks release the GIL."""

SIZE_BYTES_MAX = 5
"""Maximum bytes of the size of a field. Longer ones are not usual."""

_REQUEST, _STAMP, _EVENTS = (
    updates_pb2.ApplyUpdatesRequest,
    updates_pb2.ProducerStamp,
    updates_pb2.Interactions,
)
_MODEL, _PRODUCER, _INTERACTIONS = (
    tag_of(_REQUEST, name, BYTES) for name in ("model", "producer", "interactions")
)
_ID, _EPOCH, _SEQUENCE = (
    tag_of(_STAMP, "id", BYTES),
    *(tag_of(_STAMP, n, VARINT) for n in ("epoch", "sequence")),
)
_COLUMNS: dict[str, np.dtype[Any]] = {
    "user_ids": KEYS, "item_ids": KEYS, "values": FLOATS, "weights": FLOATS, "event_types": NUMBERS, "times_us": TIMES,
}  # fmt: skip
_DTYPES = tuple(_COLUMNS.values())
_TAGS = np.array([tag_of(_EVENTS, name, BYTES) for name in _COLUMNS], np.int64)
_WIDTHS = np.array([dtype.itemsize for dtype in _DTYPES], np.int64)
_VALUES, _WEIGHTS = 2, 3

# Places in the memory of a call: where a field starts and stops, or its number.
_MODEL_AT, _ID_AT, _EPOCH_AT, _SEQUENCE_AT, _BODY_AT, _COLUMNS_AT = 0, 2, 4, 5, 6, 8
_PLACES = _COLUMNS_AT + 2 * len(_COLUMNS)


class ShortUpdate(NamedTuple):
    """A usual message. The first fields are those of `rpc.decode.UpdateRequest`.

    Attributes:
        values, weights: (lowest, highest, whether all are 0 or 1). None if the events have none.
            No number in them is NaN.
    """

    model: str
    producer_id: bytes
    epoch: int
    sequence: int
    columns: Columns
    values: Range | None
    weights: Range | None


def read(raw: bytes) -> ShortUpdate | None:
    """Reads an ApplyUpdatesRequest or StreamUpdatesRequest. None if it is not a usual one."""
    if len(raw) > BYTES_MAX:
        return None
    places, ranges = np.zeros(_PLACES, np.int64), np.zeros((2, 3))
    if not _read_kernel(np.frombuffer(raw, np.uint8), places, ranges):
        return None
    model, model_stop, name, name_stop, epoch, sequence, start, stop, *spans = places.tolist()
    try:
        text, producer = raw[model:model_stop].decode(), raw[name:name_stop]
        producer.decode()
    except UnicodeDecodeError:
        return None
    users, items, values, weights, types, times = [
        # A column need not be aligned in the message.
        np.frombuffer(raw[first:last], dtype) if last else None
        for first, last, dtype in zip(spans[::2], spans[1::2], _DTYPES, strict=True)
    ]
    assert users is not None and items is not None
    value_range, weight_range = ranges.tolist()
    return ShortUpdate(
        text, producer, epoch, sequence,
        Columns(users, items, values, weights, types, times, raw[start:stop]),
        None if values is None else value_range,
        None if weights is None else weight_range,
    )  # fmt: skip


@compiled(nogil=False)
def _number(raw: Any, at: Any, end: Any) -> Any:
    """(number, place after it) of the varint at `at`. The place is 0 if there is none below
    2**63.
    """
    number, shift, place = np.int64(0), 0, at
    while place < end and shift < 63:
        number |= np.int64(raw[place] & np.uint8(0x7F)) << shift
        place += 1
        if raw[place - 1] < np.uint8(0x80):
            return number, place
        shift += 7
    return np.int64(0), np.int64(0)


@compiled(nogil=False)
def _field(raw: Any, at: Any, end: Any, tag: Any) -> Any:
    """(start, stop) of the content of the field at `at`. Both are 0 if it has another tag, and -1
    if it does not end before `end`.
    """
    if at >= end or raw[at] != tag:
        return np.int64(0), np.int64(0)
    size, start = _number(raw, at + 1, end)
    if start == 0 or start - at > SIZE_BYTES_MAX + 1 or size > end - start:
        return np.int64(-1), np.int64(-1)
    return start, start + size


@compiled(nogil=False)
def _read_stamp(raw: Any, at: Any, end: Any, places: Any) -> Any:
    """Reads a ProducerStamp. Returns whether it is a usual one."""
    start, stop = _field(raw, at, end, _ID)
    if stop > 0:
        places[_ID_AT], places[_ID_AT + 1], at = start, stop, stop
    for tag, place in ((_EPOCH, _EPOCH_AT), (_SEQUENCE, _SEQUENCE_AT)):
        if stop >= 0 and at < end and raw[at] == tag:
            places[place], at = _number(raw, at + 1, end)
            stop = np.int64(0) if at else np.int64(-1)
    return stop >= 0 and at == end


@compiled(nogil=False)
def _take_range(raw: Any, start: Any, stop: Any, out: Any) -> Any:
    """Writes the lowest and the highest float32 number, and whether all are 0 or 1.

    Returns whether none is NaN.
    """
    numbers = raw[start:stop].copy().view(np.float32)
    low = high = numbers[0]
    binary, good = True, True
    for number in numbers:
        good &= number == number
        low, high = min(low, number), max(high, number)
        binary &= (number == np.float32(0)) | (number == np.float32(1))
    out[0], out[1], out[2] = low, high, 1.0 if binary else 0.0
    return good


@compiled(nogil=False)
def _read_kernel(raw: Any, places: Any, ranges: Any) -> Any:
    """Reads a message into int64[_PLACES] and float64[2, 3]. Returns whether it is a usual one."""
    end = np.int64(raw.size)
    start, stop = _field(raw, np.int64(0), end, _MODEL)
    if stop < 0:
        return False
    places[_MODEL_AT], places[_MODEL_AT + 1], at = start, stop, stop
    start, stop = _field(raw, at, end, _PRODUCER)
    if stop < 0 or (stop > 0 and not _read_stamp(raw, start, stop, places)):
        return False
    at = stop if stop > 0 else at
    start, stop = _field(raw, at, end, _INTERACTIONS)
    if stop != end or stop <= start:
        return False
    places[_BODY_AT], places[_BODY_AT + 1], at = start, stop, start
    rows = np.int64(0)
    for column in range(_TAGS.size):
        start, stop = _field(raw, at, end, _TAGS[column])
        if stop < 0:
            return False
        if stop > 0:
            if column == 0:
                rows = (stop - start) // 8
            if rows == 0 or stop - start != rows * _WIDTHS[column]:
                return False
            places[_COLUMNS_AT + 2 * column], places[_COLUMNS_AT + 2 * column + 1], at = start, stop, stop
            if column == _VALUES and not _take_range(raw, start, stop, ranges[0]):
                return False
            if column == _WEIGHTS and not _take_range(raw, start, stop, ranges[1]):
                return False
        elif column < _VALUES:
            return False
    return at == end


@cache
def compile_kernels() -> None:
    """Compiles the kernel or loads it from the cache, so that no call waits for it."""
    read(b"")
