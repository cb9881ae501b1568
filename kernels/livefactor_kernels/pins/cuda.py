"""Pins of the GPU backend: a revision that stays readable on the device during updates.

Pins of one revision share a `PinnedRevision`, which has the places of the copies that they need
(`scoring.cuda_reads.Saved`). While it is in use, every update first copies the rows that it will
change, once, on the device. The memory for the copies is allocated before an update begins, and the
writer waits for it (`Pins.wait_for_room`). A later pin gets as much memory at its creation, or is
refused. Reads use the stream of the updates, so they may come at any time. If a row has a copy, the
pin reads the copy, else the live row. A pin costs one zeroed word per row. Updates pause for
nothing else. The copy stream transfers the result of a gather to the host, in parallel with later
updates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from livefactor_kernels.device.buffers import Buffer
from livefactor_kernels.device.factors import DeviceRows
from livefactor_kernels.device.machine import Device
from livefactor_kernels.device.plan import Plan, Span
from livefactor_kernels.device.staging import Slot
from livefactor_kernels.numbers.narrow import widened
from livefactor_kernels.pins import PinnedState
from livefactor_kernels.scoring.cpu import check_top_k
from livefactor_kernels.scoring.cuda import Exclusions, TopK
from livefactor_kernels.scoring.cuda_reads import (
    Saved,
    livefactor_copy_kernel,
    livefactor_gather_kernel,
    livefactor_save_kernel,
)
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, ring_length
from livefactor_kernels.tables.cuda import CudaTable
from livefactor_kernels.tables.recent import RECENT, Recent, recent_of
from livefactor_kernels.tables.state import mean_of

SAVED_ROWS_MAX = 1 << 18
"""Number of copies of one side at which `Pins.wait_for_room` stops the writer."""
SAVED_BYTES_MAX = 1 << 30
"""Bytes of copies of one side with the same effect, for long rows."""
_SAVED_ROWS_MIN = 1 << 10
_COPYING_THREADS_MAX = 1 << 18
DeviceSections = Mapping[str, tuple[Buffer, ...]]
"""State beside the rows on the device (`tables.state.Part`): the parts of each section, in
order.
"""
_Tables = tuple[CudaTable, CudaTable]


class PinnedRows:
    """The copies of one side's rows for one revision."""

    def __init__(self, device: Device, table: CudaTable, count: int) -> None:
        self.count = count
        # Upper bound of the number of copies. Only the device has the exact number.
        self.bound = 0
        self._device, self._table = device, table
        self._adagrad = int("factor_g" in table.arrays)
        self._place, self._counter = device.empty(max(1, count), np.int32), device.empty(2, np.int32)
        with device.working():
            self._place.array.fill(0)
            self._counter.array.fill(0)
        self._capacity = 0
        self._rows: Buffer
        self._arrays: dict[str, Buffer] = {}
        self._hold(1)

    def _hold(self, capacity: int) -> None:
        """Allocates memory for `capacity` copies, and moves the present copies to it."""
        device, before = self._device, self._capacity
        rows = device.empty(capacity, np.uint32)
        arrays = {
            name: device.empty(capacity * width, self._table.dtypes[name])
            for name, width in self._table.widths.items()
        }
        if before:
            with device.working():
                rows.array[:before] = self._rows.array
                for name, buffer in self._arrays.items():
                    arrays[name].array[: buffer.array.size] = buffer.array
        self._rows, self._arrays, self._capacity = rows, arrays, capacity
        live = {name: buffer.argument for name, buffer in arrays.items()}
        copies = DeviceRows(*(live.get(name, live["bias"]) for name in DeviceRows._fields))
        self.saved = Saved(self._place.argument, rows.argument, self._counter.argument, copies)

    def make_room(self, more: int) -> None:
        """Allocates memory for `more` copies in addition to the maximum number so far.

        Raises:
            MemoryError: the device has too little memory.
        """
        needed = min(self.bound + more, self.count)
        if needed > self._capacity:
            self._hold(max(_SAVED_ROWS_MIN, 1 << (needed - 1).bit_length()))

    def refine(self) -> None:
        """Reads the exact number of copies from the device."""
        self.bound = int(self._device.fetch([self._counter.array])()[0][0])

    def save(self, rows: Any, at: int, count: int) -> None:
        """Copies the rows rows[at : at + count] that have no copy yet and that a pin can see.

        `make_room` has allocated the memory.
        """
        self.save_by(livefactor_save_kernel, count, rows, at)

    def save_by(self, kernel: Any, count: int, *which: Any) -> None:
        """Like `save`, for at most `count` rows that a kernel finds.

        The kernel takes `which` before the arguments of `livefactor_save_kernel`.
        """
        if not count or not self.count:
            return
        table, device = self._table, self._device
        numbers = table.spec.k_padded, self._adagrad
        device.launch(kernel, count, *which, count, self.count, table.live, self.saved, *numbers)
        self.bound = min(self.bound + count, self.count)
        for name in table.apart:
            width, copied = table.widths[name], self.argument(name)
            threads = min(min(count, self.bound) * width, _COPYING_THREADS_MAX)
            live = table.arrays[name].buffer.argument
            device.launch(livefactor_copy_kernel, threads, live, self.saved, copied, width)
        if table.apart:
            with device.working():
                self._counter.array[1:] = self._counter.array[:1]

    def argument(self, name: str) -> Any:
        """The copies of a section as kernels take them."""
        return self._arrays[name].argument


