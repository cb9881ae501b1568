"""The adaptive learning rate in plain NumPy: the reference for `sgd/cpu_adaptive.py`.

`sgd/adaptive.py` has the semantics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.sums import dot
from livefactor_kernels.optimizers import StepRates
from livefactor_kernels.sgd.adaptive import (
    EVENTS,
    MOVES,
    RATES,
    SQUARES,
    STATE_SIZE,
    STEP,
    SUM,
    at_step,
    end_window,
)
from livefactor_kernels.sgd.reference import Sgd
from livefactor_kernels.spec.model import Loss
from livefactor_kernels.tables.reference import ReferenceTable, ReferenceTables
from livefactor_kernels.update import Update, draw_negatives


class AdaptiveSgd:
    """Learns from records.

    Attributes:
        state: float64[5] (`sgd/adaptive.py`).
    """

    records = False

    def __init__(self, model: ReferenceTables) -> None:
        self._model, self._spec = model, model.spec
        self.state = np.zeros(STATE_SIZE)

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`."""
        return {RATES: self.state}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`."""
        self.state[:] = sections[RATES]

    def learn(self, update: Update) -> None:
        """Learns from one record."""
        step, mean = int(self.state[STEP]), self._model.mean.sums.copy()
        negatives = draw_negatives(self._spec, update)
        self._begin(self._model.users, update.user_rows)
        self._begin(self._model.items, np.append(update.item_rows, negatives))
        losses = self._losses(update, negatives)
        self._exchange()
        probe_losses = self._losses(update, negatives)
        self._learn_at(step + 1, update)
        self._exchange()
        self._model.mean.sums[:] = mean
        self._learn_at(step, update)
        for probe_loss, loss in zip(probe_losses, losses, strict=True):
            d = probe_loss - loss
            self.state[SUM] += d
            self.state[SQUARES] += d * d
        self.state[EVENTS] += len(losses)
        if self.state[EVENTS] >= self._spec.adaptive_rate.window:
            end_window(self.state)

    def _begin(self, table: ReferenceTable, rows: np.ndarray) -> None:
        """Starts those of the probe's rows uint32[n] again that started before the last change."""
        for row in rows.astype(np.int64):
            if table.row_probe[row] != self.state[MOVES]:
                table.factor_probe[row] = table.factors[row]
                table.bias_probe[row] = table.bias[row]
                table.row_probe[row] = self.state[MOVES]

    def _exchange(self) -> None:
        """Exchanges the rows of the model and of the probe."""
        for table in (self._model.users, self._model.items):
            table.factors, table.factor_probe = table.factor_probe, table.factors
            table.bias, table.bias_probe = table.bias_probe, table.bias

    def _learn_at(self, step: int, update: Update) -> None:
        self._model.rates = StepRates.of(at_step(self._spec, step))
        Sgd(self._model).learn(update)

    def _losses(self, update: Update, negatives: np.ndarray) -> list[float]:
        """The sum of squared errors of every fresh event."""
        ones = np.ones(update.fresh, np.float32)
        values = ones if update.values is None else update.values
        weights = ones if update.weights is None else update.weights
        losses = []
        for t in range(update.fresh):
            user, loss = int(update.user_rows[t]), 0.0
            rows = [int(update.item_rows[t]), *map(int, negatives[t])]
            for error in self._errors(user, rows, values[t], weights[t]):
                loss += float(error) * float(error)
            losses.append(loss)
        return losses

    def _errors(self, user: int, rows: list[int], value: np.float32, weight: np.float32) -> list[Any]:
        """Errors float32 of an event of a user.

        The first of `rows` is its item, and the others are its negatives.
        """
        limit = self._model.rates.error_max
        scores = [self._score(user, row) for row in rows]
        if self._spec.loss == Loss.SQUARED:
            return [scalar.squared_error(scores[0], value, weight, limit)]
        if self._spec.loss == Loss.BPR:
            return [scalar.bpr_error(scores[0], other, weight, limit) for other in scores[1:]]
        errors = [scalar.logistic_error(scores[0], value, weight, limit)]
        if value != 0:
            errors += [scalar.logistic_error(s, np.float32(0.0), weight, limit) for s in scores[1:]]
        return errors

    def _score(self, user: int, item: int) -> Any:
        users, items = self._model.users, self._model.items
        product = dot(users.factors[user], items.factors[item])
        return scalar.score(self._model.mean.value, users.bias[user], items.bias[item], product)
