"""Gradient steps in plain NumPy: the judge of `sgd/cpu.py` and `sgd/cuda.py` (semantics: `sgd/__init__.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import scalar
from ..spec import Loss
from ..sums import chunked_sum, dot
from ..tables import ITEMS, USERS
from ..update import Update, draw_negatives

if TYPE_CHECKING:
    from ..reference import ReferenceModel, ReferenceTable


class Occurrence(NamedTuple):
    """One event's contribution to one row: to its factors float32[k_padded], and to its bias (None: not
    touched)."""

    side: int
    row: int
    factors: np.ndarray
    bias: np.float32 | None


class Sgd:
    """Learns from updates."""

    records = False

    def __init__(self, model: ReferenceModel) -> None:
        self._model, self._spec, self._rates = model, model.spec, model.rates
        self._users, self._items = model.users, model.items
        self._tables = model.users, model.items

    def learn(self, update: Update) -> None:
        """Learn from one record."""
        n = update.user_rows.size
        negatives = draw_negatives(self._spec, update)
        ones = np.ones(n, np.float32)
        values = ones if update.values is None else update.values
        weights = ones if update.weights is None else update.weights
        for start in range(0, n, self._spec.micro_batch):
            stop = min(start + self._spec.micro_batch, n)
            grouped: dict[tuple[int, int], list[tuple[int, Occurrence]]] = {}
            for t in range(start, stop):
                rows = int(update.user_rows[t]), int(update.item_rows[t]), [int(row) for row in negatives[t]]
                for occurrence in self._occurrences(*rows, values[t], weights[t]):
                    grouped.setdefault((occurrence.side, occurrence.row), []).append((t, occurrence))
            for (side, row), occurrences in grouped.items():
                number = start // self._spec.micro_batch
                self._step(self._tables[side], row, occurrences, update.revision, number)
            if self._spec.loss == Loss.SQUARED:
                fresh = values[start : min(stop, update.fresh)]
                self._model.mean_sum += sum(int(scalar.fixed_point(value)) for value in fresh)
                self._model.mean_count += len(fresh)

    def _score(self, user: int, item: int) -> Any:
        x, y = self._users.read(user), self._items.read(item)
        return scalar.score(self._model.mean, self._users.bias[user], self._items.bias[item], dot(x, y))

    def _occurrences(
        self, user: int, positive: int, negatives: list[int], value: np.float32, weight: np.float32
    ) -> Iterator[Occurrence]:
        """Contributions of one event in order of slot: the positive is slot 0, then the negatives as
        drawn."""
        if self._spec.loss == Loss.BPR:
            yield from self._bpr_occurrences(user, positive, negatives, weight)
            return
        if self._spec.loss == Loss.LOGISTIC and value == 0.0:
            negatives = []  # an explicit negative draws none
        error = scalar.squared_error if self._spec.loss == Loss.SQUARED else scalar.logistic_error
        for slot, item in enumerate([positive, *negatives]):
            target = value if slot == 0 else np.float32(0.0)
            e = error(self._score(user, item), target, weight, self._rates.error_max)
            yield self._pull(USERS, user, e, self._items.read(item))
            yield self._pull(ITEMS, item, e, self._users.read(user))

    def _bpr_occurrences(
        self, user: int, positive: int, negatives: list[int], weight: np.float32
    ) -> Iterator[Occurrence]:
        x, y = self._users.read(user), self._items.read(positive)
        s = self._score(user, positive)
        for item in negatives:
            e = scalar.bpr_error(s, self._score(user, item), weight, self._rates.error_max)
            # The user's bias cancels in the difference of the scores: no gradient, no L2, no step.
            yield self._pull(USERS, user, e, y - self._items.read(item))._replace(bias=None)
            yield self._pull(ITEMS, positive, e, x)
            yield self._pull(ITEMS, item, -e, x)

    def _pull(self, side: int, row: int, e: np.float32, other: np.ndarray) -> Occurrence:
        table = self._tables[side]
        factors = scalar.pull(e, other, self._rates.l2, table.read(row))
        return Occurrence(side, row, factors, scalar.bias_pull(e, self._rates.bias_l2, table.bias[row]))

    def _step(
        self,
        table: ReferenceTable,
        row: int,
        occurrences: list[tuple[int, Occurrence]],
        revision: int,
        number: int,
    ) -> None:
        """Step a row by its occurrences in micro-batch `number` of the record `revision`."""
        gradient = chunked_sum([o.factors for _, o in occurrences])
        biases = [o.bias for _, o in occurrences]
        bias = None if biases[0] is None else chunked_sum(biases)
        self._model.step(table.side, row, gradient, bias, len({t for t, _ in occurrences}), revision, number)
