"""The semantics in plain NumPy, written to be read: the judge of every other backend, to the bit.

An update is cut into micro-batches. In each, every event contributes gradients taken from the state at the
micro-batch's start (`_occurrences`); the contributions to a row are summed in order of (event, slot), in
chunks of 32 (`chunked_sum`), scaled down if the row is hot, and the row steps once (`_step`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from . import scalar
from .lanes import clamp
from .random import INIT_DOMAIN, domain_key, initial_factor, philox
from .spec import LANES, Loss, ModelSpec, OptimizerKind
from .tables import ITEMS, NO_ROW, USERS, check_sections
from .update import Rates, Update, draw_negatives

CHUNK = 32
"""Occurrences of a row that are added up left to right before their sum joins the row's."""


class Occurrence(NamedTuple):
    """One event's contribution to one row: to its factors float32[k_padded], and to its bias (None: not
    touched)."""

    side: int
    row: int
    factors: np.ndarray
    bias: np.float32 | None


class ReferenceTable:
    """Rows of one side; the same verbs and attributes as `tables.Table`, arrays as long as the rows in
    use."""

    def __init__(self, spec: ModelSpec, side: int) -> None:
        self.spec, self.side = spec, side
        self.capacity = spec.limits.users_max if side == USERS else spec.limits.items_max
        self.rows_of: dict[int, int] = {}
        self.keys: np.ndarray
        self.factors: np.ndarray
        self.bias: np.ndarray
        self.factor_g: np.ndarray
        self.bias_g: np.ndarray
        self._resize(0)

    def _resize(self, rows: int) -> None:
        kp = self.spec.k_padded
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "keys": ((rows,), np.uint64),
            "factors": ((rows, kp), np.float32),
            "bias": ((rows,), np.float32),
        }
        if self.spec.optimizer.kind == OptimizerKind.ADAGRAD:
            shapes |= {"factor_g": ((rows, kp), np.float32), "bias_g": ((rows,), np.float32)}
        for name, (shape, dtype) in shapes.items():
            array: np.ndarray = np.zeros(shape, dtype)
            old = getattr(self, name, array[:0])[:rows]
            array[: len(old)] = old
            setattr(self, name, array)
        self._names = tuple(shapes)
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
        return factors

    def allocate(self, keys: np.ndarray) -> np.ndarray:
        """As `tables.Table.allocate`."""
        if self.allocated + self.count_new(keys) > self.capacity:
            raise OverflowError(f"table of {self.capacity} rows is full")
        start = self.allocated
        rows = np.array([self.rows_of.setdefault(int(key), len(self.rows_of)) for key in keys], np.uint32)
        self._resize(len(self.rows_of))
        for key, row in list(self.rows_of.items())[start:]:
            self.keys[row] = key
            self.factors[row] = self._initial(key)
            if self.spec.optimizer.kind == OptimizerKind.ADAGRAD:
                self.factor_g[row, : self.spec.k] = self.spec.optimizer.initial_g
                self.bias_g[row] = self.spec.optimizer.initial_g
        return rows

    def count_new(self, keys: np.ndarray) -> int:
        """As `tables.Table.count_new`."""
        return len({int(key) for key in keys} - self.rows_of.keys())

    def find(self, keys: np.ndarray, published: int) -> np.ndarray:
        """As `tables.Table.find`."""
        rows = [self.rows_of.get(int(key), NO_ROW) for key in keys]
        return np.array([row if row < published else NO_ROW for row in rows], np.uint32)

    def sections(self, count: int) -> dict[str, np.ndarray]:
        """As `tables.Table.sections`."""
        views = {name: getattr(self, name)[:count] for name in self._names}
        return {name: view if view.ndim == 1 else view[:, : self.spec.k] for name, view in views.items()}

    def load_sections(self, sections: dict[str, np.ndarray], count: int) -> None:
        """As `tables.Table.load_sections`."""
        if self.allocated or count > self.capacity:
            raise ValueError("load_sections: the table is not empty, or too small")
        self._resize(count)
        try:
            check_sections(self.sections(count), sections)
            self.rows_of = {int(key): row for row, key in enumerate(sections["keys"])}
            if len(self.rows_of) != count:
                raise ValueError("load_sections: keys repeat")
        except ValueError:
            self.rows_of = {}
            self._resize(0)
            raise
        for name, view in self.sections(count).items():
            view[:] = sections[name]


def dot(x: np.ndarray, y: np.ndarray) -> Any:
    """Dot product of two float32[k_padded] in 16 lanes: each lane left to right, then a tree over the
    lanes."""
    lanes = x[:LANES] * y[:LANES]
    for start in range(LANES, len(x), LANES):
        lanes = lanes + x[start : start + LANES] * y[start : start + LANES]
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def chunked_sum(terms: list[Any]) -> Any:
    """Sum of arrays or float32 in their order: chunks of 32 left to right from their first term, then the
    chunks likewise."""
    sums = []
    for start in range(0, len(terms), CHUNK):
        total = terms[start]
        for term in terms[start + 1 : start + CHUNK]:
            total = total + term
        sums.append(total)
    return sums[0] if len(sums) == 1 else _left_to_right(sums)


