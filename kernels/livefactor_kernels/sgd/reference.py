"""Rule SGD in plain NumPy: the reference for `sgd/cpu.py` and `sgd/cuda.py`.

`sgd/__init__.py` has the semantics.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.random import column_word, dropout_word
from livefactor_kernels.numbers.sums import chunked_sum, dot
from livefactor_kernels.sgd.reference_adversarial import pulls
from livefactor_kernels.spec.model import Loss
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.reference import ReferenceTable, ReferenceTables
from livefactor_kernels.tables.state import Stateless
from livefactor_kernels.update import Update, draw_negatives

_F0 = np.float32(0.0)


class Occurrence(NamedTuple):
    """The contribution of an event to a row: to its factors float32[k_padded], and to its bias.

    `bias` is None if the bias gets no step.
    """

    side: int
    row: int
    factors: np.ndarray
    bias: np.float32 | None


class Event(NamedTuple):
    """An event with rows. `keep_scales` float32[k_padded] are the factors of dropout on its
    columns.
    """

    user: int
    positive: int
    negatives: list[int]
    value: np.float32
    weight: np.float32
    keep_scales: np.ndarray


class Sgd(Stateless):
    """Learns from records.

    Attributes:
        spec, rates: of the model.
        tables: users and items.
    """

    records = False

    def __init__(self, model: ReferenceTables) -> None:
        self._model, self.spec, self.rates = model, model.spec, model.rates
        self._users, self._items = model.users, model.items
        self.tables = model.users, model.items

    def learn(self, update: Update) -> None:
        """Learns from one record."""
        n = update.user_rows.size
        negatives = draw_negatives(self.spec, update)
        ones = np.ones(n, np.float32)
        values = ones if update.values is None else update.values
        weights = ones if update.weights is None else update.weights
        for start in range(0, n, self.spec.micro_batch):
            stop = min(start + self.spec.micro_batch, n)
            groups: dict[tuple[int, int], list[tuple[int, Occurrence]]] = {}
            for t in range(start, stop):
                rows = int(update.user_rows[t]), int(update.item_rows[t]), [int(row) for row in negatives[t]]
                event = Event(*rows, values[t], weights[t], self._keep_scales(update.revision, t))
                for occurrence in self._occurrences(event):
                    groups.setdefault((occurrence.side, occurrence.row), []).append((t, occurrence))
            for (side, row), occurrences in groups.items():
                number = start // self.spec.micro_batch
                self._step(self.tables[side], row, occurrences, update.revision, number)
            if self.spec.loss == Loss.SQUARED:
                fresh = values[start : min(stop, update.fresh)]
                self._model.mean.add(fresh)

    def _keep_scales(self, revision: int, event: int) -> np.ndarray:
        """The factors of dropout on the columns of an event, float32[k_padded]."""
        rates, width = self.rates, self.spec.k_padded
        if self.spec.regularization.dropout == 0:
            return np.ones(width, np.float32)
        word = dropout_word(rates.dropout_key, np.uint64(revision), np.uint64(event))
        keeps = column_word(word, np.arange(width, dtype=np.uint64)) < rates.keep_below
        return np.where(keeps, rates.keep_scale, _F0)

    def score(self, event: Event, item: int) -> Any:
        """The score of the event's user and an item, with the event's dropout."""
        x, y = self._users.read(event.user), self._items.read(item) * event.keep_scales
        return scalar.score(
            self._model.mean.value, self._users.bias[event.user], self._items.bias[item], dot(x, y)
        )

    def _occurrences(self, event: Event) -> Iterator[Occurrence]:
        """Contributions of an event in the order of its slots: the positive, then the
        negatives.
        """
        user, negatives = event.user, event.negatives
        if self.spec.regularization.adversarial_weight:
            yield from (Occurrence(*pull) for pull in pulls(self, event))
            return
        if self.spec.loss == Loss.BPR:
            yield from self._bpr_occurrences(event)
            return
        if self.spec.loss == Loss.LOGISTIC and event.value == 0.0:
            # An explicit negative has no drawn negatives.
            negatives = []
        error = scalar.squared_error if self.spec.loss == Loss.SQUARED else scalar.logistic_error
        for slot, item in enumerate([event.positive, *negatives]):
            target = event.value if slot == 0 else _F0
            e = error(self.score(event, item), target, event.weight, self.rates.error_max)
            yield self._pull(USERS, user, e, self._items.read(item) * event.keep_scales)
            yield self._pull(ITEMS, item, e, self._users.read(user) * event.keep_scales)

    def _bpr_occurrences(self, event: Event) -> Iterator[Occurrence]:
        user, positive = event.user, event.positive
        x, y = self._users.read(user), self._items.read(positive)
        s = self.score(event, positive)
        for item in event.negatives:
            e = scalar.bpr_error(s, self.score(event, item), event.weight, self.rates.error_max)
            # The user's bias cancels in the difference of the scores. So it has no gradient, no L2
            # and no step.
            difference = (y - self._items.read(item)) * event.keep_scales
            yield self._pull(USERS, user, e, difference)._replace(bias=None)
            yield self._pull(ITEMS, positive, e, x * event.keep_scales)
            yield self._pull(ITEMS, item, -e, x * event.keep_scales)

    def _pull(self, side: int, row: int, e: np.float32, other: np.ndarray) -> Occurrence:
        table = self.tables[side]
        l2, bias_l2 = self.l2_of(side, row)
        factors = scalar.pull(e, other, l2, table.read(row))
        return Occurrence(side, row, factors, scalar.bias_pull(e, bias_l2, table.bias[row]))

    def l2_of(self, side: int, row: int) -> tuple[Any, Any]:
        """The weights of L2 for the factors and for the bias of a row."""
        weights, table = (self.rates.l2, self.rates.bias_l2), self.tables[side]
        l2, bias_l2 = (self._l2(table, row, weight) for weight in weights)
        return l2, bias_l2

    def _l2(self, table: ReferenceTable, row: int, weight: np.float32) -> Any:
        """The weight of L2 for a row, from its events before this record.

        Histories record an event after it is learned.
        """
        power = int(2 * self.spec.regularization.l2_frequency)
        return scalar.frequent_l2(weight, int(table.seen_count[row]), power) if power else weight

    def _step(
        self,
        table: ReferenceTable,
        row: int,
        occurrences: list[tuple[int, Occurrence]],
        revision: int,
        number: int,
    ) -> None:
        """Steps a row by its occurrences in micro-batch `number` of the record `revision`."""
        gradient = chunked_sum([o.factors for _, o in occurrences])
        biases = [o.bias for _, o in occurrences]
        bias = None if biases[0] is None else chunked_sum(biases)
        self._model.step(table.side, row, gradient, bias, len({t for t, _ in occurrences}), revision, number)
