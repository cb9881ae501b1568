"""Reading a model at one revision while it goes on learning: pins, and the copies that updates leave for
them.

A `Pin` names the state at the moment it was taken. While any pin exists, an update first copies every row
that it is about to touch, once, to an append-only overlay; a row as of a pin is its earliest copy made after
the pin, else the live row. Readers scan live rows without a lock and then patch what they read from the
overlay under the board's lock: whatever a scan saw half-written had been copied before it was written, so the
patch always wins.

    stamp[row]   tag of the row's newest copy; an update copies a row if that is below the newest pin's number
    overlay      a ring of (tag, row, factors, bias, accumulators), tags ascending; what is older than the
                 oldest pin is dropped
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
from livefactor_kernels.tables import ITEMS, USERS, unpadded
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.state import mean_of
from livefactor_kernels.update import Update

OVERLAY_ROWS_MAX = 1 << 18
"""Copies of one side past which `PinBoard.wait_for_room` holds the writer back."""
OVERLAY_BYTES_MAX = 1 << 30
"""Bytes of copies of one side that stand for the same, where rows are long."""


@compiled
def _first_touches(rows: Any, below: Any, tag: Any, stamps: Any, out: Any, found: Any) -> Any:
    """Append to `out` (after `found` entries) the rows below `below` whose stamp is older than `tag`, and
    stamp them."""
    for i in range(np.uint64(rows.size)):
        row = np.uint64(rows[i])
        if row < below and stamps[row] < tag:
            stamps[row] = tag
            out[found] = rows[i]
            found += ONE
    return found


@compiled
def _copy_rows(rows: Any, live: Any, ring: Any, start: Any) -> None:
    """Copy live[rows] to the ring from position `start` on (both two-dimensional)."""
    size = np.uint64(ring.shape[0])
    for i in range(np.uint64(rows.size)):
        place, row = (start + i) % size, np.uint64(rows[i])
        for j in range(np.uint64(ring.shape[1])):
            ring[place, j] = live[row, j]


@compiled
def _places_in_range(
    tags: Any, rows: Any, head: Any, tail: Any, pin: Any, start: Any, stop: Any, out: Any
) -> Any:
    """Set out[row - start] to 1 + the ring place of the row's earliest copy with tag >= pin; returns how many
    copies it saw."""
    size, seen = np.uint64(rows.size), ZERO
    for back in range(tail - head):
        place = (tail - ONE - back) % size
        row = np.uint64(rows[place])
        if tags[place] >= pin and row >= start and row < stop:
            out[row - start] = place + ONE
            seen += ONE
    return seen


def _bits(array: np.ndarray) -> np.ndarray:
    """Elements of rows as words that compiled code copies as they are."""
    words = array.view(np.dtype(f"uint{8 * array.itemsize}"))
    return words.reshape(len(words), -1)


class _Overlay:
    """Copies of one side's rows: a ring that doubles if one record needs more than it holds."""

    def __init__(self, spec: ModelSpec, table: Table, rows: int) -> None:
        self.table = table
        self.live = table.padded()
        self.stamps = reserve((table.capacity,), np.uint64)
        self.head = self.tail = 0
        self._reserve(rows)

    def _reserve(self, rows: int) -> None:
        self.size = rows
        self.tags, self.rows = reserve((rows,), np.uint64), reserve((rows,), np.uint32)
        self.arrays = {
            name: reserve((rows, *array.shape[1:]), array.dtype) for name, array in self.live.items()
        }

    def __len__(self) -> int:
        return self.tail - self.head

    def copy(self, rows: np.ndarray, tag: int) -> None:
        """Append the live values of `rows` (uint32[m], distinct) under `tag`."""
        if len(self) + rows.size > self.size:
            self._grow(len(self) + rows.size)
        places = np.arange(self.tail, self.tail + rows.size) % self.size
        self.tags[places], self.rows[places] = tag, rows
        for name, ring in self.arrays.items():
            live, copies = (_bits(array) for array in (self.live[name], ring))
            _copy_rows(rows, live, copies, np.uint64(self.tail))
        self.tail += rows.size

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
        """Drop the copies that no pin from number `oldest` on can need."""
        if not len(self) or self.tags[(self.tail - 1) % self.size] < oldest:
            self.head = self.tail = 0  # empty: start over, so that small overlays stay in the same few pages
            return
        places = np.arange(self.head, self.tail) % self.size
        self.head += int(np.searchsorted(self.tags[places], oldest))

    def places(self, pin: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows - start, ring places) of the rows in [start, stop) that have a copy for `pin`."""
        marks = np.zeros(stop - start, np.uint64)
        args = (np.uint64(number) for number in (self.head, self.tail, pin, start, stop))
        if not _places_in_range(self.tags, self.rows, *args, marks):
            empty = np.empty(0, np.int64)
            return empty, empty
        found = np.flatnonzero(marks)
        return found, (marks[found] - ONE).astype(np.int64)


class Pin:
    """The state of a CPU model as of when it was taken (`pins.Pin`). Copies are kept for it until it is
    released."""

    def __init__(self, board: PinBoard, number: int, frozen: PinnedState) -> None:
        self._board, self._number = board, number
        self.revision, self.counts, self._state = frozen
        self.mean = mean_of(self._state["mean"])

    def state(self) -> dict[str, np.ndarray]:
        """As `pins.Pin.state`."""
        return self._state

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(factors float32[n, kp], bias float32[n]) of rows uint32[n] (`scoring.gather_pinned`)."""
        return scoring.gather_pinned(self, side, self._board.table(side), rows)

    def top_k(
        self, user_factors: np.ndarray, user_bias: np.ndarray, k: int, common: np.ndarray | None = None,
        own: np.ndarray | None = None, own_offsets: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """The k best items of each user: (rows, scores, offsets) of `scoring.top_k`."""
        items = self._board.table(ITEMS)
        return scoring.top_k(self, items, user_factors, user_bias, k, common, own, own_offsets)

    def read_rows(self, side: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Copies of rows [start, stop) of `side` as of the pin, named and shaped as `Table.sections`.
        IndexError past its count."""
        if not 0 <= start <= stop <= self.counts[side]:
            raise IndexError(f"rows {start}..{stop}: expected within 0..{self.counts[side]}")
        table = self._board.table(side)
        copies = {name: np.array(view[start:stop], order="C") for name, view in table.sections(stop).items()}
        with self._board.lock:
            overlay = self._board.overlay(side)
            found, places = overlay.places(self._number, start, stop)
            for name, ring in overlay.arrays.items():
                copies[name][found] = unpadded(name, ring[places], table.spec.k)
        return copies

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """As `pins.Pin.read`."""
        out = self._board.table(side).read(rows, names)
        with self._board.lock:
            overlay = self._board.overlay(side)
            changed, places = overlay.places(self._number, 0, self.counts[side])
            if changed.size:
                at = np.minimum(np.searchsorted(changed, rows), changed.size - 1)
                hit = changed[at] == rows
                for name in names:
                    out[name][hit] = unpadded(
                        name, overlay.arrays[name][places[at[hit]]], self._board.table(side).spec.k
                    )
        return out

    def copies(self, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of `side` changed since the pin, as of the pin: uint32[m] ascending, factors float32[m,
        k_padded], bias float32[m]."""
        with self._board.lock:
            overlay = self._board.overlay(side)
            rows, places = overlay.places(self._number, 0, self.counts[side])
            factors, bias = (overlay.arrays[name][places] for name in ("factors", "bias"))
        return rows.astype(np.uint32), widened(factors), bias

    def release(self) -> None:
        """Give the pin up; calling it again does nothing."""
        self._board.release(self._number)

    def __enter__(self) -> Pin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class PinBoard:
    """The pins of one model and the overlays that serve them. `lock` guards both."""

    def __init__(
        self, spec: ModelSpec, tables: tuple[Table, Table], overlay_rows_max: int = OVERLAY_ROWS_MAX
    ) -> None:
        """No pins; memory for copies is reserved, and taken when copies are made."""
        longest = max(table.row_bytes for table in tables)
        self.overlay_rows_max = max(1, min(overlay_rows_max, OVERLAY_BYTES_MAX // longest))
        self.lock = threading.Condition()
        self._tables = tables
        self._overlays: list[_Overlay] | None = None
        self._spec = spec
        self._active: dict[int, tuple[int, int]] = {}
        self._last = 0
        self._touched = np.empty(0, np.uint32)

    def table(self, side: int) -> Table:
        """The live table of a side."""
        return self._tables[side]

    def overlay(self, side: int) -> _Overlay:
        """The overlay of a side; hold `lock`."""
        if self._overlays is None:
            self._overlays = [
                _Overlay(self._spec, table, 2 * self.overlay_rows_max) for table in self._tables
            ]
        return self._overlays[side]

    @property
    def active(self) -> int:
        """Pins that are not released."""
        return len(self._active)

    @property
    def copied_rows(self) -> int:
        """Copies held, both sides."""
        with self.lock:
            return sum(map(len, self._overlays or ()))

    def pin(self, frozen: PinnedState) -> Pin:
        """Pin a state, which is the tables' current one; the caller makes sure that no `apply` is running."""
        with self.lock:
            self._last += 1
            pin = Pin(self, self._last, frozen)
            self._active[self._last] = pin.counts
            return pin

    def release(self, number: int) -> None:
        """Give up pin `number` if it is held; copies that nobody needs any more are dropped."""
        with self.lock:
            if self._active.pop(number, None) is None or self._overlays is None:
                return
            oldest = min(self._active, default=self._last + 1)
            for overlay in self._overlays:
                overlay.drop_before(oldest)
            self.lock.notify_all()

    def wait_for_room(self, update_rows: int, timeout: float | None = None) -> bool:
        """Block while `update_rows` more copies of a side would pass the cap and pins are held; False after
        `timeout` seconds.

        A record larger than the cap passes once there are no copies.
        """
        with self.lock:
            return self.lock.wait_for(lambda: self._has_room(update_rows), timeout)

    def _has_room(self, update_rows: int) -> bool:
        held = max(map(len, self._overlays or ()), default=0)
        return not self._active or held == 0 or held + update_rows <= self.overlay_rows_max

    def protect(self, update: Update, *more_items: np.ndarray) -> None:
        """Copy the rows that `update` is about to change and that a pin can see, at their first touch after
        the newest pin.

        more_items: uint32[n], items that it changes beside those it names. The backend calls this before its kernel; free
        without pins.
        """
        if not self._active:
            return
        with self.lock:
            self._protect_side(USERS, [update.user_rows])
            self._protect_side(ITEMS, [update.item_rows, *more_items])

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