def _left_to_right(terms: list[Any]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class ReferenceModel:
    """A model in plain NumPy; the same verbs as `cpu.CpuModel`."""

    def __init__(self, spec: ModelSpec) -> None:
        """An empty model of a checked spec, at revision 0."""
        self.spec = spec
        self.rates = Rates.of(spec)
        self.users, self.items = ReferenceTable(spec, USERS), ReferenceTable(spec, ITEMS)
        self.revision = 0
        self.published = (0, 0)
        self.mean_sum = 0
        self.mean_count = 0

    @property
    def mean(self) -> np.float32:
        """Global mean of the values seen (squared loss), else 0."""
        return np.float32(scalar.mean_of(self.mean_sum, self.mean_count))

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

    def apply(self, update: Update) -> None:
        """Learn from one interactions record."""
        n = update.check().user_rows.size
        negatives = draw_negatives(self.spec, update)
        ones = np.ones(n, np.float32)
        values = ones if update.values is None else update.values
        weights = ones if update.weights is None else update.weights
        for start in range(0, n, self.spec.micro_batch):
            stop = min(start + self.spec.micro_batch, n)
            grouped: dict[tuple[int, int], list[tuple[int, Occurrence]]] = {}
            for t in range(start, stop):
                rows = int(update.user_rows[t]), int(update.item_rows[t]), [int(row) for row in negatives[t]]
                for occurrence in self._occurrences(*rows, values[t], weights[t]):
                    grouped.setdefault((occurrence.side, occurrence.row), []).append((t, occurrence))
            for (side, row), occurrences in grouped.items():
                self._step((self.users, self.items)[side], row, occurrences)
            if self.spec.loss == Loss.SQUARED:
                self.mean_sum += sum(int(scalar.fixed_point(value)) for value in values[start:stop])
                self.mean_count += stop - start
        self.advance(update.revision, update.user_count, update.item_count)

    def _score(self, user: int, item: int) -> Any:
        x, y = self.users.factors[user], self.items.factors[item]
        return scalar.score(self.mean, self.users.bias[user], self.items.bias[item], dot(x, y))

    def _occurrences(
        self, user: int, positive: int, negatives: list[int], value: np.float32, weight: np.float32
    ) -> Iterator[Occurrence]:
        """Contributions of one event in order of slot: the positive is slot 0, then the negatives as
        drawn."""
        if self.spec.loss == Loss.BPR:
            yield from self._bpr_occurrences(user, positive, negatives, weight)
            return
        if self.spec.loss == Loss.LOGISTIC and value == 0.0:
            negatives = []  # an explicit negative draws none
        error = scalar.squared_error if self.spec.loss == Loss.SQUARED else scalar.logistic_error
        for slot, item in enumerate([positive, *negatives]):
            target = value if slot == 0 else np.float32(0.0)
            e = error(self._score(user, item), target, weight, self.rates.error_max)
            yield self._pull(USERS, user, e, self.items.factors[item])
            yield self._pull(ITEMS, item, e, self.users.factors[user])

    def _bpr_occurrences(
        self, user: int, positive: int, negatives: list[int], weight: np.float32
    ) -> Iterator[Occurrence]:
        x, y = self.users.factors[user], self.items.factors[positive]
        s = self._score(user, positive)
        for item in negatives:
            e = scalar.bpr_error(s, self._score(user, item), weight, self.rates.error_max)
            # The user's bias cancels in the difference of the scores: no gradient, no L2, no step.
            yield self._pull(USERS, user, e, y - self.items.factors[item])._replace(bias=None)
            yield self._pull(ITEMS, positive, e, x)
            yield self._pull(ITEMS, item, -e, x)

    def _pull(self, side: int, row: int, e: np.float32, other: np.ndarray) -> Occurrence:
        table = (self.users, self.items)[side]
        factors = scalar.pull(e, other, self.rates.l2, table.factors[row])
        return Occurrence(side, row, factors, scalar.bias_pull(e, self.rates.bias_l2, table.bias[row]))

    def _step(self, table: ReferenceTable, row: int, occurrences: list[tuple[int, Occurrence]]) -> None:
        events = len({t for t, _ in occurrences})
        scale = scalar.hot_scale(self.rates.hot_events, events)
        gradient = chunked_sum([o.factors for _, o in occurrences]) * scale
        self._step_one(table, "factors", "factor_g", row, gradient, self.rates.rate)
        biases = [o.bias for _, o in occurrences]
        if biases[0] is not None:
            self._step_one(table, "bias", "bias_g", row, chunked_sum(biases) * scale, self.rates.bias_rate)

    def _step_one(
        self, table: ReferenceTable, name: str, g_name: str, row: int, gradient: np.ndarray, rate: np.float32
    ) -> None:
        x, rates = getattr(table, name), self.rates
        if self.spec.optimizer.kind == OptimizerKind.SGD:
            x[row] = scalar.sgd_step(x[row], gradient, rate, rates.factor_max)
            return
        g = getattr(table, g_name)
        total = scalar.adagrad_sum(g[row], gradient)
        x[row] = scalar.adagrad_step(x[row], gradient, total, rate, rates.eps, rates.factor_max)
        g[row] = clamp(total, rates.g_max)
