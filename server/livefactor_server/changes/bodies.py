"""Decodes the bodies of many interactions records in one call of compiled code.

`livefactor.wire.columns.decode_interactions` decodes one message. The kernel here decodes what that
function reads without a parser: each column once and packed. At the first other body it stops, and
the caller decodes that record alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor_kernels.numbers.compiled import compiled
from livefactor_server.changes.events import Events
from livefactor_server.log.columns import BODY, COUNT, REJECTS, REJECTS_AT, Columns
from livefactor_server.log.hashing import SHORT_BYTES

_NAMES = ("user_ids", "item_ids", "values", "weights", "event_types", "times_us")
_TAGS = np.array(
    [updates_pb2.Interactions.DESCRIPTOR.fields_by_name[name].number << 3 | 2 for name in _NAMES], np.uint8
)
_SIZES = np.array([8, 8, 4, 4, 4, 8])
_LENGTH_SHIFT_MAX = 28


@compiled
def _find_columns(memory: Any, at: Any, end: Any, spans: Any) -> Any:
    """Writes where each column starts and its bytes to `spans`, int64[6, 2]. False if unusual."""
    for i in range(6):
        spans[i, 0] = spans[i, 1] = 0
    while at < end:
        column = 0
        while column < 6 and _TAGS[column] != memory[at]:
            column += 1
        if column == 6 or spans[column, 0]:
            return False
        size, shift, more = np.int64(0), np.int64(0), True
        while more:
            at += 1
            if at >= end or shift > _LENGTH_SHIFT_MAX:
                return False
            size |= np.int64(memory[at] & 0x7F) << shift
            more = memory[at] > 0x7F
            shift += 7
        spans[column, 0], spans[column, 1] = at + 1, size
        at += 1 + size
    return at == end


@compiled
def _copy(memory: Any, spans: Any, out: Any, start: Any, count: Any) -> Any:
    """Copies a column to the bytes `out` of a column, if it is there. Returns whether it is."""
    size = spans[1]
    if size == 0:
        return False
    for i in range(size):
        out[start * (size // count) + i] = memory[spans[0] + i]
    return True


@compiled
def _decode(
    memory: Any, fields: Any, users: Any, items: Any, values: Any, weights: Any, types: Any, times: Any,
    present: Any, spans: Any,
) -> Any:  # fmt: skip
    """Decodes bodies until one is unusual, and returns their number. The columns are bytes."""
    start: Any = 0
    for record in range(fields.shape[0]):
        row = fields[record]
        at = np.int64(row[REJECTS_AT] + row[REJECTS])
        count = np.int64(row[COUNT])
        if not _find_columns(memory, at, at + np.int64(row[BODY]), spans):
            return record
        for column in range(6):
            size = spans[column, 1]
            if size != count * _SIZES[column] and (column < 2 or size):
                return record
        if count:
            _copy(memory, spans[0], users, start, count)
            _copy(memory, spans[1], items, start, count)
            present[0] |= _copy(memory, spans[2], values, start, count)
            present[1] |= _copy(memory, spans[3], weights, start, count)
            present[2] |= _copy(memory, spans[4], types, start, count)
            present[3] |= _copy(memory, spans[5], times, start, count)
        start += count
    return fields.shape[0]


def decode_bodies(records: Columns) -> tuple[Events, np.ndarray, np.ndarray]:
    """The events of the first records of `records`, up to the first one with an unusual body.

    Returns the events, their user ids and their item ids (uint64[n] each). `len(events.ends)` is
    the number of decoded records.
    """
    # A short body has fewer events than bytes. The kernel stops at a record with more.
    counts = np.minimum(records.fields[:, COUNT], np.uint64(SHORT_BYTES)).astype(np.int64)
    ends = np.cumsum(counts)
    n = int(ends[-1])
    users, items = np.empty(n, np.uint64), np.empty(n, np.uint64)
    values, weights = np.ones(n, np.float32), np.ones(n, np.float32)
    types, times = np.zeros(n, np.uint32), np.zeros(n, np.int64)
    present, spans = np.zeros(4, np.bool_), np.empty((6, 2), np.int64)
    outputs: list[Any] = [column.view(np.uint8) for column in (users, items, values, weights, types, times)]
    count = _decode(records.memory, records.fields, *outputs, present, spans)
    ends = ends[:count]
    total = int(ends[-1]) if count else 0
    optional: list[Any] = [values, weights, types, times]
    for number, there in enumerate(present.tolist()):
        optional[number] = optional[number][:total] if there else None
    return Events(ends, *optional), users[:total], items[:total]


def compile_kernels() -> None:
    """Compiles the kernel, or loads it from Numba's cache."""
    memory = np.frombuffer(b"\0", np.uint8)
    fields = np.zeros((1, 10), np.uint64)
    hashes = np.zeros((1, 32), np.uint8)
    decode_bodies(Columns(None, memory, 0, 0, b"", fields, hashes, hashes, []))  # type: ignore[arg-type]
