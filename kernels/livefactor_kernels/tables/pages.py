"""Pages: where the events of the rings of one side lie in memory.

A ring has H places (`history/__init__.py`). A page holds consecutive places of one row. A row takes
a page when an event comes to the first place of the page, so memory follows what is remembered, and
H is only a limit. A page has 8 places below place 64 of the row, 16 below 256, 32 below 1024, and
64 from there on (fewer at the end of the ring). So a long ring has few pages, and a short one
wastes little. Pages are handed out in the order of the log and are never given back.

Values and weights are 1 for most data. They are stored as their bits XOR the bits of 1, and zeros
are not written. So they take no memory where they are 1.

Sections of rows have all H places, with zeros where no event was. So neither a snapshot nor a root
hash shows pages.

A reader at a pin follows the pages while events are appended. What is appended stands behind the
events that the pin sees, or in the place of old events. The pin then has copies of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import address_of, bits_of, inlined, load_u32, real_of, store_u32
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.spec.model import USERS, ModelSpec
from livefactor_kernels.tables import NO_ROW

RING = ("seen_rows", "seen_values", "seen_weights", "seen_visits")
"""The sections that pages hold."""
RING_TYPES = (np.uint32, np.float32, np.float32, np.uint32)
GRANULE = 8
"""Events of the smallest page. Pages are numbered by granules."""
POOL_EVENTS_MAX = 1 << 33
"""Maximum number of events in the pages of one side. They would take 64 GiB at least."""

_AFTER, _BEFORE = _FIRST, _LAST = 0, 1
_VALUES, _WEIGHTS = 0, 1
_USED = 2
_UNIT_BYTES = 4096
_UNIT_SHIFT = np.uint64(10)
_0, _1, _4, _8, _16, _32, _64 = (np.uint64(number) for number in (0, 1, 4, 8, 16, 32, 64))
_256, _1024 = np.uint64(256), np.uint64(1024)
_ONE = np.uint64(0x3F800000)


class Pages(NamedTuple):
    """The pages of one side.

    Attributes:
        rows: rows of the other side, uint32[events].
        visits: uint32[events]; empty for items.
        floats: values and weights, uint32[2, events], as bits XOR the bits of 1.
        touched: 1 for each 4 KiB of `floats` that was written, uint8[2, events / 1024].
        links: the page after and the page before a page, uint32[granules, 2], where the page
            begins. A full ring is a circle.
        ends: the page with place 0 of a row, and the page with its newest event, uint32[cap, 2].
        seen: number of events of a row so far, uint32[cap].
        marks: number of touched units of values and of weights, and of granules in use, uint64[3].
        length: H, 0 without rings.
    """

    rows: np.ndarray
    visits: np.ndarray
    floats: np.ndarray
    touched: np.ndarray
    links: np.ndarray
    ends: np.ndarray
    seen: np.ndarray
    marks: np.ndarray
    length: np.uint64

    @staticmethod
    def of(spec: ModelSpec, side: int, seen: np.ndarray) -> Pages:
        """Empty pages for the rows of one side. `seen` is the side's section seen_count.

        They take memory when events are written.
        """
        length = spec.history.users if side == USERS else spec.history.items
        rows = len(seen) if length else 0
        units = -(-min(rows * length, POOL_EVENTS_MAX) // 1024)
        events = units * 1024
        return Pages(
            reserve((events,), np.uint32),
            reserve((events if side == USERS else 0,), np.uint32),
            reserve((2, events), np.uint32, huge=False),
            reserve((2, units), np.uint8, huge=False),
            reserve((events // GRANULE, 2), np.uint32),
            reserve((rows, 2), np.uint32),
            seen,
            np.zeros(3, np.uint64),
            np.uint64(length),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use."""
        values, weights, granules = (int(mark) for mark in self.marks)
        event_bytes = 8 if self.visits.size else 4
        return granules * (GRANULE * event_bytes + 8) + (values + weights) * _UNIT_BYTES

    def check_room(self, events: int) -> None:
        """Checks that events fit, whatever rows they come to.

        Raises:
            MemoryError: they may exceed `POOL_EVENTS_MAX`.
        """
        if int(self.marks[_USED]) * GRANULE + 64 * events > self.rows.size >= POOL_EVENTS_MAX:
            raise MemoryError(f"histories of one side: at most {POOL_EVENTS_MAX} events")

    def dense(
        self, rows: np.ndarray, seen: np.ndarray, names: Sequence[str], width: int
    ) -> dict[str, np.ndarray]:
        """Sections `names` of rows uint32[n]: the first `width` places, [n, width] each.

        `seen` uint32[n] has the numbers of events to read. Places without an event are 0, and so
        are all places of rows that are `NO_ROW`.
        """
        columns = self._read(rows, seen, names, np.arange(len(rows), dtype=np.uint64) * np.uint64(width),
                             len(rows) * width)  # fmt: skip
        return {name: column.reshape(len(rows), width) for name, column in columns.items()}

    def _read(
        self, rows: np.ndarray, seen: np.ndarray, names: Sequence[str], starts: np.ndarray, size: int
    ) -> dict[str, np.ndarray]:
        columns = [
            np.zeros(size if name in names else 0, dtype)
            for name, dtype in zip(RING, RING_TYPES, strict=True)
        ]
        _read_kernel(self, rows, seen, starts, *columns)
        return {name: column for name, column in zip(RING, columns, strict=True) if name in names}

    def fill(self, count: int, sections: dict[str, np.ndarray]) -> None:
        """Writes the sections of the first `count` rows to empty pages. `seen` is set before."""
        if self.length:
            starts = np.arange(count, dtype=np.uint64) * self.length
            columns = (
                np.ascontiguousarray(sections.get(name, ()), dtype).reshape(-1)
                for name, dtype in zip(RING, RING_TYPES, strict=True)
            )
            _fill_kernel(self, starts, *columns)


