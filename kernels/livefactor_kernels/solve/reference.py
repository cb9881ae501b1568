"""Rule SOLVE in plain NumPy: the reference for `solve/cpu.py` (semantics: `solve/__init__.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from livefactor_kernels.history.reference import Recorder
from livefactor_kernels.numbers.lanes import clamp
from livefactor_kernels.solve import GRAM, RIDGE_MIN, SolveRates, Unobserved, begin_rows
from livefactor_kernels.solve.prior.rows import PriorRows
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.clearing import clear_gram
from livefactor_kernels.tables.reference import ReferenceTable, ReferenceTables
from livefactor_kernels.tables.start import Begun, Start
from livefactor_kernels.update import Update, UpdateRun


class System(NamedTuple):
    """The system of equations of a row. m is k, or k + 1 with a bias.

    Attributes:
        y: rows of the events, float32[n, m].
        weights, targets: float32[n].
        everywhere: a0 G, float32[m, m].
        others: N.
        towards: z of `solve/prior/__init__.py`, float32[m]; None without a prior.
        start: x0 float32[m] and s of a row with a start, or p and s of a user with a bag
            (`solve/features/__init__.py`); None for another row.
    """

    y: np.ndarray
    weights: np.ndarray
    targets: np.ndarray
    everywhere: np.ndarray
    others: int
    towards: np.ndarray | None = None
    start: tuple[np.ndarray, np.float32] | None = None


def solve_row(x: np.ndarray, system: System, rates: SolveRates, sweeps: int) -> np.ndarray:
    """The row x float32[m] after `sweeps` sweeps from its present values."""
    total, y, weights = rates.ridge_events, system.y, system.weights
    for weight in weights:
        total = total + weight
    everything = total + rates.unobserved * np.float32(system.others)
    ridge = np.full(len(x), rates.l2 * everything, np.float32)
    if rates.has_bias:
        ridge[-1] = rates.bias_l2 * total
    a, b = system.everywhere.copy(), np.zeros(len(x), np.float32)
    diagonal = np.diag_indices_from(a)
    ridge = np.maximum(ridge, RIDGE_MIN)
    a[diagonal] = a[diagonal] + ridge
    for j in range(len(y)):
        product = weights[j] * y[j]
        a = a + product[:, None] * y[j]
        b = b + product * system.targets[j]
    towards = system.towards
    if system.start is not None:
        start, events = system.start
        towards = (events / (events + total)) * start
    if towards is not None:
        b = b + _pull(system.everywhere, ridge, towards)
    a = np.tril(a) + np.tril(a, -1).T
    x, r = x.copy(), b
    for p in range(len(x)):
        r = r - x[p] * a[p]
    for _ in range(sweeps):
        for p in range(len(x)):
            new = clamp(x[p] + r[p] / a[p, p], rates.factor_max)
            r = r - (new - x[p]) * a[p]
            x[p] = new
    return x


def _pull(everywhere: np.ndarray, ridge: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """M z of `solve/prior/__init__.py`, float32[m]."""
    pull: np.ndarray = np.zeros(len(towards), np.float32)
    for q in range(len(towards)):
        pull = pull + everywhere[q] * towards[q]
    return np.asarray(pull + ridge * towards)


def start_of(table: ReferenceTable, row: int) -> tuple[np.ndarray, np.float32] | None:
    """`System.start` of a row."""
    if "start_events" not in table.names or not table.start_events[row]:
        return None
    return table.factors_start[row, : table.spec.k], np.abs(table.start_events[row])


def _is_in_gram(table: ReferenceTable, row: int, before: int) -> bool:
    """Whether a row with `before` events before a micro-batch was part of the Gram matrix."""
    return before > 0 or ("start_events" in table.names and bool(table.start_events[row] > 0))


class Solver:
    """Learns from records.

    Attributes:
        gram: Gram matrices of users and items, float64[2, k + 1, k + 1].
    """

    records = True

    def __init__(self, model: ReferenceTables, recorder: Recorder, prior: PriorRows | None) -> None:
        self._prior = prior
        self._model, self._spec, self._rates = model, model.spec, SolveRates.of(model.spec)
        self._recorder, self._unobserved = recorder, Unobserved(model.spec)
        self.gram = np.zeros((2, model.spec.k + 1, model.spec.k + 1))

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`."""
        return {GRAM: self.gram.reshape(-1), **self._unobserved.sections()}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`."""
        self.gram[:] = np.reshape(sections[GRAM], self.gram.shape)
        self._unobserved.load(sections)

    def begin(self, begun: Begun, start: Start) -> None:
        """Follows a record of factors."""
        begin_rows(self.gram, self._unobserved, begun, start)

    def clear(self, side: int, removed: np.ndarray) -> None:
        """Follows a removal of rows (`tables/clearing.py`)."""
        if self._unobserved.weighs:
            clear_gram(self.gram, side, removed)

    def learn(self, update: Update) -> None:
        """Learns from one record."""
        size = self._spec.micro_batch
        if self._prior is not None:
            self._prior.begin(update.user_rows.size, update.item_count)
            self._prior.map_cold()
        weight = self._unobserved.of(UpdateRun.of([update]))[0]
        self._rates = self._rates._replace(unobserved=weight)
        for start in range(0, update.user_rows.size, size):
            self._micro_batch(update, start, min(start + size, update.user_rows.size))

    def _micro_batch(self, update: Update, start: int, stop: int) -> None:
        model, fresh = self._model, min(max(start, update.fresh), stop)
        self._recorder.record(update, start, fresh)
        for side, rows, others in (
            (USERS, update.user_rows[start:stop], update.item_count),
            (ITEMS, update.item_rows[start:stop], update.user_count),
        ):
            table = (model.users, model.items)[side]
            changes, solved = [], []
            for row in dict.fromkeys(rows.tolist()):
                after = int(table.seen_count[row])
                before = after - int((rows[: fresh - start] == row).sum())
                if side == USERS or self._is_due(before, after):
                    old = np.append(self._factors(table, row), 1.0) * _is_in_gram(table, row, before)
                    self._solve(side, row, others)
                    changes.append((old, np.append(self._factors(table, row), 1.0)))
                    solved.append(row)
            if self._prior is not None and side == ITEMS and solved:
                before_factors = np.array([old[:-1] for old, _ in changes], np.float32)
                self._prior.solved(np.array(solved, np.uint32), before_factors)
            for old, new in changes if self._rates.unobserved > 0 else ():
                self.gram[side] = (self.gram[side] + np.outer(new, new)) - np.outer(old, old)
        if self._rates.has_bias and update.values is not None:
            model.mean.add(update.values[start:fresh])

    def _is_due(self, before: int, after: int) -> bool:
        """Whether an item is solved that has `before` events before a micro-batch and `after` after
        it.
        """
        period = self._spec.solve.item_events
        return before == after or before < period or before // period < after // period

    def _factors(self, table: ReferenceTable, row: int) -> np.ndarray:
        return table.factors[row, : self._spec.k].copy()

    def _solve(self, side: int, row: int, others: int) -> None:
        model, rates, k = self._model, self._rates, self._spec.k
        own, other = (model.users, model.items) if side == USERS else (model.items, model.users)
        events = slice(min(int(own.seen_count[row]), own.seen_rows.shape[1]))
        rows, values, weights = (
            getattr(own, name)[row, events] for name in ("seen_rows", "seen_values", "seen_weights")
        )
        x, y = self._factors(own, row), other.factors[rows, :k]
        everywhere = (rates.unobserved * self.gram[1 - side, :-1, :-1]).astype(np.float32)
        targets = (values > 0).astype(np.float32)
        if rates.has_bias:
            # The bias is one more coordinate, which is 1 in every other row.
            targets = (values - model.mean.value) - other.bias[rows]
            x, y = np.append(x, own.bias[row]), np.pad(y, ((0, 0), (0, 1)), constant_values=1.0)
            everywhere = np.pad(everywhere, (0, 1))
        towards = None
        if self._prior is not None and side == ITEMS:
            towards = self._prior.towards(np.array([row], np.uint32))[0]
        system = System(y, weights, targets, everywhere, others, towards, start_of(own, row))
        new = solve_row(x, system, rates, int(rates.sweeps))
        own.factors[row, :k] = new[:k]
        if rates.has_bias:
            own.bias[row] = new[-1]
