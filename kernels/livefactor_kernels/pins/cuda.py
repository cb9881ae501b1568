"""Pins of a GPU model: a revision kept readable, on the device, while updates go on.

Pins of one revision share a `PinnedRevision`: where the copies are that they need (`scoring.cuda_reads.Saved`). While one is
held, every update first copies the rows that it is about to touch, once, on the device. Memory for those copies is there
before an update begins: the writer waits for it (`Pins.wait_for_room`), and a pin that is taken afterwards gets as
much from the start, or is refused. A read takes the same
stream as the updates, so it may come at any time: a row is the pin's if it was not copied, else its copy is.
Taking a pin costs one word a row, set to zero; updates pause for nothing else. What a read gathers is drained
to the host by the stream of copies, beside the updates that follow.
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
from livefactor_kernels.tables import ITEMS
from livefactor_kernels.tables.cuda import CudaTable
from livefactor_kernels.tables.state import mean_of

SAVED_ROWS_MAX = 1 << 18
"""Copies of one side past which `Pins.wait_for_room` holds the writer back."""
SAVED_BYTES_MAX = 1 << 30
"""Bytes of copies of one side that stand for the same, where rows are long."""
_SAVED_ROWS_MIN = 1 << 10
_COPYING_THREADS_MAX = 1 << 18
DeviceSections = Mapping[str, tuple[Buffer, ...]]
"""Sections beside the rows that are on the device (`tables.state.Part`): the parts that make one, in order."""
_Tables = tuple[CudaTable, CudaTable]


class PinnedRows:
    """The copies of one side's rows for one revision."""

    def __init__(self, device: Device, table: CudaTable, count: int) -> None:
        self.count = count
        self.bound = 0  # copies there can be at most: the number itself is known on the device
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
        """Have memory for `capacity` copies; those there are stay."""
        device, held = self._device, self._capacity
        rows = device.empty(capacity, np.uint32)
        arrays = {
            name: device.empty(capacity * width, self._table.dtypes[name])
            for name, width in self._table.widths.items()
        }
        if held:
            with device.working():
                rows.array[:held] = self._rows.array
                for name, buffer in self._arrays.items():
                    arrays[name].array[: buffer.array.size] = buffer.array
        self._rows, self._arrays, self._capacity = rows, arrays, capacity
        live = {name: buffer.argument for name, buffer in arrays.items()}
        copies = DeviceRows(*(live.get(name, live["bias"]) for name in DeviceRows._fields))
        self.saved = Saved(self._place.argument, rows.argument, self._counter.argument, copies)

    def make_room(self, more: int) -> None:
        """Have memory for `more` copies beyond what there can be; MemoryError if the device has not so much."""
        needed = min(self.bound + more, self.count)
        if needed > self._capacity:
            self._hold(max(_SAVED_ROWS_MIN, 1 << (needed - 1).bit_length()))

    def refine(self) -> None:
        """Learn from the device how many copies there are."""
        self.bound = int(self._device.fetch([self._counter.array])()[0][0])

    def save(self, rows: Any, at: int, count: int) -> None:
        """Copy the rows rows[at : at + count] that are not copied yet and that a pin can see. There is room
        (`make_room`)."""
        self.save_by(livefactor_save_kernel, count, rows, at)

    def save_by(self, kernel: Any, count: int, *which: Any) -> None:
        """As `save`, of at most `count` rows that a kernel finds: it takes `which` first, then what `livefactor_save_kernel`
        takes."""
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
        """Copies of a section, as kernels take them."""
        return self._arrays[name].argument


class PinnedRevision:
    """One revision, the pins that hold it, and the copies that they need. The board's lock guards it."""

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
        """Have memory for so many more copies of each side; MemoryError if the device has not so much."""
        for side, more in zip(self.sides, wanted, strict=True):
            side.make_room(more)


