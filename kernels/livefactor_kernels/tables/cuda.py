"""The rows of one side on the GPU: their arrays, growth, initial values and transfers.

The keys and their map are on the host (`tables.keys.RowKeys`). The host sends the keys of new rows,
and the device computes their initial values in the first update that needs them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.device.buffers import Growing
from livefactor_kernels.device.factors import DeviceRows, StateRows, load_factor, store_factor
from livefactor_kernels.device.machine import Device
from livefactor_kernels.device.warp import cuda, kernel
from livefactor_kernels.numbers.lanes import root
from livefactor_kernels.numbers.random import initial_factor, philox, rounding_word
from livefactor_kernels.optimizers import Method, StepRates, initial_state, optimizer_sections, state_slots
from livefactor_kernels.spec.model import ModelSpec, OptimizerKind
from livefactor_kernels.tables import history_sections, row_sections
from livefactor_kernels.tables.keys import RowKeys

BLOCK_ROWS = 1 << 16
"""Rows per copy between host and device."""

_MASK, _32, _ZERO = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(0)
_F0, _F1 = np.float32(0.0), np.float32(1.0)
_NO_FACTORS = np.empty((0, 0), np.float32)


class NewRows(NamedTuple):
    """Rows to initialise (all numbers int64).

    Attributes:
        first: the first row.
        number: number of rows.
        keys_at: place of the first row's key in `keys`.
        k, k_padded: factors per row, without and with padding.
        table: number of the side.
        adagrad: whether there are AdaGrad accumulators.
    """

    first: int
    number: int
    keys_at: int
    k: int
    k_padded: int
    table: int
    adagrad: int


@kernel
def livefactor_init_kernel(
    new: Any, rows: Any, keys: Any, scale: Any, initial_g: Any, seed: Any, rounding_seed: Any
) -> None:
    """Initial values of new rows. A thread computes four factors of a row from one draw."""
    i = cuda.grid(1)
    quads = new.k_padded // 4
    if i >= new.number * quads:
        return
    row, quad = new.first + i // quads, i % quads
    key = keys[new.keys_at + i // quads]
    w0, w1, w2, w3 = philox(key & _MASK, key >> _32, np.uint64(quad), np.uint64(new.table), seed)
    # Only narrow factors need the word.
    word = rounding_word(rounding_seed, key, _ZERO, np.uint64(new.table), _ZERO)
    column, left = quad * 4, new.k - quad * 4
    at = row * new.k_padded + column
    store_factor(rows.factors, at, initial_factor(w0, scale) if left > 0 else _F0, word, column)
    store_factor(rows.factors, at + 1, initial_factor(w1, scale) if left > 1 else _F0, word, column + 1)
    store_factor(rows.factors, at + 2, initial_factor(w2, scale) if left > 2 else _F0, word, column + 2)
    store_factor(rows.factors, at + 3, initial_factor(w3, scale) if left > 3 else _F0, word, column + 3)
    if new.adagrad:
        for j in range(4):
            rows.factor_g[at + j] = initial_g if left > j else _F0
    if quad == 0:
        rows.bias[row] = _F0
        if new.adagrad:
            rows.bias_g[row] = initial_g


@kernel
def livefactor_start_kernel(new: Any, factors: Any, z: Any, scale: Any, l1: Any) -> None:
    """FTRL's z of new rows with initialised factors (`optimizers.initial_state`).

    A thread computes one factor's z. `scale` is beta + sqrt(n).
    """
    i = cuda.grid(1)
    if i >= new.number * new.k_padded:
        return
    at = new.first * new.k_padded + i
    x = load_factor(factors, at)
    sign = _F1 if x > _F0 else (-_F1 if x < _F0 else _F0)
    z[at] = -(x * scale + sign * l1) if i % new.k_padded < new.k else _F0


class CudaTable(RowKeys):
    """The rows of one side of a model on the device.

    Attributes:
        arrays: flat arrays by section name.
        widths, dtypes: elements per row, and their type, by section name.
        history: names of the sections of `history_sections`.
        apart: names of the sections that are initialised and saved for pins one by one: those of
            histories, and the state of optimisers other than AdaGrad.
        live: the other sections as kernels take them.
        step_rows: the rows for the kernels of steps: `live` if the spec's `Method` is plain, else
            `StateRows`.
        initialised: number of rows with initial values on the device.
    """

    def __init__(self, spec: ModelSpec, side: int, device: Device) -> None:
        """Reserves the device addresses of all rows of the spec. `reserve` allocates memory for
        them.
        """
        super().__init__(spec, side)
        state, history = optimizer_sections(spec), history_sections(spec, side)
        sections = {name: each for name, each in row_sections(spec, side).items() if name != "keys"}
        self._device, self.history = device, tuple(history)
        # The kernels of rows process AdaGrad's state together with the factors.
        is_adagrad = spec.optimizer.kind == OptimizerKind.ADAGRAD
        self.apart = (() if is_adagrad else tuple(state)) + self.history
        self.widths = {name: math.prod(each.shape) for name, each in sections.items()}
        self.dtypes = {name: each.dtype for name, each in sections.items()}
        self.arrays: dict[str, Growing] = {
            name: device.growing(self.capacity * width, self.dtypes[name])
            for name, width in self.widths.items()
        }
        unused = device.empty(1, np.float32).argument
        arguments = {name: array.buffer.argument for name, array in self.arrays.items()}
        self.live = DeviceRows(*(arguments.get(name, unused) for name in DeviceRows._fields))
        slots = state_slots(spec) | {"seen": "seen_count"}
        arguments.setdefault("seen_count", device.empty(1, np.uint32).argument)
        state_rows = StateRows(*(arguments.get(slots.get(name, name), unused) for name in StateRows._fields))
        self.step_rows = self.live if Method.of(spec).is_plain else state_rows
        self.initialised = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in all arrays of host and device, without its slot in the key map."""
        return self.keys.itemsize + sum(self._bytes(name, 1) for name in self.arrays)

    @property
    def page_bytes(self) -> int:
        """See `backend.RowTable.page_bytes`."""
        return 0

    def missing(self, rows: int) -> int:
        """Further bytes of device memory that `rows` rows would take."""
        return sum(array.missing(self._bytes(name, rows)) for name, array in self.arrays.items())

    def reserve(self, rows: int) -> bool:
        """Allocates memory for `rows` rows. False if the device has too little.

        Memory that it has allocated stays allocated.
        """
        return all(array.grow(self._bytes(name, rows)) for name, array in self.arrays.items())

    def _bytes(self, name: str, rows: int) -> int:
        return rows * self.widths[name] * self.dtypes[name].itemsize

    def new_rows(self, stop: int, keys_at: int) -> NewRows:
        """The rows from `initialised` to `stop`, for the kernel. `keys_at` is the place of their
        keys.
        """
        spec = self.spec
        adagrad = int("factor_g" in self.arrays)
        return NewRows(
            self.initialised, stop - self.initialised, keys_at, spec.k, spec.k_padded, self.side, adagrad
        )

    def start_apart(self, new: NewRows) -> None:
        """Initialises new rows in the sections of `apart`, because new memory is not zero.

        The factors of the rows are initialised already. It allocates no memory, because it runs
        while a record is being learned.
        """
        start, stop, spec = new.first, new.first + new.number, self.spec
        for name in self.apart:
            rows = self.matrix(name, start, stop)
            if name == "factor_z":
                rates, n = StepRates.of(spec), np.float32(spec.optimizer.initial_g)
                arrays = (self.arrays[section].buffer.argument for section in ("factors", name))
                numbers = rates.beta + root(n), rates.l1
                self._device.launch(livefactor_start_kernel, rows.size, new, *arrays, *numbers)
                continue
            if name == "factor_probe":
                rows[:] = self.matrix("factors", start, stop)
                continue
            rows[:] = 0
            if name not in self.history:
                self.shaped(name, rows)[:] = initial_state(spec, name, _NO_FACTORS)

    def matrix(self, name: str, start: int, stop: int) -> Any:
        """Rows [start, stop) of a section as a device array [stop - start, width], in the stored
        type.
        """
        width = self.widths[name]
        return self.arrays[name].buffer.array[start * width : stop * width].reshape(stop - start, width)

    def shaped(self, name: str, rows: Any) -> Any:
        """Padded rows [n, width] in the shape of the section: without padding, single elements as
        [n].
        """
        if name.startswith("factor"):
            return rows[:, : self.spec.k]
        return rows if self.widths[name] > 1 else rows[:, 0]

    def sections(self, count: int) -> dict[str, np.ndarray]:
        """Copies of the first `count` rows, with the names and shapes of
        `tables.cpu.Table.sections`.
        """
        out = {"keys": self.keys[:count]} | self._empty(count)
        for start in range(0, count, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, count)
            parts = [self.shaped(name, self.matrix(name, start, stop)) for name in self.arrays]
            for name, part in zip(self.arrays, self._device.fetch(parts)(), strict=True):
                out[name][start:stop] = part
        return out

    def _empty(self, count: int) -> dict[str, np.ndarray]:
        return {
            name: np.empty(self.shaped(name, np.broadcast_to(0, (count, width))).shape, self.dtypes[name])
            for name, width in self.widths.items()
        }

    def load_sections(self, sections: dict[str, np.ndarray], count: int) -> None:
        """See `tables.cpu.Table.load_sections`.

        Raises:
            ValueError: names or shapes differ, a key repeats, or the rows do not fit.
            MemoryError: the device has too little memory for the rows.
        """
        if count > self.capacity:
            raise ValueError(f"load_sections: {count} rows, the table holds {self.capacity}")
        keymap = self.map_of(sections, {"keys": self.keys[:count]} | self._empty(count), count)
        if not self.reserve(count):
            raise MemoryError(f"load_sections: the device has too little memory for {count} rows")
        with self._device.working():
            for name in self.arrays:
                for start in range(0, count, BLOCK_ROWS):
                    self._load(name, sections[name], start, min(start + BLOCK_ROWS, count))
        self.keys[:count] = sections["keys"]
        self.keymap, self.allocated, self.initialised = keymap, count, count

    def _load(self, name: str, section: np.ndarray, start: int, stop: int) -> None:
        part = self._device.xp.asarray(np.ascontiguousarray(section[start:stop]))
        rows = self.matrix(name, start, stop)
        # New memory is not zero, and padding must be.
        rows[:] = 0
        self.shaped(name, rows)[:] = part
