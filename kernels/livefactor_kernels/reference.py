"""The semantics in plain NumPy, written to be read: the judge of every other backend, to the bit.

Each rule learns in a file of its own (`sgd/reference.py`, `solve/reference.py`, `softmax/reference.py`); here are the
tables, and the step of a row by its gradient.

Narrow factors (`spec.factor_dtype`) are widened to float32 when they are read. The new float32 factors of a
row's step, and those of a new row, are rounded stochastically: the row has a random word, from (revision, number
of the micro-batch within the record, side, row) or from its key, and column j rounds by the bits of
`column_word(word, j)`.

A pin (`ReferencePin`) is a copy of all rows. So a server can run on this backend too: slowly, for a look at
what the others must answer.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

import numpy as np

from livefactor_kernels.history import row_sections
from livefactor_kernels.history.reference import Recorder
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.narrow import array_dtype, rounded, widened
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
from livefactor_kernels.numbers.sums import dot
from livefactor_kernels.optimizers import StepRates, initial_state, optimizer_sections
from livefactor_kernels.optimizers.reference import step_row
from livefactor_kernels.replay.reference import Reservoir
from livefactor_kernels.scoring.cpu import check_top_k
from livefactor_kernels.sgd.reference import Sgd
from livefactor_kernels.sgd.reference_adaptive import AdaptiveSgd
from livefactor_kernels.softmax.reference import Softmax
from livefactor_kernels.solve.reference import Solver
from livefactor_kernels.spec.model import ModelSpec, Rule
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS, check_sections, read_rows, reserve, unpadded
from livefactor_kernels.update import Update


class RowOfKey(dict[int, int]):
    """Row of every key, in row order."""

    @property
    def nbytes(self) -> int:
        """Bytes of the dictionary, its numbers not counted."""
        return sys.getsizeof(self)


class ReferenceTable:
    """Rows of one side; the same verbs and attributes as `tables.Table`, arrays as long as the rows in
    use.

    Rows are allocated while others of them learn, and new rows make longer arrays: `lock` keeps a step from
    going to an array that has just been replaced.
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
        self._resize(0)

    def _resize(self, rows: int) -> None:
        kp = self.spec.k_padded
        shapes: dict[str, tuple[tuple[int, ...], type | np.dtype | str]] = {
            "keys": ((rows,), np.uint64),
            "factors": ((rows, kp), array_dtype(self.spec.factor_dtype)),
            "bias": ((rows,), np.float32),
        }
        for name, wide in optimizer_sections(self.spec).items():
            shapes[name] = ((rows, *wide), np.float32)
        for name, (width, kind) in row_sections(self.spec, self.side).items():
            shapes[name] = ((rows, *width), kind)
        for name, (shape, dtype) in shapes.items():
            array: np.ndarray = np.zeros(shape, dtype)
            old = getattr(self, name, array[:0])[:rows]
            array[: len(old)] = old
            setattr(self, name, array)
        self.names = tuple(shapes)
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
        """A row's float32 factors as they are stored."""
        word = rounding_word(key, *map(np.uint64, (revision, step, self.side, row)))
        columns = np.arange(self.spec.k_padded, dtype=np.uint64)
        return rounded(self.spec.factor_dtype, factors, column_word(word, columns))

    def read(self, row: int) -> np.ndarray:
        """A row's factors as float32[k_padded]."""
        return widened(self.factors[row])

    def write(self, row: int, factors: np.ndarray, revision: int, step: int) -> None:
        """Store a row's new float32 factors, rounded as those of micro-batch number `step` of a record."""
        key = domain_key(self.spec.seed, ROUNDING_DOMAIN)
        self.factors[row] = self._rounded(factors, key, revision, step, row)

    def allocate(self, keys: np.ndarray) -> np.ndarray:
        """As `tables.Table.allocate`."""
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

    @property
    def row_bytes(self) -> int:
        """As `tables.Table.row_bytes`."""
        arrays = [getattr(self, name) for name in self.names]
        return sum(math.prod(array.shape[1:]) * array.itemsize for array in arrays)

    def count_new(self, keys: np.ndarray) -> int:
        """As `tables.Table.count_new`."""
        return len({int(key) for key in keys} - self.keymap.keys())

    def find(self, keys: np.ndarray, published: int) -> np.ndarray:
        """As `tables.Table.find`."""
        rows = [self.keymap.get(int(key), NO_ROW) for key in keys]
        return np.array([row if row < published else NO_ROW for row in rows], np.uint32)

    def sections(self, count: int) -> dict[str, np.ndarray]:
        """As `tables.Table.sections`."""
        return {name: unpadded(name, getattr(self, name)[:count], self.spec.k) for name in self.names}

    def copy(self, count: int) -> dict[str, np.ndarray]:
        """Copies of the first `count` rows of every array, padded as it is, by name."""
        return {name: getattr(self, name)[:count].copy() for name in self.names}

    def load_sections(self, sections: dict[str, np.ndarray], count: int) -> None:
        """As `tables.Table.load_sections`."""
        if self.allocated or count > self.capacity:
            raise ValueError("load_sections: the table is not empty, or too small")
        self._resize(count)
        try:
            check_sections(self.sections(count), sections)
            self.keymap = RowOfKey({int(key): row for row, key in enumerate(sections["keys"])})
            if len(self.keymap) != count:
                raise ValueError("load_sections: keys repeat")
        except ValueError:
            self.keymap = RowOfKey()
            self._resize(0)
            raise
        for name, view in self.sections(count).items():
            view[:] = sections[name]