class Pins:
    """The pins of one model. `lock` also orders what the model puts on its stream."""

    def __init__(
        self, spec: ModelSpec, device: Device, tables: _Tables, lock: threading.Condition,
        rows_max: int = SAVED_ROWS_MAX,
    ) -> None:  # fmt: skip
        """No pins. rows_max: as `SAVED_ROWS_MAX`."""
        self.spec, self.device, self.tables, self.lock = spec, device, tables, lock
        self.rows_max = min(rows_max, SAVED_BYTES_MAX // max(table.row_bytes for table in tables))
        self.frozen: list[PinnedRevision] = []
        self._promised = (
            0,
            0,
        )  # copies of users and items that every pin has room for when the writer goes on

    def pin(self, frozen: PinnedState, sections: DeviceSections | None = None) -> CudaPin:
        """Pin a state; the caller makes sure that no `apply` is running. MemoryError if the device has no memory
        for it and for the copies that the next update needs. sections: of the device, beside those of the
        host that `frozen` has."""
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
        """One pin less holds it."""
        with self.lock:
            frozen.holders -= 1
            if not frozen.holders:
                self.frozen.remove(frozen)
                self.lock.notify_all()

    def wait_for_room(self, events: int, timeout: float | None = None) -> bool:
        """Block while pins hold so many copies, or the device has so little memory for more, that an update of
        `events` events must wait; False after `timeout` seconds.

        A record larger than the cap passes once a side has no copies. Pins that are taken before the update are
        given as much room.
        """
        wanted = self._copies_of(events)
        with self.lock:
            found = self.lock.wait_for(
                lambda: all(self._has_room(frozen, wanted) for frozen in self.frozen), timeout
            )
            self._promised = wanted if found else self._promised
            return found

    def make_room(self, events: int) -> None:
        """Have memory for the copies of an update of `events` events; MemoryError if the device has not so much. The
        caller holds the lock."""
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
            return False  # until a pin is released
        return True

    def save(self, span: Span, plan: Plan, slot: Slot) -> None:
        """Copy what a span is about to change, for every revision that is held. The caller holds the lock, and has
        called `make_room` for the record."""
        self.save_named(slot, (span.users_at + span.first, span.items_at + span.first), span.events)
        for frozen in self.frozen:
            frozen.sides[ITEMS].save(plan.negatives, 0, span.events * span.width)

    def save_named(self, slot: Slot, rows_at: tuple[int, int], events: int) -> None:
        """As `save`, of the rows that so many events name: words of the slot from `rows_at` on, users' and items'."""
        for frozen in self.frozen:
            for side, at in zip(frozen.sides, rows_at, strict=True):
                side.save(slot.words, at, events)


class CudaPin:
    """The state of a GPU model as of when it was taken (`pins.Pin`)."""

    def __init__(self, pins: Pins, frozen: PinnedRevision, state: dict[str, np.ndarray]) -> None:
        self._pins, self._frozen, self._held = pins, frozen, True
        self.revision, self.counts = frozen.revision, frozen.counts
        self.mean, self._state = mean_of(state["mean"]), state

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `pins.Pin.gather`."""
        return as_floats(*self._fetch(side, rows, ("factors", "bias")))

    def state(self) -> dict[str, np.ndarray]:
        """As `pins.Pin.state`; those sections that are on the device are copied from it."""
        pins = self._pins
        with pins.lock:
            wait = fetch_sections(pins.device, self._frozen.sections)
        return self._state | wait()

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """As `pins.Pin.read`."""
        return as_sections(self._pins.tables[side], names, self._fetch(side, rows, names))

    def _fetch(self, side: int, rows: np.ndarray, names: Iterable[str]) -> list[np.ndarray]:
        pins = self._pins
        with pins.lock:
            wait = fetch_rows(pins.device, pins.tables[side], self._frozen.sides[side], rows, names)
        return wait()

    def read_rows(self, side: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """As `pins.Pin.read_rows`."""
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
        """As `pins.Pin.top_k`."""
        pins = self._pins
        own, offsets = check_top_k(user_factors, user_bias, pins.spec.k_padded, k, own, own_offsets)
        bases = self.mean + np.asarray(user_bias, np.float32)
        common = np.empty(0, np.uint32) if common is None else common
        frozen = self._frozen.sides[ITEMS]
        search = TopK(pins.device, pins.tables[ITEMS], pins.lock, frozen, self.counts[ITEMS])
        return search.run(user_factors, bases, k, Exclusions(common, own, offsets.astype(np.int64)))

    def release(self) -> None:
        """Give the pin up; calling it again does nothing."""
        with self._pins.lock:
            held, self._held = self._held, False
            if held:
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
    """Put a gather of rows uint32[n] on the stream, live or as of a pin; call the result for [n, width] a name,
    padded and as stored, of the host. The caller holds the lock."""
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
    """What `fetch_rows` gives as `backend.Backend.read` promises it."""
    return {
        name: np.ascontiguousarray(table.shaped(name, part)) for name, part in zip(names, parts, strict=True)
    }


def fetch_sections(device: Device, sections: DeviceSections) -> Callable[[], dict[str, np.ndarray]]:
    """Put copies of sections to the host on the stream; call the result for them. The caller holds the lock."""
    waits = {name: device.fetch([part.array for part in parts]) for name, parts in sections.items()}
    return lambda: {name: np.concatenate(wait()) for name, wait in waits.items()}


def as_floats(factors: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `fetch_rows` gives of factors and biases as `backend.Backend.gather` promises it."""
    if factors.dtype != np.float32:
        stored, factors = factors, reserve(factors.shape, np.float32)
        factors[:] = widened(stored)
    return factors, bias[:, 0]