class Room(NamedTuple):
    """Room for the events of one row, end to end. Each array has H elements.

    Attributes:
        rows: uint32[H].
        values, weights: float32[H].
        ones: float32[H], all 1.
    """

    rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    ones: np.ndarray

    @staticmethod
    def of(length: int) -> Room:
        """For rings of `length` places."""
        rows, (values, weights) = np.empty(length, np.uint32), np.empty((2, length), np.float32)
        return Room(rows, values, weights, np.ones(length, np.float32))


@inlined
def _size(place: Any) -> Any:
    """Number of places of the page that has a place. The first one is a multiple of it."""
    if place < _64:
        return _8
    if place < _256:
        return _16
    return _32 if place < _1024 else _64


@inlined
def _next_index(pages: Any, row: Any) -> Any:
    """The index of the row's next event in the arrays of events. It takes a page if it must."""
    seen = np.uint64(pages.seen[row])
    place = seen % pages.length
    size = _size(place)
    at = place & (size - _1)
    if at == _0:
        last = np.uint64(pages.ends[row, _LAST])
        if seen >= pages.length:
            page = np.uint64(pages.links[last, _AFTER])
        else:
            page = pages.marks[_USED]
            size = min(size, pages.length - place)
            pages.marks[_USED] = page + size // _8
            if place == _0:
                pages.ends[row, _FIRST] = page
            else:
                pages.links[last, _AFTER] = page
                pages.links[page, _BEFORE] = last
            if place + size == pages.length:
                first = np.uint64(pages.ends[row, _FIRST])
                pages.links[page, _AFTER] = first
                pages.links[first, _BEFORE] = page
        pages.ends[row, _LAST] = page
    return np.uint64(pages.ends[row, _LAST]) * _8 + at


@inlined
def _write_float(pages: Any, column: Any, index: Any, value: Any) -> None:
    bits = bits_of(value) ^ _ONE
    if (bits != _0 or pages.marks[column] != _0) and np.uint64(pages.floats[column, index]) != bits:
        pages.floats[column, index] = bits
        unit = index >> _UNIT_SHIFT
        if pages.touched[column, unit] == 0:
            pages.touched[column, unit] = 1
            pages.marks[column] += _1


@inlined
def _read_float(pages: Any, column: Any, index: Any) -> Any:
    return real_of(np.uint64(pages.floats[column, index]) ^ _ONE)


@compiled
def append_event(pages: Any, row: Any, other: Any, value: Any, weight: Any, visit: Any) -> None:
    """Appends an event to the ring of a row."""
    if pages.length:
        index = _next_index(pages, row)
        pages.rows[index] = other
        _write_float(pages, _VALUES, index, value)
        _write_float(pages, _WEIGHTS, index, weight)
        if pages.visits.size:
            pages.visits[index] = visit
    pages.seen[row] += np.uint32(1)


@inlined
def newest(pages: Any, row: Any) -> Any:
    """The index and the place of the row's newest event."""
    place = (np.uint64(pages.seen[row]) - _1) % pages.length
    return np.uint64(pages.ends[row, _LAST]) * _8 + (place & (_size(place) - _1)), place