class PinnedRevision:
    """One revision, its number of pins, and the copies for them. The lock of `Pins` guards it."""

    def __init__(
        self,
        device: Device,
        tables: _Tables,
        revision: int,
        counts: tuple[int, int],
        sections: DeviceSections,
    ) -> None:
        self.revision, self.counts, self.holders = revision, counts, 0
        self.sections = {name: tuple(map(device.copy, parts)) for name, parts in sections.items()}
        self.sides = tuple(
            PinnedRows(device, table, count) for table, count in zip(tables, counts, strict=True)
        )

    def make_room(self, wanted: tuple[int, int]) -> None:
        """Allocates memory for further copies of each side.

        Raises:
            MemoryError: the device has too little memory.
        """
        for side, more in zip(self.sides, wanted, strict=True):
            side.make_room(more)


class Pins:
    """The pins of one model. `lock` also orders the model's work on its stream."""

    def __init__(
        self, spec: ModelSpec, device: Device, tables: _Tables, lock: threading.Condition,
        rows_max: int = SAVED_ROWS_MAX,
    ) -> None:  # fmt: skip
        """No pins. `rows_max` replaces `SAVED_ROWS_MAX`."""
        self.spec, self.device, self.tables, self.lock = spec, device, tables, lock
        self.rows_max = min(rows_max, SAVED_BYTES_MAX // max(table.row_bytes for table in tables))
        self.frozen: list[PinnedRevision] = []
        # Numbers of user and item copies for which every pin has memory when the writer continues.
        self._promised = (0, 0)

    def pin(self, frozen: PinnedState, sections: DeviceSections | None = None) -> CudaPin:
        """Pins a state. The caller ensures that no `apply` is running.

        `sections` are on the device, and `frozen` has the sections of the host.

        Raises:
            MemoryError: the device has too little memory for the pin and for the copies of the next
                update.
        """
        with self.lock:
            revision, counts, state = frozen
            newest = self.frozen[-1] if self.frozen else None
            if newest is None or (newest.revision, newest.counts) != (revision, counts):
                newest = PinnedRevision(self.device, self.tables, revision, counts, sections or {})
                newest.make_room(self._promised)
                self.frozen.append(newest)
            newest.holders += 1
            return CudaPin(self, newest, state)

    def release(self, frozen: PinnedRevision) -> None:
        """Removes one pin of a revision."""
        with self.lock:
            frozen.holders -= 1
            if not frozen.holders:
                self.frozen.remove(frozen)
                self.lock.notify_all()

    def wait_for_room(self, events: int, timeout: float | None = None) -> bool:
        """Waits while there are too many copies, or too little memory, for an update of `events`
        events.

        Returns False after `timeout` seconds. A record above the limit passes when a side has no
        copies. Pins that are taken before the update get memory for as many copies.
        """
        wanted = self._copies_of(events)
        with self.lock:
            found = self.lock.wait_for(
                lambda: all(self._has_room(frozen, wanted) for frozen in self.frozen), timeout
            )
            self._promised = wanted if found else self._promised
            return found

    def make_room(self, events: int) -> None:
        """Allocates memory for the copies of an update of `events` events. The caller holds the
        lock.

        Raises:
            MemoryError: the device has too little memory.
        """
        for frozen in self.frozen:
            frozen.make_room(self._copies_of(events))

    def _copies_of(self, events: int) -> tuple[int, int]:
        followed = self.spec.counts.span if self.spec.counts.neighbors else 0
        return events, events * (1 + followed) + self.spec.drawn(events)

    def _has_room(self, frozen: PinnedRevision, wanted: tuple[int, int]) -> bool:
        for side, more in zip(frozen.sides, wanted, strict=True):
            if min(side.bound + more, side.count) > self.rows_max and side.bound:
                side.refine()
                if side.bound and side.bound + more > self.rows_max:
                    return False
        try:
            frozen.make_room(wanted)
        except MemoryError:
            # The release of a pin frees memory.
            return False
        return True

    def save(self, span: Span, plan: Plan, slot: Slot) -> None:
        """Copies the rows that a span will change, for every pinned revision.

        The caller holds the lock, and has called `make_room` for the record.
        """
        self.save_named(slot, (span.users_at + span.first, span.items_at + span.first), span.events)
        for frozen in self.frozen:
            frozen.sides[ITEMS].save(plan.negatives, 0, span.events * span.width)

    def save_named(self, slot: Slot, rows_at: tuple[int, int], events: int) -> None:
        """Copies the rows of `events` events, which are words of the slot.

        `rows_at` has the places of the users' and of the items' rows.
        """
        for frozen in self.frozen:
            for side, at in zip(frozen.sides, rows_at, strict=True):
                side.save(slot.words, at, events)


class CudaPin:
    """The state of a GPU model at one revision (`pins.Pin`)."""

    def __init__(self, pins: Pins, frozen: PinnedRevision, state: dict[str, np.ndarray]) -> None:
        self._pins, self._frozen, self._is_active = pins, frozen, True
        self.revision, self.counts = frozen.revision, frozen.counts
        self.mean, self._state = mean_of(state["mean"]), state

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `pins.Pin.gather`."""
        return as_floats(*self._fetch(side, rows, ("factors", "bias")))

    def state(self) -> dict[str, np.ndarray]:
        """See `pins.Pin.state`. It copies the sections of the device to the host."""
        pins = self._pins
        with pins.lock:
            wait = fetch_sections(pins.device, self._frozen.sections)
        return self._state | wait()

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `pins.Pin.read`."""
        return as_sections(self._pins.tables[side], names, self._fetch(side, rows, names))

    def _fetch(self, side: int, rows: np.ndarray, names: Iterable[str]) -> list[np.ndarray]:
        pins = self._pins
        with pins.lock:
            wait = fetch_rows(pins.device, pins.tables[side], self._frozen.sides[side], rows, names)
        return wait()

    def recent(self, side: int, rows: np.ndarray, most: int) -> Recent:
        """See `pins.Pin.recent`."""
        return recent_of(self.read(side, rows, RECENT), ring_length(self._pins.spec, side), most)

    def read_rows(self, side: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """See `pins.Pin.read_rows`."""
        if not 0 <= start <= stop <= self.counts[side]:
            raise IndexError(f"rows {start}..{stop}: expected within 0..{self.counts[side]}")
        table = self._pins.tables[side]
        rows = np.arange(start, stop, dtype=np.uint32)
        parts = self._fetch(side, rows, table.arrays)
        return {"keys": table.keys[start:stop].copy()} | as_sections(table, table.arrays, parts)

    def top_k(
        self, user_factors: np.ndarray, user_bias: np.ndarray, k: int, common: np.ndarray | None = None,
        own: np.ndarray | None = None, own_offsets: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """See `pins.Pin.top_k`."""
        pins = self._pins
        own, offsets = check_top_k(user_factors, user_bias, pins.spec.k_padded, k, own, own_offsets)
        bases = self.mean + np.asarray(user_bias, np.float32)
        common = np.empty(0, np.uint32) if common is None else common
        frozen = self._frozen.sides[ITEMS]
        search = TopK(pins.device, pins.tables[ITEMS], pins.lock, frozen, self.counts[ITEMS])
        return search.run(user_factors, bases, k, Exclusions(common, own, offsets.astype(np.int64)))

    def release(self) -> None:
        """Releases the pin. Further calls do nothing."""
        with self._pins.lock:
            was_active, self._is_active = self._is_active, False
            if was_active:
                self._pins.release(self._frozen)

    def __enter__(self) -> CudaPin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def fetch_rows(
    device: Device, table: CudaTable, frozen: PinnedRows | None, rows: np.ndarray, names: Iterable[str]
) -> Callable[[], list[np.ndarray]]:
    """Puts a gather of rows uint32[n] on the stream, of live rows or of pinned ones.

    Call the result to get one host array [n, width] per name, padded and in the stored type. The
    caller holds the lock.
    """
    where = device.put(np.asarray(rows, np.uint32))
    if frozen is None:
        unused = device.empty(1, np.int32).argument
        saved = Saved(unused, where.argument, unused, table.live)
    else:
        saved = frozen.saved
    parts = []
    for name in names:
        width = table.widths[name]
        out = device.empty(rows.size * width, table.dtypes[name])
        live = table.arrays[name].buffer.argument
        copied = live if frozen is None else frozen.argument(name)
        numbers = width, rows.size
        if rows.size:
            device.launch(
                livefactor_gather_kernel,
                rows.size * width,
                where.argument,
                live,
                copied,
                saved,
                int(frozen is not None),
                *numbers,
                out.argument,
            )
        parts.append(out.array.reshape(rows.size, width))
    return device.fetch(parts)


def as_sections(table: CudaTable, names: Iterable[str], parts: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Converts the result of `fetch_rows` to the form of `backend.Backend.read`."""
    return {
        name: np.ascontiguousarray(table.shaped(name, part)) for name, part in zip(names, parts, strict=True)
    }


def fetch_sections(device: Device, sections: DeviceSections) -> Callable[[], dict[str, np.ndarray]]:
    """Puts copies of sections to the host on the stream. Call the result to get them.

    The caller holds the lock.
    """
    waits = {name: device.fetch([part.array for part in parts]) for name, parts in sections.items()}
    return lambda: {name: np.concatenate(wait()) for name, wait in waits.items()}


def as_floats(factors: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Converts factors and biases of `fetch_rows` to the form of `backend.Backend.gather`."""
    if factors.dtype != np.float32:
        stored, factors = factors, reserve(factors.shape, np.float32)
        factors[:] = widened(stored)
    return factors, bias[:, 0]
