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

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import address_of, bits_of, real_of, store_u32
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.simd.memory import reserve, reserve_shared
from livefactor_kernels.simd.steps import word
from livefactor_kernels.spec.model import USERS, ModelSpec
from livefactor_kernels.tables import NO_ROW, RINGS, ring_length
from livefactor_kernels.tables.recent import Recent

_TYPES = (np.uint32, np.float32, np.float32, np.uint32)
GRANULE = 8
"""Events of the smallest page. Pages are numbered by granules."""
POOL_EVENTS_MAX = 1 << 33
"""Maximum number of events in the pages of one side. They would take 64 GiB at least."""

_0, _1, _2, _4, _8, _16, _32, _64 = (np.uint64(number) for number in (0, 1, 2, 4, 8, 16, 32, 64))
_256, _1024 = np.uint64(256), np.uint64(1024)
_USED = _2
_UNIT_BYTES, _UNIT_SHIFT = 4096, np.uint64(10)
_ONE = np.uint64(0x3F800000)


class Places(NamedTuple):
    """Where the events of n rows stand in a section of events.

    Attributes:
        counts: number of events of each row, uint32[n].
        starts: places of the rows' first events, uint64[n].
        shape: shape of the section.
    """

    counts: np.ndarray
    starts: np.ndarray
    shape: tuple[int, ...]

    @staticmethod
    def dense(counts: np.ndarray, width: int) -> Places:
        """Each row has `width` places, of which the last ones may be empty."""
        starts = np.arange(len(counts), dtype=np.uint64) * np.uint64(width)
        return Places(counts, starts, (len(counts), width))

    @staticmethod
    def end_to_end(counts: np.ndarray) -> Places:
        """Each row has as many places as events."""
        ends = np.cumsum(counts, dtype=np.uint64)
        return Places(counts, ends - counts, (int(ends[-1]) if len(ends) else 0,))

    @property
    def size(self) -> int:
        """Number of all places."""
        return math.prod(self.shape)

    def put(self, column: np.ndarray, rows: np.ndarray, events: np.ndarray) -> None:
        """Writes `events` [m, H] of the rows number `rows` int64[m] to a column, [size]."""
        at = np.arange(events.shape[1], dtype=np.uint64)
        exist = at < self.counts[rows, None]
        column[(self.starts[rows, None] + at)[exist]] = events[exist]


class PageReader:
    """Reads the pages of one side, also of another process (`tables/shared.py`).

    Attributes:
        fields: `Memory`, uint64[11]; the argument of kernels.
    """

    def __init__(self, fields: np.ndarray) -> None:
        self.fields = fields

    def read(self, rows: np.ndarray, names: Iterable[str], places: Places) -> dict[str, np.ndarray]:
        """The events of rows uint32[n], for those of `names` that are in `RINGS`: one-dimensional.

        Rows that are `NO_ROW` have no events.
        """
        wanted = set(names)
        columns = [
            np.zeros(places.size if name in wanted else 0, dtype)
            for name, dtype in zip(RINGS, _TYPES, strict=True)
        ]
        _read_kernel(self.fields, rows, places.counts, places.starts, *columns)
        return {name: column for name, column in zip(RINGS, columns, strict=True) if name in wanted}

    def newest(self, rows: np.ndarray, seen: np.ndarray, most: int) -> Recent:
        """The last `most` events of rows uint32[n] that had had `seen` uint32[n] events."""
        found = Recent.of(len(rows), most)
        found.seen[:] = seen
        _newest_kernel(self.fields, rows, seen, np.uint64(most), *found[:-1])
        return found


