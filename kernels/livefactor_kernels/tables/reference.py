"""Tables in plain NumPy: the reference for `tables/cpu.py` and `tables/cuda.py`.

`tables/__init__.py` has the semantics. Narrow factors (`spec.factor_dtype`) are widened to float32
when they are read. The new float32 factors of a step and those of a new row are rounded
stochastically. Each row has a random word, from (revision, number of the micro-batch in the record,
side, row) or from its key. Column j is rounded by the bits of `column_word(word, j)`.
"""

from __future__ import annotations

import math
import sys
import threading

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.narrow import rounded, widened
from livefactor_kernels.numbers.random import (
    INIT_DOMAIN,
    INIT_ROUNDING_DOMAIN,
    ROUNDING_DOMAIN,
    column_word,
    domain_key,
    initial_factor,
    philox,
    rounding_word,
)
from livefactor_kernels.optimizers import StepRates, initial_state, optimizer_sections
from livefactor_kernels.optimizers.reference import step_row
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import (
    ITEMS,
    NO_ROW,
    RINGS,
    USERS,
    check_sections,
    end_to_end,
    row_sections,
    unpadded,
)
from livefactor_kernels.tables.state import GlobalMean


class RowOfKey(dict[int, int]):
    """Row of every key, in row order."""

    @property
    def nbytes(self) -> int:
        """Bytes of the dictionary, without its numbers."""
        return sys.getsizeof(self)


