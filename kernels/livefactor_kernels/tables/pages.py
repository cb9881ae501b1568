"""Pages: where the places of the rings of one side lie in memory.

A ring has H places (`history/__init__.py`). A page holds PAGE consecutive places of one row. A row
takes a page when an event comes to the first place of the page, so memory follows the events that
are remembered, and H is only a limit. Pages are handed out in the order of the log and are never
given back.

    after, before   the neighbours of a page in order of places; a full ring is a circle
    first, last     of a row: the page with place 0, and the page with its newest event

Sections of rows have all H places, with zeros where no event was. So neither a snapshot nor a root
hash shows pages.

A reader at a pin follows the pages while events are appended. What is appended stands behind the
events that the pin sees, or in the place of old events, of which the pin then has copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import VECTOR_BYTES, address_of, load16, store16
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.spec.model import USERS, ModelSpec

PAGE_EVENTS = 16
RING = ("seen_rows", "seen_values", "seen_weights", "seen_visits")
"""The sections that pages hold, in the order of the first fields of `Pages`."""

_PAGE = np.uint64(PAGE_EVENTS)
_0, _1, _4 = np.uint64(0), np.uint64(1), np.uint64(4)
_NO_ROW = np.uint32(0xFFFFFFFF)


class Pages(NamedTuple):
    """The pages of one side.

    Attributes:
        rows: rows of the other side, uint32[pages, PAGE_EVENTS].
        values, weights: float32[pages, PAGE_EVENTS].
        visits: uint32[pages, PAGE_EVENTS]; no pages for items.
        after, before: neighbours, uint32[pages].
        first, last: pages of a row, uint32[cap].
        seen: number of events of a row so far, uint32[cap].
        used: number of pages in use, uint64[1].
        length: H, 0 without rings.
    """

    rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    visits: np.ndarray
    after: np.ndarray
    before: np.ndarray
    first: np.ndarray
    last: np.ndarray
    seen: np.ndarray
    used: np.ndarray
    length: np.uint64

    @staticmethod
    def of(spec: ModelSpec, side: int, seen: np.ndarray) -> Pages:
        """Empty pages for the rows of one side. `seen` is the side's section seen_count."""
        length = spec.history.users if side == USERS else spec.history.items
        return Pages.reserved(seen, length, side == USERS)

    @staticmethod
    def reserved(seen: np.ndarray, length: int, with_visits: bool) -> Pages:
        """Empty pages for rings of `length` places. They take memory when events are written."""
        rows = len(seen) if length else 0
        pages = rows * length // PAGE_EVENTS
        shape = pages, PAGE_EVENTS
        return Pages(
            reserve(shape, np.uint32),
            reserve(shape, np.float32),
            reserve(shape, np.float32),
            reserve(shape if with_visits else (0, PAGE_EVENTS), np.uint32),
            reserve((pages,), np.uint32),
            reserve((pages,), np.uint32),
            reserve((rows,), np.uint32),
            reserve((rows,), np.uint32),
            seen,
            np.zeros(1, np.uint64),
            np.uint64(length),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use."""
        events = 16 if len(self.visits) else 12
        return int(self.used[0]) * (PAGE_EVENTS * events + 8)

    def dense(self, rows: np.ndarray, seen: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Sections of rows uint32[n] with all places, [n, H] each, zeros where no event was.

        `seen` uint32[n] has the numbers of events to read. Rows that are `NO_ROW` give zeros.
        """
        shape = len(rows), int(self.length)
        columns = {
            name: np.zeros(shape, np.float32 if name in RING[1:3] else np.uint32)
            if name in names
            else np.zeros((0, 0), np.float32 if name in RING[1:3] else np.uint32)
            for name in RING
        }
        _read_kernel(self, rows, seen, *columns.values())
        return {name: columns[name] for name in names}

    def fill(self, count: int, sections: dict[str, np.ndarray]) -> None:
        """Writes the sections of the first `count` rows to empty pages. `seen` is set before."""
        if self.length:
            columns = (sections.get(name, np.zeros((0, 0), np.uint32)) for name in RING)
            _fill_kernel(self, np.uint64(count), *(np.ascontiguousarray(column) for column in columns))


@compiled
def next_place(pages: Any, row: Any) -> Any:
    """The place of the row's next event in the flat arrays. It takes a page if it needs one."""
    seen = np.uint64(pages.seen[row])
    place = seen % pages.length
    at = place % _PAGE
    if at == _0:
        if seen < pages.length:
            page = pages.used[0]
            pages.used[0] = page + _1
            if place == _0:
                pages.first[row] = page
            else:
                pages.after[np.uint64(pages.last[row])] = page
                pages.before[page] = pages.last[row]
            if place + _PAGE == pages.length:
                pages.after[page] = pages.first[row]
                pages.before[np.uint64(pages.first[row])] = page
            pages.last[row] = page
        else:
            pages.last[row] = pages.after[np.uint64(pages.last[row])]
    return np.uint64(pages.last[row]), at


@compiled
def copy_events(pages: Any, row: Any, events: Any, rows: Any, values: Any, weights: Any) -> None:
    """Copies the first `events` places of a row to the columns rows, values and weights.

    It copies whole pages, so the columns have a multiple of PAGE_EVENTS elements.
    """
    sources = address_of(pages.rows), address_of(pages.values), address_of(pages.weights)
    targets = address_of(rows), address_of(values), address_of(weights)
    page, done = np.uint64(pages.first[row]), _0
    while done < events * _4:
        at = page * VECTOR_BYTES
        store16(targets[0], load16(sources[0], at), done)
        store16(targets[1], load16(sources[1], at), done)
        store16(targets[2], load16(sources[2], at), done)
        done += VECTOR_BYTES
        page = np.uint64(pages.after[page])


@compiled
def _read_kernel(
    pages: Any, rows: Any, seen: Any, others: Any, values: Any, weights: Any, visits: Any
) -> None:
    for i in range(np.uint64(rows.size)):
        if rows[i] == _NO_ROW:
            continue
        row, events = np.uint64(rows[i]), min(np.uint64(seen[i]), pages.length)
        page, place = np.uint64(pages.first[row]), _0
        while place < events:
            for at in range(min(_PAGE, events - place)):
                if others.size:
                    others[i, place + at] = pages.rows[page, at]
                if values.size:
                    values[i, place + at] = pages.values[page, at]
                if weights.size:
                    weights[i, place + at] = pages.weights[page, at]
                if visits.size:
                    visits[i, place + at] = pages.visits[page, at]
            place += _PAGE
            page = np.uint64(pages.after[page])


@compiled
def _fill_kernel(pages: Any, count: Any, others: Any, values: Any, weights: Any, visits: Any) -> None:
    for row in range(count):
        total = pages.seen[row]
        events = min(np.uint64(total), pages.length)
        for place in range(events):
            pages.seen[row] = np.uint32(place)
            page, at = next_place(pages, row)
            pages.rows[page, at] = others[row, place]
            pages.values[page, at] = values[row, place]
            pages.weights[page, at] = weights[row, place]
            if visits.size:
                pages.visits[page, at] = visits[row, place]
        pages.seen[row] = total
        if np.uint64(total) > pages.length:
            # The newest event stands somewhere in the circle.
            newest = (np.uint64(total) - _1) % pages.length
            page = np.uint64(pages.first[row])
            for _ in range(newest // _PAGE):
                page = np.uint64(pages.after[page])
            pages.last[row] = page


@compiled
def recent_kernel(pages: Any, rows: Any, most: Any, out: Any) -> Any:
    """Writes the rows of the last `most` events of each of `rows`. Returns their number."""
    found = _0
    for i in range(np.uint64(rows.size)):
        row = np.uint64(rows[i])
        seen = np.uint64(pages.seen[row])
        events = min(min(seen, pages.length), most)
        page, at = np.uint64(pages.last[row]), (seen - _1) % _PAGE
        for _ in range(events):
            out[found] = pages.rows[page, at]
            found += _1
            page, at = one_back(pages, page, at)
    return found


@compiled
def one_back(pages: Any, page: Any, at: Any) -> Any:
    """The place before a place."""
    if at == _0:
        return np.uint64(pages.before[page]), _PAGE - _1
    return page, at - _1
