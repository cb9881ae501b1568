"""Pins of the CPU backend, and the copies that updates make for them.

While there are pins, an update first copies every row that it will change, once, to an append-only
overlay. The row at a pin is its earliest copy after the pin, or the live row if there is none. A
reader scans live rows without a lock. Then it replaces the rows that have copies, under the lock of
the board. A row is copied before it is written, so every row that the scan read during a write is
replaced.

    stamp[row]   tag of the row's newest copy; an update copies a row if the stamp is below the
                 number of the newest pin
    overlay      a ring of (tag, row, factors, bias, other sections), with ascending tags;
                 entries older than the oldest pin are removed

The events of a row need no copy while its ring has empty places, because an update only appends:
a reader ignores what is behind the number of events at the pin. Before an update writes to the
place of an old event, it copies all events of the row to a second overlay.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.narrow import widened
from livefactor_kernels.pins import PinnedState
from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.simd.steps import ONE, ZERO
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, USERS, RowSection, history_sections, unpadded
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.pages import Places
from livefactor_kernels.tables.recent import RECENT, Recent, recent_of
from livefactor_kernels.tables.state import mean_of
from livefactor_kernels.update import Update

_NO_PLACES, _NO_ROWS = np.empty(0, np.int64), np.empty(0, np.uint32)
OVERLAY_ROWS_MAX = 1 << 18
"""Number of copies of one side at which `PinBoard.wait_for_room` stops the writer."""
OVERLAY_BYTES_MAX = 1 << 30
"""Bytes of copies of one side with the same effect, for long rows."""


@compiled
def _first_touches(rows: Any, below: Any, tag: Any, stamps: Any, out: Any, found: Any) -> Any:
    """Appends to `out` the rows below `below` with a stamp older than `tag`, and stamps them.

    `found` is the number of entries before. Returns the number afterwards.
    """
    for i in range(np.uint64(rows.size)):
        row = np.uint64(rows[i])
        if row < below and stamps[row] < tag:
            stamps[row] = tag
            out[found] = rows[i]
            found += ONE
    return found


@compiled
def _rewritten(
    rows: Any, below: Any, tag: Any, stamps: Any, seen: Any, length: Any, times: Any, out: Any
) -> Any:
    """Writes to `out` the rows that lose an event by new events of `rows`, and stamps them.

    A row without a copy since `tag` counts. `times` has zeros before and afterwards. Returns the
    number of rows.
    """
    found = ZERO
    for i in range(np.uint64(rows.size)):
        times[np.uint64(rows[i])] += np.uint32(1)
    for i in range(np.uint64(rows.size)):
        row = np.uint64(rows[i])
        is_full = np.uint64(seen[row]) + np.uint64(times[row]) > length
        if times[row] and is_full and row < below and stamps[row] < tag:
            stamps[row] = tag
            out[found] = rows[i]
            found += ONE
        times[row] = np.uint32(0)
    return found


@compiled
def _copy_rows(rows: Any, live: Any, ring: Any, start: Any) -> None:
    """Copies live[rows] to the ring from position `start` on. Both arrays are two-dimensional."""
    size = np.uint64(ring.shape[0])
    for i in range(np.uint64(rows.size)):
        place, row = (start + i) % size, np.uint64(rows[i])
        for j in range(np.uint64(ring.shape[1])):
            ring[place, j] = live[row, j]


@compiled
def _places_in_range(
    tags: Any, rows: Any, head: Any, tail: Any, pin: Any, start: Any, stop: Any, out: Any
) -> Any:
    """Sets out[row - start] to 1 + the ring place of the row's earliest copy with tag >= pin.

    Returns the number of copies in the range.
    """
    size, seen = np.uint64(rows.size), ZERO
    for back in range(tail - head):
        place = (tail - ONE - back) % size
        row = np.uint64(rows[place])
        if tags[place] >= pin and row >= start and row < stop:
            out[row - start] = place + ONE
            seen += ONE
    return seen


def _bits(array: np.ndarray) -> np.ndarray:
    """The elements of rows as words, so that compiled code copies their bits."""
    words = array.view(np.dtype(f"uint{8 * array.itemsize}"))
    return words.reshape(len(words), -1)


class _Overlay:
    """Copies of one side's rows without their events, in a ring. The ring doubles if a record needs
    more copies than fit.
    """

    def __init__(self, table: Table, rows: int) -> None:
        """An empty overlay for `rows` copies."""
        self.table = table
        self.sections = self._sections()
        self.stamps = reserve((table.capacity,), np.uint64)
        self.head = self.tail = 0
        self._reserve(rows)

    def _sections(self) -> dict[str, RowSection]:
        return {name: RowSection(array.dtype, array.shape[1:]) for name, array in self.table.padded().items()}

    def _reserve(self, rows: int) -> None:
        self.size = rows
        self.tags, self.rows = reserve((rows,), np.uint64), reserve((rows,), np.uint32)
        self.arrays = {
            name: reserve((rows, *section.shape), section.dtype) for name, section in self.sections.items()
        }

    def __len__(self) -> int:
        return self.tail - self.head

    def copy(self, rows: np.ndarray, tag: int) -> None:
        """Appends the live values of `rows` (uint32[m], distinct) with the tag `tag`."""
        if len(self) + rows.size > self.size:
            self._grow(len(self) + rows.size)
        places = np.arange(self.tail, self.tail + rows.size) % self.size
        self.tags[places], self.rows[places] = tag, rows
        self._copy(rows, places)
        self.tail += rows.size

    def _copy(self, rows: np.ndarray, places: np.ndarray) -> None:
        live = self.table.padded()
        for name, ring in self.arrays.items():
            _copy_rows(rows, _bits(live[name]), _bits(ring), np.uint64(self.tail))

    def _grow(self, needed: int) -> None:
        old_places = np.arange(self.head, self.tail) % self.size
        old = self.tags, self.rows, self.arrays
        count, rows = len(self), self.size
        while rows < needed:
            rows *= 2
        self._reserve(rows)
        self.tags[:count], self.rows[:count] = old[0][old_places], old[1][old_places]
        for name, ring in self.arrays.items():
            ring[:count] = old[2][name][old_places]
        self.head, self.tail = 0, count

    def drop_before(self, oldest: int) -> None:
        """Removes the copies that no pin from number `oldest` on needs."""
        if not len(self) or self.tags[(self.tail - 1) % self.size] < oldest:
            # The ring is empty. A restart at 0 keeps small overlays in the same few pages.
            self.head = self.tail = 0
            return
        places = np.arange(self.head, self.tail) % self.size
        self.head += int(np.searchsorted(self.tags[places], oldest))

    def places(self, pin: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows - start, ring places) of the rows in [start, stop) with a copy for `pin`."""
        if self.head == self.tail:
            return _NO_PLACES, _NO_PLACES
        marks = np.zeros(stop - start, np.uint64)
        args = (np.uint64(number) for number in (self.head, self.tail, pin, start, stop))
        if not _places_in_range(self.tags, self.rows, *args, marks):
            return _NO_PLACES, _NO_PLACES
        found = np.flatnonzero(marks)
        return found, (marks[found] - ONE).astype(np.int64)