def gather(factors: np.ndarray, bias: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(factors[rows], bias[rows]), zeros where a row is `NO_ROW`; memory aligned as `Backend.gather` promises."""
    known = rows != NO_ROW
    out, out_bias = reserve((len(rows), factors.shape[1]), np.float32), np.zeros(len(rows), np.float32)
    out[known], out_bias[known] = widened(factors[rows[known]]), bias[rows[known]]
    return out, out_bias


class ReferencePin:
    """A model's rows as they were, copied (`backend.Pin`)."""

    def __init__(self, model: ReferenceModel) -> None:
        self.revision = model.revision
        self.counts = model.published
        self.mean = model.mean
        self.mean_state = model.mean_sum, model.mean_count
        self.gram = model.gram.copy()
        self._k = model.spec.k
        self._rows = model.users.copy(self.counts[USERS]), model.items.copy(self.counts[ITEMS])

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `backend.Pin.gather`."""
        return gather(self._rows[side]["factors"], self._rows[side]["bias"], rows)

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """As `backend.Pin.read`."""
        return read_rows(self._rows[side], rows, names, self._k)

    def top_k(
        self, user_factors: np.ndarray, user_bias: np.ndarray, k: int, common: np.ndarray | None = None,
        own: np.ndarray | None = None, own_offsets: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """As `backend.Pin.top_k`: score every item, leave out what is excluded, sort, take k."""
        items = self._rows[ITEMS]
        item_factors = widened(items["factors"])
        own, ends = check_top_k(user_factors, user_bias, item_factors.shape[1], k, own, own_offsets)
        offsets, rows, scores = [0], np.empty(0, np.uint32), np.empty(0, np.float32)
        for user, (x, bias) in enumerate(zip(user_factors, user_bias, strict=True)):
            products = dot(x[:, None], item_factors.T)
            user_scores = scalar.score(self.mean, bias, items["bias"], products)
            left = np.ones(len(user_scores), bool)
            left[own[int(ends[user]) : int(ends[user + 1])]] = False
            if common is not None:
                left[common] = False
            found = np.flatnonzero(left).astype(np.uint32)
            best = found[np.lexsort((items["keys"][found], -user_scores[found]))][:k]
            rows, scores = np.append(rows, best), np.append(scores, user_scores[best])
            offsets.append(len(rows))
        return rows, scores, np.array(offsets, np.int64)

    def read_rows(self, side: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """As `backend.Pin.read_rows`."""
        if not 0 <= start <= stop <= self.counts[side]:
            raise IndexError(f"rows {start}..{stop}: expected within 0..{self.counts[side]}")
        parts = {name: array[start:stop] for name, array in self._rows[side].items()}
        return {name: unpadded(name, part, self._k).copy() for name, part in parts.items()}

    def release(self) -> None:
        """Forget the copies."""
        self._rows = {}, {}

    def __enter__(self) -> ReferencePin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class ReferenceModel:
    """A model in plain NumPy; the same verbs as `cpu.CpuModel`."""

    def __init__(self, spec: ModelSpec) -> None:
        """An empty model of a checked spec, at revision 0."""
        self.spec = spec
        self.rates = StepRates.of(spec)
        self.users, self.items = ReferenceTable(spec, USERS), ReferenceTable(spec, ITEMS)
        self.revision = 0
        self.published = (0, 0)
        self.mean_sum = 0
        self.mean_count = 0
        self.recorder = Recorder(spec, self.users, self.items) if spec.history.users else None
        self._reservoir = Reservoir(spec) if spec.replay.size else None
        rules: dict[Rule, type[Sgd | Solver | Softmax]] = {
            Rule.SGD: Sgd,
            Rule.SOLVE: Solver,
            Rule.SOFTMAX: Softmax,
        }
        self._rule = AdaptiveSgd(self) if spec.adaptive_rate.window else rules[spec.rule](self)

    @property
    def mean(self) -> np.float32:
        """Global mean of the values seen (squared loss), else 0."""
        return np.float32(scalar.mean_of(self.mean_sum, self.mean_count))

    @property
    def gram(self) -> np.ndarray:
        """As `cpu.CpuModel.gram`."""
        return self._rule.gram if isinstance(self._rule, Solver) else np.zeros((2, 0, 0))

    def set_gram(self, gram: np.ndarray) -> None:
        """Restore `gram`."""
        self.gram[:] = gram

    @property
    def reservoir(self) -> dict[str, np.ndarray]:
        """As `cpu.CpuModel.reservoir`."""
        return {} if self._reservoir is None else self._reservoir.columns

    def set_reservoir(self, columns: Mapping[str, np.ndarray], events: int) -> None:
        """Restore `reservoir`, after `events` events."""
        if self._reservoir is not None:
            self._reservoir.load(columns, events)

    @property
    def rate_state(self) -> np.ndarray:
        """As `cpu.CpuModel.rate_state`."""
        return self._rule.state if isinstance(self._rule, AdaptiveSgd) else np.empty(0)

    def set_rate_state(self, state: np.ndarray) -> None:
        """Restore `rate_state`."""
        if isinstance(self._rule, AdaptiveSgd):
            self._rule.load(state)

    def set_mean(self, total: int, count: int) -> None:
        """Restore the mean's fixed-point sum and its number of events."""
        self.mean_sum, self.mean_count = total, count

    def load_sections(self, side: int, sections: dict[str, np.ndarray], count: int) -> None:
        """Restore an empty table of `count` rows (`tables.Table.load_sections`)."""
        (self.users, self.items)[side].load_sections(sections, count)

    def advance(self, revision: int, user_count: int | None = None, item_count: int | None = None) -> None:
        """Set the revision after a record that changes no rows; counts, if given, become the published
        ones."""
        users, items = self.published
        self.published = (
            users if user_count is None else user_count,
            items if item_count is None else item_count,
        )
        self.revision = revision

    def reserve(self, user_rows: int, item_rows: int) -> bool:
        """True: NumPy is given what it asks for."""
        return True

    def wait_for_room(self, update_rows: int) -> None:
        """Return at once: pins are copies already, and no update adds to them."""

    def sections(self, side: int, count: int) -> dict[str, np.ndarray]:
        """As `tables.Table.sections`."""
        return (self.users, self.items)[side].sections(count)

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `backend.Backend.gather`."""
        table = (self.users, self.items)[side]
        return gather(table.factors, table.bias, rows)

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """As `backend.Backend.read`."""
        table = (self.users, self.items)[side]
        return read_rows({name: getattr(table, name) for name in names}, rows, names, self.spec.k)

    def pin(self) -> ReferencePin:
        """Copy everything published; no `apply` may be running."""
        return ReferencePin(self)

    def apply_all(self, updates: Sequence[Update]) -> None:
        """Learn from consecutive interactions records."""
        for update in updates:
            self.apply(update)

    def apply(self, update: Update) -> None:
        """Learn from one interactions record."""
        update.check()
        with self.users.lock, self.items.lock:
            self._rule.learn(update if self._reservoir is None else self._reservoir.extended(update))
            if self.recorder is not None and not self._rule.records:
                self.recorder.record(update, 0, update.user_rows.size)
        if self._reservoir is not None:
            self._reservoir.keep(update)
        self.advance(update.revision, update.user_count, update.item_count)

    def step(
        self, side: int, row: int, gradient: np.ndarray, bias: np.float32 | None, events: int, revision: int = 0,
        number: int = 0,
    ) -> None:  # fmt: skip
        """Step a row that `events` events name by its gradient float32[k_padded] and its bias's (None: it stays)."""
        table, scale = (self.users, self.items)[side], scalar.hot_scale(self.rates.hot_events, events)
        factors = step_row(
            self.spec, self.rates, table, row, gradient * scale, None if bias is None else bias * scale
        )
        table.write(row, factors, revision, number)