class Pages(PageReader):
    """The pages of one side. Other processes can read those from which scores are computed.

    Attributes:
        rows: rows of the other side, uint32[events].
        visits: uint32[events]; empty for items.
        floats: values and weights, uint32[2, events], as bits XOR the bits of 1.
        touched: 1 for each 4 KiB of `floats` that was written, uint32[2, events / 1024].
        links: the page after and the page before a page, uint32[granules, 2], where the page
            begins. A full ring is a circle.
        ends: the page with place 0 of a row, and the page with its newest event, uint32[cap, 2].
        seen: number of events of a row so far, uint32[cap].
        marks: number of touched units of values and of weights, and of granules in use, uint32[3].
        length: H, 0 without rings.
    """

    def __init__(self, spec: ModelSpec, side: int, seen: np.ndarray) -> None:
        """Empty pages for the rows of one side. `seen` is the side's section seen_count.

        They take memory when events are written.
        """
        self.seen, self.length = seen, ring_length(spec, side)
        rows = len(seen) if self.length else 0
        units = -(-min(rows * self.length, POOL_EVENTS_MAX) // 1024)
        events = units * 1024
        take = reserve_shared if side == USERS or spec.mix.neighbors else reserve
        self.rows = take((events,), np.uint32)
        self.visits = take((events if side == USERS else 0,), np.uint32)
        self.floats = take((2, events), np.uint32, huge=False)
        self.touched = reserve((2, units), np.uint32, huge=False)
        self.links = take((events // GRANULE, 2), np.uint32)
        self.ends = take((rows, 2), np.uint32)
        self.marks = np.zeros(3, np.uint32)
        fields = [
            address_of(self.rows),
            address_of(self.visits) if self.visits.size else 0,
            *(address_of(column) for column in self.floats),
            *(address_of(column) for column in self.touched),
            *(address_of(array) for array in (self.links, self.ends, self.seen, self.marks)),
            self.length,
        ]
        super().__init__(take((len(fields),), np.uint64))
        self.fields[:] = fields

    @property
    def read_arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that `read` needs, beside `seen`."""
        return self.fields, self.rows, self.visits, self.floats, self.links, self.ends

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
        if int(self.marks[2]) * GRANULE + 64 * events > self.rows.size >= POOL_EVENTS_MAX:
            raise MemoryError(f"histories of one side: at most {POOL_EVENTS_MAX} events")

    def fill(self, sections: dict[str, np.ndarray], places: Places) -> None:
        """Writes the sections of the first rows to empty pages. `seen` is set before."""
        if self.length:
            columns = (
                np.ascontiguousarray(sections.get(name, ()), dtype).reshape(-1)
                for name, dtype in zip(RINGS, _TYPES, strict=True)
            )
            _fill_kernel(self.fields, places.starts, *columns)

    def recent(self, rows: np.ndarray, most: int) -> np.ndarray:
        """The rows of the last `most` events of each of `rows`, uint32[any]."""
        out = np.empty(len(rows) * most, np.uint32)
        return out[: int(_recent_kernel(self.fields, rows, np.uint64(most), out))]


class Memory(NamedTuple):
    """The addresses of the arrays of `Pages`, and H. Kernels would count references to arrays."""

    rows: Any
    visits: Any
    values: Any
    weights: Any
    touched_values: Any
    touched_weights: Any
    links: Any
    ends: Any
    seen: Any
    marks: Any
    length: Any


@inlined
def memory_of(fields: Any) -> Any:
    """The memory of `Pages.fields`."""
    return Memory(
        fields[0], fields[1], fields[2], fields[3], fields[4], fields[5], fields[6], fields[7], fields[8],
        fields[9], fields[10],
    )  # fmt: skip


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
def _put(base: Any, index: Any, value: Any) -> None:
    """Writes word number `index` of the array at address `base`."""
    store_u32(base, np.uint64(value), index * _4)


@inlined
def _size(place: Any) -> Any:
    """Number of places of the page that has a place. The first one is a multiple of it."""
    if place < _64:
        return _8
    if place < _256:
        return _16
    return _32 if place < _1024 else _64


@inlined
def _first_page(memory: Any, row: Any) -> Any:
    return word(memory.ends, row * _2)


@inlined
def _page_after(memory: Any, page: Any) -> Any:
    return word(memory.links, page * _2)


@inlined
def _next_index(memory: Any, row: Any) -> Any:
    """The index of the row's next event in the arrays of events. It takes a page if it must."""
    seen, last = word(memory.seen, row), word(memory.ends, row * _2 + _1)
    place = seen % memory.length
    size = _size(place)
    at = place & (size - _1)
    if at == _0:
        if seen >= memory.length:
            page = _page_after(memory, last)
        else:
            page = word(memory.marks, _USED)
            size = min(size, memory.length - place)
            _put(memory.marks, _USED, page + (size >> np.uint64(3)))
            if place == _0:
                _put(memory.ends, row * _2, page)
            else:
                _link(memory, last, page)
            if place + size == memory.length:
                _link(memory, page, _first_page(memory, row))
        _put(memory.ends, row * _2 + _1, page)
        last = page
    return last * _8 + at


@inlined
def _link(memory: Any, page: Any, after: Any) -> None:
    _put(memory.links, page * _2, after)
    _put(memory.links, after * _2 + _1, page)


@inlined
def _write_float(memory: Any, base: Any, touched: Any, mark: Any, index: Any, value: Any) -> None:
    bits, count = bits_of(value) ^ _ONE, word(memory.marks, mark)
    if (bits | count) != _0 and word(base, index) != bits:
        _put(base, index, bits)
        if word(touched, index >> _UNIT_SHIFT) == _0:
            _put(touched, index >> _UNIT_SHIFT, _1)
            _put(memory.marks, mark, count + _1)


@inlined
def _read_float(base: Any, index: Any) -> Any:
    return real_of(word(base, index) ^ _ONE)


@inlined
def append_event(memory: Any, row: Any, other: Any, value: Any, weight: Any, visit: Any) -> None:
    """Appends an event to the ring of a row."""
    if memory.length:
        index = _next_index(memory, row)
        _put(memory.rows, index, other)
        _write_float(memory, memory.values, memory.touched_values, _0, index, value)
        _write_float(memory, memory.weights, memory.touched_weights, _1, index, weight)
        if memory.visits:
            _put(memory.visits, index, visit)
    _put(memory.seen, row, word(memory.seen, row) + _1)


@inlined
def newest(memory: Any, row: Any) -> Any:
    """The index and the place of the row's newest event."""
    place = (word(memory.seen, row) - _1) % memory.length
    return word(memory.ends, row * _2 + _1) * _8 + (place & (_size(place) - _1)), place


@inlined
def event_at(memory: Any, index: Any) -> Any:
    """The row of the other side, the value, the weight and the visit of a user's event."""
    value, weight = _read_float(memory.values, index), _read_float(memory.weights, index)
    return word(memory.rows, index), value, weight, word(memory.visits, index)


@inlined
def one_back(memory: Any, index: Any, place: Any) -> Any:
    """The index and the place of the event before an event."""
    if place & (_size(place) - _1):
        return index - _1, place - _1
    page = word(memory.links, (index >> np.uint64(3)) * _2 + _1)
    if place == _0:
        place = memory.length
    place -= _1
    return page * _8 + (place & (_size(place) - _1)), place


@inlined
def copy_newest(memory: Any, row: Any, line: Any, most: Any, found: Any) -> None:
    """Copies the last `most` events of a row to line number `line` of a `Recent`."""
    seen = word(memory.seen, row)
    count = min(min(seen, memory.length), most)
    found.counts[line], found.seen[line] = np.uint32(count), np.uint32(seen)
    if count > _0:
        index, place = newest(memory, row)
        for back in range(count):
            found.rows[line, back] = np.uint32(word(memory.rows, index))
            found.values[line, back] = _read_float(memory.values, index)
            found.weights[line, back] = _read_float(memory.weights, index)
            index, place = one_back(memory, index, place)


@inlined
def remembered_events(memory: Any, row: Any, room: Any) -> Any:
    """The remembered events of a row, end to end in the order of the places.

    Returns the addresses of rows uint32[n], values float32[n] and weights float32[n], and n. The
    memory is that of the pages, or of `room`.
    """
    count = min(word(memory.seen, row), memory.length)
    page = _first_page(memory, row)
    rows = memory.rows + page * _32
    if count > _8:
        rows = address_of(room.rows)
        _copy_rows(memory, page, count, rows)
    values = weights = address_of(room.ones)
    if word(memory.marks, _0):
        values = address_of(room.values)
        _copy_floats(memory, page, count, memory.values, values)
    if word(memory.marks, _1):
        weights = address_of(room.weights)
        _copy_floats(memory, page, count, memory.weights, weights)
    return rows, values, weights, count


@inlined
def _copy_rows(memory: Any, page: Any, count: Any, target: Any) -> None:
    place = _0
    while place < count:
        start, stop = page * _8 - place, min(place + _size(place), count)
        page = _page_after(memory, page)
        # Whole granules, since both memories have them.
        for first in range(place, stop, _8):
            for at in range(first, first + _8):
                _put(target, at, word(memory.rows, start + at))
        place = stop


@inlined
def _copy_floats(memory: Any, page: Any, count: Any, source: Any, target: Any) -> None:
    place = _0
    while place < count:
        start, stop = page * _8 - place, min(place + _size(place), count)
        page = _page_after(memory, page)
        for at in range(place, stop):
            _put(target, at, word(source, start + at) ^ _ONE)
        place = stop


@compiled
def _read_kernel(
    fields: Any, rows: Any, counts: Any, starts: Any, others: Any, values: Any, weights: Any, visits: Any
) -> None:
    memory = memory_of(fields)
    for i in range(np.uint64(rows.size)):
        if rows[i] == NO_ROW:
            continue
        count = np.uint64(counts[i])
        page, place, to = _first_page(memory, np.uint64(rows[i])), _0, np.uint64(starts[i])
        while place < count:
            # The difference wraps around 0, and the sums wrap back.
            index, stop = page * _8 - place, min(place + _size(place), count)
            for at in range(place, stop):
                if others.size:
                    others[to + at] = word(memory.rows, index + at)
                if values.size:
                    values[to + at] = _read_float(memory.values, index + at)
                if weights.size:
                    weights[to + at] = _read_float(memory.weights, index + at)
                if visits.size:
                    visits[to + at] = word(memory.visits, index + at)
            place, page = stop, _page_after(memory, page)


@compiled
def _fill_kernel(fields: Any, starts: Any, others: Any, values: Any, weights: Any, visits: Any) -> None:
    memory = memory_of(fields)
    for row in range(np.uint64(starts.size)):
        total, start = word(memory.seen, row), np.uint64(starts[row])
        _put(memory.seen, row, _0)
        for at in range(start, start + min(total, memory.length)):
            visit = np.uint64(visits[at]) if visits.size else _0
            append_event(memory, row, others[at], values[at], weights[at], visit)
        _put(memory.seen, row, total)
        if total > memory.length:
            # The newest event stands somewhere in the circle.
            last, place = _first_page(memory, row), (total - _1) % memory.length
            after: Any = _8
            while after <= place:
                last = _page_after(memory, last)
                after += _size(after)
            _put(memory.ends, row * _2 + _1, last)


@compiled
def _recent_kernel(fields: Any, rows: Any, most: Any, out: Any) -> Any:
    memory, found = memory_of(fields), _0
    for i in range(np.uint64(rows.size)):
        row = np.uint64(rows[i])
        index, place = newest(memory, row)
        for _ in range(min(min(word(memory.seen, row), memory.length), most)):
            out[found] = word(memory.rows, index)
            found += _1
            index, place = one_back(memory, index, place)
    return found


@compiled
def _newest_kernel(
    fields: Any, rows: Any, seen: Any, most: Any, others: Any, values: Any, weights: Any, counts: Any
) -> None:
    # From the first page on, since the newest page may have changed since then.
    memory = memory_of(fields)
    for i in range(np.uint64(rows.size)):
        total = np.uint64(seen[i])
        held = min(total, memory.length)
        wanted = min(held, most)
        counts[i] = np.uint32(wanted)
        if wanted == _0:
            continue
        last, page, place = (total - _1) % memory.length, _first_page(memory, np.uint64(rows[i])), _0
        first = last + _1 - wanted if last + _1 >= wanted else _0
        while place < held:
            index, stop = page * _8 - place, min(place + _size(place), held)
            for at in range(max(place, first), stop):
                back = last - at if at <= last else last + memory.length - at
                if back < wanted:
                    others[i, back] = word(memory.rows, index + at)
                    values[i, back] = _read_float(memory.values, index + at)
                    weights[i, back] = _read_float(memory.weights, index + at)
            place, page = stop, _page_after(memory, page)