class _EventOverlay(_Overlay):
    """Copies of the events of rows. Each copy has all places of the ring."""

    def _sections(self) -> dict[str, RowSection]:
        sections = history_sections(self.table.spec, self.table.side)
        return {name: sections[name] for name in self.table.ring_names}

    def _copy(self, rows: np.ndarray, places: np.ndarray) -> None:
        for name, events in self.table.read(rows, self.table.ring_names).items():
            self.arrays[name][places, : events.shape[1]] = events


class Pin:
    """The state of a CPU model at one revision (`pins.Pin`).

    The board keeps copies for it until it is released.
    """

    def __init__(self, board: PinBoard, number: int, frozen: PinnedState) -> None:
        self._board, self._number = board, number
        self.revision, self.counts, self._state = frozen
        self.mean = mean_of(self._state["mean"])

    def state(self) -> dict[str, np.ndarray]:
        """See `pins.Pin.state`."""
        return self._state

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `pins.Pin.gather`."""
        return scoring.gather_pinned(self, side, self._board.table(side), rows)

    def top_k(
        self, user_factors: np.ndarray, user_bias: np.ndarray, k: int, common: np.ndarray | None = None,
        own: np.ndarray | None = None, own_offsets: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """See `pins.Pin.top_k`."""
        items = self._board.table(ITEMS)
        return scoring.top_k(self, items, user_factors, user_bias, k, common, own, own_offsets)

    def read_rows(self, side: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """See `pins.Pin.read_rows`."""
        if not 0 <= start <= stop <= self.counts[side]:
            raise IndexError(f"rows {start}..{stop}: expected within 0..{self.counts[side]}")
        table = self._board.table(side)
        rows = np.arange(start, stop, dtype=np.uint32)
        copies = {name: np.array(view, order="C") for name, view in table.plain(start, stop).items()}
        with self._board.lock:
            overlay = self._board.overlay(side)
            found, places = overlay.places(self._number, start, stop)
            for name, ring in overlay.arrays.items():
                copies[name][found] = unpadded(name, ring[places], table.spec.k)
        if not table.ring_names:
            return table.in_order(copies)
        return table.in_order(
            copies, self._events(side, rows, table.ring_names, table.places(copies["seen_count"]))
        )

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `pins.Pin.read`."""
        table = self._board.table(side)
        rings = [name for name in names if name in table.ring_names]
        plain = dict.fromkeys((*names, "seen_count") if rings else names)
        out = table.read_plain(rows, [*plain])
        with self._board.lock:
            overlay = self._board.overlay(side)
            hit, places = self._copied(side, overlay, rows)
            for name in out if hit.size else ():
                out[name][hit] = unpadded(name, overlay.arrays[name][places], table.spec.k)
        if not rings:
            return out
        events = self._events(side, rows, rings, table.places(out["seen_count"], short=True))
        return {name: events[name] if name in rings else out[name] for name in names}

    def recent(self, side: int, rows: np.ndarray, most: int) -> Recent:
        """See `pins.Pin.recent`."""
        pages = self._board.table(side).pages
        assert pages is not None
        seen = self.read(side, rows, ("seen_count",))["seen_count"]
        found = pages.newest(rows, seen, most)
        with self._board.lock:
            overlay = self._board.event_overlay(side)
            hit, copies = self._copied(side, overlay, rows)
            if hit.size:
                rings = {name: overlay.arrays[name][copies] for name in RECENT[:-1]}
                found.put(hit, recent_of(rings | {"seen_count": seen[hit]}, pages.length, most))
        return found

    def _copied(self, side: int, overlay: _Overlay, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(numbers, overlay places) of those of `rows` that have a copy.

        The caller holds the lock.
        """
        changed, places = overlay.places(self._number, 0, self.counts[side])
        if not changed.size:
            return changed, places
        at = np.minimum(np.searchsorted(changed, rows), changed.size - 1)
        hit = np.flatnonzero(changed[at] == rows)
        return hit, places[at[hit]]

    def _events(
        self, side: int, rows: np.ndarray, names: Sequence[str], places: Places
    ) -> dict[str, np.ndarray]:
        """The sections of events of rows that have `places` at the pin."""
        pages = self._board.table(side).pages
        assert pages is not None
        columns = pages.read(rows, names, places)
        with self._board.lock:
            overlay = self._board.event_overlay(side)
            hit, copies = self._copied(side, overlay, rows)
            for name, column in columns.items() if hit.size else ():
                places.put(column, hit, overlay.arrays[name][copies])
        return {name: column.reshape(places.shape) for name, column in columns.items()}

    def copies(self, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows of `side` that changed after the pin, with their values at the pin.

        Returns (rows uint32[m], ascending, factors float32[m, k_padded], bias float32[m]).
        """
        with self._board.lock:
            overlay = self._board.overlay(side)
            rows, places = overlay.places(self._number, 0, self.counts[side])
            factors, bias = (overlay.arrays[name][places] for name in ("factors", "bias"))
        return rows.astype(np.uint32), widened(factors), bias

    def release(self) -> None:
        """Releases the pin. Further calls do nothing."""
        self._board.release(self._number)

    def __enter__(self) -> Pin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class PinBoard:
    """The pins of one model and their overlays. `lock` guards both."""

    def __init__(
        self, spec: ModelSpec, tables: tuple[Table, Table], overlay_rows_max: int = OVERLAY_ROWS_MAX
    ) -> None:
        """A board without pins.

        It reserves address space for copies. Writes take the memory.
        """
        longest = max(table.row_bytes for table in tables)
        self.overlay_rows_max = max(1, min(overlay_rows_max, OVERLAY_BYTES_MAX // longest))
        self.lock = threading.Condition()
        self._tables = tables
        self._overlays: list[_Overlay] | None = None
        self._event_overlays: list[_Overlay] = []
        self._times: list[np.ndarray] = []
        self._active: dict[int, tuple[int, int]] = {}
        self._last = 0
        self._touched = np.empty(0, np.uint32)

    def table(self, side: int) -> Table:
        """The live table of a side."""
        return self._tables[side]

    def overlay(self, side: int) -> _Overlay:
        """The overlay of a side. The caller holds `lock`."""
        if self._overlays is None:
            self._overlays = [_Overlay(table, 2 * self.overlay_rows_max) for table in self._tables]
            for table in self._tables:
                self._event_overlays.append(_EventOverlay(table, 2 * self._event_rows_max(table)))
                self._times.append(reserve((table.capacity if table.ring_names else 0,), np.uint32))
        return self._overlays[side]

    def event_overlay(self, side: int) -> _Overlay:
        """The overlay of the events of a side. The caller holds `lock`."""
        self.overlay(side)
        return self._event_overlays[side]

    def _event_rows_max(self, table: Table) -> int:
        length = table.pages.length if table.pages is not None else 0
        return max(1, min(self.overlay_rows_max, OVERLAY_BYTES_MAX // (16 * max(1, length))))

    @property
    def active(self) -> int:
        """Number of pins that are not released."""
        return len(self._active)

    @property
    def copied_rows(self) -> int:
        """Number of copies of both sides."""
        with self.lock:
            return sum(map(len, self._overlays or ()))

    def pin(self, frozen: PinnedState) -> Pin:
        """Pins the present state of the tables. The caller ensures that no `apply` is running."""
        with self.lock:
            self._last += 1
            pin = Pin(self, self._last, frozen)
            self._active[self._last] = pin.counts
            return pin

    def release(self, number: int) -> None:
        """Releases pin `number` if it is active, and removes the copies that no other pin needs."""
        with self.lock:
            if self._active.pop(number, None) is None or self._overlays is None:
                return
            oldest = min(self._active, default=self._last + 1)
            for overlay in (*self._overlays, *self._event_overlays):
                overlay.drop_before(oldest)
            self.lock.notify_all()

    def wait_for_room(self, update_rows: int, timeout: float | None = None) -> bool:
        """Waits while `update_rows` further copies of a side would exceed the limit and pins are
        active.

        Returns False after `timeout` seconds. A record above the limit passes when there are no
        copies.
        """
        if not self._active:
            return True
        with self.lock:
            return self.lock.wait_for(lambda: self._has_room(update_rows), timeout)

    def _has_room(self, update_rows: int) -> bool:
        if not self._active or self._overlays is None:
            return True
        limits = [
            *((overlay, self.overlay_rows_max) for overlay in self._overlays),
            *((overlay, self._event_rows_max(overlay.table)) for overlay in self._event_overlays),
        ]
        return all(not len(overlay) or len(overlay) + update_rows <= limit for overlay, limit in limits)

    def protect(self, update: Update, *more_items: np.ndarray, more_users: np.ndarray = _NO_ROWS) -> None:
        """Copies the rows that `update` will change, if a pin can see them and they have no copy
        yet.

        `more_items` and `more_users` uint32[n] are rows that it will change in addition to its own.
        The backend calls it before its kernel. Without pins it costs nothing.
        """
        if not self._active:
            return
        with self.lock:
            self._protect_side(USERS, [update.user_rows, more_users])
            self._protect_side(ITEMS, [update.item_rows, *more_items])
            self._protect_events(USERS, update.user_rows[: update.fresh])
            self._protect_events(ITEMS, update.item_rows[: update.fresh])

    def protect_all_events(self, side: int, rows: np.ndarray) -> None:
        """Copies the events of rows uint32[n] whose rings begin again, if a pin can see them."""
        pages = self._tables[side].pages
        if not self._active or pages is None or not pages.length:
            return
        with self.lock:
            below = max((counts[side] for counts in self._active.values()), default=0)
            overlay, out = self.event_overlay(side), np.empty(rows.size, np.uint32)
            bounds = np.uint64(below), np.uint64(self._last)
            found = _first_touches(rows, *bounds, overlay.stamps, out, np.uint64(ZERO))
            overlay.copy(out[: int(found)], self._last)

    def _protect_side(self, side: int, columns: list[np.ndarray]) -> None:
        below = max((counts[side] for counts in self._active.values()), default=0)
        overlay = self.overlay(side)
        needed = sum(column.size for column in columns)
        if self._touched.size < needed:
            self._touched = np.empty(needed, np.uint32)
        found = ZERO
        for column in columns:
            found = _first_touches(
                column,
                np.uint64(below),
                np.uint64(self._last),
                overlay.stamps,
                self._touched,
                np.uint64(found),
            )
        overlay.copy(self._touched[: int(found)], self._last)

    def _protect_events(self, side: int, rows: np.ndarray) -> None:
        """Copies the events of the rows in which new events take the places of old ones."""
        pages = self._tables[side].pages
        if pages is None or not pages.length:
            return
        below = max((counts[side] for counts in self._active.values()), default=0)
        overlay = self._event_overlays[side]
        out = np.empty(rows.size, np.uint32)
        found = _rewritten(
            np.ascontiguousarray(rows),
            np.uint64(below),
            np.uint64(self._last),
            overlay.stamps,
            pages.seen,
            np.uint64(pages.length),
            self._times[side],
            out,
        )
        overlay.copy(out[: int(found)], self._last)
