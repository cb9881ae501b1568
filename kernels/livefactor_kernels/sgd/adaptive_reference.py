"""An adapted learning rate in plain NumPy: the judge of `sgd/cpu_adaptive.py` (semantics: `sgd/adaptive.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import scalar
from ..spec import Loss
from ..sums import dot, left_to_right
from ..update import Update, draw_negatives
from . import adaptive
from .adaptive import EVENTS, ITEMS_FAST, ITEMS_STEP, ROWS, TWIN_STEPS, USERS_FAST, USERS_STEP

if TYPE_CHECKING:
    from ..reference import ReferenceModel, ReferenceTable

KINDS = ("", "fast_", "slow_")
SHIFTS = (0, TWIN_STEPS, -TWIN_STEPS)


class AdaptiveSgd:
    """Learns from updates; `state` float64[8] is state."""

    records = False

    def __init__(self, model: ReferenceModel) -> None:
        self._model, self._spec, self._rates = model, model.spec, model.rates
        self.state = np.zeros(adaptive.STATE_SIZE)

    def learn(self, update: Update) -> None:
        """Learn from one record."""
        n = update.user_rows.size
        negatives = draw_negatives(self._spec, update)
        ones = np.ones(n, np.float32)
        values = ones if update.values is None else update.values
        weights = ones if update.weights is None else update.weights
        for t in range(n):
            has_negatives = self._spec.loss == Loss.LOGISTIC and values[t] != 0
            items = [int(update.item_rows[t]), *(int(row) for row in negatives[t] if has_negatives)]
            self._event(int(update.user_rows[t]), items, values[t], weights[t], t < update.fresh)

    def _event(
        self, user: int, items: list[int], value: np.float32, weight: np.float32, is_fresh: bool
    ) -> None:
        users, others = self._model.users, self._model.items
        targets = [value] + [np.float32(0.0)] * (len(items) - 1)
        x, own = _trio(users, user)[0], _trio(users, user)
        rows = [_trio(others, item) for item in items]
        of_user = [
            [self._error(twin, y[0], v, weight) for y, v in zip(rows, targets, strict=True)] for twin in own
        ]
        of_items = [
            [self._error(x, y[kind], v, weight) for y, v in zip(rows, targets, strict=True)]
            for kind in range(3)
        ]
        factors = [y[0][0] for y in rows]
        steps = [
            (users, user, USERS_STEP, kind, own[kind], errors, factors) for kind, errors in enumerate(of_user)
        ]
        for item in dict.fromkeys(items):
            slots = [slot for slot, other in enumerate(items) if other == item]
            for kind in range(3):
                errors = [of_items[kind][slot] for slot in slots]
                twin = rows[slots[0]][kind]
                steps.append((others, item, ITEMS_STEP, kind, twin, errors, [x[0]] * len(slots)))
        for step in steps:
            self._step(*step)
        if is_fresh:
            self._evaluate(of_user, of_items)
            if self._spec.loss == Loss.SQUARED:
                self._model.mean_sum += int(scalar.fixed_point(value))
                self._model.mean_count += 1

    def _error(self, user: Any, item: Any, target: np.float32, weight: np.float32) -> np.float32:
        s = scalar.score(self._model.mean, user[1], item[1], dot(user[0], item[0]))
        error = scalar.squared_error if self._spec.loss == Loss.SQUARED else scalar.logistic_error
        return np.float32(error(s, target, weight, self._rates.error_max))

    def _step(
        self, table: ReferenceTable, row: int, side: int, kind: int, twin: Any, errors: list[np.float32],
        others: list[np.ndarray],
    ) -> None:  # fmt: skip
        """Step a row (kind 0) or a twin of it by its errors on the other side's rows."""
        rates, (factors, bias) = self._rates, twin
        multiple = adaptive.multiple(int(self.state[side]) + SHIFTS[kind])
        pulls = [scalar.pull(e, other, rates.l2, factors) for e, other in zip(errors, others, strict=True)]
        bias_pull = left_to_right([scalar.bias_pull(e, rates.bias_l2, bias) for e in errors])
        stepped = scalar.sgd_step(factors, left_to_right(pulls), rates.rate * multiple, rates.factor_max)
        getattr(table, f"{KINDS[kind]}factors")[row] = stepped
        stepped = scalar.sgd_step(bias, bias_pull, rates.bias_rate * multiple, rates.factor_max)
        getattr(table, f"{KINDS[kind]}bias")[row] = stepped

    def _evaluate(self, of_user: list[list[np.float32]], of_items: list[list[np.float32]]) -> None:
        sums = [of_user[0], *of_user[1:], *of_items[1:]]
        for place, errors in enumerate(sums, ROWS):
            for error in errors:
                self.state[place] += float(error) * float(error)
        self.state[EVENTS] += 1
        if self.state[EVENTS] < self._spec.adaptive_rate.window:
            return
        for side, fast in ((USERS_STEP, USERS_FAST), (ITEMS_STEP, ITEMS_FAST)):
            sides = (float(self.state[place]) for place in (ROWS, fast, fast + 1))
            self.state[side] = adaptive.moved(int(self.state[side]), *sides)
        self.state[EVENTS:] = 0.0


def _trio(table: ReferenceTable, row: int) -> list[tuple[np.ndarray, np.float32]]:
    """(factors float32[k_padded], bias) of a row and its twins, copied."""
    return [
        (getattr(table, f"{kind}factors")[row].copy(), getattr(table, f"{kind}bias")[row]) for kind in KINDS
    ]