@inlined
def one_back(pages: Any, index: Any, place: Any) -> Any:
    """The index and the place of the event before an event."""
    if place & (_size(place) - _1):
        return index - _1, place - _1
    page = np.uint64(pages.links[index // _8, _BEFORE])
    if place == _0:
        place = pages.length
    place -= _1
    return page * _8 + (place & (_size(place) - _1)), place


@inlined
def remembered_events(pages: Any, row: Any, room: Any) -> Any:
    """The remembered events of a row, end to end in the order of the places.

    Returns the addresses of rows uint32[n], values float32[n] and weights float32[n], and n. The
    memory is that of the pages, or of `room`.
    """
    count = min(np.uint64(pages.seen[row]), pages.length)
    has_values, has_weights = pages.marks[_VALUES] != _0, pages.marks[_WEIGHTS] != _0
    page = np.uint64(pages.ends[row, _FIRST])
    first = address_of(pages.rows) + page * _32
    if count > _8:
        first = address_of(room.rows)
        _copy_rows(pages, page, count, first)
    values = weights = address_of(room.ones)
    if has_values:
        values = address_of(room.values)
        _copy_floats(pages, page, count, _VALUES, room.values)
    if has_weights:
        weights = address_of(room.weights)
        _copy_floats(pages, page, count, _WEIGHTS, room.weights)
    return first, values, weights, count


@inlined
def _copy_rows(pages: Any, page: Any, count: Any, target: Any) -> None:
    source, place = address_of(pages.rows), _0
    while place < count:
        size = min(_size(place), pages.length - place)
        start, stop = page * _8, min(place + size, count)
        page = np.uint64(pages.links[page, _AFTER])
        # Whole granules, since both memories have them.
        for granule in range((stop - place + _8 - _1) // _8):
            at, to = (start + granule * _8) * _4, (place + granule * _8) * _4
            for word in range(_0, _32, _4):
                store_u32(target, load_u32(source, at + word), to + word)
        place = stop


@inlined
def _copy_floats(pages: Any, page: Any, count: Any, column: Any, target: Any) -> None:
    place = _0
    while place < count:
        start, stop = page * _8 - place, min(place + _size(place), count)
        page = np.uint64(pages.links[page, _AFTER])
        for at in range(place, stop):
            target[at] = _read_float(pages, column, start + at)
        place = stop


@compiled
def _read_kernel(
    pages: Any, rows: Any, seen: Any, starts: Any, others: Any, values: Any, weights: Any, visits: Any
) -> None:
    for i in range(np.uint64(rows.size)):
        if rows[i] == NO_ROW:
            continue
        count = min(np.uint64(seen[i]), pages.length)
        page, place = np.uint64(pages.ends[np.uint64(rows[i]), _FIRST]), _0
        while place < count:
            # The differences wrap around 0, and the sums wrap back.
            index, to = page * _8 - place, np.uint64(starts[i])
            stop = min(place + _size(place), count)
            for at in range(place, stop):
                if others.size:
                    others[to + at] = pages.rows[index + at]
                if values.size:
                    values[to + at] = _read_float(pages, _VALUES, index + at)
                if weights.size:
                    weights[to + at] = _read_float(pages, _WEIGHTS, index + at)
                if visits.size:
                    visits[to + at] = pages.visits[index + at]
            place, page = stop, np.uint64(pages.links[page, _AFTER])


@compiled
def _fill_kernel(pages: Any, starts: Any, others: Any, values: Any, weights: Any, visits: Any) -> None:
    for row in range(np.uint64(starts.size)):
        total = pages.seen[row]
        pages.seen[row] = np.uint32(0)
        start = np.uint64(starts[row])
        for at in range(start, start + min(np.uint64(total), pages.length)):
            visit = visits[at] if visits.size else np.uint32(0)
            append_event(pages, row, others[at], values[at], weights[at], visit)
        pages.seen[row] = total
        if np.uint64(total) > pages.length:
            # The newest event stands somewhere in the circle.
            last, place = np.uint64(pages.ends[row, _FIRST]), (np.uint64(total) - _1) % pages.length
            at = _size(_0)
            while at <= place:
                last = np.uint64(pages.links[last, _AFTER])
                at += min(_size(at), pages.length - at)
            pages.ends[row, _LAST] = last


@compiled
def recent_kernel(pages: Any, rows: Any, most: Any, out: Any) -> Any:
    """Writes the rows of the last `most` events of each of `rows`. Returns their number."""
    found = _0
    for i in range(np.uint64(rows.size)):
        row = np.uint64(rows[i])
        index, place = newest(pages, row)
        for _ in range(min(min(np.uint64(pages.seen[row]), pages.length), most)):
            out[found] = pages.rows[index]
            found += _1
            index, place = one_back(pages, index, place)
    return found