class ReferenceTable:
    """The rows of one side, with the methods of `tables.cpu.Table`. Arrays have the allocated rows.

    Rows are allocated while other rows learn, and new rows replace the arrays by longer ones.
    `lock` prevents that a step writes to a replaced array.
    """

    def __init__(self, spec: ModelSpec, side: int) -> None:
        self.spec, self.side = spec, side
        self.capacity = spec.limits.users_max if side == USERS else spec.limits.items_max
        self.lock = threading.Lock()
        self.keymap = RowOfKey()
        self.keys: np.ndarray
        self.factors: np.ndarray
        self.bias: np.ndarray
        self.factor_probe: np.ndarray
        self.bias_probe: np.ndarray
        self.row_probe: np.ndarray
        self.seen_rows: np.ndarray
        self.seen_values: np.ndarray
        self.seen_weights: np.ndarray
        self.seen_visits: np.ndarray
        self.seen_count: np.ndarray
        self.visits: np.ndarray
        self.last_time: np.ndarray
        self.neighbor_rows: np.ndarray
        self.neighbor_counts: np.ndarray
        self.popularity: np.ndarray
        self.embedding: np.ndarray
        self.described: np.ndarray
        self.bag: np.ndarray
        self.bag_weights: np.ndarray
        self.bagged: np.ndarray
        self.factors_start: np.ndarray
        self.start_events: np.ndarray
        self._resize(0)

    def _resize(self, rows: int) -> None:
        sections = row_sections(self.spec, self.side)
        for name, (dtype, shape) in sections.items():
            array: np.ndarray = np.zeros((rows, *shape), dtype)
            old = getattr(self, name, array[:0])[:rows]
            array[: len(old)] = old
            setattr(self, name, array)
        self.names = tuple(sections)
        self.allocated = rows

    def _initial(self, key: int) -> np.ndarray:
        factors = np.zeros(self.spec.k_padded, np.float32)
        seed = domain_key(self.spec.seed, INIT_DOMAIN)
        for j in range(self.spec.k):
            counter = (
                np.uint64(key & 0xFFFFFFFF),
                np.uint64(key >> 32),
                np.uint64(j // 4),
                np.uint64(self.side),
            )
            factors[j] = initial_factor(philox(*counter, seed)[j % 4], np.float32(self.spec.init_scale))
        rounding_key = domain_key(self.spec.seed, INIT_ROUNDING_DOMAIN)
        return self._rounded(factors, rounding_key, key, step=0, row=0)

    def _rounded(self, factors: np.ndarray, key: np.uint64, revision: int, step: int, row: int) -> np.ndarray:
        """The stored form of a row's float32 factors."""
        word = rounding_word(key, *map(np.uint64, (revision, step, self.side, row)))
        columns = np.arange(self.spec.k_padded, dtype=np.uint64)
        return rounded(self.spec.factor_dtype, factors, column_word(word, columns))

    def read(self, row: int) -> np.ndarray:
        """The factors of a row as float32[k_padded]."""
        return widened(self.factors[row])

    def write(self, row: int, factors: np.ndarray, revision: int, step: int) -> None:
        """Stores the new float32 factors of a row, rounded for micro-batch number `step` of a
        record.
        """
        key = domain_key(self.spec.seed, ROUNDING_DOMAIN)
        self.factors[row] = self._rounded(factors, key, revision, step, row)

    def allocate(self, keys: np.ndarray) -> np.ndarray:
        """See `tables.keys.RowKeys.allocate`."""
        if self.allocated + self.count_new(keys) > self.capacity:
            raise OverflowError(f"table of {self.capacity} rows is full")
        start = self.allocated
        rows = np.array([self.keymap.setdefault(int(key), len(self.keymap)) for key in keys], np.uint32)
        with self.lock:
            self._resize(len(self.keymap))
            for key, row in list(self.keymap.items())[start:]:
                self.keys[row] = key
                self.factors[row] = self._initial(key)
            factors = self.factors[start:, : self.spec.k]
            for name in optimizer_sections(self.spec):
                new = unpadded(name, getattr(self, name)[start:], self.spec.k)
                new[:] = initial_state(self.spec, name, factors)
        return rows

    def reset(self, rows: np.ndarray) -> None:
        """Clears rows uint32[n] (`clearing.py`)."""
        for row in rows.tolist():
            for name in self.names[1:]:
                getattr(self, name)[row] = 0
            self.factors[row] = self._initial(int(self.keys[row]))
            for name in optimizer_sections(self.spec):
                new = unpadded(name, getattr(self, name)[row : row + 1], self.spec.k)
                new[:] = initial_state(self.spec, name, self.factors[row : row + 1, : self.spec.k])

    @property
    def row_bytes(self) -> int:
        """See `tables.cpu.Table.row_bytes`."""
        arrays = [getattr(self, name) for name in self.names]
        return sum(math.prod(array.shape[1:]) * array.itemsize for array in arrays)

    @property
    def page_bytes(self) -> int:
        """See `backend.RowTable.page_bytes`."""
        return 0

    def count_new(self, keys: np.ndarray) -> int:
        """See `tables.keys.RowKeys.count_new`."""
        return len({int(key) for key in keys} - self.keymap.keys())

    def find(self, keys: np.ndarray, published: int) -> np.ndarray:
        """See `tables.keys.RowKeys.find`."""
        rows = [self.keymap.get(int(key), NO_ROW) for key in keys]
        return np.array([row if row < published else NO_ROW for row in rows], np.uint32)

    def sections(self, count: int) -> dict[str, np.ndarray]:
        """See `tables.cpu.Table.sections`."""
        return end_to_end(self.spec, self._views(count))

    def _views(self, count: int) -> dict[str, np.ndarray]:
        return {name: unpadded(name, getattr(self, name)[:count], self.spec.k) for name in self.names}

    def copy(self, count: int) -> dict[str, np.ndarray]:
        """Copies of the first `count` rows of every array, by name, with padding."""
        return {name: getattr(self, name)[:count].copy() for name in self.names}

    def load_sections(self, sections: dict[str, np.ndarray], count: int) -> None:
        """See `tables.cpu.Table.load_sections`."""
        if self.allocated or count > self.capacity:
            raise ValueError("load_sections: the table is not empty, or too small")
        self._resize(count)
        try:
            # The views of the events depend on their numbers.
            self.seen_count = sections.get("seen_count", np.zeros(count, np.uint32)).copy()
            check_sections(self.sections(count), sections)
            self.keymap = RowOfKey({int(key): row for row, key in enumerate(sections["keys"])})
            if len(self.keymap) != count:
                raise ValueError("load_sections: keys repeat")
        except ValueError:
            self.keymap = RowOfKey()
            self._resize(0)
            raise
        for name, view in self._views(count).items():
            if self.spec.history.paged and name in RINGS:
                view[np.arange(view.shape[1]) < self.seen_count[:, None]] = sections[name]
            else:
                view[:] = sections[name]


class ReferenceTables:
    """The state of a rule of the reference: rows of both sides, global mean, and rates."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.rates = StepRates.of(spec)
        self.users, self.items = ReferenceTable(spec, USERS), ReferenceTable(spec, ITEMS)
        self.mean = GlobalMean()

    def step(
        self, side: int, row: int, gradient: np.ndarray, bias: np.float32 | None, events: int, revision: int = 0,
        number: int = 0,
    ) -> None:  # fmt: skip
        """Steps a row by the gradient float32[k_padded] of its factors and that of its bias.

        `events` is the number of events with the row. A bias gradient of None keeps the bias.
        """
        table, scale = (self.users, self.items)[side], scalar.hot_scale(self.rates.hot_events, events)
        factors = step_row(
            self.spec, self.rates, table, row, gradient * scale, None if bias is None else bias * scale
        )
        table.write(row, factors, revision, number)
