"""RMSE on MovieLens-1M, timed half: one pass contrasted with many.

The opponent is biased matrix factorisation by SGD in float64, with a new random order in each epoch
(Koren, Bell, Volinsky, Computer 2009). The number of epochs is tuned with the other settings on the
earlier cut: it stops when the error has not fallen for `PATIENCE` epochs. Predictions of both are
not clipped.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from benchmarks.progressive.rmse import rmse
from benchmarks.quality.data import Division, Events
from benchmarks.quality.search import Settings
from benchmarks.quality.streamed import one_pass, settled
from livefactor_kernels.numbers.compiled import compiled

EPOCHS_MAX, PATIENCE = 60, 3


class Predicts(Protocol):
    """A model that predicts ratings."""

    def predictions(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The predicted values of users int[n] for items int[n], float[n]."""


@compiled(nogil=False, error_model="python")
def _epoch(
    users: Any, items: Any, values: Any, order: Any, mean: Any, rate: Any, l2: Any, x: Any, y: Any
) -> None:
    """One epoch of SGD in place.

    `x` and `y` are float64[rows, k + 1] with the bias in the last column.
    """
    k = x.shape[1] - 1
    for t in order:
        user, item = x[users[t]], y[items[t]]
        error = mean + user[k] + item[k] - values[t]
        for j in range(k):
            error += user[j] * item[j]
        for j in range(k):
            old = user[j]
            user[j] -= rate * (error * item[j] + l2 * old)
            item[j] -= rate * (error * old + l2 * item[j])
        user[k] -= rate * (error + l2 * user[k])
        item[k] -= rate * (error + l2 * item[k])


class MultiPass:
    """SGD with many epochs over the same ratings."""

    def __init__(self, events: Events, rate: float, l2: float, k: int, seed: int) -> None:
        self._events, self._rate, self._l2 = events, rate, l2
        self._generator = np.random.default_rng(seed)
        self._mean = float(events.values.mean(dtype=np.float64))
        self._users, self._items = self._first(events.user_count, k), self._first(events.item_count, k)

    def _first(self, rows: int, k: int) -> np.ndarray:
        factors = self._generator.normal(0.0, 0.1, (rows, k + 1))
        factors[:, k] = 0.0
        return factors

    def epoch(self) -> None:
        """Learns every rating once, in a new order."""
        events, order = self._events, self._generator.permutation(len(self._events))
        columns = events.users, events.items, events.values.astype(np.float64), order
        _epoch(*columns, self._mean, self._rate, self._l2, self._users, self._items)

    def predictions(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Predictions, float64[n]. An item without ratings has its initial row."""
        x, y = self._users[users], self._items[items]
        return self._mean + x[:, -1] + y[:, -1] + np.einsum("ij,ij->i", x[:, :-1], y[:, :-1])


def error_of(model: Predicts, judged: Events) -> float:
    """RMSE of the model on the judged events."""
    return rmse(model.predictions(judged.users, judged.items) - judged.values.astype(np.float64))


def best_epochs(division: Division, settings: Settings) -> tuple[float, int]:
    """The lowest RMSE on the judged events, and the number of epochs that reaches it."""
    model = MultiPass(division.learned, **settings, seed=0)  # type: ignore[arg-type]
    errors: list[float] = []
    while len(errors) < EPOCHS_MAX and np.argmin(errors or [0.0]) >= len(errors) - PATIENCE:
        model.epoch()
        errors.append(error_of(model, division.judged))
    best = int(np.argmin(errors))
    return errors[best], best + 1


def multi_pass(events: Events, epochs: int, seed: int, **settings: float) -> MultiPass:
    """The opponent, fitted to the events."""
    model = MultiPass(events, **settings, seed=seed)  # type: ignore[arg-type]
    for _ in range(epochs):
        model.epoch()
    return model


def streamed(events: Events, seed: int, key: str = "ratings_sgd", **settings: float) -> Predicts:
    """livefactor after one pass, with preset `key` and changed settings."""
    return one_pass(settled(key, **settings, seed=seed), events)
